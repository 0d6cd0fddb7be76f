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
SHOWN = (WHOLE, "Mass, top layer", "Mass, 3 layers", "Mass, all layers", "Greedy, all layers")


def measured(classifier: Classifier, pictures: Sequence[Picture]) -> dict[str, Any]:
    """For each model and picture: W x, the bias, and what the model of the picture gives for every picture."""
    x = torch.stack([classifier.prepare(picture.image) for picture in pictures])
    names = [WHOLE, *(f"{search}, {layers}" for search in SEARCHES for layers in LAYERS)]
    values: dict[str, list[list[float]]] = {name: [] for name in names}
    biases: dict[str, list[float]] = {name: [] for name in names}
    classes = []
    for one in tqdm(x, file=sys.stderr):
        frozen = runs.record(classifier, one, 1)
        c = int(frozen.output[0].argmax())
        classes.append(c)
        paths: list[relupath.Path | None] = [None]
        for search in SEARCHES.values():
            (path,) = relupath.find_paths(frozen, c, search).paths
            depth = len(path) - (path.input is not None)
            paths += [path.top(min(k or depth, depth)) for k in LAYERS.values()]
        for name, path in zip(names, paths, strict=True):
            model = relupath.linear_model(frozen, c, path)
            values[name].append(((x * model.weight).flatten(1).double().sum(1) + float(model.bias)).tolist())
            biases[name].append(float(model.bias))
    models = {}
    for name in names:
        told = summary(np.array(values[name]), np.array(biases[name]), classes)
        models[name] = {**told, "bias": biases[name], "values": values[name]}
    words = {"pictures": [Path(p.name).name for p in pictures], "classes": [*map(classifier.class_name, classes)]}
    return {"model": classifier.name, **words, "models": models}


def summary(values: Float[np.ndarray, "n n"], bias: Float[np.ndarray, " n"], classes: Sequence[int]) -> dict[str, Any]:
    """Is a model biased? Medians over the inputs at which it is taken.

    ``bias_share`` is ``|b| / (|W x| + |b|)`` at its own input. ``same_elsewhere`` is the mean of what it gives for the
    other inputs, by what it gives for its own: 1 where it says the same everywhere, 0 where others get nothing.
    ``stands_out`` is by how many standard deviations of the others its own input is above their mean. ``tells_class``
    is how often an input of its class gets more than one of another class, of all such pairs; 0.5 is chance.
    """
    own, count = np.diagonal(values), len(values)
    others = values[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    spread, clear = others.std(1), others.std(1) > 0
    told = [_told(values[i], i, np.array(classes)) for i in range(count)]
    known = [share for share in told if share is not None]
    return {
        "bias_share": float(np.median(np.abs(bias) / (np.abs(own - bias) + np.abs(bias)))),
        "same_elsewhere": float(np.median(others.mean(1) / own)),
        "stands_out": float(np.median((own - others.mean(1))[clear] / spread[clear])) if clear.any() else None,
        "tells_class": float(np.mean(known)) if known else None,
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
