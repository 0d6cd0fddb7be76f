"""The k best prefixes, level by level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .._units import Layer
from ._base import Found, Problem, Search, refuse_below
from ._prefixes import Continuations, Prefix, continued, found_from, starts


@dataclass(frozen=True)
class Beam(Search):
    """From the output down, the k paths of the largest value, one unit a level.

    On every level each of the k paths is continued by every unit, and the k continuations of the largest positive value
    ``f^P(x)`` are kept. With k = 1 this is Algorithm 1 on a ReLU network. Layers side by side are chosen on as one, and
    a path to which nothing comes from a level skips it. Where no continuation is positive the search ends.

    Attributes:
        k: how many paths are kept.
        depth: on so many levels from the top; None means all.

    Source: section 6 of the paper asks for a better search; a beam is the plainest one.
    """

    k: int = 8
    depth: int | None = None

    def check(self) -> None:
        """Refuse numbers that are out of range.

        Raises:
            PathError: one is.
        """
        refuse_below(1, "k", self.k)
        refuse_below(1, "depth", self.depth, optional=True)

    def search(self, problem: Problem) -> Found:
        """Find up to k paths a sample."""
        beams, products = [[start] for start in starts(problem)], 0
        for level in problem.top(self.depth):
            moving = [p for beam in beams for p in beam if p.end is None and problem.below[p.layer] & set(level)]
            if moving:
                results = {id(c.prefix): c for c in continued(problem, [(p, level) for p in moving])}
                beams = [self._best(problem, [(p, results.get(id(p))) for p in beam], level) for beam in beams]
                products += max(map(len, beams))
        return found_from(problem, [sorted(beam, key=lambda p: -p.value) for beam in beams], products)

    def _best(
        self, problem: Problem, beam: Sequence[tuple[Prefix, Continuations | None]], layers: Sequence[Layer]
    ) -> list[Prefix]:
        """The k best of a beam's continuations, and of its paths that skip the level."""
        stay = [p for p, c in beam if c is None or not c.scores.any()]
        grown: list[tuple[float, Prefix, Continuations | None, int]] = [(p.value, p, None, 0) for p in stay]
        for p, c in beam:
            if c is None or not c.scores.any():
                continue
            values, indices = c.scores.topk(min(self.k, len(c.scores)))
            grown += [(v, p, c, i) for v, i in zip(values.tolist(), indices.tolist(), strict=True) if v > 0]
        if not grown:
            why = f"no continuation is positive at {' or '.join(layer.name for layer in layers)}"
            return [replace(p, end=why) for p, _ in beam]
        grown.sort(key=lambda entry: -entry[0])
        return [p if c is None else c.through(problem, i) for _, p, c, i in grown[: self.k]]
