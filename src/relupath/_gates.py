"""What bends, and how it is straight at x: one table, keyed by the function itself.

At one input every operation
is affine in its signals, ``y = A s + c``: by nature, because its piece is fixed (ReLU, max pooling), or because its
gate is frozen (``h * phi(h)``). A rule runs one operation so that autograd differentiates ``A`` and returns ``c``.

Source: "Pathwise Explanation of ReLU Neural Networks", sections 3 and 6 (gates ``x * phi(x)``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ._calls import HOMES, Call, inside, replaced, written
from ._marks import mark_of
from ._saved import Need
from ._scales import (
    added_product,
    attention,
    broadcast,
    cosine_similarity,
    frozen_gate,
    fused,
    glu,
    lp_pool,
    moments,
    normalised,
    normalize,
    power,
    product,
    quotient,
    reciprocal,
    rms_norm,
)
from ._straight import NotAffine, Straight, Untraceable, WithSlope
from ._tested import tested


@dataclass(frozen=True)
class Rule:
    """How one function is straight at x.

    Attributes:
        kind: ``affine``; ``piece``; ``gate``; ``scale`` (of a normalisation); ``frozen gate`` or ``frozen scale`` (what
            comes out may only scale a signal); ``tested`` (found affine at x by a numeric test); ``composite`` (seen
            from inside); ``bent`` (never exact); ``look``, ``ignored`` and ``number`` (no operation on signals).
        freeze: runs the call; of a composite it is a function to be seen from inside.
        activation: whether its output is a hidden layer by default.
        gating: how much its output is a gate, if it is multiplied with another signal; an activation's counts 1, a
            squashing one's 2. Squashing makes a gate of anything.
        scales: whether a frozen gate may be among its arguments.
        rearranges: whether it only moves values about, or scales or shifts them: a gate remains one.
        shifts: whether with a plain number it only shifts values.
        pattern: whether of all its tensors but the first only the form counts.
        absorbs: whether it makes gates of what is bent among its arguments.
        needs: what its derivative reads of what it keeps: ``values``; ``signs`` (is it positive?); or of its input the
            ``shape`` alone, as a product with a constant weight does, and pooling (max pooling keeps places).
    """

    kind: str
    freeze: Callable[[Call], Any]
    activation: bool = False
    needs: Need = "values"
    gating: int = 0
    scales: bool = False
    rearranges: bool = False
    shifts: bool = False
    pattern: bool = False
    absorbs: bool = False


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


def _joined(call: Call) -> Straight:
    """Affine, and without a constant when all that is put together are signals."""
    return _linear(call) if all(t.requires_grad for t in call.tensors) else _affine(call)


def _biased(call: Call) -> Straight:
    """Convolution and linear maps: the constant is the bias, broadcast over locations."""
    weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
    if not call.argument(0, "input").requires_grad:
        return _affine(call)
    if weight.requires_grad:
        return added_product(call)
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
    with torch.no_grad():
        y, scale = call(), (var + call.argument(7, "eps", 1e-5)).rsqrt_()
        scale = scale if weight is None else scale * weight
        shift = -mean * scale if bias is None else torch.addcmul(bias, mean, scale, value=-1)
    shape = (-1, *[1] * (h.ndim - 2))
    return Straight(WithSlope.apply(h, (y,), scale.view(shape)), shift.view(shape))


def _dropout(call: Call) -> Straight:
    """Dropout that is off; active dropout is refused."""
    active = call.argument(2, "training", call.kwargs.get("train", True))
    if active and call.argument(1, "p", 0.5) > 0:
        raise NotAffine("dropout is active although the model is in eval mode (pass training=self.training)")
    return _linear(call)


def _resampled(call: Call) -> Straight:
    """Sampling a picture at constant places."""
    if call.argument(1, "grid").requires_grad:
        raise NotAffine("its grid depends on the input")
    return _linear(call)


def _viewed(call: Call) -> Straight:
    """A view, of the same numbers: not of the same bytes as another type."""
    if any(isinstance(a, torch.dtype) for a in (*call.args, *call.kwargs.values())):
        raise Untraceable("it reads a signal's bytes as another type, so that their dependence on the input is lost")
    return _linear(call)


def _extremum(call: Call) -> Straight:
    """Maximum and minimum: through the origin jointly in all operands; a constant operand gives an intercept."""
    bounded = any(not t.requires_grad for t in call.tensors)
    return _piece(call) if bounded else _linear(call)


def _piece(call: Call) -> Straight:
    """Elementwise and piecewise linear: the piece at h has the slope autograd gives and intercept y - slope h."""
    if len(call.signals) != 1:
        raise NotAffine("more than one of its arguments depends on the input")
    if call.first.is_complex():
        raise NotAffine("it bends complex numbers")
    (h,), pure = call.signals, call.out_of_place()
    with torch.no_grad():
        y = pure()
    twin = h.detach().expand_as(y).requires_grad_()
    (slope,) = torch.autograd.grad(pure.on(lambda t: twin if t is h else t)().sum(), twin)
    opens = slope != 0
    slope = opens if torch.equal(slope, opens.to(slope.dtype)) else slope  # a byte a neuron is enough
    output, intercept = WithSlope.apply(h.expand_as(y), (y,), slope), y - slope * twin.detach()
    return Straight(written(call, output), intercept)


def _bent_at_zero(call: Call) -> Straight:
    """PReLU: two pieces through the origin. Its own second derivative has another slope at 0 than its first."""
    return Straight(_piece(call).output)


def _gate(call: Call) -> Straight:
    """``f(h) = f(0) + h * phi(h)``: the slope is phi(h), and f'(0) where h = 0; the intercept is f(0), mostly zero."""
    h, pure = call.first, call.out_of_place()
    if h.is_complex():
        raise NotAffine("it bends complex numbers")
    with torch.no_grad():
        y = pure()
        start, limit = _at_zero(pure, y.dtype)
        if start:
            slope = torch.where(h.abs() <= torch.finfo(h.dtype).eps ** 0.5, limit, (y - start) / h)
        else:
            slope = y / h
            if slope.sum().isnan():  # 0 / 0; a sum is read faster than h is compared
                slope.masked_fill_(h == 0, limit)
    return Straight(written(call, WithSlope.apply(h, (y,), slope)), y.new_full((1,), start) if start else None)


