"""The descent that searches for sets of units share: from the output down, a set on every level."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._linear import column, inner, model_from, scale_of
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


class _Descent:
    """Where the sets stand: cotangents of K functionals, masked by the sets, at the layers of a front.

    Rows of samples that stand elsewhere are zero. All cotangents of a sample are divided by ``scale``.
    """

    def __init__(self, problem: Problem, gradients: Float[Tensor, "K B ..."]) -> None:
        frozen = problem.frozen
        self.problem = problem
        self.front: dict[Layer, Tensor] = {frozen.top: gradients}
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
        leads = {above: v for above, v in self.front.items() if below[above] & set(layers)}
        pulled = self.problem.products.several(leads, layers)
        self.products += len(pulled[0])
        shares = [_scores(partitions[l], v * l.output) for l, v in zip(layers, pulled, strict=True)]
        scores, chosen = self._choice(torch.cat(shares, 2), choose)
        reached, goes = scores[0].ne(0).any(1), chosen.any(1)
        self._stop(reached & ~goes, " or ".join(layer.name for layer in layers))
        for above, v in leads.items():
            self.front[above] = v * _row(~goes & ~reached, above)
        stay = [above for above in self.front if above not in leads]
        split = torch.split(chosen, [share.shape[2] for share in shares], 1)
        for layer, v, mine in zip(layers, pulled, split, strict=True):
            self.front[layer] = v * (partitions[layer].mask(mine, layer.shape) & _row(goes, layer))
        for b in goes.nonzero()[:, 0].tolist():
            new = {l.name: _units(partitions[l], mine[b], l.shape) for l, mine in zip(layers, split, strict=True)}
            held = {l.name: self.sets[b][l.name] for l in stay if l.name in self.sets[b]}
            self.sets[b] = {name: units for name, units in (held | new).items() if units}
            self.steps[b].append(Step.over(Step(name, units) for name, units in self.sets[b].items()))
            named = " | ".join(name for name, units in new.items() if units)
            self.importance[b][named] = float(scores[0, b, chosen[b]].double().sum() * self.scale[b])
        self.front = {layer: v for layer, v in self.front.items() if v.any()}
        sizes = [v.abs().flatten(2).amax((0, 2)) for v in self.front.values()]
        own = scale_of(torch.stack([torch.zeros_like(self.scale), *sizes]).amax(0))
        self.scale = self.scale * own
        self.front = {layer: v / column(own.to(v.dtype), v[0]) for layer, v in self.front.items()}

    def _choice(self, scores: Scores, choose: Choice) -> tuple[Scores, Bool[Tensor, "B units"]]:
        """The contributions, and the chosen units, of which only those are looked at to which something comes."""
        some = scores.ne(0).any(0).any(0).nonzero()[:, 0]
        looked_at = scores[:, :, some].double() * self.scale[:, None]
        chosen = torch.zeros_like(scores[0], dtype=torch.bool)
        if len(some):
            chosen[:, some] = choose(looked_at) & looked_at[0].ne(0).any(1, keepdim=True)
        return scores, chosen

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
        for layer, v in self.front.items():
            self.ends[layer] = self.ends.get(layer, 0) + v[0] * _row(rows, layer)
            self.front[layer] = v * _row(~rows, layer)
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
