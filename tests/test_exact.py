"""Exact paths and path mass: every complete path of small networks listed, from Jacobians written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import relupath
from asserts import assert_same_model
from cases import Modulo
from nets import JOINS, STYLES, Lambda, build, example, inputs, layered, randomise
from reference import LayeredTwin, between
from relupath import (
    Beam,
    Exact,
    Greedy,
    Path,
    channels,
    find_paths,
    freeze,
    labels,
    linear_model,
    locations,
    logit,
    neurons,
    path_mass,
)
from relupath import _segments as segments
from relupath._search.exact import _Bounds
from relupath._segments import Factored, Merged, NotFactored, Rows, next_layers
from relupath.errors import PathError

RELATIVE = 1e-9


class Listed:
    """All complete paths of one sample, listed.

    Args:
        follow: from a layer's name, ``output`` first, to the names of those on which its paths go on.
        derivative: (A, B) -> matrix of the derivatives of A's neurons by B's; of ``output`` one row.
        values: layer name -> values of its neurons.
    """

    def __init__(self, follow, derivative, values):
        self.follow, self.derivative, self.values = follow, derivative, values
        listed, units = self._from("output")
        self.value, self.units = listed[0], {name: u[0] for name, u in units.items()}

    def _from(self, layer):
        """For each neuron the values of the paths from it down, and the neurons on them, -1 where not on the layer."""
        if not self.follow[layer]:
            a = np.asarray(self.values[layer]).reshape(-1, 1)
            return a, {layer: np.arange(len(a))[:, None]}
        parts, names = [], set()
        for lower in self.follow[layer]:
            below, units = self._from(lower)
            d = np.asarray(self.derivative(layer, lower)).reshape(-1, len(below))
            listed = (d[:, :, None] * below).reshape(len(d), -1)
            parts.append((listed, {n: np.broadcast_to(u.reshape(1, -1), listed.shape) for n, u in units.items()}))
            names |= set(units)
        listed = np.concatenate([part for part, _ in parts], 1)
        none = [np.full(part.shape, -1) for part, _ in parts]
        units = {n: np.concatenate([u.get(n, e) for (_, u), e in zip(parts, none, strict=True)], 1) for n in names}
        if layer != "output":
            units[layer] = np.broadcast_to(np.arange(len(listed))[:, None], listed.shape)
        return listed, units

    def over_units(self, partitions, shapes):
        """All complete paths over units, listed: each by (layer, label) pairs from the top down, with its value."""
        found = {}
        matrices = {
            (layer, lower): np.asarray(self.derivative(layer, lower)).reshape(
                1 if layer == "output" else len(self.values[layer]), -1
            )
            for layer, lowers in self.follow.items()
            for lower in lowers
        }

        def down(layer, v, steps):
            for lower in self.follow[layer]:
                pulled = v @ matrices[layer, lower]
                labels = partitions[lower].labels(shapes[lower]).flatten().numpy()
                for index in range(labels.max() + 1):
                    here, masked = (*steps, (lower, index)), pulled * (labels == index)
                    if self.follow[lower]:
                        down(lower, masked, here)
                    else:
                        found[here] = masked @ np.asarray(self.values[lower])

        down("output", np.ones(1), ())
        return found

    def best(self, k):
        """The k largest positive values."""
        top = np.sort(self.value)[::-1][:k]
        return top[top > 0]

    def value_of(self, path, shapes):
        """The value of the listed path that is this one."""
        here = np.ones(len(self.value), dtype=bool)
        chosen = {step.layer: step.units[0] for step in path.steps}
        for name, units in self.units.items():
            here &= units == (np.ravel_multi_index(chosen[name], shapes[name]) if name in chosen else -1)
        (value,) = self.value[here]
        return value


def shapes_of(frozen):
    return {layer.name: layer.shape for layer in frozen.layers}


def assert_best(found, b, listed, k, shapes):
    """The values are the k largest of all; each path is the listed one of its value; no path comes twice."""
    expected = listed.best(k)
    if len(expected) == 0:
        assert found.ranked[b] == (Path(target=found.paths[b].target),)
        assert found.stopped[b] == "no path has a positive value"
        return
    assert found.values[b] == pytest.approx(list(expected), rel=RELATIVE)
    assert len(set(found.ranked[b])) == len(expected)
    for path, value in zip(found.ranked[b], found.values[b], strict=True):
        assert listed.value_of(path, shapes) == pytest.approx(value, rel=RELATIVE)
    assert ("no more than" in found.stopped[b]) == (len(expected) < k)


def assert_best_over_units(found, b, listed, k, partitions, shapes):
    """The values are the k largest of all; each path is the listed one of its value; no path comes twice."""
    every = listed.over_units(partitions, shapes)
    size = max(map(abs, every.values()))
    best = [value for value in sorted(every.values(), reverse=True)[:k] if value > RELATIVE * size]
    if not best:
        assert not any(value > RELATIVE * size for value in found.values[b]) or not found.paths[b].steps
        return 0
    some = list(zip(found.ranked[b], found.values[b], strict=True))[: len(best)]
    assert [value for _, value in some] == pytest.approx(best, rel=RELATIVE, abs=RELATIVE * size)
    assert len({path for path, _ in some}) == len(best)
    for path, value in some:
        steps = []
        for name, units in reversed(steps_of(path)):
            own = partitions[name].labels(shapes[name])
            index = int(own[tuple(i or 0 for i in units[0])])
            assert partitions[name].units(index, shapes[name]) == units
            steps.append((name, index))
        assert every[tuple(steps)] == pytest.approx(value, rel=RELATIVE, abs=RELATIVE * size)
    return len(best)


def assert_mass(mass, b, listed, shapes):
    """Number, positive and negative mass, in total and through every neuron, are those of the list."""
    value = listed.value
    size = float(np.abs(value).sum())
    active = int((value != 0).sum())
    assert float(mass.count_log10[b]) == pytest.approx(math.log10(active) if active else -math.inf, abs=1e-9)
    for half, own in ((mass.positive, value.clip(min=0)), (mass.negative, value.clip(max=0))):
        assert float(half[b]) == pytest.approx(own.sum(), rel=RELATIVE, abs=RELATIVE * size)
    assert float(mass.total[b]) == pytest.approx(value.sum(), rel=RELATIVE, abs=RELATIVE * size)
    assert float(mass.mass[b]) == pytest.approx(size, rel=RELATIVE)
    assert set(mass.units) == set(listed.units)
    for name, units in listed.units.items():
        for half, own in zip(mass.units[name], (value.clip(min=0), value.clip(max=0)), strict=True):
            through = np.bincount(units[units >= 0], own[units >= 0], minlength=math.prod(shapes[name]))
            np.testing.assert_allclose(half[b].flatten().numpy(), through, rtol=RELATIVE, atol=RELATIVE * size)


# --- networks: layered with skips; chains of convolutions; branches ---


def listed_layered(model, x, target, kept):
    """Every path over some of the hidden layers (from 1) of a layered network, each counted on all below it."""
    twin = LayeredTwin(model.matrices, model.offsets, model.slope, x, target)
    names = {l: model.names()[l - 1] for l in kept}
    numbers = {name: l for l, name in names.items()}
    edges = set(model.matrices)

    def leads(above, below):
        return above == below or any(k >= below and leads(k, below) for l, k in edges if l == above)

    order = sorted(kept, reverse=True)
    above = {l: [t for t in order if t > l and leads(t, l)] for l in order}
    height = {}
    for l in order:
        height[l] = 1 + max((height[t] for t in above[l]), default=-1)
    follow = {}
    for l, name in ((twin.depth, "output"), *names.items()):
        lower = [k for k in order if k < l and leads(l, k)]
        first = min((height[k] for k in lower), default=None)
        follow[name] = [names[k] for k in sorted(lower) if height[k] == first]

    def derivative(a, b):
        count, lower = len(twin.a[numbers[b]]), numbers[b]
        if a == "output":
            return [between(twin, None, (lower, i)) for i in range(count)]
        upper = numbers[a]
        return [[between(twin, (upper, j), (lower, i)) for i in range(count)] for j in range(len(twin.a[upper]))]

    return Listed(follow, derivative, {name: twin.a[l] for l, name in names.items()})


def random_layered(seed):
    random = np.random.default_rng(seed)
    widths = [int(n) for n in random.integers(1, 5, random.integers(3, 6))]
    skips = float(random.choice([0.0, 0.5, 1.0]))
    model = layered(seed, widths, skips=skips, style=str(random.choice(STYLES)), join=str(random.choice(JOINS)))
    hidden = list(range(1, len(widths) - 1))
    kept = (
        hidden if random.random() < 0.5 else sorted(random.choice(hidden, random.integers(1, len(hidden) + 1), False))
    )
    return model, widths, [int(l) for l in kept]


@pytest.mark.parametrize("tens", range(12))
def test_layered_networks_with_skips(tens):
    for seed in range(10 * tens, 10 * tens + 10):
        model, widths, kept = random_layered(seed)
        x = example((widths[0],), seed, 2)
        frozen = freeze(model, x)
        layers, k = [frozen.layers[l - 1] for l in kept], 1 + seed % 5
        target = [1.0] + [0.0] * (widths[-1] - 1)
        found, mass = find_paths(frozen, logit(0), Exact(k), layers=layers), path_mass(frozen, logit(0), layers)
        for b in range(2):
            listed = listed_layered(model, x[b], target, kept)
            assert_best(found, b, listed, k, shapes_of(frozen))
            assert_mass(mass, b, listed, shapes_of(frozen))
        assert_same_model(found.model, linear_model(frozen, logit(0), found.paths), 1.0)


def random_chain(seed):
    """Parts that map one hidden layer to the next: one convolution or linear map between gates, norms and pooling."""
    random = np.random.default_rng(seed)

    def pick(*choices):
        return choices[random.integers(len(choices))]

    size, planes, parts = 5, 2, []
    for depth in range(int(random.integers(2, 4))):
        groups, kernel = pick(1, 1, 2), pick(1, 2, 3)
        before = pick(None, None, nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2)) if depth else None
        convolution = nn.Conv2d(planes, 2, kernel, pick(1, 2), pick(0, 1), pick(1, 1, 2), groups)
        after = pick(None, nn.BatchNorm2d(2))
        act = pick(nn.ReLU(), nn.LeakyReLU(0.2), nn.ReLU6(), nn.GELU(), nn.PReLU(2))
        part = nn.Sequential(*[one for one in (before, convolution, after, act) if one is not None])
        try:
            with torch.no_grad():
                shape = part.eval()(torch.zeros(1, planes, size, size)).shape
        except RuntimeError:  # the map has become too small
            break
        planes, size = shape[1], shape[2]
        parts.append(part)
    head = nn.Sequential(nn.Flatten(), nn.Linear(planes * size**2, 4), nn.ReLU())
    parts += [head, nn.Linear(4, 3)]
    return randomise(nn.Sequential(*parts), seed)


def listed_chain(model, x, c):
    """Every path of a chain, the derivatives of each part by autograd on the part alone, straightened at the input."""
    a, values, names = x[None], {}, [f"{i}.{len(part) - 1}" for i, part in enumerate(model[:-1])]
    ins = []
    for name, part in zip(names, model[:-1], strict=True):
        ins.append(a)
        a = part(a).detach()
        values[name] = a.flatten().numpy()
    follow = {"output": [names[-1]], names[0]: []} | {up: [low] for low, up in itertools.pairwise(names)}

    def derivative(above, below):
        if above == "output":
            return model[-1].weight[c].detach()
        i = names.index(above)

        def straight(h):
            before = model[i][:-1](h)
            fixed = before.detach()
            act = model[i][-1]
            if isinstance(act, nn.GELU):
                return before * act(fixed) / fixed
            return act(before)

        rows = torch.autograd.functional.jacobian(straight, ins[i])
        return rows.reshape(values[above].size, -1)

    return Listed(follow, derivative, values)


@pytest.mark.parametrize("tens", range(8))
def test_chains_of_convolutions(tens, monkeypatch):
    forms = set()
    for seed in range(10 * tens, 10 * tens + 10):
        model, x = random_chain(seed), example((2, 5, 5), seed, 2)
        frozen, k = freeze(model, x), 1 + seed % 5
        found, mass = find_paths(frozen, 1, Exact(k)), path_mass(frozen, 1)
        for b in range(2):
            listed = listed_chain(model, x[b], 1)
            assert_best(found, b, listed, k, shapes_of(frozen))
            assert_mass(mass, b, listed, shapes_of(frozen))
        forms |= {type(one) for one in mass._passes.segments.values()}
        with monkeypatch.context() as patch:
            patch.setattr(segments, "factored", not_factored)
            slow = find_paths(frozen, 1, Exact(k))
        assert slow.cost.products > 0
        for some, same in zip(found.values, slow.values, strict=True):
            assert some == pytest.approx(same, rel=RELATIVE)
    assert forms == {Factored, Merged}


def not_factored(*_):
    raise NotFactored


def listed_by_products(frozen, follow, target, b):
    """Every path, the derivatives row by row from the frozen network."""
    layers = {layer.name: layer for layer in frozen.layers}

    def derivative(a, below):
        if a == "output":
            (row,) = frozen.vjp({frozen.top: frozen.functional(target).gradient}, [layers[below]])
            return row[b].flatten()
        rows, size = [], layers[a].output[b].numel()
        for u in range(size):
            one = torch.zeros_like(layers[a].output)
            one[b].view(-1)[u] = 1
            (row,) = frozen.vjp({layers[a]: one}, [layers[below]])
            rows.append(row[b].flatten())
        return torch.stack(rows)

    return Listed(follow, derivative, {name: layer.output[b].flatten() for name, layer in layers.items()})


FIRE = ["features.4.expand1x1_activation", "features.4.expand3x3_activation"]
LOWER_FIRE = ["features.3.expand1x1_activation", "features.3.expand3x3_activation"]
BRANCHES = {
    "squeeze": {
        "output": ["classifier.2"], "classifier.2": FIRE, **{key: ["features.4.squeeze_activation"] for key in FIRE},
        "features.4.squeeze_activation": LOWER_FIRE, **{key: [] for key in LOWER_FIRE},
    },
    "squeeze over squeezes": {
        "output": FIRE, **{key: ["features.4.squeeze_activation"] for key in FIRE},
        "features.4.squeeze_activation": ["features.3.squeeze_activation"], "features.3.squeeze_activation": [],
    },
    "resnet": {
        "output": ["layer1.1.relu#2"], "layer1.1.relu#2": ["layer1.1.relu"], "layer1.1.relu": ["layer1.0.relu"],
        "layer1.0.relu": ["relu"], "relu": [],
    },
    "resnet over blocks": {
        "output": ["layer1.1.relu#2"], "layer1.1.relu#2": ["layer1.0.relu#2"], "layer1.0.relu#2": ["relu"], "relu": [],
    },
    "dense": {"output": [":relu#3"], ":relu#3": [":relu#2"], ":relu#2": [":relu"], ":relu": []},
    "pieces": {"output": [":leaky_relu"], ":leaky_relu": [":hardtanh"], ":hardtanh": [":relu6"], ":relu6": []},
}  # fmt: skip


@pytest.mark.parametrize("case", BRANCHES)
def test_branches_skips_and_pieces(case):
    name, follow = case.split()[0], BRANCHES[case]
    frozen = freeze(build(name, 5), inputs(name, 5))
    layers = [layer for layer in frozen.layers if layer.name in follow]
    found, mass = find_paths(frozen, 2, Exact(4), layers=layers), path_mass(frozen, 2, layers)
    listed = listed_by_products(frozen, follow, 2, 1)
    assert listed.value.any()
    assert_best(found, 1, listed, 4, shapes_of(frozen))
    assert_mass(mass, 1, listed, shapes_of(frozen))


# --- units of several neurons ---


def random_partitions(seed, shapes):
    """Of each layer single neurons, a few scattered units, or everything in one."""
    random = np.random.default_rng(seed)
    kinds = [neurons, Modulo(2), Modulo(3), Modulo(1)]
    return {name: kinds[random.integers(len(kinds))] for name in shapes}


@pytest.mark.parametrize("tens", range(0, 8, 2))
def test_units_of_layered_networks_with_skips(tens):
    compared = 0
    for seed in range(10 * tens, 10 * tens + 20):
        model, widths, kept = random_layered(seed)
        x = example((widths[0],), seed, 2)
        frozen = freeze(model, x)
        layers, k, shapes = [frozen.layers[l - 1] for l in kept], 1 + seed % 7, shapes_of(frozen)
        partitions = random_partitions(seed, [layer.name for layer in layers])
        found = find_paths(frozen, logit(0), Exact(k), layers=layers, partition=partitions)
        for b in range(2):
            listed = listed_layered(model, x[b], [1.0] + [0.0] * (widths[-1] - 1), kept)
            compared += assert_best_over_units(found, b, listed, k, partitions, shapes)
        assert_same_model(found.model, linear_model(frozen, logit(0), found.paths), 1.0)
    assert compared > 10


UNITS = {
    "channels": lambda number: channels,
    "locations": lambda number: locations,
    "scattered": lambda number: Modulo(4),
    "every second": lambda number: (neurons, Modulo(3))[number % 2],
}


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("case", BRANCHES)
def test_units_of_branches_skips_and_pieces(case, units):
    """Also row by row, and where no bounds can be had, so that every beginning is tried."""
    name, follow = case.split()[0], BRANCHES[case]
    frozen = freeze(build(name, 5), inputs(name, 5))
    layers = [layer for layer in frozen.layers if layer.name in follow]
    partitions = {layer.name: UNITS[units](number) for number, layer in enumerate(layers)}
    if any(p is locations and len(frozen.layer(n).shape) < 2 for n, p in partitions.items()):
        partitions = {n: p if len(frozen.layer(n).shape) > 1 else neurons for n, p in partitions.items()}
    if math.prod(partitions[layer.name].count(layer.shape) for layer in layers) > 30_000:
        pytest.skip("too many paths to list")
    listed = listed_by_products(frozen, follow, 2, 1)
    costs = []
    for bounds in (_Bounds._through, endless):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Bounds, "_through", bounds)
            found = find_paths(frozen, 2, Exact(40), layers=layers, partition=partitions)
        costs.append(found.cost.products)
        assert assert_best_over_units(found, 1, listed, 40, partitions, shapes_of(frozen)) > 0
    assert costs[0] != costs[1] or len(layers) == 1


@pytest.mark.parametrize("case", BRANCHES)
def test_a_search_without_bounds_is_refused_as_soon_as_it_is_clear(case, monkeypatch):
    """And never one that comes to its end."""
    name, follow = case.split()[0], BRANCHES[case]
    frozen = freeze(build(name, 5), inputs(name, 5))
    layers = [layer for layer in frozen.layers if layer.name in follow]
    monkeypatch.setattr(_Bounds, "_through", endless)
    over = {"layers": layers, "partition": Modulo(4)}
    whole = find_paths(frozen, 2, Exact(3), **over)
    needed = whole.cost.products - 1  # the last one is for the linear model
    assert find_paths(frozen, 2, Exact(3, products=needed), **over).values == whole.values
    if needed > 1:
        with pytest.raises(PathError, match="products more are needed at least") as refused:
            find_paths(frozen, 2, Exact(3, products=needed - 1), **over)
        assert int(str(refused.value).split()[1]) < needed - 1


def endless(bounds, layer, below):
    """Bounds that say nothing; of single neurons there are none such."""
    bounds.single.discard(layer)
    whole = layer.output.new_full((len(layer.output), layer.output[0].numel()), math.inf, dtype=torch.float64)
    return whole, -whole


def test_the_bounds_over_units_are_sums_of_the_better_ends():
    for case, (_, forward, parts) in SEGMENTS.items():
        frozen = freeze(randomise(Lambda(forward, **parts), 1), example((2, 6, 6), 0, 2))
        lower, upper = frozen.layers
        n = lower.output[0].numel()
        ends = example((n,), 0, 2), example((n,), 1, 2)
        high, low = torch.maximum(*ends), torch.minimum(*ends)
        (rows,) = segments.rows(frozen, upper, torch.arange(upper.output[0].numel()), [lower])
        for partition in (Modulo(4), channels):
            own = partition.labels(lower.shape).flatten()
            found = segments.segment(frozen, upper, lower, 1000).extremes_of_units(high, low, own)
            for got, better, best in zip(found, (torch.maximum, torch.minimum), ("amax", "amin"), strict=True):
                ends = better(rows * high, rows * low)
                sums = torch.stack([ends[:, :, own == u].sum(2) for u in range(int(own.max()) + 1)])
                torch.testing.assert_close(got, getattr(sums, best)(0).T, rtol=1e-10, atol=1e-12, msg=case)


def test_a_unit_that_adds_nothing_by_itself_may_be_on_the_best_path():
    """The two neurons on top cancel, but each goes on to another unit."""
    model = randomise(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[0].weight.copy_(torch.eye(2))
        model[2].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.1, 0.0]]))
        model[4].weight.copy_(torch.tensor([[1.0, -1.0, 1.0]]))
    frozen = freeze(model, torch.ones(1, 2, dtype=torch.float64))
    units = {"3": labels(torch.tensor([0, 0, 1])), "1": neurons}
    found = find_paths(frozen, 0, Exact(), partition=units)
    assert found.values[0] == pytest.approx((3.0,))
    assert found.paths[0] == Path.of([("1", (0,)), ("3", [(0,), (1,)])], target="logit 0")


def test_bounds_leave_little_to_try_over_the_channels_of_a_trained_network(monkeypatch):
    """Three layers of 112 and 96 channels: 12657 beginnings above the lowest layer."""
    classifier = relupath.models.load("creatures")
    x = classifier.prepare(Image.fromarray(relupath.creatures.draw(3).image))[None]
    frozen = freeze(classifier.model, x)
    found, beam = (find_paths(frozen, None, s, layers=[7, 8, 6], partition=channels) for s in (Exact(3), Beam(30)))
    assert found.cost.products < 1000
    assert found.values[0] == pytest.approx(beam.values[0][:3], rel=1e-4)
    said = r"after 1 products \(products=2 are allowed.*0 of the 3 best.*112 products more.*Beam"
    with pytest.raises(PathError, match=said):
        find_paths(frozen, None, Exact(3, products=2), layers=[7, 8, 6], partition=channels)
    monkeypatch.setattr(relupath._search.exact, "HELD", 10)
    with pytest.raises(PathError, match=r"after 1 products .* 10 numbers in memory"):
        find_paths(frozen, None, Exact(), layers=[7, 8, 6], partition=channels)


# --- the segments ---


SEGMENTS = {
    "convolution over one axis": (
        Factored, lambda m, x: m.b(F.relu(m.a(x.flatten(1, 2)))).relu().flatten(1),
        {"a": nn.Conv1d(12, 3, 3), "b": nn.Conv1d(3, 4, 2, 2, 1, 2)}),
    "two groups after batch norm": (
        Factored, lambda m, x: m.b(m.n(F.relu(m.a(x)))).relu().flatten(1),
        {"a": nn.Conv2d(2, 4, 1), "n": nn.BatchNorm2d(4), "b": nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)}),
    "tokens": (
        Factored, lambda m, x: m.b(F.relu(m.a(x.flatten(2)))).relu().flatten(1),
        {"a": nn.Linear(36, 5), "b": nn.Linear(5, 3)}),
    "average pooling below, largest above": (
        Factored, lambda m, x: F.max_pool2d(m.b(F.avg_pool2d(m.a(x).relu(), 2)), 2, 1).relu().flatten(1),
        {"a": nn.Conv2d(2, 3, 3, padding=1), "b": nn.Conv2d(3, 4, 2, padding=1)}),
    "overlapping pooling": (
        Merged, lambda m, x: m.b(F.max_pool2d(m.a(x).relu(), 3, 1)).relu().flatten(1),
        {"a": nn.Conv2d(2, 3, 2), "b": nn.Conv2d(3, 4, 3, padding=1)}),
    "the same twice side by side": (
        Merged, lambda m, x: m.b(torch.cat([h := m.a(x.flatten(1)).relu(), h.flip(1)], 1)).relu(),
        {"a": nn.Linear(72, 5), "b": nn.Linear(10, 6)}),
    "overlapping pooling without a convolution": (
        Factored, lambda m, x: (F.max_pool2d(m.a(x).relu(), 3, 1) - 0.1).relu().flatten(1), {"a": nn.Conv2d(2, 3, 2)}),
    "batch norm above": (
        Factored, lambda m, x: F.leaky_relu(m.n(m.b(m.a(x).relu())), 0.1).flatten(1),
        {"a": nn.Conv2d(2, 3, 3), "b": nn.Conv2d(3, 6, 2), "n": nn.BatchNorm2d(6)}),
    "a linear map times a number": (
        Rows, lambda m, x: torch.addmm(m.b.bias, m.a(x.flatten(1)).relu(), m.b.weight.t(), alpha=2).relu(),
        {"a": nn.Linear(72, 5), "b": nn.Linear(5, 6)}),
    "three axes": (
        Rows, lambda m, x: m.b(m.a(x[:, None]).relu()).relu().flatten(1),
        {"a": nn.Conv3d(1, 2, (1, 3, 3), stride=2), "b": nn.Conv3d(2, 3, (1, 2, 2))}),
    "transposed": (
        Rows, lambda m, x: m.b(m.a(x).relu()).relu().flatten(1),
        {"a": nn.Conv2d(2, 3, 3, 2), "b": nn.ConvTranspose2d(3, 2, 2, 2)}),
    "average pooling above": (
        Rows, lambda m, x: F.avg_pool2d(m.b(m.a(x).relu()), 2).relu().flatten(1),
        {"a": nn.Conv2d(2, 3, 3), "b": nn.Conv2d(3, 2, 1)}),
    "overlapping average pooling below": (
        Rows, lambda m, x: m.b(F.avg_pool2d(m.a(x).relu(), 3, 1)).relu().flatten(1),
        {"a": nn.Conv2d(2, 3, 3), "b": nn.Conv2d(3, 2, 1)}),
    "a way around": (
        Rows, lambda m, x: (m.b(h := m.a(x).relu()) + h).relu().flatten(1),
        {"a": nn.Conv2d(2, 3, 3), "b": nn.Conv2d(3, 3, 1)}),
    "two in a row": (
        Rows, lambda m, x: m.b(m.b(m.a(x).relu())).relu().flatten(1),
        {"a": nn.Conv2d(2, 3, 3), "b": nn.Conv2d(3, 3, 1)}),
    "a write to a part": (
        Rows, lambda m, x: _write_to_a_part(m.b(m.a(x.flatten(1)).relu())).relu(),
        {"a": nn.Linear(72, 5), "b": nn.Linear(5, 6)}),
}  # fmt: skip


def _write_to_a_part(h):
    h = h.clone()
    h[:, :2] *= 2.0
    return h


def entry(t):
    return t


def active(t):
    return (t != 0).to(t.dtype)


@pytest.mark.parametrize("case", SEGMENTS)
def test_a_segment_in_any_form_is_its_rows(case):
    form, forward, parts = SEGMENTS[case]
    frozen = freeze(randomise(Lambda(forward, **parts), 1), example((2, 6, 6), 0, 2))
    lower, upper = frozen.layers
    found, slow = segments.segment(frozen, upper, lower, 1000), Rows(frozen, upper, lower)
    assert type(found) is form
    n, m = lower.output[0].numel(), upper.output[0].numel()
    high, low, v, w = (example((size,), seed, 2) for seed, size in enumerate((n, n, n, m)))
    pairs = [(high.abs() * 1e50, -low.abs() * 1e50), (high.abs(), torch.zeros_like(low))]
    for pair in pairs:
        for got, expected in zip(found.extremes(*pair), slow.extremes(*pair), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=0)
    for of in (entry, torch.abs, active):
        torch.testing.assert_close(found.sums([(of, v)]), slow.sums([(of, v)]), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.spread([(of, w)]), slow.spread([(of, w)]), rtol=1e-10, atol=1e-12)


def test_rows_are_jacobians():
    """Row by row, against autograd on the model itself."""
    model, x = random_chain(3), example((2, 5, 5), 3, 2)
    frozen = freeze(model, x)
    lower, upper = frozen.layers[:2]
    (rows,) = segments.rows(frozen, upper, torch.arange(upper.output[0].numel()), [lower])
    for b in range(2):
        jacobian = torch.autograd.functional.jacobian(model[1], lower.output[b : b + 1])
        torch.testing.assert_close(rows[:, b], jacobian.reshape(rows.shape[0], -1))


def test_single_precision_finds_the_same_path():
    for seed in range(4):
        model, x = build("vgg", seed), inputs("vgg", seed)
        found = find_paths(freeze(model, x), 1, Exact(3))
        single = find_paths(freeze(model.float(), x.float()), 1, Exact(3))
        assert single.ranked == found.ranked
        for some, same in zip(single.values, found.values, strict=True):
            assert some == pytest.approx(same, rel=1e-4)
        assert single.model.weight.dtype == torch.float32


def test_a_value_below_the_range_of_the_number_format_is_still_found():
    parts = [part for _ in range(14) for part in (nn.Linear(1, 1), nn.ReLU())]
    model = randomise(nn.Sequential(*parts), 0, torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.ndim == 1 else 1e-4)
    found = find_paths(freeze(model, torch.ones(1, 1)), 0, Exact())
    assert len(found.paths[0]) == 14
    assert found.values[0][0] == pytest.approx(1e-4**13, rel=1e-3)
    assert found.stopped[0] == "reached the lowest layer; the value of the best is below the range of torch.float32"


# --- the search ---


@pytest.mark.parametrize("name", ["mlp", "vgg", "squeeze", "resnet"])
def test_no_greedy_path_is_better(name):
    better = 0
    for seed in range(5):
        frozen = freeze(build(name, seed), inputs(name, seed, batch=3))
        found, greedy = find_paths(frozen, None, Exact()), find_paths(frozen, None, Greedy())
        for b, path in enumerate(found.paths):
            if len(path) == len(greedy.paths[b]):
                assert found.values[b][0] >= greedy.values[b][0] * (1 - RELATIVE)
                better += found.values[b][0] > greedy.values[b][0] * (1 + RELATIVE)
    assert better


def test_importance_is_derivative_times_value():
    frozen = freeze(build("mlp", 1), inputs("mlp", 1))
    found = find_paths(frozen, 0, Exact())
    greedy = find_paths(frozen, 0, Greedy())
    assert list(found.importance[0]) == ["3", "1"]
    product = math.prod(found.importance[0].values())
    ((unit,),) = found.paths[0].steps[1].units
    assert product == pytest.approx(found.values[0][0] * float(frozen.layers[1].output[0, unit]), rel=RELATIVE)
    if found.paths[0].steps == greedy.paths[0].steps:
        assert found.importance[0]["3"] == pytest.approx(greedy.importance[0]["3"])


def test_where_nothing_is_positive_the_path_is_empty():
    model = build("mlp")
    with torch.no_grad():
        model[2].weight.abs_()
        model[4].weight.abs_().neg_()
    frozen = freeze(model, inputs("mlp"))
    found = find_paths(frozen, 0, Exact(3))
    assert found.paths == (Path(target="logit 0"),) * 2
    assert found.stopped == ("no path has a positive value",) * 2
    assert found.importance == ({}, {})
    assert_same_model(found.model, linear_model(frozen, 0))
    assert found.values == tuple((value,) for value in found.value.tolist())


def test_what_cannot_be_searched_is_refused():
    frozen = freeze(build("vgg"), inputs("vgg"))
    with pytest.raises(PathError, match="k must be at least 1; got 0"):
        find_paths(frozen, 0, Exact(0))
    singles = {layer: labels(torch.arange(math.prod(layer.shape)).flip(0).view(layer.shape)) for layer in frozen.layers}
    assert find_paths(frozen, 0, Exact(), partition=singles).paths == find_paths(frozen, 0, Exact()).paths


def test_a_segment_that_takes_too_many_products_is_refused():
    frozen = freeze(build("resnet"), inputs("resnet"))
    layers = ["relu", "layer1.0.relu#2"]
    find_paths(frozen, 0, Exact(products=27), layers=layers)
    sentence = r"between the layers 'relu' and 'layer1\.0\.relu#2'.*27 products, more than 26.*fewer or smaller layers"
    with pytest.raises(PathError, match=sentence):
        find_paths(frozen, 0, Exact(products=26), layers=layers)
    with pytest.raises(PathError, match=sentence):
        path_mass(frozen, 0, layers, products=26)
    over = {"layers": layers, "partition": channels}
    few, many = (find_paths(frozen, 0, Exact(9, products=some), **over) for some in (26, 27))
    assert few.ranked == many.ranked, "without bounds every beginning over larger units is tried"
    assert [*few.values[0], *few.values[1]] == pytest.approx([*many.values[0], *many.values[1]])
    assert few.cost.products == 1 + 3 + 1 < many.cost.products


# --- paths drawn ---


def test_paths_are_drawn_in_proportion_to_their_size():
    follow = BRANCHES["squeeze"]
    frozen = freeze(build("squeeze", 5), inputs("squeeze", 5))
    layers = [name for name in follow if name != "output"]
    mass = path_mass(frozen, 2, layers)
    listed = listed_by_products(frozen, follow, 2, 1)
    drawn = mass.sample(3000, torch.Generator().manual_seed(0), of=1)
    assert len(drawn.paths) == 3000
    shapes = shapes_of(frozen)
    values = [listed.value_of(path, shapes) for path in drawn.paths[:50]]
    assert np.sign(values).tolist() == drawn.signs[:50].tolist()
    total, error = drawn.estimate(lambda path: 1.0)
    assert abs(total - listed.value.sum()) <= 4 * error
    assert 0 < error < mass.mass[1] / 50
    seen = 0
    for name, units in listed.units.items():
        for u in np.argsort(-np.bincount(units[units >= 0], np.abs(listed.value[units >= 0])))[:3]:
            unit = tuple(int(i) for i in np.unravel_index(u, shapes[name]))
            estimate, error = drawn.estimate(lambda path, name=name, unit=unit: (name, (unit,)) in steps_of(path))
            assert abs(estimate - listed.value[units == u].sum()) <= 4 * error
            seen += error > 0
    assert seen > 10


def test_signs_of_paths_drawn_count_the_lowest_neuron():
    """A leaky unit below zero has a negative value."""
    model, x = layered(4, (3, 4, 4, 2), style="leaky"), example((3,), 4, 1)
    frozen = freeze(model, x)
    listed = listed_layered(model, x[0], [1.0, 0.0], [1, 2])
    drawn = path_mass(frozen, 0).sample(200, torch.Generator().manual_seed(0))
    values = [listed.value_of(path, shapes_of(frozen)) for path in drawn.paths]
    assert np.sign(values).tolist() == drawn.signs.tolist()
    assert set(drawn.signs.tolist()) == {-1.0, 1.0}
    assert float(frozen.layers[0].output.min()) < 0


def steps_of(path):
    return [(step.layer, step.units) for step in path.steps]


def test_drawing_is_repeatable_and_uses_the_generator():
    mass = path_mass(freeze(build("vgg"), inputs("vgg")), 1)
    first, same, other = (mass.sample(20, torch.Generator().manual_seed(seed)).paths for seed in (0, 0, 1))
    assert first == same != other
    assert all(len(path) == 4 and path.target == "logit 1" for path in first)


def test_what_cannot_be_drawn_is_refused():
    model = build("mlp")
    with torch.no_grad():
        model[2].bias.fill_(-1e3)
    mass = path_mass(freeze(model, inputs("mlp")), 0)
    assert mass.count_log10.tolist() == [-math.inf] * 2
    assert mass.mass.tolist() == [0, 0]
    with pytest.raises(PathError, match="no path to logit 0 of sample 1 is active"):
        mass.sample(1, of=1)
    with pytest.raises(PathError, match="n must be at least 1; got 0"):
        mass.sample(0)


def test_the_number_of_paths_may_exceed_every_number_format():
    parts = [part for _ in range(155) for part in (nn.Linear(100, 100), nn.LeakyReLU(0.9))]
    model = randomise(nn.Sequential(*parts, nn.Linear(100, 2)), 0)
    mass = path_mass(freeze(model, example((100,), 0, 1)), 0)
    assert float(mass.count_log10) == pytest.approx(310, rel=1e-6)


def test_paths_go_on_to_the_first_lower_level():
    frozen = freeze(build("squeeze"), inputs("squeeze"))
    follow = next_layers(frozen.top, frozen.levels(frozen.layers), frozen.below(frozen.layers))
    names = {layer.name: [lower.name for lower in some] for layer, some in follow.items()}
    expected = dict(BRANCHES["squeeze"])
    expected |= {key: ["features.3.squeeze_activation"] for key in LOWER_FIRE}
    expected |= {"features.3.squeeze_activation": ["features.1"], "features.1": []}
    assert names == expected


def test_the_verbs_are_public():
    assert relupath.Exact is Exact
    assert relupath.path_mass is path_mass
