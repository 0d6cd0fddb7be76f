"""How far an explanation reaches: the first flip against real forward passes, the share of gates against a count."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from asserts import assert_close, assert_untouched, typechecks_off
from cases import DTYPES
from nets import CHANGES, Lambda, build, example, inputs, layered, mlp, randomise
from relupath import freeze
from relupath.errors import InputError, ModelError, UnsupportedOperation
from relupath.reach import agreement, agreement_along, first_flip

PIECEWISE = ("mlp", "vgg", "resnet", "squeeze", "dense")


class Watch(TorchFunctionMode):
    """Notes in a plain forward pass which gates are open, and where max pooling takes its values from."""

    def __init__(self):
        super().__init__()
        self.gates, self.routes = [], []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.relu, F.leaky_relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_):
            self.gates.append(args[0] > 0)
        name = getattr(func, "__name__", "")
        if name == "max_pool2d" and len(args) > 1:
            taken = dict(zip(("kernel_size", "stride", "padding", "dilation", "ceil_mode"), args[1:], strict=False))
            taken = {**taken, **{k: v for k, v in (kwargs or {}).items() if k != "return_indices"}}
            self.routes.append(F.max_pool2d(args[0], **taken, return_indices=True)[1])
        return func(*args, **(kwargs or {}))


def watched(model, x):
    """Gates and routes of a real forward pass at x."""
    with Watch() as watch, torch.no_grad():
        model(x.clone())
    return watch


def same(a, b):
    pairs = zip([*a.gates, *a.routes], [*b.gates, *b.routes], strict=True)
    return torch.stack([(u == v).flatten(1).all(1) for u, v in pairs]).all(0)


def at(x, t, d):
    return x + t.view(-1, *[1] * (x.ndim - 1)) * d


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PIECEWISE)
def test_the_first_flip_is_where_real_forward_passes_change(name, seed):
    """No gate differs before it, the named one does after it, and bisection finds the same place."""
    model, x, d = build(name, seed), inputs(name, seed, batch=3), inputs(name, seed + 50, batch=3)
    frozen = freeze(model, x)
    with assert_untouched(model):
        found = first_flip(frozen, d)
    assert torch.isfinite(found.t).all()
    assert (found.t > 0).all()
    here = watched(model, x)
    for share in torch.linspace(0, 1 - 1e-7, 60, dtype=torch.float64):
        assert same(here, watched(model, at(x, share * found.t, d))).all()
    after = watched(model, at(x, found.t * (1 + 1e-7), d))
    assert not same(here, after).any()
    names = [layer.name for layer in frozen.layers]
    for sample, (layer, unit) in enumerate(zip(found.layer, found.unit, strict=True)):
        if layer in names:
            which = names.index(layer)
            flipped = here.gates[which][sample] != after.gates[which][sample]
            assert flipped[unit]
        else:
            assert "max_pool2d" in layer
            assert (here.routes[0] != after.routes[0])[(sample, *unit)]
    low, high = torch.zeros_like(found.t), 1.001 * found.t
    for _ in range(60):
        middle = (low + high) / 2
        stays = same(here, watched(model, at(x, middle, d)))
        low, high = torch.where(stays, middle, low), torch.where(stays, high, middle)
    assert_close(high, found.t)


@pytest.mark.parametrize("style", ["module", "shared", "inplace", "method", "leaky", "inplace_method"])
def test_however_it_is_written_the_flip_is_the_same(style):
    net = layered(5, (4, 6, 5, 3), style=style)
    x, d = example((4,), 0), example((4,), 9)
    frozen = freeze(net, x)
    found = first_flip(frozen, d)
    a = [x]
    t = torch.full((2,), torch.inf).double()
    rates = [d]
    for l in (1, 2):  # written out: h and its rate, layer by layer
        h = sum(a[k] @ net.matrices[l, k].T for k in range(l) if (l, k) in net.matrices) + net.offsets[l]
        r = sum(rates[k] @ net.matrices[l, k].T for k in range(l) if (l, k) in net.matrices)
        ratio = torch.where(-h / r > 0, -h / r, torch.inf)
        t = torch.minimum(t, ratio.amin(1))
        gate = torch.where(h > 0, torch.ones_like(h), net.slope)
        a.append(gate * h)
        rates.append(gate * r)
    assert_close(found.t, t)
    assert all(layer in net.names() for layer in found.layer)


KINKED = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "rrelu": F.rrelu,
    "prelu": lambda h: F.prelu(h, torch.linspace(0.1, 0.9, h.shape[1]).to(h)),
    "relu6": lambda h: F.relu6(3 * h),
    "relu6 in place": lambda h: F.relu6(3 * h, inplace=True),
    "hardtanh": lambda h: F.hardtanh(h, -0.3, 0.8),
    "hardtanh as it is": lambda h: F.hardtanh(h),
    "hardsigmoid": lambda h: F.hardsigmoid(4 * h),
    "threshold": lambda h: F.threshold(h, 0.4, -1.0),
    "hardshrink": lambda h: F.hardshrink(h, 0.2),
    "softshrink": lambda h: F.softshrink(h, 0.3),
    "clamp": lambda h: h.clamp(-0.5, 0.25),
    "clamp by name": lambda h: torch.clamp(h, max=0.25),
    "clamp below": lambda h: torch.clamp(h, min=-0.1),
    "clamp_min": lambda h: h.clamp_min(0.1),
    "clamp_max": lambda h: torch.clamp_max(h, 0.1),
    "clip in place": lambda h: (h * 1).clip_(-0.2, 0.2),
    "abs": lambda h: h.abs(),
    "max_pool1d": lambda h: F.max_pool1d(h.unsqueeze(1), 3, 2, 1).flatten(1),
    "max_pool1d, dilated": lambda h: F.max_pool1d(h.unsqueeze(1), 3, 1, 0, 2).flatten(1),
    "max_pool2d": lambda h: F.max_pool2d(h.view(-1, 1, 4, 6), (2, 3)).flatten(1),
    "max_pool2d, ceil": lambda h: F.max_pool2d(h.view(-1, 2, 3, 4), 2, ceil_mode=True).flatten(1),
    "max_pool2d, overlapping": lambda h: F.max_pool2d(h.view(-1, 1, 4, 6), 3, stride=1, padding=1).flatten(1),
    "max_pool2d, rows left over": lambda h: F.max_pool2d(h.view(-1, 1, 4, 6), 2, stride=[3, 4]).flatten(1),
    "max_pool3d": lambda h: F.max_pool3d(h.view(-1, 1, 2, 3, 4), (2, 2, 2), 1).flatten(1),
    "nn.MaxPool2d": lambda h: nn.MaxPool2d(2, return_indices=True)(h.view(-1, 1, 4, 6))[0].flatten(1),
    "a view": lambda h: _half_relu(h * 1),
}


def _half_relu(h):
    h[:, 3:9].relu_()
    return h


@pytest.mark.parametrize("case", KINKED)
def test_every_kink_is_met_where_the_derivative_of_the_model_changes(case):
    """On the line the model's derivative stays to the flip and is another behind it."""
    model = Lambda(lambda m, x: m.tail(KINKED[case](x + m.shift)), shift=torch.linspace(-0.9, 1.1, 24).double())
    x, d = example((24,), 3, batch=4), example((24,), 4, batch=4)
    width = KINKED[case](x).shape[1]
    model.tail = nn.Linear(width, 2).double()
    model.eval()
    found = first_flip(freeze(model, x), d)
    assert torch.isfinite(found.t).all()

    def derivative(t):
        y = at(x, t, d).requires_grad_()
        return torch.autograd.grad(model(y)[:, 0].sum(), y)[0]

    start = derivative(0 * found.t)
    for share in torch.linspace(0, 1 - 1e-9, 40, dtype=torch.float64):
        assert_close(derivative(share * found.t), start)
    assert ((derivative(found.t * (1 + 1e-9)) - start).abs().amax(1) > 1e-6).all()


