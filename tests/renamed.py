"""Networks that are the same function under other names: their units in another order, and rescaled."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cases import network
from nets import Layered, example, layered
from relupath import Frozen, Path, Step, freeze


@dataclass(frozen=True)
class Names:
    """The old names of units that were put in another order: the ith unit of a layer was once ``orders[layer][i]``."""

    orders: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def step(self, step: Step) -> Step:
        order = self.orders.get(step.layer)
        beside = tuple(self.step(other) for other in step.beside)
        if order is None:
            return replace(step, beside=beside)
        units = tuple((None if i is None else order[i], *rest) for i, *rest in step.units)
        return replace(step, units=units, beside=beside)

    def path(self, path: Path) -> Path:
        return replace(path, steps=tuple(map(self.step, path.steps)))

    def along(self, name: str, t: Tensor) -> Tensor:
        """A tensor whose first axis is that of the units, in the old order."""
        return t[torch.tensor(self.orders[name]).argsort()] if name in self.orders else t


class Symmetry(NamedTuple):
    """Units of ReLU layers that may be put in another order and rescaled, if the weights around them are too.

    Attributes:
        layers: whose units these are; several where a skip joins them.
        makers: the modules that compute them, one row a unit.
        takers: the modules that read them, and the column at which they begin there.
    """

    layers: tuple[str, ...]
    makers: tuple[str, ...]
    takers: dict[str, int]


STEM, LAST = "layer1.0.", "layer1.1."
FIRST, SECOND = "features.3.", "features.4."
SYMMETRIES: dict[str, list[Symmetry]] = {
    "mlp": [Symmetry(("1",), ("0",), {"2": 0}), Symmetry(("3",), ("2",), {"4": 0})],
    "vgg": [
        Symmetry(("features.1",), ("features.0",), {"features.2": 0}),
        Symmetry(("features.3",), ("features.2",), {"features.5": 0}),
        Symmetry(("features.6",), ("features.5",), {"classifier.1": 0}),
        Symmetry(("classifier.2",), ("classifier.1",), {"classifier.3": 0}),
    ],
    "resnet": [
        Symmetry(("relu", STEM + "relu#2"), ("conv1", "bn1", STEM + "conv2", STEM + "bn2"),
                 {STEM + "conv1": 0, LAST + "conv1": 0, LAST + "downsample.0": 0}),
        Symmetry((STEM + "relu",), (STEM + "conv1", STEM + "bn1"), {STEM + "conv2": 0}),
        Symmetry((LAST + "relu",), (LAST + "conv1", LAST + "bn1"), {LAST + "conv2": 0}),
        Symmetry((LAST + "relu#2",),
                 (LAST + "conv2", LAST + "bn2", LAST + "downsample.0", LAST + "downsample.1"), {"fc": 0}),
    ],
    "squeeze": [
        Symmetry(("features.1",), ("features.0",), {FIRST + "squeeze": 0}),
        *(Symmetry((f + "squeeze_activation",), (f + "squeeze",), {f + "expand1x1": 0, f + "expand3x3": 0})
          for f in (FIRST, SECOND)),
        Symmetry((FIRST + "expand1x1_activation",), (FIRST + "expand1x1",), {SECOND + "squeeze": 0}),
        Symmetry((FIRST + "expand3x3_activation",), (FIRST + "expand3x3",), {SECOND + "squeeze": 3}),
        Symmetry((SECOND + "expand1x1_activation",), (SECOND + "expand1x1",), {"classifier.1": 0}),
        Symmetry((SECOND + "expand3x3_activation",), (SECOND + "expand3x3",), {"classifier.1": 2}),
    ],
}  # fmt: skip
"""Of networks of the table, a chain, skips and a concatenation: what may change without changing the function."""

LAYERED = ("functional, concat", "leaky, sum")
"""Style and join of layered networks, whose every layer may lead to every later one."""


def reparametrised(model: nn.Module, name: str, seed: int = 0) -> tuple[nn.Module, Names]:
    """The same network with its ReLU units in another order and h -> s h, h' -> h' / s around them."""
    generator, twin, orders = torch.Generator().manual_seed(seed), copy.deepcopy(model), {}
    for symmetry in SYMMETRIES[name]:
        makers = [twin.get_submodule(path) for path in symmetry.makers]
        count = len(next(makers[0].parameters()))
        order = torch.randperm(count, generator=generator)
        scale = torch.rand(count, generator=generator, dtype=torch.float64) + 0.5
        with torch.no_grad():
            for module in makers:
                for t in (*module.parameters(), *module.buffers()):
                    t.copy_(t[order] if t.ndim else t)
                if module.bias is not None:  # a map without is followed by a norm, which takes the scale
                    module.weight.mul_(scale.view(-1, *[1] * (module.weight.ndim - 1)))
                    module.bias.mul_(scale)
            for path, start in symmetry.takers.items():
                weight = twin.get_submodule(path).weight
                part = weight[:, start : start + count]
                part.copy_(part[:, order] / scale.view(-1, *[1] * (weight.ndim - 2)))
        orders |= dict.fromkeys((*symmetry.layers, *symmetry.makers), order.tolist())
    return twin, Names(orders)


def reparametrised_layered(model: Layered, join: str, seed: int = 0) -> tuple[Layered, Names]:
    """The same for a layered network, whose every layer may lead to every later one."""
    generator, orders = torch.Generator().manual_seed(seed), {}
    matrices, offsets = dict(model.matrices), dict(model.offsets)
    for l, name in enumerate(model.names(), start=1):
        order = torch.randperm(len(offsets[l]), generator=generator)
        scale = torch.rand(len(order), generator=generator, dtype=torch.float64) + 0.5
        offsets[l] = offsets[l][order] * scale
        for above, below in matrices:
            if above == l:
                matrices[above, below] = matrices[above, below][order] * scale[:, None]
            if below == l:
                matrices[above, below] = matrices[above, below][:, order] / scale
        orders |= {name: order.tolist(), f"biases.{l}": order.tolist()}
    return Layered(matrices, offsets, model.style, join).eval(), Names(orders)


def same_function(name: str) -> tuple[Frozen, Frozen, Names]:
    """A network, recorded, the same one under other names, and the old names."""
    if name in SYMMETRIES:
        model, x = network(name)
        twin, names = reparametrised(model, name)
    else:
        style, join = name.split(", ")
        model, x = layered(6, (4, 5, 6, 4, 4), skips=0.7, style=style, join=join), example((4,), 6, 2)
        twin, names = reparametrised_layered(model, join)
    return freeze(model, x), freeze(twin, x), names
