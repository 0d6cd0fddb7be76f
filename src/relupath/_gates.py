"""What bends, and how it is straight at x: one table, keyed by the function itself.

At one input every operation
is affine in its signals, ``y = A s + c``: by nature, because its piece is fixed (ReLU, max pooling), or because its
gate is frozen (``h * phi(h)``). A rule runs one operation so that autograd differentiates ``A`` and returns ``c``.

Source: "Pathwise Explanation of ReLU Neural Networks", sections 3 and 6 (gates ``x * phi(x)``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ._calls import HOMES, Call, leaves
from ._marks import mark_of
from ._scales import attention, frozen_gate, glu, normalised, normalize, power, product, quotient, rms_norm
from ._straight import NotAffine, Straight, WithSlope


@dataclass(frozen=True)
class Rule:
    """How one function is straight at x.

    Attributes:
        kind: ``affine``, ``piece``, ``gate`` or ``tested`` (found affine at x by a numeric test).
        freeze: runs the call.
        activation: whether its output is a hidden layer by default.
        gating: how much its output is a gate, if it is multiplied with another signal; an activation's counts 1.
        scales: whether a frozen gate may be among its arguments.
        rearranges: whether it only moves values about.
        linear_map: whether it is a product with a constant weight, whose derivative needs its input's shape alone.
    """

    kind: str
    freeze: Callable[[Call], Straight]
    activation: bool = False
    linear_map: bool = False
    gating: int = 0
    scales: bool = False
    rearranges: bool = False


def _linear(call: Call) -> Straight:
    """Linear in all signals together, without constants: views, sums, pooling; and pieces through the origin."""
    return Straight(call())


def _affine(call: Call) -> Straight:
    """Affine in all signals together; the constant is the value at zero signals."""
    return Straight(constant=call.at_zero(), output=call())


def _sum(call: Call) -> Straight:
    """Affine, and without a constant when both operands are signals."""
    operands = call.argument(0, "input"), call.argument(1, "other")
    pure = all(isinstance(t, Tensor) and t.requires_grad for t in operands)
    return _linear(call) if pure else _affine(call)


def _biased(call: Call) -> Straight:
    """Convolution and linear maps: the constant is the bias, broadcast over locations."""
    weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
    if not call.argument(0, "input").requires_grad:
        return _affine(call)
    if weight.requires_grad:
        raise NotAffine("its weight depends on the input")
    if bias is not None and mark_of(bias) is not None:
        raise NotAffine("its bias is a frozen gate")
    if bias is None or bias.requires_grad:
        return _linear(call)
    return Straight(call(), bias.reshape(-1, *[1] * (weight.ndim - 2)))


def _batch_norm(call: Call) -> Straight:
    """Batch norm in eval mode: a scale and a shift per channel; the derivative needs the scale alone."""
    if call.argument(5, "training", False) or call.argument(1, "running_mean") is None:
        raise NotAffine("it normalises by the statistics of the batch, so a sample's output depends on the others")
    h, *statistics = (call.argument(i, name) for i, name in enumerate(("input", "running_mean", "running_var")))
    if len(call.signals) > 1 or not h.requires_grad:
        raise NotAffine("its statistics or weights depend on the input")
    mean, var, weight, bias = *statistics, call.argument(3, "weight"), call.argument(4, "bias")
    scale = torch.rsqrt(var + call.argument(7, "eps", 1e-5))
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
    with torch.no_grad():
        y = call()
    shape = (-1, *[1] * (h.ndim - 2))
    return Straight(WithSlope.apply(h, (y,), scale.view(shape)), shift.view(shape))


def _dropout(call: Call) -> Straight:
    active = call.argument(2, "training", call.kwargs.get("train", True))
    if active and call.argument(1, "p", 0.5) > 0:
        raise NotAffine("dropout is active although the model is in eval mode (pass training=self.training)")
    return _linear(call)


def _extremum(call: Call) -> Straight:
    """Maximum and minimum: through the origin jointly in all operands; a constant operand gives an intercept."""
    bounded = any(not t.requires_grad and t.is_floating_point() for t in call.tensors)
    return _piece(call) if bounded else _linear(call)


def _written(call: Call, output: Tensor) -> Tensor:
    """Hand the output over as the call would have: an in-place call writes it to its argument."""
    return call.first.copy_(output) if call.mutates else output


def _piece(call: Call) -> Straight:
    """Elementwise and piecewise linear: the piece at h has the slope autograd gives and intercept y - slope h."""
    if len(call.signals) != 1:
        raise NotAffine("more than one of its arguments depends on the input")
    (h,), pure = call.signals, call.out_of_place()
    with torch.no_grad():
        y = pure()
    twin = h.detach().expand_as(y).requires_grad_()
    (slope,) = torch.autograd.grad(pure.on(lambda t: twin if t is h else t)().sum(), twin)
    output = WithSlope.apply(h.expand_as(y), (y,), slope)
    return Straight(_written(call, output), y - slope * twin.detach())


def _gate(call: Call) -> Straight:
    """``f(h) = h * phi(h)``: the slope is phi(h) = f(h) / h, and f'(0) where h = 0; the intercept is zero."""
    h, pure = call.first, call.out_of_place()
    zero = h.detach().new_zeros(1).requires_grad_()
    (limit,) = torch.autograd.grad(pure.on(lambda t: zero if t is h else t)(), zero)
    with torch.no_grad():
        y = pure()
        slope = torch.where(h == 0, limit, y / h)
    return Straight(_written(call, WithSlope.apply(h, (y,), slope)))


