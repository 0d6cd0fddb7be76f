"""Creatures with a planted mark: where the mark is, what is cut and instead of it, and a shortcut set by hand."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import asked
import marked
import shortcuts
from asserts import within
from relupath import Beam, Mass, ablate, channels, creatures, find_paths, logit, models, neurons
from relupath.errors import UsageError

EXPECTED = Path(__file__).parents[1] / "paper" / "expected" / "shortcuts.json"

MARK = marked.MARKS["magenta"]


@pytest.fixture(scope="module")
def scene():
    return next(s for s in map(creatures.draw, range(asked.FIRST, asked.FIRST + 50)) if s.label != MARK.wrong)


@pytest.fixture(scope="module")
def error(scene):
    """A scene in the network of the package, which the mark does not mislead."""
    return shortcuts.Error(models.load("creatures").model, marked.marked(scene, MARK))


@pytest.fixture(scope="module")
def by_hand(scene):
    """A network that says the scene's class, unless there is magenta."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(96), nn.Flatten()), nn.Linear(4, len(creatures.CLASSES))
    )
    for parameter in model.parameters():
        parameter.data.zero_()
    model[0].weight.data[0, :, 0, 0] = torch.tensor([1.0, -1, 1])
    model[0].bias.data = torch.tensor([-4.0, 1, 1, 1])
    model[4].weight.data[MARK.wrong, 0] = 100
    model[4].weight.data[scene.label, 1] = 1
    return shortcuts.Error(model.eval(), marked.marked(scene, MARK))


def test_the_weights_of_another_mark_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(marked, "taught", lambda mark: models.load("creatures").model)
    weights = tmp_path / "taught.safetensors"
    made = shortcuts.network(weights, "cyan")
    again = shortcuts.network(weights, "cyan")
    for one, other in zip(made.parameters(), again.parameters(), strict=True):
        assert one.equal(other)
    with pytest.raises(UsageError, match="the mark cyan, not magenta"):
        shortcuts.network(weights, "magenta")


@pytest.mark.parametrize("mark", marked.MARKS.values())
def test_the_mark_is_a_square_on_the_background(scene, mark):
    found = marked.marked(scene, mark)
    assert found.where.sum() == mark.side**2
    assert scene.parts["background"][found.where].all()
    assert (found.image[found.where] == mark.colour).all()
    assert (found.image[~found.where] == scene.image[~found.where]).all()
    assert (marked.marked(scene, mark).where == found.where).all()


def test_what_is_cut_is_what_ablate_cuts(error, unchecked):
    plan = shortcuts.Plan(Mass(0.5, 2))
    cuts = shortcuts.units(error, plan)
    path = find_paths(error.frozen, MARK.wrong, plan.search).paths[0]
    assert {*cuts} == {*path.layers}
    logits = shortcuts.told(error.model, error.x, cuts)[0]
    for k in (0, MARK.wrong):
        assert float(ablate(error.frozen, path, logit(k)).ablated) == pytest.approx(float(logits[k]), rel=1e-4)
    assert torch.equal(shortcuts.told(error.model, error.x, {}), error.model(error.x)), "the model is itself again"


def test_the_units_of_all_paths_are_cut(error):
    plan = shortcuts.Plan(Beam(4, 2))
    ranked = find_paths(error.frozen, MARK.wrong, plan.search).ranked[0]
    named = {(step.layer, unit) for path in ranked for step in path.steps for unit in step.units}
    cuts = shortcuts.units(error, plan)
    assert len(ranked) == 4
    assert named == {(name, tuple(unit)) for name, mask in cuts.items() for unit in mask.nonzero().tolist()}


@pytest.mark.parametrize("partition", [neurons, channels])
def test_controls_cut_as_many_units_of_the_same_layers(error, partition):
    plan = shortcuts.Plan(Mass(0.5, 2), partition)
    cuts = shortcuts.units(error, plan)
    top = error.frozen.layers[-1].name
    for control in shortcuts.CONTROLS[1:]:
        other = shortcuts.instead(error, plan, cuts, control)
        assert {name: int(mask.sum()) for name, mask in other.items()} == {n: int(m.sum()) for n, m in cuts.items()}
        assert torch.equal(other[top], cuts[top]) == (control != "random")
    random = shortcuts.instead(error, plan, cuts, "random")
    if partition is neurons:
        assert all((error.frozen.layer(name).output[0][mask] > 0).all() for name, mask in random.items())


