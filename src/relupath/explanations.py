"""What is found out about one picture: the results of a run, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from ._html import block, number, said, shape, table
from ._node import Node
from ._paths import Path
from .origins import Origin

FORMAT = "relupath.explanation/1"
LAYERS_FORMAT = "relupath.layers/1"


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
        ablated: the target in a real forward pass in which the path's units are zero; None if it was not asked for.
    """

    path: Path
    importance: float | None
    value: float
    weight_part: float
    bias: float
    contribution: Float[np.ndarray, "H W"] = field(repr=False)
    ablated: float | None = None

    @property
    def unit(self) -> str:
        """The lowest units of the path in a few words."""
        if not self.path.steps:
            return "whole network"
        lowest = self.path.steps[0]
        count = sum(len(part.units) for part in lowest.parts.values())
        return str(lowest) if count == 1 else f"{' | '.join(lowest.layers)}[{count} units]"


@dataclass(frozen=True, eq=False)
class Row:
    """What explains one target: the whole linear model, then a path from thin to deep, or several paths.

    Attributes:
        role: ``target``, ``plausible`` (``against`` if the user named the class) or ``contrast``; ``error``, the
            contrast that speaks for the wrong class, where the network errs.
        title: the target in words.
        whole: the linear model of the whole network.
        parts: the path cut after 1, 2, ... layers from the top; or, of a search for several paths, these paths.
        end: the input element where the path ends, with its weight times value; None if it ends before.
        stopped: why the search ended.
        origin: where the bias of the whole network comes from.
        held: share of the target's value that the paths hold together; None where the value is 0.
        several: whether the parts are several paths rather than one at several depths.
        gap: the values of the complete paths of Algorithm 1 and of the exact search, None where one has no such path;
            None if it was not asked for.
    """

    role: str
    title: str
    whole: Part
    parts: tuple[Part, ...]
    end: tuple[str, float] | None
    stopped: str
    origin: Origin
    held: float | None = None
    several: bool = False
    gap: tuple[float | None, float | None] | None = None


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
        search: the strategy that found the paths, as it prints.
        tree: the decomposition tree of the first row's target, if it was asked for.
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
    search: str = ""
    tree: Node | None = None

    def _repr_html_(self) -> str:
        best = [(s.name, s.logit, round(100 * s.probability, 1)) for s in self.best]
        wholes = [(r.title, r.whole.value, r.whole.weight_part, r.whole.bias) for r in self.rows]
        parts = [
            part for row in self.rows for part in (said(f"{row.role}: {row.title}; {row.stopped}"), _parts(row.parts))
        ]
        return block(
            f"{self.picture} explained by {self.model}",
            table(("best classes", "logit", "probability in %"), best),
            table(("", "value", "weight part", "bias"), wholes),
            *parts,
            said(f"W x + bias equals the output to {number(self.error)}"),
            self.tree._repr_html_() if self.tree else "",
        )

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as plain lists and dictionaries (the maps are not among them)."""

        def part(p: Part) -> dict[str, Any]:
            numbers = {"value": p.value, "weight_part": p.weight_part, "bias": p.bias}
            return {"path": p.path.to_dict(), "importance": p.importance, **numbers, "ablated": p.ablated}

        def row(r: Row) -> dict[str, Any]:
            end = {"element": r.end[0], "value": r.end[1]} if r.end else None
            words = {"role": r.role, "title": r.title, "stopped": r.stopped, "held": r.held, "several": r.several}
            parts = {"whole": part(r.whole), "parts": [part(p) for p in r.parts], "input": end}
            gap = dict(zip(("greedy", "exact"), r.gap, strict=True)) if r.gap else None
            return {**words, **parts, "gap": gap, "bias": r.origin.to_dict()}

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
            "search": self.search,
            "tree": self.tree.to_dict() if self.tree else None,
        }


def _parts(parts: tuple[Part, ...]) -> str:
    """Paths with their numbers, as an HTML table."""
    rows = [(part.unit, part.value, part.weight_part, part.bias) for part in parts]
    return table(("path from the output down", "value", "weight part", "bias"), rows, 60)


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

    def _repr_html_(self) -> str:
        rows = [
            (
                r.name,
                shape(r.shape),
                r.neurons,
                None if r.open is None else round(100 * r.open, 1),
                r.bias,
            )
            for r in self.rows
        ]
        total = f"{number(self.target.logit)} = {number(self.weight_part)} + bias {number(self.bias)}"
        return block(
            f"{self.model} at {self.picture}",
            said(f"{self.target.name}: {total}"),
            table(("layer", "shape", "neurons", "gates open in %", "bias"), rows, 200),
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it, as plain lists and dictionaries."""
        return {"format": LAYERS_FORMAT, **asdict(self)}
