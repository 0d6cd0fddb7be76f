"""The table of operations: each entry is straight at x as it says, and what it does not know is tested or refused."""

from __future__ import annotations

import math
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asserts import assert_close, assert_complete, assert_same_model, refusal
from nets import Lambda, example, randomise
from relupath import freeze, linear_model
from relupath._gates import TABLE
from relupath.errors import ModelError, UnknownLayerError, UnsupportedOperation
from relupath.reach import first_flip

C = torch.tensor([[0.3, -0.7, 1.1, -0.2]]).double()
W = torch.randn(4, 4, generator=torch.Generator().manual_seed(5)).double()
K2 = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(6)).double()
MASK = torch.tensor([True, False, True, False])
"""In every case x has shape (2, 4), is in general position and crosses zero; the result may have any shape."""

AFFINE = {
    "view": lambda x: x.view(2, 2, 2),
    "reshape": lambda x: torch.reshape(x, (2, 2, 2)),
    "flatten": lambda x: x.view(2, 2, 2).flatten(1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "transpose": lambda x: x.view(2, 2, 2).transpose(1, 2),
    "permute": lambda x: x.view(2, 2, 2).permute(0, 2, 1),
    "T": lambda x: (W @ x.T).T,
    "contiguous": lambda x: x.view(2, 2, 2).transpose(1, 2).contiguous(),
    "to": lambda x: x.to(torch.float64),
    "expand": lambda x: x.unsqueeze(1).expand(2, 3, 4),
    "repeat": lambda x: x.repeat(1, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "index": lambda x: x[:, [2, 0, 0]],
    "mask index": lambda x: x[:, MASK],
    "gather": lambda x: x.gather(1, torch.tensor([[3, 0], [1, 1]])),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: torch.split(x, [1, 3], 1)[1],
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "roll": lambda x: x.roll(1, 1),
    "flip": lambda x: x.flip(1),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.view(2, 4, 1, 1), 2),
    "unfold": lambda x: F.unfold(x.view(2, 1, 2, 2), (2, 1)),
    "sum": lambda x: x.sum(1, keepdim=True),
    "mean": lambda x: x.view(2, 2, 2).mean((1, 2)).view(2, 1),
    "cumsum": lambda x: x.cumsum(1),
    "neg": lambda x: -x,
    "avg_pool2d": lambda x: F.avg_pool2d(x.view(2, 1, 2, 2), 2, 1, 1),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x.view(2, 1, 4), 2),
    "interpolate": lambda x: F.interpolate(x.view(2, 1, 2, 2), scale_factor=2, mode="bilinear"),
    "add a constant": lambda x: x + C,
    "add a number": lambda x: 3.0 + x,
    "add alpha": lambda x: torch.add(x, C, alpha=2),
    "add_": lambda x: x.clone().add_(C),
    "iadd": lambda x: _inplace(x, lambda y: y.__iadd__(C)),
    "add to a constant": lambda x: _inplace(C.repeat(2, 1), lambda y: y.add_(x)),
    "sub": lambda x: 1.0 - x,
    "rsub": lambda x: torch.rsub(x, C),
    "sum of a list": lambda x: sum([x, 2 * x, C]),
    "cat": lambda x: torch.cat([x, C.expand(2, 4), x], 1),
    "stack": lambda x: torch.stack([x, C.expand(2, 4)], 2),
    "where": lambda x: torch.where(MASK, x, C),
    "masked_fill": lambda x: x.masked_fill(~MASK, 7.0),
    "masked_fill_": lambda x: x.clone().masked_fill_(MASK, -3.0),
    "pad": lambda x: F.pad(x, (1, 2), value=2.5),
    "pad reflect": lambda x: F.pad(x.view(2, 1, 4), (1, 1), mode="reflect"),
    "setitem": lambda x: _setitem(torch.ones(2, 5).double(), (slice(None), slice(0, 4)), x),
    "setitem with a constant": lambda x: _setitem(x.clone(), (slice(None), 1), 5.0),
    "setitem in a column": lambda x: _setitem(x.clone(), (slice(None), 1), x[:, 2] + 1),
    "copy_": lambda x: torch.ones(2, 4).double().copy_(x),
    "index_put": lambda x: x.index_put((torch.tensor([0, 1]), torch.tensor([1, 2])), torch.tensor(4.0).double()),
    "mul": lambda x: x * C,
    "mul_": lambda x: x.clone().mul_(2.0),
    "matmul": lambda x: x @ W,
    "rmatmul": lambda x: (W @ x.unsqueeze(-1)).squeeze(-1),
    "bmm": lambda x: torch.bmm(x.view(2, 2, 2), W[:2, :2].expand(2, 2, 2)),
    "einsum": lambda x: torch.einsum("bi,ij->bj", x, W),
    "div": lambda x: x / C,
    "linear": lambda x: F.linear(x, W, C[0]),
    "linear with a signal as its bias": lambda x: F.linear(torch.ones(2, 4).double(), W, x.sum(0)) if len(x) == 1
              else F.linear(C.expand(2, 4), W) + x,
    "conv1d": lambda x: F.conv1d(x.view(2, 1, 4), W[:, :1, None].expand(4, 1, 2), C[0]),
    "conv2d": lambda x: F.conv2d(x.view(2, 4, 1, 1), K2, torch.tensor([1.0, 2, 3]).double(), padding=1),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x.view(2, 4, 1, 1), K2.transpose(0, 1),
                                                     torch.tensor([1.0, 2, 3]).double()),
    "batch_norm": lambda x: F.batch_norm(x, C[0], C[0].abs(), C[0], C[0]),
    "dropout": lambda x: F.dropout(x, 0.5, False),
}  # fmt: skip

