r"""How far areas with a tolerance are from those of all steps, and how many passes of the network they take.

    python paper/steps.py --images FOLDER --weights squeezenet1_0.safetensors \
        --count 4 --output paper/expected/steps-squeezenet.json

On the first photos of ``table.py``, in its order, with its maps and orders of the pixels: each curve is measured twice.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import asked
import table
from relupath import metrics

MEASURES = {"insertion": metrics.insertion, "deletion": metrics.deletion}


def compared(task: table.Task, numbers: Sequence[int], names: Sequence[str], tolerance: float) -> Tensor:
    """The area's difference to that of all steps and the points that were run, (2, methods, measures, pictures)."""
    x = task.pictures(numbers)
    with torch.no_grad():
        c = task.model(x).argmax(1)
    found = []
    for shown in tqdm(table.maps(task, x, c, numbers, names), total=len(names), disable=None):
        order = metrics.ranks(shown, numbers)
        pairs = [[m(task.scored, x, c, order, tolerance=t) for t in (None, tolerance)] for m in MEASURES.values()]
        less = torch.stack([some.area - full.area for full, some in pairs])
        found.append(torch.stack([less, torch.stack([some.run.sum(1) for _, some in pairs]).to(less)]))
    return torch.stack(found, 1)


def summary(found: Tensor) -> dict[str, dict[str, Any]]:
    """What is reported of each measure, over pictures and methods; the mean of each method over the pictures."""
    report = {}
    for m, name in enumerate(MEASURES):
        less, run = found[:, :, m].double()
        report[name] = {
            "mean_size_of_difference": float(less.abs().mean()),
            "largest_difference": float(less.abs().max()),
            "mean_difference": float(less.mean()),
            "largest_of_a_methods_mean": float(less.mean(1).abs().max()),
            "points_run": float(run.mean()),
            "most_points_run": int(run.max()),
        }
    return report


def main() -> None:
    """Measure every curve with all steps and with the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8, help="so many photos (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="photos at a time (default: %(default)s)")
    parser.add_argument("--tolerance", type=float, default=0.001, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the figures here, as JSON")
    options = parser.parse_args()
    task = table.of_squeezenet(options.images, options.weights)
    numbers = range(min(options.count, len(task.names)))
    groups = [numbers[start : start + options.batch] for start in range(0, len(numbers), options.batch)]
    parts = [compared(task, group, task.usual, options.tolerance) for group in groups]
    found = summary(torch.cat(parts, 3))
    setting = {"network": "squeezenet", "tolerance": options.tolerance, "photos": len(numbers)}
    asked.write(options.output, {**setting, "methods": [*task.usual], "measures": found})


if __name__ == "__main__":
    main()
