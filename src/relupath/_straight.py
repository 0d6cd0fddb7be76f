"""The straight form of one operation: its output as autograd shall see it, and its constant."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class NotAffine(Exception):
    """Raised by a rule whose operation is not affine at the input; the text completes "... because"."""


class Untraceable(NotAffine):
    """Raised where what comes out could not even be told to depend on the input."""


class Straight(NamedTuple):
    """The output of an operation as autograd shall see it, its constants ``c`` (None: zero), how it was treated.

    The kind is None where it is the rule's.
    """

    output: Any
    constant: Any = None
    kind: str | None = None


class WithSlope(torch.autograd.Function):
    """Identity on the value ``y`` whose derivative with respect to ``h`` is the given slope."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, y: tuple[Tensor], slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return y[0]  # in a tuple, so that autograd does not take it for a view of an argument

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope.to(grads[0].dtype), None, None


def valued(straight: Tensor, value: Tensor) -> Tensor:
    """The value of the real operation with the derivative of its straight form."""
    output: Tensor = WithSlope.apply(straight, (value.detach(),), straight.new_ones(()))
    return output