PIECES = {
    "relu": (F.relu, True),
    "relu method": (lambda x: x.relu(), True),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1), True),
    "prelu": (lambda x: F.prelu(x, C[0].abs()), True),
    "relu6": (lambda x: F.relu6(6 * x), True),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.25), True),
    "threshold": (lambda x: F.threshold(x, 0.2, 5.0), True),
    "hardshrink": (lambda x: F.hardshrink(x, 0.4), True),
    "softshrink": (lambda x: F.softshrink(x, 0.4), True),
    "hardsigmoid": (lambda x: F.hardsigmoid(4 * x), False),
    "clamp": (lambda x: x.clamp(-0.3, 0.4), False),
    "clamp by tensors": (lambda x: torch.clamp(x, min=C, max=C + 1), False),
    "clip": (lambda x: torch.clip(x, min=0.1), False),
    "clamp_min": (lambda x: x.clamp_min(0.2), False),
    "clamp_max": (lambda x: x.clamp_max(0.2), False),
    "abs": (lambda x: x.abs(), False),
    "maximum": (lambda x: torch.maximum(x, x.flip(1)), False),
    "maximum with a constant": (lambda x: torch.maximum(C, x), False),
    "maximum that broadcasts x": (lambda x: torch.maximum(x.unsqueeze(1), W), False),
    "minimum": (lambda x: torch.minimum(x, C), False),
    "max over an axis": (lambda x: x.max(1, keepdim=True).values, False),
    "max of two": (lambda x: torch.max(x, C), False),
    "min over an axis": (lambda x: torch.min(x, 1)[0][:, None], False),
    "amax": (lambda x: x.amax(1, keepdim=True), False),
    "sort": (lambda x: x.sort(1, descending=True).values, False),
    "topk": (lambda x: torch.topk(x, 2)[0], False),
    "kthvalue": (lambda x: x.kthvalue(2, 1, keepdim=True).values, False),
    "cummax": (lambda x: x.cummax(1).values, False),
    "max_pool1d": (lambda x: F.max_pool1d(x.view(2, 1, 4), 2, 1), False),
    "max_pool2d": (lambda x: F.max_pool2d(x.view(2, 1, 2, 2), 2), False),
    "max_pool2d with indices": (lambda x: F.max_pool2d(x.view(2, 1, 2, 2), 2, return_indices=True)[0], False),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x.view(2, 1, 2, 2), 1), False),
    "sign": (lambda x: x.sign() + x, False),
    "floor": (lambda x: torch.floor(3 * x) + x, False),
    "round": (lambda x: x.round() * x.new_tensor(2.0) - x, False),
    "one hot of the largest": (lambda x: F.one_hot(x.argmax(1), 4) + x, False),
    "median": (lambda x: x.median(1, keepdim=True).values, False),
    "quantile": (lambda x: x.quantile(0.4, dim=1, keepdim=True), False),
    "rrelu": (lambda x: F.rrelu(x), True),
    "where on the sign": (lambda x: torch.where(x > 0, x, -0.5 * x + 1), False),
    "times the sign": (lambda x: x * (x > 0), False),
}  # fmt: skip

