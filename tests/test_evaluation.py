"""`relupath evaluate`: its numbers are those of the metrics, and wrong usage is one sentence that loses nothing."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import relupath
from nets import randomise
from relupath import draw, metrics, runs
from relupath._text import faithfulness
from relupath.bridges import PathAttribution
from relupath.errors import UsageError
from relupath.evaluation import evaluate
from relupath.images import Picture
from relupath.models import Classifier
from test_cli import place, run  # noqa: F401  the fixture

PLANS = {
    "mass": runs.Plan(relupath.Mass(), relupath.channels, "1"),
    "beam": runs.Plan(relupath.Beam(2), relupath.neurons, None, 1),
}


def to_tensor(image):
    return torch.tensor(np.asarray(image) / 127.5 - 1).permute(2, 0, 1)


def picture(seed, size=12):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Picture(Image.fromarray(pixels), f"noise {seed}", (f"note {seed}",))


@pytest.fixture
def classifier():
    parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.SiLU(), nn.Flatten(), nn.Linear(384, 5)
    model = randomise(nn.Sequential(*parts), 0)
    return Classifier("net", model, to_tensor, tuple("abcde"), dtype=torch.float64)


@pytest.mark.parametrize("target", [None, "d"])
def test_every_area_is_that_of_the_metric_on_the_methods_map(classifier, target):
    """The maps by other routes: Captum's form, autograd, the generator of the control."""
    pictures = [picture(seed) for seed in range(3)]
    found = evaluate(classifier, pictures, PLANS, target, authors=True)
    assert found.methods == ("W x", "|gradient|", "mass", "beam", "random")
    assert found.measures == ("insertion", "deletion", "insertion by channel", "deletion by channel")
    assert found.pictures == ("noise 0", "noise 1", "noise 2")
    assert found.notes == ("note 0", "note 1", "note 2")
    x = torch.stack([classifier.prepare(p.image) for p in pictures])
    classes = classifier.model(x).argmax(1) if target is None else torch.tensor([3, 3, 3])
    assert found.targets == tuple("abcde"[c] for c in classes)
    wanting = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.model(wanting).gather(1, classes[:, None]).sum(), wanting)
    control = [torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    maps = {
        "W x": PathAttribution(classifier.model).attribute(x, classes),
        "|gradient|": gradient.abs(),
        "mass": PathAttribution(classifier.model, relupath.Mass(), layers=["1"], partition=relupath.channels).attribute(
            x, classes
        ),
        "beam": PathAttribution(classifier.model, relupath.Beam(2), layers=["3"]).attribute(x, classes),
        "random": torch.cat(control).double(),
    }
    for k, method in enumerate(found.methods):
        orders = metrics.ranks(maps[method], range(3)), metrics.channel_ranks(maps[method], range(3))
        measured = [m(classifier.model, x, classes, o) for o in orders for m in (metrics.insertion, metrics.deletion)]
        for m, curve in enumerate(measured):
            assert found.areas[m, k] == pytest.approx(curve.area.numpy())
            assert found.curves[m, k] == pytest.approx(curve.scores.mean(0).numpy())


def test_steps_are_left_out_within_the_tolerance():
    parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 5)
    net = Classifier("net", randomise(nn.Sequential(*parts), 0), to_tensor, tuple("abcde"), dtype=torch.float64)
    pictures = [picture(seed, 70) for seed in range(2)]
    whole, found = (evaluate(net, pictures, {}, tolerance=tolerance) for tolerance in (None, 0.01))
    assert whole.curves.shape == found.curves.shape == (2, 3, 71)
    assert (whole.areas != found.areas).all()
    assert np.abs(whole.areas - found.areas).max() < 0.01
    x = torch.stack([net.prepare(p.image) for p in pictures])
    weight = relupath.linear_model(relupath.freeze(net.model, x)).weight
    order, classes = metrics.ranks(weight * x, range(2)), net.model(x).argmax(1)
    expected = metrics.deletion(net.model, x, classes, order, tolerance=0.01).area
    assert found.areas[1, 0] == pytest.approx(expected.numpy())


