"""Stretches of the frozen network between two places, and those whose matrix has one entry a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ._frozen import Frozen
from ._graph import as_recorded

Of = Callable[[Tensor], Tensor]
"""A function g of the entries of a matrix with g(ab) = g(a) g(b): the entry, its size, or whether it is not zero."""


class NotFactored(Exception):
    """Raised where a stretch of the network has not the form that was looked for."""


class Stretch:
    """The linear map from a place of the network up to another, sample by sample.

    Args:
        frozen: the recorded network.
        above: the upper place.
        shape: the shape of the tensor there.
        below: the lower place.

    Raises:
        NotFactored: nothing leads from one to the other, or autograd cannot differentiate the product.
    """

    def __init__(self, frozen: Frozen, above: GradientEdge, shape: torch.Size, below: GradientEdge) -> None:
        self.frozen, self.ends, self.shape = frozen, (above, below), shape
        cotangent = torch.zeros(shape, dtype=frozen.output.dtype, device=frozen.output.device)
        with torch.inference_mode(False):
            self._cotangent = cotangent.clone().requires_grad_()
        self._product = self._grad(self._cotangent, create_graph=True)
        self.below_shape = self._product.shape
        if not self._product.requires_grad or self._product.numel() % frozen.batch:
            raise NotFactored

    def pull(self, y: Float[Tensor, "B height"]) -> Float[Tensor, "B width"]:
        """The vector-Jacobian product."""
        return self._grad(y.reshape(self.shape), create_graph=False).reshape(len(y), -1)

    def push(self, x: Float[Tensor, "B width"]) -> Float[Tensor, "B height"]:
        """The Jacobian-vector product: the derivative of the vector-Jacobian product by its cotangent.

        Raises:
            NotFactored: autograd does not know that derivative.
        """
        x = x.reshape(self.below_shape)
        with self.frozen.lock, torch.inference_mode(False), torch.enable_grad(), as_recorded(self.frozen.output.device):
            try:
                (y,) = torch.autograd.grad([self._product], [self._cotangent], [x], retain_graph=True)
            except RuntimeError as error:
                raise NotFactored from error
        return y.reshape(self.frozen.batch, -1)

    def _grad(self, cotangent: Tensor, create_graph: bool) -> Tensor:
        above, below = self.ends
        with self.frozen.lock, torch.inference_mode(False), torch.enable_grad(), as_recorded(self.frozen.output.device):
            (product,) = torch.autograd.grad(
                [above], [below], [cotangent], retain_graph=True, create_graph=create_graph, allow_unused=True
            )
        if product is None:
            raise NotFactored
        return product


@dataclass(frozen=True)
class Simple:
    """For each sample a matrix with one entry a row: ``(S x)[i] = scale[i] x[index[i]]``; or, turned, its transpose.

    Attributes:
        index: the column of the entry of each row.
        scale: the entry.
        width: the number of columns.
        turned: whether the transpose is meant.
    """

    index: Int[Tensor, "B rows"]
    scale: Float[Tensor, "B rows"]
    width: int
    turned: bool = False

    @property
    def transposed(self) -> Simple:
        """The transpose."""
        return Simple(self.index, self.scale, self.width, not self.turned)

    def extremes(self, high: Float[Tensor, "B n"], low: Float[Tensor, "B n"]) -> tuple[Tensor, Tensor]:
        """For each row the largest and the smallest entry times what its column gives, 0 among them."""
        if not self.turned:
            ends = self.scale * high.gather(1, self.index), self.scale * low.gather(1, self.index)
            return torch.maximum(*ends), torch.minimum(*ends)
        zero = high.new_zeros(len(high), self.width)
        ends = self.scale * high, self.scale * low
        largest = zero.scatter_reduce(1, self.index, torch.maximum(*ends), "amax")
        return largest, zero.scatter_reduce(1, self.index, torch.minimum(*ends), "amin")

    def apply(self, x: Float[Tensor, "B n"], of: Of) -> Float[Tensor, "B m"]:
        """The product with the matrix of g of the entries."""
        scale = of(self.scale.to(x.dtype))
        if not self.turned:
            return scale * x.gather(1, self.index)
        return x.new_zeros(len(x), self.width).scatter_add_(1, self.index, scale * x)


def simple(apply: Callable[[Tensor], Tensor], like: Float[Tensor, "B width"]) -> Simple:
    """Read off a matrix, known by its products, whose rows have one entry at most.

    With ``r = S 1`` the column of row ``i`` is ``(S j)[i] / r[i]``, where ``j`` holds the columns' numbers, in two
    digits so that it is exact in single precision. ``S t = r * t[column]`` at a random ``t`` certifies it.

    Args:
        apply: x -> S x.
        like: anything of the shape of x.

    Raises:
        NotFactored: a row has more entries.
    """
    width = like.shape[1]
    base = math.isqrt(width) + 1
    numbers = torch.arange(width, device=like.device)
    scale = apply(torch.ones_like(like))
    high, low = (
        (apply(digit.to(like.dtype).expand_as(like)) / scale).nan_to_num(0, 0, 0).round().long()
        for digit in (numbers // base, numbers % base)
    )
    index = (high * base + low).clamp_(0, width - 1)
    generator = torch.Generator().manual_seed(0)
    wave = 1 + torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like)
    expected = scale * wave.gather(1, index)
    error = (apply(wave) - expected).abs()
    if not (error <= 64 * torch.finfo(like.dtype).eps * expected.abs()).all():
        raise NotFactored
    return Simple(index, scale, width)