GATES = {
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "elu": lambda x: F.elu(x, 0.7),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 1.3),
    "tanh": torch.tanh,
    "softsign": F.softsign,
}

IN_PLACE = {
    "relu": (lambda x: F.relu(x, inplace=True), F.relu),
    "relu_": (torch.relu_, F.relu),
    "relu_ method": (lambda x: x.relu_(), F.relu),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.1, inplace=True), lambda x: F.leaky_relu(x, 0.1)),
    "leaky_relu_": (lambda x: F.leaky_relu_(x, 0.1), lambda x: F.leaky_relu(x, 0.1)),
    "relu6": (lambda x: F.relu6(x, True), F.relu6),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.5, True), lambda x: F.hardtanh(x, -0.5, 0.5)),
    "hardtanh_": (lambda x: F.hardtanh_(x, -0.5, 0.5), lambda x: F.hardtanh(x, -0.5, 0.5)),
    "threshold": (lambda x: F.threshold(x, 0.1, 2.0, inplace=True), lambda x: F.threshold(x, 0.1, 2.0)),
    "threshold_": (lambda x: F.threshold_(x, 0.1, 2.0), lambda x: F.threshold(x, 0.1, 2.0)),
    "clamp_": (lambda x: x.clamp_(-0.4, 0.4), lambda x: x.clamp(-0.4, 0.4)),
    "elu": (lambda x: F.elu(x, 0.5, inplace=True), lambda x: F.elu(x, 0.5)),
    "silu": (lambda x: F.silu(x, inplace=True), F.silu),
    "mish": (lambda x: F.mish(x, inplace=True), F.mish),
    "hardswish": (lambda x: F.hardswish(x, inplace=True), F.hardswish),
    "selu": (lambda x: F.selu(x, inplace=True), F.selu),
    "celu": (lambda x: F.celu(x, 1.0, inplace=True), F.celu),
    "tanh_": (lambda x: x.tanh_(), torch.tanh),
}


def _inplace(y, change):
    change(y)
    return y


def _setitem(y, key, value):
    y[key] = value
    return y


def net(function, outputs=3):
    """A linear map, the function, and fixed weights on all that it gives."""

    def forward(m, x):
        y = function(m.fc(x))
        flat = y.flatten(1)
        return flat @ torch.cos(torch.arange(flat.shape[1] * outputs).double() + 1).view(-1, outputs)

    return randomise(Lambda(forward, fc=nn.Linear(5, 4)), 3)


def given_input():
    return example((5,), 1)


def operation(frozen, name):
    return [op for op in frozen.operations if op.name == name]


@pytest.mark.parametrize("case", AFFINE)
def test_affine_operations_keep_value_derivative_and_constants(case):
    model, x = net(AFFINE[case]), given_input()
    frozen = freeze(model, x)
    with torch.no_grad():
        assert torch.equal(frozen.output, model(x))
    assert_complete(frozen, 1)
    whole = linear_model(frozen, 1)
    far = 50 * example((5,), 2)
    assert_close(whole(far), model(far)[:, 1], 1e3)
    assert {op.kind for op in frozen.operations} <= {"affine", "tested"}
    assert frozen.layers == ()


