"""One share of the output, and those into which it is split: printed, and written as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from jaxtyping import Float
from torch import Tensor

from ._html import block, number, text
from ._paths import Path
from .errors import PathError

FORMAT = "relupath.tree/1"
Kind = Literal["path", "rest", "bias", "by-pass"]


class Split(Protocol):
    """How a node is split."""

    def children(self, node: Node) -> tuple[Node, ...]:
        """The nodes into which it is split."""


@dataclass(eq=False)
class Node:
    """One share of the output: a path, or what is left when its parent is split.

    Attributes:
        kind: ``path``; ``rest``, the units of a layer that have no node of their own, together; ``bias``, the constants
            that enter above the layer at which the parent is split; ``by-pass``, the routes around that layer.
        path: the units that the share passes; of ``bias`` and ``by-pass`` the parent's.
        value: of the share at x, the weight part and the bias.
        bias: the bias part of the value.
        contribution: W * x, one tensor for each explained input, each without the batch axis; it sums to the weight
            part. None for a tree that was read from a file.
    """

    kind: Kind
    path: Path
    value: float
    bias: float
    contribution: tuple[Float[Tensor, "..."], ...] | None = field(default=None, repr=False)
    _split: Split | None = field(default=None, repr=False)
    _children: tuple[Node, ...] | None = field(default=None, repr=False)

    @property
    def weight_part(self) -> float:
        """<W, x>: value - bias."""
        return self.value - self.bias

    @property
    def is_expanded(self) -> bool:
        """Whether the children have been computed."""
        return self._children is not None

    @property
    def children(self) -> tuple[Node, ...]:
        """The shares that add up to this one, computed when they are asked for first; a leaf has none.

        They are the units of the largest |value| on the next layer, the rest of that layer, and the remainder
        (``bias``, ``by-pass``).
        """
        if self._children is None:
            self._children = self._split.children(self) if self._split is not None else ()
        return self._children

    def expand(self, depth: int) -> Node:
        """Compute the tree below this node, so many layers deep; returns the node."""
        if depth > 0:
            for child in self.children:
                child.expand(depth - 1)
        return self

    def leaves(self) -> Iterator[Node]:
        """The nodes of the expanded tree that have no children: they sum to this node."""
        if not self._children:
            yield self
            return
        for child in self._children:
            yield from child.leaves()

    def to_dict(self) -> dict[str, Any]:
        """The expanded tree as plain lists, dictionaries and numbers (the maps are not among them)."""
        numbers = {"value": self.value, "weight_part": self.weight_part, "bias": self.bias}
        children = None if self._children is None else [child.to_dict() for child in self._children]
        return {"format": FORMAT, "kind": self.kind, "path": self.path.to_dict(), **numbers, "children": children}

    def to_json(self) -> str:
        """One JSON object, read back by ``from_json``."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Node:
        """Read what ``to_json`` wrote; what was not expanded then is a leaf now.

        Raises:
            PathError: the text is not a tree of this format.
        """
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise PathError(f"not a tree: the text is not JSON ({error})") from error

    @classmethod
    def from_dict(cls, data: Any) -> Node:
        """Read what ``to_dict`` gave.

        Raises:
            PathError: the dictionary is not a tree of this format.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PathError(f"not a tree: expected a JSON object of format {FORMAT!r}")
        try:
            below = None if data["children"] is None else tuple(map(cls.from_dict, data["children"]))
            path, numbers = Path.from_dict(data["path"]), (float(data["value"]), float(data["bias"]))
            if data["kind"] not in get_args(Kind):
                raise ValueError(f"kind {data['kind']!r}")
            return cls(data["kind"], path, *numbers, _children=below)
        except (KeyError, TypeError, ValueError) as error:
            raise PathError(f"not a tree: {type(error).__name__} {error}") from error

    def __str__(self) -> str:
        return "\n".join(self._lines("", "", None))

    def _repr_html_(self) -> str:
        return block("A share of the output, as the sum of those below it", self._details(None))

    def _details(self, above: Node | None) -> str:
        """This share and those below as far as they were computed; the first level is open."""
        parts = f"{number(self.value)} = {number(self.weight_part)} + bias {number(self.bias)}"
        line = f"{text(self._name(above))} <span>{parts}</span>"
        if not self._children:
            return f"<details><summary>{line}</summary></details>"
        below = "".join(child._details(self) for child in self._children)
        return f"<details{' open' * (above is None)}><summary>{line}</summary>{below}</details>"

    def _lines(self, first: str, others: str, above: Node | None) -> Iterator[str]:
        yield f"{first}{self._name(above)}  {self.value:.4g} = {self.weight_part:.4g} + bias {self.bias:.4g}"
        children = self._children or ()
        for child in children:
            last = child is children[-1]
            yield from child._lines(others + ("`- " if last else "|- "), others + ("   " if last else "|  "), self)

    def _name(self, above: Node | None) -> str:
        if self.kind == "bias":
            return "bias that enters here"
        if self.kind == "by-pass":
            return "routes around the layer"
        if above is None or len(self.path) == len(above.path):
            return str(self.path)
        lowest = self.path.steps[0]
        return f"the rest of {' | '.join(lowest.layers)}" if self.kind == "rest" else str(lowest)
