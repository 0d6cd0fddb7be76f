"""The complete one-way paths of largest value: bounds from the bottom up, then a search from the top, best first."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._frozen import AT_ONCE
from .._linear import model_from
from .._paths import Path, Step
from .._patience import go_on
from .._products import by_layer
from .._segments import next_layers, segment
from .._units import Layer
from ..errors import PathError
from ._base import Cost, Found, Problem, Search, refuse_below

HELD = 2**27
"""How many derivatives the search may hold for the ways it has not gone, each with its place."""


@dataclass(frozen=True)
class Exact(Search):
    """The k best complete one-way paths: no other such path has a larger value, to round-off.

    A complete path starts at the output and goes from each layer on to a unit of the layers of the first lower level
    on which the layer depends, down to a layer that depends on no other. What a path from neuron u of layer A down adds
    to u lies between ``m_A[u]`` and ``M_A[u]``, found from the bottom up::

        M_A[u] = max over units S of sum over w in S of max(D[u, w] M_B[w], D[u, w] m_B[w])      D = d a_A / d a_B

    and m_A[u] with min twice; on a lowest layer both are the value of the neuron. So no path that begins with the
    cotangents v at a unit has a larger value than ``sum over its u of max(v[u] M_A[u], v[u] m_A[u])``. From the top,
    the search always goes on from the beginning for which that is largest; a complete path that comes first has no
    better one. Where units are single neurons the bound is the value of the best path, and nothing is tried in vain:
    dynamic programming. Where they are larger, what has to be tried depends on the network, and may be too much.

    Only paths of positive value are given. Where there is none, the path is empty and ``stopped`` says so. The
    importance of a unit is what the unit above gets from it, by derivative times value; of several neurons above, the
    one with the largest derivative of the target counts as 1.

    Attributes:
        k: how many paths.
        products: how many rows of the derivative between two layers may be computed one by one, where it is not one
            convolution or linear map between gates and pooling, for which no rows are needed; how many products the
            bounds over units of several neurons of one layer may take; and from how many beginnings the search may go
            on.

    Source: section 6 of the paper asks for a better search; the exact one is this library's answer.
    """

    k: int = 1
    products: int = 20_000

    def check(self) -> None:
        """Refuse numbers that are out of range.

        Raises:
            PathError: one is.
        """
        refuse_below(1, "k", self.k)
        refuse_below(0, "products", self.products)

    def search(self, problem: Problem) -> Found:
        """Find the k best paths of each sample.

        Raises:
            PathError: it takes more products than are allowed, or more memory than is sensible.
        """
        bounds = _Bounds(problem, self.products)
        return _Ranking(problem, bounds, self).found()


class _Bounds:
    """Between what numbers that lies which complete paths from a neuron down add to it.

    Attributes:
        lower: for the output and each layer that complete paths reach, the layers to which they go on.
        labels: the unit of each neuron of these layers.
        ends: for each layer the largest and the smallest of these numbers, M and m; endless where that would take rows
            of too large a segment.
        single: the layers whose units are single neurons.
        sharp: the layers whose bounds are the values of paths.
        products: what they cost.
    """

    def __init__(self, problem: Problem, allowed: int) -> None:
        self.problem, self.allowed, self.products = problem, allowed, 0
        self.lower = next_layers(problem.frozen.top, problem.levels, problem.below)
        self.labels: dict[Layer, Int[Tensor, " n"]] = {}
        self.ends: dict[Layer, tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]]] = {}
        self.single: set[Layer] = set()
        self.sharp: set[Layer] = set()
        for layer in sorted(self.lower.keys() - {problem.frozen.top}, key=problem.frozen.order):
            self._add(layer)

    def of_units(self, layer: Layer, sample: int, v: Float[Tensor, " n"]) -> Float[Tensor, " units"]:
        """For each unit of a layer the most that a path may have which comes to it with these cotangents."""
        high, low = (end[sample] for end in self.ends[layer])
        most = torch.where(v == 0, 0, torch.maximum(v * high, v * low))
        return self.problem.scores(layer, most.view(1, *layer.shape))[0]

    def _add(self, layer: Layer) -> None:
        """The bounds of one layer, from those of the layers below it."""
        labels = self.problem.partitions[layer].labels(layer.shape).flatten().to(layer.output.device)
        self.labels[layer] = labels
        if int(labels.bincount().max()) == 1:
            self.single.add(layer)
        if not self.lower[layer]:
            a = layer.output[..., None].flatten(1).double()
            self.ends[layer] = a, a
        else:
            highs, lows = zip(*(self._through(layer, below) for below in self.lower[layer]), strict=True)
            self.ends[layer] = torch.stack(highs).amax(0), torch.stack(lows).amin(0)
        known = layer in self.single and self.sharp.issuperset(self.lower[layer])
        if not self.lower[layer] or (known and self.ends[layer][0].isfinite().all()):
            self.sharp.add(layer)

    def _through(self, layer: Layer, below: Layer) -> tuple[Float[Tensor, "B n"], Float[Tensor, "B n"]]:
        """The bounds of one layer's neurons over the paths that go on to one lower layer."""
        go_on()
        (high, low), labels = self.ends[below], self.labels[below]
        endless = layer.output.new_full((len(high), layer.output[0].numel()), math.inf, dtype=torch.float64)
        if high.isinf().any():
            return endless, -endless
        try:
            between = segment(self.problem.frozen, layer, below, self.allowed)
        except PathError:
            if below in self.single:
                raise
            return endless, -endless
        if below in self.single:
            self.products += between.products
            return between.extremes(high.clamp(min=0), low.clamp(max=0))
        cost = between.products_of_units(int(labels.max()) + 1)
        if cost > self.allowed:
            return endless, -endless
        self.products += cost
        return between.extremes_of_units(high, low, labels)


