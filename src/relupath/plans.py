"""From words to objects: searches and partitions by name, as a command line or a page gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import relupath

from .errors import UsageError

if TYPE_CHECKING:
    from ._partitions import Partition
    from ._search import Search

SEARCHES: dict[str, tuple[str, tuple[str, ...]]] = {
    "greedy": ("Greedy", ()),
    "selective": ("Selective", ("width", "classes")),
    "mass": ("Mass", ("share",)),
    "beam": ("Beam", ("k",)),
    "best-first": ("BestFirst", ("budget",)),
    "exact": ("Exact", ("k",)),
}
"""Each search's class, and the numbers that it takes."""
NUMBERS = tuple(dict.fromkeys(number for _, mine in SEARCHES.values() for number in mine))
PARTITIONS = ("neurons", "channels", "locations", "axis:N", "heads:N")
AXES = 64
"""More than any tensor has."""
PATHS = 8
"""How many paths the exact search finds unless it is told."""


def search(name: str, numbers: Mapping[str, Any], others: Sequence[str] = ()) -> Search:
    """A strategy by its name and its numbers; a number of None is not given.

    Args:
        name: one of ``SEARCHES``.
        numbers: such as ``width``; what belongs to another search is left out where that one is among the others.
        others: searches that are asked for beside this one.

    Raises:
        UsageError: there is no such search, or a number belongs to another one.
        PathError: a number is out of range.
    """
    if name not in SEARCHES:
        raise UsageError(f"no search {name!r}: expected {', '.join(SEARCHES)}")
    kind, mine = SEARCHES[name]
    known = {number for one in (name, *others) for number in SEARCHES[one][1]}
    for number, value in numbers.items():
        if value is not None and number not in known:
            raise UsageError(f"{number!r} does not belong to the search {' and '.join(others or (name,))}")
    given = {number: numbers[number] for number in mine if numbers.get(number) is not None}
    if "share" in given:
        given["share"] = float(given["share"])
    if name == "exact":
        given.setdefault("k", PATHS)
    strategy: Search = getattr(relupath, kind)(**given)
    strategy.check()
    return strategy


def partition(word: str) -> Partition:
    """A partition by its name; ``axis:N`` are the neurons that agree on the N-th axis, that of samples not counted.

    Raises:
        UsageError: there is none.
    """
    name, _, count = word.partition(":")
    if name == "heads" and count.isdecimal() and int(count):
        return relupath.heads(int(count))
    if name == "axis" and count.isdecimal() and 0 < int(count) <= AXES:
        along: Partition = replace(relupath.channels, name=word, first=int(count) - 1, last=int(count))
        return along
    if name in ("neurons", "channels", "locations") and not count:
        found: Partition = getattr(relupath, name)
        return found
    raise UsageError(f"no partition {word!r}: expected {', '.join(PARTITIONS[:-1])} or {PARTITIONS[-1]}")
