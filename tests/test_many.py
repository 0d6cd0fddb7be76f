"""Many paths at once: each row is the linear model of its path, at the price of few products."""

from __future__ import annotations

import inspect
import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from asserts import assert_close, weighted
from cases import NAMES, PARTITIONS, TARGETS, active_path, architectures, chosen_units, path_of
from nets import Lambda, build, example, inputs, layered, randomise
from nets import deep as deep_chain
from relupath import (
    Frozen,
    Greedy,
    Path,
    Step,
    _products,
    _transposed,
    _way,
    channels,
    contrast,
    decompose,
    find_paths,
    freeze,
    linear_model,
    linear_models,
    locations,
    logit,
    neurons,
)  # fmt: skip
from relupath._cropped import OPERATIONS
from relupath._crops import Entries
from relupath._memory import MOST, at_once
from relupath._products import COPIES, Products
from relupath._way import Way
from relupath.errors import PathError, UnknownLayerError

ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-4}


def parts(model):
    """Weights (of each input), bias and value, beside the size of the terms that were added."""
    weights = model.weight if isinstance(model.weight, tuple) else (model.weight,)
    size = model.value.abs() + model.weight_part.abs() + model.bias.abs()
    return [(w, w.flatten(1).abs().amax(1)) for w in weights] + [(model.bias, size), (model.value, size)]


def assert_rows(found, frozen, paths, samples=None, targets=None, target=None):
    """Row k is the linear model of path k at its sample, for its target."""
    samples = [0] * len(paths) if samples is None else samples
    targets = [target] * len(paths) if targets is None else targets
    for k, (path, sample, own) in enumerate(zip(paths, samples, targets, strict=True)):
        expected = linear_model(frozen, own, path)
        assert found.labels[k] == expected.labels[sample]
        for (mine, _), (one, size) in zip(parts(found), parts(expected), strict=True):
            error = float((mine[k] - one[sample]).abs().max())
            assert error <= ROUNDING[mine.dtype] * float(size[sample]), (k, str(path), error)
    assert len(found.value) == len(paths)


@pytest.fixture(autouse=True)
def windows_for_few(monkeypatch):
    """Windows between layers for few products too, though the layers here are small."""
    monkeypatch.setattr(_products, "ROOMY", 0)


def layers_of(frozen, seed, least=0):
    """Some layers of a network, in order."""
    generator = torch.Generator().manual_seed(seed)
    names = [layer.name for layer in frozen.layers_of_paths(None)]
    count = int(torch.randint(least, len(names) + 1, (), generator=generator))
    return [names[i] for i in sorted(torch.randperm(len(names), generator=generator)[:count].tolist())]


def several(frozen, partitions, count=2):
    """Paths of different lengths over different layers, thin and wide, that begin alike or are alike."""
    paths = [
        active_path(frozen, layers_of(frozen, seed), partition, seed, width)
        for seed in range(count)
        for partition in partitions
        for width in (1, 2)
    ]
    complete = active_path(frozen, layers_of(frozen, 0, len(frozen.layers)), partitions[0])
    paths += [complete, complete, complete.top(max(0, len(complete) - 1)), Path()]
    return paths


def fitting(frozen):
    """The partitions that fit all layers of a network."""
    flat = all(len(layer.shape) < 2 for layer in frozen.layers)
    return [one for name, one in PARTITIONS.items() if not (flat and name in ("locations", "rows"))]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "linear"])
def test_each_row_is_the_linear_model_of_its_path(name):
    frozen = freeze(build(name), inputs(name))
    paths = several(frozen, fitting(frozen), 1)
    samples = [k * 7 % 3 % 2 for k in range(len(paths))]
    assert_rows(linear_models(frozen, paths, 1, samples=samples), frozen, paths, samples, target=1)


@settings(max_examples=8)
@given(st.data())
def test_rows_of_layered_networks_with_skips(data):
    architecture = data.draw(architectures())
    model = layered(**architecture)
    frozen = freeze(model, example(architecture["widths"][:1], architecture["seed"], 3))
    some = data.draw(st.lists(chosen_units(architecture["widths"]), min_size=1, max_size=5))
    paths = [path_of(model.names(), chosen) for chosen in some]
    samples = data.draw(st.lists(st.integers(0, 2), min_size=len(paths), max_size=len(paths)))
    assert_rows(linear_models(frozen, paths, 0, samples=samples), frozen, paths, samples, target=0)


