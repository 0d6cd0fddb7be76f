"""The descent that searches for sets of units share: from the output down, a set on every level."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._crops import Entries
from .._linear import inner, model_from, scale_of
from .._partitions import Partition
from .._paths import Path, Step
from .._units import Layer, Unit
from ._base import Cost, Found, Problem, below_range

Scores = Float[Tensor, "K B units"]
Choice = Callable[[Scores], Bool[Tensor, "B units"]]
"""From the contributions of a level's units to K functionals, the first of which is the target, to the chosen units."""


def descend(
    problem: Problem, gradients: Float[Tensor, "K B ..."], levels: Sequence[Sequence[Layer]], choose: Choice
) -> Found:
    """Choose a set of units on every level, from the output down; what the sets above let through is contrasted.

    On layers side by side one set is chosen. Where nothing leads from a layer to the next level, its set stays, so that
    a short branch beside a long one is not lost. A sample of which nothing is chosen ends there.

    Args:
        problem: what to search.
        gradients: of K functionals of the output; the first is the target.
        levels: the levels to choose on.
        choose: the rule.
    """
    descent = _Descent(problem, gradients)
    for level in levels:
        descent.step(level, choose)
    return descent.end()


@dataclass(frozen=True)
class _Front:
    """Cotangents of K functionals at a layer, zero but at some of its neurons.

    Attributes:
        layer: the layer.
        places: numbers of neurons, counted through all samples.
        values: the cotangents there.
    """

    layer: Layer
    places: Int[Tensor, " n"]
    values: Float[Tensor, "K n"]

    @classmethod
    def cut(cls, layer: Layer, cotangents: Float[Tensor, "K B ..."], mask: Bool[Tensor, "B ..."]) -> _Front:
        """The cotangents within a mask."""
        places = mask.reshape(-1).nonzero()[:, 0]
        values = cotangents.reshape(len(cotangents), -1)[:, places]
        live = values.ne(0).any(0).nonzero()[:, 0]
        return cls(layer, places[live], values[:, live])

    @property
    def samples(self) -> Int[Tensor, " n"]:
        """To which sample each neuron belongs."""
        return self.places // math.prod(self.layer.shape)

    def of(self, rows: Bool[Tensor, " B"]) -> _Front:
        """What belongs to some samples."""
        mine = rows[self.samples].nonzero()[:, 0]
        return _Front(self.layer, self.places[mine], self.values[:, mine])

    def first(self) -> Float[Tensor, "B ..."]:
        """The first cotangent, with zeros between."""
        return Entries(self.places, self.values[:1]).dense(self.layer.shape, len(self.layer.output))[0]

    @property
    def entries(self) -> Entries:
        """The cotangents, without the zeros between."""
        return Entries(self.places, self.values)


