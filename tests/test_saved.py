"""What a recording keeps: no more than its derivatives need; layers that are released give their memory back."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from asserts import assert_close, weighted
from nets import NETS, Lambda, build, example, inputs, mlp, randomise
from relupath import Greedy, Path, ablate, bias_sources, find_paths, freeze, linear_model, linear_models, reach
from relupath._saved import _Saved
from relupath.errors import ModelError, PathError, UnknownLayerError


@pytest.fixture(autouse=True)
def _of_this_test():
    """What was alive before is not looked through."""
    gc.collect()
    gc.freeze()


def live_bytes() -> int:
    """The memory of all tensors that are alive and were made in this test."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter) and o.device.type == "cpu"]
    storages = [t.untyped_storage() for t in tensors if t.layout == torch.strided]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


STATE = torch.get_rng_state().nbytes
"""A recording holds torch's random state, to run the model again."""


def pictures() -> nn.Module:
    """Convolutions, ReLUs, in place and not, and both kinds of pooling."""
    parts = nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)
    return randomise(nn.Sequential(*parts, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)), 0)


def assert_equal(a: object, b: object) -> None:
    """The same to the bit."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        pairs = (
            zip(a, b, strict=True) if isinstance(a, list | tuple) else [(vars(a)[key], vars(b)[key]) for key in vars(a)]
        )
        for one, two in pairs:
            assert_equal(one, two)


def answers(frozen, left):
    """What is asked of a network, over the layers that are left."""
    found = [
        linear_model(frozen, weighted).weight,
        bias_sources(frozen, 0).model.bias,
        frozen.check(1).bias_from_sources,
    ]
    found += [term.total for term in bias_sources(frozen, 1).terms]
    eye = torch.eye(frozen.output[0].numel(), dtype=frozen.output.dtype)[:, None].repeat(1, frozen.batch, 1)
    found += frozen.vjps({frozen.top: eye.view(-1, *frozen.output.shape)}, [*frozen.inputs, *map(frozen.layer, left)])
    if left:
        path = Path.of([(left[-1], (None,) * len(frozen.layer(left[-1]).shape))])
        found += [find_paths(frozen, 0, Greedy(), layers=left).model.weight, ablate(frozen, path, 0).ablated]
        found += [linear_model(frozen, 0, path).weight, linear_models(frozen, [path] * 5, 0, samples=[0] * 5).weight]
    return found


@pytest.mark.parametrize("name", [name for name in NETS if name != "linear"])
@pytest.mark.parametrize("which", ["all", "even", "odd"])
def test_a_released_network_gives_the_same_to_the_bit(name, which):
    frozen = freeze(build(name), inputs(name))
    gone = frozen.layers[{"all": slice(None), "even": slice(None, None, 2), "odd": slice(1, None, 2)}[which]]
    left = [layer.name for layer in frozen.layers if layer not in gone]
    before = answers(frozen, left)
    lean = frozen.release([layer.name for layer in gone])
    assert [layer.name for layer in lean.layers] == left
    assert_equal(answers(lean, left), before)
    assert_equal(answers(frozen, left), before)


def test_what_is_left_of_a_released_relu_is_a_byte_a_neuron():
    model, x = pictures(), example((2, 12, 12), 1, 1)
    linear_model(freeze(model, x), 0)
    start = live_bytes()
    frozen = freeze(model, x)
    assert [layer.name for layer in frozen.layers] == ["1", "4"]
    whole = live_bytes()
    first, second = (layer.output.numel() for layer in frozen.layers)
    frozen = frozen.release(["1"])
    assert whole - live_bytes() == 7 * first
    frozen = frozen.release(["4"])
    assert whole - live_bytes() == 7 * (first + second)
    places = 3 * 36 + 36  # of the maxima
    assert live_bytes() - start == first + second + places + x.nbytes + frozen.output.nbytes + STATE
    linear_model(frozen, 0)


def test_a_network_recorded_without_layers_is_as_lean_as_a_released_one():
    model, x = pictures(), example((2, 12, 12), 1, 1)
    start = live_bytes()
    frozen = freeze(model, x, layers=[])
    lean = live_bytes() - start
    expected = freeze(model, x)
    assert_equal(linear_model(frozen, 0).weight, linear_model(expected, 0).weight)
    del frozen
    released = expected.release(expected.layers)
    del expected
    assert live_bytes() - start == lean
    assert released.layers == ()


def test_values_that_an_operation_needs_stay():
    """Of a product of two signals the frozen factor is the activation itself."""
    model = randomise(
        Lambda(
            lambda m, x: m.tail(F.relu(m.fc(x)) * m.other(x)),
            fc=nn.Linear(5, 4),
            other=nn.Linear(5, 4),
            tail=nn.Linear(4, 3),
        ),
        0,
    )
    frozen = freeze(model, example((5,), 4), carry="second")
    expected = linear_model(frozen, 0).weight
    assert_equal(linear_model(frozen.release(frozen.layers), 0).weight, expected)


def test_a_unit_that_is_not_a_number_stays_as_it_is():
    model = (
        Lambda(lambda m, x: m.tail(F.relu(m.fc(x))[:, 1:]), fc=nn.Linear(5, 4), tail=nn.Linear(3, 3)).double().eval()
    )
    model.fc.bias.data[0] = torch.nan
    frozen = freeze(model, example((5,), 4))
    (layer,) = frozen.layers
    before = frozen.vjp({layer: torch.ones_like(layer.output)}, frozen.inputs)
    assert_equal(frozen.release([0]).vjp({layer: torch.ones_like(layer.output)}, frozen.inputs), before)


def test_leaky_relu_is_released_too():
    frozen = freeze(mlp(0, act=nn.LeakyReLU), inputs("mlp"))
    expected = linear_model(frozen, 0).weight
    lean = frozen.release(frozen.layers)
    size = live_bytes()
    del frozen
    assert size - live_bytes() == 2 * (7 + 5) * 8
    assert_equal(linear_model(lean, 0).weight, expected)


def test_a_released_layer_is_refused_by_name():
    model = mlp(0)
    frozen = freeze(model, inputs("mlp"))
    lean = frozen.release(["1"])
    for which in ("1", frozen.layers[0], model[1]):
        with pytest.raises(UnknownLayerError, match="layer '1' was released"):
            lean.layer(which)
    with pytest.raises(UnknownLayerError, match="was released"):
        lean.release([frozen.layers[0]])
    with pytest.raises(UnknownLayerError, match="was released"):
        linear_model(lean, 0, Path.of([("1", (0,))]))
    with pytest.raises(UnknownLayerError, match="no hidden layer 'nothing'"):
        frozen.release(["nothing"])
    with pytest.raises(PathError, match="takes a list"):
        frozen.release("1")
    assert frozen.layer("1") is frozen.layers[0]
    assert lean.layer(0) is frozen.layers[1]


def test_biases_below_a_released_layer_count_to_the_next_one():
    frozen = freeze(mlp(0), inputs("mlp"))
    first, second, top = bias_sources(frozen, 0).by_layer().values()
    found = bias_sources(frozen.release(["1"]), 0).by_layer()
    assert list(found) == ["3", "output"]
    assert_close(found["3"], first + second)
    assert_equal(found["output"], top)


def test_a_released_network_runs_again_over_the_layers_that_are_left():
    frozen = freeze(build("vgg"), inputs("vgg"))
    left = [layer.name for layer in frozen.layers[::2]]
    lean, x = frozen.release(frozen.layers[1::2]), inputs("vgg")
    shares, all_shares = (reach.agreement_along(network, 1.5 * x, steps=2) for network in (lean, frozen))
    assert list(shares) == left
    assert all(torch.equal(shares[name], all_shares[name]) for name in left)
    assert torch.equal(reach.first_flip(lean, x).t, reach.first_flip(frozen, x).t)


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_a_changed_model_is_not_released(what):
    model = mlp(0)
    frozen = freeze(model, inputs("mlp"))
    with torch.no_grad():
        getattr(model[2], what).add_(1)
    with pytest.raises(ModelError, match="freeze again"):
        linear_model(frozen.release(frozen.layers), 0)


# --- what is kept in the first place ---


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 300), max_size=24),
    st.sampled_from([(-1,), (2, -1), (2, 2, -1), (1, 2, 2, -1)]),
)
def test_indices_come_back_as_they_were(numbers, shape):
    t = torch.tensor(numbers[: len(numbers) // 4 * 4] if len(shape) > 1 else numbers, dtype=torch.int64)
    t = t.reshape(shape) if t.numel() else t
    saved = _Saved(t, "values")
    assert torch.equal(saved.load(), t)
    assert torch.equal(saved.load(), t), "to load changes nothing"


def test_places_of_maxima_take_a_byte_each():
    _, places = F.max_pool2d(example((3, 224, 224), 0, dtype=torch.float32), 2, return_indices=True)
    saved = _Saved(places, "values")
    assert int(places.max()) >= 2**15
    assert saved.tensor.dtype == torch.uint8
    assert torch.equal(saved.load(), places)


@pytest.mark.parametrize(
    "function", ["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool1d"]
)
def test_of_what_is_pooled_the_shape_is_kept(function):
    axes = (2, 16, 16) if function.endswith("2d") else (2, 256)
    width = 64 if function == "avg_pool2d" or function == "max_pool2d" else 4 if len(axes) == 3 else 128
    model = randomise(
        Lambda(lambda m, x: m.tail(getattr(F, function)(x * 2, 2)[:, 0].flatten(1)), tail=nn.Linear(width, 3)), 0
    )
    x = example(axes, 0, 1)
    start = live_bytes()
    frozen = freeze(model, x)
    assert live_bytes() - start <= x.nbytes + STATE + 4 * width + 3 * 8, "the input itself, the output and places"
    grown = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(grown)[:, 0].sum(), grown)
    assert torch.equal(linear_model(frozen, 0).weight, expected)


def test_gates_of_bounded_pieces_are_kept_as_bytes_and_zero_constants_as_one_number():
    model = randomise(Lambda(lambda m, x: m.tail(F.relu6(torch.cat([x, x * 2], 1)))[:, :3], tail=nn.Linear(200, 3)), 0)
    x = example((100,), 0, 1).clamp(-2, 2)
    start = live_bytes()
    frozen = freeze(model, x)
    assert live_bytes() - start == x.nbytes + STATE + 200 * (8 + 1) + 4 * 8, "the layer and its gates; output and zero"
    assert [source.name for source in frozen.sources] == [":relu6", "tail.bias"]
    linear_model(frozen, 0)
