"""What each search finds on real photos, and what it costs beside one forward and backward pass, run by run in turn.

    python benchmarks/searches.py --photos FOLDER --weights squeezenet1_0.safetensors --output FILE.json

For every search: how much of the logit its paths hold together (median over the photos), the value of its best path
over that of Algorithm 1, vector-Jacobian products, and the time as the median of paired ratios to a forward pass with
``torch.autograd.grad`` of the logit.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

import relupath
from relupath._search import Found

SEARCHES = {
    "Greedy()": relupath.Greedy(),
    "Beam(8)": relupath.Beam(8),
    "BestFirst(64)": relupath.BestFirst(64),
    "Mass(0.5)": relupath.Mass(0.5),
    "Mass(0.5, depth=3)": relupath.Mass(0.5, depth=3),
    "Selective(64)": relupath.Selective(64),
    "Selective(64, depth=5)": relupath.Selective(64, depth=5),
}
PARTITIONS = {"neurons": relupath.neurons, "channels": relupath.channels, "locations": relupath.locations}


def bare(model: torch.nn.Module, x: torch.Tensor) -> float:
    """Seconds of a forward pass and the gradient of the predicted logit."""
    start = time.perf_counter()
    leaf = x.detach().clone().requires_grad_()
    torch.autograd.grad(model(leaf).amax(1).sum(), leaf)
    return time.perf_counter() - start


def row(found: Found, seconds: float, base: float, greedy: float) -> dict[str, float]:
    """What one search found at one photo."""
    steps = found.paths[0].steps
    return {
        "held": float(found.held[0]),
        "best_over_greedy": found.values[0][0] / greedy if greedy > 0 else float("nan"),
        "paths": len(found.ranked[0]),
        "layers": len(steps),
        "units_on_top": sum(len(part.units) for part in steps[-1].parts.values()) if steps else 0,
        "weight_share": float(found.model.weight_part[0] / found.model.value[0]),
        "products": found.cost.products,
        "time_ratio": seconds / base,
    }


def measure(classifier: relupath.models.Classifier, photos: Sequence[Path]) -> dict[str, dict[str, dict[str, float]]]:
    """The medians over the photos, by partition and search."""
    rows: dict[str, dict[str, list[dict[str, float]]]] = {p: {s: [] for s in SEARCHES} for p in PARTITIONS}
    for photo in tqdm(photos):
        x = classifier.prepare(relupath.images.read(photo).image)[None]
        bare(classifier.model, x)
        for name, partition in PARTITIONS.items():
            greedy = 0.0
            for said, search in SEARCHES.items():
                base = bare(classifier.model, x)
                start = time.perf_counter()
                frozen = relupath.freeze(classifier.model, x)
                found = relupath.find_paths(frozen, None, search, partition=partition)
                seconds = time.perf_counter() - start
                greedy = greedy or found.values[0][0]
                rows[name][said].append(row(found, seconds, base, greedy))
    return {
        name: {
            said: {key: statistics.median(r[key] for r in found) for key in found[0]} for said, found in some.items()
        }
        for name, some in rows.items()
    }


def table(medians: dict[str, dict[str, dict[str, float]]]) -> str:
    """The medians as Markdown."""
    lines = [
        "| units | search | paths | layers | held of the logit | best over greedy | products | time |",
        "|" + "---|" * 8,
    ]
    for name, some in medians.items():
        for said, r in some.items():
            numbers = f"{r['paths']:.0f} | {r['layers']:.0f} | {r['held']:.2g} | {r['best_over_greedy']:.2g}"
            lines.append(f"| {name} | `{said}` | {numbers} | {r['products']:.0f} | {r['time_ratio']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--weights", type=Path, required=True, help="SqueezeNet 1.0, safetensors")
    parser.add_argument("--count", type=int, default=20, help="how many of the photos, evenly spaced")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    every = sorted(args.photos.glob("*.jpg"))
    photos = every[:: max(1, len(every) // args.count)][: args.count]
    classifier = relupath.models.load("torchvision/squeezenet1_0", weights=args.weights)
    medians = measure(classifier, photos)
    print(table(medians))
    machine = {"processor": platform.machine(), "threads": args.threads, "torch": torch.__version__}
    numbers = {"photos": [p.name for p in photos], "machine": machine, "medians": medians}
    args.output.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
