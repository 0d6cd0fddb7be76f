"""One body of laws over all networks: sections 1 to 4 of the mathematics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import relupath
from asserts import (
    assert_bias_from_sources_below,
    assert_children_sum_to_parent,
    assert_close,
    assert_complete,
    assert_evaluates,
    assert_same_model,
    assert_zero,
    flat,
    weights,
)
from cases import (
    DTYPES,
    NAMES,
    PARTITIONS,
    TARGETS,
    active_path,
    architectures,
    chosen_units,
    path_of,
    units_of,
    weighted,
)
from nets import CHAINS, NETS, Lambda, build, example, inputs, layered
from reference import LayeredTwin
from relupath import Path, channels, freeze, linear_model, logit, neurons


def gradient(model, x, target):
    """The derivative of the model itself, away from relupath."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(target(model(x)).sum(), x)[0]


# --- section 1: the whole network ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_output_is_the_models_to_the_bit(name, dtype):
    model, x = build(name, dtype=dtype), inputs(name, dtype=dtype)
    with torch.no_grad():
        expected = model(x)
    frozen = freeze(model, x)
    assert torch.equal(frozen.output, expected)
    assert frozen.output.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_value_is_weight_times_input_plus_bias_by_two_routes(name, dtype):
    frozen = freeze(build(name, dtype=dtype), inputs(name, dtype=dtype))
    for c in range(4):
        assert_complete(frozen, c)
    assert frozen.check(weighted).bias.abs().min() > 1e-3, "a net without bias tests nothing"


@pytest.mark.parametrize("name", NAMES)
def test_weight_is_the_gradient_of_the_model(name):
    model, x = build(name), inputs(name)
    assert_close(linear_model(freeze(model, x), 1).weight, gradient(model, x, lambda y: y[:, 1]))


@pytest.mark.parametrize("name", NAMES)
def test_linear_model_is_the_model_nearby(name):
    model, x = build(name), inputs(name)
    whole = linear_model(freeze(model, x), weighted)
    nearby = x + 1e-7 * example(x.shape[1:], 7)
    with torch.no_grad():
        moved, expected = whole(nearby) - whole.value, weighted(model(nearby)) - weighted(model(x))
    assert expected.abs().min() > 1e-10
    assert (moved - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["resnet", "squeeze", "pieces"])
def test_laws_hold_at_other_seeds(name, seed):
    model, x = build(name, 10 + seed), inputs(name, 10 + seed, batch=1)
    frozen = freeze(model, x)
    assert torch.equal(frozen.output, model(x))
    assert_complete(frozen)
    assert_close(linear_model(frozen, 0).weight, gradient(model, x, lambda y: y[:, 0]))


@pytest.mark.parametrize("target", TARGETS)
def test_laws_hold_for_every_target(target):
    model, x = build("resnet"), inputs("resnet", batch=3)
    frozen = freeze(model, x)
    t = TARGETS[target](3)
    assert_complete(frozen, t)
    path = active_path(frozen, [frozen.layers[1].name, frozen.layers[3].name], channels, count=2)
    part = linear_model(frozen, t, path)
    assert_evaluates(part, frozen)
    assert_bias_from_sources_below(frozen, t, path, part)
    expected = {
        "logit": lambda y: y[:, 2],
        "int": lambda y: y[:, 1],
        "predicted": lambda y: y.max(1).values,
        "a logit a sample": lambda y: y[torch.arange(3), [0, 1, 2]],
        "contrast": lambda y: y[:, 0] - y[:, 3],
        "contrast a sample": lambda y: y[torch.arange(3), [0, 1, 0]] - y[:, 3],
        "callable": weighted,
    }[target]
    assert_close(linear_model(frozen, t).weight, gradient(model, x, expected))
    assert_close(frozen.functional(t).value, expected(frozen.output))


def test_a_contrast_is_the_difference_of_two_logits():
    frozen = freeze(build("squeeze"), inputs("squeeze"))
    path = active_path(frozen, [frozen.layers[2].name], channels, count=2)
    for p in (None, path):
        a, b = (linear_model(frozen, logit(c), p) for c in (0, 3))
        assert_close(flat(linear_model(frozen, relupath.contrast(0, 3), p)), flat(a) - flat(b), flat(a).abs().max())


