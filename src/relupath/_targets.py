"""Targets: functionals that are linear in the network's output."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ._tested import TOLERANCE
from .errors import TargetError

Classes = SupportsIndex | Sequence[SupportsIndex] | Tensor


Where = Sequence[int] | Bool[Tensor, "..."]


@dataclass(frozen=True)
class Target:
    """A logit, or the difference of two.

    Attributes:
        plus: the class whose logit counts, one for all samples or one a sample.
        minus: the class whose logit is subtracted, or None; one for all samples or one a sample.
        where: coordinates of the places whose logits are summed, for an output (B, C, *places); None for (B, C).
    """

    plus: int | tuple[int, ...]
    minus: int | tuple[int | None, ...] | None = None
    where: tuple[tuple[int, ...], ...] | None = None

    def __call__(self, output: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        """The target's value for each sample.

        Raises:
            TargetError: the output has another shape, a class or a place is out of range, or there is not one class a
                sample.
        """
        value = self._pick(output, self.plus)
        if self.minus is None:
            return value
        if isinstance(self.minus, int):
            return value - self._pick(output, self.minus)
        subtracted = torch.tensor([d is not None for d in self.minus], device=output.device)
        return value - torch.where(subtracted, self._pick(output, tuple(d or 0 for d in self.minus)), 0)

    def label(self, sample: int) -> str:
        """What the target is for one sample, such as ``logit 936``."""
        plus, minus = (c[sample] if isinstance(c, tuple) else c for c in (self.plus, self.minus))
        text = f"logit {plus}" if minus is None else f"logit {plus} - logit {minus}"
        if self.where is None:
            return text
        return f"{text} at {self.where[0] if len(self.where) == 1 else f'{len(self.where)} places'}"

    def _pick(self, output: Float[Tensor, "B ..."], classes: int | tuple[int, ...]) -> Float[Tensor, " B"]:
        places = output.shape[2:]
        if output.ndim != 2 and self.where is None:
            _no_class(output)
        samples, count = output.shape[:2]
        each = (classes,) * samples if isinstance(classes, int) else classes
        if len(each) != samples:
            raise TargetError(f"{len(each)} classes for {samples} samples: give one class, or one a sample")
        for c in each:
            if not 0 <= c < count:
                raise TargetError(f"class {c} is out of range: the model has {count} classes, 0 to {count - 1}")
        rows, columns = torch.arange(samples, device=output.device), torch.tensor(each, device=output.device)
        if self.where is None:
            return output[rows, columns]
        for place in self.where:
            if len(place) != len(places) or not all(0 <= i < size for i, size in zip(place, places, strict=True)):
                raise TargetError(f"the place {place} is not in the output, whose places are {list(places)}")
        axes = torch.tensor(self.where, device=output.device).T
        return output[rows[:, None], columns[:, None], *axes[:, None]].sum(1)


def logit(c: Classes, where: Where | None = None) -> Target:
    """The output of class ``c``: one int for all samples, or one class a sample, shape (B,).

    Args:
        c: the class.
        where: for an output (B, C, *places), such as a segmentation map: one place, such as (y, x), or a Boolean mask
            of the places, whose logits are summed.
    """
    return Target(_classes(c), None, _places(where))


def contrast(c: Classes, d: Classes | Sequence[int | None], where: Where | None = None) -> Target:
    """The output of class ``c`` less that of class ``d``; each one int, or one class a sample, shape (B,).

    In a sequence for ``d``, None subtracts nothing: that sample's target is the logit of ``c``. ``where`` is as in
    ``logit``.
    """
    if isinstance(d, Sequence):
        return Target(_classes(c), tuple(None if one is None else _class(one) for one in d), _places(where))
    return Target(_classes(c), _classes(d), _places(where))


def _places(where: Where | None) -> tuple[tuple[int, ...], ...] | None:
    if where is None:
        return None
    if isinstance(where, Tensor):
        places = tuple(map(tuple, where.nonzero().tolist()))
        if not places:
            raise TargetError("the mask of places is empty: it must hold at least one True")
        return places
    try:
        return (tuple(_index(i) for i in where),)
    except TypeError as error:
        raise TargetError(f"where is one place, such as (y, x), or a Boolean mask of places; got {where!r}") from error


@dataclass(frozen=True, eq=False)
class Functional:
    """A target at one output: its value and its derivative, which is constant as the target is linear.

    Attributes:
        value: (B,).
        gradient: d value / d output, shape of the output.
        labels: what the target is, for each sample.
    """

    value: Float[Tensor, " B"]
    gradient: Float[Tensor, "B ..."]
    labels: tuple[str, ...]


TargetLike = Target | Callable[[Tensor], Tensor] | Classes | None


def resolve(target: TargetLike, output: Float[Tensor, "B ..."]) -> Functional:
    """The functional that a target means for this output; None means each sample's predicted class.

    Raises:
        TargetError: the target does not fit the output, gives no number a sample, or is not linear in the output.
    """
    function = _function(target, output)
    samples = len(output)
    with torch.inference_mode(False), torch.enable_grad():
        y = output.detach().clone().requires_grad_()
        value = function(y)
        if not isinstance(value, Tensor) or value.shape != (samples,) or not value.requires_grad:
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TargetError(f"a target must give one differentiable number a sample, shape [{samples}]; got {got}")
        (gradient,) = torch.autograd.grad(value.sum(), y)
    _verify_linear(function, y.detach(), value.detach(), gradient)
    name = getattr(function, "__name__", repr(function))
    labels = [function.label(b) if isinstance(function, Target) else name for b in range(samples)]
    return Functional(value.detach(), gradient, tuple(labels))


def _function(target: TargetLike, output: Tensor) -> Target | Callable[[Tensor], Tensor]:
    if target is None:
        return logit(output.argmax(-1)) if output.ndim == 2 else _no_class(output)
    if callable(target) and not isinstance(target, Tensor):
        return target
    return logit(target)


def _verify_linear(target: Callable[[Tensor], Tensor], y: Tensor, value: Tensor, gradient: Tensor) -> None:
    """Refuse a target that is not the same linear functional at y and at another output."""
    wave = torch.cos(torch.arange(y.numel(), device=y.device).to(y.dtype) * 1.3 + 0.7).view_as(y)
    with torch.no_grad():
        other = wave * (1 + y.abs().amax())
        pairs = ((y, value), (other, target(other)))
    for point, got in pairs:
        terms = (gradient * point).flatten(1)
        if not ((terms.sum(1) - got).abs() <= TOLERANCE[y.dtype] * (terms.abs().sum(1) + got.abs())).all():
            raise TargetError(
                "the target is not linear in the output, sample by sample; "
                "use logits, differences or weighted sums of them, not soft-max, norms or added constants"
            )


def _classes(c: Classes) -> int | tuple[int, ...]:
    values = c.tolist() if isinstance(c, Tensor) else c
    return tuple(map(_class, values)) if isinstance(values, list | tuple | range) else _class(values)


def _class(value: Any) -> int:
    try:
        return _index(value)
    except TypeError as error:
        raise TargetError(f"a class is an int, or one int a sample; got {value!r}") from error


def _index(value: SupportsIndex) -> int:
    if isinstance(value, bool):
        raise TypeError("a truth value is no class")
    return operator.index(value)


def _no_class(output: Tensor) -> Target:
    raise TargetError(
        f"the output has shape {list(output.shape)}, not (samples, classes): "
        "say where, logit(c, where=(y, x)) for an output (samples, classes, height, width), or give as target a "
        "function from the output to one number a sample"
    )