def test_single_precision():
    frozen = freeze(build("vgg", dtype=torch.float32), inputs("vgg", dtype=torch.float32))
    paths = several(frozen, [neurons, channels])
    samples = [k % 2 for k in range(len(paths))]
    found = linear_models(frozen, paths, 1, samples=samples)
    assert found.weight.dtype == torch.float32
    assert_rows(found, frozen, paths, samples, target=1)


def test_all_units_but_some():
    frozen = freeze(build("vgg"), inputs("vgg", batch=1))
    low, middle, high = frozen.layers[:3]
    paths = [
        Path((Step(middle.name, ((1, None, None),), but=True),)),
        Path((Step(low.name, ((0, 1, 2), (1, 1, 2)), but=True), Step(middle.name, ((1, 2, 3),)))),
        Path((Step(low.name, (), but=True), Step(high.name, ((2, None, None),), but=True))),
        Path((Step(low.name, ((None, 2, None),)), Step(middle.name, ((None, None, 3),)))),
        Path((Step(low.name, ((None, None, None),)), Step(middle.name, ((0, 1, 2), (0, 4, 4), (3, 5, 5))))),
    ]
    assert_rows(linear_models(frozen, paths, 2), frozen, paths, target=2)


@pytest.mark.parametrize("target", TARGETS)
def test_one_target_for_all(target):
    frozen = freeze(build("resnet"), inputs("resnet"))
    layer = frozen.layers[1].name
    paths = [Path.of([(layer, (c, None, None))]) for c in (0, 1, 2)] + [Path()] * 2
    found = linear_models(frozen, paths, TARGETS[target](len(paths)), samples=[1, 0, 1, 0, 1])
    own = {"a logit a sample": lambda k: logit(k % 3), "contrast a sample": lambda k: contrast(k % 2, 3)}
    targets = [own.get(target, lambda k: TARGETS[target](2))(k) for k in range(5)]
    assert_rows(found, frozen, paths, [1, 0, 1, 0, 1], targets)


def test_several_inputs():
    model = Lambda(
        lambda m, x, z: m.head(torch.cat([m.first(x).relu(), m.second(z).relu()], 1).flatten(1)),
        first=nn.Conv2d(2, 3, 3), second=nn.Conv2d(1, 2, 2, stride=2), head=nn.Linear(5 * 9, 4),
    )  # fmt: skip
    frozen = freeze(randomise(model, 0), (example((2, 5, 5), 0), example((1, 6, 6), 1)))
    one, other = (layer.name for layer in frozen.layers)
    paths = [Path.of([(one, (c, None, None))]) for c in range(3)] + [Path.of([(other, (1, 2, 2))]), Path()]
    samples = [0, 1, 1, 0, 0]
    found = linear_models(frozen, paths, 1, samples=samples)
    assert [w.shape for w in found.weight] == [(5, 2, 5, 5), (5, 1, 6, 6)]
    assert_rows(found, frozen, paths, samples, target=1)


def test_layers_of_tokens():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    model = randomise(nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)), 1)
    frozen = freeze(model, example((3, 8), 0))
    paths = several(frozen, [neurons, locations, channels], 1)
    samples = [k % 2 for k in range(len(paths))]
    assert_rows(linear_models(frozen, paths, 2, samples=samples), frozen, paths, samples, target=2)


def deep(seed=0, size=(13, 12), batch=2, dtype=torch.float64, width=8, layers=None):
    """Five convolutions with a skip, a pooling and a head; the hidden layers are relu 0, 2, 4, 7, 9."""

    def step(i, **how):
        return nn.Conv2d(i, width, 3, **how)

    skip = Lambda(lambda m, h: h + m.conv(h), conv=step(width, padding=1))
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)
    model = nn.Sequential(step(2, padding=1), nn.ReLU(), step(width), nn.ReLU(), skip, nn.ReLU(), nn.MaxPool2d(3, 2, 1),
                          step(width, padding=1), nn.ReLU(), *head)  # fmt: skip
    return freeze(randomise(model, seed, dtype), example((2, *size), seed, batch, dtype), layers=layers)


