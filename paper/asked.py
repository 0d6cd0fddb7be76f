"""What the scripts of the figures share: which model and pictures are asked for, and numbers in a file."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import cifar10
import relupath
from relupath import creatures, draw, files, images, models
from relupath.errors import UsageError
from relupath.explanations import Explanation

FIRST = creatures.FIRST_UNSEEN_SEED
Asked = tuple[models.Classifier, list[images.Picture]]
Explains = Callable[[models.Classifier, images.Picture, relupath.Partition], Explanation]


def parser(doc: str, count: int) -> argparse.ArgumentParser:
    """The options of a figure: its model and pictures as ``relupath explain`` takes them, and what is written."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    found.add_argument("--model", default="creatures", help="as relupath explain takes it (default: %(default)s)")
    found.add_argument("--weights", type=Path, help="state dict of the model")
    found.add_argument("--labels", type=Path, help="class names, one a line")
    found.add_argument("--photos", type=Path, nargs="+", help="pictures and folders of them; without, creatures")
    found.add_argument("--count", type=int, default=count, help="pictures, spread evenly (default: %(default)s)")
    found.add_argument("--json", type=Path, help="write the numbers here")
    return found


def given(options: argparse.Namespace) -> Asked:
    """The classifier and the pictures."""
    classifier = models.load(options.model, options.weights, options.labels)
    if options.photos is None:
        return classifier, [images.scene(FIRST + number) for number in range(options.count)]
    found = files.pictures(options.photos)
    count = min(options.count, len(found))
    return classifier, [images.read(found[number * len(found) // count]) for number in range(count)]


def drawing_parser(doc: str) -> argparse.ArgumentParser:
    """The options of a figure that explains and draws every picture."""
    found = parser(doc, 32)
    found.add_argument("--output", type=Path, help="a folder for one figure a picture, which shows it")
    found.add_argument("--partition", choices=("neurons", "channels", "locations"), default="neurons")
    found.add_argument("--bare", action="store_true", help="leave the pictures out of the figures")
    return found


def drawn(
    options: argparse.Namespace, explained: Explains, measured: Callable[[Explanation], dict[str, Any]]
) -> tuple[str, list[dict[str, Any]]]:
    """The model's name, and what is measured of every picture; each is drawn where a folder is given."""
    classifier, pictures = given(options)
    rows = []
    for picture in tqdm(pictures, file=sys.stderr):
        explanation = explained(classifier, picture, getattr(relupath, options.partition))
        rows.append(measured(explanation))
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            draw.save(draw.figure(explanation, bare=options.bare), options.output / f"{Path(picture.name).stem}.png")
    return classifier.name, rows


@dataclass(frozen=True)
class Task:
    """A network and its inputs.

    Attributes:
        name: of the network.
        model: the network.
        names: of the pictures.
        x: the input of a number, (C, H, W).
    """

    name: str
    model: nn.Module
    names: Sequence[str]
    x: Callable[[int], Tensor]


def add_cifar10(options: argparse.ArgumentParser) -> None:
    """The option that asks for the authors' network and its pictures instead."""
    options.add_argument("--cifar10", type=Path, help="test.zip of CIFAR-10 as JPEG; --weights are the authors' then")


def task(options: argparse.Namespace) -> Task:
    """What is asked for: the first images of every class of CIFAR-10, mixed once, or a classifier and its pictures."""
    if options.cifar10 is None:
        classifier, pictures = given(options)
        names = [picture.name for picture in pictures]
        return Task(classifier.name, classifier.model, names, lambda n: classifier.prepare(pictures[n].image))
    if options.weights is None:
        raise UsageError("--cifar10 needs the authors' network too: give --weights toycnn_cifar10.safetensors")
    model = cifar10.network()
    models.fit(model, models.read_state(options.weights)[0], str(options.weights))
    x, labels = cifar10.images(options.cifar10, math.ceil(options.count / len(cifar10.CLASSES)))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).tolist()[: options.count]
    names = [f"{cifar10.CLASSES[labels[n]]} {n}" for n in order]
    return Task("the authors' network on CIFAR-10", model, names, lambda n: x[order[n]])


def rounded(numbers: Any) -> Any:
    """Every float with six digits, which is what float32 holds."""
    if isinstance(numbers, dict):
        return {key: rounded(value) for key, value in numbers.items()}
    if isinstance(numbers, (list, tuple)):
        return [rounded(value) for value in numbers]
    return float(f"{numbers:.6g}") if isinstance(numbers, float) else numbers


def write(path: Path | None, numbers: dict[str, Any]) -> None:
    """Write numbers as JSON, a row of a matrix on one line."""
    if path is None:
        return
    files.writable(path, (".json",))
    with files.replacing(path) as draft:
        draft.write_text(_text(rounded(numbers)) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def picture(path: Path, figure: Any) -> None:
    """Write a figure of many pictures; a PNG with the 256 colours nearest to its own, so that it stays small."""
    draw.save(figure, path)
    if path.suffix.lower() == ".png":
        few = Image.open(path).convert("RGB").quantize(256, kmeans=4, dither=Image.Dither.NONE)
        with files.replacing(path) as draft:
            few.save(draft, format="png", optimize=True)


def middle(
    values: Float[np.ndarray, " n"], of: Callable[..., np.ndarray] = np.median, draws: int = 2000
) -> dict[str, float] | None:
    """The median of some numbers, or their mean, with its bootstrap interval (95 %, percentiles); None of nothing."""
    if not len(values):
        return None
    chosen = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(of(values[chosen], axis=1), [0.025, 0.975])
    return {"middle": float(of(values, axis=0)), "low": float(low), "high": float(high)}


def alike(one: Float[np.ndarray, "H W"], other: Float[np.ndarray, "H W"]) -> float:
    """The correlation of two maps; 0 where one is constant."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1]) if one.std() and other.std() else 0.0


def _text(numbers: Any, indent: str = "") -> str:
    """JSON in which what holds no further list or dictionary stands on one line."""
    inner = numbers.values() if isinstance(numbers, dict) else numbers if isinstance(numbers, list) else ()
    if not any(isinstance(value, (dict, list)) for value in inner):
        return json.dumps(numbers, allow_nan=False)
    deeper = indent + " "
    if isinstance(numbers, dict):
        rows = [f"{deeper}{json.dumps(key)}: {_text(value, deeper)}" for key, value in numbers.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + _text(value, deeper) for value in numbers) + f"\n{indent}]"
