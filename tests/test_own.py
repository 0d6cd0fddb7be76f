"""Operations that a user teaches: seen in every way they are called, exact with every slope, unchanged elsewhere."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import wrap_torch_function

import relupath
from asserts import assert_branches, assert_close, assert_complete, assert_same_model, assert_untouched
from nets import Branches, Lambda, randomise
from relupath import Greedy, find_paths, freeze, freezes, linear_model
from relupath._gates import TABLE
from relupath.errors import ModelError, UnsupportedOperation, UsageError


class Snake(nn.Module):
    """``h + sin(a h)**2 / a`` with a learned a."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7))

    def forward(self, h, power=2):
        return h + torch.sin(self.a * h) ** power / self.a


class Gated(torch.autograd.Function):
    """``h * tanh(b h)``, with a derivative of its own."""

    @staticmethod
    def forward(ctx, h, b):
        ctx.save_for_backward(h)
        ctx.b = b
        return h * torch.tanh(b * h)

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        return grad * (torch.tanh(ctx.b * h) + ctx.b * h * (1 - torch.tanh(ctx.b * h) ** 2)), None


@torch.library.custom_op("relupath_tests::swish", mutates_args=())
def swish(h: torch.Tensor, b: float) -> torch.Tensor:
    return h * torch.sigmoid(b * h)


@wrap_torch_function(lambda h, **_: (h,))
def swish_function(h, *, b=1.0):
    """A plain function that announces its calls."""
    return h * torch.sigmoid(b * h)


@wrap_torch_function(lambda *factors: factors)
def sine_of_second(h, other):
    return h * torch.sin(other)


@pytest.fixture(autouse=True)
def _forgotten():
    """What a test teaches is forgotten after it."""
    table, classes = dict(TABLE), {Snake: "forward", Gated: "apply"}
    methods = {owner: owner.__dict__.get(name) for owner, name in classes.items()}
    yield
    TABLE.clear()
    TABLE.update(table)
    for owner, method in methods.items():
        if method is not None:
            setattr(owner, classes[owner], method)
        elif classes[owner] in owner.__dict__:
            delattr(owner, classes[owner])


def snake_slope(module, h, power=2):
    """``f(h) / h``, finite at zero."""
    return 1 + torch.sin(module.a * h) * torch.sinc(module.a * h / torch.pi)


def given_input():
    return torch.linspace(-1.5, 2, 10, dtype=torch.float64).view(2, 5).sin()


def assert_taught(branch, twin, **parts):
    """A branch against its twin, to the bit."""
    branches = [branch if isinstance(branch, nn.Module) else lambda m, h: branch(h)]
    return assert_branches(randomise(Branches(branches, **parts), 3), given_input(), [twin], [""])


def constants(frozen):
    """The names of the constants that are not zero."""
    return [source.name for source in frozen.sources if source.constant.any()]


def network(*middle):
    return randomise(nn.Sequential(nn.Linear(5, 4), *middle, nn.Linear(4, 3)), 1)


# --- every way of calling ---


def test_a_module_with_a_parameter_in_three_lines():
    freezes(Snake)(snake_slope)
    frozen = assert_taught(Snake(), lambda m, h: h * snake_slope(m, h).detach())
    assert [op.kind for op in frozen.operations if op.name == "Snake"] == ["gate"]
    assert constants(frozen) == ["fc.bias"]


def test_the_three_lines_of_the_documentation():
    """The block of the docstring, run as it is printed."""
    block = inspect.getdoc(freezes).split("::\n", 1)[1].split("\nFor a gate")[0]
    lines = textwrap.dedent(block).strip()
    assert len(lines.splitlines()) == 3

    class Snake(nn.Module):
        def forward(self, h):
            return h + torch.sin(h) ** 2

    with pytest.raises(UnsupportedOperation, match=r"relupath\.freezes"):
        freeze(network(Snake()), given_input())
    exec(compile(lines, "<docstring>", "exec"), {"relupath": relupath, "torch": torch, "Snake": Snake})
    assert_taught(Snake(), lambda m, h: h * (1 + torch.sin(h) * torch.sinc(h / torch.pi)).detach())
    at_zero = freeze(nn.Sequential(Snake()).eval(), torch.zeros(1, 2, dtype=torch.float64))
    assert linear_model(at_zero, 0).weight.tolist() == [[1.0, 0.0]]


