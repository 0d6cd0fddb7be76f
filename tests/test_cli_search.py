"""The command line's searches, partitions, trees and causal checks: numbers add up, wrong usage is one sentence."""

import json
import runpy
import sys

import pytest
from PIL import Image

import relupath
from relupath import plans, runs
from test_cli import place, run  # noqa: F401  the fixture

MINE = ("photo.png", "--model", "mine.py:net", "--quiet")


@pytest.mark.parametrize(
    "asked",
    [
        ("--search", "selective", "--width", "3", "--classes", "3"),
        ("--search", "mass", "--share", "0.3", "--partition", "channels"),
        ("--search", "beam", "--k", "2", "--depth", "1"),
        ("--search", "best-first", "--budget", "4", "--partition", "locations"),
        ("--search", "exact", "--k", "3"),
        ("--search", "exact", "--partition", "channels"),
        ("--ablate", "--partition", "heads:5", "--depth", "1"),
    ],
    ids=lambda asked: " ".join(asked),
)
def test_every_search_explains(place, asked):  # noqa: F811
    result = run(*MINE, *asked, "--json", "n.json", "-o", "x.png")
    assert result.exit_code == 0, result.output
    assert (place / "x.png").stat().st_size > 10_000
    numbers = json.loads((place / "n.json").read_text())
    for row in numbers["rows"]:
        several = asked[1] in ("beam", "best-first", "exact")
        values = [part["value"] for part in row["parts"]]
        assert row["several"] == (several and any(len(r["parts"]) > 1 for r in numbers["rows"]))
        for part in row["parts"]:
            assert part["value"] == pytest.approx(part["weight_part"] + part["bias"], abs=1e-4)
            assert (part["ablated"] is not None) == ("--ablate" in asked)
        if several and asked[1] != "best-first":
            assert row["held"] == pytest.approx(sum(values) / row["whole"]["value"], rel=1e-3)
        elif not several and values:
            assert row["held"] == pytest.approx(values[-1] / row["whole"]["value"], rel=1e-3)
    assert "% of the value held" in result.output
    assert ("without" in result.output) == ("--ablate" in asked)


def test_the_tree_adds_up(place):  # noqa: F811
    result = run(
        *MINE, "--tree", "--tree-depth", "2", "--tree-width", "2", "--partition", "channels", "--json", "n.json"
    )
    assert result.exit_code == 0, result.output
    numbers = json.loads((place / "n.json").read_text())
    with Image.open(place / "photo.explained.tree.png") as figure:
        assert figure.size[0] >= 1200
    assert "wrote photo.explained.tree.png" in result.output
    tree = relupath.Node.from_dict(numbers["tree"])
    assert str(tree) in result.output
    assert tree.value == pytest.approx(numbers["rows"][0]["whole"]["value"], rel=1e-5)
    assert sum(leaf.value for leaf in tree.leaves()) == pytest.approx(tree.value, rel=1e-4)
    assert max(len(leaf.path) for leaf in tree.leaves()) == 2


def test_a_tree_figure_that_cannot_be_written_is_refused_at_once(place):  # noqa: F811
    assert run(*MINE, "-o", "f.svg").exit_code == 0
    assert not (place / "f.tree.svg").exists()
    (place / "f.svg").write_text("precious")
    (place / "f.tree.svg").mkdir()
    result = run(*MINE, "--tree", "-o", "f.svg")
    assert result.exit_code == 1
    assert "f.tree.svg cannot be written" in result.output
    assert (place / "f.svg").read_text() == "precious"


def test_bias_and_tree_draw_a_figure_each(place):  # noqa: F811
    result = run(*MINE, "--tree", "--bias", "--bare", "-o", "f.pdf")
    assert result.exit_code == 0, result.output
    for name in ("f.pdf", "f.bias.pdf", "f.tree.pdf"):
        assert (place / name).read_bytes().startswith(b"%PDF")
        assert f"wrote {name}" in result.output


def test_where_the_network_errs_the_wrong_class_comes_first(place):  # noqa: F811
    """The user names the right class: what speaks for the predicted one against it stands on top, checked."""
    best = json.loads(_numbers(place))["best"]
    right, wrong = best[-1], best[0]
    numbers = json.loads(_numbers(place, "--target", right["name"]))
    roles = [row["role"] for row in numbers["rows"]]
    assert roles == ["error", "target", "plausible"]
    assert numbers["rows"][0]["title"].startswith(f"{wrong['name']} ")
    assert numbers["rows"][0]["whole"]["value"] == pytest.approx(wrong["logit"] - right["logit"], rel=1e-4)
    assert all(part["ablated"] is not None for part in numbers["rows"][0]["parts"])
    assert all(part["ablated"] is None for row in numbers["rows"][1:] for part in row["parts"])
    named = json.loads(_numbers(place, "--target", right["name"], "--against", wrong["name"]))
    assert [row["role"] for row in named["rows"]] == ["target", "against", "contrast"]


@pytest.mark.parametrize("asked", [("--gap",), ("--search", "exact", "--k", "2"), ("--search", "mass")])
def test_how_far_greedy_is_from_the_best_path(place, asked):  # noqa: F811
    result = run(*MINE, *asked, "--dtype", "float64", "--json", "n.json")
    assert result.exit_code == 0, result.output
    rows = json.loads((place / "n.json").read_text())["rows"]
    if "mass" in asked:
        assert [row["gap"] for row in rows] == [None] * 3
        return
    classifier = relupath.models.load("mine.py:net", dtype="float64")
    x = classifier.prepare(relupath.images.read(place / "photo.png").image)[None]
    frozen = relupath.freeze(classifier.model, x)
    for row, word in zip(rows[:2], ("target", "plausible"), strict=True):
        target = json.loads((place / "n.json").read_text())[word]["index"]
        best = relupath.find_paths(frozen, target, relupath.Exact()).values[0][0]
        greedy = relupath.find_paths(frozen, target, relupath.Greedy())
        assert row["gap"]["exact"] == pytest.approx(best, rel=1e-9)
        if len(greedy.paths[0]) == 2:
            assert row["gap"]["greedy"] == pytest.approx(greedy.values[0][0], rel=1e-9)
            assert f"greedy reaches {100 * greedy.values[0][0] / best:.3g} %" in result.output
        else:
            assert row["gap"]["greedy"] is None
            assert "no complete path to compare" in result.output


