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
    """Identity on the value ``y`` whose derivative with respect to ``h`` is the given slope.

    A slope that is not the rule's own may be written to by others, and is guarded as what autograd saves.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, y: tuple[Tensor], slope: Tensor, own: bool = True) -> Tensor:
        if own:
            ctx.slope = slope
        else:
            ctx.save_for_backward(slope)
        return y[0]  # in a tuple, so that autograd does not take it for a view of an argument

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors or (ctx.slope,)
        return grads[0] * slope.to(grads[0].dtype), None, None, None


class Centred(torch.autograd.Function):
    """Identity on the value ``y`` whose derivative with respect to ``h`` is that of ``(h - mean(h)) * scale * weight``.

    The mean is taken over some axes, after the second axis has been cut into groups, where there are groups.
    """

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, y: tuple[Tensor], scale: Tensor, weight: Tensor | None, axes: tuple[int, ...],
        groups: int | None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(weight)
        ctx.scale, ctx.axes, ctx.groups = scale, axes, groups
        return y[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (g,) = ctx.saved_tensors, grads
        scaled = g * (1 if weight is None else weight.to(g.dtype))
        if ctx.groups is not None:
            scaled = scaled.reshape(len(scaled), ctx.groups, -1, *scaled.shape[2:])
        scaled.mul_(ctx.scale.to(g.dtype))
        return (scaled.sub_(scaled.mean(ctx.axes, keepdim=True)).reshape(g.shape), *[None] * 5)


def valued(straight: Tensor, value: Tensor) -> Tensor:
    """The value of the real operation with the derivative of its straight form."""
    output: Tensor = WithSlope.apply(straight, (value.detach(),), straight.new_ones(()))
    return output
