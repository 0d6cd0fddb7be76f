"""The scripts of the figures give the numbers that are checked in beside them, and what they call those is that."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import asked
import figure1
import figure2
import figure3
from asserts import within
from relupath import creatures, images, models, neurons
from relupath.elsewhere import elsewhere

EXPECTED = Path(__file__).parents[1] / "paper" / "expected"
FEW = 4


@pytest.fixture(scope="module")
def classifier():
    return models.load("creatures")


@pytest.fixture(scope="module")
def pictures():
    return [images.scene(asked.FIRST + number) for number in range(FEW)]


def expected(name):
    return json.loads((EXPECTED / f"{name}.json").read_text())


def near(numbers):
    """A hundredth apart at most: round-off in float32, and nothing else."""
    return pytest.approx(numbers, rel=0.01, abs=1e-6)


def test_figure_1_on_a_few_scenes_is_a_corner_of_the_one_checked_in(classifier, pictures):
    found, want = figure1.measured(classifier, pictures), expected("figure1")
    assert [*found["models"]] == [*want["models"]]
    assert found["pictures"] == want["pictures"][:FEW]
    assert found["classes"] == want["classes"][:FEW]
    for name, model in found["models"].items():
        like = want["models"][name]
        values = np.array(like["values"])[:FEW, :FEW]
        scale = abs(values).max()
        assert np.array(model["values"]) / scale == within("figure1, by the largest", values / scale), name
        assert np.array(model["bias"]) / scale == within(
            "figure1, by the largest", np.array(like["bias"][:FEW]) / scale
        ), name


def test_figure_1_of_the_whole_network_is_what_elsewhere_gives(classifier, pictures):
    found = figure1.measured(classifier, pictures)["models"][figure1.WHOLE]
    assert np.array(found["values"]) == near(elsewhere(classifier, pictures).values[0])


@pytest.mark.parametrize("name", ["figure1", "figure1-squeezenet"])
def test_what_figure_1_says_is_that_of_the_inputs_checked_in(name):
    want = expected(name)
    for model in want["models"].values():
        bias, own = np.array(model["bias"]), np.array(model["own"])
        assert model["each"]["bias_share"] == near([*(abs(bias) / (abs(own - bias) + abs(bias)))])
        for word, numbers in model["each"].items():
            some = [number for number in numbers if number is not None]
            if not some:
                assert model[word] is model["intervals"][word] is None
                continue
            middle = model["intervals"][word]
            assert (
                model[word] == near(middle["middle"]) == near((np.mean if word == "tells_class" else np.median)(some))
            )
            assert middle["low"] <= middle["middle"] <= middle["high"]
        if "values" in model:
            got = figure1.told(np.array(model["values"]), bias, want["classes"])
            assert {word: got[word] for word in figure1.WORDS} == near({word: model[word] for word in figure1.WORDS})


def test_a_model_that_says_the_same_everywhere_is_called_biased():
    bias = np.array([5.0, 5, 5, 5])
    same = figure1.told(np.full((4, 4), 5.0) + 1e-9 * np.arange(4), bias, [0, 0, 1, 1])
    assert same["bias_share"] == near(1)
    assert same["same_elsewhere"] == near(1)
    own = figure1.told(np.array([[5.0, 4, 0, 0], [4, 5, 0, 1], [0, 0, 5, 4], [1, 0, 4, 5]]), 0 * bias, [0, 0, 1, 1])
    assert own["bias_share"] == 0
    assert own["tells_class"] == 1
    assert own["stands_out"] == near((5 - 5 / 3) / np.std([4, 0, 1]) / 2 + (5 - 4 / 3) / np.std([4, 0, 0]) / 2)
    alone = figure1.told(np.eye(3), np.zeros(3), [0, 1, 2])
    assert alone["tells_class"] is None, "no two inputs are of one class"
    assert alone["stands_out"] is None, "the others are all alike"


def test_of_many_inputs_no_matrix_is_written():
    values = np.random.default_rng(0).normal(size=(figure1.MATRICES + 1,) * 2)
    assert "values" not in figure1.told(values, values[0], range(len(values)))
    assert "values" in figure1.told(values[1:, 1:], values[0, 1:], range(len(values) - 1))


def test_a_middle_is_a_median_in_an_interval_that_narrows():
    few, many = (asked.middle(np.random.default_rng(1).normal(3, 1, count)) for count in (20, 2000))
    for found in (few, many):
        assert found["low"] < found["middle"] < found["high"]
        assert found["low"] < 3 < found["high"]
    assert many["high"] - many["low"] < (few["high"] - few["low"]) / 5
    assert many["high"] - many["low"] == pytest.approx(2 * 1.96 * (np.pi / 2 / 2000) ** 0.5, rel=0.2), "that of 95 %"
    assert asked.middle(np.array([])) is None


def test_figure_2_gives_the_rows_checked_in(classifier, pictures):
    for picture, want in zip(pictures, expected("figure2")["rows"], strict=False):
        got = figure2.measured(figure2.explained(classifier, picture, neurons))
        assert [*got] == [*want]
        for word, value in got.items():
            assert value == (
                want[word]
                if isinstance(value, (str, int)) or word == "parts_that_differ"
                else within("figure2", want[word])
            )


def test_figure_2_knows_in_which_parts_the_two_classes_differ():
    for row in expected("figure2")["rows"]:
        one, other = (creatures.parts_of(creatures.CLASSES.index(row[role])) for role in ("target", "plausible"))
        assert set(row["parts_that_differ"]) == set(one) - set(other)
        assert row["target_logit"] > row["plausible_logit"]


def test_figure_3_gives_the_rows_checked_in(classifier, pictures):
    for picture, want in zip(pictures[:2], expected("figure3")["rows"], strict=False):
        got = figure3.measured(figure3.explained(classifier, picture, neurons))
        assert got["tree_error"] < 1e-5
        assert got["layers"] == want["layers"]
        assert np.log(got["held"]) == within("figure3, log of held", np.log(want["held"]))
        assert got["extent"] == within("figure3", want["extent"])
        assert got["alike"] == within("figure3", want["alike"])


def test_a_photo_gives_the_rows_checked_in(data, unchecked):
    classifier = models.load("torchvision/squeezenet1_0", data / "squeezenet1_0_imagenet.safetensors")
    picture = images.read(data / "imagenet" / "000_tench.jpg")
    like = expected("figure2-squeezenet")["rows"][0]
    got = figure2.measured(figure2.explained(classifier, picture, neurons))
    for word in ("target", "plausible", "units_shared"):
        assert got[word] == like[word]
    for word in ("target_logit", "target_bias", "plausible_logit", "plausible_bias", "alike"):
        assert got[word] == within("figure2", like[word]), word
    got, like = (
        figure3.measured(figure3.explained(classifier, picture, neurons)),
        expected("figure3-squeezenet")["rows"][0],
    )
    assert got["layers"] == like["layers"]
    assert got["extent"] == within("figure3", like["extent"])
    assert np.log(np.abs(got["held"])) == within("figure3, log of held", np.log(np.abs(like["held"])))


@pytest.mark.parametrize(("name", "script"), [("figure2", figure2), ("figure3", figure3)])
def test_on_photos_the_medians_are_those_of_the_rows_of_all_five_hundred(name, script):
    want = expected(f"{name}-squeezenet")
    assert len({row["picture"] for row in want["rows"]}) == 500
    medians = script.told(want["rows"])["medians"]
    assert [*medians] == [*want["medians"]]
    for word, value in medians.items():
        assert value == pytest.approx(want["medians"][word], rel=1e-4), word


def test_the_extent_counts_the_fewest_pixels_that_hold_nine_tenths():
    assert figure3.extent(np.array([[0.0, 8, -1], [0.5, 0.5, 0]])) == near(2 / 6)
    assert figure3.extent(np.ones((10, 10))) == near(0.9)
    assert figure3.extent(np.zeros((2, 2))) == 0


def test_thin_paths_show_more_than_deep_ones():
    medians = expected("figure3")["medians"]
    assert medians["tree_error"] < 1e-5
    for word in ("held", "extent"):
        assert medians[word] == sorted(medians[word], reverse=True)


@pytest.mark.parametrize("script", [figure1, figure2, figure3])
def test_the_scripts_run_on_pictures_of_ones_own(script, tmp_path, monkeypatch, unchecked):
    count = 3 if script is figure1 else 1
    for number in range(count):
        images.scene(number).image.save(tmp_path / f"{number}.png")
    output = tmp_path / "figure1.png" if script is figure1 else tmp_path / "drawn"
    words = ["--photos", tmp_path, "--count", count, "--json", tmp_path / "found.json", "--output", output]
    monkeypatch.setattr(sys, "argv", ["figure", *map(str, words)])
    script.main()
    found = json.loads((tmp_path / "found.json").read_text())
    names = found["pictures"] if script is figure1 else [row["picture"] for row in found["rows"]]
    assert names == [f"{number}.png" for number in range(count)]
    assert output.is_file() or set(names) <= {file.name for file in output.iterdir()}


def test_numbers_are_written_a_row_a_line(tmp_path):
    numbers = {"a": [[1.23456789, 2], [3, 4]], "b": {"c": "x", "d": None}, "e": []}
    asked.write(tmp_path / "some.json", numbers)
    text = (tmp_path / "some.json").read_text()
    assert json.loads(text) == {"a": [[1.23457, 2], [3, 4]], "b": {"c": "x", "d": None}, "e": []}
    assert text.splitlines()[2] == "  [1.23457, 2],"