@pytest.mark.parametrize("search", ["greedy", "exact", "beam", "mass"])
@pytest.mark.parametrize("more", [("--target", "1"), ("--ablate",)], ids=" ".join)
def test_a_row_of_which_nothing_is_found_says_so(place, search, more):  # noqa: F811
    """Also beside rows with a path, where the network errs or the causal check is asked for."""
    asked = ("photo.png", "--model", "mine.py:against", "--quiet", "-o", "f.png", "--json", "n.json")
    result = run(*asked, "--search", search, *more)
    assert result.exit_code == 0, result.output
    rows = json.loads((place / "n.json").read_text())["rows"]
    nothing = [row for row in rows if not row["parts"]]
    assert 0 < len(nothing) < 3
    assert all(row["held"] == 0 for row in nothing)
    assert sum("; no path" in line for line in result.output.splitlines()) == len(nothing)
    assert "logit 0" not in result.output.replace("logit 0 <", "")


def test_a_network_without_layers_has_no_path(place):  # noqa: F811
    result = run("photo.png", "--model", "mine.py:flat", "--quiet")
    assert result.exit_code == 2
    assert "there is no hidden layer" in result.output


def test_of_a_value_of_zero_no_share_is_held(place):  # noqa: F811
    result = run("photo.png", "--model", "mine.py:tie", "--quiet", "-o", "f.png", "--json", "n.json")
    assert result.exit_code == 0, result.output

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    rows = json.loads((place / "n.json").read_text(), parse_constant=refuse)["rows"]
    assert [row["held"] is None for row in rows] == [False, False, True]


def _numbers(place, *asked):  # noqa: F811
    result = run(*MINE, *asked, "--json", "n.json")
    assert result.exit_code == 0, result.output
    return (place / "n.json").read_text()


def test_the_causal_check_is_that_of_the_library(place):  # noqa: F811
    numbers = json.loads(_numbers(place, "--ablate", "--dtype", "float64"))
    classifier = relupath.models.load("mine.py:net", dtype="float64")
    x = classifier.prepare(relupath.images.read(place / "photo.png").image)[None]
    frozen = relupath.freeze(classifier.model, x)
    for row, target in zip(numbers["rows"][:2], (numbers["target"], numbers["plausible"]), strict=True):
        for part in row["parts"]:
            path = relupath.Path.from_dict(part["path"])
            expected = relupath.ablate(frozen, path, target["index"]).ablated
            assert part["ablated"] == pytest.approx(float(expected[0]), rel=1e-9)


@pytest.mark.parametrize(("asked", "said"), [
    (("--width", "3"), "'width' does not belong to the search greedy"),
    (("--search", "beam", "--share", "0.5"), "'share' does not belong to the search beam"),
    (("--partition", "colours"), "no partition 'colours': expected neurons, channels, locations, axis:N or heads:N"),
    (("--partition", "heads:x"), "no partition 'heads:x'"),
    (("--partition", "channels:2"), "no partition 'channels:2'"),
    (("--search", "guess"), "'guess' is not one of"),
    (("--search", "beam", "--k", "0"), "k must be at least 1; got 0"),
    (("--search", "exact", "--k", "-1"), "k must be at least 1; got -1"),
    (("--search", "mass", "--share", "0"), "share must be above 0 and at most 1; got 0.0"),
    (("--search", "selective", "--width", "-3"), "width must be at least 1; got -3"),
    (("--search", "selective", "--classes", "1"), "classes must be at least 2; got 1"),
    (("--search", "best-first", "--budget", "0"), "budget must be at least 1; got 0"),
    (("--partition", "heads:0"), "no partition 'heads:0'"),
    (("--tree-depth", "9"), "--tree-depth and --tree-width belong to --tree"),
    (("--tree-width", "3"), "--tree-depth and --tree-width belong to --tree"),
    (("-o", "photo.png"), "the figure would overwrite the photo photo.png"),
    (("--search", "mass", "--share", "2"), "share must be above 0 and at most 1; got 2.0"),
    (("--partition", "heads:7"), "cannot be cut into 7 blocks"),
    (("--layers", "0,0"), "a layer is named twice"),
])  # fmt: skip
def test_wrong_usage_is_one_sentence(place, asked, said):  # noqa: F811
    result = run(*MINE, *asked)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not list(place.glob("*.explained.png"))


def test_numbers_out_of_range_are_refused_before_the_model_is_loaded(place):  # noqa: F811
    result = run("photo.png", "--model", "mine.py:raises", "--search", "beam", "--k", "0")
    assert result.exit_code == 2
    assert "k must be at least 1" in result.output


@pytest.mark.parametrize("module", ["relupath", "relupath.cli"])
def test_the_package_is_the_command(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["relupath", "--version"])
    monkeypatch.delitem(sys.modules, "relupath.cli", raising=False)  # as in a process of its own
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0
    assert relupath.__version__ in capsys.readouterr().out


def test_the_command_line_and_python_ask_alike():
    assert runs.Plan().search == relupath.Greedy()
    words = set(plans.SEARCHES)
    assert {"greedy", "selective", "mass", "beam", "best-first", "exact"} == words
