"""The command line: one sentence and the right exit status for bad input, numbers that add up for good input."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from relupath import cli

FACTORY = """
import torch
from torch import nn

def net():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 5),
    ), to_tensor, ["ant", "bee", "cat", "dog", "elk"]

def to_tensor(image):
    import numpy as np
    return torch.tensor(np.asarray(image.resize((16, 16))) / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)

def broken():
    class Broken(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError("by hand")
    return Broken(), to_tensor

def nan():
    class Nan(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * float("nan")
    return Nan(), to_tensor

def curved():
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.Softmax(1)), to_tensor

def raises():
    raise ZeroDivisionError("at once")

def one():
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 1)), to_tensor

def against():
    # every path to classes 0 and 2 is negative; class 0 is predicted for its bias
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    with torch.no_grad():
        model[4].weight.abs_()
        model[4].weight[::2] *= -1
        model[4].bias.copy_(torch.tensor([20.0, 0.0, -5.0]))
    return model, to_tensor

def flat():
    # a long sum in single precision, which cannot be verified either
    return nn.Sequential(nn.Upsample((300, 300)), nn.Flatten(), nn.AdaptiveAvgPool1d(3)), to_tensor

def tie():
    # classes 0 and 1 are alike
    model, _ = against()
    with torch.no_grad():
        model[4].weight[0], model[4].bias[0] = model[4].weight[1], 0
    return model, to_tensor
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model file and a photo, as working directory."""
    (tmp_path / "mine.py").write_text(FACTORY)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments, command="explain"):
    return CliRunner().invoke(cli.main, [command, *map(str, arguments)])


def test_explains_a_photo_and_its_numbers_add_up(place):
    result = run("photo.png", "--model", "mine.py:net", "--dtype", "float64", "--json", "n.json", "-o", "f.svg")
    assert result.exit_code == 0, result.output
    assert "running code" in result.stderr
    assert "best classes" in result.stdout
    assert (place / "f.svg").read_text().startswith("<?xml")
    data = json.loads((place / "n.json").read_text())
    assert [row["role"] for row in data["rows"]] == ["target", "plausible", "contrast"]
    assert data["target"]["index"] == data["best"][0]["index"]
    assert data["plausible"]["index"] == data["best"][1]["index"]
    assert data["completeness_error"] < 1e-10
    assert sum(score["probability"] for score in data["best"]) == pytest.approx(1)
    target, plausible, contrast = (row["whole"]["value"] for row in data["rows"])
    assert target == pytest.approx(data["best"][0]["logit"])
    assert contrast == pytest.approx(target - plausible)
    for row in data["rows"]:
        assert [len(part["path"]["steps"]) for part in row["parts"]] == list(range(1, len(row["parts"]) + 1))
        for part in (row["whole"], *row["parts"]):
            assert part["value"] == pytest.approx(part["weight_part"] + part["bias"])


def test_target_layers_and_depth_choose(place):
    result = run("photo.png", "--model", "mine.py:net", "--target", "cat", "--layers", "4,1", "--depth", 1, "--quiet")
    assert result.exit_code == 0, result.output
    assert "target: cat" in result.stdout
    assert "  1  4[c" in result.stdout
    assert "  2  " not in result.stdout
    assert result.stderr.startswith("note: running code")
    assert run("photo.png", "--model", "mine.py:net", "--layers", "every:2", "--quiet").exit_code == 0


def test_progress_goes_to_stderr_alone(place):
    loud = run("photo.png", "--model", "mine.py:net")
    quiet = run("photo.png", "--model", "mine.py:net", "--quiet")
    assert "recording" in loud.stderr
    assert "recording" not in quiet.stderr
    assert loud.stdout == quiet.stdout


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_figure_is_of_the_kind_that_its_name_says(place, ending):
    assert run("photo.png", "--model", "mine.py:net", "-o", f"f.{ending}").exit_code == 0
    magic = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[ending]
    assert (place / f"f.{ending}").read_bytes().startswith(magic)


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["nothing.png", "--model", "mine.py:net"], 2, "does not exist"),
        (["photo.png", "--model", "unheard"], 2, "unknown model"),
        (["photo.png", "--model", "torchvision/vgg61"], 2, "no classifier 'vgg61'"),
        (["photo.png", "--model", "torchvision/vgg16"], 2, "has no weights"),
        (["photo.png", "--model", "mine.py:net", "--weights", "none.safetensors"], 2, "does not exist"),
        (["photo.png", "--model", "mine.py:net", "--weights", "photo.png"], 1, "weights photo.png"),
        (["photo.png", "--model", "mine.py:net", "--target", "5"], 2, "out of range"),
        (["photo.png", "--model", "mine.py:net", "--target", "cats"], 2, "did you mean cat"),
        (["photo.png", "--model", "mine.py:net", "--layers", "conv9"], 2, "no hidden layer 'conv9'"),
        (["photo.png", "--model", "mine.py:net", "--layers", "every:x"], 2, "whole number"),
        (["photo.png", "--model", "mine.py:net", "--depth", "0"], 2, "depth"),
        (["photo.png", "--model", "mine.py:net", "--device", "abacus"], 2, "device 'abacus'"),
        (["photo.png", "--model", "mine.py:net", "-o", "f.jpg"], 2, "must end in"),
        (["photo.png", "--model", "mine.py:net", "-o", "no/f.png"], 2, "folder no is not there"),
        (["photo.png", "--model", "mine.py:broken"], 1, "ZeroDivisionError: by hand"),
        (["photo.png", "--model", "mine.py:nan"], 1, "NaN"),
        (["photo.png", "--model", "mine.py:curved"], 1, "softmax in module '2'"),
        (["photo.png", "--model", "mine.py:one"], 1, "at least two"),
        (["photo.png", "--model", "mine.py:raises"], 1, "raised ZeroDivisionError: at once"),
        (["photo.png", "--model", "mine.py:net", "--weights", "mine.py"], 1, "neither safetensors nor"),
        (["photo.png", "--model", "mine.py:net", "--labels", "mine.py"], 1, "class names for the 5 classes"),
        (["mine.py", "--model", "mine.py:net"], 1, "not a picture"),
        ([".", "--model", "mine.py:net"], 1, "a folder"),
        (["--model", "mine.py:net"], 2, "give a PHOTO"),
        (["photo.png", "--scene", "3"], 2, "one of the two"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(place, arguments, status, sentence):
    before = sorted(place.rglob("*.*"))
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert sentence in result.output
    assert isinstance(result.exception, SystemExit), "a traceback would reach the user"
    assert [p for p in sorted(place.rglob("*.*")) if "__pycache__" not in str(p)] == before


def test_a_file_that_was_there_survives_a_failure(place):
    (place / "f.png").write_text("precious")
    assert run("photo.png", "--model", "mine.py:curved", "-o", "f.png").exit_code == 1
    assert (place / "f.png").read_text() == "precious"


def test_the_demo_explains_a_scene_of_its_own(place):
    result = run("--scene", 1_000_003, "-o", "s.png", "--quiet")
    assert result.exit_code == 0, result.output
    assert "scene 1000003 explained by creatures" in result.stdout
    with Image.open(place / "s.png") as figure:
        assert figure.size[0] > 1000


def test_help_answers_without_torch():
    code = "import sys; from relupath.cli import main; main(['--help'], standalone_mode=False)"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "explain" in done.stdout


DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason="the ImageNet samples and SqueezeNet weights are not on this machine")
def test_explains_a_real_photo_with_a_real_network(place):
    photo = DATA / "imagenet" / "939_zucchini.jpg"
    weights = DATA / "squeezenet1_0_imagenet.safetensors"
    arguments = ["--model", "torchvision/squeezenet1_0", "--weights", weights, "--depth", 2, "--json", "z.json"]
    result = run(photo, *arguments, "--quiet")
    assert result.exit_code == 0, result.output
    data = json.loads((place / "z.json").read_text())
    assert data["target"]["name"] == "zucchini"
    assert data["completeness_error"] < 1e-4


# --- biases ---


def test_bias_says_which_layers_decide_and_draws_a_second_figure(place):
    arguments = ["photo.png", "--model", "mine.py:net", "--dtype", "float64", "--json", "n.json", "-o", "f.png"]
    result = run(*arguments, "--bias", "--quiet")
    assert result.exit_code == 0, result.output
    assert (place / "f.bias.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote f.bias.png" in result.stdout
    data = json.loads((place / "n.json").read_text())
    table = result.stdout[result.stdout.index("biases below") :].splitlines()
    names = [line.split()[0] for line in table[1:7]]
    assert names == ["W", "1", "4", "output", "all", "logit"]
    for column, row in enumerate(data["rows"]):
        layers = row["bias"]["layers"]
        assert list(layers) == ["1", "4", "output"]
        assert sum(layers.values()) == pytest.approx(row["whole"]["bias"], rel=1e-9, abs=1e-12)
        printed = [float(line.split()[-3:][column]) for line in table[1:7]]
        expected = [row["whole"]["weight_part"], *layers.values(), row["whole"]["bias"], row["whole"]["value"]]
        assert printed == pytest.approx(expected, abs=1e-3)
    target, other, contrast = (row["bias"]["layers"] for row in data["rows"])
    for name, part in contrast.items():
        assert part == pytest.approx(target[name] - other[name], abs=1e-12)


def test_without_bias_there_is_one_figure_and_no_table(place):
    result = run("photo.png", "--model", "mine.py:net", "-o", "f.svg", "--quiet")
    assert result.exit_code == 0
    assert "biases below" not in result.stdout
    assert not (place / "f.bias.svg").exists()


def test_a_bias_figure_that_cannot_be_written_is_refused_at_once(place):
    (place / "f.bias.png").mkdir()
    result = run("photo.png", "--model", "mine.py:net", "--bias", "-o", "f.png")
    assert result.exit_code == 1
    assert "f.bias.png cannot be written" in result.output
    assert not (place / "f.png").exists()


# --- layers ---


def test_layers_lists_what_adds_up(place):
    result = run(
        "mine.py:net", "photo.png", "--dtype", "float64", "--json", "n.json", "--target", "cat", command="layers"
    )
    assert result.exit_code == 0, result.output
    numbers = json.loads((place / "n.json").read_text())
    assert [row["name"] for row in numbers["rows"]] == ["x", "1", "4", "output"]
    assert [row["neurons"] for row in numbers["rows"]] == [3 * 16 * 16, 4 * 14 * 14, 6 * 5 * 5, 5]
    assert sum(row["bias"] for row in numbers["rows"]) == pytest.approx(numbers["bias"], rel=1e-10)
    assert numbers["target"]["logit"] == pytest.approx(numbers["weight_part"] + numbers["bias"], rel=1e-10)
    assert numbers["rows"][0]["bias"] == 0
    assert 0.1 < numbers["rows"][1]["open"] < 0.9
    assert numbers["rows"][-1]["open"] is None
    for row in numbers["rows"]:
        assert row["name"] in result.stdout
    assert "operations: 5 affine, 3 piece" in result.stdout


def test_layers_count_open_gates_and_bias_as_by_hand(place):
    model, to_tensor, _ = runpy.run_path(str(place / "mine.py"))["net"]()
    with Image.open("photo.png") as image:
        x = to_tensor(image).double()[None]
    model = model.double().eval().requires_grad_(False)
    run("mine.py:net", "photo.png", "--dtype", "float64", "--json", "n.json", "--target", "1", command="layers")
    rows = json.loads((place / "n.json").read_text())["rows"]
    first, second = model[:2](x), model[:5](x)
    assert [row["open"] for row in rows[1:3]] == [
        pytest.approx(float((h > 0).double().mean())) for h in (first, second)
    ]
    last = model[:3](x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(model[3:](last)[0, 1], last)
    by_hand = float(model(x)[0, 1] - model[7].bias[1] - (slope * last).sum().detach())
    assert rows[2]["bias"] == pytest.approx(by_hand)
    assert rows[3]["bias"] == pytest.approx(float(model[7].bias[1]))


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nope"], 2, "unknown model"),
        (["torchvision/resnet18"], 2, "torchvision/resnet18@RANDOM"),
        (["mine.py:net", "photo.png", "--target", "9"], 2, "out of range"),
        (["mine.py:net", "missing.png"], 2, "does not exist"),
        (["mine.py:broken", "photo.png"], 1, "by hand"),
        (["mine.py:net", "photo.png", "--json", "n.txt"], 2, ".json"),
        (["mine.py:net", "--scene", "3"], 2, "--scene"),
    ],
)
def test_bad_input_to_layers_gets_one_sentence(place, arguments, status, said):
    result = run(*arguments, command="layers")
    assert result.exit_code == status, result.output
    assert said in result.output
    assert "Traceback" not in result.output
    assert not (place / "n.json").exists()


def test_layers_of_an_untrained_network_at_noise(place):
    result = run("torchvision/squeezenet1_1@RANDOM", command="layers")
    assert result.exit_code == 0, result.output
    assert "untrained" in result.stderr
    assert "noise" in result.stderr
    assert "features.3.expand1x1_activation" in result.stdout
