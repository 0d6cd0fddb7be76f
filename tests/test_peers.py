"""Against others' networks and methods: Captum's test models, Captum's gradients, zennit-crp's conditions.

Away from ties the weight of a piecewise-linear network is its gradient, so where Captum and zennit-crp are right they
give what relupath gives. Both hook modules, so they cannot tell two calls of one module apart, and zennit-crp also
loses an output that is overwritten; there the truth is worked out by hand and the peer is shown to miss it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from captum.attr import InterpretableEmbeddingBase, LayerGradientXActivation, NeuronGradient, Saliency
from captum.testing.helpers import basic_models
from crp.attribution import CondAttribution
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from asserts import assert_close, assert_complete, assert_same_model, refusal, weights
from cases import weighted
from nets import Lambda, build, example, inputs, randomise
from relupath import Path, freeze, linear_model
from relupath.errors import InputError, ModelError, RelupathError, UnsupportedOperation


class Case(NamedTuple):
    """A network of Captum's tests, and what it takes to run it."""

    x: tuple[Tensor, ...]  # the explained inputs
    options: dict[str, Any] = {}  # noqa: RUF012  of its constructor
    kwargs: dict[str, Any] = {}  # noqa: RUF012  of its forward pass, held constant
    output: Callable[[Any], Tensor] = lambda y: y  # picks the explained tensor from what it returns
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model  # what has to be done to it first
    idle: tuple[str, ...] = ()  # modules that run without an effect on the output

    def build(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        return self.wrap(getattr(basic_models, name.split(",")[0])(**self.options)).eval()

    def freeze(self, model: nn.Module, **options):
        return freeze(model, self.x, kwargs=self.kwargs, output=self.output, **options)

    def forward(self, model: nn.Module) -> Callable[..., Tensor]:
        """The network as a function of the explained inputs, its outputs in one row a sample."""
        return lambda *xs: self.output(model(*(v.clone() for v in xs), **self.kwargs)).flatten(1)


def target(output: Tensor) -> Tensor:
    """Weights of its own on every output, whatever the output's shape."""
    return weighted(output.flatten(1))


def x(*shape: int, seed: int = 0, batch: int = 2) -> Tensor:
    return example(shape, seed, batch)


def logits(model):
    """The network without its last soft-max."""
    model.softmax = nn.Identity()
    return model


def embedded(model):
    """Embeddings as inputs of a network that takes integers, by Captum's own means."""
    for part in list(model.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.Embedding):
                setattr(part, name, InterpretableEmbeddingBase(child, name))
    return model


def reseeded(model):
    """A network that draws weights as it runs, with the same weights at every call."""
    model.register_forward_pre_hook(lambda *_: torch.manual_seed(0) and None)
    return model


ONE, TWO, IMAGE = (x(3) + 2,), (x(3) + 4, x(3, seed=1) + 1), 7 * x(1, 4, 4).abs() + 5
TEXT = {"num_embeddings": 7, "embedding_dim": 3}
CASES = {
    "BasicLinearReLULinear": Case((x(4),), {"in_features": 4, "bias": True}),
    "MixedKwargsAndArgsModule": Case(TWO),
    "MixedKwargsAndArgsModule, y held constant": Case(ONE, kwargs={"y": x(3, seed=5)}),
    "BasicModel": Case((x(3),)),
    "BasicModel2": Case(TWO),
    "BasicModel3": Case(TWO),
    "BasicModel4_MultiArgs": Case(TWO, kwargs={"additional_input1": 2}, output=lambda y: y[:, None]),
    "BasicModel5_MultiArgs": Case(TWO, kwargs={"additional_input1": [3, 1]}, output=lambda y: y[:, None]),
    "BasicModel6_MultiTensor": Case((x(3), x(3, seed=1)), output=lambda y: y[:, None]),
    "BasicLinearModel": Case((x(3), x(4, seed=1))),
    "BasicLinearModel2": Case(ONE, {"in_features": 3, "out_features": 2}),
    "BasicLinearModel_Multilayer": Case(ONE, {"in_features": 3, "hidden_nodes": 4, "out_features": 2}),
    "ReLUDeepLiftModel": Case(TWO, kwargs={"x3": 3}),
    "LinearMaxPoolLinearModel": Case((x(4),)),
    "BasicModelWithReusedModules": Case((x(3, batch=4),)),
    "BasicModelWithReusedLinear": Case((x(3, batch=4),)),
    "BasicModelWithSparseInputs": Case((x(3, batch=1),), {}, {"sparse_list": x(1)[0]}, lambda y: y.view(1, 1)),
    "BasicModel_MaxPool_ReLU": Case((x(2, 6),)),
    "TanhDeepLiftModel": Case(TWO),
    "ReLULinearModel": Case(TWO, kwargs={"x3": 2}),
    "SimpleLRPModel": Case(ONE, {"inplace": False}),
    "Conv1dSeqModel": Case((x(4, 1000),)),
    "TextModule": Case((x(5, 3),), TEXT, wrap=embedded),
    "BasicEmbeddingModel": Case((x(5, 100), x(5, 100, seed=1)), wrap=embedded),
    "PassThroughLayerOutput": Case(ONE),
    "BasicModel_GradientLayerAttribution": Case(
        ONE, {}, {}, lambda y: torch.stack(list(y.values()), 1), reseeded, idle=("linear1_alt", "relu_alt", "linear3")
    ),
    "MultiRelu": Case((x(3), x(3, seed=1)), output=lambda pair: torch.cat(pair, 1)),
    "BasicModel_MultiLayer": Case(ONE),
    "BasicModel_MultiLayer, wide": Case(TWO, {"multi_input_module": True}, {"multidim_output": True}, idle=("relu",)),
    "BasicModel_MultiLayer_with_Future": Case(ONE, output=lambda future: future.wait()),
    "BasicModel_MultiLayer_MultiInput": Case((*TWO, x(3)), kwargs={"scale": 2}),
    "BasicModel_MultiLayer_TupleInput": Case((*TWO, x(3)), wrap=lambda m: Lambda(lambda net, *xs: net.m(xs), m=m)),
    "BasicModel_MultiLayer_MultiInput_with_Future": Case((*TWO, x(3)), kwargs={"scale": 2}, output=lambda f: f.value()),
    "BasicModel_MultiLayer_TrueMultiInput": Case((*TWO, x(3), x(3, seed=2))),
    "BasicModel_MultiLayer_TrueMultiInput, one input twice": Case((*TWO, x(3))),
    "BasicModel_ConvNet_One_Conv": Case((IMAGE, x(1, 4, 4, seed=1))),
    "BasicModel_ConvNetWithPaddingDilation": Case((x(1, 5, 5),)),
    "BasicModel_ConvNet": Case((x(1, 10, 10),), wrap=logits),
    "BasicModel_ConvNet_MaxPool1d": Case((x(1, 10),), wrap=logits),
    "BasicModel_ConvNet_MaxPool3d": Case((x(1, 10, 10, 10),), wrap=logits),
}
CASES |= {
    f"{name}, in place": case._replace(options={**case.options, "inplace": True})
    for name, case in CASES.items()
    if "inplace" in inspect.signature(getattr(basic_models, name.split(",")[0])).parameters
}
WORDS, TRUTH = torch.tensor([[1, 2]]), torch.ones(1, 3, dtype=torch.bool)
REFUSED: dict[str, tuple[Case, type[RelupathError], str]] = {
    "BasicModel_ConvNet": (Case((x(1, 10, 10),)), UnsupportedOperation, "softmax in module 'softmax'"),
    "TextModule": (Case((WORDS,), TEXT), InputError, "torch.int64"),
    "BasicEmbeddingModel": (Case((WORDS, WORDS)), InputError, "torch.int64"),
    "BasicModelBoolInput": (Case((TRUTH,)), InputError, "torch.bool"),
    "BasicModelBoolInput_with_Future": (Case((TRUTH,)), InputError, "torch.bool"),
    "BasicModel_MultiLayer_with_Future": (Case(ONE), ModelError, "returns Future, not a tensor"),
    "BasicModel_GradientLayerAttribution": (Case(ONE), ModelError, "returns dict, not a tensor"),
    "MultiRelu": (Case(TWO), ModelError, "returns tuple, not a tensor"),
    "BasicModel6_MultiTensor": (Case(TWO), ModelError, "got [2]"),
    "BasicModelWithSparseInputs": (Case(ONE, kwargs={"sparse_list": x(1)[0]}), ModelError, "got []"),
}
# A gate is not its derivative; and autograd refuses a network that overwrites what the derivative needs.
GRADIENTS = [n for n in CASES if n not in ("TanhDeepLiftModel", "BasicModel_MultiLayer, wide, in place")]
HOOKED = [n for n in GRADIENTS if CASES[n].build(n)._modules and "Reused" not in n and n != "TextModule"]


def fresh(xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(v.clone().requires_grad_() for v in xs)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_every_network_of_captums_tests_is_tried():
    classes = [c for _, c in inspect.getmembers(basic_models, inspect.isclass) if issubclass(c, nn.Module)]
    theirs = {c.__name__ for c in classes if c.__module__ == basic_models.__name__}
    assert {name.split(",")[0] for name in [*CASES, *REFUSED]} == theirs


@pytest.mark.parametrize("name", CASES)
def test_network_is_complete(name):
    case = CASES[name]
    model = case.build(name)
    frozen = case.freeze(model)
    assert torch.equal(frozen.output.flatten(1), case.forward(model)(*case.x))
    assert_complete(frozen, target)
    assert all((w != 0).any() for w in weights(linear_model(frozen, target))), "a dead network tests nothing"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_explained_is_refused_by_name(name):
    case, error, fragment = REFUSED[name]
    sentence = refusal(lambda: freeze(case.build(name), case.x, kwargs=case.kwargs), error)
    assert sentence is not None, "it was not refused"
    assert fragment in sentence


@pytest.mark.parametrize("name", GRADIENTS)
def test_weight_is_captums_saliency(name):
    case = CASES[name]
    model = case.build(name)
    frozen, run = case.freeze(model), case.forward(model)
    for c in range(frozen.output[0].numel()):
        whole = linear_model(frozen, lambda y, c=c: y.flatten(1)[:, c])
        saliency = Saliency(run).attribute(fresh(case.x), target=c, abs=False)
        for weight, gradient in zip(weights(whole), saliency, strict=True):
            assert_close(weight, gradient)


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith(", in place")])
def test_network_in_place_is_the_same_affine_map(name):
    case, plain = CASES[name], name.removesuffix(", in place")
    frozen, twin = case.freeze(case.build(name)), CASES[plain].freeze(CASES[plain].build(plain))
    assert_same_model(linear_model(frozen, target), linear_model(twin, target))


