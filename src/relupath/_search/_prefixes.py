"""Paths that grow from the output down, one unit at a time, many at once in one batched product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._linear import model_from, scale_of
from .._paths import Path, Step
from .._products import by_layer
from .._units import Layer
from ._base import Cost, Found, Problem, below_range


@dataclass(frozen=True, eq=False)
class Prefix:
    """A one-way path so far: the terms of the target that pass its units.

    Attributes:
        sample: of the batch.
        layer: where it stands; the output at first.
        value: f^P(x).
        members: positions of the neurons of its lowest unit in the flattened layer.
        cotangent: of these neurons, divided by the scale.
        steps: from the top down.
        values: of the path after each step.
        end: why it goes no further, or None.
        scale: what the cotangent was divided by; see ``scale_of``.
    """

    sample: int
    layer: Layer
    value: float
    members: Int[Tensor, " neurons"]
    cotangent: Float[Tensor, " neurons"]
    steps: tuple[Step, ...] = ()
    values: tuple[float, ...] = ()
    end: str | None = None
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Continuations:
    """What continues a prefix on one level.

    Attributes:
        prefix: the path so far.
        layers: of the level.
        pulled: cotangents at each of these layers.
        scores: f^P(x) through each unit of these layers, in one row.
    """

    prefix: Prefix
    layers: tuple[Layer, ...]
    pulled: tuple[Float[Tensor, "..."], ...] = field(repr=False)
    scores: Float[Tensor, " units"] = field(repr=False)

    def through(self, problem: Problem, index: int) -> Prefix:
        """The prefix, continued through the unit at a position of the scores."""
        p, value, at = self.prefix, float(self.scores[index]), index
        counts = [problem.partitions[layer].count(layer.shape) for layer in self.layers]
        which = next(i for i in range(len(counts)) if at < sum(counts[: i + 1]))
        at -= sum(counts[:which])
        layer, v = self.layers[which], self.pulled[which]
        partition = problem.partitions[layer]
        members = partition.members(at, layer.shape)
        step = Step(layer.name, partition.units(at, layer.shape))
        kept = v.flatten()[members.to(v.device)]
        own = float(scale_of(kept.abs().amax()))
        steps, values = (*p.steps, step), (*p.values, value)
        return Prefix(p.sample, layer, value, members, kept / own, steps, values, scale=p.scale * own)


def starts(problem: Problem) -> list[Prefix]:
    """The empty path of each sample: all of the target."""
    top, gradient = problem.frozen.top, problem.functional.gradient
    everything = torch.arange(gradient[0].numel())
    return [
        Prefix(b, top, value, everything, gradient[b].flatten())
        for b, value in enumerate(problem.functional.value.tolist())
    ]


def continued(problem: Problem, moves: Sequence[tuple[Prefix, Sequence[Layer]]]) -> list[Continuations]:
    """Continue prefixes, each by the units of the layers of a level below it, all in one batched product."""
    layers = sorted({layer for _, level in moves for layer in level}, key=problem.frozen.order)
    front = by_layer([(p.layer, p.members, p.cotangent) for p, _ in moves])
    samples = torch.tensor([p.sample for p, _ in moves], device=moves[0][0].cotangent.device)
    pulled = [v[0] for v in problem.products.several(front, samples, layers)]
    found = []
    for number, (p, level) in enumerate(moves):
        mine = tuple(layer for layer in level if layer in problem.below[p.layer])
        rest = tuple(pulled[layers.index(layer)][number] for layer in mine)
        own = [(v * layer.output[p.sample])[None] for layer, v in zip(mine, rest, strict=True)]
        scores = [problem.scores(layer, v)[0] for layer, v in zip(mine, own, strict=True)]
        found.append(Continuations(p, mine, rest, torch.cat(scores).double() * p.scale))
    return found


def found_from(problem: Problem, ranked: Sequence[Sequence[Prefix]], products: int) -> Found:
    """The result of a search whose paths, the best one first, are given for each sample."""
    frozen, functional = problem.frozen, problem.functional
    ends: dict[Layer, Tensor] = {frozen.top: functional.gradient.new_zeros(functional.gradient.shape)}
    for first, *_ in ranked:
        ends.setdefault(first.layer, first.layer.output.new_zeros(first.layer.output.shape))
        ends[first.layer][first.sample].view(-1)[first.members.to(first.cotangent.device)] = first.cotangent
    value = functional.value.new_tensor([paths[0].value for paths in ranked])
    scale = functional.value.new_tensor([first.scale for first, *_ in ranked], dtype=torch.float64)
    model = model_from(frozen, frozen.to_inputs(ends), value, functional.labels, scale)
    return Found(
        tuple(
            tuple(Path(tuple(reversed(p.steps)), None, label) for p in paths)
            for paths, label in zip(ranked, functional.labels, strict=True)
        ),
        tuple(tuple(p.value for p in paths) for paths in ranked),
        tuple({str(s.layer): v for s, v in zip(p.steps, p.values, strict=True)} for p, *_ in ranked),
        tuple(below_range(p.end or "reached the last level", p.value, value.dtype) for p, *_ in ranked),
        model,
        functional.value,
        Cost(products + 1),
    )
