"""Selective multi-way paths: units that speak for the target more than for other classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._targets import Functional
from ..errors import PathError
from ._base import Found, Problem, Search, refuse_below
from ._sets import Scores, descend


@dataclass(frozen=True)
class Selective(Search):
    """From the output down, on every layer the units whose share for the target exceeds 1 / number of classes.

    Of every unit the contributions to the target and to the other classes, ``c_k = h * d y_k / d h`` through the units
    chosen above, are compared by a soft-max over the classes. Kept are at most ``width`` units with the largest share,
    at least the best one. The cotangents of the classes are carried down once, so that the cost grows with the depth
    alone. Layers side by side are chosen on as one.

    A target that is not a logit, such as a contrast, is compared with the logits that it does not add.

    Attributes:
        width: at most so many units a level; None means no limit.
        depth: on so many levels from the top; None means all.
        classes: the target and the most plausible other classes, so many in all; None means all classes.

    Source: the multi-way paths of the longer paper (AISTATS 2024, PMLR 238:4645-4653).
    """

    width: int | None = 64
    depth: int | None = None
    classes: int | None = 10

    def check(self) -> None:
        """Refuse numbers that are out of range.

        Raises:
            PathError: one is.
        """
        refuse_below(1, "width", self.width, optional=True)
        refuse_below(1, "depth", self.depth, optional=True)
        refuse_below(2, "classes", self.classes, optional=True)

    def search(self, problem: Problem) -> Found:
        """Find one path a sample.

        Raises:
            PathError: the output does not hold one logit a class, or the target adds every one.
        """
        functionals, compared = _functionals(problem.functional, problem.frozen.output, self.classes)
        return descend(problem, functionals, problem.top(self.depth), partial(self._choose, compared))

    def _choose(self, compared: Bool[Tensor, "K B"], scores: Scores) -> Bool[Tensor, "B units"]:
        """Rank by ``log(K share) = -log(1 + mean over k of (exp(c_k - c_0) - 1))``, which tells small shares apart."""
        excess = torch.where(compared[:, :, None], torch.expm1(scores - scores[0]), 0).sum(0)
        excess = excess / compared.sum(0)[:, None]
        gain = (-excess.log1p()).clamp(min=torch.finfo(scores.dtype).min).masked_fill((scores == 0).all(0), -torch.inf)
        best = gain.argsort(dim=1, descending=True, stable=True)[:, : self.width]
        chosen = torch.zeros_like(gain, dtype=torch.bool).scatter_(1, best, gain.gather(1, best) > 0)
        return chosen.scatter_(1, best[:, :1], True)


def _functionals(
    target: Functional, output: Float[Tensor, "B ..."], classes: int | None
) -> tuple[Float[Tensor, "K B ..."], Bool[Tensor, "K B"]]:
    """The target's gradient, then those of the most plausible logits that it does not add; and which are compared.

    A sample whose target adds more logits than another's has fewer to be compared with.

    Raises:
        PathError: the output does not hold one logit a class.
    """
    if output.ndim != 2:
        raise PathError(f"classes can be compared in an output (samples, classes); got shape {list(output.shape)}")
    others = output.masked_fill(target.gradient > 0, -torch.inf)
    open_to = (others > -torch.inf).sum(1)
    if int(open_to.min()) < 1:
        raise PathError("there is no class to compare with: the target adds every logit")
    count = min(int(open_to.max()), output.shape[1] if classes is None else classes - 1)
    best, index = others.topk(count, 1)
    compared = torch.cat([torch.ones_like(open_to, dtype=torch.bool)[None], best.T.isfinite()])
    logits = torch.nn.functional.one_hot(index.T, output.shape[1]).to(output.dtype)
    return torch.cat([target.gradient[None], logits]) * compared[:, :, None], compared
