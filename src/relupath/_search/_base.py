"""What every search shares: the problem it is given, the strategy, the result and how far it is from the best."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from .._frozen import Frozen
from .._html import block, number, said, samples, table
from .._linear import PathModel
from .._memory import at_once
from .._partitions import Partition
from .._paths import Path, Step
from .._products import Products
from .._segments import next_layers
from .._targets import Functional
from .._units import Layer
from ..errors import PathError

SHOWN = 8
"""How many paths, and samples, a notebook shows."""


@dataclass(frozen=True)
class Problem:
    """What to search: a functional of a frozen network, over the units of some of its layers.

    Attributes:
        frozen: the recorded network.
        functional: the target at the recorded output.
        levels: the hidden layers from the top down; layers that do not depend on each other (the branches of a
            concatenation) share a level.
        below: for the output and each layer, the layers on which it depends.
        partitions: what counts as one unit of each layer.
        yardsticks: Algorithm 1 and the exact search, by which what another one finds is measured.
    """

    frozen: Frozen
    functional: Functional
    levels: tuple[tuple[Layer, ...], ...]
    below: Mapping[Layer, frozenset[Layer]]
    partitions: Mapping[Layer, Partition]
    yardsticks: tuple[Search, Search]

    def scores(self, layer: Layer, contribution: Float[Tensor, "B *shape"]) -> Float[Tensor, "B units"]:
        """The contributions of a layer's units."""
        return self.partitions[layer].scores(contribution)

    @property
    def products(self) -> Products:
        """Gives many products at once."""
        return Products(self.frozen, at_once(self.frozen.output.device))

    def top(self, depth: int | None) -> tuple[tuple[Layer, ...], ...]:
        """So many levels from the top."""
        return self.levels[:depth]

    def completes(self, path: Path) -> bool:
        """Whether a path is complete and one-way: one unit on each layer, from the output on to a lowest layer."""
        lower = next_layers(self.frozen.top, self.levels, self.below)
        at = self.frozen.top
        for step in reversed(path.steps):
            below = next((layer for layer in lower[at] if layer.name == step.layer), None)
            if below is None or len(step.layers) > 1 or not self._is_unit(below, step):
                return False
            at = below
        return not lower[at]

    def _is_unit(self, layer: Layer, step: Step) -> bool:
        """Whether a step is one unit of its layer's partition."""
        if step.but:
            return False
        partition = self.partitions[layer]
        label = int(partition.labels(layer.shape)[tuple(i or 0 for i in step.units[0])])
        return set(step.units) == set(partition.units(label, layer.shape))


