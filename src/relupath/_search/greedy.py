"""Algorithm 1 of the paper: from the output down, the unit of largest importance on every layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .._crops import Entries
from .._linear import column, model_from
from .._partitions import neurons
from .._paths import Path, Step
from .._units import Layer, Unit
from ._base import Cost, Found, Problem, Search


@dataclass(frozen=True)
class Greedy(Search):
    """Hierarchical decomposition, literally.

    On the top layer ``importance = (d target / d h) * h``; then on each layer below ``importance = (d h_above / d h) *
    h``, where ``h_above`` is the unit chosen last; each time the argmax (the largest positive one), down to the input
    element. Where no importance is positive the path ends and ``stopped`` says so.

    Layers side by side (branches that are concatenated or added) are searched as one, and a layer from which nothing
    comes to the unit chosen last (a branch it is not on, a dead one) is skipped. The importance of a unit of several
    neurons is the sum over them; as the unit above it then stands for ``sum v h / sum v``, which for one neuron is
    that neuron.

    Source: section 4, algorithm 1.
    """

    def search(self, problem: Problem) -> Found:
        """Find one path a sample."""
        descent = _Descent(problem)
        for level in problem.levels:
            descent.step(level)
        return descent.end_at_input()


class _Descent:
    """A greedy descent of a batch: where each sample stands, and the cotangent of the unit chosen there.

    As in the algorithm, the cotangent of a chosen neuron is 1 there; ``scale`` is the product of the derivatives so
    far. Of samples that stand elsewhere a layer's cotangents have no entries.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.at: list[Layer] = [problem.frozen.top] * problem.frozen.batch
        self.samples = torch.arange(problem.frozen.batch, device=problem.functional.gradient.device)
        self.cotangents = {problem.frozen.top: _entries_of(problem.functional.gradient)}
        self.scale = torch.ones_like(problem.functional.value)
        self.value = problem.functional.value.clone()
        self.steps: list[list[Step]] = [[] for _ in self.at]
        self.importance: list[dict[str, float]] = [{} for _ in self.at]
        self.missed: list[str | None] = [None for _ in self.at]
        self.stopped: list[str | None] = [None for _ in self.at]
        self.products = 0

    def step(self, level: Sequence[Layer]) -> None:
        """Choose the unit of largest importance on one level for every sample that still moves."""
        open_to = [
            frozenset() if self.stopped[b] else self.problem.below[at] & set(level) for b, at in enumerate(self.at)
        ]
        layers = [layer for layer in level if any(layer in choice for choice in open_to)]
        if not layers:
            return
        starts = {at for at, choice in zip(self.at, open_to, strict=True) if choice}
        pulled = self._pull({layer: self.cotangents[layer] for layer in starts}, layers)
        best, where = _argmax(
            (self.problem.scores(layer, v * layer.output) for v, layer in zip(pulled, layers, strict=True)),
            [[layer in choice for layer in layers] for choice in open_to],
        )
        units = torch.full((len(layers), len(self.at)), -1)
        for b, (importance, choice) in enumerate(zip(best.tolist(), open_to, strict=True)):
            if not choice:
                continue
            if not importance > 0:
                sentence = f"no importance is positive at {' or '.join(layer.name for layer in layers)}"
                self.missed[b] = self.missed[b] or sentence
                self.stopped[b] = sentence if importance > -torch.inf else None
                continue
            l, index = where[b]
            units[l, b] = index
            self._choose(b, layers[l], self.problem.partitions[layers[l]].units(index, layers[l].shape), importance)
        for layer, v, index in zip(layers, pulled, units, strict=True):
            self._stand_on(layer, v, index, best)
        self.cotangents = {layer: self._only_here(layer) for layer in dict.fromkeys(self.at)}

    def end_at_input(self) -> Found:
        """Pull back to the input: the linear models of the paths, and the input element of largest importance."""
        problem, frozen = self.problem, self.problem.frozen
        weights = self._pull(self.cotangents, frozen.inputs)
        scaled = [w * column(self.scale, w) for w in weights]
        model = model_from(frozen, scaled, self.value, problem.functional.labels)
        per_unit = [w * x.output for w, x in zip(weights, frozen.inputs, strict=True)]
        best, where = _argmax(map(neurons.scores, per_unit), [[True] * len(per_unit)] * len(self.at))
        ends: list[Step | None] = [None for _ in self.at]
        for b, (importance, (i, index)) in enumerate(zip(best.tolist(), where, strict=True)):
            x = frozen.inputs[i]
            if self.stopped[b] is None and importance > 0:
                ends[b] = Step(x.name, neurons.units(index, x.shape))
                self.importance[b][x.name] = importance
            elif self.stopped[b] is None:
                self.stopped[b] = self.missed[b] or "no importance is positive at the input"
        paths = [
            Path(tuple(reversed(steps)), end, label)
            for steps, end, label in zip(self.steps, ends, problem.functional.labels, strict=True)
        ]
        tiny = (self.scale.abs() < torch.finfo(self.scale.dtype).tiny).tolist()
        reached = ("reached the input", f"reached the input; its value is below the range of {self.scale.dtype}")
        stopped = tuple(reason or reached[under] for reason, under in zip(self.stopped, tiny, strict=True))
        ranked, values = tuple((path,) for path in paths), tuple((value,) for value in self.value.tolist())
        whole = problem.functional.value
        return Found(ranked, values, tuple(self.importance), stopped, model, whole, Cost(self.products))

    def _pull(self, cotangents: Mapping[Layer, Entries], layers: Sequence[Layer]) -> list[Tensor]:
        self.products += 1
        return [v[0] for v in self.problem.products.several(cotangents, self.samples, layers)]

    def _choose(self, b: int, layer: Layer, units: tuple[Unit, ...], importance: float) -> None:
        self.at[b] = layer
        self.missed[b] = None
        self.steps[b].append(Step(layer.name, units))
        self.importance[b][layer.name] = importance

    def _only_here(self, layer: Layer) -> Entries:
        """The cotangents at a layer, without those of samples that stand elsewhere."""
        places, values = self.cotangents[layer].places, self.cotangents[layer].values
        here = torch.tensor([at is layer for at in self.at], device=places.device)[places // layer.output[0].numel()]
        return Entries(places[here], values[:, here])

    def _stand_on(self, layer: Layer, pulled: Tensor, index: Tensor, importance: Tensor) -> None:
        """Set the cotangent of the chosen units: 1 at a single neuron, relative weights within a larger unit."""
        problem, partition = self.problem, self.problem.partitions[layer]
        neurons_of = [
            b * layer.output[0].numel() + partition.members(unit, layer.shape)
            for b, unit in enumerate(index.tolist())
            if unit >= 0
        ]
        places = torch.cat([index[:0], *neurons_of]).to(pulled.device)
        index = index.to(pulled.device)
        chosen, unit = index >= 0, index.clamp(min=0)[:, None]
        total, size = (problem.scores(layer, a).gather(1, unit)[:, 0] for a in (layer.output, layer.output.abs()))
        factor = importance / torch.where(total.abs() == size, total, size)
        self.value = torch.where(chosen, self.scale * importance, self.value)
        self.scale = torch.where(chosen, self.scale * factor, self.scale)
        values = pulled.reshape(-1)[places] / factor[places // layer.output[0].numel()]
        self.cotangents[layer] = Entries(places, values[None])


def _entries_of(cotangents: Float[Tensor, "B ..."]) -> Entries:
    places = cotangents.reshape(-1).nonzero()[:, 0]
    return Entries(places, cotangents.reshape(-1)[places][None])


def _argmax(scores: Iterable[Tensor], allowed: Sequence[Sequence[bool]]) -> tuple[Tensor, list[tuple[int, int]]]:
    """For each sample the largest score of the allowed lists: its value, and (list, position).

    The value is -inf where every allowed list is all zero: nothing leads there.
    """
    tops = [(*s.max(1), s.any(1)) for s in scores]
    values, indices, reached = (torch.stack(column, 1) for column in zip(*tops, strict=True))
    open_to = torch.tensor(allowed, device=values.device) & reached
    best, which = values.masked_fill(~open_to, -torch.inf).max(1)
    index = indices.gather(1, which[:, None])[:, 0]
    return best, list(zip(which.tolist(), index.tolist(), strict=True))