class _Descent:
    """Where the sets stand: cotangents of K functionals, masked by the sets, at the layers of a front.

    All cotangents of a sample are divided by ``scale``.
    """

    def __init__(self, problem: Problem, gradients: Float[Tensor, "K B ..."]) -> None:
        frozen = problem.frozen
        self.problem = problem
        self.front = {frozen.top: _Front.cut(frozen.top, gradients, torch.ones_like(frozen.output, dtype=torch.bool))}
        self.scale = torch.ones_like(problem.functional.value, dtype=torch.float64)
        self.ends: dict[Layer, Tensor] = {frozen.top: torch.zeros_like(gradients[0])}
        self.sets: list[dict[str, tuple[Unit, ...]]] = [{} for _ in range(frozen.batch)]
        self.steps: list[list[Step]] = [[] for _ in self.sets]
        self.importance: list[dict[str, float]] = [{} for _ in self.sets]
        self.stopped: list[str | None] = [None for _ in self.sets]
        self.products = 0

    def step(self, level: Sequence[Layer], choose: Choice) -> None:
        """Choose the set of one level, for every sample to which something comes from there."""
        below, partitions = self.problem.below, self.problem.partitions
        layers = [layer for layer in level if any(layer in below[above] for above in self.front)]
        if not layers:
            return
        leads = {above: front for above, front in self.front.items() if below[above] & set(layers)}
        samples = torch.arange(self.problem.frozen.batch, device=self.scale.device)
        front = {above: front.entries for above, front in leads.items()}
        pulled = self.problem.products.several(front, samples, layers)
        self.products += len(pulled[0])
        shares = [_scores(partitions[l], v * l.output) for l, v in zip(layers, pulled, strict=True)]
        scores = shares[0] if len(shares) == 1 else torch.cat(shares, 2)
        reached, chosen = scores[0].ne(0).any(1), self._choice(scores, choose)
        goes = chosen.any(1)
        self._stop(reached & ~goes, " or ".join(layer.name for layer in layers))
        for above in leads:
            self.front[above] = self.front[above].of(~goes & ~reached)
        stay = [above for above in self.front if above not in leads]
        split = torch.split(chosen, [share.shape[2] for share in shares], 1)
        for layer, v, mine in zip(layers, pulled, split, strict=True):
            self.front[layer] = _Front.cut(layer, v, partitions[layer].mask(mine, layer.shape) & _row(goes, layer))
        for b in goes.nonzero()[:, 0].tolist():
            new = {l.name: _units(partitions[l], mine[b], l.shape) for l, mine in zip(layers, split, strict=True)}
            held = {l.name: self.sets[b][l.name] for l in stay if l.name in self.sets[b]}
            self.sets[b] = {name: units for name, units in (held | new).items() if units}
            self.steps[b].append(Step.over(Step(name, units) for name, units in self.sets[b].items()))
            named = " | ".join(name for name, units in new.items() if units)
            self.importance[b][named] = float(scores[0, b, chosen[b]].double().sum() * self.scale[b])
        self._in_range()

    def _in_range(self) -> None:
        """Leave what nothing comes to; divide each sample's cotangents by their scale."""
        self.front = {layer: front for layer, front in self.front.items() if len(front.places)}
        sizes = torch.zeros_like(self.scale)
        for front in self.front.values():
            sizes.scatter_reduce_(0, front.samples, front.values.abs().amax(0).double(), "amax")
        own = scale_of(sizes)
        self.scale = self.scale * own
        for layer, front in self.front.items():
            values = front.values / own[front.samples].to(front.values.dtype)
            self.front[layer] = replace(front, values=values)

    def _choice(self, scores: Scores, choose: Choice) -> Bool[Tensor, "B units"]:
        """The chosen units, of which only those are looked at to which something comes."""
        some = reduce(operator.ior, map(Tensor.bool, scores.flatten(0, 1))).nonzero()[:, 0]
        chosen = torch.zeros_like(scores[0], dtype=torch.bool)
        if len(some):
            looked_at = scores[:, :, some].double() * self.scale[:, None]
            chosen[:, some] = choose(looked_at) & looked_at[0].ne(0).any(1, keepdim=True)
        return chosen

    def end(self) -> Found:
        """Pull the target's cotangents back to the input: the linear models of the sets."""
        problem, frozen = self.problem, self.problem.frozen
        self._stop(torch.ones_like(problem.functional.value, dtype=torch.bool), None)
        whole, labels = problem.functional.value, problem.functional.labels
        value = inner(list(self.ends.values()), [layer.output for layer in self.ends])
        model = model_from(
            frozen, frozen.to_inputs(self.ends), (value * self.scale).to(value.dtype), labels, self.scale
        )
        value = value * self.scale
        paths = [Path(tuple(reversed(steps)), None, label) for steps, label in zip(self.steps, labels, strict=True)]
        ranked, values = tuple((path,) for path in paths), tuple((v,) for v in value.tolist())
        ends = [reason or "reached the last level" for reason in self.stopped]
        stopped = tuple(below_range(end, v, whole.dtype) for end, v in zip(ends, value.tolist(), strict=True))
        return Found(ranked, values, tuple(self.importance), stopped, model, whole, Cost(self.products + 1))

    def _stop(self, rows: Bool[Tensor, " B"], where: str | None) -> None:
        """End the path of some samples where it stands."""
        if not rows.any():
            return
        for layer, front in self.front.items():
            self.ends[layer] = self.ends.get(layer, 0) + front.of(rows).first()
            self.front[layer] = front.of(~rows)
        for b in rows.nonzero()[:, 0].tolist():
            if where is not None:
                self.stopped[b] = f"no unit qualifies at {where}"


def _scores(partition: Partition, contribution: Float[Tensor, "K B ..."]) -> Scores:
    return partition.scores(contribution.flatten(0, 1)).reshape(*contribution.shape[:2], -1)


def _row(rows: Bool[Tensor, " B"], layer: Layer) -> Bool[Tensor, "B ..."]:
    """One truth value a sample, shaped to multiply a layer's cotangents."""
    return rows.view(-1, *[1] * len(layer.shape))


def _units(partition: Partition, chosen: Bool[Tensor, " units"], shape: Sequence[int]) -> tuple[Unit, ...]:
    return tuple(unit for index in chosen.nonzero()[:, 0].tolist() for unit in partition.units(index, shape))