def random_neurons(frozen, layers, count=1, seed=0):
    """Paths of one neuron a layer through which something goes at the first sample."""
    generator, paths = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        units, upper, cotangent = [], frozen.top, torch.ones_like(frozen.output)
        for layer in reversed(layers):
            (pulled,) = frozen.vjp({upper: cotangent}, [layer])
            live = (pulled * layer.output)[0].flatten().nonzero()[:, 0]
            n = live[torch.randint(len(live), (), generator=generator)]
            unit = tuple(int(i) for i in torch.unravel_index(n, layer.shape))
            units.insert(0, (layer.name, unit))
            upper, cotangent = layer, torch.zeros_like(layer.output)
            cotangent[(0, *unit)] = 1
        paths.append(Path.of(units))
    return paths


class Counted:
    """Notes of the products that run: where from and to, how many, and how many values in windows or in full."""

    def __init__(self, monkeypatch):
        self.asked, self.windows, self.full = [], [], []
        parts, pull, full, added = Products.parts, Way.pull, Products._full, _way.added

        def counted_parts(own, upper, crops, lower, *rest, **more):
            self.asked.append((upper.name, lower.name, len(crops)))
            return parts(own, upper, crops, lower, *rest, **more)

        def counted_pull(own, crops, *rest):
            self.windows.append(0)
            return pull(own, crops, *rest)

        def counted_added(some):
            found = added(some)
            self.windows[-1] = max(self.windows[-1], found.values[0].numel())
            return found

        def counted_full(own, cotangents, samples, to):
            self.full += [(upper.name, lower.name, len(v)) for upper, v in cotangents.items() for lower in to]
            return full(own, cotangents, samples, to)

        monkeypatch.setattr(Products, "parts", counted_parts)
        monkeypatch.setattr(Way, "pull", counted_pull)
        monkeypatch.setattr(_way, "added", counted_added)
        monkeypatch.setattr(Products, "_full", counted_full)


def test_only_the_head_takes_full_products(monkeypatch):
    frozen = deep(size=(40, 40))
    counted = Counted(monkeypatch)
    paths = random_neurons(frozen, frozen.layers[1:], 12)
    found = linear_models(frozen, paths, 1, samples=[0] * 12)
    assert found.weight.flatten(1).any(1).all()
    top = frozen.layers[-1]
    assert counted.full == [("output", top.name, 1)]
    assert counted.windows
    assert max(counted.windows) <= 8 * 9 * 9 < frozen.layers[0].output[0].numel() / 15
    assert_rows(found, frozen, paths, target=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_rows_of_deep_networks(dtype):
    frozen = deep(1, dtype=dtype)
    paths = several(frozen, [neurons, channels, locations])
    samples = [k % 2 for k in range(len(paths))]
    assert_rows(linear_models(frozen, paths, weighted, samples=samples), frozen, paths, samples, target=weighted)


def test_a_beginning_that_paths_share_is_computed_once(monkeypatch):
    frozen = deep(width=16)
    low, middle, _, top = frozen.layers
    (path,) = random_neurons(frozen, [middle, top])
    others = [one for one in random_neurons(frozen, [low, middle, top], 30) if one.steps[2] == path.steps[1]]
    paths = [Path(Path.of([(low.name, (c, None, None))]).steps + path.steps) for c in range(4)]
    other = next(one for one in others if one.steps[1] != path.steps[0])
    paths += [path, path, path.top(1), paths[0], other]
    counted = Counted(monkeypatch)
    found = linear_models(frozen, paths, 1, samples=[0] * len(paths))
    down = [(upper, lower, count) for upper, lower, count in counted.asked if lower != "x"]
    assert down == [("output", top.name, 1), (top.name, middle.name, 1), *[(middle.name, low.name, 1)] * 2]
    live = sum(bool(w.any()) for w in found.weight[:4])
    assert live > 1
    assert [(upper, count) for upper, lower, count in counted.asked if lower == "x"] == [
        (top.name, 1), (middle.name, 1), (low.name, live), (low.name, 1),
    ]  # fmt: skip
    assert_rows(found, frozen, paths, target=1)


def test_a_path_through_dead_units_is_not_carried_further(monkeypatch):
    frozen = deep()
    layer, top = frozen.layers[0], frozen.layers[-1]
    dead = [tuple(unit) for unit in (top.output[0] == 0).nonzero().tolist()][:5]
    paths = [Path.of([(layer.name, (0, None, None)), (top.name, unit)]) for unit in dead]
    counted = Counted(monkeypatch)
    found = linear_models(frozen, paths, 1, samples=[0] * len(paths))
    assert counted.asked == [("output", top.name, 1)]
    assert not found.weight.any()
    assert not found.value.any()
    assert not found.bias.any()


def test_a_unit_without_a_slope_may_have_a_value():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Hardtanh(-0.1, 0.1), nn.Flatten(), nn.Linear(36, 3))
    frozen = freeze(randomise(model, 0), example((2, 5, 5), 0, 1))
    flat = [tuple(unit) for unit in (frozen.layers[0].output[0].abs() == 0.1).nonzero().tolist()]
    paths = [Path.of([("1", unit)]) for unit in flat]
    found = linear_models(frozen, paths, 1)
    assert not found.weight.any()
    assert found.value.all()
    assert_rows(found, frozen, paths, target=1)


