"""Creatures whose parts are known: purity and coverage are what they say, families are made as told, figures anew."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import asked
import families
import parts
from asserts import within
from nets import randomise
from relupath import Beam, channels, creatures, models, neurons
from relupath._contributions import contributions

EXPECTED = Path(__file__).parents[1] / "paper" / "expected" / "parts.json"


def near(numbers, within=1e-6):
    return pytest.approx(numbers, abs=within)


@pytest.fixture
def small():
    """A network of 8 channels on a picture of 12 x 12."""
    convolutions = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    x = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return families.Picture(randomise(model, 0).float().eval(), x, 3)


@pytest.fixture(scope="module")
def scene():
    return creatures.draw(asked.FIRST + 7)


def test_pointing_looks_at_the_largest_pixel_and_mass_at_what_is_positive():
    inside = torch.tensor([[True, False], [False, False]])
    assert parts.pointing(torch.tensor([[3.0, 1], [-9, 0]]), inside) == {"pointing": 1, "mass": 0.75}
    assert parts.pointing(torch.tensor([[1.0, 3], [-9, 0]]), inside) == {"pointing": 0, "mass": 0.25}
    assert parts.pointing(-torch.ones(2, 2), inside)["mass"] == 0


def test_purity_is_the_largest_share_of_one_part():
    masks = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 1, 0]]]).bool()
    found = torch.tensor([[[1.0, -2, 3, 4]], [[0, 0, -5, 0]], [[0, 0, 0, 1]]])
    best, which = parts.purity(found, masks)
    assert best.tolist() == near([0.3, 1, 0])
    assert which[1] == 1
    among, _ = parts.purity(found, masks, masks.any(0))
    assert among.tolist() == near([0.5, 1, 0])


def test_a_map_is_moved_to_the_creature_and_stays_itself(scene):
    creature = torch.from_numpy(~scene.parts["background"])
    found = torch.zeros(20, 96, 96)
    found[:, 3, 4], found[:, 4, 4] = -2, 1
    moved = parts.moved(found, creature, torch.Generator().manual_seed(0))
    assert torch.equal(moved.flatten(1).sort().values, found.flatten(1).sort().values)
    peaks = moved.abs().flatten(1).argmax(1)
    assert creature.flatten()[peaks].all()
    assert len(set(peaks.tolist())) > 10


def test_a_family_that_is_the_parts_is_pure_and_covers_and_one_that_is_the_picture_does_not(scene):
    generator = torch.Generator().manual_seed(0)
    decisive = creatures.parts_of(scene.label)
    exact = torch.stack([torch.from_numpy(scene.parts[part]).float() for part in decisive])
    row = parts.of_family(exact, scene, generator)
    assert [row[word] for word in ("purity", "among_parts", "coverage", "decisive")] == near([1, 1, 1, 1])
    assert row["gain"] > 0.3
    assert row["coverage_moved"] < 1
    assert parts.of_family(exact[:2], scene, generator)["coverage"] == near(2 / 3)
    everywhere = parts.of_family(torch.ones(1, 96, 96), scene, generator)
    largest = max(scene.parts[part].mean() for part in creatures.PARTS[1:])
    assert everywhere["purity"] == near(largest)
    assert everywhere["coverage"] == everywhere["gain"] == 0
    assert everywhere["extent"] == near(0.9, 0.001)
    assert set(parts.of_family(torch.zeros(2, 96, 96), scene, generator).values()) == {0}


def test_clusters_find_three_heaps_and_cut_the_whole_map(small, monkeypatch):
    heaps = torch.randn(90, 2) * 0.1 + torch.tensor([[0.0, 0], [5, 0], [0, 5]]).repeat(30, 1)
    nearest = families.k_means(heaps, torch.rand(90), 3, torch.Generator().manual_seed(0))
    assert [len(set(nearest[k::3].tolist())) for k in range(3)] == [1, 1, 1]
    assert len(set(nearest[:3].tolist())) == 3
    found = families.clusters(small, 1.0)
    assert found.shape == (8, 12, 12)
    assert torch.allclose(found.sum(0), contributions(small.frozen)[0].sum(1)[0])
    assert ((found != 0).sum(0) <= 1).all()


def test_paths_that_part_at_the_top_are_the_largest_units_there(small):
    wide = families.branches(small, 1, channels)
    beam = families.of_search(small, Beam(8, 1), channels)
    sums = [sorted(found.sum((1, 2)).tolist()) for found in (wide, beam)]
    assert len(beam) <= len(wide) <= 8
    for value in sums[1]:
        assert any(value == near(other, 1e-4) for other in sums[0])
    assert len(families.branches(small, 2, neurons)) == 8


def test_conditions_on_all_channels_add_up_to_the_relevance_without(small):
    found = families.of_channels(small, "2")
    attribution = families.CondAttribution(small.model)
    whole = attribution(small.x.clone().requires_grad_(), [{"y": [small.predicted]}], families.EpsilonPlusFlat())
    assert torch.allclose(found.sum(0), whole.heatmap[0], atol=1e-4 * float(whole.heatmap.abs().max()))


def test_random_units_are_units_through_which_something_goes(small):
    found = families.at_random(small, 1)
    assert len(found) == 8
    assert (found.abs().sum((1, 2)) > 0).all()
    assert (found != 0).float().mean() < 0.3, "one neuron sees five by five pixels"


@pytest.mark.parametrize(
    "name", ["whole network", "clusters by place", "Beam, neurons, 1 layer", "branches, neurons, 2 layers"]
)
def test_a_family_of_the_first_scene_gives_the_numbers_checked_in(name, unchecked):
    want = json.loads(EXPECTED.read_text())["first"]
    scene = creatures.draw(want["seed"])
    picture = families.Picture(models.load("creatures").model, creatures.preprocess(scene.image)[None], scene.seed)
    found = families.families(parts.DEPTHS, parts.CONVOLUTIONS)[name](picture)
    assert parts.of_family(found, scene, picture.generator) == within("parts", want["families"][name])


def test_maps_of_the_first_scene_give_the_numbers_checked_in(unchecked):
    want = json.loads(EXPECTED.read_text())["first"]
    scene = creatures.draw(want["seed"])
    picture = families.Picture(models.load("creatures").model, creatures.preprocess(scene.image)[None], scene.seed)
    inside = torch.from_numpy(np.any([scene.parts[part] for part in creatures.parts_of(scene.label)], axis=0))
    made = parts.singles()
    for name in ("whole network", "Mass, half, all layers", "LRP, epsilon-plus", "random"):
        assert parts.pointing(made[name](picture), inside) == within("parts", want["maps"][name]), name


def test_the_figures_checked_in_say_where_paths_win_and_lose():
    want = json.loads(EXPECTED.read_text())
    assert want["scenes"] >= 30
    mass = {name: row["mass"] for name, row in want["maps"].items()}
    peers = ("LRP, epsilon-plus", "Integrated Gradients", "Saliency", "SmoothGrad", "Guided Grad-CAM", "Grad-CAM")
    assert mass["Mass, half, all layers"]["low"] > max(mass[name]["high"] for name in peers)
    assert mass["random"]["low"] < want["area"]["mean"] < mass["random"]["high"]
    made = want["families"]
    assert made["Exact, neurons"]["gain"]["high"] < 0, "elsewhere on the creature the same maps were purer"
    coverage = {name: row["coverage"] for name, row in made.items()}
    paths = [
        row["high"] for name, row in coverage.items() if name.startswith(("Beam", "branches", "BestFirst", "Exact"))
    ]
    assert coverage["clusters by place and colour"]["low"] > max(paths), "paths lose here"
