"""Where the pieces of piecewise-linear operations end: the first t at which h + t r meets a kink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ._calls import Call

Kink = tuple[Any, int]
"""A bound, and the piece to which it belongs itself: -1 the one below, 1 the one above, 0 neither."""


def first_crossing(call: Call, rate: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."] | None:
    """For every output of a piecewise-linear operation on h, the first t >= 0 at which its piece changes.

    Args:
        call: the operation on plain arguments, h the first one.
        rate: r, how fast h moves.

    Returns:
        Infinite where the piece never changes; None for an operation whose kinks are not known.
    """
    name = call.name.removesuffix("_with_indices")
    if name in POOLS:
        return _overtaken(call, rate, *POOLS[name])
    kinks = KINKS[name](call) if name in KINKS else None
    if kinks is None or any(not isinstance(bound, int | float) for bound, _ in kinks):
        return None
    h, t = call.first, torch.full_like(call.first, torch.inf)
    for bound, side in kinks:
        gap = bound - h
        leaves = rate * side < 0 if side else rate != 0
        meets = torch.where(gap * rate > 0, gap / rate, torch.inf)
        t = torch.minimum(t, torch.where((gap == 0) & leaves, 0.0, meets))
    return t


def _overtaken(call: Call, rate: Tensor, axes: int, pool: Callable[..., Any]) -> Tensor:
    """For every window of a max pooling, the first t >= 0 at which another entry overtakes the largest.

    Entries that move alike, to round-off, do not overtake each other.
    """
    names = ("kernel_size", "stride", "padding", "dilation")
    kernel, stride, padding, dilation = (call.argument(i, name) for i, name in enumerate(names, start=1))
    ceil = bool(call.argument(5, "ceil_mode", False))
    size, shift = _each(kernel, axes, 1), _each(dilation, axes, 1)
    step, pad = _each(stride, axes, 0) or size, _each(padding, axes, 0)
    step = size if step == (0,) * axes else step
    y, index = pool(call.first, size, step, pad, shift, ceil_mode=ceil, return_indices=True)
    winner = rate.flatten(-axes).gather(-1, index.flatten(-axes)).view_as(y)
    margins: list[int] = []
    for n, k, s, p, d, out in zip(rate.shape[-axes:], size, step, pad, shift, y.shape[-axes:], strict=True):
        margins = [p, (out - 1) * s + d * (k - 1) + 1 - n - p, *margins]
    h, r = F.pad(call.first, margins, value=-torch.inf), F.pad(rate, margins)
    t = torch.full_like(y, torch.inf)
    for offset in product(*map(range, size)):
        starts = [o * d for o, d in zip(offset, shift, strict=True)]
        entry, its_rate = (_every(v, starts, step, y.shape[-axes:]) for v in (h, r))
        faster = its_rate - winner
        alike = 16 * torch.finfo(rate.dtype).eps * (its_rate.abs() + winner.abs())
        t = torch.minimum(t, torch.where(faster > alike, (y - entry) / faster, torch.inf))
    return t


def _every(h: Tensor, starts: Sequence[int], step: Sequence[int], shape: Sequence[int]) -> Tensor:
    """From each start on the last axes, every so many entries: one for each place of the shape."""
    for axis, (start, s, size) in enumerate(zip(starts, step, shape, strict=True), start=h.ndim - len(shape)):
        h = h.narrow(axis, start, (size - 1) * s + 1)[(slice(None),) * axis + (slice(None, None, s),)]
    return h


def _each(value: Any, axes: int, default: int) -> tuple[int, ...]:
    """One number for each axis."""
    if value is None or value in ((), []):
        return (default,) * axes
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes // len(value))


def _zero(call: Call) -> list[Kink]:
    return [(0, -1)]


def _hardtanh(call: Call) -> list[Kink]:
    return [(call.argument(1, "min_val", -1.0), -1), (call.argument(2, "max_val", 1.0), 1)]


def _clamp(call: Call) -> list[Kink]:
    if call.name in ("clamp_min", "clamp_max"):
        bounds = {call.name[-3:]: call.argument(1, call.name[-3:])}
    else:
        bounds = {"min": call.argument(1, "min"), "max": call.argument(2, "max")}
    return [(b, _side_of_clamp(which)) for which, b in bounds.items() if b is not None]


def _side_of_clamp(which: str) -> int:
    """The piece to which a bound of clamp belongs itself, which differs between releases of torch."""
    with torch.enable_grad():
        h = torch.zeros(1, requires_grad=True)
        (slope,) = torch.autograd.grad(h.clamp(**{which: 0}).sum(), h)
    within = 1 if which == "min" else -1
    return within if bool(slope) else -within


def _shrink(call: Call) -> list[Kink]:
    size = call.argument(1, "lambd", 0.5)
    return [(-size, 1), (size, -1)]


POOLS = {"max_pool1d": (1, F.max_pool1d), "max_pool2d": (2, F.max_pool2d), "max_pool3d": (3, F.max_pool3d)}
KINKS: dict[str, Callable[[Call], list[Kink]]] = {
    "relu": _zero,
    "leaky_relu": _zero,
    "prelu": _zero,
    "rrelu": _zero,
    "relu6": lambda call: [(0, -1), (6, 1)],
    "hardtanh": _hardtanh,
    "hardsigmoid": lambda call: [(-3, -1), (3, 1)],
    "threshold": lambda call: [(call.argument(1, "threshold"), -1)],
    "hardshrink": _shrink,
    "softshrink": _shrink,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "abs": lambda call: [(0, 0)],
    "absolute": lambda call: [(0, 0)],
}
"""The kinks of the elementwise operations, and on which side autograd stands where h is the bound itself."""
