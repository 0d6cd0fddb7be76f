"""Why does a zucchini look like a bell pepper, and a locomotive like a prison? The numbers of docs/real-photos.md.

    python paper/photos.py --photos FOLDER --weights squeezenet1_0.safetensors --output paper/expected/photos.json

The folder holds ImageNet samples named ``NNN_name.jpg`` by class index.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import relupath
from relupath import images, models

PAIRS = ((939, 945), (945, 939), (547, 743), (743, 547))


def shares(frozen: relupath.Frozen, x: "object", own: int, other: int) -> dict[str, object]:
    """Both logits split into weight part and bias, how alike their maps are, and the paths' top units."""
    row: dict[str, object] = {"own": own, "other": other}
    order = frozen.output[0].argsort(descending=True).tolist()
    row["rank_of_other"] = order.index(other) + 1
    maps = []
    for role, c in (("own", own), ("other", other)):
        model = relupath.linear_model(frozen, c)
        contribution = (model.weight * x)[0].sum(0).flatten().double()
        maps.append(contribution.numpy())
        row[f"{role}_logit"] = float(model.value)
        row[f"{role}_bias_share"] = float(model.bias / model.value)
        row[f"{role}_net_share"] = float(contribution.sum() / contribution.abs().sum())
        for partition in (relupath.neurons, relupath.channels):
            found = relupath.find_paths(frozen, c, relupath.Greedy(), partition=partition)
            values = [float(relupath.linear_model(frozen, c, found.paths[0].top(k)).value) for k in (1, 2, 4)]
            row[f"{role}_{partition.name}_values_top_1_2_4"] = values
            row[f"{role}_{partition.name}_top_3"] = str(found.paths[0].top(3))
            row[f"{role}_{partition.name}_ends_at"] = list(found.paths[0].input.units[0])
    row["map_correlation"] = float(np.corrcoef(*maps)[0, 1])
    return row


def main() -> None:
    """Explain the four photos, and the bias share of the predicted class over many."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--every", type=int, default=5, help="take every so-many-th photo for the bias share")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    classifier = models.load("torchvision/squeezenet1_0", options.weights)
    rows = []
    for own, other in PAIRS:
        (photo,) = options.photos.glob(f"{own:03d}_*.jpg")
        x = classifier.prepare(images.read(photo).image)[None]
        rows.append({"photo": photo.name, **shares(relupath.freeze(classifier.model, x), x, own, other)})
        print(json.dumps(rows[-1], indent=1))
    share = []
    for photo in tqdm(sorted(options.photos.glob("*.jpg"))[:: options.every], file=sys.stderr):
        model = relupath.linear_model(
            relupath.freeze(classifier.model, classifier.prepare(images.read(photo).image)[None])
        )
        share.append(float(model.bias / model.value))
    percentiles = dict(zip(("min", "10", "50", "90", "max"), np.percentile(share, [0, 10, 50, 90, 100]), strict=True))
    report = {"rows": rows, "bias_share": {"photos": len(share), **{k: float(v) for k, v in percentiles.items()}}}
    print(report["bias_share"])
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
