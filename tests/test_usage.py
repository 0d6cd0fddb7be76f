"""Shapes of use, names, and the list of operations: the model as people have it, left to the bit as it was."""

from __future__ import annotations

import dataclasses
import inspect
import linecache
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrize as parametrize
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from asserts import assert_close, assert_complete, assert_same_model, assert_untouched, weights
from nets import NETS, Block, Lambda, build, example, inputs, mlp, randomise
from relupath import (
    Frozen,
    Greedy,
    Path,
    PathModel,
    channels,
    contrast,
    find_paths,
    freeze,
    linear_model,
    locations,
    logit,
    neurons,
)
from relupath.errors import (
    InputError,
    ModelError,
    TargetError,
    UnknownLayerError,
    UnsupportedOperation,
    UsageError,
)


@contextmanager
def assert_left_alone(model: nn.Module) -> Iterator[None]:
    """Beside the model: torch's modules, its random states and its modes are to the bit what they were."""
    places = [vars(torch.utils.checkpoint), vars(F), vars(torch.nn.modules.module), vars(torch.autograd)]
    before = [dict(place) for place in places]
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    saved = torch._C._autograd._saved_tensors_hooks_is_enabled()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    whole = {name: dict(vars(module)) for name, module in model.named_modules()}
    with assert_untouched(model):
        yield
    for place, kept in zip(places, before, strict=True):
        changed = [key for key in kept if place.get(key, None) is not kept[key]]
        assert not changed, f"{place['__name__']}.{changed} changed"
    assert autocast == (
        torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled(),
    )  # fmt: skip
    assert anomaly == (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled())
    assert saved == torch._C._autograd._saved_tensors_hooks_is_enabled()
    for state, now in zip(cuda, torch.cuda.get_rng_state_all() if cuda else [], strict=True):
        assert torch.equal(state, now), "the random state of CUDA changed"
    for name, module in model.named_modules():
        assert list(vars(module)) == list(whole[name]), f"the attributes of {name!r} changed"
        for key, value in vars(module).items():
            assert value is whole[name][key], f"{name}.{key} is another object"


def gradient(
    model: Callable[..., Any], x: Tensor | tuple[Tensor, ...], target: Callable[[Tensor], Tensor], *args: Any, **kw: Any
) -> list[Tensor]:
    """The derivative of a model's target by autograd alone."""
    entries = [v.detach().clone().requires_grad_() for v in (x if isinstance(x, tuple) else (x,))]
    return list(torch.autograd.grad(target(model(*entries, *args, **kw)).sum(), entries))


def assert_gradient(frozen: Frozen, target: object, expected: list[Tensor]) -> PathModel:
    """Complete, and the weight is that derivative."""
    assert_complete(frozen, target)
    whole = linear_model(frozen, target)
    for weight, derivative in zip(weights(whole), expected, strict=True):
        assert_close(weight, derivative.to(weight.dtype), 1e-6)
    return whole


def first(y: Tensor) -> Tensor:
    return y[:, 0]


def lin(i: int, o: int) -> nn.Linear:
    return nn.Linear(i, o)


# --- inputs and outputs ---


@dataclasses.dataclass
class Result:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


class Named(NamedTuple):
    logits: Tensor
    aux: Tensor


