"""The verb of the searches: problem and strategy in, one result out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .._frozen import Frozen, LayerLike
from .._partitions import Partition, neurons
from .._targets import TargetLike
from ..errors import PathError
from ._base import Found, Problem, Search
from .exact import Exact
from .greedy import Greedy


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
        PathError: there is no layer to choose from, a layer is named twice, or a number is out of range.
        UnknownLayerError: a layer is not recorded.
        TargetError: the target does not fit the output or is not linear.
    """
    if not isinstance(search, Search):
        raise PathError(f"a search is a strategy such as Greedy(); got {search!r}")
    search.check()
    chosen = frozen.layers_of_paths(layers)
    start = time.perf_counter()
    partitions = frozen.partitions(chosen, partition)
    order = frozen.levels(chosen), frozen.below(chosen)
    problem = Problem(frozen, frozen.functional(target), *order, partitions, (Greedy(), Exact()))
    found = search.search(problem)
    cost = replace(found.cost, seconds=time.perf_counter() - start)
    return replace(found, cost=cost, problem=problem, search=search)
