"""What can be asked about pictures and one network, as a page asks it: one JSON object in, one out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from . import _wire, plans
from ._ablate import ablate
from ._asked import FORMAT, Question
from ._bias import bias_sources
from ._decompose import decompose
from ._frozen import Frozen
from ._linear import linear_model
from ._node import Node
from ._paths import Path
from ._search import Exact, find_paths
from ._shelf import Held, Recording, Shelf, Tree
from ._targets import Target, contrast, logit
from .errors import InputError, PathError, UsageError
from .explanations import Score
from .images import Picture, scene
from .models import Classifier
from .origins import origins
from .runs import Named, choose_classes, layers_asked, record, score_of, shares, shown

SIDE = 256
"""The longest side of a map."""
PICTURES = 32
RECORDINGS = 10
MAX_BYTES = 2**29
NUMBERS = 2**23
"""The largest input that is explored: how many numbers the network takes."""
PRODUCTS = 3000
"""How many products the exact search may take; more take minutes, and memory."""
ROLES = {"target": 0, "against": 1, "contrast": 2}


@dataclass(frozen=True)
class Names:
    """The names of classes, where there is no classifier that knows them."""

    classes: tuple[str, ...] = ()

    def class_name(self, index: int) -> str:
        """The class's name, or its number."""
        return self.classes[index] if index < len(self.classes) else f"class {index}"


@dataclass(frozen=True, eq=False)
class _View:
    """A question about one picture, with what it is about."""

    question: Question
    held: Held
    recording: Recording
    best: tuple[Score, ...]
    target: Score
    against: Score

    @property
    def frozen(self) -> Frozen:
        """The recorded network."""
        return self.recording.frozen

    @property
    def functional(self) -> Target:
        """What is taken apart."""
        return self.functionals[ROLES[self.question.on]]

    @property
    def functionals(self) -> tuple[Target, Target, Target]:
        """Target, the other class, and their contrast."""
        t, p = self.target.index, self.against.index
        return logit(t), logit(p), contrast(t, p)

    @property
    def asked(self) -> tuple[Target, ...]:
        """What a tree or search depends on: where no layers are named, on both classes."""
        return (self.functional,) if self.question.layers is not None else (self.functional, *self.functionals)

    @property
    def units(self) -> dict[str, Any]:
        """Layers and partition of trees and searches."""
        partition = plans.partition(self.question.partition)
        layers = layers_asked(self.frozen, self.question.layers, partition, self.functionals[:2])
        return {"layers": layers, "partition": partition}