def test_the_model_does_not_run_again():
    runs = []
    model = build("resnet")
    handle = model.register_forward_hook(lambda *_: runs.append(1))
    frozen = freeze(model, inputs("resnet"))
    before = len(runs)
    paths = several(frozen, [neurons])
    random = torch.get_rng_state()
    linear_models(frozen, paths, samples=[0] * len(paths))
    handle.remove()
    assert len(runs) == before > 0
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("partition", [neurons, channels, PARTITIONS["modulo"]], ids=["neurons", "channels", "modulo"])
def test_little_memory_takes_more_parts(partition, monkeypatch):
    frozen = deep(batch=3)
    paths = several(frozen, [partition])
    samples = [k * k % 3 for k in range(len(paths))]
    counted = Counted(monkeypatch)
    much = linear_models(frozen, paths, 1, samples=samples, max_bytes=2**30)
    pieces = len(counted.full) + len(counted.windows)
    little = linear_models(frozen, paths, 1, samples=samples, max_bytes=1)
    assert len(counted.full) + len(counted.windows) > 2 * pieces
    for (mine, size), (other, _) in zip(parts(little), parts(much), strict=True):
        error = (mine - other).abs().flatten(1).amax(1) if mine.ndim > 1 else (mine - other).abs()
        assert (error <= ROUNDING[mine.dtype] * size).all()


def test_kernels_of_each_row_count_as_memory(monkeypatch):
    parts = [part for c in (3, 16, 16) for part in (nn.Conv2d(c, 16, 7, padding=3), nn.ReLU())]
    frozen = freeze(randomise(nn.Sequential(*parts, nn.Flatten(), nn.Linear(144, 2)), 0), example((3, 3, 3), 0, 1))
    top, held, most, each = frozen.layers[-1], [], 2**20, _transposed.each
    paths = [Path.of([(top.name, tuple(unit))]) for unit in torch.ones(top.shape).nonzero().tolist()]

    def noted(values, weight, *rest):
        held.append(weight.nbytes)
        return each(values, weight, *rest)

    monkeypatch.setattr(_transposed, "each", noted)
    found = linear_models(frozen, paths, 1, max_bytes=most)
    assert 2 * 16 * 49 * 8 < max(held) <= most // COPIES
    assert_rows(found, frozen, paths, target=1)


def test_beginnings_with_different_numbers_of_children_name_their_channels(monkeypatch):
    frozen = deep()
    low, high = [layer.name for layer in frozen.layers][-2:]
    units = [(high, k) for k in (0, 0, 1, 2)]
    paths = [Path.of([(low, (k, None, None)), (n, (c, None, None))]) for k, (n, c) in enumerate(units)]
    asked, parts = [], Products.parts

    def noted(own, upper, crops, lower, wanted=None):
        asked.append(wanted)
        return parts(own, upper, crops, lower, wanted)

    monkeypatch.setattr(Products, "parts", noted)
    found = linear_models(frozen, paths, 1, samples=[0] * 4)
    (named,) = [wanted for wanted in asked if wanted is not None and wanted.shape[1] > 1]
    assert all(len({*row}) == 2 for row in named.tolist())
    assert_rows(found, frozen, paths, target=1)


