"""The causal check: its figures against what they are by hand, its cuts against ablations, and those checked in."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import asked
import causal
import relupath
from asserts import within
from nets import randomise
from relupath import images, models

EXPECTED = Path(__file__).parents[1] / "paper" / "expected"


@pytest.fixture
def model():
    parts = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)
    return randomise(nn.Sequential(*parts), 0).eval().requires_grad_(False)


def test_a_cut_is_the_fall_of_the_logit_and_is_told_before(model, unchecked):
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    frozen = relupath.freeze(model, x)
    record = causal.measured(model, x, 0)
    assert record["logit"] == pytest.approx(float(model(x).max()))
    top = relupath.find_paths(frozen, None, relupath.Mass(0.5)).paths[0]
    for kind, path in (("Mass | neurons | top 1", top.top(1)), ("Mass | neurons | all", top)):
        value, gates, real = record["cuts"][kind][0]
        told = relupath.ablate(frozen, path)
        assert value == pytest.approx(float(relupath.linear_model(frozen, None, path).value))
        assert gates == pytest.approx(float(told.value - told.with_frozen_gates))
        assert real == pytest.approx(float(told.value - told.ablated))
    for kind, cuts in record["cuts"].items():
        name, _, depth = kind.split(" | ")
        for value, gates, real in cuts:
            if depth == "top 1":
                assert value == pytest.approx(real), "no gate stands above the top layer"
            if name == "unit":
                assert value == pytest.approx(gates), "of one layer the two predictions are one"
                assert value != 0, "only units that contribute are drawn"


def test_random_sets_have_the_sizes_of_those_of_mass(model, unchecked):
    frozen = relupath.freeze(model, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    paths = dict(causal._paths(frozen, torch.Generator().manual_seed(0)))
    for word in causal.PARTITIONS:
        mass, sets, single = (paths[name, word, "all"] for name in ("Mass", "random sets", "random path"))
        assert [len(step.units) for step in sets.steps] == [len(step.units) for step in mass.steps]
        assert [len(step.units) for step in single.steps] == [1, 1]
        assert sets.layers == mass.layers
        assert sets.steps != mass.steps


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(causal, "DRAWS", 200)


def test_figures_are_those_of_their_names(few_draws):
    generator = np.random.default_rng(0)
    told, logit = generator.normal(size=200), generator.normal(size=200)
    real = 3 * told + 0.5 * generator.normal(size=200)
    found = causal.figures(np.arange(200), told, real, logit)
    assert found["pearson"][0] == pytest.approx(np.corrcoef(told, real)[0, 1])
    assert found["slope"][0] == pytest.approx(np.polyfit(told, real, 1)[0])
    ranks = [np.argsort(np.argsort(numbers)) for numbers in (told, real)]
    assert found["spearman"][0] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    left = [numbers - np.polyval(np.polyfit(logit, numbers, 1), logit) for numbers in (told, real)]
    assert found["given_logit"][0] == pytest.approx(np.corrcoef(*left)[0, 1])
    for middle, low, high in found.values():
        assert low < middle < high
    assert found["slope"][1] < 3 < found["slope"][2]
    assert set(causal.figures(np.arange(9), np.zeros(9), np.arange(9.0), logit[:9]).values()) == {None}


def test_pictures_are_drawn_with_all_of_their_cuts(few_draws):
    """Cuts of one picture that say the same are no more evidence than one: the interval stays as wide."""
    generator = np.random.default_rng(1)
    told = generator.normal(size=30)
    real, logit = told + generator.normal(size=30), generator.normal(size=30)
    once = causal.figures(np.arange(30), told, real, logit)["pearson"]
    often = causal.figures(np.arange(30).repeat(20), *(v.repeat(20) for v in (told, real, logit)))["pearson"]
    assert often == pytest.approx(once)


def test_equal_numbers_share_a_rank():
    assert causal.ranked(np.array([3.0, 1, 3, 2, 3])).tolist() == [4, 1, 4, 2, 4]


def test_within_a_picture_the_size_of_its_logit_tells_nothing(few_draws):
    """Between the pictures all grows together; within one the greater value falls less."""
    records = [
        {"logit": f, "cuts": {"Mass | neurons | all": [(f, f, 2 * f)], "Greedy | neurons | all": [(1.1 * f, f, f)]}}
        for f in np.linspace(1, 50, 20).tolist()
    ]
    found = causal.summary(records)
    assert found["within"]["all"] == pytest.approx([-1, -1, -1])
    assert found["kinds"]["Mass | neurons | all"]["value"]["slope"][0] == pytest.approx(2)


@pytest.mark.parametrize("name", ["creatures", "cifar10"])
def test_the_first_picture_is_cut_as_checked_in(name, request, monkeypatch, unchecked):
    """Whole paths, and neurons alone on creatures: that is faster, and what is drawn stays the same."""
    monkeypatch.setattr(causal, "DEPTHS", ())
    want = json.loads((EXPECTED / f"causal-{name}.json").read_text())
    if name == "creatures":
        monkeypatch.setattr(causal, "PARTITIONS", {"neurons": relupath.neurons})
        classifier = models.load("creatures")
        model, x = classifier.model, classifier.prepare(images.scene(asked.FIRST).image)
    else:
        data = request.getfixturevalue("data")
        words = ["--cifar10", data / "cifar10" / "test.zip", "--weights", data / "toycnn_cifar10.safetensors"]
        parser = asked.parser("x", want["pictures"])
        asked.add_cifar10(parser)
        task = asked.task(parser.parse_args([*map(str, words)]))
        model, x = task.model, task.x(0)
    got = asked.rounded(causal.measured(model.double(), x[None].double(), 0))
    like = want["first"][0]
    assert got["logit"] == pytest.approx(like["logit"])
    searches = {*causal.SEARCHES} - {*(causal.SHORT if name == "creatures" else ())}
    assert {*searches, "random path", "random sets", "unit"} == {kind.split(" | ")[0] for kind in got["cuts"]}
    for kind, cuts in got["cuts"].items():
        assert np.array(cuts) == within("causal", np.array(like["cuts"][kind]), like["logit"]), kind


@pytest.mark.parametrize("name", ["creatures", "cifar10"])
def test_what_the_evidence_says_is_in_the_numbers(name):
    found = json.loads((EXPECTED / f"causal-{name}.json").read_text())
    kinds = found["kinds"]
    for word in causal.PARTITIONS:
        thin, deep = kinds[f"Mass | {word} | top 1"], kinds[f"Mass | {word} | all"]
        assert thin["value"]["pearson"][0] > 0.95
        assert deep["frozen"]["pearson"][0] > deep["value"]["pearson"][0]
    assert found["within"]["top 1"][0] > found["within"]["all"][0]
