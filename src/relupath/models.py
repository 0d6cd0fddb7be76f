"""Load a classifier by name: the network, its weights, its own preprocessing and class names."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from . import creatures
from .errors import MissingExtraError, ModelError, UsageError

Preprocess = Callable[[Image.Image], Tensor]
RANDOM = "RANDOM"
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network ready to explain.

    Attributes:
        name: what it was loaded as.
        model: the network in eval mode, on ``device`` in ``dtype``.
        preprocess: from a picture to the network's input, (C, H, W).
        classes: class names, or empty when unknown.
        notes: sentences that a person should read.
        device: where the network is.
        dtype: the network's floating-point type.
        carry: which factor of a product of two signals carries on, as in ``freeze``.
    """

    name: str
    model: nn.Module
    preprocess: Preprocess
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    carry: Literal["first", "second", "half"] | None = None

    def prepare(self, image: Image.Image) -> Float[Tensor, "C H W"]:
        """The network's input for a picture, on its device in its dtype.

        Raises:
            ModelError: the preprocessing gives something else.
        """
        tensor = self.preprocess(image)
        if not isinstance(tensor, Tensor) or tensor.ndim != 3:
            raise ModelError(f"the preprocessing of {self.name} must give a tensor (C, H, W)")
        return tensor.to(self.device, self.dtype)

    def class_name(self, index: int) -> str:
        """The class's name, or its number."""
        return self.classes[index] if index < len(self.classes) else f"class {index}"


