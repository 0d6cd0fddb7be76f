"""Products of many cotangents: in windows where that is possible, else in full; a few at a time, as memory allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ._cropped import NotCropped
from ._crops import Crops, Entries
from ._frozen import Frozen
from ._graph import by_pass
from ._memory import in_cache
from ._units import Layer
from ._way import Part, Way

Wanted: TypeAlias = Int[Tensor, "N c"] | None
"""The channels that are looked at of each product; None: all."""
Pieces: TypeAlias = list[tuple[slice, Crops]]
"""Products, and whose they are."""
COPIES = 4
"""So many tensors of one cotangent's size are held at a time."""


FEW = 4
"""Fewer products of one sample than these are not worth a full one that verifies them,"""
ROOMY = 2**21
"""nor windows at all, unless the layers between which they go have so many bytes a sample together."""


@dataclass(frozen=True)
class Products:
    """Vector-Jacobian products from layer to layer, many cotangents at once.

    Attributes:
        frozen: the recorded network.
        most: the bytes that they may take at once.
    """

    frozen: Frozen
    most: int

    def parts(self, upper: Layer, crops: Crops, lower: Layer, wanted: Wanted = None) -> Iterator[tuple[slice, Crops]]:
        """The products of all cotangents, part by part: which of them, and ``(d upper / d lower)^T cotangent``.

        Those in windows are verified, and where they do not stand the test, as where products cancel beyond round-off,
        the full ones are taken: each down to the one explained input, or of few where every route passes the lower
        layer, by ``<v, upper> = <W, lower> + sum <dv/ds, s>`` over the constants s between; others by their sum with
        signs at random beside one full product; of those of which few channels are wanted, the sums over those that
        want the same as the first, the middle and the last.

        Args:
            upper: where the cotangents stand.
            crops: N cotangents.
            lower: the layer below.
            wanted: the only channels of the lower layer that are looked at afterwards; None: all.

        Raises:
            IncompleteError: the constants do not add up with full products either.
        """
        yield from self._parts(*self._way(upper, lower, crops.samples), upper, crops, lower, wanted)

    def _parts(
        self, way: Way | None, each: bool, upper: Layer, crops: Crops, lower: Layer, wanted: Wanted = None
    ) -> Iterator[tuple[slice, Crops]]:
        """The same, on a way down; each by itself verified by the constants, or all by full products."""
        samples, start = crops.samples.tolist(), 0
        while start < len(crops):
            rows = slice(start, self._end(start, samples, way, upper, lower))
            some, channels = crops.select(rows), None if wanted is None else wanted[rows]
            found = None if way is None else self._cropped(way, each, upper, some, lower, channels)
            if found is None:
                (full,) = self._full({upper: some.dense()}, some.samples, [lower])
                way, found = None, [(slice(0, len(some)), Crops(full, lower.shape, some.samples))]
                if lower in self.frozen.inputs:
                    self._account(upper, some)
            for part, pulled in found:
                yield slice(start + part.start, start + part.stop), pulled
            start = rows.stop

    def _cropped(self, way: Way, each: bool, upper: Layer, crops: Crops, lower: Layer, wanted: Wanted) -> Pieces | None:
        """The products in windows; None where that is not possible, or does not stand the test."""
        try:
            parts = [*way.pull(crops, None if each else wanted)]
        except NotCropped:
            return None
        if each:
            below = torch.cat([part.found.dot(lower.output) + part.biases for part in parts], 1)
            above = crops.dot(upper.output)
            stands = bool(((below[0] - above[0]).abs() <= self.frozen.tolerance * (below[1] + above[1])).all())
        elif wanted is None:
            stands = self._agree(upper, crops, lower, parts)
        else:
            alike = [(wanted == wanted[k]).all(1) for k in {0, len(crops) // 2, len(crops) - 1}]
            stands = all(self._agree(upper, crops, lower, parts, rows) for rows in alike)
        return [(part.rows, part.found) for part in parts] if stands else None

    def _agree(
        self, upper: Layer, crops: Crops, lower: Layer, parts: Sequence[Part], alike: Bool[Tensor, " N"] | None = None
    ) -> bool:
        """Whether the sum of products, or of those that are alike, each over its size, is the full product of that sum.

        Args:
            upper: where the cotangents stand.
            crops: the cotangents.
            lower: the layer below.
            parts: the products.
            alike: those with the same channels, where channels are named.
        """
        rows = [part.found.values[..., None].flatten(1) for part in parts]
        sizes = torch.cat([torch.linalg.vector_norm(some, torch.inf, 1) for some in rows])
        factors = random_signs(len(crops), sizes) / torch.where(sizes > 0, sizes, crops.values.abs().amax())
        chosen = slice(None) if alike is None else alike.nonzero()[:, 0]
        above, below = torch.zeros_like(upper.output), torch.zeros_like(lower.output)
        crops.select(chosen).sum_into(above, factors[chosen].to(above.dtype))
        channels = None
        for part in parts:
            mine = chosen if alike is None else alike[part.rows].nonzero()[:, 0]
            found = part.found.select(mine)
            found.sum_into(below, factors[part.rows][mine])
            channels = found.channels[0] if found.channels is not None and len(found) else channels
        (full,) = self.frozen.vjp({upper: above}, [lower])
        if channels is not None:
            full, below = full[:, channels], below[:, channels]
        return bool((full - below).abs().amax() <= self.frozen.tolerance * len(crops) ** 0.5)

    def _account(self, upper: Layer, crops: Crops) -> None:
        """Refuse full products down to the inputs with whose sum the constants do not add up.

        Raises:
            IncompleteError: they do not.
        """
        total = torch.zeros_like(upper.output)
        crops.sum_into(total, random_signs(len(crops), total))
        self.frozen.to_inputs({upper: total})

    def several(
        self, front: Mapping[Layer, Entries], samples: Int[Tensor, " M"], to: Sequence[Layer]
    ) -> list[Float[Tensor, "K M ..."]]:
        """``K M`` products at once, in windows where one layer leads to one and that pays.

        Args:
            front: layers with the entries of cotangents, K M in all of them together.
            samples: to which sample each of the M belongs.
            to: layers below.
        """
        ((upper, entries), *others), (lower, *more) = front.items(), to
        shape, rows = (len(entries.values), len(samples)), samples.repeat(len(entries.values))
        way, each = (None, False) if others or more else self._way(upper, lower, rows)
        if way is None and rows.tolist() == [*range(self.frozen.batch)]:
            sparse = {layer: some.sparse(layer.output.shape) for layer, some in front.items()}
            return [found[None] for found in self.frozen.vjp(sparse, to)]
        if way is None:
            dense = {layer: some.dense(layer.shape, len(samples)).flatten(0, 1) for layer, some in front.items()}
            return [found.view(*shape, *found.shape[1:]) for found in self._full(dense, rows, to)]
        crops = Crops.placed(entries, upper.shape, samples)
        live, found = crops.values[..., None].flatten(1).any(1).nonzero()[:, 0], None
        crops = crops if len(live) == len(rows) else crops.select(live)
        for part, pulled in self._parts(way, each, upper, crops, lower) if len(live) else ():
            if len(pulled) == len(rows):  # all at once: they need not be copied
                return [pulled.dense().reshape(*shape, *lower.shape)]
            found = entries.values.new_zeros(len(rows), *lower.shape) if found is None else found
            found[live[part]] = pulled.dense()
        found = entries.values.new_zeros(len(rows), *lower.shape) if found is None else found
        return [found.view(*shape, *lower.shape)]

    def _way(self, upper: Layer, lower: Layer, samples: Int[Tensor, " N"]) -> tuple[Way | None, bool]:
        """The way on which windows go down, if they do and pay; whether the constants verify each."""
        size = sum(layer.output.nbytes // len(layer.output) for layer in (upper, lower))
        inputs, few = self.frozen.inputs, _few(samples)
        if (lower,) != inputs and few and (size < ROOMY or by_pass([upper], [lower], inputs)):
            return None, False
        try:
            way = Way(self.frozen, upper, lower, min(self.most // COPIES, in_cache(upper.output.device)))
        except NotCropped:
            return None, False
        return way, few or (lower,) == inputs

    def _end(self, start: int, samples: Sequence[int], way: Way | None, upper: Layer, lower: Layer) -> int:
        """Where the part that starts at one of the cotangents ends, as memory allows."""
        sizes = [layer.output.nbytes // len(layer.output) for layer in (upper, lower)]
        if way is not None:
            return min(len(samples), start + max(1, self.most // (COPIES * max(sizes))))
        frozen = self.frozen
        largest = max(*(layer.output.nbytes for layer in (upper, lower, *frozen.layers)), *frozen.released.values())
        slots, taken = max(1, self.most // (COPIES * largest)), Counter[int]()
        for number in range(start, len(samples)):
            taken[samples[number]] += 1
            if taken[samples[number]] > slots:
                return number
        return len(samples)

    def _full(
        self, cotangents: Mapping[Layer, Float[Tensor, "N ..."]], samples: Int[Tensor, " N"], to: Sequence[Layer]
    ) -> list[Float[Tensor, "N ..."]]:
        """The products in full; cotangents of different samples share one."""
        batch, slots, taken = self.frozen.batch, [], Counter[int]()
        for b in samples.tolist():
            slots.append(taken[b])
            taken[b] += 1
        count = max(taken.values())
        if samples.tolist() == [*range(batch)] * count:
            whole = {layer: v.reshape(count, *layer.output.shape) for layer, v in cotangents.items()}
            return [found.flatten(0, 1) for found in self.frozen.vjps(whole, to)]
        slot = torch.tensor(slots, device=samples.device)
        whole = {
            layer: v.new_zeros(count, *layer.output.shape).index_put_((slot, samples), v)
            for layer, v in cotangents.items()
        }
        return [found[slot, samples] for found in self.frozen.vjps(whole, to)]


def _few(samples: Int[Tensor, " N"]) -> bool:
    """Whether products of these samples are too few of each for a full one that verifies them."""
    return len(samples) == 0 or int(torch.bincount(samples).max()) < FEW


def by_layer(some: Sequence[tuple[Layer, Int[Tensor, " _"], Float[Tensor, " _"]]]) -> dict[Layer, Entries]:
    """The entries of M cotangents, given by the layer at which each is, where in it, and what."""
    found: dict[Layer, dict[int, tuple[Tensor, Tensor]]] = {}
    for m, (layer, position, values) in enumerate(some):
        found.setdefault(layer, {})[m] = position, values
    return {layer: Entries.of(mine, layer.output[0].numel()) for layer, mine in found.items()}


def random_signs(count: int, like: Tensor) -> Float[Tensor, " count"]:
    """Signs at random, the same each time; torch's own random state stays as it is."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, (count,), generator=generator, device="cpu").to(like) * 2 - 1
