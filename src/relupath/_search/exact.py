"""The complete one-way paths of largest value, by dynamic programming."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .._linear import model_from
from .._partitions import neurons
from .._paths import Path, Step
from .._segments import next_layers, segment
from .._units import Layer
from ..errors import PathError
from ._base import Cost, Found, Problem, Search

Bounds = Mapping[Layer, tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]]]
"""For each layer the largest and the smallest value of what comes to each neuron from below, 0 among them."""


@dataclass(frozen=True)
class Exact(Search):
    """The k best complete one-way paths over single neurons: no other such path has a larger value.

    A complete path starts at the output and goes from each layer on to a neuron of the layers of the first lower level
    on which the layer depends, down to a layer that depends on no other. Its value ``f^P(x)`` is the product of the
    derivatives between its neurons times the value of its lowest neuron. A backward pass in which max (and min, as
    derivatives have signs) replaces the sum over routes gives, from the bottom up::

        M_A[u] = max over w of D[u, w] * (M_B[w] if D[u, w] > 0 else m_B[w])      D = d a_A / d a_B

    and m_A[u] with min; on a lowest layer both are the value of the neuron. The paths are then read off from the top,
    always going on from the beginning whose best end is the largest.

    Only paths of positive value are given. Where there is none, the path is empty and ``stopped`` says so.

    Attributes:
        k: how many paths.
        products: how many rows of the derivative between two layers may be computed one by one, where it is not one
            convolution or linear map between gates and pooling, for which no rows are needed.

    Source: section 6 of the paper asks for a better search; the exact one is this library's answer.
    """

    k: int = 1
    products: int = 20_000

    def search(self, problem: Problem) -> Found:
        """Find the k best paths of each sample.

        Raises:
            PathError: k is less than 1, a unit is more than one neuron, or the derivative between two layers takes too
                many products.
        """
        if self.k < 1:
            raise PathError(f"k must be at least 1; got {self.k}")
        for layer, partition in problem.partitions.items():
            labels = partition.labels(layer.shape).flatten()
            if int(labels.bincount().max()) > 1:
                raise PathError(
                    f"partition {partition.name!r} joins neurons of layer {layer.name!r}: the value of a path is a "
                    "product of derivatives over single neurons only; search with partition=neurons"
                )
        lower = next_layers(problem.frozen.top, problem.levels, problem.below)
        bounds, products = self._bounds(problem, lower)
        return _Ranking(problem, lower, bounds, self.k, products).found()

    def _bounds(self, problem: Problem, lower: Mapping[Layer, tuple[Layer, ...]]) -> tuple[Bounds, int]:
        """The largest and the smallest value of what comes to each neuron, from the bottom up; and the cost."""
        frozen, products = problem.frozen, 0
        bounds: dict[Layer, tuple[Tensor, Tensor]] = {}
        for layer in sorted(lower.keys() - {frozen.top}, key=frozen.order):
            if not lower[layer]:
                a = layer.output.flatten(1).double()
                bounds[layer] = a.clamp(min=0), a.clamp(max=0)
                continue
            for below in lower[layer]:
                between = segment(frozen, layer, below, self.products)
                high, low = between.extremes(*bounds[below])
                if layer in bounds:
                    high, low = torch.maximum(high, bounds[layer][0]), torch.minimum(low, bounds[layer][1])
                bounds[layer] = high, low
                products += between.products
        return bounds, products


@dataclass(frozen=True)
class _Beginning:
    """A path from the output down to a neuron.

    Attributes:
        above: the path without that neuron; None at the output.
        layer: where it ends.
        unit: the neuron at which it ends.
        product: of the derivatives on the way.
        share: what the neuron above gets from this one, by derivative times value.
        best: the largest value of a complete path that begins so.
    """

    above: _Beginning | None
    layer: Layer
    unit: int = 0
    product: float = 1.0
    share: float = 0.0
    best: float = torch.inf

    @property
    def way(self) -> list[_Beginning]:
        """Its neurons from the top down."""
        return [] if self.above is None else [*self.above.way, self]


class _Ranking:
    """The paths read off from the top, best first; one product a step serves all samples."""

    def __init__(
        self, problem: Problem, lower: Mapping[Layer, tuple[Layer, ...]], bounds: Bounds, k: int, products: int
    ) -> None:
        self.problem, self.lower, self.bounds, self.k, self.products = problem, lower, bounds, k, products
        self.count = itertools.count()
        self.open = [[(-torch.inf, 0, _Beginning(None, problem.frozen.top))] for _ in range(problem.frozen.batch)]
        self.ranked: list[list[_Beginning]] = [[] for _ in self.open]

    def found(self) -> Found:
        """Read off the paths, and the linear model of the first one of each sample."""
        while any(goes_on := [self._next(b) for b in range(len(self.open))]):
            self._expand(goes_on)
        frozen, functional = self.problem.frozen, self.problem.functional
        value = functional.value.clone()
        ends = {frozen.top: functional.gradient.new_zeros(functional.gradient.shape)}
        for b, some in enumerate(self.ranked):
            if not some:
                ends[frozen.top][b] = functional.gradient[b]
                continue
            layer = some[0].layer
            end = ends.setdefault(layer, layer.output.new_zeros(layer.output.shape))
            end[b].view(-1)[some[0].unit] = some[0].product
            value[b] = some[0].best
        model = model_from(frozen, frozen.to_inputs(ends), value, functional.labels)
        pairs = list(zip(self.ranked, functional.labels, strict=True))
        return Found(
            ranked=tuple(tuple(_path(way, label) for way in some) or (Path(target=label),) for some, label in pairs),
            values=tuple(
                tuple(end.best for end in some) or (whole,)
                for some, whole in zip(self.ranked, value.tolist(), strict=True)
            ),
            importance=tuple(
                {way.layer.name: way.share for way in some[0].way} if some else {} for some in self.ranked
            ),
            stopped=tuple(map(self._reason, self.ranked)),
            model=model,
            value=functional.value,
            cost=Cost(self.products + 1),
        )

    def _reason(self, some: list[_Beginning]) -> str:
        """Why the search of a sample ended."""
        dtype = self.problem.functional.value.dtype
        if not some:
            return "no path has a positive value"
        reason = (
            "reached the lowest layer" if len(some) == self.k else f"no more than {len(some)} have a positive value"
        )
        tiny = some[0].best < torch.finfo(dtype).tiny
        return f"{reason}; the value of the best is below the range of {dtype}" if tiny else reason

    def _next(self, b: int) -> _Beginning | None:
        """The beginning from which a sample goes on; complete paths met before it are the next best ones."""
        while self.open[b] and len(self.ranked[b]) < self.k:
            beginning = heapq.heappop(self.open[b])[2]
            if self.lower[beginning.layer]:
                return beginning
            if beginning.above is not None:
                self.ranked[b].append(beginning)
        return None

    def _expand(self, beginnings: list[_Beginning | None]) -> None:
        """Go on from one beginning of each sample to the neurons below that lead furthest."""
        frozen = self.problem.frozen
        layers = {beginning.layer for beginning in beginnings if beginning}
        cotangents = {layer: layer.output.new_zeros(layer.output.shape) for layer in layers}
        for b, beginning in enumerate(beginnings):
            if beginning is not None and beginning.above is None:
                cotangents[frozen.top][b] = self.problem.functional.gradient[b]
            elif beginning is not None:
                cotangents[beginning.layer][b].view(-1)[beginning.unit] = 1
        lower = list(dict.fromkeys(below for layer in layers for below in self.lower[layer]))
        rows = dict(zip(lower, frozen.vjp(cotangents, lower), strict=True))
        self.products += 1
        for b, beginning in enumerate(beginnings):
            if beginning is not None:
                for below in self.lower[beginning.layer]:
                    self._push(b, beginning, below, rows[below][b].flatten().double())

    def _push(self, b: int, beginning: _Beginning, below: Layer, row: Float[Tensor, " n"]) -> None:
        """Open the best k ways on to one layer: no other can be on one of the k best paths."""
        product = row * beginning.product
        high, low = self.bounds[below]
        best, units = torch.maximum(product * high[b], product * low[b]).topk(min(self.k, len(row)))
        some = product[units].tolist(), (row * below.output[b].flatten())[units].tolist(), best.tolist()
        for unit, *numbers in zip(units.tolist(), *some, strict=True):
            if numbers[-1] > 0:
                way = _Beginning(beginning, below, unit, *numbers)
                heapq.heappush(self.open[b], (-way.best, next(self.count), way))


def _path(end: _Beginning, label: str) -> Path:
    steps = [Step(way.layer.name, neurons.units(way.unit, way.layer.shape)) for way in end.way]
    return Path(tuple(reversed(steps)), None, label)
