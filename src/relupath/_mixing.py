"""The operation that mixes: a convolution or a linear map, as patches of its input times a matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ._simple import NotFactored, Of

TILE = 2**17
"""How many entries of the patches are looked at together: so many fit in a processor's cache."""
INNER = 64
"""From patches of so many entries on, they stand in a row in memory."""

INPUT = {"ConvolutionBackward0": 0, "AddmmBackward0": 1, "MmBackward0": 0}
"""Operations that mix, as autograd names them, and which of their arguments is the signal."""


@dataclass(frozen=True)
class Mixing(ABC):
    """A linear map of each sample, ``z[g, o, l] = sum_j weight[g, o, j] patch[g, j, l]``.

    Attributes:
        weight: for each of G groups, from the J entries of a patch to O outputs.
        size: the shape of one sample of the input.
    """

    weight: Float[Tensor, "G O J"]
    size: tuple[int, ...]

    @abstractmethod
    def patches(self, x: Float[Tensor, "B n"]) -> Float[Tensor, "B G J L"]:
        """The entries of x from which each place of the output is mixed, 0 outside."""

    @abstractmethod
    def folded(self, patches: Float[Tensor, "B G J L"]) -> Float[Tensor, "B n"]:
        """The transpose of ``patches``: the sum of what the patches hold of each entry."""

    def placed(self, z: Float[Tensor, "B G O L"]) -> Float[Tensor, "B m"]:
        """The output in the order in which the network has it."""
        return z.flatten(1)

    def taken(self, z: Float[Tensor, "B m"]) -> Float[Tensor, "B G O L"]:
        """The inverse of ``placed``."""
        return z.reshape(len(z), *self.weight.shape[:2], -1)

    def apply(self, x: Float[Tensor, "B n"], of: Of) -> Float[Tensor, "B m"]:
        """The product with the matrix of g of the entries."""
        weight, patches = self.weight, self.patches(x)
        used = patches.any(3).flatten(0, 1).any(0).nonzero()[:, 0]
        if 2 * len(used) < patches.shape[2]:  # such as one channel of many
            weight, patches = weight[:, :, used], patches[:, :, used]
        return self.placed(of(weight.to(x.dtype)) @ patches)

    def pull(self, z: Float[Tensor, "B m"], of: Of) -> Float[Tensor, "B n"]:
        """The product with its transpose."""
        return self.folded(of(self.weight.to(z.dtype)).mT @ self.taken(z))

    def extremes(self, high: Float[Tensor, "B n"], low: Float[Tensor, "B n"]) -> tuple[Tensor, Tensor]:
        """For each output the largest and the smallest entry times what its input gives, 0 among them."""
        ends = [
            torch.stack([torch.stack(_extremes(w, h, l)) for w, h, l in zip(self.weight, *patches, strict=True)], 1)
            for patches in zip(self.patches(high), self.patches(low), strict=True)
        ]
        largest, smallest = torch.stack(ends, 1)
        return self.placed(largest), self.placed(smallest)


@dataclass(frozen=True)
class Convolution(Mixing):
    """A convolution over one or two axes.

    Attributes:
        window: kernel size, dilation, padding and stride.
    """

    window: Mapping[str, tuple[int, int]]

    def patches(self, x: Float[Tensor, "B n"]) -> Float[Tensor, "B G J L"]:
        """The windows of the kernel."""
        groups, _, entries = self.weight.shape
        unfolded = F.unfold(x.reshape(len(x), *self.size), **self.window)
        return unfolded.view(len(x), groups, entries, -1)

    def folded(self, patches: Float[Tensor, "B G J L"]) -> Float[Tensor, "B n"]:
        """The sum over the windows that hold an entry."""
        return F.fold(patches.flatten(1, 2), self.size[1:], **self.window).flatten(1)


@dataclass(frozen=True)
class Linear(Mixing):
    """A linear map of the last axis."""

    def patches(self, x: Float[Tensor, "B n"]) -> Float[Tensor, "B G J L"]:
        """The places side by side."""
        return x.reshape(len(x), 1, *self.size).mT

    def folded(self, patches: Float[Tensor, "B G J L"]) -> Float[Tensor, "B n"]:
        """The places as they stand."""
        return patches.mT.flatten(1)

    def placed(self, z: Float[Tensor, "B G O L"]) -> Float[Tensor, "B m"]:
        """The outputs of each place in a row."""
        return z.mT.flatten(1)

    def taken(self, z: Float[Tensor, "B m"]) -> Float[Tensor, "B G O L"]:
        """The inverse of ``placed``."""
        return z.reshape(len(z), 1, -1, self.weight.shape[1]).mT


def mixing(node: Any, batch: int, shape: torch.Size) -> Mixing:
    """What a node of the autograd graph mixes, its input having this shape.

    Raises:
        NotFactored: it is transposed, over three axes, or does not keep the samples apart.
    """
    if node.name() != "ConvolutionBackward0":
        return Linear(node._saved_mat2.detach().mT[None], (shape[0] // batch, shape[1]))
    if node._saved_transposed or len(shape) not in (3, 4) or shape[0] != batch:
        raise NotFactored
    weight = node._saved_weight.detach()
    one = len(shape) == 3
    names = {"kernel_size": weight.shape[2:], "dilation": node._saved_dilation, "padding": node._saved_padding,
             "stride": node._saved_stride}  # fmt: skip
    window = {name: (int(name != "padding"), *v)[-2:] if one else tuple(v) for name, v in names.items()}
    size = (shape[1], 1, shape[2]) if one else tuple(shape[1:])
    return Convolution(weight.reshape(node._saved_groups, -1, weight[0].numel()), size, window)


def _extremes(
    weight: Float[Tensor, "O J"], high: Float[Tensor, "J L"], low: Float[Tensor, "J L"]
) -> tuple[Float[Tensor, "O L"], Float[Tensor, "O L"]]:
    """``max_j`` and ``min_j`` of ``weight * high`` and ``weight * low`` together, where high >= 0 >= low."""
    entries, places = high.shape
    inner = entries >= INNER
    results = high.new_zeros(2, len(weight), places)
    sides = [side for side in (high, low) if side.any()]
    tile = max(1, TILE // entries)
    for start in range(0, places, tile):
        cuts = [side[:, start : start + tile] for side in sides]
        cuts = [(cut.T if inner else cut).contiguous() for cut in cuts]
        terms = torch.empty_like(cuts[0]) if cuts else high
        here = results[:, :, start : start + tile]
        for o, row in enumerate(weight):
            for cut in cuts:
                torch.mul(cut, row if inner else row[:, None], out=terms)
                torch.maximum(here[0, o], terms.amax(int(inner)), out=here[0, o])
                torch.minimum(here[1, o], terms.amin(int(inner)), out=here[1, o])
    return results[0], results[1]