@dataclass(frozen=True)
class Cost:
    """What a search cost.

    Attributes:
        products: vector-Jacobian products, each over a segment of the network.
        seconds: wall time; not compared.
    """

    products: int
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True, eq=False)
class Gap:
    """How far Algorithm 1 is from the best path over the same layers and units, by values f^P(x) of complete paths.

    A path that stops early or skips a level holds terms that no single complete path holds: it is not compared, and
    its number is nan.

    Attributes:
        greedy: of the path of Algorithm 1, (B,).
        exact: the largest of all, (B,); nan where none is positive.
        found: the largest among the paths of the search that was asked, (B,); nan for sets of units.
    """

    greedy: Float[Tensor, " B"]
    exact: Float[Tensor, " B"]
    found: Float[Tensor, " B"]

    def _repr_html_(self) -> str:
        columns = {name: getattr(self, name).tolist() for name in ("greedy", "exact", "found", "share")}
        return block("Values of complete paths: Algorithm 1 beside the best one", samples(columns))

    @property
    def share(self) -> Float[Tensor, " B"]:
        """How much of the best value Algorithm 1 reaches: at most 1, to round-off."""
        return self.greedy / self.exact


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found, one entry a sample.

    Attributes:
        ranked: the paths, the one of the largest value first; no route of the network is on two of them.
        values: f^P(x) of each of these paths.
        importance: of the first path, from layer name (and ``x``) to the importance of the chosen unit, or of the
            chosen units together, in the order of choice.
        stopped: why the search ended.
        model: the linear model of the first path, a by-product of the search.
        value: the target's value f(x), (B,).
        cost: what it cost.
        problem: what was searched.
        search: by which strategy.
    """

    ranked: tuple[tuple[Path, ...], ...]
    values: tuple[tuple[float, ...], ...]
    importance: tuple[Mapping[str, float], ...]
    stopped: tuple[str, ...]
    model: PathModel = field(repr=False)
    value: Float[Tensor, " B"] = field(repr=False)
    cost: Cost
    problem: Problem | None = field(default=None, repr=False)
    search: Search | None = field(default=None, repr=False)

    def _repr_html_(self) -> str:
        parts = [self._of_sample(b) for b in range(min(len(self.ranked), SHOWN))]
        more = len(self.ranked) - SHOWN
        cost = f"{f'and {more} more samples; ' if more > 0 else ''}{self.cost.products} products"
        return block(f"Paths found{f' by {self.search}' if self.search else ''}", *parts, said(cost))

    def _of_sample(self, b: int) -> str:
        """What was found for one sample, as HTML."""
        rows = [
            (rank, str(path), v) for rank, (path, v) in enumerate(zip(self.ranked[b], self.values[b], strict=True), 1)
        ]
        share = f"they hold {number(100 * float(self.held[b]))} % of {number(float(self.value[b]))}"
        chosen = table(("chosen on", "importance"), self.importance[b].items(), 60)
        return said(f"sample {b}: {self.stopped[b]}; {share}") + table(("", "path", "value"), rows, SHOWN) + chosen

    @property
    def paths(self) -> tuple[Path, ...]:
        """The first path of each sample."""
        return tuple(ranked[0] for ranked in self.ranked)

    @property
    def held(self) -> Float[Tensor, " B"]:
        """How much of the target's value the paths hold together: the sum of their values over f(x).

        A path without a unit counts nothing: it says that none was found. Not a number where f(x) is 0.
        """
        pairs = zip(self.ranked, self.values, strict=True)
        held = [sum(v for path, v in zip(*some, strict=True) if path) for some in pairs]
        return self.value.new_tensor(held) / self.value

    def gap(self, exact: Search | None = None) -> Gap:
        """How far Algorithm 1, and this search, are from the exact best path: two more searches, on demand.

        Args:
            exact: ``Exact(...)`` with another budget; None means ``Exact()``.

        Raises:
            PathError: the exact search takes too many products, or the result does not come from ``find_paths``.
        """
        problem = self.problem
        if problem is None:
            raise PathError("there is nothing to compare with: take a result of find_paths")
        greedy, usual = problem.yardsticks
        results = [self if type(s) is type(self.search) else s.search(problem) for s in (greedy, exact or usual)]
        return Gap(*(found._best_complete(problem) for found in (*results, self)))

    def _best_complete(self, problem: Problem) -> Float[Tensor, " B"]:
        """The largest value of a complete one-way path; nan without one."""
        return self.value.new_tensor(
            [
                max((v for path, v in zip(*pair, strict=True) if problem.completes(path)), default=math.nan)
                for pair in zip(self.ranked, self.values, strict=True)
            ]
        )


def below_range(reason: str, value: float, dtype: torch.dtype) -> str:
    """Why a search ended, and whether the path's value is too small for the number format of its linear model."""
    return f"{reason}; its value is below the range of {dtype}" if 0 < abs(value) < torch.finfo(dtype).tiny else reason


def refuse_below(least: int, name: str, number: object, optional: bool = False) -> None:
    """Refuse what is not a whole number that is large enough; an optional one may be None.

    Raises:
        PathError: it is not.
    """
    if number is None and optional:
        return
    if isinstance(number, bool) or not isinstance(number, int):
        raise PathError(f"{name} must be a whole number; got {number!r}")
    if number < least:
        raise PathError(f"{name} must be at least {least}; got {number}")


class Search(ABC):
    """A strategy that finds paths; a frozen dataclass whose constructor only stores."""

    def check(self) -> None:  # noqa: B027  most strategies have numbers, some have none
        """Refuse numbers that are out of range.

        Raises:
            PathError: one is.
        """

    @abstractmethod
    def search(self, problem: Problem) -> Found:
        """Find the paths of each sample."""
