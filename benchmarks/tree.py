"""How long it takes to expand a node of the decomposition tree into 12 children with their maps.

    python benchmarks/tree.py --output benchmarks/results/0.1.0/NAME.json

From the root down, at every level the child of the largest value is expanded, to the lowest layer; every expansion is
timed, and beside each one bare forward and backward pass of the network. Percentiles are over all expansions.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
import torchvision
from tqdm import tqdm

import relupath
from cost import DEVICE, bare, machine, timed

PARTITIONS = {"neurons": relupath.neurons, "channels": relupath.channels}
CLASS = 3


def expansions(model: torch.nn.Module, x: torch.Tensor, partition: relupath.Partition) -> list[tuple[float, float]]:
    """Seconds of each expansion on the way down, and of a bare pass beside it."""
    frozen = relupath.freeze(model, x)
    layers = [layer for layer in frozen.layers if len(layer.shape) == 3]
    node = relupath.decompose(frozen, CLASS, layers=layers, partition=partition, width=12)
    found = []
    while True:
        seconds = timed(lambda node=node: node.children)
        paths = [child for child in node.children if child.kind == "path"]
        if not paths:
            return found
        found.append((seconds, timed(bare, model, x, torch.tensor([CLASS], device=DEVICE))))
        node = max(paths, key=lambda child: child.value)


def main() -> None:
    """Measure both networks, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["squeezenet1_0", "vgg16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    print(
        f"{'network':<16}{'units':<10}{'expansions':>11}{'p50, s':>9}{'p95, s':>9}{'p50 / bare':>12}{'p95 / bare':>12}"
    )
    for name in options.networks:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval().to(DEVICE)
        for said, partition in PARTITIONS.items():
            found = []
            for seed in tqdm(range(options.repeats), desc=f"{name}, {said}", file=sys.stderr):
                x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
                found += expansions(model, x, partition)
            columns = [s for s, _ in found], [s / base for s, base in found]
            percentiles = [statistics.quantiles(column, n=20)[i] for column in columns for i in (9, 18)]
            rows.append({"network": name, "units": said, "count": len(found), "percentiles": percentiles})
            print(
                f"{name:<16}{said:<10}{len(found):>11}"
                + "".join(f"{p:>{w}.3f}" for p, w in zip(percentiles, (9, 9, 12, 12), strict=True))
            )
    if options.output:
        report = {
            "machine": machine(),
            "width": 12,
            "columns": "p50 and p95 in s, p50 and p95 over a bare pass",
            "rows": rows,
        }
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
