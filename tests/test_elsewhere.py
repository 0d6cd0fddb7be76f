"""Linear models of some pictures, applied to others, and the figures of biases: numbers against the models' own."""

import dataclasses
import json
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nets import randomise
from relupath import Path, draw, freeze, images, linear_model, runs
from relupath.elsewhere import elsewhere
from relupath.errors import UsageError
from relupath.images import Picture
from relupath.models import Classifier, load
from test_cli import place, run  # noqa: F401  the fixture


def to_tensor(image):
    return torch.tensor(np.asarray(image) / 127.5 - 1).permute(2, 0, 1)


@pytest.fixture
def classifier():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(294, 5)
    )
    return Classifier("net", randomise(model, 0), to_tensor, tuple("abcde"), dtype=torch.float64)


def picture(seed, size=20):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Picture(Image.fromarray(pixels), f"noise {seed}")


PATHS = (
    Path.of([("4", (1, None, None))]),
    Path.of([("1", [(0, None, None), (2, None, None)]), ("4", (3, None, None))]),
)


@pytest.mark.parametrize("target", [None, 2, "d"])
def test_every_entry_is_the_linear_model_of_one_picture_at_another(classifier, target):
    pictures = [picture(seed) for seed in range(3)]
    x = torch.stack([classifier.prepare(p.image) for p in pictures])
    found = elsewhere(classifier, pictures, target, PATHS)
    logits = classifier.model(x).detach()
    wanted = logits.argmax(1).tolist() if target is None else [{2: 2, "d": 3}[target]] * 3
    assert found.targets == tuple("abcde"[c] for c in wanted)
    assert found.titles == ("whole network", *map(str, PATHS))
    for i, c in enumerate(wanted):
        frozen = freeze(classifier.model, x[i : i + 1])
        for p, path in enumerate((None, *PATHS)):
            model = linear_model(frozen, c, path)
            expected = (x * model.weight).flatten(1).sum(1) + model.bias
            assert found.values[p, i] == pytest.approx(expected.numpy())
        assert found.logits[i] == pytest.approx(logits[:, c].numpy())
    assert np.diagonal(found.values[0]) == pytest.approx(np.diagonal(found.logits))
    assert abs(found.values[0] - found.logits).max() > 0.01, "elsewhere the network is another"


def test_pictures_of_several_sizes_and_none_are_refused(classifier):
    with pytest.raises(UsageError, match=r"in one size; got \[3, 20, 20\], \[3, 14, 14\]"):
        elsewhere(classifier, [picture(0), picture(1, 14)])
    with pytest.raises(UsageError, match="got none"):
        elsewhere(classifier, [])


def numbers_of(axes):
    return [[float(t.get_text().replace(draw.MINUS, "-")) for t in axes.texts]]


def test_the_matrices_are_drawn_with_their_numbers_on_one_scale(classifier):
    found = elsewhere(classifier, [picture(seed) for seed in range(3)], paths=PATHS)
    fig = draw.elsewhere_figure(found)
    panels = [found.logits, *found.values]
    assert len(fig.axes) == len(panels)
    for axes, values in zip(fig.axes, panels, strict=True):
        assert numbers_of(axes)[0] == pytest.approx(values.ravel(), rel=1e-2)
        (image,) = axes.images
        assert np.array_equal(image.get_array(), values)
        assert image.get_clim() == fig.axes[0].images[0].get_clim()
        assert image.get_clim()[1] == -image.get_clim()[0] >= abs(values).max()


def test_the_bias_figures_maps_sum_to_their_numbers_on_one_scale(classifier, tmp_path):
    explanation = runs.explain(classifier, picture(0))
    fig = draw.bias_figure(explanation, bare=True)
    panels = [axes for axes in fig.axes if axes.images]
    assert len(panels) == 4 * 3
    for r, row in enumerate(explanation.rows):
        weights, bias, both, again = panels[4 * r : 4 * r + 4]
        whole = row.whole
        sums = [float(axes.images[0].get_array().sum()) for axes in (weights, bias, both, again)]
        assert sums == pytest.approx([whole.weight_part, whole.bias, whole.value, whole.bias])
        assert weights.images[0].get_clim() == bias.images[0].get_clim() == both.images[0].get_clim()
        assert row.origin.map.sum() == pytest.approx(whole.bias)
        assert sum(row.origin.layers.values()) == pytest.approx(whole.bias)
        assert row.origin.unplaced == pytest.approx(row.origin.layers["output"])
    limits = {panels[4 * r].images[0].get_clim() for r in range(3)}
    assert len(limits) == 1
    draw.save(fig, tmp_path / "bias.png")
    assert (tmp_path / "bias.png").read_bytes().startswith(b"\x89PNG")


