"""How the cost grows with the number of paths, the depth of the network, the resolution and the batch.

    python benchmarks/scaling.py --output benchmarks/results/0.1.0/NAME.json

Each series varies one of them: K paths through neurons of conv3_3 of VGG-16 (``linear_models``, the network recorded
before); Algorithm 1 over all layers of networks of d convolutions of one size; Algorithm 1 over all layers of VGG-16's
convolutions at pictures of s x s pixels; the linear models of a batch of B pictures by ResNet-18. Times are medians, a
bare forward and backward pass beside each run. The exponent e of ``time ~ size^e`` is fitted to the logarithms of the
upper half of the sizes by least squares, as fixed costs hide it below; of the resolution, by the number of pixels. The
plot is written beside the JSON, as SVG.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torchvision
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

import relupath
from cost import DEVICE, bare, machine, timed
from relupath import Path as UnitPath

CLASS = 3
Run = Callable[[], object]
Point = tuple[int, Run, Run]
"""A size, the job, and a bare pass beside it."""


def paths(sizes: Sequence[int]) -> Iterator[Point]:
    """K paths through neurons of one layer."""
    model, x = torchvision.models.vgg16(weights=None).eval().to(DEVICE), torch.randn(1, 3, 224, 224).to(DEVICE)
    frozen = relupath.freeze(model, x)
    layer = frozen.layer("features.15")
    (v,) = frozen.vjp({frozen.top: frozen.functional(CLASS).gradient}, [layer])
    live = (v * layer.output)[0].nonzero().cpu()
    some = [UnitPath.of([(layer.name, tuple(unit))]) for unit in live[torch.randperm(len(live))].tolist()]
    for count in sizes:
        yield count, partial(relupath.linear_models, frozen, some[:count], CLASS), partial(pass_, model, x)


def depth(sizes: Sequence[int]) -> Iterator[Point]:
    """Algorithm 1 over all layers of plain networks of so many convolutions."""
    x = torch.randn(1, 32, 56, 56).to(DEVICE)
    for count in sizes:
        convolutions = [m for _ in range(count) for m in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
        model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval().to(DEVICE)
        for module in model:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        yield count, partial(greedy, model, x), partial(pass_, model, x)


def resolution(sizes: Sequence[int]) -> Iterator[Point]:
    """Algorithm 1 over all layers of VGG-16's convolutions at pictures of so many pixels a side."""
    features = torchvision.models.vgg16(weights=None).features
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)).eval().to(DEVICE)
    for side in sizes:
        x = torch.randn(1, 3, side, side).to(DEVICE)
        yield side, partial(greedy, model, x), partial(pass_, model, x)


def batch(sizes: Sequence[int]) -> Iterator[Point]:
    """The linear models of so many pictures."""
    model = torchvision.models.resnet18(weights=None).eval().to(DEVICE)
    for count in sizes:
        x = torch.randn(count, 3, 224, 224).to(DEVICE)
        yield count, partial(whole, model, x), partial(pass_, model, x)


def whole(model: nn.Module, x: Tensor) -> object:
    """The linear models of a batch."""
    return relupath.linear_model(relupath.freeze(model, x), relupath.logit(torch.full((len(x),), CLASS, device=DEVICE)))


def greedy(model: nn.Module, x: Tensor) -> object:
    """Algorithm 1 over all layers with its linear model."""
    return relupath.find_paths(relupath.freeze(model, x), CLASS, relupath.Greedy()).model


def pass_(model: nn.Module, x: Tensor) -> object:
    """A bare forward and backward pass."""
    return bare(model, x, torch.full((len(x),), CLASS, device=DEVICE))


SERIES: dict[str, tuple[Callable[[Sequence[int]], Iterator[Point]], list[int], str, int]] = {
    "paths": (paths, [4**n for n in range(7)], "K paths", 1),
    "depth": (depth, [2, 3, 5, 8, 12, 20, 32, 50], "convolutions", 1),
    "resolution": (resolution, [64, 128, 256, 512, 1024], "pixels a side", 2),
    "batch": (batch, [1, 2, 4, 8, 16, 32], "pictures", 1),
}
"""What is run, the sizes, what they count, and the power of the size that the work grows with."""


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log time over log size, by least squares on the upper half."""
    first = len(sizes) // 2
    return statistics.linear_regression([*map(math.log, sizes[first:])], [*map(math.log, seconds[first:])]).slope


def measured(name: str, repeats: int) -> dict[str, object]:
    """Median seconds at each size, of the job and of a bare pass, and the exponents."""
    series, sizes, _, power = SERIES[name]
    torch.manual_seed(0)
    rows: list[dict[str, float]] = []
    for size, job, beside in tqdm(series(sizes), total=len(sizes), desc=name, file=sys.stderr):
        job()
        runs = [(timed(job), timed(beside)) for _ in range(repeats)]
        rows.append({"size": size, "seconds": statistics.median(s for s, _ in runs),
                     "bare": statistics.median(b for _, b in runs),
                     "over_bare": statistics.median(s / b for s, b in runs)})  # fmt: skip
    work = [size**power for size in sizes]
    fitted = {key: exponent(work, [row[key] for row in rows]) for key in ("seconds", "bare")}
    return {"rows": rows, "exponent": fitted["seconds"], "exponent_of_bare": fitted["bare"]}


def plot(found: dict[str, dict[str, object]]) -> Figure:
    """Time over size, one panel a series."""
    figure = Figure(figsize=(3.2 * len(found), 3), layout="constrained")
    for axes, (name, series) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        sizes = [row["size"] for row in series["rows"]]
        axes.loglog(sizes, [row["seconds"] for row in series["rows"]], "o-", color="#1f5fa8", label="relupath")
        axes.loglog(sizes, [row["bare"] for row in series["rows"]], "o-", color="#999999", label="bare pass")
        axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=7)
        axes.minorticks_off()
        axes.set_xlabel(SERIES[name][2])
        axes.set_title(f"{name}: exponent {series['exponent']:.2f}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("seconds")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    """Measure the series, print the table, write the numbers and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", nargs="+", default=list(SERIES), choices=SERIES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = {}
    for name in options.series:
        series = found[name] = measured(name, options.repeats)
        print(f"{name}: exponent {series['exponent']:.2f}, of a bare pass {series['exponent_of_bare']:.2f}")
        for row in series["rows"]:
            print(f"{row['size']:>8}{row['seconds']:>10.3f} s{row['bare']:>10.3f} s bare{row['over_bare']:>8.2f}")
    if options.output:
        report = {"machine": machine(), "repeats": options.repeats, "series": found}
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        plot(found).savefig(options.output.with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
