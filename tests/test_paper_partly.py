"""Maps averaged over partial pictures: the pictures, the average by another route, and what peers are given of it."""

import math

import pytest
import torch
from torch import nn

import partly
import peers
from asserts import assert_close
from nets import randomise
from relupath import Mass, freeze
from relupath.metrics import blur


@pytest.fixture
def model():
    parts = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)
    return randomise(nn.Sequential(*parts), 0).eval()


@pytest.fixture
def x():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CLASSES = torch.tensor([0, 3, 1])


def test_a_partial_picture_is_the_picture_here_and_the_start_there(x):
    pictures = torch.stack([*partly.seen(x, blur)])
    shown = (pictures == x).all(2)
    assert (shown | (pictures == blur(x)).all(2)).all()
    assert (shown == shown[:, :1]).all(), "of every picture the same pixels"
    assert (shown[::2] ^ shown[1::2]).all(), "pairs show opposite pixels"
    shares = shown.double().mean((1, 2, 3))
    assert shares[0] < 0.1 < 0.9 < shares[-2]
    assert len(pictures) == partly.PICTURES


def test_the_map_is_the_mean_gradient_times_what_each_pixel_changes(model, x):
    want = torch.zeros_like(x)
    for start in (torch.zeros_like(x), blur(x)):
        draws = torch.Generator().manual_seed(0)
        for pair in range(32):
            chance = torch.rand(8, 8, generator=draws)
            for shown in (chance < (pair + 0.5) / 32, chance >= (pair + 0.5) / 32):
                z = (shown * x + ~shown * start).requires_grad_()
                (slope,) = torch.autograd.grad(model(z)[range(3), CLASSES].sum(), z)
                want += slope * (x - start) / 64
    assert_close(partly.searches(model)["W x, partial pictures"](freeze(model, x), CLASSES), want)


def test_what_is_linear_needs_no_average(x):
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4)), 0).eval()
    found = partly.averaged(model, partly.whole, blur, freeze(model, x), CLASSES)
    gained = (model(x) - model(blur(x)))[range(3), CLASSES]
    assert_close(found.flatten(1).sum(1), gained)
    assert_close(found, partly.whole(freeze(model, x), CLASSES) * (x - blur(x)))


def test_what_speaks_for_and_against_is_all(model, x):
    frozen = freeze(model, x)
    assert_close(partly.for_less_against(Mass(1.0, 1), frozen, CLASSES), partly.whole(frozen, CLASSES))
    less = partly.for_less_against(Mass(0.5, 1), frozen, CLASSES)
    assert not torch.allclose(less, partly.whole(frozen, CLASSES))
    assert_close(
        less + partly.of_paths(Mass(0.5, 1), frozen, lambda output: -output[range(3), CLASSES]),
        partly.of_paths(Mass(0.5, 1), frozen, CLASSES),
    )


def test_where_nothing_speaks_for_a_class_the_path_weighs_nothing(model, x):
    with torch.no_grad():
        model[5].weight[0].copy_(-model[5].weight[0].abs())
    weight = partly.of_paths(Mass(0.9, 1), freeze(model, x), CLASSES)
    assert not weight[0].any()
    assert weight[1:].flatten(1).any(1).all()


def test_maps_of_partial_pictures_are_the_same_together_and_apart(model, x, monkeypatch):
    monkeypatch.setattr(partly, "PICTURES", 4)
    found = partly.searches(model)
    for name in ("W x, partial pictures", "Mass for less against, share 0.9, 2 layers, partial pictures, smoothed"):
        together = found[name](freeze(model, x), CLASSES)
        assert_close(found[name](freeze(model, x[1:2]), CLASSES[1:2]), together[1:2])


def test_smoothing_spreads_a_pixel_by_the_bell():
    spike = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    spike[0, :, 4, 4] = 0.5
    found = partly.smoothed(spike, 0.7)[0]
    assert float(found.sum()) == pytest.approx(1)
    assert float(found[4, 5] / found[4, 4]) == pytest.approx(math.exp(-1 / (2 * 0.7**2)))
    assert float(found[5, 5] / found[4, 4]) == pytest.approx(math.exp(-2 / (2 * 0.7**2)))


def test_peers_are_given_the_same_starts(model, x):
    x = x + 1  # whose blurred picture is far from zero
    usual = peers.methods(model, "3", "3")
    found = partly.field(model, usual)
    from_blur = found["Integrated Gradients, from blur"](x, CLASSES)
    gained = (model(x) - model(blur(x)))[range(3), CLASSES].detach()
    assert torch.allclose(from_blur.flatten(1).sum(1), gained, atol=0.05 * float(gained.abs().max()))
    both = found["Integrated Gradients, both starts"](x, CLASSES)
    assert_close(both, from_blur + usual["Integrated Gradients"](x, CLASSES))
    relevance = usual["LRP, gamma-box"](x, CLASSES)
    assert_close(found["LRP, gamma-box, smoothed"](x, CLASSES), partly.smoothed(relevance, x.shape[2] / 32))
    for name in ("Occlusion, from blur", "LRP, gamma-box, partial pictures"):
        assert found[name](x, CLASSES).isfinite().all()


def test_sampled_shapley_values_sum_to_what_the_picture_gains(model, x, monkeypatch):
    monkeypatch.setattr(partly, "NARROW", 0.01)
    found = partly.field(model, peers.methods(model, "3", "3"))
    gained = model(x) - model(blur(x))
    values = found["Shapley sampling, from blur, smoothed"](x, CLASSES)
    assert_close(values.flatten(1).sum(1), gained[range(3), CLASSES])
    gained = gained + model(x) - model(0 * x)
    values = found["Shapley sampling, both starts, smoothed"](x, CLASSES)
    assert_close(values.flatten(1).sum(1), gained[range(3), CLASSES])
