"""What every search shares: the problem it is given, the strategy, the result."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from .._frozen import Frozen, LayerLike
from .._linear import PathModel
from .._partitions import Partition, neurons
from .._paths import Path
from .._targets import Functional, TargetLike
from .._units import Layer
from ..errors import PathError


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
    """

    frozen: Frozen
    functional: Functional
    levels: tuple[tuple[Layer, ...], ...]
    below: Mapping[Layer, frozenset[Layer]]
    partitions: Mapping[Layer, Partition]

    def scores(self, layer: Layer, contribution: Float[Tensor, "B *shape"]) -> Float[Tensor, "B units"]:
        """The contributions of a layer's units."""
        return self.partitions[layer].scores(contribution)

    def top(self, depth: int | None) -> tuple[tuple[Layer, ...], ...]:
        """So many levels from the top.

        Raises:
            PathError: the depth is less than 1.
        """
        if depth is not None and depth < 1:
            raise PathError(f"depth must be at least 1; got {depth}")
        return self.levels[:depth]


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
    """

    ranked: tuple[tuple[Path, ...], ...]
    values: tuple[tuple[float, ...], ...]
    importance: tuple[Mapping[str, float], ...]
    stopped: tuple[str, ...]
    model: PathModel = field(repr=False)
    value: Float[Tensor, " B"] = field(repr=False)
    cost: Cost

    @property
    def paths(self) -> tuple[Path, ...]:
        """The first path of each sample."""
        return tuple(ranked[0] for ranked in self.ranked)

    @property
    def held(self) -> Float[Tensor, " B"]:
        """How much of the target's value the paths hold together: the sum of their values over f(x)."""
        return self.value.new_tensor([sum(values) for values in self.values]) / self.value


class Search(ABC):
    """A strategy that finds paths; a frozen dataclass whose constructor only stores."""

    @abstractmethod
    def search(self, problem: Problem) -> Found:
        """Find the paths of each sample."""


def find_paths(
    frozen: Frozen,
    target: TargetLike,
    search: Search,
    *,
    layers: Sequence[LayerLike] | None = None,
    partition: Partition | Mapping[LayerLike, Partition] = neurons,
) -> Found:
    """Find the paths that matter for a target.

    Args:
        frozen: the recorded network.
        target: what is explained; None means each sample's predicted class.
        search: the strategy, such as ``Greedy()``.
        layers: the layers to choose units on; None means every recorded one whose first axis is the batch,
            ``frozen.layers[::k]`` every k-th.
        partition: what counts as one unit: ``neurons``, ``channels``, ``locations``, ``heads(12)``, ``labels(...)``; or
            one for each layer, where layers that are not named have neurons.

    Raises:
        PathError: there is no layer to choose from, or a layer is named twice.
        UnknownLayerError: a layer is not recorded.
        TargetError: the target does not fit the output or is not linear.
    """
    if not isinstance(search, Search):
        raise PathError(f"a search is a strategy such as Greedy(); got {search!r}")
    chosen = frozen.layers_of_paths(layers)
    start = time.perf_counter()
    partitions = frozen.partitions(chosen, partition)
    problem = Problem(frozen, frozen.functional(target), frozen.levels(chosen), frozen.below(chosen), partitions)
    found = search.search(problem)
    return replace(found, cost=replace(found.cost, seconds=time.perf_counter() - start))