ON_THE_KINK = {
    "relu": (F.relu, torch.inf, 0),
    "max_pool1d": (lambda h: F.max_pool1d(torch.cat([h, 0 * h], 1).unsqueeze(1), 2).squeeze(1), 0, torch.inf),
    "hardtanh from below": (lambda h: F.hardtanh(h, 0.0, 1e9), torch.inf, 0),
    "hardtanh from above": (lambda h: F.hardtanh(h, -1e9, 0.0), 0, torch.inf),
    "abs": (lambda h: h.abs(), 0, 0),
}


@pytest.mark.parametrize("case", ON_THE_KINK)
def test_a_unit_on_its_kink_flips_at_once_or_never(case):
    function, *expected = ON_THE_KINK[case]
    model = Lambda(lambda m, x: torch.cat([function(x), x], 1)).eval()
    found = first_flip(freeze(model, torch.zeros(2, 1).double()), torch.tensor([[-1e-20], [1e-20]]).double())
    assert found.t.tolist() == expected


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_a_clamp_on_its_bound_stands_where_its_derivative_says(slope):
    model = Lambda(lambda m, x: torch.cat([x.clamp(min=0), x], 1)).eval()
    x = torch.zeros(1, 1).double().requires_grad_()
    (at_bound,) = torch.autograd.grad(x.clamp(min=0).sum(), x)
    found = first_flip(freeze(model, x.detach()), torch.full((1, 1), slope).double())
    leaves = slope < 0 if bool(at_bound) else slope > 0
    assert found.t.item() == (0 if leaves else torch.inf)


