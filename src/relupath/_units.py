"""Hidden layers, their units, and the partitions that say what a unit is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .errors import PathError

Unit = tuple[int | None, ...]
"""Coordinates in a layer, without the batch axis; None stands for the whole axis, so (17, None, None) is channel 17."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One tensor of the forward pass, at which paths may be cut.

    Attributes:
        name: module path, then ``:operation`` for a function called in the module, then ``#k`` from the second call on.
        output: the tensor's value, shape (B, *shape).
        edge: where the tensor stands in the autograd graph.
        activation: whether it is what an activation function gives, as it is.
    """

    name: str
    output: Float[Tensor, "B *shape"] = field(repr=False)
    edge: GradientEdge = field(repr=False)
    activation: bool = field(default=False, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch axis."""
        return tuple(self.output.shape[1:])


@dataclass(frozen=True)
class Partition:
    """What counts as one unit: the neurons that agree on the kept axes.

    Attributes:
        name: for people and for JSON.
        first: the first kept axis of a layer, not counting the batch axis.
        last: the axis after the last kept one; None keeps all from ``first`` on.
    """

    name: str
    first: int = 0
    last: int | None = None

    def axes(self, ndim: int) -> tuple[int, ...]:
        """The axes that tell units apart in a layer of ``ndim`` axes."""
        return tuple(range(ndim))[self.first : self.last]

    def scores(self, contribution: Float[Tensor, "B *shape"]) -> Float[Tensor, "B units"]:
        """Sum the contributions of the neurons of each unit."""
        ndim = contribution.ndim - 1
        summed = [axis + 1 for axis in range(ndim) if axis not in self.axes(ndim)]
        return (contribution.sum(summed) if summed else contribution).reshape(len(contribution), -1)

    def unit(self, index: int, shape: Sequence[int]) -> Unit:
        """The coordinates of the unit at a position of ``scores``."""
        coordinates: list[int | None] = [None] * len(shape)
        for axis in reversed(self.axes(len(shape))):
            index, coordinates[axis] = divmod(index, shape[axis])
        return tuple(coordinates)

    def mask(self, index: Int[Tensor, " B"], shape: Sequence[int]) -> Bool[Tensor, "B *shape"]:
        """One 0/1 mask a sample: the neurons of the unit at each position of ``scores``; -1 selects none."""
        axes = self.axes(len(shape))
        kept = [size if axis in axes else 1 for axis, size in enumerate(shape)]
        units = torch.zeros(len(index), torch.Size(kept).numel(), dtype=torch.bool, device=index.device)
        units.scatter_(1, index.clamp(min=0)[:, None], (index >= 0)[:, None])
        return units.view(-1, *kept).expand(-1, *shape)


neurons = Partition("neurons")
channels = Partition("channels", last=1)
locations = Partition("locations", first=1)


def mask_of(units: Sequence[Unit], layer: Layer) -> Float[Tensor, "*shape"]:
    """The 0/1 mask of a set of units.

    Raises:
        PathError: a unit has the wrong number of coordinates, lies outside the layer, or shares neurons with another.
    """
    count = torch.zeros(layer.shape, dtype=layer.output.dtype, device=layer.output.device)
    for unit in units:
        if len(unit) != len(layer.shape) or any(
            i is not None and not 0 <= i < size for i, size in zip(unit, layer.shape, strict=True)
        ):
            raise PathError(
                f"unit {list(unit)} is not in layer {layer.name!r}, whose shape is {list(layer.shape)}; "
                "give one coordinate an axis, or None for a whole axis"
            )
        count[tuple(slice(None) if i is None else i for i in unit)] += 1
    if (count > 1).any():
        raise PathError(f"units of layer {layer.name!r} overlap: name every neuron once")
    return count