OUTPUTS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Tensor]]] = {
    "dataclass": (lambda y, h: Result(y, (h,)), lambda out: out.logits),
    "a part of a dataclass": (lambda y, h: Result(h, (h, y)), lambda out: out.hidden[1]),
    "named tuple": (lambda y, h: Named(y, h), lambda out: out.logits),
    "tuple": (lambda y, h: (h, y), lambda out: out[-1]),
    "dict": (lambda y, h: {"out": y, "aux": h}, lambda out: out["out"]),
    "nested": (lambda y, h: {"heads": [Result(y)], "n": 3, "name": "net"}, lambda out: out["heads"][0].logits),
    "ordered dict with attributes": (lambda y, h: OrderedDict(logits=y, loss=None), lambda out: out["logits"]),
    "computed from the output": (lambda y, h: (y, h), lambda out: 2 * out[0] - out[1][:, :3] + 1),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_of_every_shape_can_be_picked(case):
    wrap, pick = OUTPUTS[case]

    def forward(m: Any, x: Tensor) -> Any:
        h = F.relu(m.fc(x))
        return wrap(m.tail(h), h)

    model, x = randomise(Lambda(forward, fc=lin(5, 4), tail=lin(4, 3)), 1), example((5,), 1)
    with assert_left_alone(model):
        frozen = freeze(model, x, output=pick)
    assert torch.equal(frozen.output, pick(model(x)))
    assert_gradient(frozen, 0, gradient(lambda v: pick(model(v)), x, first))
    with pytest.raises(ModelError, match=rf"returns {type(wrap(x, x)).__name__}, not a tensor: pick one with output="):
        freeze(model, x)


def test_several_inputs_of_several_shapes_beside_constants():
    """A picture and a table explained together; a mask, a flag and a list of tensors are held constant."""

    def forward(m: Any, picture: Tensor, table: Tensor, mask: Tensor, *, scales: list[Tensor], flip: bool) -> Tensor:
        h = F.relu(m.conv(picture)).mean((2, 3)) * scales[0]
        t = F.leaky_relu(m.fc(table), 0.1).masked_fill(mask, 0.5)
        return m.tail(torch.cat([h, t.flip(1) if flip else t], 1))

    model = randomise(Lambda(forward, conv=nn.Conv2d(2, 3, 3), fc=lin(4, 3), tail=lin(6, 3)), 4)
    x = example((2, 5, 5), 1), example((4,), 2)
    mask, extra = torch.tensor([False, True, False]), {"scales": [torch.tensor([1.0, -2, 3]).double()], "flip": True}
    with assert_left_alone(model):
        frozen = freeze(model, x, mask, kwargs=extra)
    assert [layer.name for layer in frozen.inputs] == ["x0", "x1"]
    whole = assert_gradient(frozen, 0, gradient(model, x, first, mask, **extra))
    far = tuple(v + 1e-7 for v in x)
    assert_close(whole(far) - whole.value, (model(*far, mask, **extra) - model(*x, mask, **extra))[:, 0].detach(), 1e-4)


TOKENS = torch.tensor([[1, 2, 3, 3], [4, 0, 5, 6]])


class Tokens(nn.Module):
    """Token and position embeddings, a ReLU, an output tied to the token embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(7, 4, padding_idx=0), nn.Embedding(4, 4)
        self.fc, self.norm = lin(4, 4), nn.BatchNorm1d(4)

    def after(self, h: Tensor) -> Tensor:
        h = h + self.places(torch.arange(h.shape[1]))
        return F.linear(self.norm(F.relu(self.fc(h)).mean(1)), self.words.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.after(self.words(tokens))


@pytest.mark.parametrize("which", ["embeddings", "words", ["words"], "the module"])
def test_of_tokens_the_embeddings_are_explained(which):
    model = randomise(Tokens(), 0)
    with assert_left_alone(model):
        frozen = freeze(model, TOKENS, inputs=model.words if which == "the module" else which)
    embedded = model.words(TOKENS).detach()
    (layer,) = frozen.inputs
    assert layer.name == "words"
    assert torch.equal(layer.output, embedded)
    whole = assert_gradient(frozen, 0, gradient(model.after, embedded, first))
    assert whole.weight.shape == (2, 4, 4)
    per_token = (whole.weight * embedded).sum(2)
    assert_close(per_token.sum(1) + whole.bias, model(TOKENS)[:, 0].detach(), 1.0)


def test_tokens_without_a_choice_are_refused_with_what_to_do():
    with pytest.raises(InputError, match=r"freeze\(\.\.\., inputs='embeddings'\)"):
        freeze(randomise(Tokens(), 0), TOKENS)


class Recurrent(nn.Module):
    """A ReLU recurrence, one cell many times."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.cell, self.out = lin(3, 4), lin(4, 4), lin(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 4)
        for t in range(x.shape[1]):
            h = F.relu(self.into(x[:, t]) + self.cell(h))
        return self.out(h)


def test_a_sequence_is_explained_step_by_step():
    model, x = randomise(Recurrent(), 1), example((5, 3), 3)
    with assert_left_alone(model):
        frozen = freeze(model, x)
    assert_gradient(frozen, 0, gradient(model, x, first))
    assert [layer.name for layer in frozen.layers] == [":relu", *(f":relu#{k}" for k in range(2, 6))]


@pytest.mark.parametrize("which", ["cell#3", ["into", "into#2", "into#3", "into#4", "into#5"], "out"])
def test_any_named_layer_can_be_the_input_and_the_model_is_in_its_terms(which):
    """The derivative with respect to that layer's output; what reaches the output around it is constant."""
    model, x = randomise(Recurrent(), 1), example((5, 3), 3)
    names = [which] if isinstance(which, str) else which
    with assert_left_alone(model):
        frozen = freeze(model, x, inputs=which)
    assert [layer.name for layer in frozen.inputs] == names
    leaves: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def cut(module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        path = next(path for path, one in model.named_modules() if one is module)
        calls[path] = calls.get(path, 0) + 1
        name = path if calls[path] == 1 else f"{path}#{calls[path]}"
        if name in names:
            leaves[name] = output.detach().clone().requires_grad_()
        return leaves.get(name, output)

    handles = [module.register_forward_hook(cut) for module in (model.into, model.cell, model.out)]
    y = model(x)
    for handle in handles:
        handle.remove()
    expected = torch.autograd.grad(y[:, 0].sum(), [leaves[name] for name in names], allow_unused=True)
    assert_gradient(
        frozen, 0, [torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(names, expected, strict=True)]
    )


# --- kinds of network ---

CONVOLUTIONS = {
    1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.ConvTranspose1d, nn.AdaptiveAvgPool1d, nn.ReplicationPad1d),
    2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.ConvTranspose2d, nn.AdaptiveMaxPool2d, nn.ReflectionPad2d),
    3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, nn.ConvTranspose3d, nn.AdaptiveAvgPool3d, nn.ConstantPad3d),
}


