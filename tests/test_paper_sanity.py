"""The sanity checks: what controls and the whole network must score, by the real libraries; the numbers checked in."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import asked
import sanity
from asserts import within
from nets import randomise

EXPECTED = Path(__file__).parents[1] / "paper" / "expected"


@pytest.fixture
def linear():
    """A network without a bend: ``W x`` is all there is to tell of it."""
    parts = nn.Conv2d(3, 4, 3), nn.LeakyReLU(1.0), nn.Flatten(), nn.Linear(4 * 36, 5)
    return randomise(nn.Sequential(*parts), 0, torch.float32).eval().requires_grad_(False)


def test_of_a_linear_network_the_map_leaves_nothing_unexplained(linear, unchecked):
    x, other = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    names = ["W x", "Saliency, signed", "the input itself", "random"]
    told = sanity.measured(linear, x, other, 3, names)
    assert [*told] == names
    for name in names[:2]:
        assert told[name]["infidelity, squares"] < 1e-4
        assert told[name]["infidelity, noise"] < 1e-3
    assert told["Saliency, signed"]["sensitivity"] < 1e-6
    assert told["Saliency, signed"]["another input"] == pytest.approx(1)
    assert told["W x"]["sensitivity"] < 0.05
    assert 0.1 < told["W x"]["another input"] < 0.9
    for word in ("squares", "noise"):
        assert 0.3 < told["random"][f"infidelity, {word}"] <= 1
    assert told["random"]["sensitivity"] > 1
    assert abs(told["random"]["noise"]) < 0.5
    assert told["the input itself"]["sensitivity"] < 0.05


def test_maps_that_are_the_same_everywhere_are_not_alike():
    some = torch.randn(1, 3, 4, 4)
    assert sanity.alike(some, -2 * some) == pytest.approx(1)
    assert sanity.alike(some, torch.zeros_like(some)) is None
    told = sanity._mean([0.5, None, 0.7, float("nan")])
    assert told["mean"] == pytest.approx(0.6)
    assert told["undefined"] == 2
    assert sanity._mean([None, 1.0]) is None


@pytest.mark.filterwarnings("ignore")
def test_quantus_finds_that_the_input_survives_and_that_w_explains(linear, unchecked):
    x = torch.randn(4, 3, 8, 8)
    told = sanity.by_quantus(linear, x, 2, ["W x", "Mass .5, top layer", "the input itself"])
    for test in ("top down", "top down, signed", "independent"):
        for layer in ("0", "3"):
            assert told[test]["the input itself"][layer] == pytest.approx([1] * 4)
            assert max(told[test]["W x"][layer]) < 0.99
    assert np.mean(told["top down, signed"]["W x"]["0"]) < 0.5
    assert told["another class"]["the input itself"] == pytest.approx([1] * 4)
    assert max(told["Infidelity"]["W x"]) < 1e-6
    assert min(told["Infidelity"]["Mass .5, top layer"]) > 1e-4
    assert max(told["MaxSensitivity"]["W x"]) < 0.1


def test_the_first_image_scores_what_is_checked_in(data, unchecked):
    want = json.loads((EXPECTED / "sanity-cifar10.json").read_text())
    parser = asked.parser("x", want["pictures"])
    asked.add_cifar10(parser)
    words = ["--cifar10", data / "cifar10" / "test.zip", "--weights", data / "toycnn_cifar10.safetensors"]
    task = asked.task(parser.parse_args([*map(str, words)]))
    names = ["Saliency", "LRP, epsilon-plus", "W x", "Mass .5, all layers"]
    x, other = (task.x(n)[None].contiguous() for n in (0, len(task.names) - 1))
    told = sanity.measured(task.model.requires_grad_(False), x, other, 0, names)
    for name in names:
        assert told[name] == within("sanity", want["first"][0][name]), name


@pytest.mark.parametrize("name", ["creatures", "cifar10"])
def test_the_numbers_checked_in_are_of_all_methods_and_tests(name):
    found = json.loads((EXPECTED / f"sanity-{name}.json").read_text())
    methods = {*found["captum"]["sensitivity"]}
    assert {*sanity.OURS, *sanity.CONTROLS} < methods
    assert {*found["quantus"]["MaxSensitivity"]} == methods
    for test in ("top down", "top down, signed", "independent"):
        for layer in found["quantus"][test]["the input itself"].values():
            assert layer["mean"] == pytest.approx(1)
        for layer in found["quantus"][test]["random"].values():
            assert abs(layer["mean"]) < 0.05
    for word in ("squares", "noise"):
        rows = found["captum"][f"infidelity, {word}"]
        assert rows["W x"]["mean"] == pytest.approx(rows["Input x Gradient"]["mean"], abs=1e-3)
