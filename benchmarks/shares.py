"""What the nodes of a decomposition tree hold on real photos: the units, the rest, the biases, the routes around.

    python benchmarks/shares.py --photos FOLDER --weights squeezenet1_0.safetensors --output FILE.json

From the logit down, over channels, the child of the largest value is split again. For each of the first levels: the
shares of the split node's value that its eight largest units, the rest, the bias and the by-pass hold (medians).
"""

import argparse
import json
import statistics
from pathlib import Path

from tqdm import tqdm

import relupath
from cost import machine

LEVELS = 5
KINDS = ("path", "rest", "bias", "by-pass")


def shares(node: relupath.Node) -> list[dict[str, float]]:
    """The shares of each kind of child, level by level along the largest ones."""
    found = []
    for _ in range(LEVELS):
        held = {kind: sum(c.value for c in node.children if c.kind == kind) / node.value for kind in KINDS}
        paths = [child for child in node.children if child.kind == "path"]
        found.append({**held, "largest": max(child.value for child in paths) / node.value})
        node = max(paths, key=lambda child: child.value)
    return found


def main() -> None:
    """Measure, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--weights", type=Path, required=True, help="SqueezeNet 1.0, safetensors")
    parser.add_argument("--count", type=int, default=20, help="how many of the photos, evenly spaced")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    every = sorted(options.photos.glob("*.jpg"))
    photos = every[:: max(1, len(every) // options.count)][: options.count]
    classifier = relupath.models.load("torchvision/squeezenet1_0", weights=options.weights)
    rows = []
    for photo in tqdm(photos):
        frozen = relupath.freeze(classifier.model, classifier.prepare(relupath.images.read(photo).image)[None])
        layers = [layer for layer in frozen.layers if not layer.name.startswith("classifier")]
        rows.append(shares(relupath.decompose(frozen, layers=layers, partition=relupath.channels)))
    medians = [
        {key: statistics.median(row[level][key] for row in rows) for key in rows[0][level]} for level in range(LEVELS)
    ]
    for level, row in enumerate(medians, start=1):
        print(level, " ".join(f"{key} {100 * value:.1f} %" for key, value in row.items()))
    report = {"machine": machine(), "photos": [photo.name for photo in photos], "levels": medians}
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