@dataclass(frozen=True, eq=False)
class _Beginning:
    """A path from the output down to a unit.

    Attributes:
        above: the path without that unit; None at the output.
        layer: where it ends.
        unit: the position of the unit at which it ends.
        places: of its neurons in the flattened layer, those with a cotangent other than 0.
        cotangents: of these neurons, over the product.
        product: by which the largest cotangent is 1.
        share: what the unit above gets from this one, by derivative times value.
        best: no complete path that begins so has a larger value.
    """

    above: _Beginning | None
    layer: Layer
    unit: int
    places: Int[Tensor, " n"]
    cotangents: Float[Tensor, " n"]
    product: float = 1.0
    share: float = 0.0
    best: float = math.inf

    @property
    def way(self) -> list[_Beginning]:
        """Its units from the top down."""
        return [] if self.above is None else [*self.above.way, self]


class _Ways:
    """The ways on from a beginning to the units of one layer, the best first.

    Attributes:
        best: for each way not yet taken, the most that a path may have which begins so.
        places: the neurons of these units with a derivative other than 0.
        blind: how many ways have no bound, so that no path is proven before all of them are gone.
    """

    def __init__(self, above: _Beginning, layer: Layer, bounds: _Bounds, sample: int, row: Tensor, k: int) -> None:
        self.above, self.layer = above, layer
        best = bounds.of_units(layer, sample, row.double() * above.product)
        count = min(k, len(best)) if layer in bounds.sharp else len(best)
        top = best.topk(count)
        self.best = [value for value in top.values.tolist() if value > 0]
        self.blind = int(top.values.isposinf().sum())
        self.units = top.indices[: len(self.best)].tolist()
        kept = torch.zeros_like(best, dtype=torch.bool).index_fill_(0, top.indices[: len(self.best)], True)
        labels = bounds.labels[layer]
        places = (kept[labels] & (row != 0)).nonzero()[:, 0]
        self.places, self.owners, self.row = places.int(), labels[places].int(), row[places]
        self.sample, self.taken = sample, 0

    def take(self) -> _Beginning:
        """The best way that is left."""
        unit, best = self.units[self.taken], self.best[self.taken]
        self.taken += 1
        mine = self.owners == unit
        places, row = self.places[mine].long(), self.row[mine]
        share = float((row * self.layer.output[self.sample].flatten()[places]).sum())
        largest = row[row.abs().argmax()]
        return _Beginning(
            self.above, self.layer, unit, places, row / largest, self.above.product * float(largest), share, best
        )

    @property
    def next(self) -> float:
        """The most that a path may have which goes the best way that is left; 0 if none is."""
        return self.best[self.taken] if self.taken < len(self.best) else 0.0