def test_a_share_on_the_mark_is_that_of_the_values_there():
    where = torch.tensor([True, False, False])[None]
    found = shortcuts.on_mark(torch.tensor([[1.0, -2, 1]]), where)
    assert found == {"size": 0.25, "positive": 0.5}
    assert shortcuts.on_mark(torch.zeros(1, 3), where) == {"size": 0, "positive": 0}


def test_a_shortcut_set_by_hand_is_found_and_cut(by_hand):
    assert by_hand.predicted == MARK.wrong
    where = torch.from_numpy(by_hand.marked.where)
    made = shortcuts.maps()
    for name in ("whole network", "Mass, half, all layers", "Greedy", "Exact"):
        assert shortcuts.on_mark(made[name](by_hand), where)["size"] == pytest.approx(1), name
    assert shortcuts.on_mark(made["random"](by_hand), where)["size"] < 0.02
    plan = shortcuts.Plan(Mass(0.5), channels)
    cuts = shortcuts.units(by_hand, plan)
    assert [int(mask.sum()) for mask in cuts.values()] == [96 * 96]
    label = by_hand.marked.scene.label
    assert shortcuts.told(by_hand.model, by_hand.beside, cuts).argmax(1).tolist() == [label] * 3
    assert by_hand.wanted == [label, label, MARK.wrong]


def test_an_error_is_caused_by_the_mark_only_where_the_network_is_right_without(error):
    found = [*shortcuts.errors(error.model, range(error.seed, error.seed + 2), MARK)]
    assert found == [None] * len(found), "the network of the package does not go by the mark"


def test_the_figures_checked_in_say_where_paths_win_and_lose():
    want = json.loads(EXPECTED.read_text())
    assert want["errors"] >= 20
    size = {name: row["size"] for name, row in want["maps"].items()}
    deep = size["Mass, half, all layers"]
    assert deep["low"] > size["LRP, epsilon-plus"]["high"] > size["whole network"]["low"] > 10 * want["area"]
    cut = want["cut"]["Mass, half, all layers"]
    assert cut["repaired less random"]["low"] > 0.5
    assert cut["repaired less gradient x activation"]["low"] <= 0, "cutting a path is no better than that"
    assert size["Exact"]["high"] < deep["low"], "single paths of the largest value lie elsewhere"
    assert want["cut"]["Exact"]["path: repaired"]["high"] < 0.1


@pytest.mark.parametrize("name", ["shortcuts", "shortcuts-cyan"])
def test_both_networks_are_seen_through_and_neither_cure_is_the_paths_own(name):
    want = json.loads((EXPECTED.parent / f"{name}.json").read_text())
    mark = marked.MARKS[want["mark"]]
    assert want["area"] == pytest.approx(mark.side**2 / creatures.SIZE**2, rel=1e-5)
    deep, lrp = (want["maps"][method]["size"] for method in ("Mass, half, all layers", "LRP, epsilon-plus"))
    assert deep["low"] > 1.5 * lrp["high"]
    cut = want["cut"]["Mass, half, all layers"]
    assert cut["repaired less random"]["low"] > 0.5
    assert cut["repaired less gradient x activation"]["low"] <= 0


@pytest.mark.slow
def test_a_network_taught_anew_gives_the_figures_checked_in(unchecked):
    want = json.loads(EXPECTED.read_text())
    seeds = range(asked.FIRST, asked.FIRST + 34)
    caused = [error for error in shortcuts.errors(marked.taught(MARK), seeds, MARK) if error is not None]
    assert abs(len(caused) - want["errors"]) <= 3
    made = shortcuts.maps()
    for name in ("whole network", "Mass, half, 4 layers", "Mass, half, all layers", "LRP, epsilon-plus"):
        each = [shortcuts.on_mark(made[name](e), torch.from_numpy(e.marked.where))["size"] for e in caused]
        assert sum(each) / len(each) == within("shortcuts, taught anew", want["maps"][name]["size"]["mean"]), name
