"""A tree grown where the largest contribution is."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

from .._units import Layer
from ._base import Found, Problem, Search, refuse_below
from ._prefixes import Continuations, Prefix, continued, found_from, starts


@dataclass(frozen=True)
class BestFirst(Search):
    """Split, again and again, the path of the largest |value| into its continuations on the next level.

    The paths found are the leaves of the tree, of unequal depth: thin where little is to be seen, deep where the
    contribution is. As no route is on two leaves, their values add up to what they hold of the target. Of the leaves
    those of the largest |value| are returned, the largest positive one first.

    Attributes:
        budget: how many paths are split, and at most so many leaves are returned.
        depth: on so many levels from the top; None means all.

    Source: section 6 of the paper asks for a better search; best-first search is the field's answer to unequal depth.
    """

    budget: int = 64
    depth: int | None = None

    def check(self) -> None:
        """Refuse numbers that are out of range.

        Raises:
            PathError: one is.
        """
        refuse_below(1, "budget", self.budget)
        refuse_below(1, "depth", self.depth, optional=True)

    def search(self, problem: Problem) -> Found:
        """Find up to ``budget`` paths a sample."""
        trees = [_Tree(problem, problem.top(self.depth), start) for start in starts(problem)]
        splits = 0
        while splits < self.budget:
            moves = [(tree, move) for tree in trees for move in tree.next()]
            if not moves:
                break
            for (tree, _), found in zip(moves, continued(problem, [move for _, move in moves]), strict=True):
                tree.grow(found, self.budget)
            splits += 1
        return found_from(problem, [tree.leaves(self.budget) for tree in trees], splits)


class _Tree:
    """The tree of one sample: a heap of leaves that may be split, and those that may not."""

    def __init__(self, problem: Problem, levels: Sequence[Sequence[Layer]], start: Prefix) -> None:
        self.problem, self.levels, self.ticket = problem, levels, count(1)
        self.heap: list[tuple[float, int, int, Prefix]] = [(-abs(start.value), 0, 0, start)]
        self.done: list[Prefix] = []
        self.splitting = -1

    def next(self) -> list[tuple[Prefix, Sequence[Layer]]]:
        """Take the leaf of the largest |value| that has a level below, with that level; nothing if there is none."""
        while self.heap:
            _, _, at, leaf = heapq.heappop(self.heap)
            below = self.problem.below[leaf.layer]
            self.splitting = next((i for i in range(at, len(self.levels)) if below & set(self.levels[i])), -1)
            if self.splitting >= 0:
                return [(leaf, self.levels[self.splitting])]
            self.done.append(leaf)
        self.splitting = -1
        return []

    def grow(self, found: Continuations, budget: int) -> None:
        """Put the continuations of the largest |value| on the heap; what nothing continues tries the next level."""
        if not found.scores.any():
            self._push(found.prefix)
            return
        best = found.scores.abs().topk(min(budget, len(found.scores))).indices
        for index in best[found.scores[best] != 0].tolist():
            self._push(found.through(self.problem, index))

    def leaves(self, most: int) -> list[Prefix]:
        """The leaves of the largest |value|, the largest value first."""
        open_ = [replace(p, end="the budget is spent") for _, _, _, p in self.heap]
        best = sorted([*self.done, *open_], key=lambda p: -abs(p.value))[:most]
        return sorted(best, key=lambda p: -p.value)

    def _push(self, leaf: Prefix) -> None:
        heapq.heappush(self.heap, (-abs(leaf.value), next(self.ticket), self.splitting + 1, leaf))
