"""Figure 1: W x against the bias of linear models at many inputs, and each one applied to all the others.

    python paper/figure1.py --output figure1.svg --json paper/expected/figure1.json
    python paper/figure1.py --model torchvision/squeezenet1_0 --weights FILE --photos FOLDER --output figure1.png

The paper finds the linear model of the whole network to be "biased": it leans on its bias, and gives nearly the same
for most other inputs. Here the same is asked of it and of path models, each of the path found at the input itself, with
units on the top layer alone, on three layers, and on all.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

import asked
import relupath
from relupath import _canvas, draw, runs
from relupath._search import Search
from relupath.images import Picture
from relupath.models import Classifier

SEARCHES: Mapping[str, Search] = {
    "Greedy": relupath.Greedy(),
    "Mass": relupath.Mass(),
    "Selective": relupath.Selective(),
}
LAYERS = {"top layer": 1, "3 layers": 3, "all layers": None}
WHOLE = "whole network"
WEIGHTS, BIAS = "#0072b2", "#e69f00"
WORDS = ("bias_share", "same_elsewhere", "stands_out", "tells_class")
MATRICES = 64
"""Up to so many inputs all values are written, not only what is measured of each input."""
SHOWN = (WHOLE, "Mass, top layer", "Mass, 3 layers", "Mass, all layers", "Greedy, all layers")


def measured(classifier: Classifier, pictures: Sequence[Picture]) -> dict[str, Any]:
    """For each model and picture: W x, the bias, and what the model of the picture gives for every picture."""
    x = torch.stack([classifier.prepare(picture.image) for picture in pictures])
    names = [WHOLE, *(f"{search}, {layers}" for search in SEARCHES for layers in LAYERS)]
    values: dict[str, list[list[float]]] = {name: [] for name in names}
    biases: dict[str, list[float]] = {name: [] for name in names}
    classes = []
    for one in tqdm(x, file=sys.stderr):
        c, rows, constants = applied(classifier, one, x)
        classes.append(c)
        for name, row, constant in zip(names, rows, constants, strict=True):
            values[name].append(row)
            biases[name].append(constant)
    models = {name: told(np.array(values[name]), np.array(biases[name]), classes) for name in names}
    words = {"pictures": [Path(p.name).name for p in pictures], "classes": [*map(classifier.class_name, classes)]}
    return {"model": classifier.name, **words, "models": models}


def applied(
    classifier: Classifier, one: Float[Tensor, "C H W"], x: Float[Tensor, "n C H W"]
) -> tuple[int, list[list[float]], list[float]]:
    """The class at one input; what each model taken there gives for every input; its bias."""
    frozen = runs.record(classifier, one, 1)
    c = int(frozen.output[0].argmax())
    paths: list[relupath.Path | None] = [None]
    for search in SEARCHES.values():
        (path,) = relupath.find_paths(frozen, c, search).paths
        depth = len(path) - (path.input is not None)
        paths += [path.top(min(k or depth, depth)) for k in LAYERS.values()]
    models = [relupath.linear_model(frozen, c, path) for path in paths]
    weights, biases = torch.cat([model.weight for model in models]), torch.cat([model.bias for model in models])
    return c, (weights.flatten(1) @ x.flatten(1).T + biases[:, None]).tolist(), biases.tolist()


def told(values: Float[np.ndarray, "n n"], bias: Float[np.ndarray, " n"], classes: Sequence[int]) -> dict[str, Any]:
    """What is written of a model: medians over the inputs, with intervals, then each input's numbers."""
    each = measures(values, bias, classes)
    some = {word: np.array([number for number in numbers if number is not None]) for word, numbers in each.items()}
    middle = {word: asked.middle(some[word], np.mean if word == "tells_class" else np.median) for word in WORDS}
    medians = {word: None if found is None else found["middle"] for word, found in middle.items()}
    matrix = {"values": values.tolist()} if len(values) <= MATRICES else {}
    own = {"bias": bias.tolist(), "own": np.diagonal(values).tolist()}
    return {**medians, "intervals": middle, "each": each, **own, **matrix}


