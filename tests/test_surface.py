"""The public surface: names, documentation, what an import loads, and one network with real weights."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path as FilePath

import pytest
import torch
import transformers
from torch import nn

import relupath
from nets import build, inputs
from relupath import _gates, cli

PACKAGE = FilePath(relupath.__file__).parent
WORKBENCH = {
    "__init__",
    "images",
    "models",
    "draw",
    "runs",
    "report",
    "explorer",
    "server",
    "widget",
    "cli",
    "creatures",
}
WORKBENCH |= {
    "bridges",
    "origins",
    "explanations",
    "elsewhere",
    "evaluation",
    "plans",
    "_asked",
    "_canvas",
    "_options",
    "_shelf",
    "_wire",
    "_draw_evaluation",
    "_draw_tree",
    "_summary",
    "_text",
    "__main__",
}
FORBIDDEN = {"numpy", "PIL", "torchvision", "matplotlib", "timm", "click", "tqdm", "safetensors"}


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout


def mathematics() -> list[FilePath]:
    files = [*PACKAGE.glob("*.py"), *(PACKAGE / "_search").glob("*.py")]
    return [f for f in files if f.stem not in WORKBENCH or f.parent != PACKAGE]


def test_public_names_are_sorted_few_and_unique():
    assert relupath.__all__ == sorted(relupath.__all__)
    assert len(set(relupath.__all__)) == len(relupath.__all__) <= 35
    assert not any(name.startswith("_") for name in relupath.__all__)
    assert set(relupath.__all__) <= set(dir(relupath))


@pytest.mark.parametrize("name", relupath.__all__)
def test_a_public_name_is_importable_and_documented(name):
    thing = getattr(relupath, name)
    if not isinstance(thing, relupath.Partition):
        assert (inspect.getdoc(thing) or "").strip()
    if inspect.isclass(thing):
        for method, function in inspect.getmembers(thing, inspect.isfunction):
            own = method in vars(thing) and not method.startswith("_")
            assert not own or inspect.getdoc(function), f"{name}.{method} is not documented"


def test_no_other_name_is_public():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        relupath.nothing  # noqa: B018
    assert relupath.__version__.count(".") == 2


def test_errors_are_drawn_as_they_are():
    """Every error of the module stands in the tree of its docstring."""
    from relupath import errors

    classes = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, Exception)]
    for error in classes:
        assert error.__name__ in errors.__doc__
        assert error is errors.RelupathError or issubclass(error, errors.RelupathError)
        assert error.__doc__


def test_import_loads_nothing_heavy():
    loaded = run("import sys, relupath; print(' '.join(sys.modules))").split()
    assert not {"torchvision", "matplotlib", "PIL", "timm", "click", "torch"} & set(loaded)


def test_the_mathematics_load_no_workbench():
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import relupath; relupath.freeze, relupath.find_paths, relupath.linear_model\n"
        "print(' '.join(set(sys.modules) - before))"
    )
    loaded = set(run(code).split())
    assert not {"torchvision", "matplotlib", "PIL", "timm", "click"} & loaded
    assert not {f"relupath.{name}" for name in WORKBENCH - {"__init__"}} & loaded


@pytest.mark.parametrize("file", mathematics(), ids=lambda f: f.stem)
def test_the_mathematics_import_torch_only(file):
    workbench = {f"relupath.{name}" for name in WORKBENCH} | WORKBENCH - {"__init__"}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported = {node.module or "", *(alias.name for alias in node.names)} if node.level else {node.module or ""}
        else:
            continue
        assert not {name.partition(".")[0] for name in imported} & FORBIDDEN
        assert not imported & workbench


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: f.stem)
def test_files_and_functions_are_short(file):
    source = file.read_text()
    assert source.count("\n") <= 400
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "a file says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1 - len((ast.get_docstring(node) or "").splitlines())
            assert length <= 50, f"{node.name} has {length} lines"
            arguments = node.args
            count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
            assert count <= 7, f"{node.name} has {count} parameters"


def test_the_example_of_the_package_runs():
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4)).eval()
    x = torch.ones(1, 3)
    frozen = relupath.freeze(model, x)
    found = relupath.find_paths(frozen, relupath.logit(3), relupath.Greedy())
    part = relupath.linear_model(frozen, relupath.logit(3), path=found.paths[0])
    assert torch.allclose(part.value, found.model.value)


def test_real_weights_on_a_photograph(data):
    """SqueezeNet knows the tench; W x + b holds in single precision, and Greedy reaches the input."""
    import torch
    from PIL import Image

    safetensors = pytest.importorskip("safetensors.torch")
    torchvision = pytest.importorskip("torchvision")
    weights, picture = data / "squeezenet1_0_imagenet.safetensors", data / "imagenet" / "000_tench.jpg"
    if not (weights.is_file() and picture.is_file()):
        pytest.skip("the SqueezeNet weights or the photograph are not in ../shared/data")
    model = torchvision.models.squeezenet1_0()
    model.load_state_dict(safetensors.load_file(weights))
    prepare = torchvision.transforms.Compose([
        torchvision.transforms.Resize(256), torchvision.transforms.CenterCrop(227), torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    with Image.open(picture) as image:
        x = prepare(image.convert("RGB"))[None]
    frozen = relupath.freeze(model.eval(), x)
    assert torch.equal(frozen.output, model(x))
    assert int(frozen.output.argmax()) == 0
    account = frozen.check()
    assert (account.error <= 1e-4).all()
    found = relupath.find_paths(frozen, None, relupath.Greedy())
    assert found.stopped == ("reached the input",)
    assert found.paths[0].layers[-1] == "classifier.2"
    assert found.paths[0].target == "logit 0"
    text = str(found.paths[0])
    assert text.startswith("x[")
    assert text.endswith("<- logit 0")
    again = relupath.linear_model(frozen, None, found.paths[0])
    assert float((again.weight - found.model.weight).abs().max()) <= 1e-4 * float(again.weight.abs().max())


# --- the README is run ---

README = (FilePath(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


class Snake(nn.Module):
    """x + sin(x)**2, an activation that no table knows."""

    def forward(self, x):
        return x + torch.sin(x) ** 2


@pytest.fixture
def taught():
    """Forget afterwards what was taught."""
    table, forward = dict(_gates.TABLE), Snake.forward
    yield
    _gates.TABLE.clear()
    _gates.TABLE.update(table)
    Snake.forward = forward


@pytest.mark.filterwarnings("ignore:.*token_id.*")
def test_the_readmes_python_runs(taught):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    config = transformers.GPT2Config(
        n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=9, bos_token_id=0, eos_token_id=0
    )
    names = {
        "model": build("squeeze"),
        "x": inputs("squeeze"),
        "gpt2": transformers.GPT2LMHeadModel(config).eval(),
        "ids": torch.randint(0, 11, (2, 5)),
        "Snake": Snake,
        "torch": torch,
    }
    for block in blocks:
        exec("import relupath\n" + block, names)
    assert [layer.name for layer in names["frozen"].inputs] == ["transformer.wte"]
    names["frozen"].check()
    model = nn.Sequential(nn.Linear(3, 4), Snake(), nn.Linear(4, 2)).double().eval()
    frozen = relupath.freeze(model, torch.randn(2, 3).double())
    assert [layer.name for layer in frozen.layers] == ["1"]
    frozen.check()


def test_the_readmes_commands_parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "other.jpg", "mine.safetensors", "squeezenet.safetensors"):
        FilePath(name).touch()
    FilePath("photos").mkdir()
    lines = re.findall(r"^relupath (.*)$|`relupath (layers .*?)`", README, re.MULTILINE)
    commands = [shlex.split(a or b, comments=True) for a, b in lines]
    assert len(commands) >= 4
    for command, *arguments in commands:
        cli.main.commands[command].make_context(command, arguments)
