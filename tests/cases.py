"""The axes along which the laws are tried; a test varies one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from nets import JOINS, NETS, STYLES, build, inputs
from relupath import (
    Beam,
    BestFirst,
    Exact,
    Frozen,
    Greedy,
    Mass,
    Partition,
    Path,
    Selective,
    channels,
    contrast,
    freeze,
    locations,
    logit,
    neurons,
)
from relupath._partitions import Axes

NAMES = tuple(NETS)
DTYPES = (torch.float64, torch.float32)


NETWORKS = ("vgg", "resnet", "squeeze", "dense", "pieces")
"""A chain, skips, two kinds of concatenation, and pieces of many kinds."""
SEEDS = {"mlp": 13, "vgg": 8, "resnet": 4, "squeeze": 13, "dense": 4, "pieces": 11}
"""Of networks and inputs in which much is active: a dead network would obey every law."""


@dataclass(frozen=True)
class Modulo(Partition):
    """Units that are scattered over a layer."""

    count_of_units: int
    name: str = "modulo"

    def labels(self, shape):
        size = torch.Size(shape).numel()
        return (torch.arange(size) * 7 % min(self.count_of_units, size)).view(*shape)


PARTITIONS = {
    "neurons": neurons,
    "channels": channels,
    "locations": locations,
    "rows": Axes("rows", 1, 2),
    "modulo": Modulo(3),
}

SEARCHES = {
    "greedy": Greedy(),
    "selective": Selective(width=3),
    "selective, two classes": Selective(width=None, depth=2, classes=2),
    "mass": Mass(0.6),
    "beam": Beam(3),
    "beam, deep": Beam(2, depth=2),
    "best first": BestFirst(9),
    "exact": Exact(3),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A lively network of the table, and two inputs."""
    return build(name, SEEDS[name]), inputs(name, SEEDS[name], 2)


@cache
def frozen_net(name: str, sample: int | None = None) -> Frozen:
    """That network at its inputs, or at one of them alone, recorded once for all tests."""
    model, x = network(name)
    return freeze(model, x if sample is None else x[sample : sample + 1])


def weighted(output: Tensor) -> Tensor:
    """A target with weights of its own on every output."""
    return output @ torch.linspace(-1.0, 2.0, output.shape[-1], dtype=output.dtype)


TARGETS = {
    "logit": lambda batch: logit(2),
    "int": lambda batch: 1,
    "predicted": lambda batch: None,
    "a logit a sample": lambda batch: logit([b % 3 for b in range(batch)]),
    "contrast": lambda batch: contrast(0, 3),
    "contrast a sample": lambda batch: contrast(torch.arange(batch) % 2, 3),
    "callable": lambda batch: weighted,
}


def units_of(frozen: Frozen, layer: str | int, partition: Partition) -> list[tuple[tuple[int | None, ...], ...]]:
    """Every unit of a layer under a partition, each by its neurons."""
    shape = frozen.layer(layer).shape
    return [partition.units(index, shape) for index in range(partition.count(shape))]


def active_path(frozen: Frozen, layers: list[str], partition: Partition, seed: int = 0, count: int = 1) -> Path:
    """A path through ``count`` units a layer, drawn from those that are not zero at the first sample."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for name in layers:
        units = units_of(frozen, name, partition)
        size = partition.scores(frozen.layer(name).output.abs())[0].double()
        live = int((size > 0).sum())
        chosen = torch.multinomial(size + 1e-30, min(count, max(live, 1)), generator=generator).tolist()
        pairs.append((name, [neuron for i in sorted(chosen) for neuron in units[i]]))
    return Path.of(pairs)


@st.composite
def architectures(draw: st.DrawFn) -> dict[str, object]:
    """Widths, skips, style, join and seed of a layered network."""
    depth = draw(st.integers(0, 3))
    widths = [draw(st.integers(1, 3)) for _ in range(depth + 2)]
    return {
        "seed": draw(st.integers(0, 10_000)),
        "widths": widths,
        "skips": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "style": draw(st.sampled_from(STYLES)),
        "join": draw(st.sampled_from(JOINS)),
    }


@st.composite
def chosen_units(draw: st.DrawFn, widths: list[int]) -> dict[int, set[int]]:
    """Units on some hidden layers (from 1): several a layer, layers left out."""
    hidden = range(1, len(widths) - 1)
    layers = draw(st.sets(st.sampled_from(list(hidden)), max_size=len(hidden))) if hidden else set()
    return {l: draw(st.sets(st.integers(0, widths[l] - 1), min_size=1)) for l in sorted(layers)}


def path_of(names: list[str], chosen: dict[int, set[int]]) -> Path:
    """The path through chosen units of a layered network whose hidden layers have these names."""
    return Path.of([(names[l - 1], [(i,) for i in sorted(units)]) for l, units in sorted(chosen.items())])
