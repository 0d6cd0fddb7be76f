"""Where the bias comes from: every view adds up, and each number is that of a slow twin."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from asserts import assert_bias_adds_up, assert_close
from cases import DTYPES, NAMES, active_path, architectures, chosen_units, path_of, weighted
from nets import NETS, Lambda, build, deep, example, inputs, layered, randomise
from reference import BIAS, LayeredTwin
from relupath import Beam, Path, bias_sources, channels, contrast, find_paths, freeze, linear_model, neurons
from relupath.errors import IncompleteError, InputError, PathError, UnknownLayerError

# --- every view adds up ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("partition", [neurons, channels], ids=lambda p: p.name)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "linear"])
def test_every_view_of_a_path_adds_up_to_its_bias(name, partition, dtype):
    frozen = freeze(build(name, dtype=dtype), inputs(name, dtype=dtype))
    names = [layer.name for layer in frozen.layers]
    for seed, chosen in enumerate([names[-1:], names[:1], names[::2], names if name in ("mlp", "vgg") else names[::3]]):
        levels = frozen.levels([frozen.layer(one) for one in chosen])
        path = active_path(frozen, [level[0].name for level in reversed(levels)], partition, seed, count=2)
        found = assert_bias_adds_up(frozen, weighted, path)
        lowest = names.index(path.steps[0].layer)
        assert found.by_unit(found.terms[-1].name).shape[0] == 2
        above = [value for layer, value in found.by_layer().items() if layer not in names[: lowest + 1]]
        assert all((value == 0).all() for value in above), "constants above the lowest layer are none of the path's"


# --- each number is that of a twin ---


@given(architectures(), st.data())
def test_layers_and_units_of_the_bias_are_those_of_the_routes_that_start_at_them(architecture, data):
    net = layered(**architecture)
    widths = architecture["widths"]
    x = example((widths[0],), architecture["seed"], batch=2)
    chosen = data.draw(chosen_units(widths))
    weights = torch.linspace(-1, 2, widths[-1], dtype=torch.float64)
    frozen = freeze(net, x)
    found = bias_sources(frozen, lambda y: y @ weights, path_of(net.names(), chosen))
    by_layer = found.by_layer()
    for b in range(2):
        twin = LayeredTwin(net.matrices, net.offsets, net.slope, x[b], weights.tolist())
        units = {l: torch.zeros(width).double() for l, width in enumerate(widths[1:-1], start=1)}
        output, size = 0.0, 1e-12
        for route in twin.routes:
            size += abs(route.product)
            if route.origin == BIAS and all(route.units.get(l) in some for l, some in chosen.items()):
                if route.units:  # it starts at the lowest unit that it passes
                    units[min(route.units)][route.units[min(route.units)]] += route.product
                else:
                    output += route.product
        for l, expected in units.items():
            name = net.names()[l - 1]
            assert_close(found.by_unit(name)[b], expected, size)
            assert_close(by_layer[name][b], expected.sum(), size)
        assert_close(by_layer["output"][b], torch.tensor(output).double(), size)


@pytest.mark.parametrize("name", ["linear", "mlp", "vgg", "squeeze", "resnet", "dense"])
def test_a_bias_parameters_part_is_its_derivative_times_it(name):
    """<df/db, b> from the model itself, away from relupath, channel by channel."""
    model, x = build(name), inputs(name)
    found = bias_sources(freeze(model, x), weighted)
    biases = {n: p for n, p in model.named_parameters() if n.endswith("bias") and n in found.by_source()}
    assert biases
    for sample in range(2):
        gradients = torch.autograd.grad(weighted(model(x[sample : sample + 1])).sum(), list(biases.values()))
        for (n, bias), gradient in zip(biases.items(), gradients, strict=True):
            size = float(found.by_source()[n].abs().max())
            assert_close(found.by_unit(n)[sample], (gradient * bias).detach(), size)
            assert_close(found.by_source()[n][sample], (gradient * bias).sum().detach(), size)


def test_a_constant_counts_to_the_layer_that_comes_next():
    frozen = freeze(build("vgg"), inputs("vgg"))
    found = bias_sources(frozen, 0)
    assert {term.name: term.layer for term in found.terms} == {
        "features.0.bias": "features.1",
        "features.2.bias": "features.3",
        "features.5.bias": "features.6",
        "classifier.1.bias": "classifier.2",
        "classifier.3.bias": "output",
    }
    assert list(found.by_layer()) == ["features.1", "features.3", "features.6", "classifier.2", "output"]


def test_a_constant_that_is_added_twice_has_two_terms():
    model = randomise(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), 0)
    twice = Lambda(lambda m, x: m.body(m.body(x)), body=model).eval()
    frozen = freeze(twice, example((4,), 0))
    found = bias_sources(frozen, weighted)
    assert list(found.by_source()) == ["body.0.bias", "body.0.bias#2"]
    assert_bias_adds_up(frozen, weighted)
    first, second = found.by_source().values()
    assert (first != second).any()


@pytest.mark.parametrize("join", [torch.cat, torch.stack])
def test_putting_signals_together_adds_no_constant_and_a_constant_among_them_does(join):
    body = randomise(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), 0)
    pure = Lambda(lambda m, x: join([m.body(x), 2 * x], 1).flatten(1), body=body).eval()
    row = nn.Parameter(torch.ones(1, 4, dtype=torch.float64))
    mixed = Lambda(lambda m, x: join([m.body(x), m.row], 1).flatten(1), body=body, row=row).eval()
    for net, names in ((pure, ["body.0.bias"]), (mixed, ["body.0.bias", "row"])):
        frozen = freeze(net, example((4,), 0, 1))
        assert list(bias_sources(frozen, weighted).by_source()) == names
        assert_bias_adds_up(frozen, weighted)


def test_a_constant_above_a_path_keeps_its_units():
    frozen = freeze(build("vgg"), inputs("vgg"))
    found = bias_sources(frozen, 0, Path.of([("features.3", (1, None, None))]))
    assert found.by_unit("classifier.3.bias").shape == (2, 4)
    assert found.by_unit("features.6").shape == (2, 5)
    assert not found.by_unit("features.6").any()
    assert found.by_unit("features.1").any()


# --- places ---


def slow_spread(places, height, width):
    """Every place laid over the pixels of its block, by the area that they share."""
    h, w = places.shape
    spread = torch.zeros(height, width).double()
    for y in range(h):
        for x in range(w):
            top, bottom, left, right = y * height / h, (y + 1) * height / h, x * width / w, (x + 1) * width / w
            for i in range(height):
                for j in range(width):
                    down, across = min(bottom, i + 1) - max(top, i), min(right, j + 1) - max(left, j)
                    if down > 0 and across > 0:
                        spread[i, j] += places[y, x] * down * across / ((bottom - top) * (right - left))
    return spread


@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride"), [(4, 6, 2, 2), (7, 5, 3, 2), (5, 8, 3, 1), (9, 9, 4, 3)]
)
def test_a_constants_places_lie_where_its_feature_map_covers_the_picture(height, width, kernel, stride):
    model = randomise(nn.Sequential(nn.Conv2d(2, 3, kernel, stride), nn.ReLU(), nn.Flatten()), 1)
    x = example((2, height, width), 3)
    readout = torch.cos(torch.arange(model(x).shape[1]) * 1.3).double()
    found = bias_sources(freeze(model, x), lambda y: y @ readout)
    h = model[0](x).detach()
    places = (readout.view(1, *h.shape[1:]) * (h > 0) * model[0].bias.detach().view(1, 3, 1, 1)).sum(1)
    assert_close(found.terms[0].places, places)
    for sample in range(2):
        assert_close(found.by_location()[sample], slow_spread(places[sample], height, width))
    assert (found.unplaced == 0).all()


def test_a_map_larger_than_the_picture_is_laid_over_it():
    model = randomise(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Upsample((7, 9)), nn.Conv2d(2, 2, 1), nn.Flatten()), 1)
    found = bias_sources(freeze(model, example((1, 4, 6), 0)), 17)
    expected = sum(slow_spread(term.places[0], 4, 6) for term in found.terms)
    assert_close(found.by_location()[0], expected)


def test_what_has_no_place_is_spread_evenly_and_reported_apart():
    model = randomise(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(3, 4)), 0)
    found = bias_sources(freeze(model, inputs("vgg")), 2)
    assert_close(found.unplaced, found.model.bias)
    assert_close(found.by_location(), (found.model.bias / 36).view(2, 1, 1).expand(2, 6, 6))
    vgg = bias_sources(freeze(build("vgg"), inputs("vgg")), 0)
    parts = vgg.by_source()
    assert_close(vgg.unplaced, parts["classifier.1.bias"] + parts["classifier.3.bias"])
    assert (vgg.unplaced != 0).all()


def test_of_channels_that_come_last_the_places_are_the_axes_between():
    model = randomise(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 1)), 0)
    first = Lambda(lambda m, x: m.convs(x).flatten(1), convs=model).eval()
    fc = [nn.Linear(2, 3).double(), nn.Linear(3, 4).double()]
    for linear, conv in zip(fc, (model[0], model[2]), strict=True):
        linear.load_state_dict({"weight": conv.weight.detach().flatten(1), "bias": conv.bias.detach()})
    last = Lambda(
        lambda m, x: m.fcs(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).flatten(1),
        fcs=nn.Sequential(fc[0], nn.ReLU(), fc[1]),
    ).eval()
    x = example((2, 5, 4), 0)
    a, b = (bias_sources(freeze(net, x), 7) for net in (first, last))
    assert_close(a.by_location(), b.by_location())
    assert_close(a.by_unit("convs.0.bias"), b.by_unit("fcs.0.bias"))
    assert b.by_unit("fcs.0.bias").shape == (2, 3)


@pytest.mark.parametrize("batch", [2, 3])
def test_samples_that_do_not_stand_first_are_told_apart(batch):
    """Tokens first, (T, B, C), with as many tokens as samples and with another number."""

    def forward(m, x):
        h = m.up(x.transpose(0, 1)).relu()
        return m.down((h + m.shift).relu()).transpose(0, 1).flatten(1)

    parts = {"up": nn.Linear(4, 5), "down": nn.Linear(5, 2), "shift": nn.Parameter(torch.zeros(5))}
    model = randomise(Lambda(forward, **parts), 2)
    x = example((3, 4), 1, batch=batch)
    frozen = freeze(model, x)
    found = bias_sources(frozen, 1)
    assert_bias_adds_up(frozen, 1)
    for sample in range(batch):
        alone = bias_sources(freeze(model, x[sample : sample + 1]), 1)
        for name, part in alone.by_source().items():
            assert_close(found.by_source()[name][sample], part[0])
            assert_close(found.by_unit(name)[sample], alone.by_unit(name)[0])
    assert not torch.allclose(found.by_source()["up.bias"][0], found.by_source()["up.bias"][1])


def test_units_of_tokens_are_their_features():
    model = randomise(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 2)), 0)
    found = bias_sources(freeze(model, example((3, 4), 0)), 0)
    assert found.by_unit("0.bias").shape == (2, 5)


# --- what cancels, and what is refused ---


def test_round_off_is_relative_to_what_cancels():
    """A neuron whose pre-activation all but cancels is as right in single precision as any other."""
    torch.manual_seed(213)
    parts = [nn.Linear(20, 30, bias=False), nn.ReLU(), nn.Linear(30, 10, bias=False), nn.ReLU(), nn.Linear(10, 3)]
    frozen = freeze(nn.Sequential(*parts).eval(), torch.randn(1, 20))
    (output,) = frozen.layers[0].output
    unit = int(torch.where(output > 0, output, torch.inf).argmin())
    assert 0 < output[unit] < 1e-4
    found = bias_sources(frozen, 1, Path.of([(frozen.layers[0].name, (unit,))]))
    assert found.model.bias.abs() < 1e-8
    assert found.by_source() == {"4.bias": torch.zeros(1)}


@pytest.mark.parametrize("x", [torch.zeros(1, 64), example((64,), 0, 1, torch.float32)], ids=["zero", "normal"])
def test_of_classes_all_but_alike_nothing_is_misunderstood(x):
    """And a constant that is lost is seen nevertheless."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Flatten(), nn.Linear(64, 2)).eval()
    with torch.no_grad():
        model[2].weight[1] = model[2].weight[0] * (1 + 1e-6)
        model[2].bias.zero_()
    frozen = freeze(model, x)
    assert (frozen.check(contrast(0, 1)).error < 1e-5).all()
    assert bias_sources(frozen, contrast(0, 1)).model.value.abs() < 1e-6
    lost = dataclasses.replace(frozen, sources=frozen.sources[1:])
    for ask in (lost.check, lambda target: bias_sources(lost, target), lambda target: linear_model(lost, target)):
        with pytest.raises(IncompleteError, match=r"add up|constants below"):
            ask(0)


