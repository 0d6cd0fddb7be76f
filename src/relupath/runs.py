"""The main job: explain one picture, for the target class, the plausible class and their contrast."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ._ablate import ablate
from ._bias import bias_sources
from ._decompose import decompose
from ._freeze import freeze
from ._frozen import Frozen
from ._linear import PathModel, linear_model
from ._partitions import Partition, neurons
from ._paths import Path
from ._search import Exact, Found, Gap, Greedy, Search, find_paths
from ._targets import Target, contrast
from ._units import Layer
from .errors import ModelError, RelupathError, TargetError, UsageError
from .explanations import Explanation, LayerRow, Layers, Part, Row, Score
from .images import Picture
from .models import Classifier
from .origins import Origin, origins

Progress = Callable[[str], None]
SHOWN = 8
"""How many of several paths are shown."""


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
    _, score, _ = choose_classes(classifier, frozen.output[0], target, None)
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


@dataclass(frozen=True)
class Plan:
    """How paths are looked for.

    Attributes:
        search: the strategy.
        partition: what counts as one unit.
        layers: layer names separated by commas, or ``every:K``; None means all.
        depth: at most so many layers from the top; None means all.
        ablate: run the model without each path's units, and say what becomes of the target.
        tree: depth and width of a decomposition tree of the first target, or None.
        gap: also find Algorithm 1's path and the exact best one; the exact search always does.
    """

    search: Search = field(default_factory=Greedy)
    partition: Partition = neurons
    layers: str | None = None
    depth: int | None = None
    ablate: bool = False
    tree: tuple[int, int] | None = None
    gap: bool = False

    def chosen(self, frozen: Frozen) -> list[Layer] | None:
        """The layers to search; None means all."""
        chosen = None if self.layers is None else layers_named(frozen, self.layers)
        if self.depth is None:
            return chosen
        if self.depth < 1:
            raise UsageError(f"depth must be at least 1; got {self.depth}")
        levels = frozen.levels(frozen.layers if chosen is None else chosen)
        return [layer for level in levels[: self.depth] for layer in level]


def explain(
    classifier: Classifier,
    picture: Picture,
    target: str | int | None = None,
    against: str | int | None = None,
    plan: Plan | None = None,
    progress: Progress = lambda stage: None,
) -> Explanation:
    """Explain one picture: the whole linear model and the paths that matter, for target, plausible class and contrast.

    Where the user names the target and the network decided for another class, what speaks for that class against the
    target comes first, with the causal check beside its paths.

    Args:
        classifier: the model.
        picture: the picture.
        target: class index or name; None means the predicted class.
        against: the class to compare with; None means the plausible one, the best class other than the target.
        plan: how paths are looked for; None means Algorithm 1 over all layers.
        progress: called before each stage with its name.

    Raises:
        RelupathError: any of the library's errors, each in one sentence.
    """
    plan = plan or Plan()
    x = classifier.prepare(picture.image)
    progress("recording the forward pass")
    frozen = record(classifier, x, 3)
    best, right, other = choose_classes(classifier, frozen.output[0], target, against)
    errs = against is None and right.index != best[0].index
    rows, roles, titles = _rows(right, other, errs, named=against is not None)
    chosen = frozen.layers_of_paths(plan.chosen(frozen))
    frozen.partitions(chosen, plan.partition)
    progress("checking completeness")
    error = float(frozen.check(rows).error.max())
    progress("summing the constants")
    biases = origins(bias_sources(frozen, rows))
    progress("searching paths")
    found = find_paths(frozen, rows, plan.search, layers=chosen, partition=plan.partition)
    gap = _gaps(found, plan, progress)
    models = _models(frozen, rows, found, progress)
    ablated = _ablated(frozen, rows, found, plan.ablate, errs, progress)
    tree = None
    if plan.tree is not None:
        progress("growing the tree")
        depth, width = plan.tree
        tree = decompose(frozen, rows, layers=chosen, partition=plan.partition, width=width).expand(depth)
    return Explanation(
        picture=picture.name,
        model=classifier.name,
        shown=shown(classifier, picture, x),
        best=best,
        target=right,
        plausible=other,
        rows=tuple(
            replace(_row(b, said, frozen, found, models, ablated[b]), gap=_gap(b, gap))
            for b, said in enumerate(zip(roles, titles, biases, strict=True))
        ),
        error=error,
        notes=classifier.notes + picture.notes,
        search=repr(plan.search),
        tree=tree,
    )


def _rows(right: Score, other: Score, errs: bool, named: bool) -> tuple[Target, list[str], list[str]]:
    """The three targets with roles and titles: target, plausible class, contrast; an error first where there is one."""
    t, p, minus = right.index, other.index, "\N{MINUS SIGN}"
    if errs:
        titles = [f"{other.name} {minus} {right.name}", right.name, other.name]
        return contrast([p, t, p], [t, None, None]), ["error", "target", "plausible"], titles
    titles = [right.name, other.name, f"{right.name} {minus} {other.name}"]
    return contrast([t, p, t], [None, None, p]), ["target", "against" if named else "plausible", "contrast"], titles


def shares(found: Found) -> list[list[Path]]:
    """The paths to show for each row: of one path its cuts from thin to deep, of several the best ones."""
    if max(map(len, found.ranked)) > 1:
        return [[path for path in ranked[:SHOWN] if path] for ranked in found.ranked]
    return [[path.top(count) for count in range(1, len(path) + 1)] for path in found.paths]


def _models(frozen: Frozen, rows: Target, found: Found, progress: Progress) -> list[PathModel]:
    """The linear models of the whole network, then of the paths to show, all rows at once."""
    cuts = shares(found)
    most = max(map(len, cuts))
    models = [linear_model(frozen, rows)]
    for number in range(most):
        progress(f"path models: {number + 1} of {most}")
        paths = [share[min(number, len(share) - 1)] if share else Path() for share in cuts]
        models.append(linear_model(frozen, rows, path=paths))
    return models


def _ablated(
    frozen: Frozen, rows: Target, found: Found, every: bool, errs: bool, progress: Progress
) -> list[list[float | None]]:
    """The targets without the units of each path to show, as far as that was asked for."""
    values: list[list[float | None]] = []
    for b, share in enumerate(shares(found)):
        count = len(share) if every else min(SHOWN, len(share)) if errs and b == 0 else 0
        row: list[float | None] = [None] * len(share)
        for number, path in enumerate(share[:count]):
            progress(f"causal check: {number + 1} of {count}")
            row[number] = float(ablate(frozen, path, rows).ablated[b])
        values.append(row)
    return values


def _row(
    b: int,
    said: tuple[str, str, Origin],
    frozen: Frozen,
    found: Found,
    models: Sequence[PathModel],
    ablated: Sequence[float | None],
) -> Row:
    role, title, origin = said
    several = max(map(len, found.ranked)) > 1
    importance = list(found.importance[b].values())
    x = frozen.inputs[0].output[b]

    def part(number: int, path: Path) -> Part:
        model = models[number]
        assert isinstance(model.weight, Tensor)
        contribution = (model.weight[b] * x).sum(0).cpu().double().numpy()
        numbers = float(model.value[b]), float(model.weight_part[b]), float(model.bias[b])
        size = importance[number - 1] if number and not several else None
        return Part(path, size, *numbers, contribution, ablated[number - 1] if number else None)

    path, end = found.paths[b], None
    if path.input is not None:
        (element,) = path.input.units
        weight = models[len(path)].weight
        assert isinstance(weight, Tensor)
        place = tuple(i for i in element if i is not None)
        end = f"x[{','.join(map(str, place))}]", float(weight[b][place] * x[place])
    parts = tuple(part(number, path) for number, path in enumerate(shares(found)[b], start=1))
    whole = part(0, Path(target=path.target))
    held = float(found.held[b]) if found.value[b] else None
    return Row(role, title, whole, parts, end, found.stopped[b], origin, held, several)


def _gaps(found: Found, plan: Plan, progress: Progress) -> Gap | None:
    """How far Algorithm 1 is from the exact best path, where that was asked for, or the search is the exact one."""
    if not (plan.gap or isinstance(plan.search, Exact)):
        return None
    progress("searching the best path")
    return found.gap()


def _gap(b: int, gap: Gap | None) -> tuple[float | None, float | None] | None:
    """What the paths of Algorithm 1 and of the exact search hold, None for one that is not there to compare."""
    if gap is None:
        return None
    greedy, exact = (None if number.isnan() else float(number) for number in (gap.greedy[b], gap.exact[b]))
    return greedy, exact


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


class Named(Protocol):
    """What knows the names of the classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names, or none."""

    def class_name(self, index: int) -> str:
        """The name of one, or its number."""


def score_of(named: Named, logits: Float[Tensor, " C"], c: int) -> Score:
    """The score of one class."""
    return Score(c, named.class_name(c), float(logits[c]), float(logits.softmax(0)[c]))


def choose_classes(
    classifier: Named, logits: Float[Tensor, "..."], wanted: str | int | None, against: str | int | None
) -> tuple[tuple[Score, ...], Score, Score]:
    """The five best classes, the target, and the class to compare with: by default the best other one.

    Raises:
        ModelError: the output does not hold one number a class, or there are more or fewer names.
        TargetError: there is no such class.
        UsageError: the target is compared with itself.
    """
    if logits.ndim != 1 or len(logits) < 2:
        raise ModelError(f"expected one output a class, at least two; got shape {list(logits.shape)}")
    if classifier.classes and len(classifier.classes) != len(logits):
        raise ModelError(f"there are {len(classifier.classes)} class names for the {len(logits)} classes of the model")
    order = logits.argsort(descending=True).tolist()

    def score(c: int) -> Score:
        return score_of(classifier, logits, c)

    target = order[0] if wanted is None else class_index(classifier, wanted, len(logits))
    plausible = next(c for c in order if c != target)
    if against is not None:
        plausible = class_index(classifier, against, len(logits))
    if plausible == target:
        raise UsageError(f"{classifier.class_name(target)} cannot be compared with itself: name another class")
    return tuple(score(c) for c in order[:5]), score(target), score(plausible)


def class_index(classifier: Named, wanted: str | int, count: int) -> int:
    """The index of a class given by number or name."""
    text = str(wanted)
    if text.removeprefix("-").isdecimal():
        if not 0 <= int(text) < count:
            raise TargetError(f"class {text[:20]} is out of range: the model has {count} classes, 0 to {count - 1}")
        return int(text)
    names = [classifier.class_name(c) for c in range(count)]
    matches = [c for c, name in enumerate(names) if name.casefold() == text.casefold()]
    if len(matches) == 1:
        return matches[0]
    close = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    raise TargetError(f"{'several classes are' if matches else 'no class is'} named {text!r}{hint}")


def layers_named(frozen: Frozen, layers: str) -> list[Layer]:
    """Layers by name or position, separated by commas, ``every:K`` (counted from the top), or ``all``."""
    if layers.startswith("every:"):
        step = layers.removeprefix("every:")
        if not step.isdecimal() or int(step) < 1:
            raise UsageError(f"layers every:K needs a whole number K of at least 1; got {step!r}")
        return list(frozen.layers[:: -int(step)])[::-1]
    known = {layer.name for layer in frozen.layers}
    if layers == "all" and layers not in known:
        return frozen.layers_of_paths(None)
    given = [name.strip() for name in layers.split(",")]
    return [frozen.layer(n if n in known or not n.removeprefix("-").isdecimal() else int(n)) for n in given]


def layers_asked(frozen: Frozen, wanted: str | None, partition: Partition, targets: Sequence[Target]) -> list[Layer]:
    """The layers named, see ``layers_named``, or all, but for levels at the top where no unit serves several targets.

    Where every class has units of its own, such as the channels that SqueezeNet ends in, a path over them is of one
    class alone: nothing of another class passes it, and below it there is nothing to compare. Where no level has a
    unit in common, as where nothing at all speaks for one of the targets, all stay.
    """
    if wanted is not None:
        return layers_named(frozen, wanted)
    layers = frozen.layers_of_paths(None)
    partitions, levels = frozen.partitions(layers, partition), frozen.levels(layers)
    tops = [{frozen.top: frozen.functional(target).gradient} for target in targets]
    for number, level in enumerate(levels):
        pulled = [frozen.vjp(top, level) for top in tops]
        for layer, *cotangents in zip(level, *pulled, strict=True):
            passed = [partitions[layer].scores(v * layer.output) != 0 for v in cotangents]
            if bool((torch.stack(passed).sum(0) > 1).any()):
                left_out = {layer for above in levels[:number] for layer in above}
                return [layer for layer in layers if layer not in left_out]
    return layers


def shown(classifier: Classifier, picture: Picture, x: Tensor) -> Float[np.ndarray, "H W 3"]:
    """The input as the network saw it: the normalisation is undone by what it makes of black and of white.

    Of channels that are neither one nor three the mean is shown.
    """
    ends = [Image.new("RGB", picture.image.size, colour) for colour in ("black", "white")]
    black, white = map(classifier.prepare, ends)
    shown = ((x - black) / (white - black).clamp(min=1e-6)).clamp(0, 1)
    if len(shown) not in (1, 3):
        shown = shown.mean(0, keepdim=True)
    return shown.expand(3, *shown.shape[1:]).permute(1, 2, 0).cpu().double().numpy()
