"""Classifiers by name: what is loaded fits exactly, and what does not is refused in one sentence."""

import pickle

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from relupath import models
from relupath.errors import ModelError, UsageError

FACTORY = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def named():
    return net(), lambda image: torch.zeros(3, 8, 8), ["ant", "bee", "cat"]

def wrong():
    return 3

ready = net()
"""


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FACTORY)
    return path


@pytest.fixture
def net(factory):
    return models.load(f"{factory}:net").model


def test_a_factory_in_a_file_says_that_it_runs_code(factory):
    loaded = models.load(f"{factory}:named")
    assert "running code" in loaded.notes[0]
    assert loaded.classes == ("ant", "bee", "cat")
    assert loaded.prepare(Image.new("RGB", (9, 9))).shape == (3, 8, 8)
    assert not loaded.model.training


def test_a_module_object_and_a_dotted_name_serve_too(factory, monkeypatch):
    assert isinstance(models.load(f"{factory}:ready").model, nn.Module)
    monkeypatch.syspath_prepend(str(factory.parent))
    assert isinstance(models.load("mine:net").model, nn.Module)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("resnet18", "unknown model"),
        ("torchvision/resnet19", "did you mean resnet18"),
        ("torchvision/resnet18", "has no weights"),
        ("torchvision/resnet18@NONE", "no weights 'NONE'"),
        ("no.such.package:make", "cannot import"),
        ("nowhere.py:make", "no file"),
    ],
)
def test_unknown_names_are_refused(spec, sentence):
    with pytest.raises(UsageError, match=sentence):
        models.load(spec)


def test_factories_must_exist_and_return_modules(factory):
    with pytest.raises(UsageError, match="defines no 'absent'"):
        models.load(f"{factory}:absent")
    with pytest.raises(ModelError, match="returned int"):
        models.load(f"{factory}:wrong")


def test_dtype_and_device_are_applied_or_refused(factory):
    loaded = models.load(f"{factory}:named", dtype="float64")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float64}
    assert loaded.prepare(Image.new("RGB", (9, 9))).dtype == torch.float64
    with pytest.raises(UsageError, match="device"):
        models.load(f"{factory}:net", device="abacus")


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_are_loaded_exactly(factory, net, tmp_path, ending):
    state = {key: torch.randn_like(value) for key, value in net.state_dict().items()}
    path = tmp_path / f"w.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    loaded = models.load(f"{factory}:net", weights=path).model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_wrapped_states_are_unwrapped_and_said(net, tmp_path):
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pt")
    read, notes = models.read_state(tmp_path / "w.pt")
    assert read.keys() == net.state_dict().keys()
    assert len(notes) == 2


def test_weights_that_do_not_fit_name_the_first_differing_keys(factory, net, tmp_path):
    state = dict(net.state_dict())
    state["4.weight"] = torch.zeros(7, 4)
    state["5.weight"] = state.pop("0.bias")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(
        ModelError, match=r"1 missing \(0.bias\); 1 unexpected \(5.weight\); 1 of another shape \(4.weight"
    ):
        models.load(f"{factory}:net", weights=tmp_path / "w.safetensors")


class Evil:
    def __reduce__(self):
        return (print, ("code in a pickle ran",))


def test_a_pickle_that_holds_code_is_refused_unrun(tmp_path, capsys):
    (tmp_path / "w.pt").write_bytes(pickle.dumps({"a": Evil()}))
    torch.save({"a": Evil()}, tmp_path / "v.pt")
    for name in ("w.pt", "v.pt"):
        with pytest.raises(ModelError, match="would run code"):
            models.read_state(tmp_path / name)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "content"), [("w.safetensors", b"xx"), ("w.pt", b""), ("w.pt", b"garbage")])
def test_corrupt_weights_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match="weights"):
        models.read_state(tmp_path / name)


def test_labels_name_the_classes_and_size_the_head(factory, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\n\nthree\n")
    assert models.load(f"{factory}:net", labels=labels).classes == ("one", "two", "three")
    labels.write_text("\n")
    with pytest.raises(ModelError, match="hold no name"):
        models.load(f"{factory}:net", labels=labels)
    labels.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ModelError, match="UTF-8"):
        models.load(f"{factory}:net", labels=labels)


def test_torchvision_brings_its_own_preprocessing_and_names(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    save_file(torchvision.models.squeezenet1_1(num_classes=1000).state_dict(), tmp_path / "w.safetensors")
    loaded = models.load("torchvision/squeezenet1_1", weights=tmp_path / "w.safetensors")
    assert loaded.class_name(939) == "zucchini"
    assert loaded.prepare(Image.new("RGB", (300, 260))).shape == (3, 224, 224)
    labels = tmp_path / "labels.txt"
    labels.write_text("yes\nno")
    save_file(torchvision.models.squeezenet1_1(num_classes=2).state_dict(), tmp_path / "v.safetensors")
    small = models.load("torchvision/squeezenet1_1", weights=tmp_path / "v.safetensors", labels=labels)
    assert small.class_name(1) == "no"


def test_a_torchvision_head_trained_anew_brings_its_own_widths(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    build = torchvision.models.mobilenet_v3_small
    trained = build(num_classes=2).eval()
    trained.classifier[0], trained.classifier[3] = nn.Linear(576, 24), nn.Linear(24, 2)
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "labels.txt").write_text("yes\nno")
    named = {"spec": "torchvision/mobilenet_v3_small", "weights": tmp_path / "w.safetensors"}
    loaded = models.load(**named, labels=tmp_path / "labels.txt")
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded.model(x), trained(x))
    with pytest.raises(ModelError, match=r"2 of another shape \(classifier.3.weight is \[2, 24\]"):
        models.load(**named)
    narrow = {**trained.state_dict(), "classifier.0.weight": torch.zeros(24, 500)}
    save_file(narrow, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"1 of another shape \(classifier.0.weight is \[24, 500\]"):
        models.load(**named, labels=tmp_path / "labels.txt")


def test_the_shipped_network_loads_and_fits_any_picture():
    loaded = models.load("creatures")
    assert loaded.prepare(Image.new("RGB", (300, 200))).shape == (3, 96, 96)
    assert len(loaded.classes) == 8