class Explorer:
    """Answers questions about pictures; safe to ask from several threads.

    Args:
        named: the classifier, or the names of the classes where only recorded networks are added.
        side: the longest side of the maps that are sent.
        pictures: how many pictures are held; the one not asked for the longest goes first.
        recordings: how many of them stay recorded; others are recorded anew when they are asked for.
        max_bytes: how much the trees may hold, and the recorded layers; those not asked for the longest go first.
        python: the expression with which the classifier is loaded, for the lines of Python on the page.
    """

    def __init__(
        self,
        named: Classifier | Names,
        *,
        side: int = SIDE,
        pictures: int = PICTURES,
        recordings: int = RECORDINGS,
        max_bytes: int = MAX_BYTES,
        python: str | None = None,
    ) -> None:
        self.named: Named = named
        self.classifier = named if isinstance(named, Classifier) else None
        self.side = side
        self.python = python or f"relupath.models.load({getattr(named, 'name', '')!r})"
        self.shelf = Shelf(self._record, pictures, recordings, max_bytes)

    def add(self, picture: Picture, python: str | None = None) -> str:
        """Hold a picture; returns the name by which questions call it.

        Args:
            picture: the picture.
            python: the expression that reads it, for the lines of Python on the page.

        Raises:
            UsageError: there is no classifier.
            ModelError: the picture cannot be prepared.
            InputError: the network takes it as it is, and it is too large.
        """
        if self.classifier is None:
            raise UsageError("no picture can be added here: one recorded network is explored")
        x = self.classifier.prepare(picture.image)
        if x.numel() > NUMBERS:
            raise InputError(
                f"the network takes {picture.name} as {x.numel():,} numbers; at most {NUMBERS:,} are explored: give a "
                "smaller picture"
            )
        seen = _wire.picture_of((shown(self.classifier, picture, x) * 255).round().astype(np.uint8))
        carry = f", carry={self.classifier.carry!r}" if self.classifier.carry else ""
        code = "\n".join([
            f"classifier = {self.python}",
            f"picture = {python or f'relupath.images.read({picture.name!r})'}",
            f"frozen = relupath.freeze(classifier.model, classifier.prepare(picture.image)[None]{carry})",
        ])  # fmt: skip
        return self.shelf.hold(Held(picture.name, x, seen, picture.notes, code))

    def add_recorded(self, frozen: Frozen, name: str = "input", image: Image.Image | None = None) -> str:
        """Hold a network that is recorded already, at one input; returns the name by which questions call it.

        Raises:
            InputError: there are several samples.
        """
        if frozen.batch != 1:
            raise InputError(
                f"one input is explored at a time; this recording holds {frozen.batch}: freeze one of them"
            )
        x = frozen.inputs[0].output[0]
        image = _wire.guessed(x) if image is None else image
        seen = None if image is None else _wire.reduced(image)
        return self.shelf.hold(Held(name, x, seen, (), "# frozen = relupath.freeze(model, x)", frozen))

    def answer(self, data: object) -> dict[str, Any]:
        """The answer to one question, both plain JSON; see docs/view.md for what can be asked.

        Raises:
            RelupathError: any of the library's errors, each in one sentence.
        """
        question = Question.of(data)
        if question.ask not in _ANSWERS:
            raise UsageError(f"no question {question.ask[:40]!r}: expected {', '.join(_ANSWERS)}")
        return {"format": FORMAT, "ask": question.ask, **_ANSWERS[question.ask](self, question)}

    def _hello(self, question: Question) -> dict[str, Any]:
        searches = {name: list(numbers) for name, (_, numbers) in plans.SEARCHES.items()}
        model = self.classifier
        said = {"model": model.name if model else "", "notes": list(model.notes) if model else []}
        pictures = [{"id": key, "name": name} for key, name in self.shelf.names()]
        adds, draws = model is not None, model is not None and model.name == "creatures"
        return {
            **said, "pictures": pictures, "partitions": list(plans.PARTITIONS), "searches": searches,
            "adds": adds, "draws": draws, "classes": list(self.named.classes),
        }  # fmt: skip

    def _scene(self, question: Question) -> dict[str, Any]:
        if self.classifier is None or self.classifier.name != "creatures":
            raise UsageError("scenes are drawn for the model creatures only")
        return {"picture": self.add(scene(question.seed), f"relupath.images.scene({question.seed})")}

    def _open(self, question: Question) -> dict[str, Any]:
        view = self._view(question)
        held, frozen = view.held, view.frozen
        levels = [[layer.name for layer in level] for level in frozen.levels(frozen.layers_of_paths(None))]
        layers = {layer.name: list(layer.shape) for layer in frozen.layers}
        return {
            "picture": {"id": question.picture, "name": held.name, "image": held.shown, "notes": list(held.notes)},
            "best": [vars(score) for score in view.best],
            "target": vars(view.target),
            "against": vars(view.against),
            "rows": self._rows(view),
            "levels": levels,
            "layers": layers,
        }

    def _check(self, question: Question) -> dict[str, Any]:
        view = self._view(question)
        with self.shelf.model:
            account = view.frozen.check(view.functional)
        return {"error": float(account.error[0]), "tolerance": account.tolerance}

    def _bias(self, question: Question) -> dict[str, Any]:
        view = self._view(question)
        (origin,) = origins(bias_sources(view.frozen, view.functional))
        placed = _wire.map_of([torch.from_numpy(origin.map)[None]], self.side)
        layers = [{"layer": name, "value": value} for name, value in origin.layers.items()]
        return {"layers": layers, "unplaced": origin.unplaced, "map": placed}

    def _node(self, question: Question) -> dict[str, Any]:
        view = self._view(question)
        with self._tree(view) as tree:
            node, above = _walk(tree.root, question.path)
            said = [_wire.node_of(child, node, self.side) for child in node.children]
            own = _wire.node_of(node, above, self.side)
            left_out = list(tree.left_out)
        code = None if own["path"] is None else _wire.python_of(view.held.python, _code(view.functional), node.path)
        return {"node": own, "children": said, "python": code, "left_out": left_out}

    def _compare(self, question: Question) -> dict[str, Any]:
        view = self._view(question)
        return {"rows": self._rows(view, self._unit(view))}

    def _paths(self, question: Question) -> dict[str, Any]:
        found = self._found(self._view(question)).answer
        assert found is not None
        return found

    def _cut(self, question: Question) -> dict[str, Any]:
        view = self._view(question)
        path = self._unit(view).path
        if not path.steps:
            raise PathError("the whole output cannot be cut: choose a unit")
        with self.shelf.model:
            done = ablate(view.frozen, Path(path.steps[:1]), view.functional)
        before, after = view.frozen.output[0], done.output[0]
        classes = [*before.topk(min(5, len(before))).indices.tolist(), view.target.index, view.against.index]
        classes = list(dict.fromkeys([*classes, *after.topk(min(5, len(after))).indices.tolist()]))
        numbers = {name: float(getattr(done, name)[0]) for name in ("value", "ablated", "without_path")}
        scores = {
            name: [vars(score_of(self.named, logits, c)) for c in classes]
            for name, logits in (("before", before), ("after", after))
        }
        return {"cut": str(path.steps[0]), **numbers, **scores, "predicted": int(after.argmax())}

    def _view(self, question: Question) -> _View:
        """The picture and the classes that a question is about."""
        held, recording = self.shelf.take(question.picture)
        frozen = recording.frozen
        classes = choose_classes(self.named, frozen.output[0], question.target, question.against)
        return _View(question, held, recording, *classes)

    def _rows(self, view: _View, own: Node | None = None) -> list[dict[str, Any]]:
        """What is taken apart, or one share of it, for the target, the other class and their contrast."""
        known, path = ({}, Path()) if own is None else ({view.question.on: own}, own.path)
        one, both = known.get("target") or _told(view.frozen, view.functionals[0], path), known.get("contrast")
        other = known.get("against") or (
            _difference(one, both) if both else _told(view.frozen, view.functionals[1], path)
        )
        nodes = zip(ROLES, (one, other, both or _difference(one, other)), strict=True)
        return [{"role": role, **_wire.numbers_of(node, self.side)} for role, node in nodes]

    def _unit(self, view: _View) -> Node:
        """The node that is asked about.

        Raises:
            PathError: it is a bias, or the routes around a layer.
        """
        with self._tree(view) as tree:
            node, _ = _walk(tree.root, view.question.path)
        if node.kind not in ("path", "rest"):
            raise PathError(f"a {node.kind} is no path: choose a unit or the rest of a layer")
        return node

    @contextmanager
    def _tree(self, view: _View) -> Iterator[Tree]:
        """The tree that is asked about, for one thread at a time."""
        q = view.question
        search = _searched(q) if q.root.startswith("found:") else None
        key = ("tree", view.asked, q.partition, q.layers, q.width, q.root, search)
        tree = self.shelf.tree(view.recording, key)
        with tree.lock:
            if tree.root is None:
                begin = self._root(view)
                units = view.units
                tree.root = decompose(view.frozen, view.functional, **units, width=q.width, path=begin)
                if q.layers is None and begin is None:
                    every = view.frozen.layers_of_paths(None)
                    tree.left_out = tuple(layer.name for layer in every if layer not in units["layers"])
            yield tree
        self.shelf.trim()

    def _root(self, view: _View) -> Path | None:
        """The path at which the tree begins; None for the whole output."""
        root = view.question.root
        if not root.startswith("found:"):
            return view.question.unit(view.frozen) if root else None
        paths, number = self._found(view).paths, root.removeprefix("found:")
        if not number.isdecimal() or len(number) > 4 or int(number) >= len(paths):
            raise PathError(f"the search found {len(paths)} paths; there is no {root[:40]!r}")
        return paths[int(number)]

    def _found(self, view: _View) -> Tree:
        """The paths of the search that is asked for."""
        q = view.question
        tree = self.shelf.tree(view.recording, ("found", view.asked, q.partition, q.layers, _searched(q)))
        with tree.lock:
            if tree.answer is None:
                strategy = plans.search(q.search, q.numbers)
                if isinstance(strategy, Exact):
                    strategy = replace(strategy, products=PRODUCTS)
                found = find_paths(view.frozen, view.functional, strategy, **view.units)
                paths = shares(found)[0]
                several = max(map(len, found.ranked)) > 1
                said = [self._share(view, path) for path in paths]
                held = float(found.held[0]) if found.value[0] else None
                tree.paths = paths
                tree.answer = {
                    "paths": said, "several": several, "stopped": found.stopped[0], "held": held,
                    "search": repr(strategy),
                }  # fmt: skip
        self.shelf.trim()
        return tree

    def _share(self, view: _View, path: Path) -> dict[str, Any]:
        """A found path, as a node is told."""
        node = _told(view.frozen, view.functional, path)
        return _wire.node_of(node, None, self.side) | {"key": str(path), "name": str(path.steps[0])}

    def _record(self, x: Float[Tensor, "..."]) -> Frozen:
        assert self.classifier is not None
        return record(self.classifier, x, 1)


