"""The output by two independent routes: what says that a network was understood."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ._html import block, number, said, samples


@dataclass(frozen=True, eq=False)
class Completeness:
    """The output of the target by two independent routes, one number a sample.

    Attributes:
        value: the target's value f(x), (B,).
        weight_part: <W, x>, (B,).
        bias: f(x) - <W, x>, (B,).
        bias_from_sources: the sum over all constants s of <df/ds, s>, (B,).
        error: |bias - bias_from_sources| relative to the largest term before it cancelled, (B,).
        tolerance: the largest error that is round-off in this dtype.
    """

    value: Float[Tensor, " B"]
    weight_part: Float[Tensor, " B"]
    bias: Float[Tensor, " B"]
    bias_from_sources: Float[Tensor, " B"]
    error: Float[Tensor, " B"]
    tolerance: float

    def _repr_html_(self) -> str:
        names = "value", "weight_part", "bias", "bias_from_sources", "error"
        columns = {name.replace("_", " "): getattr(self, name).tolist() for name in names}
        limit = f"round-off stays below an error of {number(self.tolerance)}"
        return block("The output by two routes: f(x) = W x + b", samples(columns), said(limit))