def test_a_slope_that_is_the_modules_parameter_is_refused_once_that_was_changed():
    class Times(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def forward(self, h):
            return h * self.slope

    freezes(Times)(lambda module, h: module.slope)
    model = nn.Sequential(Times()).eval()
    frozen = freeze(model, torch.ones(1, 2, dtype=torch.float64))
    assert linear_model(frozen, 0).weight.tolist() == [[0.7, 0.0]]
    with torch.no_grad():
        model[0].slope.mul_(2)
    with pytest.raises(ModelError, match="was overwritten since"):
        linear_model(frozen, 0)


def test_keyword_arguments_reach_the_slope():
    freezes(Snake)(lambda module, h, power=2: 1 + torch.sin(module.a * h) ** power / (module.a * h))
    cubic = Lambda(lambda m, h: m.snake(h=h, power=3), snake=Snake())
    assert_taught(cubic, lambda m, h: h * (1 + torch.sin(m.snake.a * h) ** 3 / (m.snake.a * h)).detach())


@pytest.mark.parametrize("taught", [lambda: swish, lambda: torch.ops.relupath_tests.swish,
                                    lambda: torch.ops.relupath_tests.swish.default])  # fmt: skip
@pytest.mark.parametrize("called", [swish, lambda h, b: torch.ops.relupath_tests.swish(h, b),
                                    lambda h, b: torch.ops.relupath_tests.swish.default(h, b=b)])  # fmt: skip
def test_an_operator_however_it_is_named_and_called(taught, called):
    with pytest.raises(UnsupportedOperation, match=r"^swish.*relupath\.freezes"):
        freeze(randomise(Branches([lambda m, h: called(h, 1.5)]), 3), given_input())
    freezes(taught())(lambda h, b: torch.sigmoid(b * h))
    assert_taught(lambda h: called(h, 1.5), lambda m, h: h * torch.sigmoid(1.5 * h).detach())


def test_a_function_of_torch_that_is_not_in_the_table():
    freezes(torch.asinh)(lambda h: torch.where(h == 0, 1, torch.asinh(h) / h))
    frozen = assert_taught(lambda h: torch.asinh(h), lambda m, h: h * (torch.asinh(h) / h).detach())
    assert [layer.name for layer in frozen.layers] == ["branches.0"]


def test_a_function_of_torch_that_is_in_the_table_gets_the_new_rule():
    freezes(F.gelu)(lambda h, approximate="none": torch.ones_like(h))
    frozen = assert_taught(nn.GELU(), lambda m, h: h + (F.gelu(h) - h).detach())
    assert [layer.name for layer in frozen.layers] == ["branches.0"]


def test_an_autograd_function():
    with pytest.raises(UnsupportedOperation):
        freeze(randomise(Branches([lambda m, h: Gated.apply(h, 1.5)]), 3), given_input())
    freezes(Gated)(lambda h, b: torch.tanh(b * h))
    assert_taught(lambda h: Gated.apply(h, 1.5), lambda m, h: h * torch.tanh(1.5 * h).detach())


def test_a_function_that_announces_its_calls():
    freezes(swish_function)(lambda h, *, b=1.0: torch.sigmoid(b * h))
    assert_taught(lambda h: swish_function(h, b=2.0), lambda m, h: h * torch.sigmoid(2 * h).detach())


def test_a_subclass_is_seen_where_it_runs_the_taught_forward():
    freezes(Snake)(snake_slope)

    class Kept(Snake):
        pass

    class Twice(Snake):
        def forward(self, h):
            return super().forward(2 * h)

    assert_taught(Kept(), lambda m, h: h * snake_slope(m, h).detach())
    assert_taught(Twice(), lambda m, h: 2 * h * snake_slope(m, 2 * h).detach())


def test_a_module_with_modules_inside_is_one_operation():
    class Mish(nn.Module):
        def __init__(self):
            super().__init__()
            self.softplus = nn.Softplus()

        def forward(self, h):
            return h * torch.tanh(self.softplus(h))

    freezes(Mish)(lambda m, h: torch.tanh(m.softplus(h)))
    frozen = freeze(network(Mish()), given_input())
    assert_complete(frozen, 0)
    assert [(op.name, op.kind) for op in frozen.operations] == [
        ("linear", "affine"),
        ("Mish", "gate"),
        ("linear", "affine"),
    ]


def test_a_taught_module_without_gradient_and_with_a_hook():
    freezes(Snake)(snake_slope)
    hooked = Snake()
    hooked.register_forward_hook(lambda m, args, output: 3 * output)
    assert_taught(hooked, lambda m, h: 3 * h * snake_slope(m, h).detach())

    @torch.no_grad()
    def cut(m, h):
        return m.snake(h)

    assert_taught(Lambda(cut, snake=Snake()), lambda m, h: h * snake_slope(m.snake, h).detach())


# --- every slope ---


def sine():
    class Sine(nn.Module):
        def forward(self, h):
            return torch.sin(h)

    return Sine


@pytest.mark.parametrize("slope", [
    lambda m, h: torch.cos(h), lambda m, h: torch.zeros_like(h), lambda m, h: torch.tensor(0.5).double(),
    lambda m, h: torch.cos(h).float(), lambda m, h: h > 0,
], ids=["the tangent", "zero", "one for all", "another dtype", "truth values"])  # fmt: skip
def test_the_rest_is_bias_and_the_decomposition_exact(slope):
    """``f(h) = slope * h + rest`` whatever the slope; the rest is a source under the module's name."""
    make = sine()
    freezes(make)(slope)
    straight = Lambda(lambda m, h: h + m.act(h), act=make())

    def twin(m, h):
        phi = slope(m, h).to(h.dtype).detach()
        return h + phi * h + (torch.sin(h) - phi * h).detach()

    frozen = assert_taught(straight, twin)
    assert constants(frozen) == ["fc.bias", "branches.0.act:Sine"]


def test_a_gate_leaves_no_rest_and_is_finite_at_zero():
    freezes(Snake)(snake_slope)
    model = nn.Sequential(Snake()).eval()
    frozen = freeze(model.double(), torch.tensor([[0.0, 1e-9, -0.5]], dtype=torch.float64))
    assert frozen.sources == ()
    assert_complete(frozen, 2)
    (slope,) = frozen.vjp({frozen.top: torch.ones_like(frozen.output)}, frozen.inputs)
    assert_close(slope, snake_slope(model[0], frozen.inputs[0].output))


def test_in_single_precision():
    freezes(Snake)(snake_slope)
    model = randomise(nn.Sequential(nn.Linear(5, 4), Snake(), nn.Linear(4, 3)), 1, torch.float32)
    frozen = freeze(model, given_input().float())
    assert_complete(frozen, 0)
    assert constants(frozen) == ["0.bias", "2.bias"]


BAD_SLOPES = {
    "of another shape": lambda h, b: torch.ones(3),
    "of one column": lambda h, b: h[..., :1],
    "not a number": lambda h, b: h / h * torch.nan,
    "infinite": lambda h, b: 1 / (h * 0),
    "not a tensor": lambda h, b: 1.0,
    "nothing": lambda h, b: None,
}


@pytest.mark.parametrize("case", BAD_SLOPES)
def test_a_slope_that_is_none_is_refused_by_name(case):
    freezes(swish)(BAD_SLOPES[case])
    with pytest.raises(UnsupportedOperation, match=r"^swish.* in module 'branches\.0'.*finite slope of the shape"):
        freeze(randomise(Branches([lambda m, h: swish(h, 1.5)]), 3), given_input())


@pytest.mark.parametrize("shape", [lambda h: h.sum(-1), lambda h: (h, h), lambda h: torch.cat([h, h], -1)])
def test_an_operation_that_is_not_elementwise_is_refused_by_name(shape):
    operation = wrap_torch_function(lambda h: (h,))(shape)
    operation.__name__ = "mine"
    freezes(operation)(torch.ones_like)
    branch = Branches([lambda m, h: operation(h)[0] if isinstance(operation(h), tuple) else operation(h)])
    with pytest.raises(UnsupportedOperation, match=r"^mine in module 'branches\.0'.*shape of its output"):
        freeze(randomise(branch, 3), given_input())


def test_an_operation_on_two_signals_is_refused_by_name():
    freezes(sine_of_second)(lambda h, other: torch.sin(other))
    for other in (lambda h: h.flip(1), lambda h: h):
        with pytest.raises(UnsupportedOperation, match=r"^sine_of_second in module.*one argument that depends"):
            freeze(randomise(Branches([lambda m, h, f=other: sine_of_second(h, f(h))]), 3), given_input())


def test_a_second_argument_may_be_constant_or_a_gate():
    freezes(sine_of_second)(lambda h, other: torch.sin(other))
    constant = torch.linspace(-1, 1, 48, dtype=torch.float64).view(2, 4, 6)
    assert_taught(lambda h: sine_of_second(h, constant), lambda m, h: h * constant.sin())
    assert_taught(
        lambda h: sine_of_second(h, torch.sigmoid(h.flip(1))),
        lambda m, h: h * torch.sin(torch.sigmoid(h.flip(1))).detach(),
    )


# --- what cannot be taught ---


def plain(h):
    return torch.sin(h)


@pytest.mark.parametrize(("operation", "name"), [
    (plain, "plain"), (lambda h: h, "<lambda>"), (int, "int"), (torch.Tensor, "Tensor"), (dict, "dict"),
    ("relu", "'relu'"), (None, "None"), (3, "3"),
])  # fmt: skip
def test_what_is_called_unseen_cannot_be_taught(operation, name):
    before = dict(TABLE)
    with pytest.raises(UsageError, match=rf"calls of .*{re.escape(name)} cannot be seen.*nn\.Module class.*wrap_torch"):
        freezes(operation)(torch.ones_like)
    assert before == TABLE


def test_a_failure_of_the_users_rule_is_the_users():
    freezes(swish)(lambda h, b: {}[b])
    model = randomise(Branches([lambda m, h: swish(h, 1.5)]), 3)
    with assert_untouched(model), pytest.raises(KeyError):
        freeze(model, given_input())


# --- outside of relupath nothing changes ---


def test_a_taught_module_computes_what_it_did():
    torch.manual_seed(2)
    model, x = nn.Sequential(nn.Linear(5, 4), Snake()), torch.randn(3, 5)

    def all_that_it_does():
        leaf = x.clone().requires_grad_()
        model.zero_grad()
        y = model(leaf)
        y.square().sum().backward()
        jacobian = torch.func.vmap(torch.func.jacrev(model[1]))(x)
        return [y, leaf.grad, *(p.grad.clone() for p in model.parameters()), jacobian, model[1](x, power=3)]

    before = all_that_it_does()
    signature, state = inspect.signature(Snake.forward), copy.deepcopy(model.state_dict())
    freezes(Snake)(snake_slope)
    for now, then in zip(all_that_it_does(), before, strict=True):
        assert torch.equal(now, then)
    assert inspect.signature(Snake.forward) == signature
    assert Snake.__name__ == "Snake"
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), before[0])
        assert copied.state_dict().keys() == state.keys()
        assert type(copied[1]) is Snake
        assert_same_model(linear_model(freeze(copied.eval(), x), 0), linear_model(freeze(model.eval(), x), 0))


