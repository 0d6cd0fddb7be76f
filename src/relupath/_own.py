"""Operations that a user teaches: for each, the slope with which it is straight at x."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.library import CustomOpDef
from torch.overrides import wrap_torch_function

from ._calls import HOMES, Call, leaves
from ._gates import TABLE, Rule
from ._straight import NotAffine, Straight, WithSlope
from .errors import UsageError

Slope = Callable[..., Tensor]
RULE = "raised by a rule given to relupath.freezes"


def freezes(operation: Any) -> Callable[[Slope], Slope]:
    """Teach how an elementwise activation f is straight at h: ``f(h) = slope * h + rest``, the rest counted as bias.

    ::

        @relupath.freezes(Snake)
        def slope(module, h):
            return 1 + torch.sin(h) * torch.sinc(h / torch.pi)  # f(h) / h, finite at h = 0

    For a gate ``f(h) = h * phi(h)`` the slope is phi(h) and no rest remains. Whatever the slope, the decomposition is
    exact: ``rest = f(h) - slope * h`` is taken from the values.

    Args:
        operation: a subclass of nn.Module (the slope is called with the module and its input), a torch function, an
            operator of ``torch.ops`` or ``torch.library.custom_op``, or a subclass of torch.autograd.Function whose
            ``apply`` is called on the class (the slope is called with the operation's own arguments). From then on
            such a class announces its calls, as torch's own functions do; it computes what it did.

    Raises:
        UsageError: calls of the operation cannot be seen.

    Source: section 6 of the paper (gates ``x * phi(x)``).
    """

    def register(slope: Slope) -> Slope:
        TABLE.update(dict.fromkeys(_spellings(operation), Rule("gate", _rule(slope), activation=True)))
        return slope

    return register


def _spellings(operation: Any) -> list[Any]:
    """The functions as which torch announces the calls of an operation.

    Raises:
        UsageError: it does not.
    """
    if isinstance(operation, type) and issubclass(operation, nn.Module):
        return [_announced(operation, "forward")]
    if isinstance(operation, type) and issubclass(operation, torch.autograd.Function):
        return [_announced(operation, "apply")]
    if isinstance(operation, CustomOpDef):
        operation = operation._opoverload
    if isinstance(operation, torch._ops.OpOverload):
        return [operation, operation.overloadpacket]
    if isinstance(operation, torch._ops.OpOverloadPacket):
        return [operation, *(getattr(operation, name) for name in operation.overloads())]  # type: ignore[no-untyped-call]
    name = getattr(operation, "__name__", "")
    spellings = [f for home in HOMES if callable(f := getattr(home, name, None))] if name else []
    if not isinstance(operation, type) and any(f is operation for f in spellings):
        return spellings
    if not isinstance(operation, FunctionType) or operation.__code__.co_filename != torch.overrides.__file__:
        name = getattr(operation, "__qualname__", repr(operation))
        raise UsageError(
            f"calls of {name} cannot be seen: torch announces its own functions, operators (torch.library.custom_op) "
            "and modules. Give the nn.Module class that calls it, or decorate it with "
            "torch.overrides.wrap_torch_function(lambda x: (x,))"
        )
    return [operation]


def _announced(owner: Any, method: str) -> Callable[..., Any]:
    """Let a class announce the calls of one of its methods, as torch's own functions do; nothing else changes."""
    before = getattr(owner, method)
    wrapped = wrap_torch_function(lambda *args, **kwargs: leaves((args, kwargs)))(before)
    wrapped.__name__ = owner.__name__

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapped(*args, **kwargs) if cls is owner else super(owner, cls).apply(*args, **kwargs)

    setattr(owner, method, classmethod(apply) if method == "apply" else wrapped)
    return wrapped


def _rule(slope: Slope) -> Callable[[Call], Straight]:
    def freeze(call: Call) -> Straight:
        """As the user's rule says: the slope it gives, the rest as intercept."""
        if len(call.signals) != 1 or call.mutates:
            raise NotAffine("its rule is for one argument that depends on the input, and not in place")
        (h,) = call.signals
        frozen = call.on(torch.Tensor.detach)
        with torch.no_grad():
            alone = call.on(torch.clone)
            y = alone()
            if any(t._version for t in alone.tensors):
                raise NotAffine("it writes to its argument")
            try:
                phi = slope(*frozen.args, **frozen.kwargs)
            except Exception as error:
                error.add_note(RULE)
                raise
        fits = isinstance(y, Tensor) and y.shape == h.shape and isinstance(phi, Tensor) and phi.shape in ((), h.shape)
        if not fits or not torch.isfinite(phi).all():
            raise NotAffine("its rule must give a finite slope of the shape of its output and its argument")
        with torch.no_grad():
            rest = y - phi * h
            exact = bool((rest.abs() <= 16 * torch.finfo(y.dtype).eps * y.abs()).all())
        return Straight(WithSlope.apply(h, (y,), phi, False), None if exact else rest)

    return freeze