class _Ranking:
    """The paths read off from the top, best first; one product serves all samples."""

    def __init__(self, problem: Problem, bounds: _Bounds, search: Exact) -> None:
        self.problem, self.bounds, self.search = problem, bounds, search
        self.ticket, self.walked, self.held = itertools.count(), 0, 0
        self.blind = [0] * problem.frozen.batch
        self.at_once = max(1, AT_ONCE // max(l.output.numel() * l.output.element_size() for l in bounds.lower))
        self.open: list[list[tuple[float, int, _Ways]]] = [[] for _ in range(problem.frozen.batch)]
        self.ranked: list[list[_Beginning]] = [[] for _ in self.open]

    def found(self) -> Found:
        """Read off the paths, and the linear model of the first one of each sample."""
        frozen, functional = self.problem.frozen, self.problem.functional
        everything = torch.arange(functional.gradient[0].numel(), device=functional.gradient.device)
        beginnings = [[_Beginning(None, frozen.top, 0, everything, v.flatten())] for v in functional.gradient]
        while any(beginnings):
            self._expand(beginnings)
            beginnings = [self._next(b) for b in range(len(self.open))]
        value = functional.value.clone()
        ends = {frozen.top: functional.gradient.new_zeros(functional.gradient.shape)}
        for b, some in enumerate(self.ranked):
            if not some:
                ends[frozen.top][b] = functional.gradient[b]
                continue
            layer = some[0].layer
            end = ends.setdefault(layer, layer.output.new_zeros(layer.output.shape))
            end[b].view(-1)[some[0].places] = (some[0].cotangents.double() * some[0].product).to(end.dtype)
            value[b] = some[0].best
        model = model_from(frozen, frozen.to_inputs(ends), value, functional.labels)
        pairs = list(zip(self.ranked, functional.labels, strict=True))
        return Found(
            ranked=tuple(tuple(self._path(p, label) for p in some) or (Path(target=label),) for some, label in pairs),
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
            cost=Cost(self.bounds.products + self.walked + 1),
        )

    def _path(self, end: _Beginning, label: str) -> Path:
        units = [(way.layer, self.problem.partitions[way.layer].units(way.unit, way.layer.shape)) for way in end.way]
        return Path(tuple(Step(layer.name, some) for layer, some in reversed(units)), None, label)

    def _reason(self, some: list[_Beginning]) -> str:
        """Why the search of a sample ended."""
        dtype = self.problem.functional.value.dtype
        if not some:
            return "no path has a positive value"
        reason = (
            "reached the lowest layer"
            if len(some) == self.search.k
            else f"no more than {len(some)} have a positive value"
        )
        tiny = some[0].best < torch.finfo(dtype).tiny
        return f"{reason}; the value of the best is below the range of {dtype}" if tiny else reason

    def _next(self, b: int) -> list[_Beginning]:
        """The beginnings from which a sample goes on; complete paths met before them are the next best ones.

        At first one, then as many at once as adds little to what has been gone: the later ones may be in vain.
        """
        found: list[_Beginning] = []
        left = self.search.products - self.walked
        most = max(1, min(self.at_once, 1 + self.walked // 16, left))
        while self.open[b] and len(self.ranked[b]) < self.search.k and len(found) < most:
            ways = self.open[b][0][2]
            complete = not self.bounds.lower[ways.layer]
            if complete and found:
                break
            heapq.heappop(self.open[b])
            way = ways.take()
            (self.ranked[b] if complete else found).append(way)
            self.blind[b] -= math.isinf(way.best)
            self._push(b, ways)
        return found

    def _push(self, b: int, ways: _Ways) -> None:
        """Open ways, or what is left of them."""
        if ways.next > 0:
            heapq.heappush(self.open[b], (-ways.next, next(self.ticket), ways))
        else:
            self.held -= len(ways.places)

    def _expand(self, beginnings: Sequence[Sequence[_Beginning]]) -> None:
        """Go on from some beginnings of each sample, all in one batched product."""
        depth = max(map(len, beginnings))
        self._refuse(depth)
        self.walked += depth
        chosen = [(b, p) for b, some in enumerate(beginnings) for p in some]
        lower = list(dict.fromkeys(below for _, p in chosen for below in self.bounds.lower[p.layer]))
        front = by_layer([(p.layer, p.places, p.cotangents) for _, p in chosen])
        samples = torch.tensor([b for b, _ in chosen], device=chosen[0][1].cotangents.device)
        rows = dict(zip(lower, self.problem.products.several(front, samples, lower), strict=True))
        for number, (b, p) in enumerate(chosen):
            for below in self.bounds.lower[p.layer]:
                ways = _Ways(p, below, self.bounds, b, rows[below][0, number].flatten(), self.search.k)
                self.held += len(ways.places)
                self.blind[b] += ways.blind
                self._push(b, ways)

    def _refuse(self, more: int) -> None:
        """Refuse to go on where that takes too much, as soon as it is known.

        Raises:
            PathError: it takes too many products, or too much memory.
        """
        needed = more + max(self.blind)
        if self.walked + needed > self.search.products or self.held > HELD:
            proven = min(map(len, self.ranked))
            raise PathError(
                f"after {self.walked} products (products={self.search.products} are allowed, and {HELD} numbers in "
                f"memory) {proven} of the {self.search.k} best paths are proven, and {needed} products more are needed "
                "at least: search fewer layers or larger units, or use Beam"
            )
