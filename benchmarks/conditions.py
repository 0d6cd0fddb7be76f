"""Many path models of one picture beside the peers that condition on units, run by run in turn.

    python benchmarks/conditions.py --output benchmarks/results/0.1.0/NAME.json

Each row is one set of conditions on VGG-16 at 224 x 224: neurons or channels of one layer that add something to the
target, or a channel drawn at random on each of the 13 convolutions. Ours is ``freeze`` and ``linear_models``, weights
and biases; zennit-crp's is ``CondAttribution.generate`` without a composite, its forward pass included, at the batch
size given; Captum's is ``NeuronGradient`` for one neuron after the other (of which it gives the gradient by the input,
not that of the target through the neuron). Ratios are medians of paired runs: to ours with the recording, and to ours
of conditions that are asked of a recording which is there. zennit-crp's heatmaps and ours have to be equal.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path as File

import torch
import torchvision
from captum.attr import NeuronGradient
from crp.attribution import CondAttribution
from crp.concepts import ChannelConcept
from torch import Tensor, nn
from tqdm import tqdm

import relupath
from cost import DEVICE, bare, machine, timed
from relupath import Path

LAYERS = {"conv3_3": "features.15", "conv4_3": "features.22", "conv5_3": "features.29"}
SETS = {f"{kind} {name}": (kind, layer) for kind in ("neurons", "channels") for name, layer in LAYERS.items()} | {
    "chain": ("chain", "")
}
CLASS = 3
WIDTH: dict[str, int] = {}
"""The width of each layer's maps."""


def conditions(frozen: relupath.Frozen, kind: str, layer: str, count: int) -> list[Path]:
    """Paths through neurons or channels of one layer, or, of ``chain``, through a channel on every convolution."""
    generator = torch.Generator().manual_seed(0)
    if kind == "chain":
        names = [layer.name for layer in frozen.layers if len(layer.shape) == 3]
        drawn = [torch.randint(frozen.layer(n).shape[0], (count,), generator=generator).tolist() for n in names]
        rows = zip(*drawn, strict=True)
        return [Path.of([(n, (c, None, None)) for n, c in zip(names, row, strict=True)]) for row in rows]
    (v,) = frozen.vjp({frozen.top: frozen.functional(CLASS).gradient}, [frozen.layer(layer)])
    adds = (v * frozen.layer(layer).output)[0].cpu()
    live = adds.abs().amax((1, 2)).nonzero() if kind == "channels" else adds.nonzero()
    some = live.cpu()[torch.randperm(len(live), generator=generator)[:count]].tolist()
    return [Path.of([(layer, tuple(u) if kind == "neurons" else (u[0], None, None))]) for u in some]


def ours(model: nn.Module, x: Tensor, paths: Sequence[Path]) -> Tensor:
    """The weights of all paths, colours summed."""
    return weights(relupath.freeze(model, x), paths)


def weights(frozen: relupath.Frozen, paths: Sequence[Path]) -> Tensor:
    """The same, from a recording."""
    models = relupath.linear_models(frozen, paths, CLASS)
    assert isinstance(models.weight, Tensor)
    return models.weight.sum(1)


def crp(model: nn.Module, x: Tensor, paths: Sequence[Path], batch: int) -> Tensor:
    """The same by zennit-crp, which counts the neurons of a channel in one row."""
    masks = {}
    conditions = []
    for path in paths:
        condition: dict[str, object] = {"y": [CLASS]}
        for step in reversed(path.steps):
            ((channel, *place),) = step.units
            neuron = place[0] is not None
            masks[step.layer] = ChannelConcept.mask_rf if neuron else ChannelConcept.mask
            condition[step.layer] = {channel: [place[0] * WIDTH[step.layer] + place[1]]} if neuron else [channel]
        conditions.append(condition)
    data = x.clone().requires_grad_()
    parts = CondAttribution(model).generate(
        data, conditions, mask_map=masks, init_rel=1, batch_size=batch, verbose=False
    )
    return torch.cat([part.heatmap.clone() for part in parts])


def captum(model: nn.Module, x: Tensor, paths: Sequence[Path]) -> None:
    """The gradient of each neuron by the input, one neuron after the other."""
    for path in paths:
        (step,) = path.steps
        method = NeuronGradient(model, model.get_submodule(step.layer))
        method.attribute(x, neuron_selector=step.units[0])


def row(model: nn.Module, x: Tensor, paths: Sequence[Path], options: argparse.Namespace) -> dict[str, object]:
    """Median ratios of the peers' times, and of a bare forward and backward pass's, to ours."""
    expected, got = crp(model, x, paths, options.batch), ours(model, x, paths)
    error = float((expected - got).abs().max() / expected.abs().max())
    assert error < 1e-3, f"zennit-crp and relupath differ by {error}"
    runs: dict[str, Callable[[], object]] = {
        "zennit-crp": lambda: crp(model, x, paths, options.batch),
        "bare": lambda: bare(model, x, torch.tensor([CLASS], device=DEVICE)),
    }
    if len(paths[0]) == 1 and None not in paths[0].steps[0].units[0]:
        runs["captum"] = lambda: captum(model, x, paths)
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", "recorded", *runs)}
    frozen = relupath.freeze(model, x)
    for _ in range(options.repeats):
        seconds["ours"].append(timed(ours, model, x, paths))
        seconds["recorded"].append(timed(weights, frozen, paths))
        for name, run in runs.items():
            seconds[name].append(timed(run))
    ratios, recorded = (
        {name: statistics.median(s / o for s, o in zip(seconds[name], seconds[own], strict=True)) for name in runs}
        for own in ("ours", "recorded")
    )
    live = int(got.flatten(1).any(1).sum())
    middle = statistics.median(seconds["ours"])
    return {"ratios": ratios, "ratios_recorded": recorded, "seconds": middle, "live": live, "error": error}


def main() -> None:
    """Measure all sets, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=64, help="how many conditions")
    parser.add_argument("--batch", type=int, default=16, help="zennit-crp's batch size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--output", type=File)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = torchvision.models.vgg16(weights=None).eval().to(DEVICE)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    x = torch.randn(1, 3, 224, 224).to(DEVICE)
    frozen = relupath.freeze(model, x)
    WIDTH.update({layer.name: layer.shape[-1] for layer in frozen.layers})
    rows = {}
    print(
        f"{'set':<18}{'live':>6}{'ours, s':>10}{'zennit-crp / ours':>20}{'recorded':>10}{'captum / ours':>16}"
        f"{'ours / bare pass':>18}"
    )
    for name in tqdm(options.sets, file=sys.stderr):
        paths = conditions(frozen, *SETS[name], options.count)
        found = rows[name] = row(model, x, paths, options)
        ratios = found["ratios"]
        peer = f"{ratios['captum']:.1f}" if "captum" in ratios else ""
        print(
            f"{name:<18}{found['live']:>6}{found['seconds']:>10.2f}{ratios['zennit-crp']:>20.1f}"
            f"{found['ratios_recorded']['zennit-crp']:>10.1f}{peer:>16}{1 / ratios['bare']:>18.1f}"
        )
    if options.output:
        setting = {"network": "vgg16, random weights", "count": options.count, "batch": options.batch}
        report = {"machine": machine(), **setting, "repeats": options.repeats, "rows": rows}
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
