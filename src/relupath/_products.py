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
        self, upper: Layer, crops: Crops, lower: Layer, wanted: Int[Tensor, "N c"] | None = None
    ) -> Iterator[tuple[slice, Crops]]:
        """The products of all cotangents, part by part: which of them, and ``(d upper / d lower)^T cotangent``.

        Those down to an explained input are verified, ``<v, upper> = <W, x> + sum <dv/ds, s>`` over the constants s:
        each, or their sum; of those in windows between hidden layers the first is compared with the full one.

        Args:
            upper: where the cotangents stand.
            crops: N cotangents.
            lower: the layer below.
            wanted: the only channels of the lower layer that are looked at afterwards; None: all.

        Raises:
            IncompleteError: a product in windows is not the full one.
        """
        way = self._way(upper, lower)
        start = 0
        while start < len(crops):
            part = slice(start, min(len(crops), start + self._count(way, lower)))
            some = crops.select(torch.arange(part.start, part.stop, device=crops.values.device))
            biases: list[Tensor] = []
            try:
                if way is None:
                    raise NotCropped
                pulled = way.pull(some, None if wanted is None else wanted[part], biases)
                self._verify(upper, some, lower, pulled, biases, start == 0)
            except NotCropped:
                way, pulled = None, self._full(upper, some, lower)
                if lower in self.frozen.inputs:
                    self._account(upper, some, lower, pulled)
            yield part, pulled
            start = part.stop

    def _way(self, upper: Layer, lower: Layer) -> Way | None:
        try:
            return Way(self.frozen, upper, lower)
        except NotCropped:
            return None

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

    def _verify(
        self, upper: Layer, crops: Crops, lower: Layer, pulled: Crops, biases: list[Tensor], first: bool
    ) -> None:
        """Refuse products in windows that are wrong."""
        tolerance = TOLERANCE[crops.values.dtype]
        if (lower,) == self.frozen.inputs:
            below = torch.stack([pulled.dot(lower.output), *biases]).sum(0)
            error, size = (below[0] - crops.dot(upper.output)[0]).abs(), below[1]
        elif first:
            one = torch.zeros(1, dtype=torch.int64, device=crops.values.device)
            full, mine = self._full(upper, crops.select(one), lower), pulled.select(one).all_places()
            full = full if mine.channels is None else full.of_channels(mine.channels)
            error, size = (full.values - mine.values).abs().amax(), full.values.abs().amax()
        else:
            return
        if not (error <= tolerance * size).all():
            raise IncompleteError(
                f"between {lower.name!r} and {upper.name!r} a product in windows is not what the full one gives"
            )

    def _account(self, upper: Layer, crops: Crops, lower: Layer, pulled: Crops) -> None:
        """Refuse full products down to an input whose sum, with signs at random, is not what the constants say."""
        coins = torch.randint(2, (len(crops),), generator=torch.Generator().manual_seed(0))
        signs = (coins * 2 - 1).to(crops.values)
        total, mine = torch.zeros_like(upper.output), torch.zeros_like(lower.output)
        crops.sum_into(total, signs)
        pulled.sum_into(mine, signs)
        whole = self.frozen.to_inputs({upper: total})[self.frozen.inputs.index(lower)]
        if not (mine - whole).abs().amax() <= TOLERANCE[whole.dtype] * pulled.values.abs().amax() * len(crops):
            raise IncompleteError(f"the single products from {upper.name!r} do not add up to that of their sum")
