"""Slow twins, written from the formulas of the paper: routes counted one by one, Jacobians written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BIAS = -1


@dataclass(frozen=True)
class Route:
    """One one-way path of the unfolded network, from an input element (or a bias) to the target.

    Attributes:
        product: of the weights and gates on the way; for a bias, times the bias.
        origin: index of the input element, or ``BIAS``.
        units: layer (from 1) -> unit that it passes.
    """

    product: float
    origin: int
    units: Mapping[int, int]


class LayeredTwin:
    """The layered network ``h_l = sum_k A_lk a_k + c_l, a_l = gate(h_l) h_l, y = sum_k B_k a_k + d`` at one input."""

    def __init__(
        self,
        matrices: Mapping[tuple[int, int], Tensor],
        offsets: Mapping[int, Tensor],
        slope: float,
        x: Tensor,
        target: Sequence[float],
    ) -> None:
        self.matrices = {key: m.double().numpy() for key, m in matrices.items()}
        self.offsets = {key: c.double().numpy() for key, c in offsets.items()}
        self.depth = max(self.offsets)
        self.a, self.gates = [x.double().numpy()], {}
        for l in range(1, self.depth + 1):
            h = self.offsets[l].copy()
            for k in range(l):
                if (l, k) in self.matrices:
                    h = h + self.matrices[l, k] @ self.a[k]
            if l < self.depth:
                self.gates[l] = np.where(h > 0, 1.0, slope)
                h = self.gates[l] * h
            self.a.append(h)
        self.target = np.asarray(target, dtype=float)
        self.routes = list(self._from_output())

    def _from_output(self) -> Iterator[Route]:
        for c, weight in enumerate(self.target):
            if weight != 0:
                yield from self._down(self.depth, c, weight, {})

    def _down(self, l: int, j: int, product: float, units: dict[int, int]) -> Iterator[Route]:
        """Every route that arrives at the pre-activation of unit j of layer l, with the product above it."""
        yield Route(product * self.offsets[l][j], BIAS, units)
        for k in range(l):
            if (l, k) not in self.matrices:
                continue
            for i, weight in enumerate(self.matrices[l, k][j]):
                if k == 0:
                    yield Route(product * weight, i, units)
                else:
                    yield from self._down(k, i, product * weight * self.gates[k][i], {**units, k: i})

    def model(self, chosen: Mapping[int, set[int]], bypassed: int | None = None) -> tuple[np.ndarray, float]:
        """Weight and bias of the routes through the chosen units on every layer named, and not through ``bypassed``."""
        weight, bias = np.zeros_like(self.a[0]), 0.0
        for route in self.routes:
            if all(route.units.get(l) in units for l, units in chosen.items()) and bypassed not in route.units:
                if route.origin == BIAS:
                    bias += route.product
                else:
                    weight[route.origin] += route.product
        return weight, bias


@dataclass(frozen=True)
class Steps:
    """What Algorithm 1 does: the index chosen on each layer from the top down, and its importance."""

    indices: tuple[tuple[int, ...], ...]
    importance: tuple[float, ...]
    ended_early: bool


def algorithm_1(segments: Sequence[Callable[[Tensor], Tensor]], x: Tensor, target: Callable[[Tensor], Tensor]) -> Steps:
    """Algorithm 1 of the paper, literally, on a chain: segment n maps h^(n) to h^(n+1), the last gives the output.

    ``Importance^(N) = (d y_target / d h^(N)) * h^(N)``, then ``(d h^(n+1)_index / d h^(n)) * h^(n)``, each time argmax.
    """
    jacobian = torch.autograd.functional.jacobian
    hidden = [x]
    for segment in segments[:-1]:
        hidden.append(segment(hidden[-1]).detach())
    indices: list[tuple[int, ...]] = []
    importances: list[float] = []

    def of_target(h: Tensor) -> Tensor:
        return target(segments[-1](h))

    derivative = jacobian(of_target, hidden[-1])
    for n in reversed(range(len(hidden))):
        importance = derivative * hidden[n]
        best = int(importance.argmax())
        if not importance.flatten()[best] > 0:
            return Steps(tuple(indices), tuple(importances), True)
        index = tuple(int(i) for i in np.unravel_index(best, importance.shape))
        indices.append(index)
        importances.append(float(importance[index]))
        if n:
            derivative = jacobian(segments[n - 1], hidden[n - 1])[index]
    return Steps(tuple(indices), tuple(importances), False)


def descend_layered(twin: LayeredTwin) -> tuple[list[tuple[int, int]], list[float]]:
    """Algorithm 1 on a layered network with skips: layer after layer, from the unit chosen last.

    The derivative of the unit chosen last with respect to a layer counts every route between the two. A layer that no
    route joins to it is passed over. Returns (layer, unit) pairs from the top down, the input as layer 0, and the
    importances; ends where none is positive.
    """
    found, importances = [], []
    above: tuple[int, int] | None = None
    for l in range(twin.depth - 1, -1, -1):
        scores = [between(twin, above, (l, i)) * twin.a[l][i] for i in range(len(twin.a[l]))]
        if not any(scores):
            continue
        best = int(np.argmax(scores))
        if scores[best] <= 0:
            break
        above = (l, best)
        found.append(above)
        importances.append(scores[best])
    return found, importances


def between(twin: LayeredTwin, above: tuple[int, int] | None, below: tuple[int, int]) -> float:
    """The derivative of a unit's output (None: of the target) by the output of a unit below, route by route."""

    def down(l: int, j: int) -> float:
        total = 0.0
        for k in range(l):
            if (l, k) not in twin.matrices:
                continue
            row = twin.matrices[l, k][j]
            if k == below[0]:
                total += row[below[1]]
            elif k > below[0]:
                total += sum(w * twin.gates[k][i] * down(k, i) for i, w in enumerate(row))
        return total

    if above is None:
        return sum(t * down(twin.depth, c) for c, t in enumerate(twin.target) if t)
    l, j = above
    return twin.gates[l][j] * down(l, j)
