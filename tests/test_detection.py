"""What the table does not know is found wherever it stands, and named: exact, or refused, never silently wrong."""

from __future__ import annotations

import copy
import ctypes
import inspect
import io
import pickle
import random
import re
import threading
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asserts import assert_close, assert_complete, assert_untouched, refusal
from nets import Lambda, example, randomise
from relupath import Frozen, freeze, linear_model
from relupath._gates import TABLE, Rule
from relupath._straight import Straight, WithSlope
from relupath.errors import IncompleteError, ModelError, UnsupportedOperation

# --- random networks with sites: places where an operation can be planted ---


class Site(nn.Module):
    """Hands its input on, until an operation is planted."""

    def __init__(self) -> None:
        super().__init__()
        self.operation: Callable[[Tensor], Tensor] | None = None

    def forward(self, h: Tensor) -> Tensor:
        return h if self.operation is None else self.operation(h)


Acts = tuple[Callable[[], nn.Module], ...]
BENT: Acts = (nn.ReLU, nn.Hardtanh, nn.ReLU6)
LIVE: Acts = (nn.LeakyReLU, nn.PReLU)
"""Activations behind which everything counts: none of them closes."""


def plain(r: random.Random, acts: Acts) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Site(), r.choice(acts)(), Site(), nn.Linear(4, 4))


def nested(r: random.Random, acts: Acts) -> nn.Module:
    inner = plain(r, acts)
    for depth in range(r.randrange(1, 4)):
        inner = nn.Sequential(OrderedDict({f"level{depth}": inner, "act": nn.LeakyReLU(0.2)}))
    return inner


class Residual(nn.Module):
    """The sites stand on the branch that is added."""

    def __init__(self, r: random.Random, acts: Acts) -> None:
        super().__init__()
        self.branch = plain(r, acts)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h)


class Fork(nn.Module):
    """Two branches side by side; the sites stand on one of them."""

    def __init__(self, r: random.Random, acts: Acts) -> None:
        super().__init__()
        self.left, self.right, self.join = plain(r, acts), nn.Linear(4, 4), nn.Linear(8, 4)

    def forward(self, h: Tensor) -> Tensor:
        return self.join(torch.cat([self.left(h), F.relu(self.right(h))], 1))


class Picture(nn.Module):
    """Convolution, batch norm, pooling; the sites see pictures."""

    def __init__(self, r: random.Random, acts: Acts) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 2, 1), Site(), nn.BatchNorm2d(2), r.choice(acts)(), nn.AvgPool2d(2, 1, 1), Site(),
            nn.MaxPool2d(2, 1),
        )  # fmt: skip
        self.out = nn.Linear(8, 4)

    def forward(self, h: Tensor) -> Tensor:
        return self.out(self.body(h.view(-1, 1, 2, 2)).flatten(1))


class Twice(nn.Module):
    """One block that runs two times."""

    def __init__(self, r: random.Random, acts: Acts) -> None:
        super().__init__()
        self.block = plain(r, acts)

    def forward(self, h: Tensor) -> Tensor:
        return self.block(self.block(h))


BLOCKS = (plain, nested, Residual, Fork, Picture, Twice)
CHAINS = (plain, nested, Picture, Twice)
UNSKIPPED = (*CHAINS, Fork)


def network(seed: int, blocks: tuple[Any, ...] = BLOCKS, acts: Acts = LIVE) -> nn.Module:
    """A random network of two or three blocks, (B, 4) to (B, 4), with a site before everything and one at the end."""
    r = random.Random(seed)
    body = nn.Sequential(*(r.choice(blocks)(r, acts) for _ in range(r.randrange(2, 4))))
    parts = {"first": Site(), "stem": nn.Linear(4, 4), "body": body, "tail": nn.Linear(4, 4), "last": Site()}
    return randomise(nn.Sequential(OrderedDict(parts)), seed)


def sites(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, Site)]


def planted(seed: int, operation: Callable[[Tensor], Tensor], **kw: Any) -> tuple[nn.Module, str]:
    """A random network with the operation at one of its sites, chosen at random; the path of that site."""
    model = network(seed, **kw)
    path = {FIRST: "first", LAST: "last"}.get(seed) or random.Random(100 + seed).choice(sites(model))
    model.get_submodule(path).operation = operation
    return model, path


FIRST, LAST = 0, 1


def seeds(case: str, count: int = 1) -> list[int]:
    """Before everything, at the very end, and random places: for each case others."""
    first = zlib.crc32(case.encode()) % 1000 + 2
    return [FIRST, LAST, *range(first, first + count)]


def given_input() -> Tensor:
    return example((4,), 7)


def lines(*made: Any) -> set[str]:
    """The lines of this file in which functions or classes stand."""
    found = set()
    for one in made:
        text, first = inspect.getsourcelines(one)
        found |= {f"test_detection.py:{first + i}" for i in range(len(text))}
    return found


SITE = lines(Site)


# --- what must be found ---


class Planted(NamedTuple):
    """An operation that is not affine, how the refusal must name it, and what its code consists of."""

    function: Callable[[Tensor], Tensor]
    named: str
    code: tuple[Any, ...]


