"""Numeric tests of one operation: is it affine around its signals, does it do what its rule says?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._calls import Call, leaves
from ._straight import NotAffine, Straight


def tested(call: Call) -> Straight:
    """A function that the table does not know: affine around x if a numeric test in double precision says so.

    One that gives no signal (a shape, a comparison) only looks, and runs plainly. For the others, with ``c`` the value
    at zero signals, ``u`` a fixed irregular cotangent and ``d`` small steps, an operation that is affine around ``s``
    satisfies ``<u, y - c> = <A^T u, s>`` and, element by element, ``y(s + d) + y(s - d) = 2 y``. The second equation
    tells pieces from smooth functions of degree one, such as a norm.
    """
    mutates = call.mutates
    if not mutates:
        output = call()
        if not any(t.requires_grad for t in leaves(output)):
            return Straight(output)
    try:
        _verify_affine(call)
        constant = call.at_zero()
    except (RuntimeError, KeyError) as error:
        raise NotAffine(f"it is not in the table and cannot be tested ({str(error).splitlines()[0]})") from error
    return Straight(call() if mutates else output, constant)


def _verify_affine(call: Call) -> None:
    """Refuse an operation that is not affine around its signals.

    Raises:
        NotAffine: it is not.
    """
    twins = {
        id(t): t.detach().to(_double(t), copy=True).requires_grad_(t.requires_grad)
        for t in call.tensors
        if t.is_floating_point() or t.is_complex()
    }
    double = call.on(lambda t: twins.get(id(t), t))
    signals = [t for t in twins.values() if t.requires_grad]
    with torch.enable_grad():
        ys = [y for y in leaves(double.on(torch.clone)()) if y.requires_grad]
    waves = [wave(y, 1.7) for y in ys]
    grads = torch.autograd.grad(ys, signals, waves, allow_unused=True)
    pairs = [(s, torch.zeros_like(s) if g is None else g) for s, g in zip(signals, grads, strict=True)]
    value = _dot(ys := [y.detach() for y in ys], waves)
    at_zero = _dot(leaves(double.at_zero())[: len(ys)], waves)
    size = sum(float(_products(y, u).abs().sum()) for y, u in zip(ys, waves, strict=True))
    size += sum(float(_products(s, g).abs().sum()) for s, g in pairs)
    if not abs(value - at_zero - _dot([s.detach() for s, _ in pairs], [g for _, g in pairs])) <= 1e-10 * size:
        raise NotAffine("its value is not A s + c, with A its derivative and c its value at zero")
    largest = max(float(y.abs().max()) for y in ys)
    for direction in range(2):
        steps = {
            id(s): 3e-6
            * s.abs().mean().clamp(min=1e-6)
            * wave(s, 0.9 + 1.4 * direction, 0.3 + 1.9 * i + 0.8 * direction)
            for i, (s, _) in enumerate(pairs)
        }
        ahead, behind = (_moved(double, steps, sign)[: len(ys)] for sign in (1, -1))
        bend = max(float((p + q - 2 * y).abs().max()) for p, q, y in zip(ahead, behind, ys, strict=True))
        if not bend <= 2e-14 * largest:
            raise NotAffine("it is curved: its derivative changes with its argument")


def _moved(call: Call, steps: dict[int, Tensor], sign: int) -> list[Tensor]:
    """What comes out of a call when its signals are moved."""

    def moved(t: Tensor) -> Tensor:
        return t.detach() + sign * steps[id(t)] if id(t) in steps else t.clone()

    with torch.no_grad():
        return leaves(call.on(moved)())


def wave(like: Tensor, frequency: float, phase: float = 0.3) -> Tensor:
    """A fixed irregular tensor in -1..1; no random numbers are drawn."""
    if like.is_complex():
        return torch.view_as_complex(wave(torch.view_as_real(like.detach().resolve_conj()), frequency, phase))
    return torch.cos(torch.arange(like.numel(), device=like.device).to(like.dtype) * frequency + phase).view(like.shape)


def _double(t: Tensor) -> torch.dtype:
    return torch.complex128 if t.is_complex() else torch.float64


def _products(a: Tensor, b: Tensor) -> Tensor:
    """What the inner product sums: of complex numbers, the products of real parts and those of imaginary parts."""
    a, b = a.detach().to(_double(a)), b.detach().to(_double(a))
    return (a.conj() * b).real if a.is_complex() else a * b


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float(_products(u, v).sum()) for u, v in zip(a, b, strict=True))


def follows(signals: Sequence[Tensor], straight: Straight) -> bool:
    """Whether ``<u, y> = <A^T u, s> + <u, c>``: a step's output is what its derivative and its constant say.

    Args:
        signals: the step's signals s, leaves of the graph.
        straight: the output y, whose derivative in the graph is A, and the constant c.
    """
    ys = [y for y in leaves(straight.output) if y.requires_grad]
    waves = [wave(y, 1.7) for y in ys]
    grads = torch.autograd.grad(ys, signals, waves, allow_unused=True)
    pairs = [(g, s.detach()) for g, s in zip(grads, signals, strict=True) if g is not None]
    constants = [] if straight.constant is None else leaves(straight.constant)
    pairs += [(u, c.expand_as(u)) for u, c in zip(waves, constants, strict=False)]
    pairs += [(-u, y.detach()) for u, y in zip(waves, ys, strict=True)]
    size = max(float(_products(g, s).abs().sum()) for g, s in pairs)
    return abs(_dot(*zip(*pairs, strict=True))) <= max(TOLERANCE[y.dtype.to_real()] for y in ys) * size


def imbalance(terms: Sequence[Tensor], sizes: Sequence[Tensor] = ()) -> Tensor:
    """How far terms that should add up to 0 are from it, relative to the largest of them and of the sizes.

    Args:
        terms: of one shape, such as one number a sample.
        sizes: of terms that are themselves sums, the sum of the magnitudes of what was added, before it cancelled:
            round-off is relative to that, not to what is left.
    """
    scale = torch.stack([*terms, *sizes]).abs().amax(0)
    return torch.stack([*terms]).sum(0).abs() / torch.where(scale > 0, scale, 1)


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-1, torch.bfloat16: 2e-1}
"""How far two routes to one number may be apart, relative to the larger term, by dtype."""