def test_a_taught_function_computes_what_it_did():
    h = torch.linspace(-2, 2, 7, dtype=torch.float64).requires_grad_()

    def all_that_it_does():
        y = Gated.apply(h, 1.5)
        return y, *torch.autograd.grad(y.sum(), h), Gated.apply(h.detach(), 0.5)

    before = all_that_it_does()
    freezes(Gated)(lambda h, b: torch.tanh(b * h))
    assert all(torch.equal(now, then) for now, then in zip(all_that_it_does(), before, strict=True))
    assert torch.autograd.gradcheck(lambda h: Gated.apply(h, 1.5), h)
    with torch.no_grad():
        assert not Gated.apply(h, 1.5).requires_grad


def test_the_model_is_untouched():
    freezes(Snake)(snake_slope)
    model, x = network(Snake()), given_input()
    before = model(x).detach()
    with assert_untouched(model):
        linear_model(freeze(model, x), 0)
    assert torch.equal(model(x), before)


# --- in the network ---


def test_it_is_a_hidden_layer_under_the_name_of_its_module():
    freezes(Snake)(snake_slope)
    shared = Snake()
    model, x = network(shared, shared, Snake()), given_input()
    frozen = freeze(model, x)
    assert [layer.name for layer in frozen.layers] == ["1", "1#2", "3"]
    assert_close(frozen.layer(model[3]).output, model[:4](x).detach())
    assert_complete(frozen, 0)
    assert [step.layer for step in find_paths(frozen, 0, Greedy()).paths[0].steps] == ["1", "1#2", "3"]
    assert [layer.name for layer in freeze(model, x, layers=[model[3], "0"]).layers] == ["0", "3"]


def test_as_an_activation_it_is_a_gate_of_what_it_multiplies():
    freezes(Snake)(snake_slope)
    gated = Lambda(lambda m, h: m.snake(h) * h.flip(1), snake=Snake())
    assert_taught(gated, lambda m, h: (h * snake_slope(m.snake, h)).detach() * h.flip(1))


def test_the_rule_that_is_taught_last_holds():
    freezes(Snake)(lambda m, h: torch.zeros_like(h))
    decorated = freezes(Snake)(snake_slope)
    assert decorated is snake_slope
    frozen = assert_taught(Snake(), lambda m, h: h * snake_slope(m, h).detach())
    assert [op.name for op in frozen.operations].count("Snake") == 1
    assert torch.equal(Snake()(torch.ones(2)), Snake.forward.__wrapped__.__wrapped__(Snake(), torch.ones(2)))


def test_before_it_is_taught_the_refusal_says_how():
    with pytest.raises(UnsupportedOperation, match=r"^sin in module '1'.*teach it with relupath\.freezes"):
        freeze(network(Snake()), given_input())