def test_no_photo_is_drawn_in_a_bare_bias_figure(classifier):
    explanation = runs.explain(classifier, picture(0))
    with_photo, bare = (draw.bias_figure(explanation, bare=bare) for bare in (False, True))
    assert len(with_photo.axes) == len(bare.axes) + 1
    assert not any(np.array_equal(a.images[0].get_array(), explanation.shown) for a in bare.axes if a.images)
    assert dataclasses.is_dataclass(explanation)


# --- the command ---

MINE = ("--model", "mine.py:net", "--dtype", "float64", "--quiet")


@pytest.fixture
def photos(place):  # noqa: F811
    for seed in (1, 2):
        picture(seed).image.save(place / f"other {seed}.png")
    return ["photo.png", "other 1.png", "other 2.png"]


@pytest.mark.parametrize("asked", [(), ("--target", "cat")])
def test_the_command_prints_writes_and_draws_what_the_library_finds(place, photos, asked):  # noqa: F811
    explained = run("photo.png", *MINE, "--depth", 2, "--json", "why.json", *asked)
    assert explained.exit_code == 0, explained.output
    result = run(*photos, *MINE, "--paths", "why.json", "--json", "n.json", *asked, command="elsewhere")
    assert result.exit_code == 0, result.output
    assert (place / "photo.elsewhere.png").read_bytes().startswith(b"\x89PNG")
    numbers = json.loads((place / "n.json").read_text())
    row = next(row for row in json.loads((place / "why.json").read_text())["rows"] if row["role"] == "target")
    paths = [Path.from_dict(part["path"]) for part in row["parts"]]
    assert len(paths) == 2
    expected = elsewhere(
        load("mine.py:net", dtype="float64"),
        [images.read(FilePath(name)) for name in photos],
        asked[1] if asked else None,
        paths,
    )
    assert numbers["pictures"] == [*expected.pictures]
    assert numbers["targets"] == [*expected.targets]
    assert not asked or set(expected.targets) == {"cat"}
    assert [model["path"] for model in numbers["models"]] == ["whole network", *map(str, paths)]
    for got, values in zip(
        [numbers["logits"], *(m["values"] for m in numbers["models"])], [expected.logits, *expected.values], strict=True
    ):
        assert np.array(got) == pytest.approx(values)
    printed = [line.split()[-3:] for line in result.stdout.splitlines() if line.startswith("  ")]
    printed = [line for line in printed if line != ["1", "2", "3"]]
    every = np.concatenate([expected.logits, *expected.values])
    assert np.array(printed, dtype=float) == pytest.approx(every, abs=6e-4)
    assert [part["value"] for part in row["parts"]] == pytest.approx(expected.values[1:, 0, 0].tolist())
    assert result.stdout.splitlines()[-2:] == ["wrote photo.elsewhere.png", "wrote n.json"]


@pytest.mark.parametrize(("arguments", "status", "sentence"), [
    (["photo.png"], 2, "give two or more PHOTOS"),
    ([], 2, "Missing argument"),
    (["photo.png", "none.png"], 2, "does not exist"),
    (["photo.png", "mine.py"], 1, "not a picture"),
    (["photo.png", "other 1.png", "--target", "cats"], 2, "did you mean cat"),
    (["photo.png", "other 1.png", "-o", "f.jpg"], 2, "must end in"),
    (["photo.png", "other 1.png", "--json", "f.txt"], 2, "must end in"),
    (["photo.png", "other 1.png", "--paths", "mine.py"], 1, "is not what relupath explain --json wrote"),
    (["photo.png", "other 1.png", "--paths", "other.json"], 2, "no hidden layer 'far'"),
    (["photo.png", "other 1.png", "--model", "mine.py:curved"], 1, "softmax in module '2'"),
    (["photo.png", "other 1.png", "--model", "unheard"], 2, "unknown model"),
])  # fmt: skip
def test_what_the_command_refuses_is_one_sentence_and_loses_nothing(place, photos, arguments, status, sentence):  # noqa: F811
    path = Path.of([("far", (1,))], target="cat").to_dict()
    (place / "other.json").write_text(
        json.dumps({"format": "relupath.explanation/1", "rows": [{"role": "target", "parts": [{"path": path}]}]})
    )
    (place / "photo.elsewhere.png").write_text("precious")
    (place / "n.json").write_text("precious")
    before = sorted(p for p in place.rglob("*.*") if "__pycache__" not in str(p))
    asked = arguments if "--json" in arguments else [*arguments, "--json", "n.json"]
    result = run(*MINE, *asked, command="elsewhere")
    assert result.exit_code == status, result.output
    assert sentence in " ".join(result.output.split())
    assert isinstance(result.exception, SystemExit), "a traceback would reach the user"
    assert sorted(p for p in place.rglob("*.*") if "__pycache__" not in str(p)) == before
    assert (place / "photo.elsewhere.png").read_text() == (place / "n.json").read_text() == "precious"