_ANSWERS: dict[str, Callable[[Explorer, Question], dict[str, Any]]] = {
    "hello": Explorer._hello,
    "scene": Explorer._scene,
    "open": Explorer._open,
    "node": Explorer._node,
    "compare": Explorer._compare,
    "bias": Explorer._bias,
    "check": Explorer._check,
    "paths": Explorer._paths,
    "cut": Explorer._cut,
}


def _walk(root: Node | None, keys: Sequence[str]) -> tuple[Node, Node | None]:
    """The node at the end of a way down a tree, and its parent.

    Raises:
        PathError: there is none.
    """
    assert root is not None
    node, above = root, None
    for key in keys:
        below = {_wire.key_of(child, node): child for child in node.children}
        if key not in below:
            raise PathError(f"there is no {key[:80]!r} below {str(node.path)[:80]}: it may be part of the rest")
        node, above = below[key], node
    return node, above


def _told(frozen: Frozen, target: Target, path: Path) -> Node:
    """The linear model of a path, at the one input."""
    model = linear_model(frozen, target, path)
    weights = model.weight if isinstance(model.weight, tuple) else (model.weight,)
    terms = tuple((w * x.output)[0] for w, x in zip(weights, frozen.inputs, strict=True))
    return Node("path", path, float(model.value[0]), float(model.bias[0]), terms)


def _difference(one: Node, other: Node) -> Node:
    terms = zip(one.contribution or (), other.contribution or (), strict=True)
    return Node("path", one.path, one.value - other.value, one.bias - other.bias, tuple(a - b for a, b in terms))


def _searched(question: Question) -> tuple[Any, ...]:
    return question.search, *sorted(question.numbers.items())


def _code(target: Target) -> str:
    """The Python expression of a target."""
    if target.minus is None:
        return f"relupath.logit({target.plus})"
    return f"relupath.contrast({target.plus}, {target.minus})"