# --- section 3: the model of a path ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [n for n in NAMES if n != "linear"])
def test_bias_of_a_path_is_what_the_constants_below_it_add(name, dtype):
    frozen = freeze(build(name, dtype=dtype), inputs(name, dtype=dtype))
    names = [layer.name for layer in frozen.layers]
    for layers in ([names[0]], [names[-1]], names[::2], names):
        path = active_path(frozen, layers, channels, seed=3, count=2)
        part = linear_model(frozen, 2, path)
        assert_evaluates(part, frozen)
        assert_bias_from_sources_below(frozen, 2, path, part)


@pytest.mark.parametrize("name", CHAINS)
def test_path_over_every_unit_of_a_chain_has_the_whole_weight(name):
    frozen = freeze(build(name), inputs(name))
    everything = Path.of([(layer.name, [(None,) * len(layer.shape)]) for layer in frozen.layers])
    for depth in range(1, len(everything) + 1):
        assert_close(linear_model(frozen, 0, everything.top(depth)).weight, linear_model(frozen, 0).weight)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_set_of_units_is_the_sum_of_its_units(partition):
    frozen = freeze(build("vgg"), inputs("vgg"))
    upper = active_path(frozen, [frozen.layers[2].name], channels, count=2)
    name = frozen.layers[1].name
    units = units_of(frozen, name, PARTITIONS[partition])
    parts = [linear_model(frozen, 0, Path.of([(name, u), *_pairs(upper)])) for u in units]
    whole = linear_model(frozen, 0, Path.of([(name, [neuron for u in units for neuron in u]), *_pairs(upper)]))
    assert_children_sum_to_parent(parts, whole)
    assert (flat(whole) != 0).any()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "linear"])
def test_an_inactive_path_is_nothing(name):
    frozen = freeze(build(name), inputs(name, batch=1))
    seen = 0
    for layer in frozen.layers:
        for unit in map(tuple, (layer.output[0] == 0).nonzero().tolist()[:3]):
            seen += 1
            assert_zero(linear_model(frozen, 1, Path.of([(layer.name, unit)])))
            others = [other.name for other in frozen.layers if other is not layer][:2]
            path = active_path(frozen, others, neurons, seed=1)
            pairs = sorted([*_pairs(path), (layer.name, [unit])], key=lambda p: _position(frozen, p[0]))
            assert_zero(linear_model(frozen, 1, Path.of(pairs)))
    assert seen or name == "pieces"


def test_gates_are_those_of_the_original_pass():
    """Masking the activations in a new forward pass moves later gates; that is another quantity (section 8)."""
    found_a_difference = False
    for seed in range(20):
        model = layered(seed, (4, 5, 5, 5, 2), skips=0)
        x = example((4,), seed, batch=1)
        frozen = freeze(model, x)
        path = active_path(frozen, [":relu"], neurons, seed)
        (unit,) = path.steps[0].units
        exact = linear_model(frozen, 0, path)

        def masked(v, model=model, unit=unit):
            a = torch.relu(model.pre(1, [v])) * torch.nn.functional.one_hot(torch.tensor(unit[0]), 5)
            b = torch.relu(model.pre(2, [v, a]))
            return model.pre(4, [v, a, b, torch.relu(model.pre(3, [v, a, b]))])[:, 0]

        moved = gradient(lambda v: v, x, masked)
        twin = LayeredTwin(model.matrices, model.offsets, 0.0, x[0], [1, 0])
        assert_close(exact.weight[0], torch.from_numpy(twin.model({1: {unit[0]}})[0]))
        found_a_difference |= not torch.allclose(moved, exact.weight)
    assert found_a_difference