@pytest.mark.parametrize("first", [0, 1])
def test_entries_that_move_alike_but_for_round_off_do_not_overtake_each_other(first):
    def forward(m, x):
        pair = [x * 0.1 * 3, x * (0.1 * 3)]
        return F.max_pool1d(torch.stack([pair[first], pair[1 - first]], 2), 2)[:, :, 0]

    d = example((50,), 0, batch=1)
    assert (d * 0.1 * 3 != d * (0.1 * 3)).any(), "the rates differ in round-off"
    found = first_flip(freeze(Lambda(forward).eval(), torch.ones(1, 50).double()), d)
    assert found.t.item() == torch.inf
    assert found.layer == ("",)
    assert found.unit == ((),)


def test_a_network_of_affine_maps_never_flips():
    found = first_flip(freeze(build("linear"), inputs("linear")), inputs("linear", 1))
    assert found.t.tolist() == [torch.inf] * 2
    none = first_flip(freeze(build("vgg"), inputs("vgg")), torch.zeros_like(inputs("vgg")))
    assert none.t.tolist() == [torch.inf] * 2


def test_in_single_precision_it_is_the_same_place():
    model, x, d = build("vgg"), inputs("vgg"), inputs("vgg", 7)
    double = first_flip(freeze(model, x), d)
    single = first_flip(freeze(build("vgg", dtype=torch.float32), x.float()), d.float())
    assert single.t.dtype == DTYPES[1]
    assert_close(single.t, double.t.float())
    assert single.unit == double.unit


def test_several_inputs_move_together():
    model = Lambda(lambda m, a, b: F.relu(m.fc(a) + m.fc(b)), fc=nn.Linear(3, 2)).double().eval()
    a, b, d, e = (example((3,), seed) for seed in range(4))
    found = first_flip(freeze(model, (a, b)), (d, e))
    h, r = model.fc(a) + model.fc(b), (d + e) @ model.fc.weight.T
    assert_close(found.t, torch.where(-h / r > 0, -h / r, torch.inf).amin(1).detach())


def test_layers_that_are_not_recorded_flip_too():
    model, x, d = build("vgg"), inputs("vgg"), inputs("vgg", 7)
    found, sparse = (first_flip(freeze(model, x, layers=layers), d) for layers in (None, ["classifier.2"]))
    assert torch.equal(found.t, sparse.t)
    assert found.unit == sparse.unit
    assert all(name.endswith("relu") or "pool" in name for name in sparse.layer)