@pytest.mark.parametrize(("memory", "counts"), [(2**30, [5]), (1, [2, 2, 1])], ids=["much", "little"])
def test_full_products_share_what_memory_there_is(memory, counts, monkeypatch):
    frozen = deep()
    path, targets, samples = Path.of([("8", (0, None, None))]), [0, 1, 1, 2, 2], [0, 0, 1, 0, 1]
    counted = Counted(monkeypatch)
    found = linear_models(frozen, [path] * 5, logit(targets), samples=samples, max_bytes=memory)
    got = [count for *_, count in counted.full]
    assert sorted(got, reverse=True) == counts
    assert_rows(found, frozen, [path] * 5, samples, targets)


def test_permuting_the_paths_permutes_the_rows():
    frozen = deep(2)
    paths = several(frozen, [neurons, channels])
    samples = [k % 2 for k in range(len(paths))]
    order = torch.randperm(len(paths)).tolist()
    found = linear_models(frozen, paths, weighted, samples=samples)
    again = linear_models(frozen, paths, weighted, samples=samples)
    moved = linear_models(frozen, [paths[k] for k in order], weighted, samples=[samples[k] for k in order])
    assert torch.equal(found.weight, again.weight)
    assert torch.equal(found.value, again.value)
    assert torch.equal(found.bias, again.bias)
    assert_close(moved.weight, found.weight[order])
    assert_close(moved.value, found.value[order])


def test_a_batch_of_paths_is_the_paths_one_by_one():
    frozen = deep(3, batch=1)
    paths = several(frozen, [neurons, channels])
    found = linear_models(frozen, paths, 1)
    for k, path in enumerate(paths):
        alone = linear_models(frozen, [path], 1)
        for (mine, _), (one, size) in zip(parts(found), parts(alone), strict=True):
            assert float((mine[k] - one[0]).abs().max()) <= 1e-12 * float(size)


def test_numbers_of_samples_may_be_numpys_or_torchs():
    frozen = freeze(build("mlp"), inputs("mlp"))
    paths = [Path.of([(frozen.layers[0].name, (k,))]) for k in (0, 1)]
    expected = linear_models(frozen, paths, 0, samples=[0, 1])
    for samples in (np.array([0, 1]), torch.tensor([0, 1]), (np.int32(0), np.int64(1))):
        assert torch.equal(linear_models(frozen, paths, 0, samples=samples).value, expected.value)
        assert decompose(frozen, 0, sample=samples[1]).value == decompose(frozen, 0, sample=1).value


def test_many_samples_in_half_precision_do_not_mix():
    model = randomise(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), 0).bfloat16()
    frozen = freeze(model, example((3,), 0, 300).bfloat16())
    found = linear_models(frozen, [Path()] * 300, 1, samples=list(range(300)))
    assert torch.equal(found.weight, linear_model(frozen, 1).weight)


# --- wrong products are found ---


def wrong(name, monkeypatch, some):
    """Let an operation give a wrong factor to some of the cotangents."""
    right = OPERATIONS[name]

    def operation(node, crops, wanted):
        factors = crops.values.new_ones(len(crops))
        factors[some] = 1.001
        return [part.with_values(part.values * factors.view(-1, 1, 1, 1)) for part in right(node, crops, wanted)]

    monkeypatch.setitem(OPERATIONS, name, operation)


def assert_given_up(paths, name, monkeypatch, some):
    """A wrong product in windows is noticed, and the full ones are taken: nothing wrong comes out."""
    frozen = deep(batch=1)
    expected = linear_models(frozen, paths, weighted)
    assert expected.value.any()
    before = Counted(monkeypatch)
    linear_models(frozen, paths, weighted)
    wrong(name, monkeypatch, some)
    after = Counted(monkeypatch)
    found = linear_models(frozen, paths, weighted)
    assert len(after.full) > len(before.full) - len(after.full)
    for (mine, _), (right, size) in zip(parts(found), parts(expected), strict=True):
        assert float((mine - right).abs().max()) <= 1e-10 * float(size.max())