def test_terms_around_a_masked_layer_are_not_in_the_path():
    """The product of segment derivatives, not one masked backward pass: a skip connection must not leak."""
    frozen = freeze(build("resnet"), inputs("resnet", batch=1))
    inner, outer = "layer1.0.relu", "layer1.0.relu#2"
    dead = Path.of([("relu", (None, None, None)), (inner, (0, None, None)), (outer, (None, None, None))])
    around = linear_model(frozen, 0, Path.of([("relu", (None, None, None)), (outer, (None, None, None))]))
    through = [
        linear_model(frozen, 0, Path.of([*_pairs(dead)[:1], (inner, (c, None, None)), *_pairs(dead)[2:]]))
        for c in range(3)
    ]
    rest = flat(around) - sum(flat(part) for part in through)
    assert rest.abs().max() > 1e-3 * flat(around).abs().max(), "the identity branch carries nothing here"


@given(architectures(), st.data())
def test_whole_network_is_the_sum_of_its_routes(architecture, data):
    model = layered(**architecture)
    x = _inputs(model, architecture, data)
    frozen = freeze(model, x)
    assert torch.equal(frozen.output, model(x))
    assert [layer.name for layer in frozen.layers] == model.names()
    weight = [data.draw(st.integers(-2, 2)) for _ in range(architecture["widths"][-1])]
    target = torch.tensor(weight, dtype=x.dtype)
    whole = linear_model(frozen, lambda y: y @ target)
    for b in range(len(x)):
        _assert_model_is(whole, b, *LayeredTwin(model.matrices, model.offsets, model.slope, x[b], weight).model({}))
    assert_complete(frozen, lambda y: y @ target)


@given(architectures(), st.data())
def test_path_model_is_the_sum_of_the_routes_through_it(architecture, data):
    model = layered(**architecture)
    x = _inputs(model, architecture, data)
    chosen = data.draw(chosen_units(architecture["widths"]))
    path = path_of(model.names(), chosen)
    part = linear_model(freeze(model, x), 0, path)
    for b in range(len(x)):
        twin = LayeredTwin(model.matrices, model.offsets, model.slope, x[b], _one_hot(architecture, 0))
        _assert_model_is(part, b, *twin.model(chosen))


@given(architectures(), st.data())
def test_every_sample_can_have_its_own_path(architecture, data):
    model = layered(**architecture)
    x = _inputs(model, architecture, data, batch=3)
    chosen = [data.draw(chosen_units(architecture["widths"])) for _ in x]
    classes = [data.draw(st.integers(0, architecture["widths"][-1] - 1)) for _ in x]
    parts = linear_model(freeze(model, x), logit(classes), [path_of(model.names(), c) for c in chosen])
    for b in range(len(x)):
        twin = LayeredTwin(model.matrices, model.offsets, model.slope, x[b], _one_hot(architecture, classes[b]))
        _assert_model_is(parts, b, *twin.model(chosen[b]))


# --- section 4: decomposition ---


@given(architectures(), st.data())
def test_children_and_the_routes_around_the_layer_sum_to_the_parent(architecture, data):
    """f^P = sum_j f^(P + (l, S^j)) + r_l(P), with any partition of any further layer."""
    model = layered(**architecture)
    x = _inputs(model, architecture, data, batch=1)
    hidden = len(architecture["widths"]) - 2
    chosen = data.draw(chosen_units(architecture["widths"]))
    free = [l for l in range(1, hidden + 1) if l not in chosen]
    if not free:
        return
    layer = data.draw(st.sampled_from(free))
    labels = [data.draw(st.integers(0, 2)) for _ in range(architecture["widths"][layer])]
    sets = [{i for i, label in enumerate(labels) if label == l} for l in set(labels)]
    frozen, names = freeze(model, x), model.names()
    parent = linear_model(frozen, 0, path_of(names, chosen))
    children = [linear_model(frozen, 0, path_of(names, {**chosen, layer: s})) for s in sets]
    twin = LayeredTwin(model.matrices, model.offsets, model.slope, x[0], _one_hot(architecture, 0))
    remainder = torch.from_numpy(np.append(*twin.model(chosen, bypassed=layer)))
    size = sum(flat(child).abs().max() for child in children) + remainder.abs().max()
    assert_close(sum(flat(child)[0] for child in children) + remainder, flat(parent)[0], size)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("name", ["vgg", "resnet", "squeeze"])
