"""Paths: sets of hidden units from input to output, and their algebra."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import index
from types import NoneType
from typing import Any, SupportsIndex

from ._html import block, said, table
from ._units import Unit
from .errors import PathError

Given = Sequence[SupportsIndex | None]
"""A unit as it is given: coordinates of any kind of whole number."""

FORMAT = "relupath.path/1"
SHOWN = 8
"""How many units of a layer are printed."""


@dataclass(frozen=True)
class Step:
    """The chosen units of one layer, or of layers side by side.

    Attributes:
        layer: the layer's name.
        units: coordinates, sorted; None stands for a whole axis.
        beside: the chosen units of layers that do not depend on this one nor on each other, such as the branches of a
            concatenation: a route passes the chosen units of one of these layers.
        but: whether the units are those left out: all others are chosen.
    """

    layer: str
    units: tuple[Unit, ...]
    beside: tuple[Step, ...] = ()
    but: bool = False

    def __post_init__(self) -> None:
        """Bring the units into one order.

        Raises:
            PathError: there is no unit, one is named twice, or a layer is.
        """
        if len(set(self.layers)) < len(self.layers) or any(step.beside for step in self.beside):
            raise PathError(f"the layers side by side must be different ones, without others beside: {self.layers}")
        units = tuple(tuple(unit) for unit in self.units)
        if not units and not self.but:
            raise PathError(f"no unit is chosen on layer {self.layer!r}")
        if len(set(units)) < len(units):
            raise PathError(f"a unit of layer {self.layer!r} is named twice")
        object.__setattr__(self, "units", tuple(sorted(units, key=_order)))

    @classmethod
    def over(cls, parts: Iterable[Step]) -> Step:
        """The step of layers side by side, each given by a step of its own."""
        first, *others = parts
        return replace(first, beside=tuple(others))

    @property
    def parts(self) -> dict[str, Step]:
        """The steps of the single layers, by layer name."""
        return {step.layer: step for step in (replace(self, beside=()), *self.beside)}

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers side by side; most steps have one."""
        return (self.layer, *(step.layer for step in self.beside))

    def lies_within(self, other: Step) -> bool:
        """Whether every neuron of this step is one of the other's."""
        coarse = other.parts
        return all(layer in coarse and _is_part(part, coarse[layer]) for layer, part in self.parts.items())

    def __str__(self) -> str:
        shown = "".join(f"[{_coordinates(unit)}]" for unit in self.units[:SHOWN])
        more = f"[... {len(self.units) - SHOWN} more]" if len(self.units) > SHOWN else ""
        but = (" but " if self.units else "[all]") if self.but else ""
        return " | ".join([self.layer + but + shown + more, *map(str, self.beside)])


