"""The fewest units of every layer that hold a share of the positive contribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import PathError
from ._base import Found, Problem, Search, refuse_below
from ._sets import Scores, descend


@dataclass(frozen=True)
class Mass(Search):
    """From the output down, on every layer the fewest units that hold a share of the positive contribution.

    The contribution of a unit is what the target gets from it through the units chosen above, ``(d target / d h) * h``.
    Negative contributions are left out, so the path's value may exceed the target's; its units are those that speak
    for the target. Layers side by side are chosen on as one. A path ends where no contribution is positive.

    Attributes:
        share: of the sum of the positive contributions, above 0 and at most 1.
        depth: on so many levels from the top; None means all.

    Source: section 6 of the paper asks for a better search; the share of the positive mass is this library's answer.
    """

    share: float = 0.5
    depth: int | None = None

    def check(self) -> None:
        """Refuse numbers that are out of range.

        Raises:
            PathError: one is.
        """
        if not isinstance(self.share, int | float) or not 0 < self.share <= 1:
            raise PathError(f"share must be above 0 and at most 1; got {self.share!r}")
        refuse_below(1, "depth", self.depth, optional=True)

    def search(self, problem: Problem) -> Found:
        """Find one path a sample."""
        return descend(problem, problem.functional.gradient[None], problem.top(self.depth), self._choose)

    def _choose(self, scores: Scores) -> Bool[Tensor, "B units"]:
        positive = scores[0].clamp(min=0)
        ordered, index = positive.sort(1, descending=True)
        before = ordered.cumsum(1) - ordered
        needed = (before < self.share * positive.sum(1, keepdim=True)) & (ordered > 0)
        return torch.zeros_like(needed).scatter_(1, index, needed)
