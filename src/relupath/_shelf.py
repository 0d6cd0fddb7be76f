"""The pictures that are held, those that are recorded, and what was computed about them: each bounded."""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ._frozen import Frozen
from ._node import Node
from ._paths import Path
from .errors import RelupathError

TREES = 64
"""How many trees and searches of one recording are kept."""


class PictureGone(RelupathError, LookupError):
    """The picture is not held, or not any longer."""


@dataclass(eq=False)
class Tree:
    """A tree, or a search's paths, of one recording; for one thread at a time.

    Attributes:
        root: the tree.
        paths: the paths.
        answer: what was said about the paths.
        left_out: layers on top at which it is not split, see ``runs.layers_asked``.
        lock: held while it is used.
    """

    root: Node | None = None
    paths: Sequence[Path] = ()
    answer: dict[str, Any] | None = None
    left_out: tuple[str, ...] = ()
    lock: threading.RLock = field(default_factory=threading.RLock)

    def nbytes(self, frozen: Frozen) -> int:
        """About how many bytes it holds of a recording: for every node and path the weights and what they add."""
        each = 2 * sum(layer.output.nbytes for layer in frozen.inputs)
        return len(self.paths) * each + (_nbytes(self.root, frozen, each) if self.root is not None else 0)


@dataclass(frozen=True, eq=False)
class Recording:
    """A recorded forward pass, with what was computed about it.

    Attributes:
        frozen: the network at the picture.
        trees: by what was asked.
    """

    frozen: Frozen
    trees: OrderedDict[object, Tree] = field(default_factory=OrderedDict)


@dataclass(frozen=True, eq=False)
class Held:
    """A picture as the network takes it, small enough to keep many.

    Attributes:
        name: of the picture.
        x: the network's input, without the batch axis.
        shown: what the network saw, as it is sent, or None.
        notes: sentences that a person should read.
        python: the lines of Python that give ``frozen``.
        recorded: the recording, where it was given.
    """

    name: str
    x: Tensor
    shown: dict[str, Any] | None
    notes: tuple[str, ...]
    python: str
    recorded: Frozen | None = None


class Shelf:
    """Holds pictures, keeps a few recorded, and forgets first what was not asked for the longest.

    Args:
        record: gives the recorded forward pass of an input.
        pictures: how many pictures are held.
        recordings: how many of them stay recorded.
        max_bytes: how much all trees may hold, and how much the layers of all recordings but one.
    """

    def __init__(self, record: Callable[[Tensor], Frozen], pictures: int, recordings: int, max_bytes: int) -> None:
        self.record, self.pictures, self.recordings, self.max_bytes = record, pictures, recordings, max_bytes
        self.model = threading.RLock()
        self._held: dict[str, Held] = {}
        self._used: OrderedDict[str, None] = OrderedDict()
        self._recorded: OrderedDict[str, Recording] = OrderedDict()
        self._lock = threading.Lock()

    def names(self) -> list[tuple[str, str]]:
        """Key and name of every picture, in the order in which they were opened."""
        with self._lock:
            return [(key, held.name) for key, held in self._held.items()]

    def hold(self, held: Held) -> str:
        """Hold a picture; returns its key, which is the same for the same input and name."""
        data = held.x.detach().cpu().double().contiguous().numpy().tobytes()
        key = hashlib.sha256(held.name.encode(errors="replace") + data).hexdigest()[:12]
        with self._lock:
            self._held[key] = held
            self._used[key] = None
            self._used.move_to_end(key)
            while len(self._held) > self.pictures:
                gone, _ = self._used.popitem(last=False)
                del self._held[gone]
                self._recorded.pop(gone, None)
        return key

    def take(self, key: str) -> tuple[Held, Recording]:
        """A picture and its recorded forward pass, recorded anew where it was forgotten.

        Raises:
            PictureGone: the picture is not held.
        """
        held, recording = self._look(key)
        if recording is not None:
            return held, recording
        with self.model:
            held, recording = self._look(key)
            if recording is None:
                recording = Recording(held.recorded or self.record(held.x))
                with self._lock:
                    self._recorded[key] = recording
                    while len(self._recorded) > 1 and self._is_full():
                        self._recorded.popitem(last=False)
            return held, recording

    def _is_full(self) -> bool:
        """Whether more is recorded than may be."""
        layers = [layer for recording in self._recorded.values() for layer in recording.frozen.layers]
        return len(self._recorded) > self.recordings or sum(layer.output.nbytes for layer in layers) > self.max_bytes

    def tree(self, recording: Recording, key: object) -> Tree:
        """What was computed for a question, or an empty place for it."""
        with self._lock:
            tree = recording.trees.setdefault(key, Tree())
            recording.trees.move_to_end(key)
            while len(recording.trees) > TREES:
                recording.trees.popitem(last=False)
            return tree

    def trim(self) -> None:
        """Forget trees until all fit, those of the recordings first that were not asked for the longest."""
        with self._lock:
            sizes = [
                (recording.trees, key, tree.nbytes(recording.frozen))
                for recording in self._recorded.values()
                for key, tree in recording.trees.items()
            ]
            held = sum(size for *_, size in sizes)
            for trees, key, size in sizes:
                if held <= self.max_bytes:
                    break
                del trees[key]
                held -= size

    def _look(self, key: str) -> tuple[Held, Recording | None]:
        with self._lock:
            held = self._held.get(key)
            if held is None:
                raise PictureGone("this picture is not held any longer: open it again")
            self._used.move_to_end(key)
            if key in self._recorded:
                self._recorded.move_to_end(key)
            return held, self._recorded.get(key)


def _nbytes(node: Node, frozen: Frozen, each: int) -> int:
    """What a node and those below it hold: ``each``, and the cotangents on the lowest layers of the path."""
    held = each + sum(_nbytes(child, frozen, each) for child in (node.children if node.is_expanded else ()))
    if node.kind == "rest":
        held += sum(frozen.layer(name).output.nbytes for name in node.path.steps[0].layers)
    elif node.kind == "path" and node.path.steps:
        (step,) = node.path.steps[0].parts.values()
        layer = frozen.layer(step.layer)
        neurons = sum(
            math.prod(size for i, size in zip(unit, layer.shape, strict=True) if i is None) for unit in step.units
        )
        held += neurons * (layer.output.element_size() + 8 * layer.output.ndim)
    return held