@pytest.mark.parametrize("case", PIECES)
def test_pieces_are_exact_nearby(case):
    function, activation = PIECES[case]
    model, x = net(function), given_input()
    frozen = freeze(model, x)
    with torch.no_grad():
        assert torch.equal(frozen.output, model(x))
        nearby = x + 1e-7 * example((5,), 9)
        moved = model(nearby)[:, 1] - model(x)[:, 1]
    assert_complete(frozen, 1)
    whole = linear_model(frozen, 1)
    assert (whole(nearby) - whole.value - moved).abs().max() <= 1e-6 * moved.abs().max() + 1e-14
    assert len(frozen.layers) == int(activation)
    if activation:
        assert_close(frozen.layers[0].output, function(model.fc(x)))


@pytest.mark.parametrize("case", GATES)
def test_gates_have_slope_f_over_h_and_no_intercept(case):
    f = GATES[case]
    model, x = net(f), given_input()
    frozen = freeze(model, x)
    with torch.no_grad():
        assert torch.equal(frozen.output, model(x))
    assert_complete(frozen, 1)
    h = model.fc(x).detach()
    (slope,) = frozen.vjp({frozen.top: frozen.functional(1).gradient}, frozen.layers)
    phi = torch.stack([slope[0] * (f(h) / h)[0], slope[1] * (f(h) / h)[1]])
    assert_close(linear_model(frozen, 1).weight, phi @ model.fc.weight)
    assert [op.kind for op in frozen.operations if op.kind != "affine"] == ["gate"]
    assert {source.name for source in frozen.sources} == {"fc.bias"}


@pytest.mark.parametrize("case", GATES)
def test_gates_at_zero_have_the_limit_of_the_slope(case):
    f = GATES[case]
    model = Lambda(lambda m, x: f(x)).eval()
    weight = linear_model(freeze(model, torch.zeros(1, 2).double()), 0).weight
    either_side = torch.tensor([1e-6, -1e-6]).double()
    limits = (f(either_side) / either_side).tolist()
    assert any(float(weight[0, 0]) == pytest.approx(limit, rel=1e-5) for limit in limits), "elu has a kink at zero"
    assert weight[0, 1] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_limit_at_zero_is_that_of_the_functions_own_settings(dtype):
    """One entry among others is zero, once for each setting, in turn, by position and by name."""
    alphas = 1.0, 2.0, 3.0, 2.0

    def f(m, h):
        return torch.cat([F.elu(h, alphas[0]), F.elu(h, alphas[1]), F.elu(h, alpha=alphas[2]), F.elu(h, alphas[3])], 1)

    h = torch.tensor([[0.0, 1.5, -0.7], [0.4, 0.0, 2.0]], dtype=dtype)
    frozen = freeze(Lambda(f).eval(), h)
    for i, alpha in enumerate(alphas):
        slope = torch.where(h == 0, alpha, F.elu(h, alpha) / h)
        (found,) = frozen.vjp({frozen.top: F.pad(torch.ones_like(h), (3 * i, 9 - 3 * i))}, frozen.inputs)
        assert_close(found, slope)
    beta = freeze(Lambda(lambda m, h: F.softplus(h, 1.0) + F.softplus(h, 4.0)).eval(), torch.zeros(1, 2, dtype=dtype))
    assert float(beta.check(0).bias) == pytest.approx(1.25 * math.log(2))


@pytest.mark.parametrize("case", IN_PLACE)
def test_in_place_forms_write_where_they_should(case):
    """The written tensor is read again afterwards, under its old name; the result is that of the plain form."""
    in_place, plain = IN_PLACE[case]

    def written(h):
        y = h + 0
        in_place(y)
        return torch.cat([y, h], 1)

    model, twin, x = net(written), net(lambda h: torch.cat([plain(h), h], 1)), given_input()
    frozen, expected = freeze(model, x), freeze(twin, x)
    assert torch.equal(frozen.output, model(x))
    assert torch.equal(frozen.output, expected.output)
    assert_complete(frozen, 1)
    assert_same_model(linear_model(frozen, 1), linear_model(expected, 1))
    assert len(frozen.layers) == len(expected.layers)