def single_calls(model, case):
    """The modules without parts that run once and give a tensor that depends on the input."""
    ran = []

    def note(module, _args, output):
        if isinstance(output, Tensor) and output.requires_grad:
            ran.append(module)

    with register_module_forward_hook(note):
        case.forward(model)(*fresh(case.x))
    return [name for name, part in model.named_modules() if not part._modules and ran.count(part) == 1]


@pytest.mark.parametrize("name", HOOKED)
def test_neurons_are_captums(name):
    """A neuron's value is LayerGradientXActivation; its path's weight is its cotangent times NeuronGradient."""
    case = CASES[name]
    model = case.build(name)
    run, names = case.forward(model), single_calls(model, case)
    frozen = case.freeze(model, layers=names)
    cut = [v[0].numel() for v in case.x]
    (joined,) = fresh((torch.cat([v.flatten(1) for v in case.x], 1),))

    def run_joined(flat):
        return run(*(part.view_as(v) for part, v in zip(flat.split(cut, 1), case.x, strict=True)))

    assert set(case.idle) < set(names)
    for part in names:
        layer, module = frozen.layer(part), model.get_submodule(part)
        (cotangent,) = frozen.vjp({frozen.top: frozen.functional(target).gradient}, [layer])
        if part in case.idle:
            assert not cotangent.any()
            continue
        shares = LayerGradientXActivation(lambda *xs: target(run(*xs)), module).attribute(fresh(case.x))
        assert_close(cotangent * layer.output, shares)
        for index in shares.abs().sum(0).flatten().topk(min(2, shares[0].numel())).indices:
            neuron = tuple(int(i) for i in torch.unravel_index(index, layer.shape))
            path = linear_model(frozen, target, Path.of([(part, neuron)]))
            assert_close(path.value, shares[:, *neuron])
            weight = torch.cat([w.flatten(1) for w in weights(path)], 1)
            gradient = NeuronGradient(run_joined, module).attribute(joined, neuron)
            assert_close(weight, cotangent[:, *neuron, None] * gradient)