def test_figures_intervals_and_lines_tell_the_same(classifier):
    found = evaluate(classifier, [picture(seed) for seed in range(4)], PLANS)
    data, lines = found.to_dict(), list(csv.DictReader(found.to_csv().splitlines()))
    assert len(lines) == 4 * 5
    assert len(data["figures"]) == 2 * 5
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    printed = faithfulness(found)
    for figure in data["figures"]:
        areas = [float(line[figure["measure"]]) for line in lines if line["method"] == figure["method"]]
        assert figure["better"] == {"insertion": "higher", "deletion": "lower"}[figure["measure"]]
        assert figure["mean"] == pytest.approx(np.mean(areas))
        expected = metrics.interval(torch.tensor(areas, dtype=torch.float64))
        assert (figure["low"], figure["high"]) == pytest.approx((expected.low, expected.high))
        (row,) = [line for line in printed.splitlines() if line.startswith(f"{figure['method']} ")]
        assert f"{figure['mean']:.3f}  {figure['low']:.3f} to {figure['high']:.3f}" in row
    assert "insertion ↑" in printed
    assert "deletion ↓" in printed
    assert printed.splitlines()[7].startswith("random ")
    assert data["searches"] == {"mass": "Mass(share=0.5, depth=None)", "beam": "Beam(k=2, depth=None)"}


def test_the_figure_draws_every_curve_and_interval(classifier):
    found = evaluate(classifier, [picture(seed) for seed in range(2)], PLANS)
    axes = draw.evaluation_figure(found).axes
    assert len(axes) == 4
    for row, measure in enumerate(found.measures):
        curves, areas = axes[2 * row : 2 * row + 2]
        assert measure in curves.get_title("left")
        assert [line.get_ydata().tolist() for line in curves.lines] == found.curves[row].tolist()
        assert [label.get_text() for label in areas.get_yticklabels()] == list(found.methods)
        ends = [list(line.get_xdata()) for line in areas.lines]
        for k, method in enumerate(found.methods):
            got = found.interval(measure, method)
            assert ends[2 * k] == [got.low, got.high]
            assert ends[2 * k + 1] == [got.mean]


def test_where_a_map_is_empty_it_is_said(classifier):
    with torch.no_grad():
        classifier.model[5].weight[0] = 0
    found = evaluate(classifier, [picture(0), picture(1)], PLANS, "a")
    assert found.empty == (2, 2, 2, 2, 0)
    assert "mass: all zero at 2 of 2 pictures" in faithfulness(found)


@pytest.mark.parametrize(("sizes", "sentence"), [((12,), "two or more"), ((12, 14), "one size"), ((), "got 0")])
def test_pictures_that_do_not_compare_are_refused(classifier, sizes, sentence):
    with pytest.raises(UsageError, match=sentence):
        evaluate(classifier, [picture(0, size) for size in sizes], PLANS)


# --- the command ---


@pytest.fixture
def photos(place):  # noqa: F811
    """A folder of three photos, one of them in a folder below, and a file that is no picture."""
    folder = place / "photos"
    (folder / "below").mkdir(parents=True)
    for seed, name in enumerate(("b.png", "a.JPG", "below/c.png")):
        picture(seed, 20).image.save(folder / name)
    (folder / ".hidden.png").write_text("no picture")
    (folder / "list.txt").write_text("no picture")
    return folder


MINE = ("--model", "mine.py:net", "--dtype", "float64", "--quiet")


def test_a_folder_is_evaluated(photos, place):  # noqa: F811
    result = run("photos", *MINE, "--json", "n.json", "--by-channel", "--layers", "4", command="evaluate")
    assert result.exit_code == 0, result.output
    data = json.loads((place / "n.json").read_text())
    assert [name.removeprefix("photos/") for name in data["pictures"]] == ["a.JPG", "b.png", "below/c.png"]
    methods = ["W x", "|gradient|", "greedy", "selective", "mass", "beam", "best-first", "random"]
    assert list(dict.fromkeys(figure["method"] for figure in data["figures"])) == methods
    lines = list(csv.DictReader((place / "photos.evaluated.csv").read_text().splitlines()))
    assert len(lines) == 3 * 8
    for figure in data["figures"]:
        areas = [float(line[figure["measure"]]) for line in lines if line["method"] == figure["method"]]
        assert figure["mean"] == pytest.approx(np.mean(areas))
        assert f"{figure['mean']:.3f}" in result.stdout
    with Image.open("photos.evaluated.png") as figure:
        assert figure.size[0] > 1000
    for name in ("photos.evaluated.png", "photos.evaluated.csv", "n.json"):
        assert f"wrote {name}" in result.stdout
    assert "deletion by channel ↓" in result.stdout


