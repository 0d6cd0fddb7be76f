"""What every input element adds: W * x of the network, or of the paths that a search finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ._frozen import Frozen, LayerLike
from ._linear import column, linear_model
from ._many import linear_models
from ._partitions import Partition, neurons
from ._search import Found, Search, find_paths
from ._targets import TargetLike
from .errors import PathError


def contributions(
    frozen: Frozen,
    target: TargetLike = None,
    search: Search | None = None,
    *,
    layers: Sequence[LayerLike] | None = None,
    partition: Partition | Mapping[LayerLike, Partition] = neurons,
) -> tuple[Float[Tensor, "B ..."], ...]:
    """``W * x`` of the whole network, or the sum of ``W^P * x`` over the paths P that a search finds.

    No route of the network is on two paths of a search, so that the sum counts none twice. Where a search finds no
    path there is nothing to sum: all is zero.

    Args:
        frozen: the recorded network.
        target: what is explained; None means each sample's predicted class.
        search: the strategy; None means the whole network.
        layers: as in ``find_paths``.
        partition: as in ``find_paths``.

    Returns:
        One tensor for each explained input, in its shape.

    Raises:
        PathError: layers or a partition are given without a search, or as ``find_paths``.
        RelupathError: as ``linear_model`` and ``find_paths``.
    """
    if search is None:
        if layers is not None or partition is not neurons:
            raise PathError("layers and partition say where paths are looked for: give a search too")
        weight = linear_model(frozen, target).weight
        weights = weight if isinstance(weight, tuple) else (weight,)
    else:
        weights = _of_paths(frozen, find_paths(frozen, target, search, layers=layers, partition=partition))
    return tuple(w * x.output for w, x in zip(weights, frozen.inputs, strict=True))


def _of_paths(frozen: Frozen, found: Found) -> tuple[Tensor, ...]:
    """For each sample the sum of the weights of its paths."""
    paths = [[path for path in ranked if path] for ranked in found.ranked]
    if max(map(len, paths)) <= 1:
        some = torch.tensor([bool(own) for own in paths], device=frozen.output.device)
        weight = found.model.weight
        return tuple(torch.where(column(some, w), w, 0) for w in (weight if isinstance(weight, tuple) else (weight,)))
    assert found.problem is not None
    gradient = found.problem.functional.gradient
    weights = tuple(torch.zeros_like(x.output) for x in frozen.inputs)
    for b, own in enumerate(paths):
        if own:
            part = linear_models(frozen, own, _along(gradient[b]), samples=[b] * len(own)).weight
            for total, weight in zip(weights, part if isinstance(part, tuple) else (part,), strict=True):
                total[b] = weight.sum(0)
    return weights


def _along(gradient: Float[Tensor, "..."]) -> Callable[[Tensor], Tensor]:
    """The target of one sample, for any number of copies of its output."""
    return lambda output: (output * gradient).flatten(1).sum(1)
