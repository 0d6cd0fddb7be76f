"""What each search finds on real photos, and what it costs beside one forward and backward pass, run by run in turn.

    python benchmarks/searches.py --photos FOLDER --weights squeezenet1_0.safetensors --output FILE.json

For every search, as medians over the photos: how much of the logit its paths hold together; the value of its best path
over that of Algorithm 1, and over the exact best one where it is a complete one-way path too (the first row of a block
so says how far greedy is from the best); vector-Jacobian products; and the time, paired with a forward pass and
``torch.autograd.grad`` of the logit just before.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

import relupath
from cost import machine
from relupath._search import Found

ONE_WAY = {"Greedy()": relupath.Greedy(), "Beam(8)": relupath.Beam(8), "Exact(1)": relupath.Exact(1)}
ALL = {
    "Greedy()": relupath.Greedy(),
    "Beam(8)": relupath.Beam(8),
    "BestFirst(64)": relupath.BestFirst(64),
    "Mass(0.5)": relupath.Mass(0.5),
    "Mass(0.5, depth=3)": relupath.Mass(0.5, depth=3),
    "Selective(64)": relupath.Selective(64),
    "Selective(64, depth=5)": relupath.Selective(64, depth=5),
}
BLOCKS = {
    "neurons, all levels": (relupath.neurons, None, {**ALL, "Exact(1)": relupath.Exact(1)}),
    "channels, all levels": (relupath.channels, None, ALL),
    "channels, top 5 levels": (relupath.channels, 5, ONE_WAY),
    "locations, all levels": (relupath.locations, None, ALL),
    "locations, top 3 levels": (relupath.locations, 3, ONE_WAY),
}


def bare(model: torch.nn.Module, x: torch.Tensor) -> float:
    """Seconds of a forward pass and the gradient of the predicted logit."""
    start = time.perf_counter()
    leaf = x.detach().clone().requires_grad_()
    torch.autograd.grad(model(leaf).amax(1).sum(), leaf)
    return time.perf_counter() - start


def row(found: Found, ratio: float, greedy: float, best: float) -> dict[str, float]:
    """What one search found at one photo."""
    steps = found.paths[0].steps
    complete = [v for path, v in zip(found.ranked[0], found.values[0], strict=True) if found.problem.completes(path)]
    return {
        "held": float(found.held[0]),
        "best_over_greedy": found.values[0][0] / greedy if greedy > 0 else math.nan,
        "share_of_exact_best": max(complete, default=math.nan) / best,
        "paths": len(found.ranked[0]),
        "layers": len(steps),
        "units_on_top": sum(len(part.units) for part in steps[-1].parts.values()) if steps else 0,
        "weight_share": float(found.model.weight_part[0] / found.model.value[0]),
        "products": found.cost.products,
        "time_ratio": ratio,
    }


def block(classifier: relupath.models.Classifier, photo: Path, name: str) -> dict[str, dict[str, float]]:
    """The searches of one block at one photo."""
    partition, depth, searches = BLOCKS[name]
    x = classifier.prepare(relupath.images.read(photo).image)[None]
    bare(classifier.model, x)
    found, ratios = {}, {}
    for said, search in searches.items():
        base = bare(classifier.model, x)
        start = time.perf_counter()
        frozen = relupath.freeze(classifier.model, x)
        layers = [layer for level in frozen.levels(frozen.layers)[:depth] for layer in level]
        found[said] = relupath.find_paths(frozen, None, search, layers=layers, partition=partition)
        ratios[said] = (time.perf_counter() - start) / base
    greedy = found["Greedy()"].values[0][0]
    best = found["Exact(1)"].values[0][0] if "Exact(1)" in found else math.nan
    return {said: row(result, ratios[said], greedy, best) for said, result in found.items()}


def median(numbers: Sequence[float]) -> float | None:
    """The median of those that are numbers."""
    known = [number for number in numbers if not math.isnan(number)]
    return statistics.median(known) if known else None


def measure(classifier: relupath.models.Classifier, photos: Sequence[Path]) -> dict[str, dict[str, dict[str, object]]]:
    """The medians over the photos, by block and search, and how many photos had a path to compare with the best."""
    rows = [{name: block(classifier, photo, name) for name in BLOCKS} for photo in tqdm(photos)]
    medians: dict[str, dict[str, dict[str, object]]] = {}
    for name, (_, _, searches) in BLOCKS.items():
        medians[name] = {}
        for said in searches:
            mine = [photo[name][said] for photo in rows]
            shares = [r["share_of_exact_best"] for r in mine]
            numbers: dict[str, object] = {key: median([r[key] for r in mine]) for key in mine[0]}
            numbers |= {"compared": sum(not math.isnan(share) for share in shares)}
            numbers |= {"least_share_of_exact_best": min((s for s in shares if not math.isnan(s)), default=None)}
            medians[name][said] = numbers
    return medians


def table(medians: dict[str, dict[str, dict[str, object]]]) -> str:
    """The medians as Markdown."""
    columns = ("paths", "layers", "held", "best_over_greedy", "share_of_exact_best", "products", "time_ratio")
    heads = ("paths", "layers", "held of the logit", "best over greedy", "share of the exact best", "products", "time")
    lines = [f"| units | search | {' | '.join(heads)} |", "|" + "---|" * (2 + len(heads))]
    for name, some in medians.items():
        for said, r in some.items():
            cells = ["" if r[key] is None else f"{r[key]:.3g}" for key in columns]
            lines.append(f"| {name} | `{said}` | {' | '.join(cells)} |")
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
    numbers = {"machine": machine(), "photos": [p.name for p in photos], "medians": medians}
    args.output.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