def test_all_units_of_a_layer_and_the_remainder_give_the_whole(name, partition):
    """The remainder's weight is here the gradient of the model itself with the layer's output detached by a hook."""
    model, x = build(name), inputs(name)
    frozen = freeze(model, x)
    whole = linear_model(frozen, 0)
    for layer in frozen.layers:
        everything = linear_model(frozen, 0, Path.of([(layer.name, (None,) * len(layer.shape))]))
        units = units_of(frozen, layer.name, PARTITIONS[partition])
        if len(units) < 30:
            children = [linear_model(frozen, 0, Path.of([(layer.name, u)])) for u in units]
            assert_children_sum_to_parent(children, everything)
        around = _gradient_around(model, x, layer.name)
        assert_close(everything.weight + around, whole.weight, max(around.abs().max(), everything.weight.abs().max()))
        assert name != "vgg" or (around == 0).all()


def _gradient_around(model, x, name):
    """The gradient of logit 0 with one call of one module detached."""
    path, _, call = name.partition("#")
    calls = 0

    def detach(_module, _args, output):
        nonlocal calls
        calls += 1
        return output.detach() if calls == int(call or 1) else output

    hook = model.get_submodule(path).register_forward_hook(detach)
    x = x.clone().requires_grad_()
    y = model(x)[:, 0].sum()
    hook.remove()
    (grad,) = torch.autograd.grad(y, x, allow_unused=True) if y.requires_grad else (None,)
    return torch.zeros_like(x) if grad is None else grad


@pytest.mark.parametrize("name", CHAINS)
def test_nothing_by_passes_a_layer_of_a_chain(name):
    """Between two layers of the path and above its top the remainder is zero; below its lowest it is biases alone."""
    frozen = freeze(build(name), inputs(name, batch=1))
    names = [layer.name for layer in frozen.layers]
    low, top = names[0], names[-1]
    for path, layer, above in (((top,), low, False), ((low,), top, True)):
        parent = active_path(frozen, list(path), neurons, seed=2)
        children = []
        for (unit,) in units_of(frozen, layer, neurons):
            pairs = [*_pairs(parent), (layer, unit)] if above else [(layer, unit), *_pairs(parent)]
            children.append(linear_model(frozen, 0, Path.of(pairs)))
        if above:
            assert_children_sum_to_parent(children, parent_model := linear_model(frozen, 0, parent))
            assert (flat(parent_model) != 0).any()
        else:
            parent_model = linear_model(frozen, 0, parent)
            assert_close(sum(c.weight for c in children), parent_model.weight)
            assert (sum(c.bias for c in children) - parent_model.bias).abs().max() > 1e-6


# --- batches, dtypes, extremes ---


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_the_same_as_one_by_one(name):
    model, x = build(name), inputs(name, batch=3)
    together = freeze(model, x)
    layers = [layer.name for layer in together.layers][::2]
    path = active_path(together, layers, channels, count=2)
    batch = linear_model(together, logit([0, 1, 2]), path)
    for b in range(3):
        alone = linear_model(freeze(model, x[b : b + 1]), b, path)
        assert_close(flat(batch)[b : b + 1], flat(alone), float(flat(alone).abs().max()))
        assert_close(batch.value[b : b + 1], alone.value, float(flat(alone).abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_with_float64(name):
    model, x = build(name), inputs(name)
    path = active_path(freeze(model, x), [layer.name for layer in freeze(model, x).layers][-1:], channels)
    exact = linear_model(freeze(model, x), 0, path)
    single = linear_model(freeze(build(name, dtype=torch.float32), x.float()), 0, path)
    assert_close(single.weight, exact.weight, 1e-2)
    assert single.weight.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_zero_input_leaves_only_the_bias(name):
    model, x = build(name), torch.zeros_like(inputs(name))
    frozen = freeze(model, x)
    assert_complete(frozen, 0)
    whole = linear_model(frozen, 0)
    assert_close(whole.bias, model(x)[:, 0])
    assert (whole.weight_part.abs() <= 1e-15).all()


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e8, 1e150])
def test_laws_hold_at_any_scale_of_the_input(scale):
    model, x = build("resnet"), inputs("resnet") * scale
    frozen = freeze(model, x)
    assert_complete(frozen)
    assert_close(linear_model(frozen, 0).weight, gradient(model, x, lambda y: y[:, 0]))


