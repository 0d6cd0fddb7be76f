"""Products of many cotangents: in windows where that is possible, else in full; a few at a time, as memory allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ._cropped import NotCropped, Way
from ._crops import Crops
from ._frozen import Frozen
from ._units import Layer
from .errors import IncompleteError

COPIES = 4
"""So many tensors of one cotangent's size are held at a time."""


FEW = 4
"""Fewer products than these are not worth the one more that verifies them."""


@dataclass(frozen=True)
class Products:
    """Vector-Jacobian products from layer to layer, many cotangents at once.

    Attributes:
        frozen: the recorded network.
        most: the bytes that they may take at once.
    """

    frozen: Frozen
    most: int

    def parts(
        self, upper: Layer, crops: Crops, lower: Layer, wanted: Int[Tensor, "N c"] | None = None
    ) -> Iterator[tuple[slice, Crops]]:
        """The products of all cotangents, part by part: which of them, and ``(d upper / d lower)^T cotangent``.

        They are verified: each of those in windows down to the one explained input by ``<v, upper> = <W, x> + sum
        <dv/ds, s>`` over the constants s; others at the end, their sum with signs at random beside one full product
        (of those of which not all channels are wanted, the sum over those that want the same).

        Args:
            upper: where the cotangents stand.
            crops: N cotangents.
            lower: the layer below.
            wanted: the only channels of the lower layer that are looked at afterwards; None: all.

        Raises:
            IncompleteError: a product is not what the full one, or what the constants say.
        """
        way = self._way(upper, lower)
        each = (lower,) == self.frozen.inputs
        check = _Check(self.frozen, upper, lower, len(crops), wanted)
        samples, start = crops.samples.tolist(), 0
        while start < len(crops):
            part = slice(start, self._end(start, samples, way, lower))
            some = crops.select(torch.arange(part.start, part.stop, device=crops.values.device))
            biases: list[Tensor] = []
            try:
                if way is None:
                    raise NotCropped
                pulled = way.pull(some, None if wanted is None else wanted[part], biases)
                if each:
                    self._verify(upper, some, lower, pulled, biases)
                else:
                    check.add(some, pulled, part)
            except NotCropped:
                way, pulled = None, self._full(upper, some, lower)
                if lower in self.frozen.inputs:
                    check.add(some, pulled, part)
            yield part, pulled
            start = part.stop
        check.close()

    def several(
        self, cotangents: Mapping[Layer, Float[Tensor, "K B ..."]], to: Sequence[Layer]
    ) -> list[Float[Tensor, "K B ..."]]:
        """What ``Frozen.vjps`` gives, in windows where one layer leads to one and that pays."""
        ((upper, v), *others), (lower, *more) = cotangents.items(), to
        if others or more or len(v) < FEW or self._way(upper, lower) is None:
            return self.frozen.vjps(cotangents, to)
        rows = v.flatten(0, 1)
        live = rows.flatten(1).any(1).nonzero()[:, 0]
        found = rows.new_zeros(len(rows), *lower.shape)
        crops = Crops(rows[live], upper.shape, live % len(v[0])).shrunk()
        for part, pulled in self.parts(upper, crops, lower):
            found[live[part]] = pulled.dense().to(found.dtype)
        return [found.view(*v.shape[:2], *lower.shape)]

    def _way(self, upper: Layer, lower: Layer) -> Way | None:
        try:
            return Way(self.frozen, upper, lower)
        except NotCropped:
            return None

    def _verify(self, upper: Layer, crops: Crops, lower: Layer, pulled: Crops, biases: list[Tensor]) -> None:
        """Refuse products with which the constants on the way do not add up."""
        below = torch.stack([pulled.dot(lower.output), *biases]).sum(0)
        above = crops.dot(upper.output)
        if not ((below[0] - above[0]).abs() <= self.frozen.tolerance * (below[1] + above[1])).all():
            raise _wrong(upper, lower)

    def _end(self, start: int, samples: Sequence[int], way: Way | None, lower: Layer) -> int:
        """Where the part that starts at one of the cotangents ends, as memory allows."""
        layers = [layer.output[0].numel() * layer.output.element_size() for layer in (*self.frozen.layers, lower)]
        if way is not None:
            return min(len(samples), start + max(1, self.most // (COPIES * (way.largest or max(layers)))))
        slots, taken = max(1, self.most // (COPIES * max(layers) * self.frozen.batch)), Counter[int]()
        for number in range(start, len(samples)):
            taken[samples[number]] += 1
            if taken[samples[number]] > slots:
                return number
        return len(samples)

    def _full(self, upper: Layer, crops: Crops, lower: Layer) -> Crops:
        """The products in full; cotangents of different samples share one."""
        slots, taken = [], Counter[int]()
        for b in crops.samples.tolist():
            slots.append(taken[b])
            taken[b] += 1
        slot = torch.tensor(slots, device=crops.values.device)
        cotangents = crops.values.new_zeros(max(taken.values()), *upper.output.shape)
        cotangents[slot, crops.samples] = crops.dense()
        (found,) = self.frozen.vjps({upper: cotangents}, [lower])
        return Crops(found[slot, crops.samples], lower.shape, crops.samples)


class _Check:
    """The sum of products in windows, with signs at random, beside the full product of the sum of their cotangents.

    Args:
        frozen: the recorded network.
        upper: where the cotangents stand.
        lower: the layer below.
        count: how many there are.
        wanted: the only channels that each product has, or None; those that have others than the first are left out.
    """

    def __init__(
        self, frozen: Frozen, upper: Layer, lower: Layer, count: int, wanted: Int[Tensor, "N c"] | None
    ) -> None:
        self.frozen, self.upper, self.lower = frozen, upper, lower
        self.above, self.below = torch.zeros_like(upper.output), torch.zeros_like(lower.output)
        self.size = lower.output.new_zeros(())
        self.empty = True
        self.signs = random_signs(count, self.above)
        self.seen = 1 if wanted is None else lower.output.new_zeros(lower.shape).index_fill_(0, wanted[0], 1)
        if wanted is not None:
            self.signs *= (wanted == wanted[0]).all(1)

    def add(self, crops: Crops, pulled: Crops, part: slice) -> None:
        """Add some cotangents and their products."""
        self.empty = False
        crops.sum_into(self.above, self.signs[part])
        pulled.sum_into(self.below, self.signs[part].to(self.below.dtype))
        self.size = torch.maximum(self.size, pulled.values.abs().amax().to(self.size.dtype))

    def close(self) -> None:
        """Compare the sums, whose round-off is that of so many terms with signs at random.

        Raises:
            IncompleteError: they differ.
        """
        if self.empty:
            return
        if self.lower in self.frozen.inputs:
            full = self.frozen.to_inputs({self.upper: self.above})[self.frozen.inputs.index(self.lower)]
        else:
            (full,) = self.frozen.vjp({self.upper: self.above}, [self.lower])
        if (
            not (full * self.seen - self.below).abs().amax()
            <= self.frozen.tolerance * self.size * len(self.signs) ** 0.5
        ):
            raise _wrong(self.upper, self.lower)


def _wrong(upper: Layer, lower: Layer) -> IncompleteError:
    return IncompleteError(
        f"between layers {lower.name!r} and {upper.name!r} the products in windows are not the full ones"
    )


def random_signs(count: int, like: Tensor) -> Float[Tensor, " count"]:
    """Signs at random, the same each time; torch's own random state stays as it is."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, (count,), generator=generator).to(like) * 2 - 1