REFUSED = {
    "gelu": (lambda m, x: m.tail(F.gelu(x)), "gelu in module .* changes with every step"),
    "layer norm": (lambda m, x: m.tail(F.relu(F.layer_norm(x, (4,)))), "layer_norm .*changes with every step"),
    "gate": (lambda m, x: m.tail(x * torch.sigmoid(x)), "changes with every step"),
    "comparison": (lambda m, x: m.tail(torch.where(x > 0.1, x, 2 * x)), "gt in module .* flips are not known"),
    "sort": (lambda m, x: m.tail(x.sort(1).values), "sort.* flips are not known"),
    "maximum": (lambda m, x: m.tail(torch.maximum(x, 2 * x + 1)), "maximum .*flips are not known"),
    "clamp by a tensor": (lambda m, x: m.tail(x.clamp(min=torch.zeros(4).double())), "clamp.* flips are not known"),
    "argmax": (lambda m, x: m.tail(x.roll(int(x[0].argmax()), 1)), "argmax .*flips are not known"),
    "adaptive": (lambda m, x: m.tail(F.adaptive_max_pool1d(x[:, None], 4)[:, 0]), "adaptive_max.* flips are not known"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_first_flip_that_is_known_is_refused(case):
    forward, sentence = REFUSED[case]
    model = randomise(Lambda(forward, tail=nn.Linear(4, 2)), 0)
    with pytest.raises(UnsupportedOperation, match=sentence):
        first_flip(freeze(model, example((4,), 0)), example((4,), 1))


def test_directions_that_do_not_fit_are_refused():
    frozen = freeze(build("mlp"), inputs("mlp"))
    for direction in (torch.ones(6).double(), torch.ones(1, 6).double(), torch.full((2, 6), torch.nan).double()):
        with pytest.raises(
            InputError, match=r"direction must be finite and of the explained input's shape \[\[2, 6\]\]"
        ):
            first_flip(frozen, direction)


def test_a_model_that_was_changed_since_is_refused():
    for how in CHANGES:
        model = build("mlp")
        frozen = freeze(model, inputs("mlp"))
        CHANGES[how](model)
        for ask in (first_flip, agreement_along):
            with pytest.raises(ModelError, match="freeze again"):
                ask(frozen, inputs("mlp", 1))


def test_samples_that_do_not_stand_first_are_frozen_alone():
    model = Lambda(lambda m, x: F.relu(m.fc(x.transpose(0, 1))).transpose(0, 1).flatten(1), fc=nn.Linear(3, 2)).double()
    model.eval()
    x, d = example((4, 3), 0), example((4, 3), 1)
    with pytest.raises(InputError, match="freeze one input at a time"):
        first_flip(freeze(model, x), d)
    alone = first_flip(freeze(model, x[:1]), d[:1])
    h, r = model.fc(x[0]), d[0] @ model.fc.weight.T
    assert_close(alone.t[0], torch.where(-h / r > 0, -h / r, torch.inf).min().detach())


# --- gates that agree ---


@pytest.mark.parametrize("name", PIECEWISE)
def test_gates_that_agree_are_counted(name):
    model, x, y = build(name), inputs(name, 0, batch=3), inputs(name, 1, batch=3)
    one, two = freeze(model, x), freeze(model, y)
    shares = agreement(one, two)
    gates = zip(watched(model, x).gates, watched(model, y).gates, strict=True)
    counted = [(a == b).flatten(1).double().mean(1) for a, b in gates]
    assert list(shares) == [layer.name for layer in one.layers]
    for share, expected in zip(shares.values(), counted, strict=True):
        assert_close(share, expected)
    assert any((share < 1).all() for share in shares.values())
    assert all((share == 1).all() for share in agreement(one, freeze(model, x)).values())


def test_along_the_line_agreement_starts_at_one_and_ends_at_the_other_input():
    model, x, y = build("vgg"), inputs("vgg", 0), inputs("vgg", 1)
    frozen = freeze(model, x)
    with assert_untouched(model):
        along = agreement_along(frozen, y, steps=4)
    for k in range(5):
        there = freeze(model, x + (k / 4) * (y - x))
        for name, share in agreement(frozen, there).items():
            assert along[name].shape == (5, 2)
            assert torch.equal(along[name][k], share)
    assert all((share[0] == 1).all() for share in along.values())
    assert (along["features.3"][-1] < along["features.3"][1]).any()


def test_smooth_gates_are_not_counted():
    parts = [nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6), nn.SiLU(), nn.Linear(6, 2)]
    model = randomise(nn.Sequential(*parts), 0)
    one, two = (freeze(model, example((4,), seed)) for seed in range(2))
    assert list(agreement(one, two)) == ["3"]
    smooth = mlp(0, act=nn.GELU)
    with pytest.raises(InputError, match="no recorded layer has gates that are open or shut"):
        agreement(*(freeze(smooth, inputs("mlp", seed)) for seed in range(2)))


def test_recordings_that_differ_are_refused():
    frozen = freeze(build("mlp"), inputs("mlp"))
    with pytest.raises(InputError, match="differ in layers or shapes"):
        agreement(frozen, freeze(build("mlp"), inputs("mlp", batch=1)))
    with pytest.raises(InputError, match="differ in layers or shapes"):
        agreement(frozen, dataclasses.replace(frozen, layers=frozen.layers[:1]))
    with pytest.raises(InputError, match=r"other input must be finite and of .*\[\[2, 6\]\]; got \[\[2, 5\]\]"):
        agreement_along(frozen, torch.ones(2, 5).double())
    with pytest.raises(InputError, match="at least one step; got 0"):
        agreement_along(frozen, inputs("mlp"), 0)


def test_what_is_no_tensor_or_no_recording_is_refused():
    frozen = freeze(build("mlp"), inputs("mlp"))
    with typechecks_off():
        for ask in (first_flip, agreement_along):
            with pytest.raises(InputError, match=r"must be a tensor, or a tuple of them .*; got ndarray"):
                ask(frozen, inputs("mlp").numpy())
        with pytest.raises(InputError, match=r"give the recording at the other input, freeze\(model, x\); got Tensor"):
            agreement(frozen, inputs("mlp"))


def test_a_direction_made_in_inference_mode_is_one():
    frozen = freeze(build("vgg"), inputs("vgg"))
    with torch.inference_mode():
        direction = inputs("vgg", 7)
        within = first_flip(frozen, direction)
    assert torch.equal(first_flip(frozen, direction).t, first_flip(frozen, inputs("vgg", 7)).t)
    assert torch.equal(within.t, first_flip(frozen, direction).t)
