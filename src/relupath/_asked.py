"""What a page asks: one JSON object, checked before anything is computed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from ._frozen import Frozen
from ._paths import Path, Step
from ._units import Unit, refuse_unit
from .errors import PathError, UsageError

FORMAT = "relupath.view/1"
On = Literal["target", "against", "contrast"]
LONGEST = 2000
"""Characters of a text, and elements of a list."""
WIDEST = 64
"""Units that have a node of their own."""
MOST = {"width": 1024, "classes": 1000, "share": 1, "k": 64, "budget": 256}
"""The largest numbers that a search is given here."""


LONG = ("paths", "check")
"""What may take long to answer."""


@dataclass(frozen=True)
class Question:
    """What a page asks about one picture.

    Attributes:
        ask: what is asked; see ``Explorer.answer``.
        picture: which picture.
        target: class index or name; None means the predicted class.
        against: the class to compare with; None means the plausible one.
        on: which of target, the other class, and their contrast the tree takes apart.
        partition: what counts as one unit, as on the command line.
        layers: as on the command line; None means all where both classes can be compared, see ``layers_asked``.
        width: how many units a layer have a node of their own.
        root: where the tree begins: nothing for the whole output, ``layer:unit``, or ``found:N``, the N-th path of the
            search.
        path: keys of nodes from the root down.
        search: a search's name.
        numbers: what the search takes.
        seed: of a scene to draw.
    """

    ask: str
    picture: str = ""
    target: int | str | None = None
    against: int | str | None = None
    on: On = "target"
    partition: str = "channels"
    layers: str | None = None
    width: int = 6
    root: str = ""
    path: tuple[str, ...] = ()
    search: str = "greedy"
    numbers: Mapping[str, float] = field(default_factory=dict, hash=False)
    seed: int = 0

    @classmethod
    def of(cls, data: object) -> Question:
        """The question in a JSON object; what it does not hold keeps its default.

        Raises:
            UsageError: it is no object, or something in it is unknown, of another kind, too long or out of range.
        """
        if not isinstance(data, dict):
            raise UsageError(f"a question is a JSON object; got {type(data).__name__}")
        for name, value in data.items():
            if name not in _EXPECTED:
                raise UsageError(f"a question has no {str(name)[:40]!r}; it may have {', '.join(_EXPECTED)}")
            fits, words = _EXPECTED[name]
            if not fits(value):
                raise UsageError(f"{name} must be {words}; got {str(value)[:60]!r}")
        if "ask" not in data:
            raise UsageError("a question says with 'ask' what it asks")
        given: dict[str, Any] = {name: tuple(value) if name == "path" else value for name, value in data.items()}
        return cls(**given)

    def key(self) -> str:
        """The question in one line of JSON: sorted, without what has its default; the page makes the same line."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {name: list(value) if name == "path" else value for name, value in given.items()}
        default = vars(Question("")) | {"path": [], "numbers": {}}
        told = {name: value for name, value in plain.items() if value != default[name]}
        return json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def unit(self, frozen: Frozen) -> Path:
        """The path of the one unit that the root names.

        Raises:
            UsageError: it names none.
            UnknownLayerError: there is no such layer.
            PathError: the unit is not in the layer.
        """
        layer, unit = unit_named(self.root)
        found = frozen.layer_of_path(layer)
        coordinates = _coordinates(unit, len(found.shape))
        refuse_unit(coordinates, found)
        return Path((Step(found.name, (coordinates,)),))


def is_long(question: object) -> bool:
    """Whether the answer may take long: such questions wait for each other, and no other one waits for them."""
    return isinstance(question, dict) and (
        question.get("ask") in LONG or str(question.get("root", "")).startswith("found:")
    )


def unit_named(text: str) -> tuple[str, str]:
    """Layer and unit in ``layer:unit`` or, as paths are printed, ``layer[unit]``.

    Raises:
        UsageError: the text is neither.
    """
    match = re.fullmatch(r"(?P<layer>.+)(?::(?P<unit>[^:\[\]]+)|\[(?P<inner>[^\[\]]+)\])", text)
    if match is None:
        raise UsageError(f"expected layer:unit, such as features.0:c17 or features.0:c17,y4,x9; got {text[:60]!r}")
    return match["layer"], match["unit"] or match["inner"]


def _coordinates(text: str, axes: int) -> Unit:
    """Coordinates with or without the letters that paths are printed with; axes left out are whole."""
    letters = {3: "cyx", 4: "czyx"}.get(axes, "")
    found: list[int | None] = [None] * axes
    for position, part in enumerate(re.split(r"[ ,]+", text.strip())):
        match = re.fullmatch(r"([a-z]?)(\d{1,9})", part)
        axis = position if match is None or not match[1] else letters.find(match[1])
        if match is None or not 0 <= axis < axes or found[axis] is not None:
            raise PathError(
                f"no unit {text[:60]!r}: give {axes} whole numbers or fewer, one for each axis of the layer"
            )
        found[axis] = int(match[2])
    return tuple(found)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def _is_whole(value: object) -> bool:
    return type(value) is int and abs(value) < 2**31


def _is_number(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float) and abs(value) < 2**31)


def _are_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(
        n in MOST and (_is_number(v) if n == "share" else _is_whole(v)) and v <= MOST[n] for n, v in value.items()
    )


def _is_class(value: object) -> bool:
    return value is None or _is_whole(value) or _is_text(value)


def _is_width(value: Any) -> bool:
    return _is_whole(value) and 1 <= value <= WIDEST


def _is_seed(value: Any) -> bool:
    return _is_whole(value) and value >= 0


def _are_keys(value: object) -> bool:
    return isinstance(value, list) and len(value) <= LONGEST and all(map(_is_text, value))


_NUMBERS = ", ".join(f"{name} up to {most}" for name, most in MOST.items()) + "; all but share are whole"
_TEXT = _is_text, f"a text of at most {LONGEST} characters"
_EXPECTED = {
    "ask": _TEXT,
    "picture": _TEXT,
    "target": (_is_class, "a class index, a class name or null"),
    "against": (_is_class, "a class index, a class name or null"),
    "on": (lambda value: value in get_args(On), "target, against or contrast"),
    "partition": _TEXT,
    "layers": (lambda value: value is None or _is_text(value), "layer names separated by commas, every:K, all or null"),
    "width": (_is_width, f"a whole number from 1 to {WIDEST}"),
    "root": _TEXT,
    "path": (_are_keys, "a list of texts"),
    "search": _TEXT,
    "numbers": (_are_numbers, f"an object of numbers: {_NUMBERS}"),
    "seed": (_is_seed, "a whole number from 0 to 2147483647"),
}
