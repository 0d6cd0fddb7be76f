"""Products: what scales a signal is frozen at the input, as a gate (sigmoid, attention) or a scale (normalisation)."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from ._calls import Call
from ._marks import gating
from ._straight import NotAffine, Straight, WithSlope, valued


def product(call: Call) -> Straight:
    """Linear in one signal while the other factors are constant, or frozen as gates."""
    if len(call.signals) == 1:
        return Straight(call())
    gates = [gating(t) for t in call.signals]
    if gates.count(min(gates)) == 1:
        return Straight(_carried(call, gates.index(min(gates))))
    if call.carry is None:
        raise NotAffine(
            "it multiplies two signals, and neither or both come out of an activation: choose what carries on with "
            "freeze(..., carry='first'), 'second' or 'half'"
        )
    if call.carry != "half":
        return Straight(_carried(call, 0 if call.carry == "first" else len(gates) - 1))
    shares = [_carried(call, kept) for kept in range(len(gates))]
    return Straight(valued(torch.stack(shares).mean(0), shares[0]))


def _carried(call: Call, kept: int) -> Any:
    """The product with every signal frozen but the one at a position."""
    if call.mutates:
        raise NotAffine("it multiplies two signals in place")
    seen = itertools.count()
    return call.on(lambda t: t.detach() if t.requires_grad and next(seen) != kept else t)()


def quotient(call: Call) -> Straight:
    divisor = call.argument(1, "other")
    if isinstance(divisor, Tensor) and divisor.requires_grad:
        raise NotAffine("it divides by a signal that is not a frozen scale")
    if call.kwargs.get("rounding_mode") is not None:
        raise NotAffine("it rounds")
    return Straight(call())


def frozen_gate(call: Call) -> Straight:
    """Sigmoid, soft-max, a standard deviation: frozen at the input, it may scale signals."""
    return Straight(call.on(torch.Tensor.detach)())


def normalised(call: Call) -> Straight:
    """Layer, group and instance norm: the mean is subtracted, the scale 1/std is frozen, weight and bias follow."""
    h, name = call.argument(0, "input"), call.name
    view: tuple[int, ...] = ()
    if name == "layer_norm":
        axes, weight, bias, eps = range(-len(call.argument(1, "normalized_shape")), 0), *_affine_arguments(call, 2)
        groups = None
    elif name == "group_norm":
        groups, (weight, bias, eps) = call.argument(1, "num_groups"), _affine_arguments(call, 2)
        axes, view = range(2, h.ndim + 1), (-1, *[1] * (h.ndim - 2))
    else:
        if not call.argument(5, "use_input_stats", True):
            raise NotAffine("it uses running statistics")
        weight, bias, eps = call.argument(3, "weight"), call.argument(4, "bias"), call.argument(7, "eps", 1e-5)
        groups, axes, view = None, range(2, h.ndim), (-1, *[1] * (h.ndim - 2))
    if len(call.signals) != 1:
        raise NotAffine("its weights depend on the input")
    grouped = h if groups is None else h.unflatten(1, (groups, -1))
    centred = grouped - grouped.mean(tuple(axes), keepdim=True)
    with torch.no_grad():
        scale = torch.rsqrt(centred.square().mean(tuple(axes), keepdim=True) + eps)
        y = call()
    z = (centred * scale).reshape(h.shape)
    z = z if weight is None else z * weight.view(view or weight.shape)
    constant = None if bias is None else bias.view(view or bias.shape)
    return Straight(valued(z, y), constant)


def _affine_arguments(call: Call, position: int) -> tuple[Any, Any, float]:
    weight, bias = call.argument(position, "weight"), call.argument(position + 1, "bias")
    return weight, bias, call.argument(position + 2, "eps", 1e-5)


def rms_norm(call: Call) -> Straight:
    """``h / rms(h) * weight``: the scale 1/rms is frozen."""
    h, shape = call.argument(0, "input"), call.argument(1, "normalized_shape")
    weight, eps = call.argument(2, "weight"), call.argument(3, "eps")
    with torch.no_grad():
        y, axes = call(), tuple(range(-len(shape), 0))
        scale = torch.rsqrt(h.square().mean(axes, keepdim=True) + (torch.finfo(h.dtype).eps if eps is None else eps))
        scale = scale if weight is None else scale * weight
    return Straight(WithSlope.apply(h, (y,), scale))


def normalize(call: Call) -> Straight:
    """``h / max(norm(h), eps)``: the norm is frozen."""
    h, p, dim, eps = call.argument(0, "input"), *(call.argument(i + 1, n, d) for i, (n, d) in enumerate(_NORMALIZE))
    with torch.no_grad():
        y, scale = call(), 1 / h.norm(p, dim, keepdim=True).clamp(min=eps)
    return Straight(WithSlope.apply(h, (y,), scale))


_NORMALIZE = (("p", 2.0), ("dim", 1), ("eps", 1e-12))


def attention(call: Call) -> Straight:
    """Scaled dot-product attention: the probabilities are frozen gates of the values."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    q, k, v, mask, p, causal = (call.argument(i, name) for i, name in enumerate(names))
    if p:
        raise NotAffine("its dropout is active")
    if not v.requires_grad:
        raise NotAffine("its values are constant")
    with torch.no_grad():
        y, scale = call(), call.kwargs.get("scale")
        if call.kwargs.get("enable_gqa"):
            k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
        logits = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if causal:
            mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        gates = logits.softmax(-1)
    values = v.repeat_interleave(q.shape[-3] // v.shape[-3], -3) if call.kwargs.get("enable_gqa") else v
    return Straight(valued(gates @ values, y))


def glu(call: Call) -> Straight:
    """``a * sigmoid(b)`` of the two halves: the sigmoid is the gate."""
    signal, gate = call.argument(0, "input").chunk(2, call.argument(1, "dim", -1))
    with torch.no_grad():
        y, gate = call(), gate.detach().sigmoid()
    return Straight(WithSlope.apply(signal, (y,), gate))


def power(call: Call) -> Straight:
    """A power above 1 of an activation, such as squared ReLU: ``f(h) = h * phi(h)``."""
    exponent = call.argument(1, "exponent", 2)
    if isinstance(exponent, Tensor) or not exponent > 1 or not gating(call.first) or call.mutates:
        raise NotAffine("it is a power of a signal")
    h = call.first
    with torch.no_grad():
        y = call()
        slope = torch.where(h == 0, 0, y / h)
    return Straight(WithSlope.apply(h, (y,), slope))