def convolutional(dims: int) -> nn.Module:
    """Strides, groups, dilation, padding of several modes, transposed convolution, global pooling."""
    conv, norm, pool, transposed, final, pad = CONVOLUTIONS[dims]
    padding = pad(1, 0.5) if pad is nn.ConstantPad3d else pad(1)
    parts = [conv(2, 4, 3, padding=1, groups=2), norm(4), nn.ReLU(True), pool(2), padding,
             conv(4, 3, 2, dilation=2, padding="same", padding_mode="circular"), nn.PReLU(3),
             transposed(3, 2, 2, stride=2, output_padding=1), nn.LeakyReLU(0.1, True), final(1), nn.Flatten(),
             lin(2, 3)]  # fmt: skip
    return randomise(nn.Sequential(*parts), dims)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_of_one_two_and_three_dimensions(dims):
    model, x = convolutional(dims), example((2,) + (4,) * dims, 3)
    model[2].inplace = False
    expected = gradient(model, x, first)
    model[2].inplace = True
    with assert_left_alone(model):
        frozen = freeze(model, x)
    assert_gradient(frozen, 0, expected)
    assert [layer.name for layer in frozen.layers] == ["2", "6", "8"]
    for partition in (neurons, channels, locations):
        found = find_paths(frozen, 0, Greedy(), partition=partition)
        assert len(found.paths) == 2
        for path in found.paths:
            part = linear_model(frozen, 0, path=path.top(min(1, len(path.steps))))
            assert part.weight.shape == x.shape
            assert torch.isfinite(part.weight).all()


def test_a_table_by_a_multi_layer_perceptron_with_a_category():
    """Numbers are explained; the embedding of a category is a constant beside them, or an input of its own."""

    def forward(m: Any, numbers: Tensor, category: Tensor) -> Tensor:
        h = torch.cat([m.norm(numbers), m.table(category)], 1)
        return m.tail(F.relu(m.fc(h)))

    parts = {"norm": nn.BatchNorm1d(5), "table": nn.Embedding(3, 2), "fc": lin(7, 6), "tail": lin(6, 3)}
    model, x, category = randomise(Lambda(forward, **parts), 0), example((5,), 1), torch.tensor([2, 0])
    with assert_left_alone(model):
        frozen = freeze(model, x, category)
    assert_gradient(frozen, 1, gradient(model, x, lambda y: y[:, 1], category))
    frozen = freeze(model, x, category, inputs="table")
    assert frozen.inputs[0].output.shape == (2, 2)
    assert_complete(frozen, 1)


class Segmenter(nn.Module):
    """Down, up, a skip connection; (B, classes, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.head = (
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(8, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down(x))
        b = F.relu(self.middle(F.max_pool2d(a, 2)))
        return self.head(torch.cat([a, F.interpolate(b, scale_factor=2, mode="bilinear", align_corners=False)], 1))


PIXELS: dict[str, Callable[[Tensor], Tensor]] = {
    "one pixel of one class": lambda y: y[:, 1, 2, 3],
    "a region of one class": lambda y: y[:, 1, 1:4, 2:5].sum((1, 2)),
    "one class against another on a mask": lambda y: ((y[:, 2] - y[:, 0]) * (torch.arange(6).double() > 2)).mean(
        (1, 2)
    ),
    "another pixel for each sample": lambda y: y[[0, 1], [2, 0], [1, 5], [4, 0]],
}


@pytest.mark.parametrize("case", PIXELS)
def test_of_a_segmentation_a_target_picks_pixels_and_classes(case):
    model, x, target = randomise(Segmenter(), 2), example((2, 6, 6), 1), PIXELS[case]
    with assert_left_alone(model):
        frozen = freeze(model, x)
        whole = assert_gradient(frozen, target, gradient(model, x, target))
    assert_close(whole.value, target(model(x)).detach())
    found = find_paths(frozen, target, Greedy(), partition=channels)
    assert_complete(frozen, target)
    assert len(found.paths) == 2
    parts = [linear_model(frozen, target, path=path.top(min(1, len(path.steps)))) for path in found.paths]
    assert all(part.weight.shape == x.shape for part in parts)


def test_of_a_segmentation_a_class_alone_is_no_target():
    frozen = freeze(randomise(Segmenter(), 2), example((2, 6, 6), 1))
    for target in (1, None, lambda y: y[:, 1], lambda y: y[:, 1].amax((1, 2)), lambda y: y.softmax(1)[:, 1, 0, 0]):
        with pytest.raises(TargetError):
            linear_model(frozen, target)


class Graph(nn.Module):
    """Two rounds of messages by a dense adjacency matrix, then the mean over the nodes."""

    def __init__(self, reduce: str = "mean") -> None:
        super().__init__()
        self.one, self.two, self.out, self.reduce = lin(3, 4), lin(4, 4), lin(4, 3), reduce

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        h = F.relu(edges @ self.one(nodes))
        h = F.relu(torch.einsum("bij,bjf->bif", edges / edges.sum(2, keepdim=True), self.two(h)) + h)
        return self.out(h.amax(1) if self.reduce == "max" else h.mean(1))


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_a_graph_network_of_dense_products(reduce):
    model, nodes = randomise(Graph(reduce), 3), example((5, 3), 1)
    edges = (torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(1)) > 0.5).double() + torch.eye(5).double()
    with assert_left_alone(model):
        frozen = freeze(model, nodes, edges)
    whole = assert_gradient(frozen, 2, gradient(model, nodes, lambda y: y[:, 2], edges))
    assert whole.weight.shape == nodes.shape
    assert_same_model(linear_model(freeze(model, nodes, kwargs={"edges": edges}), 2), whole)


def test_attention_over_the_nodes_of_a_graph_is_a_gate():
    def forward(m: Any, nodes: Tensor, edges: Tensor, frozen: Tensor | None = None) -> Tensor:
        h = m.one(nodes)
        logits = F.leaky_relu(m.a(h) + m.b(h).mT, 0.2).masked_fill(edges == 0, -torch.inf)
        share = torch.softmax(logits, -1)
        return m.out(F.relu((share if frozen is None else frozen) @ h).mean(1)) if frozen is not share else share

    parts = {"one": lin(3, 4), "a": lin(4, 1), "b": lin(4, 1), "out": lin(4, 3)}
    model, nodes = randomise(Lambda(forward, **parts), 3), example((5, 3), 1)
    edges = torch.eye(5).double() + torch.ones(5, 5).double().triu()
    with assert_left_alone(model):
        frozen = freeze(model, nodes, edges)
    with torch.no_grad():
        h = model.one(nodes)
        share = F.leaky_relu(model.a(h) + model.b(h).mT, 0.2).masked_fill(edges == 0, -torch.inf).softmax(-1)
    assert_gradient(frozen, 0, gradient(model, nodes, first, edges, share))


# --- wrappers ---


@pytest.fixture
def group(tmp_path):
    """A process group of one."""
    dist = torch.distributed
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Holder(nn.Module):
    """Holds a wrapped network, as a trainer's module does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "DataParallel of torch.compile": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    "torch.compile of DataParallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("case", WRAPPERS)