def test_single_precision_is_no_obstacle_however_deep():
    """The cotangents of a path leave its range, their products with the constants are what is asked for."""
    model, x = deep(torch.float32), example((32,), 1, 1, torch.float32)
    with torch.no_grad():
        model[0].bias.fill_(0.1)
    frozen = freeze(model, x)
    path = find_paths(frozen, 2, Beam(1)).paths[0]
    for depth in (100, 115, 130):
        found = bias_sources(frozen, 2, path.top(depth))
        assert_close(sum(found.by_source().values()), found.model.bias, 1e-36)
    assert abs(found.model.value) < 1e-38
    assert linear_model(frozen, 2, path).value == found.model.value


def test_a_lost_constant_is_an_error():
    frozen = freeze(build("resnet"), inputs("resnet"))
    for lost in range(len(frozen.sources)):
        kept = frozen.sources[:lost] + frozen.sources[lost + 1 :]
        with pytest.raises(IncompleteError, match="do not add up"):
            bias_sources(dataclasses.replace(frozen, sources=kept), weighted)


def test_what_is_not_there_is_refused():
    frozen = freeze(build("mlp"), inputs("mlp"))
    found = bias_sources(frozen, 0)
    with pytest.raises(UnknownLayerError, match=r"no constant is named 'nope'.*'0.bias', '2.bias', '4.bias'"):
        found.by_unit("nope")
    for view in (found.by_location, found.weight_map):
        with pytest.raises(InputError, match=r"one explained input of shape \(B, C, H, W\); got \[2, 6\]"):
            view()
    with pytest.raises(UnknownLayerError, match="no hidden layer"):
        bias_sources(frozen, 0, Path.of([("nope", (0,))]))
    with pytest.raises(PathError, match="is not in layer"):
        bias_sources(frozen, 0, Path.of([("1", (99,))]))
    wide = randomise(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), 0)
    with pytest.raises(UnknownLayerError, match=r"differ in channels: name one of '0.bias' \(4\), '1.bias' \(5\)"):
        bias_sources(freeze(wide, example((3,), 0)), 0).by_unit("2")
    two = Lambda(lambda m, a, b: m.fc(a.flatten(1)) + m.fc(b.flatten(1)), fc=nn.Linear(8, 3).double()).eval()
    pair = freeze(two, (example((2, 2, 2), 0), example((2, 2, 2), 1)))
    assert (bias_sources(pair, 0).model.bias != 0).all()
    with pytest.raises(InputError, match="one explained input"):
        bias_sources(pair, 0).by_location()


def test_a_network_without_constants_has_no_bias():
    frozen = freeze(nn.Sequential(nn.Linear(3, 2, bias=False)).double().eval(), example((3,), 0))
    found = bias_sources(frozen, 0)
    assert found.terms == ()
    assert list(found.by_layer()) == ["output"]
    assert (found.by_layer()["output"] == 0).all()
    assert set(NETS) == set(NAMES)