TOPS = [tuple(unit) for unit in deep(batch=1).layers[-1].output[0].nonzero()[::9].tolist()]


@pytest.mark.parametrize("count", [len(TOPS), 2], ids=["many", "few"])
@pytest.mark.parametrize("some", [slice(None), slice(1, 2), slice(-1, None)], ids=["all", "second", "last"])
@pytest.mark.parametrize("name", ["ReluBackward0", "ConvolutionBackward0", "MaxPool2DWithIndicesBackward0"])
def test_a_wrong_product_between_layers_is_given_up(name, some, count, monkeypatch):
    assert_given_up([Path.of([("1", (None, 2, 2)), ("8", unit)]) for unit in TOPS[:count]], name, monkeypatch, some)


@pytest.mark.parametrize("some", [slice(None), slice(1, 2), slice(-1, None)], ids=["all", "second", "last"])
@pytest.mark.parametrize("name", ["ReluBackward0", "ConvolutionBackward0"])
def test_a_wrong_product_down_to_the_input_is_given_up(name, some, monkeypatch):
    assert_given_up([Path.of([("8", unit)]) for unit in TOPS], name, monkeypatch, some)


@pytest.mark.parametrize("count", [len(TOPS), 2], ids=["many", "few"])
@pytest.mark.parametrize("channel", [lambda k: 0, lambda k: k % 3], ids=["the same", "another"])
def test_a_wrong_product_to_single_channels_is_given_up(channel, count, monkeypatch):
    paths = [Path.of([("1", (channel(k), None, None)), ("8", unit)]) for k, unit in enumerate(TOPS[:count])]
    assert_given_up(paths, "ConvolutionBackward0", monkeypatch, slice(-1, None))


def full_products(monkeypatch):
    """Notes of the products that autograd takes: from where, and where to."""
    taken, pull = [], Frozen._pull

    def noted(own, cotangents, to, batched):
        taken.extend((upper.name, lower.name) for upper in cotangents for lower in to)
        return pull(own, cotangents, to, batched)

    monkeypatch.setattr(Frozen, "_pull", noted)
    return taken


def test_few_products_need_no_full_one_beside_them(monkeypatch):
    """Where every route passes the lower layer, the constants between say what has to come down to it."""
    frozen = deep()
    taken = full_products(monkeypatch)
    found = find_paths(frozen, 1, Greedy())
    assert taken == [("output", "8")]
    assert min(len(path.steps) for (path,) in found.ranked) == len(frozen.layers)
    linear_models(frozen, [Path.of([("1", (0, None, None)), ("8", unit)]) for unit in TOPS[:2]], 1, samples=[0] * 2)
    assert {upper for upper, _ in taken} == {"output"}
    monkeypatch.setattr(Products, "_cropped", lambda *_: None)
    expected = find_paths(frozen, 1, Greedy())
    assert found.ranked == expected.ranked
    assert_close(found.model.weight, expected.model.weight)
    assert_close(found.model.bias, expected.model.bias)