PLANTS: dict[str, Planted] = {}


def plant(named: str, *code: Any) -> Callable[[FunctionType], FunctionType]:
    def register(function: FunctionType) -> FunctionType:
        PLANTS[function.__name__] = Planted(function, named, (function, *code))
        return function

    return register


class Sine(torch.autograd.Function):
    """Its body runs in torch functions."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return torch.sin(h)

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        return grad * torch.cos(h)


class NewSine(Sine):
    """The other way to write one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h):
        return torch.sin(h)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)


class OpaqueSine(Sine):
    """Its body runs unseen, as one in C++ would."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        with torch._C.DisableTorchFunction():
            return torch.sin(h)


class NumpySine(Sine):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return torch.from_numpy(np.sin(h.detach().numpy()))


class DirtySine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.mark_dirty(h)
        return h.sin_()

    @staticmethod
    def backward(ctx, grad):
        return grad


class CutSine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        y = torch.sin(h)
        ctx.mark_non_differentiable(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        return None


class Estimator(torch.autograd.Function):
    """Signs forward, the identity backward."""

    @staticmethod
    def forward(ctx, h):
        with torch._C.DisableTorchFunction():
            return h.sign()

    @staticmethod
    def backward(ctx, grad):
        return grad


class SeenEstimator(Estimator):
    """Its body runs in torch functions."""

    @staticmethod
    def forward(ctx, h):
        return h.round()


class Reverse(torch.autograd.Function):
    """Gradient reversal: a view forward, the sign turned backward."""

    @staticmethod
    def forward(ctx, h):
        return h.view_as(h)

    @staticmethod
    def backward(ctx, grad):
        return -grad


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # scripting is deprecated, and met all the same

    @torch.jit.script
    def script_sine(h):
        return torch.sin(h)

    @torch.jit.script
    def script_relu(h):
        return torch.relu(h)

    TRACED = torch.jit.trace(lambda h: torch.sin(h) + h, torch.ones(2, 4).double())
    SCRIPTED = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()).double().eval())
    TRACED_MODULE = torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double(), torch.ones(2, 4).double())

LIBRARY = torch.library.Library("relupath_detection", "DEF")
LIBRARY.define("sine(Tensor h) -> Tensor")
LIBRARY.impl("sine", lambda h: torch.sin(h), "CompositeImplicitAutograd")


@torch.library.custom_op("relupath_detection::custom", mutates_args=())
def custom(h: Tensor) -> Tensor:
    return torch.sin(h)


@torch.library.custom_op("relupath_detection::bare", mutates_args=())
def bare(h: Tensor) -> Tensor:
    return torch.sin(h)


custom.register_autograd(
    lambda ctx, grad: grad * torch.cos(ctx.saved_tensors[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)

W = torch.tensor([[0.7, -0.4], [0.2, 1.1]]).double()
ATEN = torch.ops.aten


def pairs(h: Tensor) -> Tensor:
    """For operations on matrices."""
    return h.reshape(-1, 2)


@plant("sin", Sine)
def function_of_autograd(h):
    return Sine.apply(h)


@plant("sin", NewSine)
def function_of_autograd_with_setup(h):
    return NewSine.apply(h)


@plant("OpaqueSineBackward")
def function_of_autograd_unseen(h):
    return OpaqueSine.apply(h)


@plant("numpy", NumpySine)
def function_of_autograd_in_numpy(h):
    return NumpySine.apply(h)


@plant("sin", DirtySine)
def function_of_autograd_in_place(h):
    return DirtySine.apply(h + 1)


@plant("sin", CutSine)
def function_of_autograd_without_derivative(h):
    return CutSine.apply(h)


@plant("EstimatorBackward")
def straight_through_estimator(h):
    return Estimator.apply(h)


@plant("SeenEstimatorBackward")
def straight_through_estimator_in_torch_functions(h):
    return SeenEstimator.apply(h)


@plant("ReverseBackward")
def gradient_reversal(h):
    return Reverse.apply(h)


@plant("sin")
def sine(h):
    return torch.sin(h)


@plant("sin")
def sine_method(h):
    return h.sin()


@plant("sin")
def sine_in_place(h):
    return (h * 1).sin_()


@plant("sin")
def sine_out(h):
    return torch.sin(h, out=torch.empty_like(h))


@plant("sin")
def sine_without_gradient(h):
    with torch.no_grad():
        return torch.sin(h)


@plant("sin")
def sine_under_inference_mode(h):
    with torch.inference_mode():
        return torch.sin(h)


@plant("sin")
def sine_on_a_device(h):
    with torch.device("cpu"):
        return torch.sin(h)


@plant("sin")
def sine_written_back(h):
    y = h * 1
    y.data.copy_(torch.sin(h).data)
    return y


@plant("sin")
def sine_written_to_detached(h):
    y = h * 1
    y.detach().sin_()
    return y


@plant("special_i0")
def special_bessel(h):
    return torch.special.i0(h)


@plant("special_sinc")
def special_sinc(h):
    return torch.special.sinc(h)


@plant("special_erf")
def special_erf(h):
    return torch.special.erf(h)


@plant("special_ndtr")
def special_ndtr(h):
    return torch.special.ndtr(h)


@plant("special_entr")
def special_entropy(h):
    return torch.special.entr(h.abs() + 0.1)


@plant("special_laguerre_polynomial_l")
def special_polynomial(h):
    return torch.special.laguerre_polynomial_l(h, 2)


@plant("SinBackward0")
def scripted_function(h):
    return script_sine(h)


@plant("AddBackward0")
def traced_function(h):
    return TRACED(h)


@plant("SigmoidBackward0")
def scripted_module_in_a_list(h):
    return SCRIPTED(h.reshape(-1, 4)).view(h.shape)


@plant("sin")
def forked_by_the_interpreter(h):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.wait(torch.jit.fork(torch.sin, h))


@plant("sine")
def operator_of_a_library(h):
    return torch.ops.relupath_detection.sine(h)


@plant(r"custom\.default")
def custom_operator(h):
    return custom(h)


@plant("bare")
def custom_operator_without_derivative(h):
    return torch.ops.relupath_detection.bare(h)


@plant("sin")
def aten(h):
    return ATEN.sin(h)


@plant("sin.default")
def aten_overload(h):
    return ATEN.sin.default(h)


@plant("sin")
def aten_in_place(h):
    return ATEN.sin_(h * 1)


@plant("sin")
def primitive(h):
    return torch.ops.prims.sin(h)


@plant("mul")
def aten_square(h):
    return ATEN.mul(h, h)


@plant("addmm_activation")
def aten_fused_linear(h):
    return ATEN._addmm_activation(W[0], pairs(h), W, use_gelu=True).view(h.shape)


@plant("linear_pointwise")
def mkldnn_fused_linear(h):
    weight = W.float().contiguous()
    return torch.ops.mkldnn._linear_pointwise(pairs(h).float(), weight, None, "gelu", [], "none").double().view(h.shape)


@plant("transformer_encoder_layer_fwd", lines)
def fused_encoder_layer(h):
    part = ENCODER.self_attn
    norms = ENCODER.norm1.weight, ENCODER.norm1.bias, ENCODER.norm2.weight, ENCODER.norm2.bias
    maps = ENCODER.linear1.weight, ENCODER.linear1.bias, ENCODER.linear2.weight, ENCODER.linear2.bias
    projections = part.in_proj_weight, part.in_proj_bias, part.out_proj.weight, part.out_proj.bias
    tokens = h.reshape(len(h), -1, 2)
    rest = (False, False, 1e-5, *norms, *maps, None, None)
    return torch._transformer_encoder_layer_fwd(tokens, 2, 2, *projections, *rest).view(h.shape)


ENCODER = nn.TransformerEncoderLayer(2, 2, 4, batch_first=True).double().eval()


@plant("linear_dynamic")
def quantised_linear(h):
    return QUANTISED(pairs(h).float()).double().view(h.shape)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    QUANTISED = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear}, dtype=torch.qint8)


@plant("fake_quantize_per_tensor_affine")
def fake_quantisation(h):
    return torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127)


@plant("lstm", lines)
def fused_recurrence(h):
    return LSTM(h.reshape(len(h), -1, 2))[0].reshape(h.shape)


LSTM = nn.LSTM(2, 2, batch_first=True).double()


@plant("foreach_sin")
def fused_over_a_list(h):
    return torch._foreach_sin([h])[0]


@plant("numpy")
def round_trip_by_numpy(h):
    return torch.from_numpy(np.sin(h.detach().numpy()))


@plant("array")
def function_of_numpy(h):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.as_tensor(np.sin(h))


@plant("dlpack")
def round_trip_by_dlpack(h):
    return torch.from_dlpack(h.detach()) * 2


@plant("tolist")
def round_trip_by_lists(h):
    return torch.tensor(h.tolist(), dtype=h.dtype)


@plant("item")
def round_trip_by_numbers(h):
    return h * h.sum().item()


@plant("tensor")
def copied_values(h):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.tensor(h)


@plant("sin")
def checkpointed(h):
    return checkpoint(torch.sin, h, use_reentrant=False)


@plant("sin")
def checkpointed_reentrantly(h):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of inputs without gradient
        return checkpoint(torch.sin, h, use_reentrant=True)


@plant("SinBackward0")
def mapped_over_a_batch(h):
    return torch.func.vmap(torch.sin)(h)


@plant("SinBackward0")
def behind_the_back_of_torch_function(h):
    with torch._C.DisableTorchFunction():
        return torch.sin(h)


def in_thread(function: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    found: list[Tensor] = []
    worker = threading.Thread(target=lambda: found.append(function(h)))
    worker.start()
    worker.join()
    return found[0]


@plant("SinBackward0", in_thread)
def in_another_thread(h):
    return in_thread(torch.sin, h)


@plant("mul")
def square_of_a_signal(h):
    return h * h


@plant("linalg_det|linalg_norm|norm")
def smooth_of_degree_one(h):
    return torch.linalg.norm(pairs(h), dim=1).repeat_interleave(2).view(h.shape) * torch.ones_like(h)


@plant("cumprod")
def running_product(h):
    return h.cumprod(-1)


@pytest.mark.filterwarnings("ignore:.*TorchScript.*:DeprecationWarning")
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_operation_is_found_and_named_wherever_it_stands(name):
    """Refused at once, with operation, module path, file and line; nothing of the model or of torch is changed."""
    operation, named, code = PLANTS[name]
    for seed in seeds(name):
        model, path = planted(seed, operation)
        with torch.no_grad():
            model(given_input())
        with assert_untouched(model), pytest.raises(UnsupportedOperation) as caught:
            freeze(model, given_input())
        found = re.match(r"(.+?) in module '(.+?)' \((.+?)\) cannot be explained exactly: ", str(caught.value))
        assert found is not None, str(caught.value)
        assert re.fullmatch(named, found[1]), str(caught.value)
        assert found[2].removesuffix("#2") == path, f"planted at {path}: {caught.value}"
        assert found[3] in lines(*code) | SITE, str(caught.value)


@pytest.mark.parametrize("seed", range(6))
def test_the_networks_without_a_plant_are_exact(seed):
    """The controls: the same networks, whose linear model is their gradient."""
    for acts in (LIVE, BENT):
        model, x = network(seed, acts=acts), given_input()
        assert_gradient(freeze(model, x), model, x)


def assert_gradient(frozen: Frozen, twin: nn.Module, x: Tensor) -> None:
    """Complete by both routes, and the weight is the derivative that autograd gives of a twin in plain functions."""
    entry = x.clone().requires_grad_()
    output = twin(entry)
    assert_close(frozen.output, output.detach())
    assert_complete(frozen, 1)
    (weight,) = torch.autograd.grad(output[:, 1].sum(), entry)
    assert_close(linear_model(frozen, 1).weight, weight, 1e-3)


# --- modules as plants ---


class Sines(nn.Module):
    def __init__(self, act=torch.sin):
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), act

    def forward(self, h):
        return self.act(self.fc(h))


MODULES = {
    "scripted": (lambda: SCRIPTED, r"^module 'body\.1\.inner' is scripted or traced"),
    "traced": (lambda: TRACED_MODULE, r"^module 'body\.1\.inner' is scripted or traced"),
    "LSTM cell": (lambda: nn.LSTMCell(4, 4), r"^lstm_cell in module 'body\.1\.inner' \(test_detection\.py:\d+\)"),
    "GRU cell": (lambda: nn.GRUCell(4, 4), r"^gru_cell in module 'body\.1\.inner' \(test_detection\.py:\d+\)"),
    "an encoder layer's activation": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation=torch.sin),
        r"^sin in module 'body\.1\.inner' \(test_detection\.py:\d+\)",
    ),
    "traced by fx": (
        lambda: torch.fx.symbolic_trace(Sines()),
        r"^sin in module 'body\.1\.inner' \(.*forward:\d+\)",
    ),
}  # fmt: skip


def holding(inner: nn.Module) -> nn.Module:
    """A network in which a module stands two levels deep."""

    def forward(m: Any, h: Tensor) -> Tensor:
        found = m.inner(h)
        return found[0] if isinstance(found, tuple) else found

    middle = nn.Sequential(nn.ReLU(), Lambda(forward))
    model = randomise(nn.Sequential(OrderedDict(stem=nn.Linear(4, 4), body=middle, tail=nn.Linear(4, 3))), 2)
    middle[1].inner = inner.eval() if isinstance(inner, torch.jit.ScriptModule) else randomise(inner, 3)
    return model


@pytest.mark.parametrize("case", MODULES)
def test_a_planted_module_is_found_and_named(case):
    make, sentence = MODULES[case]
    model = holding(make())
    with torch.no_grad():
        model(given_input())
    with assert_untouched(model), pytest.raises(UnsupportedOperation, match=sentence):
        freeze(model, given_input())


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")  # see the report: relupath's hooks cause it
@pytest.mark.parametrize("how", ["torch.compile", "module.compile"])
def test_inside_a_compiled_submodule_the_original_is_used(how):
    def compiled(inner: nn.Module) -> nn.Module:
        if how == "torch.compile":
            return torch.compile(inner, backend="eager")
        inner.compile(backend="eager")
        return inner

    model = holding(compiled(Sines()))
    with torch.no_grad():
        model(given_input())
    with assert_untouched(model), pytest.raises(UnsupportedOperation) as caught:
        freeze(model, given_input())
    assert re.match(r"sin in module 'body\.1\.inner(\._orig_mod)?' \(test_detection\.py:\d+\)", str(caught.value))
    model, twin, x = holding(compiled(Sines(F.relu))), holding(Sines(F.relu)), given_input()
    with torch.no_grad():
        before = model(x)
    with assert_untouched(model):
        frozen = freeze(model, x)
    assert_gradient(frozen, twin, x)
    assert ("relu", "piece") in [(op.name, op.kind) for op in frozen.operations if "inner" in op.module]
    with torch.no_grad():
        assert torch.equal(model(x), before)


def test_inside_a_compiled_function_the_original_is_used():
    compiled = torch.compile(lambda h: torch.relu(h) * 2 + 1, backend="eager")
    model, path = planted(4, compiled)
    twin, _ = planted(4, lambda h: torch.relu(h) * 2 + 1)
    frozen = freeze(model, given_input())
    assert_gradient(frozen, twin, given_input())
    assert [op.name for op in frozen.operations if op.module.split("#")[0] == path][:3] == ["relu", "mul", "add"]


# --- what is affine or a piece in an unknown dress ---


MAP = nn.Linear(2, 2).double()


def mapped(h):
    return F.linear(pairs(h), W, W[0]).view(h.shape)


def quietly(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Without the warnings that torch gives."""

    def run(h: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(h)

    return run


def by_hand(h):
    return F.relu(h)


DRESSED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "aten relu": (lambda h: ATEN.relu(h), by_hand),
    "aten relu in place": (lambda h: ATEN.relu_(h * 1), by_hand),
    "aten overload": (lambda h: ATEN.relu.default(h), by_hand),
    "aten linear": (lambda h: ATEN.linear(pairs(h), W, W[0]).view(h.shape), lambda h: mapped(h)),
    "aten add": (lambda h: ATEN.add(h, 1.5), lambda h: h + 1.5),
    "aten copy_": (lambda h: ATEN.copy_(torch.zeros_like(h), 2 * h), lambda h: 2 * h),
    "native batch norm": (
        lambda h: torch.native_batch_norm(pairs(h), W[0], W[1], W[1], W[0].abs(), False, 0.1, 1e-5)[0].view(h.shape),
        lambda h: ((pairs(h) - W[1]) * (W[0].abs() + 1e-5).rsqrt() * W[0] + W[1]).view(h.shape),
    ),
    "foreach": (lambda h: torch._foreach_mul([h], 2.0)[0], lambda h: 2 * h),
    "checkpoint": (lambda h: checkpoint(F.relu, h, use_reentrant=True), by_hand),
    "functional_call": (
        lambda h: torch.func.functional_call(MAP, {"weight": W, "bias": W[0]}, (pairs(h),)).view(h.shape),
        lambda h: mapped(h),
    ),
    "as_tensor": (lambda h: torch.as_tensor(h) * 2, lambda h: h * 2),
    "a subclass of Tensor": (lambda h: (h.as_subclass(Own) * 2).as_subclass(Tensor), lambda h: h * 2),
    "out": (lambda h: torch.add(h, 1, out=torch.empty_like(h)), lambda h: h + 1),
    "out, empty": (lambda h: torch.cat([h, h[:, :1]], 1, out=torch.empty(0, dtype=h.dtype))[:, :-1], lambda h: h * 1),
    "no_grad": (lambda h: torch.no_grad()(F.relu)(h), by_hand),
    "inference mode": (lambda h: torch.inference_mode()(F.relu)(h), by_hand),
    "a device": (lambda h: _under(torch.device("cpu"), h), by_hand),
    "a function mode of the user": (lambda h: _under(Through(), h), by_hand),
    "an operator of a library": (lambda h: torch.ops.relupath_detection.twice(h), lambda h: 2 * h),
    "gather by the largest": (lambda h: h.gather(-1, h.argmax(-1, keepdim=True)) + h, lambda h: h.amax(-1, True) + h),
    "solve": (
        lambda h: torch.linalg.solve(W, pairs(h).T).T.reshape(h.shape),
        lambda h: (pairs(h) @ W.inverse().T).view(h.shape),
    ),
    "a sparse matrix": (
        quietly(lambda h: torch.sparse.mm(W.to_sparse(), pairs(h).T).T.reshape(h.shape)),
        lambda h: (pairs(h) @ W.T).view(h.shape),
    ),
    "nan_to_num": (torch.nan_to_num, lambda h: h * 1),
    "rows": (lambda h: torch.stack(list(h)), lambda h: h * 1),
    "a canvas": (lambda h: _canvas(h), lambda h: 2 * h + 1),
}  # fmt: skip