def measures(
    values: Float[np.ndarray, "n n"], bias: Float[np.ndarray, " n"], classes: Sequence[int]
) -> dict[str, list[float | None]]:
    """Is a model biased? For every input at which it is taken; None where a question has no answer.

    ``bias_share`` is ``|b| / (|W x| + |b|)`` at its own input. ``same_elsewhere`` is the mean of what it gives for the
    other inputs, by what it gives for its own: 1 where it says the same everywhere, 0 where others get nothing.
    ``stands_out`` is by how many standard deviations of the others its own input is above their mean. ``tells_class``
    is how often an input of its class gets more than one of another class, of all such pairs; 0.5 is chance.
    """
    own, count = np.diagonal(values), len(values)
    others = values[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    mean, spread = others.mean(1), others.std(1)

    def by(one: np.ndarray, other: np.ndarray) -> list[float | None]:
        return [a / b if b else None for a, b in zip(one.tolist(), other.tolist(), strict=True)]

    return {
        "bias_share": by(np.abs(bias), np.abs(own - bias) + np.abs(bias)),
        "same_elsewhere": by(mean, own),
        "stands_out": by(own - mean, spread),
        "tells_class": [_told(values[i], i, np.array(classes)) for i in range(count)],
    }


def _told(row: Float[np.ndarray, " n"], i: int, classes: np.ndarray) -> float | None:
    """How often an input of the same class gets more than one of another; nothing where there is no pair."""
    same = row[(classes == classes[i]) & (np.arange(len(row)) != i)]
    other = row[classes != classes[i]]
    if not len(same) or not len(other):
        return None
    return float(((same[:, None] > other).mean() + (same[:, None] >= other).mean()) / 2)


def figure(found: Mapping[str, Any]) -> Any:
    """A column for each model shown: above W x and bias at every input, below each model at all inputs."""
    side, gap, count = 2.5, 0.75, len(found["pictures"])
    width, height = gap + (side + gap) * len(SHOWN), 1.1 + 2 * (side + 0.6)
    fig = _canvas.canvas(width, height, "Pixels or bias, here and elsewhere")
    for column, name in enumerate(SHOWN):
        model = found["models"][name]
        values, bias = np.array(model["values"]), np.array(model["bias"])
        upper, lower = (
            fig.add_axes(((gap + (side + gap) * column) / width, bottom / height, side / width, side / height))
            for bottom in (0.6 + side + 0.6, 0.6)
        )
        order = np.argsort(found["classes"], kind="stable")
        upper.bar(np.arange(count) - 0.2, (np.diagonal(values) - bias)[order], 0.4, color=WEIGHTS, label="W x")
        upper.bar(np.arange(count) + 0.2, bias[order], 0.4, color=BIAS, label="bias")
        upper.axhline(0, color=_canvas.LINE, linewidth=0.8)
        upper.set_title(f"{name}\nbias share {model['bias_share']:.2f}", fontsize=9, color=_canvas.INK)
        upper.set(xticks=[])
        scale = float(np.abs(values).max()) or 1.0
        lower.imshow(values[order][:, order], cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
        _canvas.frame(lower)
        words = f"stands out by {model['stands_out'] or 0:.1f} s.d.   (scale {_canvas.short(scale)})"
        lower.set_xlabel(words, fontsize=8, color=_canvas.INK)
        upper.tick_params(labelsize=7, length=2)
        if not column:
            upper.legend(fontsize=7, frameon=False)
            lower.set_ylabel("linear model taken at ...", fontsize=8, color=_canvas.FAINT)
    note = f"{found['model']}, {count} pictures by class. Below: row, where it is taken; column, where applied."
    fig.text(0.03, 0.02, note, fontsize=7, color=_canvas.FAINT)
    return fig


def main() -> None:
    """Measure, print a line for each model, and draw."""
    parser = asked.parser(__doc__, 24)
    parser.add_argument("--output", type=Path, help="the figure: .png, .pdf or .svg")
    options = parser.parse_args()
    classifier, pictures = asked.given(options)
    if options.output and len(pictures) > MATRICES:
        parser.error(f"{len(pictures)} pictures cannot be drawn: give --count {MATRICES} at most, or no --output")
    if len(pictures) < 3:
        parser.error(f"a linear model is compared over the other pictures: give three or more; got {len(pictures)}")
    found = measured(classifier, pictures)
    print(f"{'model':<24}" + "".join(f"{word:>16}" for word in WORDS))
    for name, model in found["models"].items():
        numbers = (f"{'-' if model[word] is None else format(model[word], '.3f'):>16}" for word in WORDS)
        print(f"{name:<24}" + "".join(numbers))
    asked.write(options.json, found)
    if options.output:
        draw.save(figure(found), options.output)


if __name__ == "__main__":
    main()
