"""The scripts of ``paper/`` give the numbers that are checked in beside them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import authors
import cifar10
from asserts import within
from nets import randomise
from relupath import Selective
from relupath._contributions import contributions
from relupath._freeze import freeze

EXPECTED = Path(__file__).parents[1] / "paper" / "expected"
THEIRS = {
    "saliency": (0.401, 0.175),
    "W x": (0.646, 0.134),
    "masked, width 1": (0.478, 0.335),
    "masked, width 16": (0.614, 0.288),
    "masked, width 64": (0.713, 0.243),
    "masked, unlimited": (0.760, 0.230),
}
"""Insertion and deletion that the authors' code gives for the 200 images."""


def expected(name):
    return json.loads((EXPECTED / f"{name}.json").read_text())


@pytest.mark.parametrize("depth", [None, 1, 2])
@pytest.mark.parametrize("width", [1, 3, None])
def test_without_pooling_the_masked_network_is_the_definition(width, depth):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 9), nn.ReLU(),
        nn.Linear(9, 5),
    )  # fmt: skip
    model = randomise(model, 0)
    x = torch.randn(6, 2, 8, 8, dtype=torch.float64)
    c = model(x).argmax(1)
    found = authors.selective(model, x, c, width, depth)
    assert torch.allclose(found, contributions(freeze(model, x), c, Selective(width, depth))[0], atol=1e-12)
    assert not torch.allclose(found, contributions(freeze(model, x), c)[0], rtol=0.01), "the mask leaves something out"


def test_through_max_pooling_the_masked_network_may_take_another_route():
    model = nn.Sequential(
        nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 4), nn.ReLU(), nn.MaxPool1d(2), nn.Linear(2, 2)
    ).eval()
    with torch.no_grad():
        for module in (model[0], model[2], model[5]):
            module.bias[:] = 0
        model[0].weight[:] = torch.eye(2)
        model[2].weight[:] = torch.tensor([[2.0, -1], [0, 0], [-1, 2], [0, 0]])
        model[5].weight[:] = torch.tensor([[3.0, 1], [0, 0]])
    x, c = torch.ones(1, 2), torch.tensor([0])
    assert contributions(freeze(model, x), c, Selective(None))[0].tolist() == [[5, 0]]
    assert authors.selective(model, x, c, None).tolist() == [[6, 0]], "the third unit at -1 loses to a zero"


def test_places_in_array_order_are_the_best_of_the_channels():
    maps = torch.tensor([[[[0.3, 0.9, 0.1]], [[0.6, 0.2, 0.4]]]])
    assert authors.ranks(maps).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("method", THEIRS)
def test_the_figures_of_the_authors_code_come_out(method):
    order = "by channel, unmixed"
    (row,) = (f for f in expected("cifar10")["figures"] if (f["method"], f["order"]) == (method, order))
    assert [row["insertion"]["mean"], row["deletion"]["mean"]] == pytest.approx(THEIRS[method], abs=0.001)


def test_ten_images_give_the_figures_that_are_checked_in(data, unchecked):
    want = expected("cifar10-ten")
    model = cifar10.network()
    model.load_state_dict(load_file(data / "toycnn_cifar10.safetensors"))
    x, labels = cifar10.images(data / "cifar10" / "test.zip", 1)
    c = model(x).argmax(1)
    assert len(x) == want["images"]
    assert float((c == labels).double().mean()) == pytest.approx(want["accuracy"])
    for row in cifar10.figures(model, x, c, ("W x", "selective, width 16", "masked, width 16")):
        if row["order"] != "by channel, unmixed":  # another processor may sort equal values otherwise
            (like,) = (f for f in want["figures"] if (f["method"], f["order"]) == (row["method"], row["order"]))
            for measure in cifar10.MEASURES:
                assert row[measure]["mean"] == within("areas", like[measure]["mean"])