def test_of_a_wrapped_model_the_original_is_used(case):
    model, x = build("resnet"), inputs("resnet")
    expected, names = linear_model(freeze(model, x), 0), [layer.name for layer in freeze(model, x).layers]
    wrapped = WRAPPERS[case](model).eval()
    with assert_left_alone(wrapped):
        frozen = freeze(wrapped, x)
    assert [layer.name for layer in frozen.layers] == names
    assert frozen.layer(model.relu) is frozen.layers[0]
    assert_same_model(linear_model(frozen, 0), expected)
    assert_complete(frozen, 0)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("case", ["DataParallel", "DistributedDataParallel"])
def test_a_wrapped_part_of_a_model_is_recorded_under_its_path(case):
    model, x = mlp(0), inputs("mlp")
    expected = linear_model(freeze(model, x), 0)
    holder = Holder(WRAPPERS[case](model)).eval()
    with assert_left_alone(holder):
        frozen = freeze(holder, x)
    assert [layer.name for layer in frozen.layers] == ["inner.module.1", "inner.module.3"]
    assert all(isinstance(holder.get_submodule(layer.name), nn.ReLU) for layer in frozen.layers)
    assert_close(linear_model(frozen, 0).weight, 2 * expected.weight)
    holder.train()
    holder(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_model_compiled_in_place_runs_compiled_again_afterwards():
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        compiled.append(1)
        return graph.forward

    model, x = mlp(0), inputs("mlp")
    expected = linear_model(freeze(model, x), 0)
    model.compile(backend=backend)
    with assert_left_alone(model):
        assert_same_model(linear_model(freeze(model, x), 0), expected)
    assert not compiled, "a recording compiles nothing"
    with torch.no_grad():
        assert torch.equal(model(x), freeze(model, x).output)
    assert compiled


class Chain(nn.Sequential):
    """A Sequential with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        for part in self:
            x = x + part(x)
        return x


def test_subclasses_of_sequential_and_nested_ones():
    model = Chain(lin(4, 4), nn.ReLU(), Chain(lin(4, 4), nn.Sequential(nn.LeakyReLU(0.3))))
    x = example((4,), 1)
    with assert_left_alone(randomise(model, 0)):
        frozen = freeze(model, x)
    assert [layer.name for layer in frozen.layers] == ["1", "2.1.0"]
    assert_gradient(frozen, 0, gradient(model, x, first))


# --- parametrised, shared and tied weights ---


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).T


def _tied(model: nn.Module) -> None:
    model[4].weight = model[2].weight
    model[4].bias = model[2].bias


def _shared(model: nn.Module) -> None:
    model[4] = model[2]


PARAMETRISED: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm of old": lambda m: nn.utils.weight_norm(m[2]),
    "spectral_norm of old": lambda m: nn.utils.spectral_norm(m[2]),
    "weight_norm": lambda m: nn.utils.parametrizations.weight_norm(m[2]),
    "spectral_norm": lambda m: nn.utils.parametrizations.spectral_norm(m[2]),
    "orthogonal": lambda m: nn.utils.parametrizations.orthogonal(m[2]),
    "one's own": lambda m: parametrize.register_parametrization(m[2], "weight", Symmetric()),
    "two on one weight": lambda m: [
        parametrize.register_parametrization(m[2], "weight", part) for part in (Symmetric(), Symmetric())
    ],
    "pruned": lambda m: prune.l1_unstructured(m[2], "weight", 0.4),
    "tied weights": _tied,
    "a shared module": _shared,
    "a shared activation": lambda m: m.__setitem__(3, m[1]),
    "frozen weights": lambda m: m.requires_grad_(False),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("case", PARAMETRISED)
def test_parametrised_shared_and_tied_weights(case):
    torch.manual_seed(3)
    model = randomise(nn.Sequential(lin(5, 4), nn.ReLU(), lin(4, 4), nn.LeakyReLU(0.2), lin(4, 4)), 1)
    PARAMETRISED[case](model)
    model.eval()
    x = example((5,), 1)
    expected = gradient(model, x, first)
    with assert_left_alone(model):
        frozen = freeze(model, x)
        assert_gradient(frozen, 0, expected)
    assert torch.equal(model(x), frozen.output)


# --- gradient checkpointing ---


class Checkpointed(nn.Module):
    """A block that is checkpointed, and counts its runs."""

    def __init__(self, act: Callable[[Tensor], Tensor], reentrant: bool) -> None:
        super().__init__()
        self.stem, self.inner, self.tail = lin(5, 4), lin(4, 4), lin(4, 3)
        self.act, self.reentrant, self.runs = act, reentrant, [0]

    def block(self, h: Tensor) -> Tensor:
        self.runs[0] += 1
        return self.act(self.inner(self.act(h)))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    "act", [F.relu, F.relu6, F.gelu, lambda h: h * torch.sigmoid(h), lambda h: F.layer_norm(h, (4,))]
)
def test_a_checkpointed_block_is_recorded_once(act, reentrant):
    """Without reentrance it would run again at the first product, outside the recorder: checkpointing is suspended.

    The function to replace has different names in different versions of torch.
    """
    model, x = randomise(Checkpointed(act, reentrant), 1), example((5,), 2)
    with assert_left_alone(model):
        frozen = freeze(model, x)
        linear_model(frozen, 0)
        assert model.runs == [1]
        assert_complete(frozen, 0)
    model.forward = lambda v: model.tail(model.block(model.stem(v)))
    assert_same_model(linear_model(frozen, 0), linear_model(freeze(model, x), 0))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_works_for_training_after_a_freeze(reentrant):
    """Torch's own is in place again: the block runs a second time in the backward pass."""
    model, x = randomise(Checkpointed(F.relu, reentrant), 1), example((5,), 2)
    freeze(model, x)
    model.train()
    model.runs[0] = 0
    model(x).sum().backward()
    assert model.runs == [2]
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.tail(model.block(model.stem(x))).sum().backward()
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert_close(grad, p.grad)


def test_checkpointing_is_restored_when_the_forward_raises():
    model = randomise(Checkpointed(lambda h: 1 / 0, True), 1)
    with assert_left_alone(model), pytest.raises(ZeroDivisionError):
        freeze(model, example((5,), 2))


def test_a_checkpointed_sequence_of_modules():
    model = randomise(nn.Sequential(lin(5, 4), nn.ReLU(), lin(4, 4), nn.ReLU(), lin(4, 3)), 1)
    x = example((5,), 1)
    holder = Lambda(lambda m, v: checkpoint_sequential(m.inner, 2, v, use_reentrant=True), inner=model).eval()
    with assert_left_alone(holder):
        frozen = freeze(holder, x)
    assert [layer.name for layer in frozen.layers] == ["inner.1", "inner.3"]
    assert_same_model(linear_model(frozen, 0), linear_model(freeze(model, x), 0))


def test_noise_drawn_in_a_forward_is_the_noise_that_would_be_drawn():
    """Also by the runs that check() makes: the random state is afterwards what it was."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = F.relu(m.fc(x) + torch.randn(4).double())
        return m.tail(h * F.dropout(torch.ones(4).double(), 0.3, True))

    model, x = randomise(Lambda(forward, fc=lin(5, 4), tail=lin(4, 3)), 0), example((5,), 1)
    torch.manual_seed(8)
    with assert_left_alone(model):
        frozen = freeze(model, x)
        assert_complete(frozen, 0)
    assert torch.equal(frozen.output, model(x))
    torch.manual_seed(8)
    assert_gradient(frozen, 0, gradient(model, x, first))


# --- number formats, memory formats, devices ---


@pytest.mark.parametrize("name", [name for name in NETS if name != "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_networks_in_other_number_formats(name, dtype):
    model, x = build(name, dtype=dtype), inputs(name, dtype=dtype)
    with assert_left_alone(model):
        frozen = freeze(model, x)
        account = frozen.check(0)
    assert torch.equal(frozen.output, model(x))
    assert account.tolerance == {torch.float32: 1e-4, torch.bfloat16: 2e-1}[dtype]
    whole = linear_model(frozen, 0)
    assert whole.weight.dtype == dtype
    if dtype == torch.float32:
        exact = linear_model(freeze(build(name), inputs(name)), 0)
        assert_close(whole.weight, exact.weight.float())


class Autocast(nn.Module):
    """Autocasts itself, as a module of a library may."""

    def __init__(self, inner: nn.Module, back: bool) -> None:
        super().__init__()
        self.inner, self.back = inner, back

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.inner(x)
        return y.float() if self.back else y


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet"])
@pytest.mark.parametrize("where", ["around", "inside", "inside, back to float"])
def test_autocast(name, where):
    """The weights stay float32, the pass runs in bfloat16, and the linear model is in the input's format."""
    model, x = build(name, dtype=torch.float32), inputs(name, dtype=torch.float32)
    exact = linear_model(freeze(build(name), inputs(name)), 0)
    model = model if where == "around" else Autocast(model, "back" in where).eval()
    around = torch.autocast("cpu", dtype=torch.bfloat16) if where == "around" else nullcontext()
    with around, assert_left_alone(model):
        frozen = freeze(model, x)
        assert torch.equal(frozen.output, model(x))
    assert frozen.output.dtype == (torch.float32 if "back" in where else torch.bfloat16)
    account = frozen.check(0)
    assert float(account.error.max()) <= 2e-2
    whole = linear_model(frozen, 0)
    assert whole.weight.dtype == torch.float32
    close = (whole.weight.double() - exact.weight).abs().max() / exact.weight.abs().max()
    assert float(close) <= 0.15


def test_autocast_keeps_no_weight_of_a_recording():
    """In an autocast context torch caches the cast weights: training in it must get its gradients after a freeze."""
    model, x = mlp(0, dtype=torch.float32), inputs("mlp", dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        freeze(model, x)
        model(x).float().sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x).float().sum().backward()
    assert all(torch.equal(grad, p.grad) for grad, p in zip(grads, model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["vgg", "resnet", "squeeze", "dense", "pieces"])
def test_channels_last(name):
    model, x = build(name), inputs(name)
    expected = linear_model(freeze(model, x), 0)
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    strides = {key: t.stride() for key, t in model.state_dict().items()}
    with assert_left_alone(model):
        frozen = freeze(model, x)
    assert torch.equal(frozen.output, model(x))
    assert_complete(frozen, 0)
    assert_same_model(linear_model(frozen, 0), expected, 1.0)
    assert {key: t.stride() for key, t in model.state_dict().items()} == strides


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet", "squeeze", "dense", "pieces"])
def test_on_a_gpu(name):
    model, x = build(name), inputs(name)
    expected = linear_model(freeze(model, x), 0)
    model, x = model.cuda(), x.cuda()
    with assert_left_alone(model):
        frozen = freeze(model, x)
        assert_complete(frozen, 0)
    whole = linear_model(frozen, 0)
    assert whole.weight.is_cuda
    assert_close(whole.weight.cpu(), expected.weight)
    assert_close(whole.bias.cpu(), expected.bias, 1.0)
    path = find_paths(frozen, 0, Greedy()).paths[0]
    assert linear_model(frozen, 0, path=path.top(1)).weight.is_cuda
    with torch.autocast("cuda", dtype=torch.bfloat16):
        freeze(model.float(), x.float()).check(0)
    wrapped = nn.DataParallel(model.double())
    assert_close(linear_model(freeze(wrapped, x), 0).weight.cpu(), expected.weight)


# --- names ---


class Named2(nn.Module):
    """Activations in every guise."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = lin(4, 4)
        self.act = nn.ReLU()
        self.acts = nn.ModuleDict({"first": nn.ReLU(), "second": nn.Sequential(nn.Sequential(nn.ReLU6()))})
        self.loose = [nn.LeakyReLU(0.1)]
        self.block = Lambda(lambda m, h: m.act(F.relu(m.act(h))), act=nn.ReLU())

    def helper(self, h: Tensor) -> Tensor:
        return torch.relu(h)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.fc(x))
        h = self.act(self.helper(h))
        h = self.acts["second"](self.acts["first"](h))
        h = self.block(self.block(h) + x)
        h = nn.ReLU()(self.loose[0](h) - 0.1)
        h = (lambda v: F.relu(v, inplace=True))(self.fc(h))
        return self.fc(h.relu_())


def test_a_name_says_which_module_which_call_and_which_operation():
    model = randomise(Named2(), 0)
    frozen = freeze(model, example((4,), 1))
    assert [layer.name for layer in frozen.layers] == [
        "act", ":relu", "act#2", "acts.first", "acts.second.0.0", "block.act", "block:relu", "block.act#2",
        "block.act#3", "block#2:relu", "block.act#4", ":leaky_relu", ":relu#2", ":relu#3", ":relu#4",
    ]  # fmt: skip
    assert [op.module for op in frozen.operations if op.name == "linear"] == ["fc", "fc#2", "fc#3"]


@pytest.mark.parametrize("name", [*NETS, "named"])
def test_every_name_leads_to_its_module_and_its_line(name):
    """The path is a module of the model, the call is one that took place, and the line is the user's code."""
    model, x = (randomise(Named2(), 0), example((4,), 1)) if name == "named" else (build(name), inputs(name))
    calls: dict[str, int] = {}
    handles = [
        module.register_forward_hook(lambda *_, path=path: calls.update({path: calls.get(path, 0) + 1}))
        for path, module in model.named_modules()
    ]
    model(x)
    for handle in handles:
        handle.remove()
    frozen = freeze(model, x)
    assert len({layer.name for layer in frozen.layers}) == len(frozen.layers)
    for label in [*(layer.name for layer in frozen.layers), *(op.module for op in frozen.operations)]:
        module, _, operation = label.partition(":")
        path, _, call = module.partition("#")
        model.get_submodule(path)
        assert 1 <= int(call or 1) <= calls[path]
        assert operation == "" or operation.split("#")[0] in {
            op.name for op in frozen.operations if op.module == module
        }
    for op in frozen.operations:
        file, _, number = op.line.partition(":")
        source = {"nets.py": inspect.getsourcefile(mlp), "test_usage.py": __file__}[file]
        assert source is not None
        assert linecache.getline(source, int(number)).strip()


# --- the list of operations ---


class Transformer(nn.Module):
    """A pre-norm block: attention written out, gated feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.RMSNorm(6)
        self.qkv, self.out, self.up, self.down = lin(6, 18), lin(6, 6), lin(6, 16), lin(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        logits = torch.matmul(q, k.transpose(1, 2))
        share = torch.softmax(logits / 6**0.5, -1)
        mixed = torch.matmul(share, v)
        x = torch.add(x, self.out(mixed))
        gate, value = self.up(self.norm2(x)).chunk(2, -1)
        gated = torch.mul(F.silu(gate), value)
        x = torch.add(x, self.down(gated))
        return F.relu(x).mean(1)


def test_the_operations_of_a_transformer_block_are_listed_with_module_kind_and_line():
    model, x = randomise(Transformer(), 0), example((4, 6), 1)
    with assert_left_alone(model):
        frozen = freeze(model, x)
    assert_complete(frozen, 0)
    listed = [(op.name, op.module, op.kind) for op in frozen.operations]
    assert listed == [
        ("layer_norm", "norm1", "scale"), ("linear", "qkv", "affine"), ("chunk", "", "affine"),
        ("transpose", "", "affine"), ("matmul", "", "bent"), ("div", "", "bent"), ("softmax", "", "frozen gate"),
        ("matmul", "", "gate"), ("linear", "out", "affine"), ("add", "", "affine"),
        ("rms_norm", "norm2", "scale"), ("linear", "up", "affine"), ("chunk", "", "affine"),
        ("silu", "", "gate"), ("mul", "", "gate"), ("linear", "down", "affine"), ("add", "", "affine"),
        ("relu", "", "piece"), ("mean", "", "affine"),
    ]  # fmt: skip
    for op in frozen.operations:
        file, _, number = op.line.partition(":")
        text = linecache.getline(__file__, int(number))
        written = {"div": " / ", "linear": f"self.{op.module}("}.get(op.name, op.name.replace("layer_norm", "norm1"))
        assert file == "test_usage.py"
        assert written.replace("rms_norm", "norm2") in text, (op, text)


def test_what_the_user_chose_is_listed_as_carried():
    model = randomise(
        Lambda(lambda m, x: m.tail(torch.mul(m.a(x), m.b(x))), a=lin(4, 4), b=lin(4, 4), tail=lin(4, 3)), 0
    )
    frozen = freeze(model, example((4,), 1), carry="first")
    assert [(op.name, op.kind) for op in frozen.operations] == [
        ("linear", "affine"), ("linear", "affine"), ("mul", "carried"), ("linear", "affine"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", list(NETS))
def test_every_module_that_computes_is_on_the_list(name):
    """What the forward hooks see is what is listed: no module that returns another tensor is missing."""
    model, x = build(name), inputs(name)
    frozen = freeze(model, x)
    seen: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, path=path: seen.append(path))
        for path, module in model.named_modules()
        if not isinstance(module, nn.Sequential | Block | nn.Dropout) and path and not list(module.children())
    ]
    model(x)
    for handle in handles:
        handle.remove()
    listed = [op.module.split("#")[0] for op in frozen.operations]
    assert seen
    assert set(seen) <= set(listed)
    assert {op.kind for op in frozen.operations} <= {"affine", "piece"}


# --- nothing is cached by identity ---


def _normal(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=torch.Generator().manual_seed(p.numel()))


def _behind(model: nn.Module) -> None:
    for p in model.parameters():
        p.data.copy_(torch.linspace(-1, 1.5, p.numel()).view(p.shape))


def _reset(model: nn.Module) -> None:
    torch.manual_seed(9)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def _step(model: nn.Module) -> None:
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    model(inputs("vgg")).square().sum().backward()
    optimiser.step()
    model.zero_grad()


REINITIALISED: dict[str, Callable[[nn.Module], Any]] = {
    "in place": _normal,
    "through .data": _behind,
    "reset_parameters": _reset,
    "a step of training": _step,
    "load_state_dict": lambda m: m.load_state_dict(build("vgg", 7).state_dict()),
    "another tensor": lambda m: setattr(m.features[0], "weight", nn.Parameter(-m.features[0].weight.detach())),
    "another module": lambda m: m.features.__setitem__(1, nn.LeakyReLU(0.4).eval()),
}


@pytest.mark.parametrize("case", REINITIALISED)
def test_a_model_changed_in_place_is_seen_as_new(case):
    model, x = build("vgg"), inputs("vgg")
    old = freeze(model, x)
    before = linear_model(old, 0)
    REINITIALISED[case](model)
    with assert_left_alone(model):
        frozen = freeze(model, x)
    assert torch.equal(frozen.output, model(x))
    assert_complete(frozen, 0)
    assert not torch.equal(linear_model(frozen, 0).weight, before.weight)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    assert_gradient(frozen, 0, gradient(model, x, first))


@pytest.mark.parametrize("case", ["in place", "through .data", "load_state_dict", "a step of training"])
def test_an_old_recording_of_a_changed_model_gives_no_wrong_answer(case):
    """What was frozen before the change is either as it was, or refused."""
    model, x = build("vgg"), inputs("vgg")
    frozen = freeze(model, x)
    before = linear_model(frozen, 0)
    REINITIALISED[case](model)
    for ask in (lambda: linear_model(frozen, 0), lambda: frozen.check(0)):
        with pytest.raises((ModelError, ArithmeticError), match=r"freeze again|not understood"):
            ask()
    assert torch.isfinite(before.weight).all()


def test_a_recording_whose_bias_was_changed_says_so():
    model = randomise(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), 0)
    frozen = freeze(model, example((5,), 1))
    with torch.no_grad():
        model[2].bias.add_(5)
    for ask in (frozen.bias_terms, lambda target: linear_model(frozen, target), frozen.check):
        with pytest.raises(ModelError, match=r"the constant '2.bias' was changed since .* freeze again"):
            ask(0)


# --- arguments that mean nothing ---

NET = randomise(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), 0)
X = example((5,), 1)
FLOAT8 = Lambda(lambda m, x: m.fc(x).to(torch.float8_e4m3fn).double(), fc=nn.Linear(5, 3).double()).eval()
MEANINGLESS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a function for a model": (lambda: freeze(lambda x: x, X), ModelError, "must be an nn.Module"),
    "another carry": (lambda: freeze(NET, X, carry="third"), UsageError, "carry must be 'first'"),
    "a word for an output": (lambda: freeze(NET, X, output="logits"), UsageError, "output must be a function"),
    "a number for layers": (lambda: freeze(NET, X, layers=5), UnknownLayerError, "as a list of names or modules"),
    "a number for inputs": (lambda: freeze(NET, X, inputs=5), UnknownLayerError, "as a list of names or modules"),
    "three for a layer": (lambda: freeze(NET, X, layers=[("1", 2, 3)]), UnknownLayerError, "a layer is a name"),
    "a number for a layer": (lambda: freeze(NET, X, layers=[5]), UnknownLayerError, "a layer is a name"),
    "a sparse input": (lambda: freeze(NET, X.to_sparse()), InputError, "must be a dense tensor"),
    "eight bits": (lambda: freeze(FLOAT8, X), UnsupportedOperation, "nothing can be verified"),
    "a word for a target": (lambda: linear_model(freeze(NET, X), "cat"), TargetError, "a class is an int"),
    "a fraction for a target": (lambda: linear_model(freeze(NET, X), 1.0), TargetError, "a class is an int"),
    "nothing to subtract": (lambda: contrast(0, None), TargetError, "a class is an int"),
    "a word to subtract": (lambda: contrast(0, "a"), TargetError, "a class is an int"),
    "a number for a place": (lambda: logit(0, where=5), TargetError, "where is one place"),
}


@pytest.mark.parametrize("case", MEANINGLESS)
@pytest.mark.usefixtures("unchecked")
def test_an_argument_that_means_nothing_is_refused_in_words(case):
    ask, error, words = MEANINGLESS[case]
    with pytest.raises(error, match=words):
        ask()


def test_elsewhere_types_and_shapes_are_checked():
    with pytest.raises(UserWarning, match="violates type hint"):
        Path().top("a")
    model = PathModel(torch.ones(2, 3), torch.ones(2), torch.ones(2))
    for wrong in (lambda: PathModel(model.weight, model.bias, torch.ones(3)), lambda: model(torch.ones(2, 3).int())):
        with pytest.raises(jaxtyping.TypeCheckError):
            wrong()


@pytest.mark.parametrize("classes", [[0, 2], (0, 2)])
def test_one_class_a_sample_may_be_a_list_or_a_tuple(classes):
    frozen = freeze(NET, X)
    assert_same_model(linear_model(frozen, classes), linear_model(frozen, logit(torch.tensor(classes))))


# --- threads ---


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """What several functions return that run side by side."""
    found: dict[int, Any] = {}
    start = threading.Barrier(len(works))

    def run(i: int) -> None:
        start.wait(10)
        try:
            found[i] = works[i]()
        except Exception as error:
            found[i] = error

    workers = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [found[i] for i in range(len(works))]


def test_two_threads_ask_one_frozen_network():
    frozen = freeze(build("resnet"), inputs("resnet"))
    expected = [linear_model(frozen, c) for c in range(2)]

    def ask(c: int) -> bool:
        same = True
        for _ in range(5):
            part = linear_model(frozen, c)
            frozen.check(c)
            same = same and torch.equal(part.weight, expected[c].weight) and torch.equal(part.bias, expected[c].bias)
        return same

    assert in_threads(lambda: ask(0), lambda: ask(1)) == [True, True]


def test_a_product_waits_for_one_that_runs():
    """The graph is shared: what one product sums over the constants must not meet the other's gradients."""
    frozen = freeze(build("mlp"), inputs("mlp"))
    expected = [linear_model(frozen, c) for c in range(2)]
    inside, finished = threading.Event(), threading.Event()
    first_thread: list[int] = []

    def pause(*_: Any) -> None:
        first_thread[:] = first_thread or [threading.get_ident()]
        if first_thread == [threading.get_ident()]:
            inside.set()
            finished.wait(0.2)

    def ask_first() -> PathModel:
        return linear_model(frozen, 0)

    def ask_second() -> PathModel:
        inside.wait(10)
        try:
            return linear_model(frozen, 1)
        finally:
            finished.set()

    handle = frozen.sources[0].edge.node.register_prehook(pause)
    found = in_threads(ask_first, ask_second)
    handle.remove()
    for got, alone in zip(found, expected, strict=True):
        assert isinstance(got, PathModel), got
        assert_same_model(got, alone)


def test_two_threads_freeze_one_model():
    model = build("resnet")
    expected = [linear_model(freeze(model, inputs("resnet", seed)), 0) for seed in range(2)]

    def record(seed: int) -> bool:
        found = [freeze(model, inputs("resnet", seed)) for _ in range(3)]
        names = {tuple(layer.name for layer in frozen.layers) for frozen in found}
        return len(names) == 1 and all(torch.equal(linear_model(f, 0).weight, expected[seed].weight) for f in found)

    with assert_left_alone(model):
        assert in_threads(lambda: record(0), lambda: record(1)) == [True, True]


def test_another_thread_may_run_the_model_meanwhile():
    """Its forward pass is its own: not recorded, not refused, its gradients its own."""
    model, x = build("vgg"), inputs("vgg")
    expected = linear_model(freeze(model, x), 0)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False

    def train() -> list[Tensor]:
        return [g for _ in range(5) for g in torch.autograd.grad(model(x).sum(), list(model.parameters()))]

    alone = train()
    meanwhile, part = in_threads(train, lambda: [linear_model(freeze(model, x), 0) for _ in range(3)][-1])
    assert all(torch.equal(a, b) for a, b in zip(meanwhile, alone, strict=True))
    assert_same_model(part, expected)