def test_a_dead_layer_leaves_the_biases_above_it():
    model = build("mlp")
    with torch.no_grad():
        model[2].bias.fill_(-1e3)
    x = inputs("mlp")
    frozen = freeze(model, x)
    assert (frozen.layers[1].output == 0).all()
    assert_complete(frozen, 0)
    assert (linear_model(frozen, 0).weight == 0).all()
    assert_zero(linear_model(frozen, 0, Path.of([("3", [(None,)])])))


def test_ties_are_complete_too():
    """At a tie (h = 0 exactly, equal entries in a pooling window) the pieces meet; any of them is affine at x."""
    x = torch.tensor([[[[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, -1.0, 2.0], [6.0, 6.0, -6.0, 0.0], [0.5, 0.5, 0.5, 0.5]]]])

    def forward(module, x):
        x = torch.nn.functional.max_pool2d(torch.relu(x), 2) + torch.relu(x[..., ::2, ::2] - 1)
        x = torch.nn.functional.relu6(x) + x.clamp(-1, 1) + torch.maximum(x, torch.ones(())) + x.abs()
        return (x.amax((2, 3)) + torch.nn.functional.hardtanh(x).sum((2, 3))) * torch.ones(4)

    frozen = freeze(Lambda(forward).eval(), x.double())
    assert_complete(frozen, 0)


def test_the_weight_belongs_to_the_input_as_given():
    """Preprocessing inside the model is part of the map; the shape of W is that of x."""
    for name, (_, shape) in NETS.items():
        whole = linear_model(freeze(build(name), inputs(name, batch=1)), 0)
        assert [w.shape for w in weights(whole)] == [torch.Size((1, *shape))]
        assert whole.bias.shape == whole.value.shape == (1,)


def test_order_of_units_within_a_layer_does_not_matter():
    frozen = freeze(build("mlp"), inputs("mlp"))
    a, b = Path.of([("1", [(0,), (3,), (2,)])]), Path.of([("1", [(3,), (2,), (0,)])])
    assert a == b
    assert_same_model(linear_model(frozen, 0, a), linear_model(frozen, 0, b))


def test_two_layers_that_are_the_same_tensor_count_once():
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU()), torch.nn.Linear(5, 3))
    frozen = freeze(model.double().eval(), example((4,), 0), layers=["0.1", "0"])
    assert [layer.name for layer in frozen.layers] == ["0.1", "0"]
    once = linear_model(frozen, 0, Path.of([("0.1", [(1,), (2,)])]))
    assert_same_model(linear_model(frozen, 0, Path.of([("0.1", [(1,), (2,)]), ("0", [(1,), (2,), (4,)])])), once)
    assert_zero(linear_model(frozen, 0, Path.of([("0.1", [(1,)]), ("0", [(2,)])])))


def _pairs(path):
    return [(step.layer, list(step.units)) for step in path.steps]


def _position(frozen, name):
    return [layer.name for layer in frozen.layers].index(name)


def _inputs(model, architecture, data, batch=2):
    x = example((architecture["widths"][0],), data.draw(st.integers(0, 1000)), batch)
    return x * data.draw(st.sampled_from([0.0, 1.0, 1.0, 1.0, 30.0]))


def _one_hot(architecture, c):
    return [float(i == c) for i in range(architecture["widths"][-1])]


def _assert_model_is(model, sample, weight, bias):
    size = float(np.abs(weight).max() + abs(bias) + abs(float(model.value[sample])))
    assert_close(model.weight[sample], torch.from_numpy(weight), size)
    assert_close(model.bias[sample], torch.tensor(bias, dtype=torch.float64), size)
