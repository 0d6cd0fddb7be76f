"""The main job: explain one picture, for the target class, the plausible class and their contrast."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ._bias import bias_sources
from ._freeze import freeze
from ._frozen import Frozen
from ._linear import PathModel, linear_model
from ._paths import Path
from ._search import Found, Greedy, find_paths
from ._targets import contrast
from ._units import Layer
from .errors import ModelError, RelupathError, TargetError, UsageError
from .images import Picture
from .models import Classifier
from .origins import Origin, origins

FORMAT = "relupath.explanation/1"
LAYERS_FORMAT = "relupath.layers/1"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Score:
    """One class of the output: its index, name, logit and soft-max probability."""

    index: int
    name: str
    logit: float
    probability: float


@dataclass(frozen=True, eq=False)
class Part:
    """The linear model of a path: what it adds to the target, split into weight part and bias part.

    Attributes:
        path: the path; empty for the whole network.
        importance: of its lowest unit, as the search saw it; None for the whole network.
        value: f^P(x) = weight_part + bias.
        weight_part: <W^P, x>.
        bias: b^P.
        contribution: W^P * x, summed over colour channels, (H, W); it sums to ``weight_part``.
    """

    path: Path
    importance: float | None
    value: float
    weight_part: float
    bias: float
    contribution: Float[np.ndarray, "H W"] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Row:
    """What explains one target: the whole linear model, then Algorithm 1's path from thin to deep.

    Attributes:
        role: ``target``, ``plausible`` (``against`` if the user named the class) or ``contrast``.
        title: the target in words.
        whole: the linear model of the whole network.
        parts: the path cut after 1, 2, ... layers from the top.
        end: the input element where the path ends, with its weight times value; None if it ends before.
        stopped: why the search ended.
        origin: where the bias of the whole network comes from.
    """

    role: str
    title: str
    whole: Part
    parts: tuple[Part, ...]
    end: tuple[str, float] | None
    stopped: str
    origin: Origin


@dataclass(frozen=True, eq=False)
class Explanation:
    """Everything that was found out about one picture.

    Attributes:
        picture: the picture's name.
        model: the model's name.
        shown: what the network saw, 0..1, (H, W, 3).
        best: the five best classes.
        target: the class explained.
        plausible: the class compared with: the best one other than the target, unless another was named.
        rows: target, plausible class and contrast.
        error: the largest relative error of completeness by two independent routes.
        notes: sentences that a person should read.
    """

    picture: str
    model: str
    shown: Float[np.ndarray, "H W 3"] = field(repr=False)
    best: tuple[Score, ...]
    target: Score
    plausible: Score
    rows: tuple[Row, ...]
    error: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as plain lists and dictionaries (the maps are not among them)."""

        def part(p: Part) -> dict[str, Any]:
            numbers = {"value": p.value, "weight_part": p.weight_part, "bias": p.bias}
            return {"path": p.path.to_dict(), "importance": p.importance, **numbers}

        def row(r: Row) -> dict[str, Any]:
            end = {"element": r.end[0], "value": r.end[1]} if r.end else None
            words = {"role": r.role, "title": r.title, "stopped": r.stopped}
            parts = {"whole": part(r.whole), "parts": [part(p) for p in r.parts], "input": end}
            return {**words, **parts, "bias": r.origin.to_dict()}

        return {
            "format": FORMAT,
            "picture": self.picture,
            "model": self.model,
            "best": [vars(score) for score in self.best],
            "target": vars(self.target),
            "plausible": vars(self.plausible),
            "completeness_error": self.error,
            "rows": [row(r) for r in self.rows],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class LayerRow:
    """One layer of a network at one picture.

    Attributes:
        name: the layer's name; ``x`` is the input and ``output`` the output.
        shape: of one sample.
        neurons: how many numbers that is.
        open: share of the neurons whose gate is more than half open (slope above 1/2); None where there are no gates.
        bias: what the constants between the layer before and this one add to the target.
    """

    name: str
    shape: tuple[int, ...]
    neurons: int
    open: float | None
    bias: float


@dataclass(frozen=True)
class Layers:
    """The layers of a network at one picture, and where the bias of the target enters.

    Attributes:
        model: the model's name.
        picture: the picture's name.
        target: the class explained.
        weight_part: <W, x>.
        bias: b; the rows' biases sum to it.
        rows: input, hidden layers in order of execution, output.
        operations: how many operations were treated in which way.
    """

    model: str
    picture: str
    target: Score
    weight_part: float
    bias: float
    rows: tuple[LayerRow, ...]
    operations: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as plain lists and dictionaries."""
        return {"format": LAYERS_FORMAT, **asdict(self)}


def layers(
    classifier: Classifier, picture: Picture, target: str | int | None = None, progress: Progress = lambda stage: None
) -> Layers:
    """List the layers: shape, neurons, share of open gates, and what the constants that enter there add to the target.

    Args:
        classifier: the model.
        picture: the picture at which the gates are counted.
        target: class index or name; None means the predicted class.
        progress: called before each stage with its name.

    Raises:
        RelupathError: any of the library's errors, each in one sentence.
    """
    progress("recording the forward pass")
    frozen = record(classifier, classifier.prepare(picture.image), 1)
    _, score, _ = _classes(classifier, frozen.output[0], target, None)
    progress("summing the constants")
    terms = frozen.bias_terms(score.index)
    account = frozen.check(score.index)
    rows = []
    for position, layer in enumerate([*frozen.inputs, *frozen.layers, frozen.top]):
        slopes = frozen.slopes(layer) if layer in frozen.layers else None
        bias = sum(float(term) for source, term in terms.items() if source.layers == position - 1)
        rows.append(
            LayerRow(
                layer.name,
                layer.shape,
                math.prod(layer.shape),
                None if slopes is None else float((slopes > 0.5).double().mean()),
                bias,
            )
        )
    kinds = dict(Counter(operation.kind for operation in frozen.operations))
    numbers = float(account.weight_part[0]), float(account.bias[0])
    return Layers(classifier.name, picture.name, score, *numbers, tuple(rows), kinds)


def explain(
    classifier: Classifier,
    picture: Picture,
    target: str | int | None = None,
    against: str | int | None = None,
    *,
    layers: str | None = None,
    depth: int | None = None,
    progress: Progress = lambda stage: None,
) -> Explanation:
    """Explain one picture: the whole linear model and Algorithm 1's path, for target, plausible class and contrast.

    Args:
        classifier: the model.
        picture: the picture.
        target: class index or name; None means the predicted class.
        against: the class to compare with; None means the plausible one, the best class other than the target.
        layers: layer names separated by commas, or ``every:K``; None means all.
        depth: at most so many layers from the top; None means all.
        progress: called before each stage with its name.

    Raises:
        RelupathError: any of the library's errors, each in one sentence.
    """
    x = classifier.prepare(picture.image)
    progress("recording the forward pass")
    frozen = record(classifier, x, 3)
    best, target_score, plausible = _classes(classifier, frozen.output[0], target, against)
    t, p = target_score.index, plausible.index
    rows = contrast([t, p, t], [None, None, p])
    chosen = None if layers is None else _chosen(frozen, layers)
    if depth is not None:
        if depth < 1:
            raise UsageError(f"depth must be at least 1; got {depth}")
        levels = frozen.levels(frozen.layers if chosen is None else chosen)
        chosen = [layer for level in levels[:depth] for layer in level]
    progress("checking completeness")
    error = float(frozen.check(rows).error.max())
    progress("summing the constants")
    biases = origins(bias_sources(frozen, rows))
    progress("searching paths")
    found = find_paths(frozen, rows, Greedy(), layers=chosen)
    deepest = max(len(path) for path in found.paths)
    models = []
    for count in range(deepest + 1):
        progress(f"path models: depth {count} of {deepest}")
        models.append(linear_model(frozen, rows, path=[path.top(min(count, len(path))) for path in found.paths]))
    roles = ("target", "plausible" if against is None else "against", "contrast")
    titles = (target_score.name, plausible.name, f"{target_score.name} \N{MINUS SIGN} {plausible.name}")
    return Explanation(
        picture=picture.name,
        model=classifier.name,
        shown=_shown(classifier, picture, x),
        best=best,
        target=target_score,
        plausible=plausible,
        rows=tuple(
            _row(b, role, title, frozen, found, models, biases[b])
            for b, (role, title) in enumerate(zip(roles, titles, strict=True))
        ),
        error=error,
        notes=classifier.notes + picture.notes,
    )


def _row(
    b: int, role: str, title: str, frozen: Frozen, found: Found, models: Sequence[PathModel], origin: Origin
) -> Row:
    path = found.paths[b]
    importance = list(found.importance[b].values())
    x = frozen.inputs[0].output[b]

    def part(count: int) -> Part:
        model = models[count]
        assert isinstance(model.weight, Tensor)
        contribution = (model.weight[b] * x).sum(0).cpu().double().numpy()
        numbers = float(model.value[b]), float(model.weight_part[b]), float(model.bias[b])
        return Part(path.top(count), importance[count - 1] if count else None, *numbers, contribution)

    end = None
    if path.input is not None:
        (element,) = path.input.units
        weight = models[len(path)].weight
        assert isinstance(weight, Tensor)
        place = tuple(i for i in element if i is not None)
        end = f"x[{','.join(map(str, place))}]", float(weight[b][place] * x[place])
    parts = tuple(part(count) for count in range(1, len(path) + 1))
    return Row(role, title, part(0), parts, end, found.stopped[b], origin)


def record(classifier: Classifier, x: Tensor, copies: int) -> Frozen:
    """One recorded forward pass of some copies of the input."""
    try:
        return freeze(classifier.model, x.expand(copies, *x.shape), carry=classifier.carry)
    except RelupathError:
        raise
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise ModelError(
            f"the model cannot run on an input of shape {list(x.shape)}: {type(error).__name__}: {said}"
        ) from error


def _classes(
    classifier: Classifier, logits: Float[Tensor, " C"], wanted: str | int | None, against: str | int | None
) -> tuple[tuple[Score, ...], Score, Score]:
    """The five best classes, the target, and the class to compare with: by default the best other one."""
    if logits.ndim != 1 or len(logits) < 2:
        raise ModelError(f"expected one output a class, at least two; got shape {list(logits.shape)}")
    if classifier.classes and len(classifier.classes) != len(logits):
        raise ModelError(f"there are {len(classifier.classes)} class names for the {len(logits)} classes of the model")
    probabilities = logits.softmax(0)
    order = logits.argsort(descending=True).tolist()

    def score(c: int) -> Score:
        return Score(c, classifier.class_name(c), float(logits[c]), float(probabilities[c]))

    target = order[0] if wanted is None else class_index(classifier, wanted, len(logits))
    plausible = next(c for c in order if c != target)
    if against is not None:
        plausible = class_index(classifier, against, len(logits))
    if plausible == target:
        raise UsageError(f"{classifier.class_name(target)} cannot be compared with itself: name another class")
    return tuple(score(c) for c in order[:5]), score(target), score(plausible)


def class_index(classifier: Classifier, wanted: str | int, count: int) -> int:
    """The index of a class given by number or name."""
    text = str(wanted)
    if text.lstrip("-").isdecimal():
        if not 0 <= int(text) < count:
            raise TargetError(f"class {text} is out of range: the model has {count} classes, 0 to {count - 1}")
        return int(text)
    names = [classifier.class_name(c) for c in range(count)]
    matches = [c for c, name in enumerate(names) if name.casefold() == text.casefold()]
    if len(matches) == 1:
        return matches[0]
    close = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    raise TargetError(f"{'several classes are' if matches else 'no class is'} named {text!r}{hint}")


def _chosen(frozen: Frozen, layers: str) -> list[Layer]:
    """Layers by name or position, separated by commas, or ``every:K`` (counted from the top)."""
    if layers.startswith("every:"):
        step = layers.removeprefix("every:")
        if not step.isdecimal() or int(step) < 1:
            raise UsageError(f"layers every:K needs a whole number K of at least 1; got {step!r}")
        return list(frozen.layers[:: -int(step)])[::-1]
    known = {layer.name for layer in frozen.layers}
    given = [name.strip() for name in layers.split(",")]
    return [frozen.layer(n if n in known or not n.lstrip("-").isdecimal() else int(n)) for n in given]


def _shown(classifier: Classifier, picture: Picture, x: Tensor) -> Float[np.ndarray, "H W 3"]:
    """The input as the network saw it: the normalisation is undone by what it makes of black and of white."""
    ends = [Image.new("RGB", picture.image.size, colour) for colour in ("black", "white")]
    black, white = map(classifier.prepare, ends)
    shown = ((x - black) / (white - black).clamp(min=1e-6)).clamp(0, 1)
    return shown.expand(3, *shown.shape[1:]).permute(1, 2, 0).cpu().double().numpy()
