"""The derivative of one hidden layer by a lower one, neuron by neuron, as the recursions over paths need it."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ._frozen import AT_ONCE, Frozen
from ._graph import route
from ._mixing import INPUT, TILE, Mixing, mixing
from ._simple import NotFactored, Of, Simple, Stretch, simple
from ._units import Layer
from .errors import PathError

Terms = Sequence[tuple[Of, Float[Tensor, "B size"]]]
"""Vectors, each with the function g of the matrix' entries with which it is multiplied."""


class Segment(ABC):
    """The matrix ``D = d a_A / d a_B`` of each sample, in the frozen network, from a layer B up to a layer A.

    Attributes:
        products: how many vector-Jacobian products it took, or one pass over it takes.
    """

    products: int

    def extremes(
        self, high: Float[Tensor, "B n"], low: Float[Tensor, "B n"]
    ) -> tuple[Float[Tensor, "B m"], Float[Tensor, "B m"]]:
        """The largest and the smallest ``D[u, w] * c[w]`` over w, for any ``low <= c <= high``; 0 is among them.

        Both are double precision; the products in between are scaled to what the network's number format holds.
        """
        size = torch.maximum(high, -low).amax(1, keepdim=True)
        size = torch.where(size > 0, size, 1)
        largest, smallest = self._extremes(high / size, low / size)
        return largest.double() * size, smallest.double() * size

    def extremes_of_units(
        self, high: Float[Tensor, "B n"], low: Float[Tensor, "B n"], labels: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "B m"], Float[Tensor, "B m"]]:
        """The largest and the smallest sum of ``D[u, w] * c[w]`` over the w of one label, for any ``low <= c <= high``.

        Each term is largest at ``D (high + low) / 2 + |D| (high - low) / 2``.
        """
        middle, half = (high + low) / 2, (high - low) / 2
        largest, smallest = torch.tensor(-torch.inf), torch.tensor(torch.inf)
        for label in range(int(labels.max()) + 1):
            here = labels == label
            sums, reach = self.sums([(torch.Tensor.clone, middle * here), (torch.abs, half * here)])
            largest, smallest = torch.maximum(sums + reach, largest), torch.minimum(sums - reach, smallest)
        return largest, smallest

    def products_of_units(self, count: int) -> int:
        """How many products it takes to find the extremes over so many units."""
        return self.products + 2 * count

    @abstractmethod
    def _extremes(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """The same of numbers of order one, in any precision."""

    @abstractmethod
    def sums(self, terms: Terms) -> list[Float[Tensor, "B m"]]:
        """``sum_w g(D[u, w]) x[w]`` for each vector x on layer B."""

    @abstractmethod
    def spread(self, terms: Terms) -> list[Float[Tensor, "B n"]]:
        """``sum_u g(D[u, w]) y[u]`` for each vector y on layer A."""


@dataclass(frozen=True)
class Rows(Segment):
    """Any segment, row by row: one vector-Jacobian product for every neuron of the upper layer."""

    frozen: Frozen
    upper: Layer
    lower: Layer

    @property
    def products(self) -> int:  # type: ignore[override]
        """One for every neuron of the upper layer."""
        return self.upper.output[0].numel()

    def _blocks(self) -> Iterator[tuple[slice, Float[Tensor, "K B n"]]]:
        chunk = max(1, AT_ONCE // (self.lower.output.numel() * self.lower.output.element_size()))
        for start in range(0, self.products, chunk):
            units = torch.arange(start, min(start + chunk, self.products))
            (block,) = rows(self.frozen, self.upper, units, [self.lower])
            yield slice(start, start + len(units)), block

    def _extremes(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        high, low = high.to(self.upper.output.dtype), low.to(self.upper.output.dtype)
        shape = len(high), self.products
        largest, smallest = high.new_zeros(shape), high.new_zeros(shape)
        for here, block in self._blocks():
            ends = block * high, block * low
            largest[:, here] = torch.maximum(*ends).amax(2).clamp_(min=0).T
            smallest[:, here] = torch.minimum(*ends).amin(2).clamp_(max=0).T
        return largest, smallest

    def extremes_of_units(
        self, high: Float[Tensor, "B n"], low: Float[Tensor, "B n"], labels: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "B m"], Float[Tensor, "B m"]]:
        """The same, all units at once."""
        largest, smallest = high.new_zeros(2, len(high), self.products)
        for here, block in self._blocks():
            ends = block * high, block * low
            none = high.new_zeros(*block.shape[:2], int(labels.max()) + 1)
            largest[:, here] = none.index_add(2, labels, torch.maximum(*ends)).amax(2).T
            smallest[:, here] = none.index_add(2, labels, torch.minimum(*ends)).amin(2).T
        return largest, smallest

    def products_of_units(self, count: int) -> int:
        """The rows serve all units at once."""
        return self.products

    def sums(self, terms: Terms) -> list[Float[Tensor, "B m"]]:
        """``sum_w g(D[u, w]) x[w]`` for each vector x on layer B."""
        found = [x.new_zeros(len(x), self.products) for _, x in terms]
        for here, block in self._blocks():
            for total, (of, x) in zip(found, terms, strict=True):
                total[:, here] = torch.einsum("kbw,bw->bk", of(block.to(x.dtype)), x)
        return found

    def spread(self, terms: Terms) -> list[Float[Tensor, "B n"]]:
        """``sum_u g(D[u, w]) y[u]`` for each vector y on layer A."""
        found = [y.new_zeros(len(y), self.lower.output[0].numel()) for _, y in terms]
        for here, block in self._blocks():
            for total, (of, y) in zip(found, terms, strict=True):
                total += torch.einsum("kbw,bk->bw", of(block.to(y.dtype)), y[:, here])
        return found


@dataclass(frozen=True)
class Factored(Segment):
    """A segment with one operation that mixes, ``D = R G C``, or with none, ``D = C``.

    C has one entry a row or one a column (gates, batch norm, views, concatenation, pooling), R one a row, and no entry
    of D is a sum, so that a function of the entries that keeps products goes through.

    Attributes:
        around: R, or None.
        mix: G, or None.
        inner: C.
    """

    around: Simple | None
    mix: Mixing | None
    inner: Simple
    products: int

    def _extremes(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        dtype = self.inner.scale.dtype
        ends = self.inner.extremes(high.to(dtype), low.to(dtype))
        for factor in (self.mix, self.around):
            ends = factor.extremes(*ends) if factor is not None else ends
        return ends

    def sums(self, terms: Terms) -> list[Float[Tensor, "B m"]]:
        """``sum_w g(D[u, w]) x[w]`` for each vector x on layer B."""
        found = []
        for of, x in terms:
            for factor in (self.inner, self.mix, self.around):
                x = factor.apply(x, of) if factor is not None else x
            found.append(x)
        return found

    def spread(self, terms: Terms) -> list[Float[Tensor, "B n"]]:
        """``sum_u g(D[u, w]) y[u]`` for each vector y on layer A."""
        found = []
        for of, y in terms:
            y = y if self.around is None else self.around.transposed.apply(y, of)
            y = y if self.mix is None else self.mix.pull(y, of)
            found.append(self.inner.transposed.apply(y, of))
        return found


@dataclass(frozen=True)
class Merged(Segment):
    """``D = R G C`` where a patch of G holds a neuron more than once, as after pooling with overlap: weights are added.

    Attributes:
        around: R, one entry a row.
        mix: G.
        inner: C, one entry a row.
    """

    around: Simple
    mix: Mixing
    inner: Simple
    products: int

    def _blocks(self) -> Iterator[tuple[tuple[Any, ...], Float[Tensor, "O J L"], Int[Tensor, "J L"]]]:
        """Parts of G C: where in (B, G, O, L) they stand, the entries, 0 for repeated neurons, and their neurons."""
        dead, numbers = self.inner.scale == 0, self.inner.index + 1
        neurons = self.mix.patches(numbers.masked_fill(dead, 0).double()).long()
        scales = self.mix.patches(self.inner.scale)
        for b, g in itertools.product(range(len(neurons)), range(neurons.shape[1])):
            weight = self.mix.weight[g]
            tile, chunk = max(1, TILE // weight.shape[1]), 16
            for start in range(0, neurons.shape[3], tile):
                place = slice(start, start + tile)
                neuron, order = neurons[b, g, :, place].sort(0)
                scale = scales[b, g, :, place].gather(0, order)
                repeats = list(_repeats(neuron))
                for o in range(0, len(weight), chunk):
                    entries = weight[o : o + chunk][:, order] * scale
                    merged = entries.clone()
                    for step, same in enumerate(repeats, 1):
                        merged[:, :-step] += entries[:, step:] * same
                    merged[:, 1:].masked_fill_(repeats[0], 0)
                    yield (b, g, slice(o, o + chunk), place), merged, (neuron - 1).clamp_(min=0)

    def _mixed(self, like: Float[Tensor, "B n"]) -> Float[Tensor, "B G O L"]:
        """Zeros in the shape of what G gives."""
        return self.mix.taken(like.new_zeros(len(like), self.around.width))

    def _extremes(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        high, low = high.to(self.inner.scale.dtype), low.to(self.inner.scale.dtype)
        largest, smallest = self._mixed(high).clone(), self._mixed(high).clone()
        for place, entries, neuron in self._blocks():
            ends = entries * high[place[0]][neuron], entries * low[place[0]][neuron]
            largest[place] = torch.maximum(*ends).amax(1)
            smallest[place] = torch.minimum(*ends).amin(1)
        return self.around.extremes(self.mix.placed(largest), self.mix.placed(smallest))

    def sums(self, terms: Terms) -> list[Float[Tensor, "B m"]]:
        """``sum_w g(D[u, w]) x[w]`` for each vector x on layer B."""
        found = [self._mixed(x) for _, x in terms]
        for place, entries, neuron in self._blocks():
            for total, (of, x) in zip(found, terms, strict=True):
                total[place] = (of(entries.to(x.dtype)) * x[place[0]][neuron]).sum(1)
        return [self.around.apply(self.mix.placed(z), of) for z, (of, _) in zip(found, terms, strict=True)]

    def spread(self, terms: Terms) -> list[Float[Tensor, "B n"]]:
        """``sum_u g(D[u, w]) y[u]`` for each vector y on layer A."""
        tops = [self.mix.taken(self.around.transposed.apply(y, of)) for of, y in terms]
        found = [y.new_zeros(len(y), self.inner.width) for _, y in terms]
        for place, entries, neuron in self._blocks():
            for total, top, (of, y) in zip(found, tops, terms, strict=True):
                parts = (of(entries.to(y.dtype)) * top[place][:, None]).sum(0)
                total[place[0]].index_add_(0, neuron.flatten(), parts.flatten())
        return found


def segment(frozen: Frozen, upper: Layer, lower: Layer, products: int) -> Segment:
    """The segment between two layers: factored where it has that form, else row by row.

    Args:
        frozen: the recorded network.
        upper: the layer A.
        lower: the layer B.
        products: how many rows are worth their time.

    Raises:
        PathError: it has another form and more rows.
    """
    try:
        return factored(frozen, upper, lower)
    except NotFactored:
        found = Rows(frozen, upper, lower)
    if found.products > products:
        raise PathError(
            f"between the layers {lower.name!r} and {upper.name!r} there is not one convolution or linear map alone, "
            f"and it would take {found.products} products, more than {products}: search fewer or smaller layers"
        )
    return found


def factored(frozen: Frozen, upper: Layer, lower: Layer) -> Segment:
    """The segment as ``R G C``, each factor certified by its products with random vectors.

    Raises:
        NotFactored: it has not this form.
    """
    if frozen.writes_to_views:
        raise NotFactored
    node = _only_mixing(upper.edge, lower.edge)
    if node is None:
        whole = Stretch(frozen, upper.edge, upper.output.shape, lower.edge)
        return Factored(None, None, _one_entry(whole, lower.output[..., None].flatten(1)), 6)
    top, bottom = GradientEdge(node, 0), GradientEdge(*node.next_functions[INPUT[node.name()]])
    around = Stretch(frozen, upper.edge, upper.output.shape, top)
    through = Stretch(frozen, top, around.below_shape, bottom)
    inner = Stretch(frozen, bottom, through.below_shape, lower.edge)
    mix = mixing(node, frozen.batch, through.below_shape)
    z = frozen.output.new_zeros(around.below_shape).view(frozen.batch, -1)
    wave = torch.cos(torch.arange(z.numel(), device=z.device).to(z.dtype) * 1.3 + 0.7).view_as(z)
    expected, got = through.pull(wave), mix.pull(wave, torch.Tensor.clone)
    if got.shape != expected.shape or not (got - expected).abs().max() <= frozen.tolerance * expected.abs().max():
        raise NotFactored
    r, c = simple(around.push, z), _one_entry(inner, lower.output[..., None].flatten(1))
    return (Merged if not c.turned and _collides(mix, c) else Factored)(r, mix, c, 15)


def _one_entry(stretch: Stretch, below: Float[Tensor, "B n"]) -> Simple:
    """A stretch whose matrix has one entry a column, or one a row.

    Raises:
        NotFactored: it has neither.
    """
    try:
        above = below.new_zeros(stretch.shape).view(len(below), -1)
        return simple(stretch.pull, above).transposed
    except NotFactored:
        return simple(stretch.push, torch.zeros_like(below))


def _collides(mix: Mixing, inner: Simple) -> bool:
    """Whether a patch holds a neuron of the lower layer twice, as after pooling with overlap."""
    numbers = (inner.index + 1).masked_fill(inner.scale == 0, 0).double()
    ordered = mix.patches(numbers).sort(2).values
    return bool(((ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] > 0)).any())


def _repeats(ordered: Int[Tensor, "J L"]) -> Iterator[Bool[Tensor, "rest L"]]:
    """Which numbers stand once more a step, two steps, ... further on, as long as any does; 0 does not count."""
    for step in range(1, len(ordered) + 1):
        same = (ordered[step:] == ordered[:-step]) & (ordered[step:] > 0)
        yield same
        if not same.any():
            return


def _only_mixing(above: GradientEdge, below: GradientEdge) -> Any | None:
    """The one operation that mixes, through which all routes between two places go; None if there is none.

    Raises:
        NotFactored: there are several, or routes around it.
    """
    nodes = route(above, below)
    found = [node for node in nodes if node.name() in INPUT]
    if not found:
        return None
    if len(found) > 1 or route(above, below, without=found[0]):
        raise NotFactored
    return found[0]


def rows(
    frozen: Frozen, upper: Layer, units: Int[Tensor, " K"], lower: Sequence[Layer]
) -> list[Float[Tensor, "K B n"]]:
    """Rows of the segments from one layer to several lower ones: those of some units, for each sample."""
    cotangent = upper.output.new_zeros(len(units), frozen.batch, upper.output[0].numel())
    cotangent.scatter_(2, units.to(cotangent.device)[:, None, None].expand(-1, frozen.batch, 1), 1)
    found = frozen.vjps({upper: cotangent.reshape(len(units), *upper.output.shape)}, lower)
    return [product.flatten(2) for product in found]


def next_layers(
    top: Layer, levels: Sequence[Sequence[Layer]], below: Mapping[Layer, frozenset[Layer]]
) -> dict[Layer, tuple[Layer, ...]]:
    """For the output and each layer that complete paths reach, the layers to which they go on.

    A complete path goes on to the layers of the first lower level on which the layer depends.
    """
    found: dict[Layer, tuple[Layer, ...]] = {}
    todo = [top]
    while todo:
        layer = todo.pop()
        if layer not in found:
            ways = (tuple(lower for lower in level if lower in below[layer]) for level in levels)
            found[layer] = next((way for way in ways if way), ())
            todo += found[layer]
    return found
