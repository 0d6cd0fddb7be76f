"""How faithful maps are to a network on a person's own pictures: searches, simple baselines and a random control."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from . import metrics
from ._contributions import contributions
from ._frozen import Frozen
from ._html import block, said, table
from .errors import ModelError, UsageError
from .images import Picture
from .models import Classifier
from .runs import Plan, Progress, class_index, record

FORMAT = "relupath.evaluation/1"
WHOLE, GRADIENT, RANDOM = "W x", "|gradient|", "random"
MEASURES = {"insertion": "higher", "deletion": "lower"}
"""What is measured, and which way is better."""
AUTHORS = "by channel"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Curves and their areas, for every measure, method and picture.

    Attributes:
        model: the model's name.
        pictures: the pictures' names.
        targets: the class explained at each picture.
        methods: their names; the last one is the random control.
        measures: insertion and deletion, and the variant of the paper's authors if it was asked for.
        areas: one number a measure, method and picture.
        curves: the score after each step, the mean over the pictures; of steps that were left out, on a line.
        empty: for each method, at how many pictures its map is all zero, so that all pixels are at random.
        notes: sentences that a person should read.
        searches: for each method that is a search, the strategy as it prints.
        tolerance: within which steps were left out; None: none were.
    """

    model: str
    pictures: tuple[str, ...]
    targets: tuple[str, ...]
    methods: tuple[str, ...]
    measures: tuple[str, ...]
    areas: Float[np.ndarray, "measures methods n"] = field(repr=False)
    curves: Float[np.ndarray, "measures methods points"] = field(repr=False)
    empty: tuple[int, ...]
    notes: tuple[str, ...] = ()
    searches: Mapping[str, str] = field(default_factory=dict)
    tolerance: float | None = None

    def interval(self, measure: str, method: str) -> metrics.Interval:
        """The mean area over the pictures and its bootstrap interval."""
        row = self.areas[self.measures.index(measure), self.methods.index(method)]
        return metrics.interval(torch.from_numpy(row))

    def _repr_html_(self) -> str:
        rows = [
            (measure, better(measure), method, *asdict(self.interval(measure, method)).values())
            for measure in self.measures
            for method in self.methods
        ]
        heads = "measure", "better", "method", "mean", "low", "high", "level"
        title = f"{self.model}: area under the curve over {len(self.pictures)} pictures"
        return block(title, table(heads, rows, 60), *map(said, self.notes))

    def to_dict(self) -> dict[str, Any]:
        """The figures with their intervals and the curves, as plain lists and dictionaries."""
        figures = [
            {
                "measure": measure,
                "better": better(measure),
                "method": method,
                **asdict(self.interval(measure, method)),
                "curve": self.curves[m, k].tolist(),
            }
            for m, measure in enumerate(self.measures)
            for k, method in enumerate(self.methods)
        ]
        words = {"model": self.model, "pictures": list(self.pictures), "targets": list(self.targets)}
        empty = dict(zip(self.methods, self.empty, strict=True))
        plan = {"searches": dict(self.searches), "tolerance": self.tolerance}
        return {"format": FORMAT, **words, "figures": figures, "empty": empty, **plan}

    def to_csv(self) -> str:
        """One line a picture and method, with a column for each measure."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["picture", "target", "method", *self.measures])
        for n, (picture, target) in enumerate(zip(self.pictures, self.targets, strict=True)):
            for k, method in enumerate(self.methods):
                table.writerow([picture, target, method, *self.areas[:, k, n].tolist()])
        return text.getvalue()


def better(measure: str) -> str:
    """Whether ``higher`` or ``lower`` is better."""
    return MEASURES[measure.split()[0]]


def evaluate(
    classifier: Classifier,
    pictures: Iterable[Picture],
    plans: Mapping[str, Plan],
    target: str | int | None = None,
    authors: bool = False,
    tolerance: float | None = None,
    progress: Progress = lambda stage: None,
) -> Evaluation:
    """Insertion and deletion of ``W * x``, of the absolute gradient, of paths, and of a random map.

    All pictures are read before anything is measured.

    Args:
        classifier: the model.
        pictures: two or more.
        plans: how paths are looked for, by name; the map is the sum of ``W^P * x`` over the paths.
        target: class index or name, for all pictures; None means the class predicted at each.
        authors: also measure with the channels sorted apart, as the paper's authors do.
        tolerance: leave out the steps that move an area by less, by estimate; see ``metrics.deletion``. None: none.
        progress: called before each stage with its name.

    Raises:
        UsageError: there are less than two pictures, or the network takes them in different sizes.
        InputError: the tolerance is negative.
        RelupathError: any other of the library's errors, each in one sentence.

    Source: see ``relupath.metrics``.
    """
    inputs: list[Tensor] = []
    names: list[str] = []
    notes: list[str] = []
    for picture in pictures:
        progress(f"reading picture {len(inputs) + 1}")
        inputs.append(classifier.prepare(picture.image))
        names.append(picture.name)
        notes += picture.notes
    if len(inputs) < 2:
        raise UsageError(f"give two or more pictures: an interval needs them; got {len(inputs)}")
    if len({tuple(x.shape) for x in inputs}) != 1:
        shapes = ", ".join(sorted({str(list(x.shape)) for x in inputs}))
        raise UsageError(f"give pictures that the network takes in one size; got {shapes}")
    methods = (WHOLE, GRADIENT, *plans, RANDOM)
    measures = (*MEASURES, *(f"{measure} {AUTHORS}" for measure in MEASURES if authors))
    scores = np.empty((len(measures), len(methods), len(inputs), inputs[0].shape[1] + 1))
    areas, targets, empty = np.empty(scores.shape[:3]), [], [0] * len(methods)
    for n, x in enumerate(inputs):
        progress(f"picture {n + 1} of {len(inputs)}: recording")
        frozen = record(classifier, x, 1)
        targets.append(_class(classifier, frozen, target))
        for k, (method, maps) in enumerate(_maps(classifier, frozen, targets[-1], plans, n)):
            progress(f"picture {n + 1} of {len(inputs)}: {method}")
            empty[k] += not maps.any()
            for m, curve in enumerate(_curves(classifier, x, targets[-1], maps, n, authors, tolerance)):
                scores[m, k, n], areas[m, k, n] = curve.scores[0].cpu().numpy(), float(curve.area)
    return Evaluation(
        classifier.name,
        tuple(names),
        tuple(classifier.class_name(c) for c in targets),
        methods,
        measures,
        areas,
        scores.mean(2),
        tuple(empty),
        tuple(notes),
        {name: repr(plan.search) for name, plan in plans.items()},
        tolerance,
    )


def _class(classifier: Classifier, frozen: Frozen, target: str | int | None) -> int:
    """The class that is explained.

    Raises:
        ModelError: the model gives no logits.
        TargetError: there is no such class.
    """
    logits = frozen.output[0]
    if logits.ndim != 1 or len(logits) < 2:
        raise ModelError(f"expected one output a class, at least two; got shape {list(logits.shape)}")
    return int(logits.argmax()) if target is None else class_index(classifier, target, len(logits))


def _maps(
    classifier: Classifier, frozen: Frozen, c: int, plans: Mapping[str, Plan], seed: int
) -> Iterator[tuple[str, Float[Tensor, "1 C H W"]]]:
    """The map of each method, in their order."""
    yield WHOLE, contributions(frozen, c)[0]
    yield GRADIENT, _gradient(classifier, frozen, c).abs()
    for name, plan in plans.items():
        yield name, contributions(frozen, c, plan.search, layers=plan.chosen(frozen), partition=plan.partition)[0]
    x = frozen.inputs[0].output
    yield RANDOM, torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)


def _gradient(classifier: Classifier, frozen: Frozen, c: int) -> Float[Tensor, "1 C H W"]:
    """The gradient of the logit, as autograd gives it: of a smooth activation its true slope, not the gate."""
    with torch.enable_grad():
        x = frozen.inputs[0].output.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(classifier.model(x + 0)[0, c], x)
    return gradient


def _curves(
    classifier: Classifier,
    x: Tensor,
    c: int,
    maps: Float[Tensor, "1 C H W"],
    seed: int,
    authors: bool,
    tolerance: float | None,
) -> Iterator[metrics.Curve]:
    """The curves of one map, one a measure."""
    for ranks in (metrics.ranks, metrics.channel_ranks)[: 1 + authors]:
        order = ranks(maps, seed)
        for measure in (metrics.insertion, metrics.deletion):
            yield measure(classifier.model, x[None], c, order, tolerance=tolerance)