def _assigned(call: Call) -> Straight:
    raise NotAffine("assignment to .data changes a signal behind the back of its derivative")


def _seen_through(call: Call) -> Straight:
    """``detach`` and ``data``: the function of the input is what counts, so the signal goes on."""
    return Straight(call.first.view_as(call.first))


def _ignored(call: Call) -> Straight:
    """Hooks on a signal's gradient: the products taken here are none of their business."""
    return Straight(RemovableHandle(OrderedDict()) if call.name == "register_hook" else None)


def _new_tensor(call: Call) -> Straight:
    """A tensor of plain numbers, like a signal in dtype and device."""
    if len(call.signals) > 1:
        raise NotAffine("it copies a signal's values without their dependence on the input")
    return _linear(call)


def _number(call: Call) -> Straight:
    """``item`` and the like: harmless on integers and truth values, which are fixed at the input."""
    raise NotAffine("it turns a signal into a plain number, whose dependence on the input is lost")


def _rrelu(call: Call) -> Straight:
    if call.argument(3, "training", False):
        raise NotAffine("its slopes are random (training=True)")
    return _linear(call)


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
        id(t): t.detach().to(torch.float64, copy=True).requires_grad_(t.requires_grad)
        for t in call.tensors
        if t.is_floating_point()
    }
    double = call.on(lambda t: twins.get(id(t), t))
    signals = [t for t in twins.values() if t.requires_grad]
    with torch.enable_grad():
        ys = [y for y in leaves(double.on(torch.clone)()) if y.requires_grad]
    waves = [_wave(y, 1.7) for y in ys]
    grads = torch.autograd.grad(ys, signals, waves, allow_unused=True)
    pairs = [(s, torch.zeros_like(s) if g is None else g) for s, g in zip(signals, grads, strict=True)]
    value = _dot(ys := [y.detach() for y in ys], waves)
    at_zero = _dot(leaves(double.at_zero())[: len(ys)], waves)
    size = sum(float((y * u).abs().sum()) for y, u in zip(ys, waves, strict=True))
    size += sum(float((s.detach() * g).abs().sum()) for s, g in pairs)
    if not abs(value - at_zero - _dot([s.detach() for s, _ in pairs], [g for _, g in pairs])) <= 1e-10 * size:
        raise NotAffine("its value is not A s + c, with A its derivative and c its value at zero")
    largest = max(float(y.abs().max()) for y in ys)
    for direction in range(2):
        steps = {
            id(s): 3e-6
            * s.abs().mean().clamp(min=1e-6)
            * _wave(s, 0.9 + 1.4 * direction, 0.3 + 1.9 * i + 0.8 * direction)
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


def _wave(like: Tensor, frequency: float, phase: float = 0.3) -> Tensor:
    """A fixed irregular tensor in -1..1; no random numbers are drawn."""
    return torch.cos(torch.arange(like.numel(), device=like.device).to(like.dtype) * frequency + phase).view(like.shape)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((u * v).sum()) for u, v in zip(a, b, strict=True))


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-1, torch.bfloat16: 2e-1}
"""How far two routes to one number may be apart, relative to the larger term, by dtype."""