@pytest.mark.parametrize("case", ["relu", "leaky_relu", "hardtanh", "silu", "clamp_"])
def test_in_place_on_a_view_changes_the_whole(case):
    in_place, plain = IN_PLACE[case]

    def written(h):
        y = h + 0
        in_place(y[:, 1:3])
        return y

    model, twin = net(written), net(lambda h: torch.cat([h[:, :1], plain(h[:, 1:3]), h[:, 3:]], 1))
    frozen, expected = freeze(model, given_input()), freeze(twin, given_input())
    assert torch.equal(frozen.output, expected.output)
    assert_complete(frozen, 1)
    assert_same_model(linear_model(frozen, 1), linear_model(expected, 1))


REFUSED = {
    "sin": (torch.sin, "sin"),
    "exp": (torch.exp, "exp"),
    "square": (lambda x: x * x, "mul"),
    "power": (lambda x: x**2, "pow"),
    "square in place": (lambda x: _inplace(x + 0, lambda y: y.mul_(x)), "mul"),
    "matmul of signals": (lambda x: x @ x.T @ x, "matmul"),
    "einsum of signals": (lambda x: torch.einsum("bi,bj->bij", x, x), "einsum"),
    "softmax": (lambda x: F.softmax(x, 1), "softmax"),
    "log_softmax": (lambda x: F.log_softmax(x, 1), "log_softmax"),
    "sigmoid": (torch.sigmoid, "sigmoid"),
    "reciprocal": (lambda x: 1 / x, "div|reciprocal"),
    "quotient": (lambda x: x / x.sum(1, keepdim=True), "div"),
    "round": (lambda x: torch.div(x, 0.1, rounding_mode="floor"), "div"),
    "batch statistics": (lambda x: F.batch_norm(x, None, None, training=True), "batch_norm"),
    "active dropout": (lambda x: F.dropout(x), "dropout"),
    "weight from a signal": (lambda x: F.linear(x, x), "linear"),
    "item": (lambda x: x * x.sum().item(), "item"),
    "norm": (lambda x: x.norm(dim=1, keepdim=True), "norm"),
    "std": (lambda x: x.std(1, keepdim=True), "std"),
    "logsumexp": (lambda x: x.logsumexp(1, keepdim=True), "logsumexp"),
    "rnn": (
        lambda x: torch.rnn_tanh(
            x.unsqueeze(0), torch.zeros(1, 2, 4).double(), [W, W], False, 1, 0.0, False, False, False
        )[0][0],
        "rnn_tanh",
    ),
    "cdist": (lambda x: torch.cdist(x, W), "cdist"),
    "fft magnitude": (lambda x: torch.fft.rfft(x).abs(), ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_affine_is_refused_with_its_name_and_place(case):
    function, name = REFUSED[case]
    model = Lambda(lambda m, x: m.tail(m.middle(m.fc(x)).flatten(1)), fc=nn.Linear(5, 4), tail=nn.LazyLinear(2),
                   middle=Lambda(lambda m, x: function(x)))  # fmt: skip
    with torch.no_grad():
        model.double()(torch.ones(2, 5).double())
    with pytest.raises(UnsupportedOperation) as caught:
        freeze(randomise(model, 0), given_input())
    sentence = str(caught.value)
    assert any(part in sentence.split(" in module")[0] for part in name.split("|"))
    assert "in module 'middle'" in sentence
    assert "cannot be explained exactly: " in sentence
    assert "Replace it" in sentence


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.lerp(x, C.expand(2, 4), 0.3),
        lambda x: x.scatter_add(1, torch.zeros(2, 4, dtype=torch.long), x),
        lambda x: x.diff(dim=1),
        lambda x: x.index_add(1, torch.tensor([0, 1]), x[:, 2:]),
    ],
    ids=["lerp", "scatter_add", "diff", "index_add"],
)
def test_an_unknown_affine_function_passes_the_test(function):
    model, x = net(function), given_input()
    frozen = freeze(model, x)
    assert torch.equal(frozen.output, model(x))
    assert "tested" in {op.kind for op in frozen.operations}
    assert_complete(frozen, 1)
    far = 50 * example((5,), 2)
    assert_close(linear_model(frozen, 1)(far), model(far)[:, 1], 1e3)


