"""Products: what scales a signal is frozen at the input, as a gate (sigmoid, attention) or a scale (normalisation)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._calls import Call, written
from ._marks import gating, mark_of
from ._straight import Centred, NotAffine, Straight, WithSlope, valued


def product(call: Call) -> Straight:
    """Linear in one signal; of several, the one that comes out of an activation is the gate, or as chosen."""
    factors = [i for i, t in enumerate(call.tensors) if t.requires_grad]
    if len(factors) == 1:
        return Straight(call())
    calls, kind = _carried(call, factors)
    return Straight(written(call, _shared([one() for one in calls])), kind=kind)


def added_product(call: Call) -> Straight:
    """A product and a term, such as ``addmm`` or ``bilinear``: the product as any other, constants are added."""
    first = 1 if call.name.startswith("add") or call.name == "baddbmm" else 0
    if any(mark_of(t) is not None for i, t in enumerate(call.tensors) if i not in (first, first + 1)):
        raise NotAffine("what it adds is a frozen gate")
    calls, kind = _carried(call, [i for i in (first, first + 1) if call.tensors[i].requires_grad])
    constant = calls[0].at_zero()
    return Straight(written(call, _shared([one() for one in calls])), constant, kind)


def _shared(shares: Sequence[Tensor]) -> Tensor:
    """Of equal values, the first; where there are several, with the mean of their derivatives."""
    return shares[0] if len(shares) == 1 else valued(torch.stack(list(shares)).mean(0), shares[0])


def _carried(call: Call, factors: Sequence[int]) -> tuple[list[Call], str | None]:
    """The calls in which one of the factors carries on and the others are frozen, and what kind of freezing that is.

    Args:
        call: the product.
        factors: positions, among its tensors, of the signals that are multiplied with each other.
    """
    if len(factors) < 2:
        return [call.out_of_place()], None
    gates, kind = [gating(call.tensors[i]) for i in factors], "gate"
    kept = [factors[gates.index(min(gates))]]
    if gates.count(min(gates)) > 1 and not (
        gates[0] and all(call.tensors[i] is call.tensors[kept[0]] for i in factors)
    ):
        if call.carry is None:
            raise NotAffine(
                "it multiplies two signals, and neither or both come out of an activation: choose what carries on with "
                "freeze(..., carry='first'), 'second' or 'half'"
            )
        kept, kind = {"first": [factors[0]], "second": [factors[-1]], "half": list(factors)}[call.carry], "carried"
    call = call.out_of_place()
    return [_frozen_at(call, [i for i in factors if i != one]) for one in kept], kind


def _frozen_at(call: Call, positions: Sequence[int]) -> Call:
    """The call with the tensors at some positions frozen."""
    count = itertools.count()
    return call.on(lambda t: t.detach().clone() if next(count) in positions else t)


def quotient(call: Call) -> Straight:
    """Linear in the dividend; a divisor that depends on the input is frozen if it is a scale, or as chosen."""
    divisor, kind = call.argument(1, "other"), None
    if call.kwargs.get("rounding_mode") is not None:
        raise NotAffine("it rounds")
    if isinstance(divisor, Tensor) and divisor.requires_grad:
        if call.carry is None or not call.first.requires_grad:
            raise NotAffine(
                "it divides by a signal that is not a frozen scale: freeze(..., carry='first') freezes the divisor"
            )
        call, kind = _frozen_at(call, [1]), "carried"
    return Straight(call(), kind=kind)


def cosine_similarity(call: Call) -> Straight:
    """``<a, b> / (norm(a) norm(b))``: the norms are frozen, the product is as any other."""
    a, b, dim, eps = (call.argument(i, n, d) for i, (n, d) in enumerate(_COSINE))
    with torch.no_grad():
        y = call()
        norms = a.norm(2, dim, keepdim=True).clamp(min=eps) * b.norm(2, dim, keepdim=True).clamp(min=eps)
    whole = product(Call(torch.mul, (a, b), {}, call.carry))
    return Straight(valued((whole.output / norms).sum(dim), y), kind=whole.kind or "scale")


_COSINE = (("x1", None), ("x2", None), ("dim", 1), ("eps", 1e-8))


def frozen_gate(call: Call) -> Straight:
    """Frozen at the input: it may scale signals, and computed from anything it makes a gate or scale of it."""
    return Straight(call.out_of_place().on(torch.Tensor.detach)())


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
            return Straight(call(), call.at_zero(), "affine")
        weight, bias, eps = call.argument(3, "weight"), call.argument(4, "bias"), call.argument(7, "eps", 1e-5)
        groups, axes, view = None, range(2, h.ndim), (-1, *[1] * (h.ndim - 2))
    if len(call.signals) != 1 or mark_of(bias) is not None:
        raise NotAffine("its weight or bias depends on the input")
    constant = None if bias is None else bias.view(view or bias.shape)
    shaped = weight if weight is None else weight.view(view or weight.shape)
    with torch.no_grad():
        if name == "layer_norm":
            y, _, scale = torch.native_layer_norm(h, call.argument(1, "normalized_shape"), weight, bias, eps)
        else:
            grouped = h if groups is None else h.unflatten(1, (groups, -1))
            centred = grouped - grouped.mean(tuple(axes), keepdim=True)
            y, scale = call(), torch.rsqrt(centred.square().mean(tuple(axes), keepdim=True) + eps)
    return Straight(Centred.apply(h, (y,), scale, shaped, tuple(axes), groups), constant)


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
        gates = "a frozen gate, which can scale a signal but not be one"
        raise NotAffine(f"its values are {gates if mark_of(v) else 'constant'}")
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
        gates = gates.masked_fill((logits == -torch.inf).all(-1, keepdim=True), 0)  # a query without a key
    values = v.repeat_interleave(q.shape[-3] // v.shape[-3], -3) if call.kwargs.get("enable_gqa") else v
    return Straight(valued(gates @ values, y))


def glu(call: Call) -> Straight:
    """``a * sigmoid(b)`` of the two halves: the sigmoid is the gate."""
    signal, gate = call.argument(0, "input").chunk(2, call.argument(1, "dim", -1))
    with torch.no_grad():
        y, gate = call(), gate.detach().sigmoid()
    return Straight(WithSlope.apply(signal, (y,), gate))


def power(call: Call) -> Straight:
    """A power of an activation, such as squared ReLU, is ``f(h) = h * phi(h)``; of another signal only as chosen."""
    exponent, h, pure = call.argument(1, "exponent", 2), call.first, call.out_of_place()
    if isinstance(exponent, Tensor):
        if exponent.requires_grad or mark_of(exponent) is not None or exponent.numel() != 1:
            raise NotAffine("it is a power whose exponent is a tensor")
        exponent = exponent.item()
    if exponent == 1:
        return Straight(call())
    chosen = call.carry is not None
    if not (chosen or (gating(h) and exponent > 1)):
        raise NotAffine(
            "it is a power of a signal that comes out of no activation: freeze(..., carry='first') takes it as "
            "h * h**(p - 1) with the second factor frozen"
        )
    with torch.no_grad():
        y = pure()
        slope = torch.where(h == 0, 0, y / h)
    kind = "carried" if chosen and not gating(h) else None
    return Straight(written(call, WithSlope.apply(h, (y,), slope)), kind=kind)


def is_root(call: Call) -> bool:
    """Whether a call takes a root, as ``x ** 0.5`` and ``x ** -0.5`` do: a scale, where sqrt and rsqrt are."""
    exponent = call.argument(1, "exponent")
    return call.name in ("pow", "float_power") and isinstance(exponent, float) and exponent in (0.5, -0.5)


def is_gated_constant(call: Call, output: Tensor) -> bool:
    """Whether a call scales a constant by a frozen gate of the result's shape: it may carry on, as a constant."""
    if call.name not in ("mul", "multiply", "rmul", "imul") or len(call.tensors) != 2:
        return False
    gates = [t for t in call.tensors if mark_of(t) is not None]
    marks = mark_of(gates[0]) if gates else None
    return len(gates) == 1 and marks is not None and marks.kind != "bent" and gates[0].shape == output.shape