def test_the_command_leaves_steps_out_and_says_so(place):  # noqa: F811
    (place / "large").mkdir()
    pictures = [picture(seed, 70) for seed in range(2)]
    for number, one in enumerate(pictures):
        one.image.save(place / "large" / f"{number}.png")
    (place / "pooled.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef net():\n    torch.manual_seed(0)\n"
        "    parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)\n"
        "    return nn.Sequential(*parts)\n"
    )
    words = ("large", "--model", "pooled.py:net", "--quiet", "--search", "mass", "--json", "n.json")
    means = []
    for more in ((), ("--tolerance", "0.001")):
        result = run(*words, *more, command="evaluate")
        assert result.exit_code == 0, result.output
        data = json.loads((place / "n.json").read_text())
        assert data["tolerance"] == (0.001 if more else None)
        assert ("by less than 0.001" in result.stdout) == bool(more)
        means.append(np.array([figure["mean"] for figure in data["figures"]]))
    assert 0 < np.abs(means[0] - means[1]).max() < 0.01


def test_searches_and_their_numbers_are_chosen(photos, place):  # noqa: F811
    asked = ["--search", "mass", "--search", "beam", "--share", "0.9", "--k", "3", "--partition", "channels"]
    result = run("photos", *MINE, *asked, "--target", "cat", "--csv", "x.csv", "--json", "n.json", command="evaluate")
    assert result.exit_code == 0, result.output
    data = json.loads((place / "n.json").read_text())
    assert data["searches"] == {"mass": "Mass(share=0.9, depth=None)", "beam": "Beam(k=3, depth=None)"}
    assert data["targets"] == ["cat"] * 3
    assert (place / "x.csv").read_text().startswith("picture,target,method,insertion,deletion\n")
    loud = run("photos", *MINE[:-1], "--search", "greedy", command="evaluate")
    assert "picture 3 of 3: random" in loud.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["nowhere", *MINE], 2, "does not exist"),
        (["photos/b.png", *MINE], 2, "two or more"),
        (["empty", *MINE], 2, "holds no picture"),
        (["photos", "photos/list.txt", *MINE], 1, "not a picture"),
        (["photos", *MINE, "--target", "9"], 2, "out of range"),
        (["photos", *MINE, "--search", "best"], 2, "best"),
        (["photos", *MINE, "--search", "mass", "--k", "2"], 2, "'k' does not belong to the search mass"),
        (["photos", *MINE, "--search", "mass", "--share", "7"], 2, "share"),
        (["photos", *MINE, "--partition", "atoms"], 2, "no partition"),
        (["photos", *MINE, "--layers", "conv9"], 2, "no hidden layer"),
        (["photos", *MINE, "--tolerance", "-1"], 2, "not in the range"),
        (["photos", *MINE, "--tolerance", "nan"], 2, "nan is no number"),
        (["photos", *MINE, "--csv", "f.txt"], 2, "must end in .csv"),
        (["photos", *MINE, "-o", "f.jpg"], 2, "must end in"),
        (["photos", *MINE, "-o", "photos/b.png"], 2, "overwrite the photo"),
        (["photos", "--model", "mine.py:curved"], 1, "softmax"),
        (["photos", "--model", "mine.py:one"], 1, "at least two"),
        (["photos", "--model", "mine.py:broken"], 1, "by hand"),
        (["photos", "--model", "torchvision/vgg16"], 2, "has no weights"),
    ],
)
def test_bad_input_gets_one_sentence_and_loses_nothing(photos, place, arguments, status, sentence):  # noqa: F811
    (place / "empty").mkdir()
    for name in ("photos.evaluated.png", "photos.evaluated.csv", "n.json"):
        (place / name).write_text("precious")
    before = {p: p.read_bytes() for p in place.rglob("*.*") if p.is_file()}
    result = run(*arguments, "--json", "n.json", command="evaluate")
    assert result.exit_code == status, result.output
    assert sentence in result.output
    assert isinstance(result.exception, SystemExit), "a traceback would reach the user"
    after = {p: p.read_bytes() for p in place.rglob("*.*") if p.is_file() and "__pycache__" not in str(p)}
    assert after == before