def test_the_refusal_names_the_line_of_the_users_code(tmp_path):
    """In a process of its own: the run-time type checks stand between the frames here."""
    script = tmp_path / "users_code.py"
    script.write_text(
        "import torch, relupath\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.sin(x)\n"
        "try:\n"
        "    relupath.freeze(Net().eval(), torch.ones(1, 2))\n"
        "except relupath.errors.UnsupportedOperation as refusal:\n"
        "    print(refusal)\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("sin in module '(the model itself)' (users_code.py:4) cannot be explained exactly: ")


def test_a_linear_function_on_complex_numbers_is_exact_or_refused():
    model, x = net(lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.tensor([1.0, 0.5, 2.0]))), given_input()
    sentence = refusal(lambda: assert_complete(freeze(model, x), 1), UnsupportedOperation)
    assert sentence is None or "fft" in sentence


def test_a_function_that_only_looks_is_no_operation():
    def look(x):
        return x * 2 if bool((x.detach() > -1e9).all()) and x.shape[0] == 2 and x.argmax(1).numel() == 2 else x

    frozen = freeze(net(look), given_input())
    assert_complete(frozen, 1)


def test_linear_map_of_a_constant_with_a_signal_as_bias_keeps_the_constant():
    model = randomise(Lambda(lambda m, x: F.linear(torch.ones(len(x), 3).double(), m.w, x[:, :4]),
                             w=nn.Parameter(torch.zeros(4, 3))), 1)  # fmt: skip
    frozen = freeze(model, given_input())
    assert_complete(frozen, 0)
    assert_close(linear_model(frozen, 0).bias, model.w[0].sum().expand(2))


def test_alpha_dropout_is_off_by_default_as_in_torch():
    model, x = net(lambda x: F.alpha_dropout(x)), given_input()
    assert torch.equal(freeze(model, x).output, model(x))


def test_prelu_at_zero_is_one_piece_for_products_down_and_up():
    """Torch's own derivative of PReLU takes the weight at 0, the derivative of that derivative takes 1."""
    body = nn.Sequential(nn.Linear(1, 1), nn.PReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double().eval()
    with torch.no_grad():
        for number, weight, bias in ((0, 1, 0), (2, 1, 1), (4, 1, 0)):
            body[number].weight.fill_(weight)
            body[number].bias.fill_(bias)
    frozen = freeze(body, torch.zeros(1, 1, dtype=torch.float64))
    assert float(frozen.slopes("1")) == 0.25
    flip = first_flip(frozen, -torch.ones(1, 1, dtype=torch.float64))
    assert (float(flip.t), flip.layer) == (4.0, ("3",))


def test_layers_and_outputs_of_complex_numbers_are_refused():
    model = Lambda(lambda m, x: torch.fft.irfft(m.inner(torch.fft.rfft(x)), 8), inner=nn.Identity()).eval()
    x = torch.randn(1, 8, dtype=torch.float64)
    assert freeze(model, x).check().error.max() < 1e-9
    with pytest.raises(UnknownLayerError, match=r"'inner' holds complex numbers.*record a layer before or after"):
        freeze(model, x, layers=["inner"])
    with pytest.raises(ModelError, match=r"output is complex.*output="):
        freeze(model, x, output=torch.fft.fft)


def test_every_function_of_the_table_has_a_known_kind():
    assert {"affine", "piece", "gate"} <= {rule.kind for rule in TABLE.values()}
    assert all(callable(function) for function in TABLE)
    for name in ("relu", "leaky_relu", "gelu", "silu", "conv2d", "linear", "batch_norm", "max_pool2d", "dropout"):
        assert getattr(F, name) in TABLE
    for function in (F.relu, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_):
        assert TABLE[function].activation


def test_the_printed_table_is_the_one_in_force():
    root = Path(__file__).parents[1]
    written = runpy.run_path(str(root / "scripts" / "operations"))["table"]()
    assert (root / "docs" / "operations.md").read_text(encoding="utf-8") == written, "run scripts/operations"
