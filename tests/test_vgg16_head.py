"""The script that trains a VGG-16's head: its output is explained with no code, and what it is given is checked."""

import argparse
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from relupath import cli
from relupath.errors import ModelError, UsageError

SCRIPT = Path(__file__).parents[1] / "training" / "vgg16_head.py"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("torchvision")
    found = importlib.util.spec_from_file_location("vgg16_head", SCRIPT)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def photos(tmp_path):
    """Two classes that differ in colour."""
    for name, colour in (("blue", (20, 40, 220)), ("red", (220, 40, 20))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            shade = tuple(min(255, value + 12 * number) for value in colour)
            Image.new("RGB", (60, 50), shade).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def args(photos, output, **changed):
    given = {"backbone": "RANDOM", "held_out": 0.3, "epochs": 8, "batch": 4, "rate": 3e-4, "decay": 0.01}
    return argparse.Namespace(
        photos=photos, output=output, **{**given, "dropout": 0.0, "seed": 0, "device": "cpu", **changed}
    )


def test_folders_are_classes(script, photos, tmp_path):
    found = script.folders(photos)
    assert [*found] == ["blue", "red"]
    assert [file.name for file in found["red"]] == ["0.png", "1.png", "2.png"]
    with pytest.raises(UsageError, match="is not there"):
        script.folders(tmp_path / "none")
    for number in range(1, 3):
        (photos / "red" / f"{number}.png").unlink()
    with pytest.raises(UsageError, match="it holds 2 folders, of which red has one picture"):
        script.folders(photos)


def test_some_of_every_class_are_held_out(script):
    labels = torch.tensor([0] * 10 + [1] * 2 + [2] * 5)
    seen, unseen = script.held_out(labels, 0.2)
    assert sorted([*seen.tolist(), *unseen.tolist()]) == [*range(17)]
    assert labels[unseen].tolist() == [0, 0, 1, 2]


def test_the_head_learns_from_features(script):
    x = torch.randn(2, 1, 40).abs().repeat(20, 2, 1) + 0.3 * torch.rand(40, 2, 40)
    labels = torch.tensor([0, 1] * 20)
    head = script.new_head(40, 2, 0.0)
    assert [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, nn.Linear)] == [
        (40, 256),
        (256, 64),
        (64, 2),
    ]
    losses = script.train(head, x, labels, args(None, None))
    assert losses[-1] < 0.3 * losses[0]
    assert script.accuracy(head, x, labels, "cpu") == 1
    assert script.accuracy(head, x, 1 - labels, "cpu") == 0


@pytest.mark.slow
def test_what_it_writes_is_explained_with_no_code(script, photos, tmp_path, unchecked):
    """Then its convolutions are taken for another run, from the file."""
    output = tmp_path / "mine.safetensors"
    record = script.run(args(photos, output))
    assert record["loss_per_epoch"][-1] < record["loss_per_epoch"][0]
    assert json.loads(output.with_suffix(".json").read_text()) == record
    words = ["explain", photos / "red" / "0.png", "--model", "torchvision/vgg16", "--weights", output]
    words += ["--labels", output.with_suffix(".txt"), "--quiet", "-o", tmp_path / "why.png"]
    done = CliRunner().invoke(cli.main, [*map(str, words)])
    assert done.exit_code == 0, done.output
    assert "red" in done.output
    again = tmp_path / "again.safetensors"
    script.run(args(photos, again, backbone=str(output), epochs=1, seed=1))
    first, second = load_file(output), load_file(again)
    alike = {name for name in first if torch.equal(first[name], second[name])}
    assert alike == {name for name in first if name.startswith("features.")}
    first["features.0.weight"] = first["features.0.weight"][:, :2].contiguous()
    save_file(first, output)
    with pytest.raises(ModelError, match=r"of another shape \(0.weight"):
        script.backbone(str(output), "cpu")