_LINEAR, _MOVES, _SCALES = (
    Rule("affine", _linear),
    Rule("affine", _linear, rearranges=True),
    Rule("affine", product, scales=True),
)
_NAMES: tuple[tuple[Rule, str], ...] = (
    # rearranging
    (_MOVES, "view view_as reshape reshape_as flatten unflatten squeeze squeeze_ unsqueeze unsqueeze_ transpose"),
    (_MOVES, "permute movedim moveaxis swapaxes swapdims t adjoint contiguous clone to float double half bfloat16"),
    (_MOVES, "type type_as cpu cuda expand expand_as broadcast_to repeat tile repeat_interleave narrow select"),
    (_MOVES, "index_select gather take take_along_dim __getitem__ chunk split split_with_sizes tensor_split unbind"),
    (_MOVES, "roll flip rot90 diagonal diag tril triu unfold fold pixel_shuffle pixel_unshuffle channel_shuffle"),
    # summing
    (_LINEAR, "sum mean cumsum trace neg negative __neg__ positive __pos__ avg_pool1d avg_pool2d avg_pool3d"),
    (_LINEAR, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample"),
    (Rule("affine", _sum), "add add_ sub sub_ subtract rsub __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__"),
    (Rule("affine", _affine), "cat concat concatenate stack hstack vstack where masked_fill masked_fill_ pad"),
    (Rule("affine", _affine), "__setitem__ copy_ index_put index_put_ index_copy index_copy_"),
    # multiplying
    (_SCALES, "mul mul_ multiply __mul__ __rmul__ __imul__ matmul __matmul__ __rmatmul__ mm bmm mv"),
    (_SCALES, "dot inner outer einsum tensordot"),
    (Rule("affine", quotient, scales=True), "div div_ divide true_divide __truediv__ __itruediv__ __div__"),
    (
        Rule("affine", _biased, linear_map=True, scales=True),
        "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    ),
    (Rule("affine", _batch_norm), "batch_norm"),
    (Rule("affine", _dropout), "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"),
    # pieces
    (Rule("piece", _linear, activation=True), "relu relu_ leaky_relu leaky_relu_ prelu"),
    (Rule("piece", _rrelu, activation=True), "rrelu rrelu_"),
    (Rule("piece", _piece, activation=True), "relu6 hardtanh hardtanh_ threshold threshold_ hardshrink softshrink"),
    (Rule("piece", _piece, gating=2), "hardsigmoid"),
    (Rule("piece", _piece), "clamp clamp_ clip clip_ clamp_min clamp_min_ clamp_max clamp_max_"),
    (Rule("piece", _piece), "floor floor_ ceil ceil_ round round_ trunc trunc_ sign sgn"),
    (Rule("piece", _extremum), "max min maximum minimum fmax fmin"),
    (Rule("piece", _linear), "abs absolute __abs__ amax amin sort topk kthvalue cummax cummin"),
    (Rule("piece", _linear), "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d"),
    (Rule("piece", _linear), "adaptive_max_pool3d max_unpool1d max_unpool2d max_unpool3d"),
    (Rule("piece", _linear), "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices"),
    (Rule("piece", _linear), "adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices"),
    # gates x * phi(x)
    (Rule("gate", _gate, activation=True), "gelu silu silu_ mish mish_ hardswish hardswish_ elu elu_ selu selu_"),
    (Rule("gate", _gate, activation=True), "celu celu_ tanh tanh_ softsign"),
    (Rule("gate", power), "pow square float_power __pow__"),
    # gates times signals: frozen where they come about
    (Rule("frozen", frozen_gate), "sigmoid softmax log_softmax softmin logsumexp erf"),
    (Rule("frozen", frozen_gate), "sqrt rsqrt std var norm vector_norm"),
    (Rule("gate", glu), "glu"),
    (Rule("gate", attention), "scaled_dot_product_attention"),
    (Rule("composite", _linear), "multi_head_attention_forward"),
    # normalisation
    (Rule("scale", normalised), "layer_norm group_norm instance_norm"),
    (Rule("scale", rms_norm), "rms_norm"),
    (Rule("scale", normalize), "normalize"),
    # numbers and constants
    (Rule("affine", _seen_through), "detach"),
    (Rule("look", _linear), "zeros_like ones_like full_like empty_like rand_like randn_like"),
    (Rule("look", _linear), "new_zeros new_ones new_full new_empty"),
    (Rule("look", _new_tensor), "new_tensor"),
    (Rule("ignored", _ignored), "register_hook retain_grad"),
    (Rule("number", _number), "detach_ item tolist numpy __float__ __array__"),
)

TABLE: dict[Callable[..., Any], Rule] = {
    getattr(home, name): rule
    for rule, names in _NAMES
    for name in names.split()
    for home in HOMES
    if callable(getattr(home, name, None))
}
"""Every known function with its rule; a function that is missing here is tested numerically."""

for _other in (torch.batch_norm, torch.instance_norm):  # another order of arguments: these are tested
    del TABLE[_other]
TABLE[torch.Tensor.data.__get__] = Rule("affine", _seen_through)  # type: ignore[attr-defined]
TABLE[torch.Tensor.data.__set__] = Rule("refused", _assigned)  # type: ignore[attr-defined]