def _at_zero(call: Call, dtype: torch.dtype) -> tuple[float, float]:
    """f(0) and f'(0) of an elementwise function f; asked once where everything but h is a plain setting."""
    h = call.first
    args, kwargs = (replaced(part, lambda t: _HERE if t is h else t) for part in (call.args, call.kwargs))
    ask = _value_and_slope if len(call.tensors) == 1 else _value_and_slope.__wrapped__
    return ask(call.func, args, tuple(kwargs.items()), (h.dtype, h.device, dtype))


@lru_cache(256)
def _value_and_slope(func: Callable[..., Tensor], args: Any, kwargs: Any, form: Any) -> tuple[float, float]:
    zero = torch.zeros(1, dtype=form[0], device=form[1], requires_grad=True)
    args, kwargs = replaced((args, kwargs), lambda t: zero if t is _HERE else t)
    with torch.enable_grad():
        start = func(*args, **dict(kwargs))
        (limit,) = torch.autograd.grad(start, zero)
    return float(start), float(limit)


_HERE = torch.empty(0)


def _from_inside(call: Call) -> Any:
    """A Python function of torch that bears no rule of its own: each operation inside it is treated by its rule."""
    return inside(call.func)(*call.args, **call.kwargs)


def _assigned(call: Call) -> Straight:
    """Assignment to ``.data``: refused."""
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
    raise NotAffine("it takes numbers or derivatives out of a signal, whose dependence on the input is lost")