LIBRARY.define("twice(Tensor h) -> Tensor")
LIBRARY.impl("twice", lambda h: 2 * h, "CompositeImplicitAutograd")


class Own(Tensor):
    pass


class Through(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def _under(context: Any, h: Tensor) -> Tensor:
    with context:
        return torch.relu(h)


def _canvas(h: Tensor) -> Tensor:
    canvas = torch.ones_like(h)
    canvas.view(-1).add_(2 * h.reshape(-1))
    return canvas


@pytest.mark.parametrize("case", DRESSED)
def test_what_is_affine_or_a_piece_in_an_unknown_dress_is_exact(case):
    operation, plain_operation = DRESSED[case]
    for seed in seeds(case):
        model, x = planted(seed, operation)[0], given_input()
        with assert_untouched(model):
            frozen = freeze(model, x)
        assert_gradient(frozen, planted(seed, plain_operation)[0], x)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return 2 * h

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


EITHER: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "a linear function of autograd": (Doubled.apply, lambda h: 2 * h),
    "a scripted relu": (script_relu, by_hand),
    "vmap": (torch.func.vmap(lambda h: 2 * h + 1), lambda h: 2 * h + 1),
    "another thread's relu": (lambda h: in_thread(F.relu, h), by_hand),
    "unseen": (lambda h: _unseen(h), lambda h: 2 * h + 1),
    "fft": (lambda h: torch.fft.irfft(torch.fft.rfft(h), h.shape[-1]), lambda h: h * 1),
    "mkldnn": (
        lambda h: torch.ops.mkldnn._linear_pointwise(
            pairs(h).float(), W.float().contiguous(), None, "none", [], ""
        ).double().view(h.shape),
        lambda h: (pairs(h).float() @ W.float().T).double().view(h.shape),
    ),
    "remainder": (lambda h: h % 0.7, lambda h: h - 0.7 * (h / 0.7).detach().floor()),
    "floor division": (lambda h: h // 0.3 + h, lambda h: (h / 0.3).detach().floor() + h),
}  # fmt: skip


def _unseen(h: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return torch.add(torch.mul(h, 2), 1)


@pytest.mark.parametrize("case", EITHER)
def test_what_runs_unseen_is_exact_or_refused_even_if_it_is_affine(case):
    operation, plain_operation = EITHER[case]
    for seed in seeds(case):
        (model, path), x = planted(seed, operation), given_input()

        def exact(model=model, x=x, seed=seed):
            assert_gradient(freeze(model, x), planted(seed, plain_operation)[0], x)

        sentence = refusal(exact, UnsupportedOperation)
        assert sentence is None or re.search(rf"in module '{path}(#2)?' \(", sentence), sentence


def _copied(write: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def run(h: Tensor) -> Tensor:
        y = torch.zeros(h.shape, dtype=h.dtype)
        write(y, h)
        return y

    return run


def _saved(h: Tensor) -> Tensor:
    buffer = io.BytesIO()
    torch.save(h.detach(), buffer)
    buffer.seek(0)
    return torch.load(buffer)


def _hidden(h: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction(), torch.no_grad():
        return torch.sin(h)


LOST: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.Parameter": lambda h: nn.Parameter(h) * 1,
    "nn.Parameter of detached": lambda h: nn.Parameter(h.detach()) * 1,
    "a dlpack capsule": lambda h: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(h.detach())),
    "bytes of another type": lambda h: h.contiguous().view(torch.int64).view(torch.float64),
    "copy.copy": lambda h: copy.copy(h) * 1,
    "pickle": lambda h: pickle.loads(pickle.dumps(h.detach())),
    "torch.save": _saved,
    "storage": quietly(lambda h: torch.tensor(h.detach().storage().tolist(), dtype=h.dtype).view(2, 4)),
    "an address": lambda h: torch.tensor(
        [ctypes.c_double.from_address(h.data_ptr() + 8 * i).value for i in range(8)], dtype=h.dtype
    ).view(2, 4),
    "a nested tensor": quietly(lambda h: torch.nested.nested_tensor([h[0], h[1]]).to_padded_tensor(0.0)),
    "a complex number": quietly(lambda h: h * abs(complex(h[0, 0]))),
    "a signal written to .data of a constant": _copied(lambda y, h: y.data.copy_(2 * h)),
    "a bent tensor written to .data of a constant": _copied(lambda y, h: y.data.copy_(torch.sin(h).data)),
    "a signal written to a detached constant": _copied(lambda y, h: y.detach().add_(h)),
    "an item set on a detached constant": _copied(lambda y, h: y.detach().__setitem__((slice(None), 0), h[:, 0])),
    "a signal written through numpy's view": _copied(lambda y, h: torch.from_numpy(y.numpy()).copy_(h)),
    "a subclass of Tensor": lambda h: h.as_subclass(Own).sin().as_subclass(Tensor),
    "unseen and without gradient": _hidden,
    "another thread without gradient": lambda h: in_thread(torch.no_grad()(torch.sin), h),
}  # fmt: skip


def _changed(change: Callable[[Tensor, Tensor], Any], start: Callable[[Tensor], Tensor] = _hidden) -> Any:
    """A value whose dependence was lost is changed in place by a signal."""

    def run(h: Tensor) -> Tensor:
        y = start(h)
        change(y, 2 * h)
        return y

    return run


LOST |= {
    "unseen, then added to": _changed(Tensor.add_),
    "unseen, then multiplied": _changed(Tensor.mul_),
    "unseen, then in part overwritten": _changed(lambda y, h: y.__setitem__((slice(None), 0), h[:, 0])),
    "unseen, then a view of it copied to": _changed(lambda y, h: y[:, :1].copy_(h[:, :1])),
    "unseen, then a view of it added to": _changed(lambda y, h: y[:, :1].add_(h[:, :1])),
    "nn.Parameter, then added to": _changed(Tensor.add_, lambda h: nn.Parameter(h).cumsum(1).detach()),
    "unseen, a twentieth of what is added": lambda h: (F.pad(h, (0, 16)) + F.pad(_hidden(h[:, :1]), (0, 19)))[:, :4],
}


class Beside(nn.Module):
    """A site beside a branch that keeps the dependence on the input."""

    def __init__(self, operation):
        super().__init__()
        self.stem, self.site, self.tail = nn.Linear(5, 4), Site(), nn.Linear(8, 3)
        self.site.operation = operation

    def forward(self, x):
        h = self.stem(x)
        return self.tail(torch.cat([self.site(h), h], 1))


def assert_found_or_right(operation: Callable[[Tensor], Tensor]) -> None:
    """Refused by freeze() or check() in a sentence that names a place, or the derivative is right."""
    model, x = randomise(Beside(operation), 3), example((5,), 5)
    with assert_untouched(model):
        sentence = refusal(lambda: freeze(model, x).check(0), IncompleteError, UnsupportedOperation)
    if sentence is not None:
        assert re.search(r" in module '?.+'? \([a-z_]+\.py:\d+\)", sentence), sentence
        assert "depend" in sentence or "in module 'site' (" in sentence
        return
    frozen, step = freeze(model, x), 1e-6 * example((5,), 77)
    with torch.no_grad():
        assert torch.allclose(frozen.output, model(x)), "another output than the model's"
        moved = (model(x + step) - model(x - step))[:, 0] / 2
    predicted = (linear_model(frozen, 0).weight * step).sum(1)
    assert float((predicted - moved).abs().max()) <= 1e-4 * float(moved.abs().max())


@pytest.mark.parametrize("case", LOST)
def test_lost_dependence_beside_a_branch_that_keeps_it_is_found(case):
    """Completeness holds for whatever is called constant: it is found as a constant that moves with the input."""
    assert_found_or_right(LOST[case])


@pytest.mark.parametrize(
    "write",
    [
        lambda y, h: y.copy_(h),
        lambda y, h: y.__setitem__(..., h),
        lambda y, h: [y.__setitem__((slice(None), i), h[:, i]) for i in range(4)],
    ],
    ids=["copy_", "setitem", "column by column"],
)
def test_what_memory_held_before_it_was_overwritten_does_not_count(write):
    def filled(h):
        y = torch.empty_like(h)
        write(y, h)
        return y

    assert_complete(freeze(randomise(Beside(filled), 3), example((5,), 5)), 0)


def test_a_few_entries_of_a_mask_may_flip_as_the_input_moves():
    first: list[Tensor] = []

    def masked(h):
        first.append(_hidden(h[:, :1]))
        mask = F.pad((_hidden(h[:, :1]) == first[0]).double(), (0, 19), value=1.0)
        return (F.pad(h, (0, 16)) * mask)[:, :4]

    assert_complete(freeze(randomise(Beside(masked), 3), example((5,), 5)), 0)
    assert any(not torch.equal(first[0], value) for value in first), "the mask never flips"


@pytest.mark.parametrize(
    "case", ["nn.Parameter", "nn.Parameter of detached", "a dlpack capsule", "copy.copy", "pickle"]
)
def test_an_output_that_lost_its_dependence_is_refused_in_words(case):
    for seed in seeds(case):
        model, _ = planted(seed, LOST[case], blocks=CHAINS)
        with assert_untouched(model), pytest.raises(ModelError, match="the output does not depend on x"):
            freeze(model, given_input())


def test_what_ran_unseen_between_two_children_is_named_with_the_module_that_ran_it():
    block = Lambda(lambda m, h: m.after(_unseen(m.before(h))), before=nn.Linear(5, 4), after=nn.Linear(4, 4))
    with pytest.raises(UnsupportedOperation, match=r"^AddBackward0 in module '0' \(test_detection\.py:\d+\)"):
        freeze(randomise(nn.Sequential(block, nn.Linear(4, 3)), 3), example((5,), 5))


# --- tensors that only gates are computed from ---


class Gated(nn.Module):
    """A gate that is computed from what a site gives."""

    def __init__(self, gate):
        super().__init__()
        self.stem, self.site, self.tail, self.gate = nn.Linear(4, 4), Site(), nn.Linear(4, 3), gate

    def forward(self, x):
        h = F.relu(self.stem(x))
        return self.tail(h * self.gate(self.site(h)))


IN_DOUBLE = [name for name in PLANTS if name not in ("mkldnn_fused_linear", "quantised_linear")]


@pytest.mark.filterwarnings("ignore:.*TorchScript.*:DeprecationWarning")
@pytest.mark.parametrize("name", IN_DOUBLE)
def test_what_only_computes_a_gate_is_frozen_with_it_or_refused(name):
    """A gate is frozen whatever it is computed from: the model is that of the twin with the gate as a constant."""
    for gate in (torch.sigmoid, lambda h: torch.softmax(h, 1)):
        model, x = randomise(Gated(gate), 1), given_input()
        model.site.operation = PLANTS[name].function
        frozen: list[Frozen] = []
        sentence = refusal(lambda model=model, x=x, into=frozen: into.append(freeze(model, x)), UnsupportedOperation)
        if sentence is not None:
            assert "in module 'site' (" in sentence
            continue
        model.site.operation = lambda h: PLANTS[name].function(h.detach())
        assert_gradient(frozen[0], model, x)
        kinds = {(op.name, op.kind) for op in frozen[0].operations}
        assert kinds & {("sigmoid", "frozen gate"), ("softmax", "frozen gate")}
        assert ("mul", "gate") in kinds


@pytest.mark.parametrize("name", ["sine", "function_of_autograd", "scripted_function", "aten", "in_another_thread"])
def test_a_nonlinearity_before_a_gate_does_not_hide_one_on_the_signal(name):
    """The same operation twice: before a gate it may stand, on the signal it may not."""
    model, x = randomise(Gated(torch.sigmoid), 1), given_input()
    model.site.operation = PLANTS[name].function
    freeze(model, x)
    tail = model.tail
    model.tail = nn.Sequential(Site(), tail).eval()
    model.tail[0].operation = PLANTS[name].function
    with pytest.raises(UnsupportedOperation, match=r"in module 'tail\.0' \(test_detection\.py:\d+\)"):
        freeze(model, x)


# --- the table lies ---


def identity(call):
    """The value of the operation with the derivative of the identity."""
    with torch.no_grad():
        y = call()
    return Straight(WithSlope.apply(call.first, (y,), torch.ones(())))


def linear(call):
    """As it runs; its constant is lost."""
    return Straight(call())


def constant_at_zero(call):
    """As if it were affine."""
    return Straight(call(), call.at_zero())


LIES: dict[str, tuple[Any, Rule, Callable[[Tensor], Tensor]]] = {
    "sin is the identity": (torch.sin, Rule("affine", identity), lambda h: torch.sin(h)),
    "sin is linear": (torch.sin, Rule("affine", linear), lambda h: torch.sin(h)),
    "cos is affine": (torch.cos, Rule("affine", constant_at_zero), lambda h: torch.cos(h)),
    "exp is a piece": (torch.exp, Rule("piece", linear), lambda h: torch.exp(h)),
    "relu6 has no intercept": (F.relu6, Rule("piece", linear), lambda h: F.relu6(h / 9 + 8) - h),
    "addition has no constant": (torch.Tensor.add, Rule("affine", linear), lambda h: h.add(3.0)),
    "a convolution has no bias": (
        F.conv1d,
        Rule("affine", linear),
        lambda h: F.conv1d(h.reshape(len(h), 1, -1), W[:1, :1, None], W[0, :1]).view(h.shape),
    ),
}


def weighted(y: Tensor) -> Tensor:
    """A target on which every output counts."""
    return y @ torch.tensor([1.0, -2.0, 3.0, 0.5]).double()


def assert_found_out(frozen: Frozen, named: str) -> None:
    """Both routes to a linear model refuse it, in a sentence that names the operation at fault."""
    for ask in (lambda: frozen.check(weighted), lambda: linear_model(frozen, weighted)):
        with pytest.raises(IncompleteError, match=r"^the model was not understood: ") as caught:
            ask()
        assert re.search(rf" {named} does not do what its rule ", str(caught.value)), str(caught.value)


@pytest.mark.parametrize("case", LIES)
def test_a_rule_that_lies_is_found_by_the_independent_route_and_named(case, monkeypatch):
    """Operation, module and line at fault, by check() and by linear_model(), in chains and in branches."""
    function, rule, operation = LIES[case]
    monkeypatch.setitem(TABLE, function, rule)
    for seed in seeds(case):
        model, path = planted(seed, operation, blocks=UNSKIPPED)
        named = rf"{function.__name__} in module '{path}' \(test_detection\.py:\d+\)"
        assert_found_out(freeze(model, given_input()), named)
        assert_complete(freeze(network(seed), given_input()), weighted)


@pytest.mark.parametrize(("name", "path"), [("conv2d", "a"), ("batch_norm", "b"), ("linear", "e")])
def test_a_rule_that_loses_every_constant_is_named_at_its_first_call(name, path, monkeypatch):
    monkeypatch.setitem(TABLE, getattr(F, name), Rule("affine", linear))
    parts = {"a": nn.Conv2d(1, 2, 2), "b": nn.BatchNorm2d(2), "c": nn.PReLU(), "d": nn.Flatten(), "e": nn.Linear(8, 4),
             "f": nn.LeakyReLU(), "g": nn.Linear(4, 4)}  # fmt: skip
    model = randomise(nn.Sequential(OrderedDict(parts)), 0)
    assert_found_out(freeze(model, example((1, 3, 3), 2)), rf"{name} in module '{path}' \(test_detection\.py:\d+\)")


def test_a_rule_that_loses_a_part_of_the_weights_is_found_out(monkeypatch):
    """Not only constants: a derivative that is too small does not add up either."""

    def halved(call):
        return Straight(WithSlope.apply(call.first, (call().detach(),), torch.tensor(0.5)))

    monkeypatch.setitem(TABLE, F.leaky_relu, Rule("piece", halved, activation=True))
    model = randomise(nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(), nn.Linear(4, 4)), 0)
    assert_found_out(freeze(model, given_input()), r"leaky_relu in module '1' \(test_detection\.py:\d+\)")