# --- zennit-crp's conditions ---


def crp_gradient(model, data, conditions, c):
    """What zennit-crp leaves at the data for conditions, without a composite and begun with 1 at logit c."""
    (data,) = fresh((data,))
    CondAttribution(model)(data, [{**conditions, "y": [c]}], init_rel=1)
    return data.grad


def path_model(frozen, conditions, c):
    """The path through the channels of a condition, which names the layers from the top down."""
    steps = [(name, [(i, *[None] * (frozen.layer(name).output.ndim - 2)) for i in channels])
             for name, channels in reversed(conditions.items())]  # fmt: skip
    return linear_model(frozen, c, Path.of(steps))


@pytest.mark.parametrize(
    ("name", "conditions"),
    [
        ("vgg", {"features.5": [0, 3], "features.0": [0, 1]}),
        ("vgg", {"classifier.2": [0, 2, 3], "features.6": [1, 3], "features.4": [1, 2, 3], "features.1": [1, 2]}),
        ("squeeze", {"classifier.1": [0, 1], "features.4.expand3x3": [0, 1], "features.3.squeeze": [0, 1]}),
        ("resnet", {"layer1.1.conv1": [0, 1, 3], "layer1.0.conv1": [1, 2]}),
        ("resnet", {"layer1.0.conv2": [1], "maxpool": [0, 1]}),
    ],
)
def test_path_weights_are_zennit_crps(name, conditions):
    """Begun with 1 at the logit its gradient is W^P; begun with the logit, as by default, its heat map is y W^P."""
    model, data = build(name, 1), inputs(name, 1, batch=1)
    frozen = freeze(model, data, layers=conditions)
    heat = CondAttribution(model)(*fresh((data,)), [{**conditions, "y": [c]} for c in range(2)]).heatmap
    for c in range(2):
        weight = path_model(frozen, conditions, c).weight
        assert (weight != 0).any(), "a dead path tests nothing"
        assert_close(crp_gradient(model, data, conditions, c), weight)
        assert_close(heat[[c]], (frozen.output[0, c] * weight).sum(1))