def _rrelu(call: Call) -> Straight:
    """RReLU in eval mode: a leaky ReLU; random slopes are refused."""
    if call.argument(3, "training", False):
        raise NotAffine("its slopes are random (training=True)")
    return _linear(call)


_LINEAR, _MOVES, _SCALES = (
    Rule("affine", _linear),
    Rule("affine", _linear, rearranges=True),
    Rule("affine", product, scales=True),
)
_LIKE = Rule("affine", _linear, rearranges=True, pattern=True)
_MODULUS, _FROZEN_SCALE = Rule("piece", _linear), Rule("frozen scale", frozen_gate)
_TESTED = Rule("tested", tested)
_AVERAGE, _POOL = Rule("affine", _linear, needs="shape"), Rule("piece", _linear, needs="shape")
_SUM, _RATIO = Rule("affine", _sum, shifts=True), Rule("affine", quotient, scales=True, rearranges=True)
NAMES: tuple[tuple[Rule, str], ...] = (
    # rearranging
    (Rule("affine", _viewed, rearranges=True), "view"),
    (_LIKE, "view_as reshape_as expand_as type_as to"),
    (_MOVES, "reshape flatten unflatten squeeze squeeze_ unsqueeze unsqueeze_ transpose"),
    (_MOVES, "permute movedim moveaxis swapaxes swapdims t adjoint contiguous clone float double half bfloat16"),
    (_MOVES, "type cpu cuda expand broadcast_to repeat tile repeat_interleave narrow select"),
    (_MOVES, "index_select gather take take_along_dim __getitem__ chunk split split_with_sizes tensor_split unbind"),
    (_MOVES, "roll flip rot90 diagonal diag tril triu unfold fold pixel_shuffle pixel_unshuffle channel_shuffle"),
    (_MOVES, "view_as_complex view_as_real"),
    (_MOVES, "masked_select"),
    # summing
    (_LINEAR, "sum mean cumsum trace neg negative __neg__ positive __pos__"),
    (_AVERAGE, "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"),
    (_LINEAR, "interpolate upsample"),
    (
        Rule("affine", _sum, shifts=True),
        "add add_ sub sub_ subtract rsub __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__",
    ),
    (Rule("affine", _joined), "cat concat concatenate stack hstack vstack"),
    (Rule("affine", _affine), "where masked_fill masked_fill_ pad"),
    (Rule("affine", _resampled), "grid_sample grid_sampler"),
    (Rule("affine", _affine), "__setitem__ copy_ index_put index_put_ index_copy index_copy_"),
    # multiplying
    (Rule("affine", product, scales=True, rearranges=True), "mul mul_ multiply __mul__ __rmul__ __imul__"),
    (_SCALES, "matmul __matmul__ __rmatmul__ mm bmm mv dot vdot inner outer ger vecdot einsum tensordot kron cross"),
    (_SCALES, "multi_dot linalg_cross linalg_vecdot linalg_multi_dot"),
    (Rule("affine", added_product, scales=True), "addmm addmm_ addmv addr addbmm baddbmm addcmul addcmul_ bilinear"),
    (Rule("scale", cosine_similarity), "cosine_similarity"),
    (
        Rule("affine", quotient, scales=True, rearranges=True),
        "div div_ divide true_divide __truediv__ __itruediv__ __div__",
    ),
    (
        Rule("affine", _biased, needs="shape", scales=True),
        "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    ),
    (Rule("affine", _batch_norm), "batch_norm"),
    (Rule("affine", _dropout), "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"),
    # pieces
    (Rule("piece", _linear, activation=True, needs="signs"), "relu relu_ leaky_relu leaky_relu_"),
    (Rule("piece", _bent_at_zero, activation=True), "prelu"),
    (Rule("piece", _rrelu, activation=True), "rrelu rrelu_"),
    (Rule("piece", _piece, activation=True), "relu6 threshold threshold_ hardshrink softshrink"),
    (Rule("piece", _piece, activation=True, gating=2), "hardtanh hardtanh_"),
    (Rule("piece", _piece, gating=2), "hardsigmoid"),
    (Rule("piece", _piece, gating=1), "clamp clamp_ clip clip_ clamp_min clamp_min_ clamp_max clamp_max_"),
    (Rule("piece", _piece), "floor floor_ ceil ceil_ round round_ trunc trunc_ sign sgn"),
    (Rule("piece", _extremum), "max min maximum minimum fmax fmin"),
    (_MODULUS, "abs absolute __abs__"),
    (Rule("piece", _linear), "amax amin sort topk kthvalue cummax cummin"),
    (_POOL, "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    (Rule("piece", _linear), "max_unpool1d max_unpool2d max_unpool3d"),
    (_POOL, "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices"),
    (_POOL, "adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices"),
    # gates x * phi(x)
    (Rule("gate", _gate, activation=True), "gelu silu silu_ mish mish_ hardswish hardswish_ elu elu_ selu selu_"),
    (Rule("gate", _gate, activation=True), "celu celu_ softplus logsigmoid tanhshrink"),
    (Rule("gate", _gate, activation=True, gating=2), "tanh tanh_ softsign"),
    (Rule("gate", power), "pow pow_ square square_ float_power __pow__ __ipow__"),
    (Rule("gate", lp_pool), "lp_pool1d lp_pool2d lp_pool3d"),
    # gates times signals: frozen where they come about
    (
        Rule("frozen gate", frozen_gate),
        "sigmoid sigmoid_ softmax log_softmax softmin logsumexp erf exp exp2 expit ndtr",
    ),
    (_FROZEN_SCALE, "sqrt rsqrt std var norm vector_norm"),
    (Rule("frozen scale", moments), "var_mean std_mean"),
    (Rule("frozen scale", reciprocal), "reciprocal __rdiv__ __rtruediv__"),
    (Rule("bent", fused), "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    (Rule("gate", glu), "glu"),
    (Rule("gate", attention, absorbs=True), "scaled_dot_product_attention"),
    (Rule("composite", _from_inside), "multi_head_attention_forward"),
    (Rule("composite", broadcast), "broadcast_tensors"),
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
    (Rule("number", _number), "detach_ backward item tolist numpy __float__ __array__ __dlpack__"),
)

_QUESTIONS = (
    "shape ndim dtype device layout requires_grad is_cuda is_cpu is_meta is_mps is_sparse is_nested is_quantized"
)
_ASKED = "dim ndimension size numel nelement stride is_floating_point is_complex is_contiguous get_device element_size"

TABLE: dict[Callable[..., Any], Rule] = {
    getattr(home, name): rule
    for rule, names in NAMES
    for name in names.split()
    for home in HOMES
    if callable(getattr(home, name, None))
}
"""Every known function with its rule; a function that is missing here is tested numerically."""

for _other in (torch.batch_norm, torch.instance_norm):  # another order of arguments: these are tested
    del TABLE[_other]
TABLE[torch.autograd.grad] = TABLE[torch.autograd.backward] = Rule("number", _number)
TABLE[torch.Tensor.data.__get__] = Rule("affine", _seen_through)  # type: ignore[attr-defined]
TABLE[torch.Tensor.data.__set__] = Rule("refused", _assigned)  # type: ignore[attr-defined]

FORMS = frozenset(
    [getattr(torch.Tensor, name).__get__ for name in _QUESTIONS.split()]
    + [getattr(home, name) for name in _ASKED.split() for home in (torch, torch.Tensor) if hasattr(home, name)]
)
"""What asks for a tensor's form alone, or whether it depends on the input: no values are looked at."""


def rule_of(call: Call) -> Rule:
    """The rule of a function: of the modulus of complex numbers that of a norm, of an unknown one a numeric test."""
    rule = TABLE.get(call.func, _TESTED)
    return _FROZEN_SCALE if rule is _MODULUS and call.first.is_complex() else rule
