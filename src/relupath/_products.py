"""Products of many cotangents: in windows where that is possible, else in full; a few at a time, as memory allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ._cropped import NotCropped, Way
from ._crops import Crops
from ._frozen import Frozen
from ._tested import TOLERANCE
from ._units import Layer
from .errors import IncompleteError

COPIES = 4
"""So many tensors of one cotangent's size are held at a time."""


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
        self, upper: Layer, crops: Crops, lower: Layer, wanted: Int[Tensor, "N c"] | None = None, verify: bool = True
    ) -> Iterator[tuple[slice, Crops]]:
        """The products of all cotangents, part by part: which of them, and ``(d upper / d lower)^T cotangent``.

        Args:
            upper: where the cotangents stand.
            crops: N cotangents.
            lower: the layer below.
            wanted: the only channels of the lower layer that are looked at afterwards; None: all.
            verify: whether the first product is compared with the full one.

        Raises:
            IncompleteError: they differ.
        """
        try:
            way = Way(self.frozen, upper, lower)
        except NotCropped:
            way = None
        start = 0
        while start < len(crops):
            part = slice(start, min(len(crops), start + self._count(way, lower)))
            some = crops.select(torch.arange(part.start, part.stop, device=crops.values.device))
            pulled = None
            if way is not None:
                try:
                    pulled = way.pull(some, None if wanted is None else wanted[part])
                except NotCropped:
                    way = None
            if pulled is None:
                yield part, self._full(upper, some, lower)
            else:
                if verify and start == 0:
                    self._verify(upper, some, lower, pulled)
                yield part, pulled
            start = part.stop

    def _count(self, way: Way | None, lower: Layer) -> int:
        """How many at once."""
        layers = [layer.output[0].numel() * layer.output.element_size() for layer in (*self.frozen.layers, lower)]
        each = way.largest if way is not None and way.largest else max(layers)
        return max(1, self.most // (COPIES * each))

    def _full(self, upper: Layer, crops: Crops, lower: Layer) -> Crops:
        """The products in full; cotangents of different samples share one."""
        slots, taken = [], [0] * self.frozen.batch
        for b in crops.samples.tolist():
            slots.append(taken[b])
            taken[b] += 1
        slot = torch.tensor(slots, device=crops.values.device)
        cotangents = crops.values.new_zeros(max(taken), *upper.output.shape)
        cotangents[slot, crops.samples] = crops.dense()
        (found,) = self.frozen.vjps({upper: cotangents}, [lower])
        return Crops(found[slot, crops.samples], lower.shape, crops.samples)

    def _verify(self, upper: Layer, crops: Crops, lower: Layer, pulled: Crops) -> None:
        first = torch.zeros(1, dtype=torch.int64, device=crops.values.device)
        full, mine = self._full(upper, crops.select(first), lower), pulled.select(first).all_places()
        full = full if mine.channels is None else full.of_channels(mine.channels)
        error, size = (full.values - mine.values).abs().amax(), full.values.abs().amax()
        if not error <= TOLERANCE[full.values.dtype] * size:
            raise IncompleteError(
                f"between layers {lower.name!r} and {upper.name!r} a product in windows is not the full one"
            )