def load(
    spec: str = "creatures",
    weights: str | Path | None = None,
    labels: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> Classifier:
    """Load a classifier.

    Args:
        spec: ``creatures`` (ships with the package), ``torchvision/NAME[@WEIGHTS]``, ``timm/NAME[@WEIGHTS]``,
            ``package.module:factory`` or ``file.py:factory``. ``@WEIGHTS`` downloads them, except ``@RANDOM``, which
            leaves the network untrained. A factory is code that is run; it returns a module, or (module, preprocess),
            or (module, preprocess, class names).
        weights: a state dict, safetensors or a pickle of plain tensors. The hidden linear layers of a torchvision
            network's ``classifier`` take the widths that they have there: such a head may have been trained anew.
        labels: a text file with one class name a line; the network is built for that many classes.
        device: such as ``cpu`` or ``cuda``.
        dtype: ``float32`` or ``float64``.

    Raises:
        UsageError: the model, a file or the device is not there, or there are no weights.
        ModelError: the weights do not fit (the first differing keys are named), or cannot be read.
        MissingExtraError: torchvision or timm is not installed.
    """
    names = () if labels is None else _read_labels(Path(labels))
    if spec == "creatures":
        built = _creatures()
    elif spec.startswith("torchvision/"):
        built = _torchvision(spec.removeprefix("torchvision/"), weights, len(names))
    elif spec.startswith("timm/"):
        built = _timm(spec.removeprefix("timm/"), weights, len(names))
    elif ":" in spec:
        built = _factory(spec)
    else:
        raise UsageError(
            f"unknown model {spec!r}: expected creatures, torchvision/NAME[@WEIGHTS], timm/NAME[@WEIGHTS], "
            "package.module:factory or file.py:factory"
        )
    notes = built.notes
    if weights is not None:
        state, said = read_state(Path(weights))
        notes += said
        if spec.startswith("torchvision/"):
            _take_widths(built.model, state)
        fit(built.model, state, str(weights))
    try:
        model = built.model.to(torch.device(device), DTYPES[dtype]).eval()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used ({_first_line(error)})") from error
    return Classifier(spec, model, built.preprocess, names or built.classes, notes, device, DTYPES[dtype])


def read_state(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A state dict from a file, and what was unwrapped on the way.

    Raises:
        UsageError: there is no such file.
        ModelError: it is corrupt, or a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise UsageError(f"weights {path} are {'a folder' if path.is_dir() else 'not there'}: give one file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path), ()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ModelError(f"weights {path} are not a readable safetensors file ({error})") from error
    except pickle.UnpicklingError as error:
        if path.read_bytes()[:1] not in (b"P", b"\x80"):
            raise ModelError(f"weights {path} are neither safetensors nor a file that torch.save wrote") from error
        raise ModelError(
            f"weights {path} are a pickle that holds more than tensors, and loading it would run code: save the "
            "state dict alone, best as safetensors"
        ) from error
    except Exception as error:  # whatever a reader says of a file that is no state dict
        raise ModelError(f"weights {path} cannot be read ({_first_line(error)})") from error
    notes = []
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            notes.append(f"weights: took the entry {key!r} of the file")
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"weights {path} are not a state dict (names and tensors)")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
        notes.append("weights: removed the prefix 'module.' of every name")
    return state, tuple(notes)


def fit(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict whose names and shapes are exactly the model's.

    Raises:
        ModelError: they differ; the first differing keys are named.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    surplus = [key for key in state if key not in own]
    shapes = [
        f"{key} is {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = [
        f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
        for what, found in (("missing", missing), ("unexpected", surplus), ("of another shape", shapes))
        if found
    ]
    if problems:
        raise ModelError(f"weights {source} do not fit the model: {'; '.join(problems)}")
    model.load_state_dict(state)


def _take_widths(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the hidden linear layers of a ``classifier`` the widths that they have in a state dict.

    The inputs of the first and the outputs of the last stay as they are; what else differs is for ``fit`` to refuse.
    """
    head = getattr(model, "classifier", None)
    if not isinstance(head, nn.Sequential):
        return
    linear = {name: module for name, module in head.named_children() if isinstance(module, nn.Linear)}
    for name, following in pairwise([*linear]):
        weight = state.get(f"classifier.{name}.weight")
        if weight is not None and weight.ndim == 2 and len(weight) != linear[name].out_features:
            for place, inputs, outputs in (
                (name, linear[name].in_features, len(weight)),
                (following, len(weight), linear[following].out_features),
            ):
                linear[place] = nn.Linear(inputs, outputs)
                setattr(head, place, linear[place])


def _creatures() -> Classifier:
    model = creatures.network()
    fit(model, load_file(Path(creatures.__file__).with_name("creatures.safetensors")), "creatures.safetensors")

    def preprocess(image: Image.Image) -> Tensor:
        size = (creatures.SIZE, creatures.SIZE)
        small = image if image.size == size else ImageOps.fit(image, size, Image.Resampling.BICUBIC)
        return creatures.preprocess(np.asarray(small))

    return Classifier("creatures", model, preprocess, creatures.CLASSES)


def _torchvision(name: str, weights: str | Path | None, classes: int) -> Classifier:
    models = _extra("torchvision.models", "torchvision")
    name, _, tag = name.partition("@")
    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(f"torchvision has no classifier {name!r}{_close(name, known)}")
    _one_source(f"torchvision/{name}", tag, weights)
    presets = models.get_model_weights(name)
    if tag not in ("", RANDOM, "DEFAULT", *presets.__members__):
        raise UsageError(f"torchvision/{name} has no weights {tag!r}: it has DEFAULT, {', '.join(presets.__members__)}")
    preset = presets[tag] if tag and tag != RANDOM else presets.DEFAULT
    extra: dict[str, Any] = {"num_classes": classes} if classes and weights is not None else {}
    if name in ("googlenet", "inception_v3"):
        extra |= {"init_weights": False}
    model = models.get_model(name, weights=preset if tag and tag != RANDOM else None, **extra)
    categories = tuple(preset.meta.get("categories", ()))
    return Classifier(name, model, preset.transforms(), () if classes else categories, _untrained(tag))


def _timm(name: str, weights: str | Path | None, classes: int) -> Classifier:
    timm = _extra("timm", "timm")
    data = _extra("timm.data", "timm")
    name, _, tag = name.partition("@")
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"timm has no model {name!r}{_close(name, timm.list_models())}")
    _one_source(f"timm/{name}", tag, weights)
    extra = {"num_classes": classes} if classes and weights is not None else {}
    full = name if tag in ("", RANDOM, "DEFAULT") else f"{name}.{tag}"
    model = timm.create_model(full, pretrained=tag not in ("", RANDOM), **extra)
    preprocess = data.create_transform(**data.resolve_model_data_config(model), is_training=False)
    return Classifier(name, model, preprocess, notes=_untrained(tag))


def _untrained(tag: str) -> tuple[str, ...]:
    return ("the network is untrained: its weights are random",) if tag == RANDOM else ()


def _one_source(model: str, tag: str, weights: str | Path | None) -> None:
    if not tag and weights is None:
        raise UsageError(
            f"{model} has no weights: give --weights FILE, {model}@DEFAULT to download them, or {model}@RANDOM"
        )
    if tag and weights is not None:
        raise UsageError(f"{model}@{tag} names weights to download and --weights a file: give one of the two")


def _factory(spec: str) -> Classifier:
    place, _, attribute = spec.rpartition(":")
    module = _module_of(place)
    if not hasattr(module, attribute):
        raise UsageError(f"{place} defines no {attribute!r}")
    made = getattr(module, attribute)
    try:
        made = made() if callable(made) and not isinstance(made, nn.Module) else made
    except Exception as error:
        raise ModelError(f"{spec} raised {_first_line(error)}") from error
    model, preprocess, classes = (*made, None, None)[:3] if isinstance(made, tuple) else (made, None, None)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} returned {type(model).__name__}, not a torch.nn.Module")
    notes = (f"running code: {spec} was imported and called",)
    return Classifier(spec, model, preprocess or to_tensor, tuple(classes or ()), notes)


def _module_of(place: str) -> ModuleType:
    """The module at a dotted name or a file."""
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise UsageError(f"cannot import {place!r}: {error}") from error
    path = Path(place)
    if not path.is_file():
        raise UsageError(f"there is no file {place}")
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None:
        raise ModelError(f"{place} cannot be imported as a module")
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module
    try:
        found.loader.exec_module(module)
    except Exception as error:
        raise ModelError(f"{place} cannot be imported: {_first_line(error)}") from error
    return module


def to_tensor(image: Image.Image) -> Tensor:
    """The picture as float values in 0..1, (3, H, W)."""
    return torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1).contiguous()


def _read_labels(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise UsageError(f"labels {path} are not there: give a text file with one class name a line")
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise ModelError(f"labels {path} are not text in UTF-8 ({error})") from error
    if not names:
        raise ModelError(f"labels {path} hold no name: give one class name a line")
    return names


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{extra} is needed for this: pip install 'relupath[{extra}]' ({error})") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip(": ").splitlines()[0]


def _close(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""
