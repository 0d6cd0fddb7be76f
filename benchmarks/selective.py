"""The selective search over all layers beside the rule as it is written: a fresh Jacobian of all classes a layer.

    python benchmarks/selective.py --output benchmarks/results/0.1.0/NAME.json

The network is VGG-16 with a head of ten classes (25088-256-64-10, as in the authors' code). The baseline, plain torch,
goes down from the top: for every layer it runs the network once more, multiplies the derivatives at the layers above
by the sets chosen there, takes the derivative of each class by the layer, and chooses. Both must choose the same units.
Times are medians of paired ratios to one bare forward and backward pass.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

import relupath
from cost import DEVICE, bare, machine, timed

CLASSES = 10


def network() -> nn.Sequential:
    """VGG-16's convolutions and a small head, in one row; weights at random."""
    torch.manual_seed(0)
    features = torchvision.models.vgg16(weights=None).features
    head = [nn.Linear(25088, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, CLASSES)]
    for module in features:
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return nn.Sequential(*features, nn.Flatten(), *head).eval().to(DEVICE)


def ours(model: nn.Sequential, x: Tensor, target: int, width: int) -> list[set[int]]:
    """The sets of the selective search, from the top down, as numbers of neurons."""
    frozen = relupath.freeze(model, x)
    found = relupath.find_paths(frozen, target, relupath.Selective(width))
    return [
        {number(unit, frozen.layer(step.layer).shape) for unit in step.units} for step in reversed(found.paths[0].steps)
    ]


def number(unit: tuple[int | None, ...], shape: tuple[int, ...]) -> int:
    """The position of a neuron in its layer, flattened."""
    at = 0
    for i, size in zip(unit, shape, strict=True):
        at = at * size + (i or 0)
    return at


def naive(model: nn.Sequential, x: Tensor, target: int, width: int) -> list[set[int]]:
    """The same by a fresh Jacobian for every layer."""
    places = [i for i, module in enumerate(model) if isinstance(module, nn.ReLU)][::-1]
    masks: dict[int, Tensor] = {}
    for place in places:
        h = x
        for i, module in enumerate(model):
            h = module(h)
            if i == place:
                h = layer = h.detach().requires_grad_()
            elif i in masks:
                h.register_hook(lambda v, mask=masks[i]: v * mask)
        rows = [torch.autograd.grad(h[0, c], layer, retain_graph=True)[0] for c in range(CLASSES)]
        contributions = torch.stack([(row * layer.detach())[0].flatten() for row in rows])
        masks[place] = chosen(contributions, target, width).view_as(layer).to(layer.dtype)
    return [set(mask.flatten().nonzero()[:, 0].tolist()) for mask in masks.values()]


def chosen(contributions: Tensor, target: int, width: int) -> Tensor:
    """The units whose soft-max share for the target is above that of chance, at most so many of them, one at least."""
    share = contributions.softmax(0)[target]
    counts = (share > 1 / CLASSES) & contributions.ne(0).any(0)
    best = torch.where(counts, share, -1).topk(min(width, len(share))).indices
    keep = torch.zeros_like(counts)
    keep[best] = counts[best]
    return keep


def main() -> None:
    """Measure, print the ratios, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model, x = network(), torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    target = int(model(x).argmax())
    a, b = ours(model, x, target, options.width), naive(model, x, target, options.width)
    same = statistics.mean(len(s & t) / max(1, len(s | t)) for s, t in zip(a, b, strict=True))
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(model, x, target, options.width),
        "naive": lambda: naive(model, x, target, options.width),
    }
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(options.repeats), file=sys.stderr):
        base = timed(bare, model, x, torch.tensor([target]))
        for name, run in runs.items():
            ratios[name].append(timed(run) / base)
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    print(f"layers {len(a)}, units in common {100 * same:.1f} %, bare passes: {medians}")
    if options.output:
        report = {"machine": machine(), "width": options.width, "layers": len(a), "same": same, "bare_passes": medians}
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