def lp_pool(call: Call) -> Straight:
    """``y = (sum h**p)**(1/p) = sum h * (h / y)**(p - 1)``: the second factor is frozen."""
    h, p = call.first, float(call.argument(1, "norm_type"))
    if math.isinf(p):
        return Straight(call())
    with torch.no_grad():
        y, gates = call(), h.pow(p - 1)
        scale = torch.where(y == 0, 0, y.pow(1 - p))
    linear = {"input": h * gates, "norm_type": 1.0}
    args = [linear.pop(name) for name, _ in zip(("input", "norm_type"), call.args, strict=False)]
    output = call.func(*args, *call.args[2:], **{**call.kwargs, **linear}) * scale
    return Straight(valued(output, y))


def moments(call: Call) -> Straight:
    """Variance or deviation, which is a frozen scale, and the mean, which is a signal."""
    dim = call.argument(1, "dim")
    with torch.no_grad():
        spread, value = call()
    mean = torch.mean(call.first, dim=None if isinstance(dim, bool) else dim, keepdim=value.ndim == call.first.ndim)
    return Straight((spread, valued(mean, value)))


def reciprocal(call: Call) -> Straight:
    """One over a frozen scale is one; of another signal only as chosen."""
    if call.carry is None:
        raise NotAffine("it divides by a signal that is not a frozen scale: freeze(..., carry='first') freezes it")
    return frozen_gate(call)


def broadcast(call: Call) -> Any:
    """Every tensor expanded to their common shape."""
    tensors = call.args[0] if isinstance(call.args[0], tuple | list) else call.args
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))  # type: ignore[no-untyped-call]
    return tuple(t.expand(shape) for t in tensors)


def fused(call: Call) -> Straight:
    """A recurrent layer in one piece, whose gates cannot be seen."""
    raise NotAffine(
        "it is fused, so its gates cannot be seen: write the cell out in torch operations (linear, sigmoid, tanh and "
        "products), which is explained exactly"
    )