@dataclass(frozen=True)
class Path:
    """Sets of units on hidden layers, input side first, towards a target.

    The path model collects the terms that pass the chosen units on every layer of ``steps``. ``input`` names the
    input element at which a search ended; it restricts nothing: that element's term is its weight times its value.

    Attributes:
        steps: one for each layer, input side first.
        input: the input element where Algorithm 1 ends, or None.
        target: what the path leads to, such as ``logit 936``; for people.
    """

    steps: tuple[Step, ...] = ()
    input: Step | None = None
    target: str = ""

    def __post_init__(self) -> None:
        """Refuse a layer named twice.

        Raises:
            PathError: two steps are on the same layer.
        """
        names = [frozenset(step.layers) for step in self.steps]
        if len(set(names)) < len(names):
            raise PathError("a path has one step a layer: put all its units of a layer into that step")

    @classmethod
    def of(cls, units: Iterable[tuple[str, Given | Sequence[Given]]], target: str = "") -> Path:
        """A path from (layer name, unit) or (layer name, units) pairs, input side first.

        Raises:
            PathError: a layer is not given by its name, or a unit not by whole numbers (or None for a whole axis).
        """
        steps = []
        for layer, chosen in units:
            try:
                steps.append(_step({"layer": layer, "units": _coordinates_of(chosen)}))
            except TypeError as error:
                raise PathError(
                    "a path takes pairs of a layer's name and a unit, such as ('layer1.relu', (17, 4, 9)); "
                    f"got {layer!r} with {chosen!r}"
                ) from error
        return cls(tuple(steps), target=target)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, input side first."""
        return tuple(dict.fromkeys(layer for step in self.steps for layer in step.layers))

    def __len__(self) -> int:
        return len(self.steps)

    def top(self, count: int) -> Path:
        """The thinner path of the top ``count`` layers.

        Raises:
            PathError: the count is negative or exceeds the number of layers.
        """
        if not 0 <= count <= len(self):
            raise PathError(f"cannot take the top {count} of a path of {len(self)} layers")
        return Path(self.steps[len(self) - count :], target=self.target)

    def refines(self, other: Path) -> bool:
        """Whether this path is a part of the other: on each layer of the other, its units lie within the other's."""
        return all(any(step.lies_within(coarse) for step in self.steps) for coarse in other.steps)

    def __str__(self) -> str:
        ends = [f"{self.input.layer}[{','.join(map(str, self.input.units[0]))}]"] if self.input else []
        return " <- ".join([*ends, *map(str, self.steps), self.target or "output"])

    def _repr_html_(self) -> str:
        steps = [*([self.input] if self.input else []), *self.steps]
        rows = [(str(step),) for step in reversed(steps)]
        parts = table(("from the output down",), rows, most=60) if rows else said("the whole output")
        return block(f"Path to {self.target or 'the output'}", parts)

    def to_json(self) -> str:
        """One JSON object, read back by ``from_json``."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """The path as plain lists, dictionaries and numbers."""

        def plain(step: Step) -> dict[str, Any]:
            beside = {"beside": [plain(other) for other in step.beside]} if step.beside else {}
            but = {"but": True} if step.but else {}
            return {"layer": step.layer, "units": [list(unit) for unit in step.units], **but, **beside}

        return {
            "format": FORMAT,
            "target": self.target,
            "steps": [plain(step) for step in self.steps],
            "input": plain(self.input) if self.input else None,
        }

    @classmethod
    def from_json(cls, text: str) -> Path:
        """Read what ``to_json`` wrote.

        Raises:
            PathError: the text is not a path of this format.
        """
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise PathError(f"not a path: the text is not JSON ({error})") from error

    @classmethod
    def from_dict(cls, data: Any) -> Path:
        """Read what ``to_dict`` gave.

        Raises:
            PathError: the dictionary is not a path of this format.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PathError(f"not a path: expected a JSON object of format {FORMAT!r}")
        try:
            steps = tuple(_step(step) for step in data["steps"])
            return cls(steps, _step(data["input"]) if data["input"] else None, str(data["target"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise PathError(f"not a path: {type(error).__name__} {error}") from error


def _step(data: Any) -> Step:
    units = tuple(tuple(unit) for unit in data["units"])
    if not isinstance(data["layer"], str) or any(type(i) not in (int, NoneType) for unit in units for i in unit):
        raise TypeError("a step has a layer name and units of integer coordinates")
    beside = tuple(_step(other) for other in data.get("beside", ()))
    return Step(data["layer"], units, beside, bool(data.get("but", False)))


def _coordinates_of(chosen: Any) -> list[list[int | None]]:
    """One unit, or several, in plain numbers: what argmax gives, of numpy or torch, is none yet."""
    several = all(isinstance(unit, tuple | list) for unit in chosen)
    return [[None if i is None else index(i) for i in unit] for unit in (chosen if several else [chosen])]


def _order(unit: Unit) -> tuple[int, ...]:
    return tuple(-1 if i is None else i for i in unit)


def _is_part(fine: Step, coarse: Step) -> bool:
    """Whether the neurons of one layer that a step chooses are all chosen by another step."""
    if fine.but:
        whole = any(all(i is None for i in unit) for unit in coarse.units) and not coarse.but
        return whole or (coarse.but and all(any(_within(u, f) for f in fine.units) for u in coarse.units))
    if coarse.but:
        return not any(_meet(u, c) for u in fine.units for c in coarse.units)
    return all(any(_within(u, c) for c in coarse.units) for u in fine.units)


def _meet(unit: Unit, other: Unit) -> bool:
    return len(unit) == len(other) and all(i is None or j is None or i == j for i, j in zip(unit, other, strict=True))


def _within(unit: Unit, coarse: Unit) -> bool:
    return len(unit) == len(coarse) and all(c is None or i == c for i, c in zip(unit, coarse, strict=True))


def _coordinates(unit: Unit) -> str:
    """``c17,y4,x9`` for maps, ``c17`` for a channel, ``17`` for a plain vector."""
    letters = {3: "cyx", 4: "czyx"}.get(len(unit))
    if letters:
        return ",".join(f"{letter}{i}" for letter, i in zip(letters, unit, strict=True) if i is not None) or "all"
    return ",".join(":" if i is None else str(i) for i in unit)