def test_few_products_between_small_layers_are_taken_in_full(monkeypatch):
    frozen = deep()
    sizes = [layer.output.nbytes // 2 for layer in frozen.layers]
    monkeypatch.setattr(_products, "ROOMY", sizes[0] + sizes[1])
    taken = full_products(monkeypatch)
    find_paths(frozen, 1, Greedy())
    assert taken == [("output", "8"), ("8", "5"), ("5", "3")]


@pytest.mark.parametrize("samples", [[0, 1], [0, 0, 1, 0, 1, 1, 0, 0, 1]], ids=["one a sample", "any"])
@pytest.mark.parametrize("most", [2**30, 40_000], ids=["at once", "in parts"])
@pytest.mark.parametrize("times", [1, 3])
def test_entries_go_down_as_dense_cotangents_do(times, most, samples, monkeypatch):
    frozen, generator = deep(), torch.Generator().manual_seed(0)
    lower, upper = frozen.layer("1"), frozen.layer("8")
    count, size = len(samples), upper.output[0].numel()
    dense = torch.randn(times, count, size, generator=generator, dtype=torch.float64)
    dense *= torch.rand(count, size, generator=generator) < 0.1
    dense[:, count // 2] = 0  # a dead one
    dense[times - 1, 0] = 0  # and one of several that stand at the same places
    places = dense.any(0).flatten().nonzero()[:, 0]
    entries, where = Entries(places, dense.flatten(1)[:, places]), torch.tensor(samples)
    counted = Counted(monkeypatch)
    (found,) = Products(frozen, most).several({upper: entries}, where, [lower])
    assert bool(counted.windows) == bool(dense.any())
    for k, m in itertools.product(range(times), range(count)):
        cotangent = torch.zeros_like(upper.output)
        cotangent[samples[m]] = dense[k, m].view(upper.shape)
        (expected,) = frozen.vjp({upper: cotangent}, [lower])
        assert_close(found[k, m], expected[samples[m]])


def test_parts_of_few_that_a_skip_goes_around_stay_windows(monkeypatch):
    """What verifies products is said of all of them, not of the parts in which they go down."""
    frozen = deep(layers=["4.conv", "5"], size=(30, 30))
    paths = random_neurons(frozen, frozen.layers, 30)
    counted = Counted(monkeypatch)
    found = linear_models(frozen, paths, weighted, samples=[0] * 30, max_bytes=12 * frozen.layers[0].output[0].nbytes)
    assert {upper for upper, *_ in counted.full} == {"output"}
    assert_rows(found, frozen, paths, target=weighted)


def test_few_products_that_a_skip_goes_around_are_taken_in_full(monkeypatch):
    frozen = deep(layers=["4.conv", "5"])
    counted = Counted(monkeypatch)
    paths = random_neurons(frozen, frozen.layers, 3)
    found = linear_models(frozen, paths, weighted, samples=[0] * 3)
    assert ("5", "4.conv", len({path.steps[1] for path in paths})) in counted.full
    assert_rows(found, frozen, paths, target=weighted)


def concatenated(seed=0):
    """Branches beside each other, of which single channels are named, with a layer below that keeps them apart."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
            self.tail, self.head = nn.Conv2d(16, 8, 3), nn.Linear(8, 3)

        def forward(self, x):
            joined = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)
            h = torch.relu(self.tail(torch.relu(joined)))
            return self.head(h.mean((2, 3)))

    return freeze(randomise(Net(), seed).eval(), example((3, 9, 9), seed, 1))


@pytest.mark.parametrize("channels_named", [(7, 12), (3, 7), (8, 15), (0, 8), (7, 8)], ids=str)
def test_channels_at_the_edge_of_a_branch_are_named_once(channels_named):
    """A unit of channels of two branches: what a branch has not must not hide what it has."""
    frozen = concatenated()
    *branches, joined = frozen.layers[:3]
    units = [(c, *divmod(int(joined.output[0, c].argmax()), joined.shape[2])) for c in channels_named]
    assert all(joined.output[0][unit] > 0 for unit in units)
    paths = [Path((Step(branch.name, (), but=True), Step(joined.name, tuple(units)))) for branch in branches]
    found = linear_models(frozen, paths, 1)
    for k, path in enumerate(paths):
        expected = linear_model(frozen, 1, path)
        assert_close(found.value[k], expected.value[0], 1e-3)
        assert_close(found.weight[k], expected.weight[0], 1e-3)


def test_products_that_cancel_are_taken_in_full():
    """Two convolutions whose product vanishes but for round-off: no window is certain there, and nothing is refused."""
    first, second = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 4, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([1.0, 1.0]).view(2, 1, 1, 1))
        second.weight.copy_(torch.tensor([[1.0, -1.0]] * 4).view(4, 2, 1, 1) * 1e3 + 1e-13)
    model = nn.Sequential(
        nn.Conv2d(3, 1, 3), nn.LeakyReLU(), first, second, nn.LeakyReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    x = example((3, 6, 6), 0, 1)
    frozen = freeze(model.double().eval(), x)
    upper = frozen.layers[-1]
    paths = [Path.of([(frozen.layers[0].name, (0, 1, 1)), (upper.name, (c, y, 2))]) for c in range(4) for y in range(3)]
    found = linear_models(frozen, paths, 0)
    assert torch.isfinite(found.weight).all()
    for k, path in enumerate(paths):
        assert_close(found.value[k], linear_model(frozen, 0, path).value[0], 1e-2)


# --- refusals ---


GOOD = Path.of([("1", (0, None, None))])
REFUSED = {
    "no path": ({"paths": []}, PathError, "there is no path: give at least one"),
    "a text": ({"paths": "ab"}, PathError, "takes a list of paths; got 'ab'"),
    "one path": ({"paths": GOOD}, PathError, "takes a list of paths; got Path"),
    "texts": ({"paths": ["a"]}, PathError, "a path is a relupath.Path, such as .* got 'a'"),
    "layers side by side": (
        {"paths": [Path((Step.over([Step("1", ((0, 0, 0),)), Step("3", ((0, 0, 0),))]),))]},
        PathError, "one layer a step; use linear_model",
    ),
    "no samples": ({"paths": [GOOD], "samples": None}, PathError, r"there are 2 samples: say with samples=\[...\]"),
    "few samples": ({"paths": [GOOD] * 2, "samples": [0]}, PathError, "1 samples for 2 paths: give one a path"),
    "a sample beyond": ({"samples": [2]}, PathError, r"a sample is a number from 0 to 1; got \[2\]"),
    "a sample below": ({"samples": [-1]}, PathError, r"a sample is a number from 0 to 1; got \[-1\]"),
    "a truth value": ({"samples": [True]}, PathError, r"a sample is a number from 0 to 1; got \[True\]"),
    "a truth value of torch": ({"samples": torch.tensor([True])}, PathError, "a sample is a number from 0 to 1"),
    "no number": ({"samples": ["0"]}, PathError, "a sample is a number from 0 to 1"),
    "a unit beyond": ({"paths": [Path.of([("1", (8, 0, 0))])]}, PathError, r"unit \[8, 0, 0\] is not in layer '1'"),
    "a unit of few axes": ({"paths": [Path.of([("1", (0, 0))])]}, PathError, r"unit \[0, 0\] is not in layer '1'"),
    "units that overlap": (
        {"paths": [Path.of([("1", [(0, 0, 0), (0, None, None)])])]}, PathError, "units of layer '1' overlap",
    ),
    "layers the wrong way round": (
        {"paths": [Path.of([("3", (0, None, None)), ("1", (0, None, None))])]}, PathError, "from the input up",
    ),
    "an unknown layer": ({"paths": [Path.of([("7", (0,))])]}, UnknownLayerError, "no hidden layer '7' is recorded"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case):
    given, error, said = REFUSED[case]
    frozen = deep()
    run = inspect.unwrap(linear_models)  # without the tests' type checker
    with pytest.raises(error, match=said) as found:
        run(frozen, **{"paths": [GOOD], "target": 1, "samples": [0]} | given)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("step", [("3", (8, 0, 0)), ("9", (0, 0, 0))], ids=["unit", "layer"])
def test_what_stands_below_a_dead_unit_is_refused_too(step):
    frozen = deep(batch=1)
    dead = tuple((frozen.layers[-1].output[0] == 0).nonzero()[0].tolist())
    with pytest.raises((PathError, UnknownLayerError), match=r"is not in layer|is recorded"):
        linear_models(frozen, [Path.of([step, ("8", dead)])], 1)


# --- memory ---


def test_memory_is_a_part_of_what_is_free(monkeypatch):
    device = torch.device("cpu")
    assert at_once(device, 7) == 7
    assert 0 < at_once(device) <= MOST
    monkeypatch.delattr(os, "sysconf_names")  # as on Windows
    assert at_once(device) == MOST


def test_single_precision_is_no_obstacle_however_deep():
    x = example((32,), 1, 1)
    units = [(layer.name, (int(layer.output[0].argmax()),)) for layer in freeze(deep_chain(torch.float64), x).layers]
    paths = [Path.of(units[start:]) for start in (0, 40, 110)]
    single, double = (linear_models(freeze(deep_chain(d), x.to(d)), paths, 2) for d in (torch.float32, torch.float64))
    assert 0 < abs(double.value[0]) < 1e-30
    for a, b in zip(single.value.tolist(), double.value.tolist(), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
