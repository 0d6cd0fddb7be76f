"""Ways to write gates, scales and products, and to teach operations: each is exact, or refused in words."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import wrap_torch_function

from asserts import assert_branches, assert_complete
from nets import Branches, randomise
from relupath import freeze, freezes
from relupath._gates import TABLE
from relupath.errors import UnsupportedOperation, UsageError

C = torch.linspace(-1, 1, 48, dtype=torch.float64).view(2, 4, 6).cos()
CAUSAL = torch.full((4, 4), -torch.inf, dtype=torch.float64).triu(1)
sdpa = F.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def _forgotten():
    table = dict(TABLE)
    yield
    TABLE.clear()
    TABLE.update(table)


def given_input():
    return torch.linspace(-1.5, 2, 10, dtype=torch.float64).view(2, 5).sin()


def branches(function, **parts):
    return randomise(Branches([function], **parts), 3)


def assert_exact(function, twin, carry=None, **parts):
    assert_branches(branches(function, **parts), given_input(), [twin], [""], carry=carry)


def each(function):
    return lambda u, v: torch.stack([function(s, t) for s, t in zip(u, v, strict=True)])


# --- exact, not guessed ---


def test_hardsigmoid_in_place():
    # The intercept y - slope * h needs the h that is overwritten; it shows where the slope is neither 0 nor 1.
    assert_exact(lambda m, h: F.hardsigmoid(h.clone(), inplace=True), lambda m, h: F.hardsigmoid(h))


@pytest.mark.parametrize("name", ["addcmul_", "addmm_"])
def test_a_product_added_in_place_to_a_constant(name):
    # Once the product has run, the constant that it was added to is overwritten: its value is a source all the same.
    f, twin = {
        "addcmul_": (lambda h: C.clone().addcmul_(h, C), lambda h: C + h * C),
        "addmm_": (
            lambda h: torch.stack([C[0].clone().addmm_(s, C[1].T @ C[0]) for s in h]),
            lambda h: C[0] + h @ C[1].T @ C[0],
        ),
    }[name]
    assert_exact(lambda m, h: f(h), lambda m, h: twin(h))


@pytest.mark.parametrize("function", [torch.maximum, torch.max, torch.fmax])
def test_the_larger_of_a_signal_and_an_integer_tensor(function):
    # A constant of integers bounds a signal as any other does: its value is an intercept.
    assert_exact(lambda m, h: function(h, torch.tensor(1)), lambda m, h: h.clamp(min=1))


def test_attention_with_a_query_that_may_look_at_nothing():
    # Soft-max over a row of -inf is NaN, but torch's own attention gives 0 there.
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[1] = False
    assert_exact(
        lambda m, h: sdpa(h, h, h, attn_mask=mask),
        lambda m, h: (h @ h.mT * 6**-0.5).masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0).detach() @ h,
    )


@pytest.mark.parametrize("between", [lambda m, r: m.fc2(r), lambda m, r: r @ C[0].T @ C[1], lambda m, r: m.conv(r)])
def test_a_branch_that_ends_in_a_linear_map_is_no_gate(between):
    # Scaling and moving leave an activation's output a gate; a linear map mixes it, and to freeze it would be a guess.
    model = branches(lambda m, h: between(m, F.relu(h.flip(1))) * h, fc2=nn.Linear(6, 6), conv=nn.Conv1d(4, 4, 1))
    with pytest.raises(UnsupportedOperation, match=r"^mul in module"):
        freeze(model, given_input())


@pytest.mark.parametrize("norm", [
    lambda h, g: F.layer_norm(h, (6,), None, g), lambda h, g: F.group_norm(h, 2, None, g[:4]),
    lambda h, g: F.instance_norm(h, bias=g[:4]),
])  # fmt: skip
def test_a_gate_as_the_bias_of_a_norm(norm):
    # A frozen gate depends on the input: as a bias it would be taken for a constant of the network without a word.
    model = branches(lambda m, h: torch.stack([norm(s[None], torch.sigmoid(s[0]))[0] for s in h]))
    with pytest.raises(UnsupportedOperation, match=r"^(sigmoid|.*norm) in module"):
        freeze(model, given_input())


def test_a_signal_squared_in_place_with_a_choice():
    # The frozen factor must be a copy: detached alone, it shares the memory that is written to.
    def square(m, h):
        y = h.clone()
        y.mul_(y)
        return y

    assert_exact(square, lambda m, h: h * h.detach(), "first")


def test_a_power_of_one_at_zero_with_a_choice():
    # Where h = 0 the slope y / h is 0 / 0: its limit is 0 for exponents above 1, but 1 for the exponent 1.
    model = Branches([lambda m, h: (h * C.round()) ** 1])
    frozen = freeze(randomise(model, 3), given_input(), carry="first")
    expected = freeze(randomise(Branches([lambda m, h: h * C.round()]), 3), given_input())
    seed = torch.ones_like(frozen.output)
    got, wanted = (f.vjp({f.top: seed}, f.inputs)[0] for f in (frozen, expected))
    assert torch.allclose(got, wanted)
    zero = torch.zeros(1, 2, dtype=torch.float64)
    linear = freeze(randomise(Zero(), 0), zero, carry="first")
    (slope,) = linear.vjp({linear.top: torch.ones_like(linear.output)}, linear.inputs)
    assert slope.tolist() == [[1.0, 1.0]]


class Zero(nn.Module):
    def forward(self, x):
        return x**1


def test_an_operator_that_writes_to_its_argument():
    # An operator's schema, not its name, says what it writes to. Run twice, it would change the model's output.
    freezes(squash_)(lambda h: torch.sigmoid(h))

    def run(m, h):
        y = h.clone()
        squash_(y)
        return y

    model = branches(run)
    try:
        frozen = freeze(model, given_input())
    except UnsupportedOperation:
        return
    with torch.no_grad():
        assert torch.equal(frozen.output, model(given_input()))
    assert_complete(frozen, 0)


@torch.library.custom_op("relupath_failing::squash_", mutates_args=("h",))
def squash_(h: torch.Tensor) -> None:
    h.mul_(torch.sigmoid(h))


# --- understood, not refused ---


@pytest.mark.parametrize("like", ["expand_as", "view_as", "type_as", "to", "broadcast_tensors"])
def test_a_gate_moved_into_the_form_of_a_signal(like):
    # The signal is an argument, but serves as a pattern alone: as in ``x * y.expand_as(x)`` of squeeze-and-excitation
    # blocks, and in ``.type_as(xq)`` after the soft-max in LLaMA.
    f = {
        "expand_as": lambda h: h * torch.sigmoid(h.mean(-1, keepdim=True)).expand_as(h),
        "view_as": lambda h: h * torch.sigmoid(h.flatten(1)).view_as(h),
        "type_as": lambda h: F.softmax(h @ h.mT, -1).type_as(h) @ h,
        "to": lambda h: F.softmax(h @ h.mT, -1).to(h) @ h,
        "broadcast_tensors": lambda h: math.prod(torch.broadcast_tensors(h, torch.sigmoid(h.mean(-1, keepdim=True)))),
    }[like]
    twin = {
        "expand_as": lambda h: h * torch.sigmoid(h.mean(-1, keepdim=True)).detach(),
        "view_as": lambda h: h * torch.sigmoid(h).detach(),
        "type_as": lambda h: F.softmax(h @ h.mT, -1).detach() @ h,
        "to": lambda h: F.softmax(h @ h.mT, -1).detach() @ h,
        "broadcast_tensors": lambda h: h * torch.sigmoid(h.mean(-1, keepdim=True)).detach(),
    }[like]
    assert_exact(lambda m, h: f(h), lambda m, h: twin(h))


def test_a_gate_in_the_type_of_the_scores():
    # As in T5: the scores that serve as a pattern are bent themselves, but the gate stays a gate.
    def attention(h):
        scores = h @ h.mT
        return F.softmax(scores.double(), dim=-1).type_as(scores) @ h

    assert_exact(lambda m, h: attention(h), lambda m, h: F.softmax(h @ h.mT, -1).detach() @ h)


def test_a_norm_moved_into_the_form_of_the_signal():
    # This is torch.nn.functional.normalize written out.
    assert_exact(
        lambda m, h: h / h.norm(2, -1, True).clamp_min(1e-12).expand_as(h),
        lambda m, h: h / h.norm(2, -1, True).detach(),
    )


def gru_from_nothing(m, h, stop=torch.clone, tanh=torch.tanh):
    state = torch.zeros(2, 4, dtype=h.dtype)
    for x in h.unbind(1):
        ri, zi, ni = F.linear(x, m.cell.weight_ih, m.cell.bias_ih).chunk(3, 1)
        rh, zh, nh = F.linear(state, m.cell.weight_hh, m.cell.bias_hh).chunk(3, 1)
        r, z = stop(torch.sigmoid(ri + rh)), stop(torch.sigmoid(zi + zh))
        state = (1 - z) * tanh(ni + r * nh) + z * state
    return state


def lstm_from_nothing(m, h, stop=torch.clone, tanh=torch.tanh):
    state = cell = torch.zeros(2, 4, dtype=h.dtype)
    for x in h.unbind(1):
        gates = F.linear(x, m.cell.weight_ih, m.cell.bias_ih) + F.linear(state, m.cell.weight_hh, m.cell.bias_hh)
        i, f, g, o = gates.chunk(4, 1)
        cell = stop(torch.sigmoid(f)) * cell + stop(torch.sigmoid(i)) * tanh(g)
        state = stop(torch.sigmoid(o)) * tanh(cell)
    return state


@pytest.mark.parametrize(("run", "make"), [(gru_from_nothing, nn.GRUCell), (lstm_from_nothing, nn.LSTMCell)])
def test_an_unrolled_recurrent_layer_that_starts_from_zero(run, make):
    # The first state is constant, so that a gate times a constant is added to a signal: there it counts as a constant.
    def frozen_tanh(a):
        return a * (torch.tanh(a) / a).detach()

    assert_exact(run, lambda m, h: run(m, h, torch.Tensor.detach, frozen_tanh), cell=make(6, 4))


CONSTANTS = {
    "LSTM": (lambda h: torch.sigmoid(h) * torch.zeros_like(C) + h, lambda h: h),
    "gate times a bias": (
        lambda h: torch.sigmoid(h) * h + (1 - torch.sigmoid(h)) * C,
        lambda h: torch.sigmoid(h).detach() * h + (1 - torch.sigmoid(h)).detach() * C,
    ),
    "gate times a row": (
        lambda h: torch.sigmoid(h) * h + C[:1, :1] * (1 - torch.sigmoid(h)),
        lambda h: torch.sigmoid(h).detach() * h + C[:1, :1] * (1 - torch.sigmoid(h)).detach(),
    ),
}


@pytest.mark.parametrize("case", CONSTANTS)
def test_a_gate_times_a_constant_is_a_constant(case):
    # It depends on the input, and yet it may be added to a signal, as in ``gate * x + (1 - gate) * default``.
    f, twin = CONSTANTS[case]
    assert_exact(lambda m, h: f(h), lambda m, h: twin(h))


def test_instance_norm_with_running_statistics():
    # In eval mode it is a constant scale and shift, as batch norm is; nothing is frozen.
    norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
    norm.running_mean.copy_(torch.tensor([0.1, -0.3, 0.2, 0.5]))
    norm.running_var.copy_(torch.tensor([0.5, 1.5, 2.0, 0.7]))
    assert_exact(norm, lambda m, h: m(h))


@pytest.mark.parametrize("form", ["pow(-0.5)", "** 0.5", "** -0.5", "L2"])
def test_a_scale_written_as_a_power(form):
    # ``(var + eps) ** 0.5`` is as common as sqrt, but other powers of what is bent stay bent.
    f = {
        "pow(-0.5)": lambda h: h * (h.pow(2).mean(-1, keepdim=True) + 1e-6).pow(-0.5),
        "** 0.5": lambda h: h / (h.pow(2).mean(-1, keepdim=True) + 1e-6) ** 0.5,
        "** -0.5": lambda h: h * ((h * h).mean(-1, keepdim=True) + 1e-6) ** -0.5,
        "L2": lambda h: h / (h**2).sum(-1, keepdim=True) ** 0.5,
    }[form]
    twin = {"L2": lambda h: h / h.norm(dim=-1, keepdim=True).detach()}.get(
        form, lambda h: h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt().detach()
    )
    assert_exact(lambda m, h: f(h), lambda m, h: twin(h))


@pytest.mark.parametrize("function", ["var_mean", "std_mean", "std_mean of the inside"])
def test_a_layer_norm_by_var_mean(function):
    # Of one call's two results the variance is a frozen scale, but the mean is a signal.
    def layer_norm(h):
        if function == "var_mean":
            variance, mean = torch.var_mean(h, -1, keepdim=True, correction=0)
            return (h - mean) * torch.rsqrt(variance + 1e-5)
        deviation, mean = torch.std_mean(h, (1, 2) if "inside" in function else -1, keepdim=True, correction=0)
        return (h - mean) / deviation

    def twin(h):
        axes = (1, 2) if "inside" in function else -1
        centred = h - h.mean(axes, keepdim=True)
        eps = 1e-5 if function == "var_mean" else 0
        return centred / (centred.square().mean(axes, keepdim=True) + eps).sqrt().detach()

    assert_exact(lambda m, h: layer_norm(h), lambda m, h: twin(h))


@pytest.mark.parametrize("form", ["relu * relu", "pow_", "square_", "a tensor as the exponent"])
def test_squared_relu(form):
    # In r * r both factors come out of an activation; nothing is left to choose, as they are one tensor.
    f = {
        "relu * relu": lambda r: r * r,
        "pow_": lambda r: r.pow_(2),
        "square_": lambda r: r.square_(),
        "a tensor as the exponent": lambda r: r ** torch.tensor(2.0, dtype=torch.float64),
    }[form]
    assert_exact(lambda m, h: f(F.relu(h)), lambda m, h: F.relu(h) * F.relu(h).detach())


GATES = {
    "clamp": (lambda h: h * (h + 3).clamp(0, 6) / 6, lambda h: h * (h + 3).clamp(0, 6).detach() / 6),
    "clip": (lambda h: h * torch.clip(h / 6 + 0.5, 0, 1), lambda h: h * torch.clip(h / 6 + 0.5, 0, 1).detach()),
    "1 + tanh": (
        lambda h: 0.5 * h * (1 + torch.tanh(0.8 * h)),
        lambda h: 0.5 * h * (1 + (0.8 * h).tanh().detach()),
    ),
    "1 - tanh": (lambda h: h * (1 - torch.tanh(h.flip(1))), lambda h: h * (1 - torch.tanh(h.flip(1)).detach())),
    "expit": (lambda h: h * torch.special.expit(h), lambda h: h * torch.sigmoid(h).detach()),
    "ndtr": (lambda h: h * torch.special.ndtr(h), lambda h: h * torch.special.ndtr(h).detach()),
    "sigmoid_": (
        lambda h: h * h.mean(-1, keepdim=True).sigmoid_(),
        lambda h: h * h.mean(-1, keepdim=True).sigmoid().detach(),
    ),
}


@pytest.mark.parametrize("form", GATES)
def test_other_ways_to_write_a_gate(form):
    # Between two bounds clamp is hardtanh, as in the older hard swish. A number added to a gate leaves it a gate, and
    # sigmoid_ writes one over a signal.
    f, twin = GATES[form]
    assert_exact(lambda m, h: f(h), lambda m, h: twin(h))


@pytest.mark.parametrize("function", [
    lambda h: h * torch.cat([torch.sigmoid(h[..., :3]), torch.tanh(h[..., 3:])], -1),
    lambda h: torch.lerp(h, h.flip(1), torch.sigmoid(h)),
], ids=["cat", "lerp"])  # fmt: skip
def test_a_gate_that_no_product_takes_is_refused(function):
    # Joined with another gate, or as the weight of a mean, a gate would be taken for a signal.
    with pytest.raises(UnsupportedOperation, match="it is a gate: frozen at the input, it can scale a signal"):
        freeze(branches(lambda m, h: function(h)), given_input())


def test_attention_whose_queries_are_bent():
    # Queries, keys and mask only make the gates, so that they need not be affine: only the values must be a signal.
    assert_exact(
        lambda m, h: sdpa(torch.sin(h), h, h),
        lambda m, h: (torch.sin(h) @ h.mT * 6**-0.5).softmax(-1).detach() @ h,
    )


def test_rotary_positions_as_complex_numbers():
    # As in LLaMA. It is linear, but complex signals cannot be tested: the table has to know it.
    turn = torch.polar(torch.ones(4, 3, dtype=torch.float64), C[0, :, :3])

    def rotate(m, h):
        return torch.view_as_real(torch.view_as_complex(h.reshape(2, 4, 3, 2)) * turn).flatten(2)

    assert_exact(rotate, rotate)


UNCHOSEN = {
    "linear": each(lambda s, t: F.linear(s, t)),
    "linear with a bias": each(lambda s, t: F.linear(s, t, C[0, :, 0])),
    "conv1d (cross-correlation)": each(lambda s, t: F.conv1d(s[None], t[None, :, :3])[0]),
    "conv_transpose1d": each(lambda s, t: F.conv_transpose1d(s[None], t[:, None, :2])[0]),
    "kron": each(lambda s, t: torch.kron(s[:2, :3], t[:2, :2])),
    "vdot": each(lambda s, t: torch.vdot(s[0], t[0])[None]),
    "ger": each(lambda s, t: torch.ger(s[0], t[0])),
    "vecdot": torch.linalg.vecdot,
    "multi_dot": each(lambda s, t: torch.linalg.multi_dot([s, t.T])),
    "cross": lambda u, v: torch.cross(u[..., :3], v[..., :3], dim=-1),
}


@pytest.mark.parametrize("case", UNCHOSEN)
def test_other_products_of_two_signals_carry_on_as_chosen(case):
    # Whatever multiplies two signals is refused in a sentence that offers carry=, or treated as chosen, also where one
    # of them stands in a weight's place.
    f = UNCHOSEN[case]
    with pytest.raises(UnsupportedOperation, match="carry='first'"):
        freeze(branches(lambda m, h: f(h, h.flip(1))), given_input())
    assert_exact(lambda m, h: f(h, h.flip(1)), lambda m, h: f(h, h.flip(1).detach()), "first")


@pytest.mark.parametrize("form", ["mul_", "imul", "addcmul_", "relu.mul_"])
def test_products_in_place_carry_on_as_chosen(form):
    # The product overwrites a factor that the derivative may need.
    def imul(y, z):
        y *= z
        return y

    f, carry, twin = {
        "mul_": (lambda h: h.clone().mul_(h.flip(1)), "second", lambda h: h.detach() * h.flip(1)),
        "imul": (
            lambda h: imul(h.clone(), h.flip(1)),
            "half",
            lambda h: (h.detach() * h.flip(1) + h * h.flip(1).detach()) / 2,
        ),
        "addcmul_": (lambda h: C.clone().addcmul_(h, h.flip(1)), "first", lambda h: C + h * h.flip(1).detach()),
        "relu.mul_": (lambda h: F.relu(h).mul_(h.flip(1)), None, lambda h: F.relu(h).detach() * h.flip(1)),
    }[form]  # fmt: skip
    assert_exact(lambda m, h: f(h), lambda m, h: twin(h), carry)


@pytest.mark.parametrize("form", ["x * (1 / d)", "x * d.reciprocal()"])
def test_a_quotient_in_two_steps_with_a_choice(form):
    # ``1 / d`` by itself divides a constant by a signal; with a choice it is a frozen scale, as in ``x / d``.
    f = {
        "x * (1 / d)": lambda h: h * (1 / (h.sum(-1, keepdim=True) + 9)),
        "x * d.reciprocal()": lambda h: h * (h.sum(-1, keepdim=True) + 9).reciprocal(),
    }[form]
    assert_exact(lambda m, h: f(h), lambda m, h: h / (h.sum(-1, keepdim=True) + 9).detach(), "first")


def test_the_power_of_one_is_linear():
    assert_exact(lambda m, h: h**1, lambda m, h: h)


# --- freezes ---


def test_a_subclass_of_a_taught_autograd_function_computes_what_it_did():
    # A subclass inherits the ``apply`` that announces the taught class, but runs its own forward and backward.
    class Gated(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h * torch.tanh(h)

    class Negative(Gated):
        @staticmethod
        def forward(ctx, h):
            return -h

    before = Negative.apply(torch.ones(2))
    freezes(Gated)(torch.tanh)
    assert torch.equal(Negative.apply(torch.ones(2)), before)


def _wrapped_by_another():
    @functools.wraps(torch.sin)
    def sine(h):
        return torch.sin(h)

    return sine


@pytest.mark.parametrize(
    "make",
    [
        nn.GELU,
        lambda: nn.GELU().forward,
        lambda: functools.partial(torch.sin),
        lambda: math.sin,
        lambda: len,
        _wrapped_by_another,
        lambda: _Callable(),
    ],
    ids=["a module", "a bound method", "partial", "math", "built-in", "functools.wraps", "an object"],
)
def test_what_torch_does_not_announce_cannot_be_taught(make):
    # In the table no call would ever find it, and the user would never know.
    with pytest.raises(UsageError):
        freezes(make())(torch.ones_like)


class _Callable:
    def __call__(self, h):
        return torch.sin(h)


@pytest.mark.parametrize("form", ["method", "torch.special"])
def test_a_taught_function_of_torch_is_seen_under_its_other_names(form):
    # torch.sin and torch.Tensor.sin are two functions: whoever teaches one means both.
    freezes(torch.sin if form == "method" else torch.erfc)(lambda h: (torch.sin(h) if form == "method" else h) / h)
    f = {"method": lambda h: h.sin(), "torch.special": lambda h: torch.special.erfc(h)}[form]
    assert_complete(freeze(branches(lambda m, h: f(h)), given_input()), 0)


def test_a_name_that_ends_with_an_underscore_is_not_in_place():
    # The underscore means in place in torch's own names alone.
    swish_ = wrap_torch_function(lambda h: (h,))(lambda h: h * torch.sigmoid(h))
    swish_.__name__ = "swish_"
    freezes(swish_)(torch.sigmoid)
    assert_exact(lambda m, h: swish_(h), lambda m, h: h * torch.sigmoid(h).detach())


def test_a_taught_module_that_writes_to_its_argument_is_exact_or_refused():
    # Once the argument is overwritten, its slope and rest would be taken at the output.
    class InPlace(nn.Module):
        def forward(self, h):
            return h.mul_(torch.sigmoid(h))

    freezes(InPlace)(lambda m, h: torch.sigmoid(h))
    try:
        frozen = freeze(branches(lambda m, h: m.act(h.clone()), act=InPlace()), given_input())
    except UnsupportedOperation:
        return
    assert_complete(frozen, 0)


def test_teaching_again_what_is_called_through_apply():
    # The ``apply`` of a taught class is not torch's own: it is refused like any function that torch does not announce.
    class Gated(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return h * torch.tanh(h)

    freezes(Gated)(torch.tanh)
    with pytest.raises(UsageError):
        freezes(Gated.apply)(torch.tanh)


def _added(h, k):
    h += k
    return h


def _added_seen_through_a_view(h, k):
    view = h.flatten(1)
    h += k
    return view.view(h.shape)


def _added_in_part(h, k):
    h[..., :3] += k[..., :3]
    return h


@pytest.mark.parametrize("add", [torch.add, torch.Tensor.add_, _added, _added_seen_through_a_view, _added_in_part])
@pytest.mark.parametrize("use", [lambda g, h: g * (2 * h), lambda g, h: g**2])
def test_an_activation_to_which_a_signal_was_added_is_no_gate(add, use):
    with pytest.raises(UnsupportedOperation, match=r"out of (an|no) activation"):
        freeze(branches(lambda m, h: use(add(F.relu(h), h), h)), given_input())


def test_a_gate_over_which_a_signal_was_copied_is_no_gate():
    with pytest.raises(UnsupportedOperation, match="multiplies two signals"):
        freeze(branches(lambda m, h: torch.tanh(h).copy_(h) * (2 * h)), given_input())


@pytest.mark.parametrize("scale", [lambda g: g * 2, lambda g: g.mul_(2), lambda g: g.add_(1), lambda g: g.div_(0.5)])
def test_an_activation_scaled_or_shifted_in_place_is_still_a_gate(scale):
    assert_exact(lambda m, h: scale(F.relu(h)) * (2 * h), lambda m, h: scale(F.relu(h).detach()) * (2 * h))


FILTER = torch.linspace(-1, 1, 8, dtype=torch.float64).view(4, 2).cos().view(torch.complex128)
COMPLEX = {
    "the real part of a Fourier transform": lambda h: torch.fft.fft(h).real,
    "the imaginary part of a Fourier transform": lambda h: torch.fft.fft(h).imag,
    "over two axes": lambda h: torch.fft.fft2(h).real,
    "there and back": lambda h: torch.fft.irfft(torch.fft.rfft(h), 6),
    "filtered and shifted": lambda h: torch.fft.irfft(torch.fft.rfft(h) * FILTER[:, 0] + FILTER[:, 0], 6),
    "conjugated": lambda h: torch.fft.rfft(h).conj().imag,
}


@pytest.mark.parametrize("form", COMPLEX)
def test_what_is_linear_over_complex_numbers_is_exact(form):
    assert_exact(lambda m, h: COMPLEX[form](h), lambda m, h: COMPLEX[form](h))


@pytest.mark.parametrize("bend", [torch.abs, torch.angle, torch.sgn, torch.tanh, torch.Tensor.abs, abs])
def test_what_is_curved_over_complex_numbers_is_no_signal(bend):
    with pytest.raises(UnsupportedOperation, match=f"{bend.__name__} in module"):
        freeze(branches(lambda m, h: torch.view_as_real(bend(torch.fft.rfft(h)) + 0j)), given_input())


def test_the_modulus_of_a_complex_number_is_a_scale():
    def scaled(m, h, stop=torch.clone):
        z = torch.fft.rfft(h)
        return torch.fft.irfft(z / stop(z.abs()), 6)

    assert_exact(scaled, lambda m, h: scaled(m, h, torch.detach))