def skip(in_place):
    """A convolution with a way around it, joined in place or not."""

    def run(net, x):
        a = net.relu1(net.conv1(x))
        b = net.conv2(a).add_(a) if in_place else net.conv2(a) + a
        return net.head(net.relu2(b).mean((2, 3)))

    parts = {"conv1": nn.Conv2d(2, 4, 3, padding=1), "relu1": nn.ReLU(), "conv2": nn.Conv2d(4, 4, 3, padding=1)}
    return randomise(Lambda(run, **parts, relu2=nn.ReLU(), head=nn.Linear(4, 3)), 0)


def test_zennit_crp_loses_a_layer_whose_output_is_added_to_in_place():
    """It differentiates with respect to the tensor that the layer gave, which is by then the sum."""
    data, conditions = x(2, 5, 5, batch=1), {"conv2": [1, 2]}
    model, twin = skip(in_place=True), skip(in_place=False)
    part = path_model(freeze(model, data, layers=conditions), conditions, 1)
    assert_same_model(part, path_model(freeze(twin, data, layers=conditions), conditions, 1))
    assert_close(part.weight, crp_gradient(twin, data, conditions, 1))
    peer = crp_gradient(model, data, conditions, 1)
    assert (peer - part.weight).abs().max() > 0.1 * part.weight.abs().max()


# --- a module used twice: the truth by hand ---


@pytest.fixture
def twice():
    """At (1, 2, 1) every ReLU is open: a = (6, 1), then a' = (5, 16), y = 3 * 5 - 16 = -1."""
    model = nn.Sequential(basic_models.BasicModelWithReusedModules(), nn.Linear(2, 1)).eval()
    values = {
        "0.lin1.weight": [[1, 2, 0], [0, 1, -1]], "0.lin1.bias": [1, 0], "0.lin2.weight": [[1, -1], [2, 3]],
        "0.lin2.bias": [0, 1], "1.weight": [[3, -1]], "1.bias": [0],
    }  # fmt: skip
    model.load_state_dict({name: torch.tensor(value).double() for name, value in values.items()})
    return model, torch.tensor([[1.0, 2.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "neuron", "row", "cotangent", "share"),
    [(1, 0, [1, 2, 0], 1, 6), (1, 1, [0, 1, -1], -6, -6), (2, 0, [1, 1, 1], 3, 15), (2, 1, [2, 7, -3], -1, -16)],
)
def test_a_module_used_twice_has_two_layers_where_the_peers_see_one(twice, call, neuron, row, cotangent, share):
    """Captum answers for the last call, whichever is meant; zennit-crp masks both calls at once."""
    model, data = twice
    frozen, module = freeze(model, data), model.get_submodule("0.relu")
    name = frozen.layer((module, call)).name
    part = linear_model(frozen, 0, Path.of([(name, (neuron,))]))
    truth = torch.tensor([row]).double()
    assert_close(part.weight, cotangent * truth)
    assert_close(part.value, torch.tensor([share]).double())
    shares = LayerGradientXActivation(model, module).attribute(fresh((data,)), target=0)
    gradient = NeuronGradient(model, module).attribute(*fresh((data,)), neuron)
    masked = crp_gradient(model, data, {"0.relu": [neuron]}, 0)
    assert torch.allclose(shares[:, neuron], part.value) == (call == 2)
    assert torch.allclose(gradient, truth) == (call == 2)
    assert not torch.allclose(masked, part.weight)
    both = linear_model(frozen, 0, Path.of([("0.relu", (neuron,)), ("0.relu#2", (neuron,))]))
    assert_close(masked, both.weight)
