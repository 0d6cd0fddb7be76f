"""Why a server's main thread computes nothing: the same answers in threads that end, before and after it has computed.

    python benchmarks/threads.py --output benchmarks/results/0.1.0/NAME.json

OpenMP keeps a team of threads for every thread that has computed. Each answer is a node of the decomposition tree split
into six channels with their maps, of SqueezeNet.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torchvision

import relupath
from cost import machine, timed


def apart(work: Callable[[], Any]) -> Any:
    """What work gives in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def begun() -> relupath.Node:
    """The root of a tree over a new recording of random weights."""
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_0(weights=None).eval()
    frozen = relupath.freeze(model, torch.randn(1, 3, 224, 224))
    layers = [layer for layer in frozen.layers if len(layer.shape) == 3]
    return relupath.decompose(frozen, 3, layers=layers, partition=relupath.channels, width=6)


def split() -> list[float]:
    """Seconds that each node takes on the way down along the largest child, each in a thread of its own."""
    node, found = apart(begun), []
    for _ in range(8):
        found.append(apart(lambda node=node: timed(lambda: node.children)))
        node = max(node.children, key=lambda child: (child.kind == "path", child.value))
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    split()
    before = [statistics.median(times) for times in zip(*(split() for _ in range(options.repeats)), strict=True)]
    begun()  # the main thread computes
    after = [statistics.median(times) for times in zip(*(split() for _ in range(options.repeats)), strict=True)]
    ratio = statistics.median(b / a for a, b in zip(before, after, strict=True))
    rows = {"nodes": len(before), "median node before, s": statistics.median(before), "after over before": ratio}
    print(rows)
    if options.output:
        options.output.write_text(json.dumps({"machine": machine(), **rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
