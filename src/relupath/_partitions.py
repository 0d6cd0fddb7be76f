"""Partitions: what counts as one unit of a layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ._units import Layer, Unit
from .errors import PathError


class Partition(ABC):
    """What counts as one unit of a layer: a label for every neuron; neurons of one label are one unit.

    A new kind says ``labels``; everything else follows from them.
    """

    name: str

    @abstractmethod
    def labels(self, shape: Sequence[int]) -> Int[Tensor, "*shape"]:
        """The label of every neuron of a layer of this shape (without the batch axis), 0, 1, 2, ...

        Raises:
            PathError: the partition does not fit the shape.
        """

    def count(self, shape: Sequence[int]) -> int:
        """The number of units in a layer of this shape."""
        return int(self.labels(shape).max()) + 1

    def scores(self, contribution: Float[Tensor, "B *shape"]) -> Float[Tensor, "B units"]:
        """Sum the contributions of the neurons of each unit."""
        labels = self.labels(contribution.shape[1:]).flatten().to(contribution.device)
        summed = contribution.new_zeros(len(contribution), self.count(contribution.shape[1:]))
        return summed.index_add_(1, labels, contribution[..., None].flatten(1))

    def units(self, index: int, shape: Sequence[int]) -> tuple[Unit, ...]:
        """The neurons of the unit at a position of ``scores``; None stands for a whole axis."""
        member = self.labels(shape) == index
        whole = [bool((member == member.narrow(axis, 0, 1)).all()) for axis in range(member.ndim)]
        for axis, all_alike in enumerate(whole):
            member = member.narrow(axis, 0, 1) if all_alike else member
        return tuple(
            tuple(None if w else i for i, w in zip(place, whole, strict=True)) for place in member.nonzero().tolist()
        )

    def members(self, index: int, shape: Sequence[int]) -> Int[Tensor, " neurons"]:
        """The positions of a unit's neurons in the flattened layer."""
        return (self.labels(shape).flatten() == index).nonzero()[:, 0]

    def mask(self, chosen: Bool[Tensor, "B units"], shape: Sequence[int]) -> Bool[Tensor, "B *shape"]:
        """The neurons of the chosen units, for each sample."""
        labels = self.labels(shape).flatten().to(chosen.device)
        return chosen[:, labels].reshape(-1, *shape)


@dataclass(frozen=True)
class Axes(Partition):
    """The neurons that agree on some axes are one unit.

    Attributes:
        name: for people and for JSON.
        first: the first axis that tells units apart, not counting the batch axis.
        last: the axis after the last such one; None means all from ``first`` on.
    """

    name: str
    first: int = 0
    last: int | None = None

    def axes(self, ndim: int) -> tuple[int, ...]:
        """The axes that tell units apart in a layer of ``ndim`` axes."""
        return tuple(range(ndim))[self.first : self.last]

    def labels(self, shape: Sequence[int]) -> Int[Tensor, "*shape"]:
        """The positions along the axes that tell units apart, counted in one row."""
        kept = self._kept(shape)
        return torch.arange(torch.Size(kept).numel()).view(kept).expand(tuple(shape))

    def count(self, shape: Sequence[int]) -> int:
        """The number of units in a layer of this shape."""
        return torch.Size(self._kept(shape)).numel()

    def scores(self, contribution: Float[Tensor, "B *shape"]) -> Float[Tensor, "B units"]:
        """Sum the contributions of the neurons of each unit."""
        axes = self.axes(contribution.ndim - 1)
        summed = [axis + 1 for axis in range(contribution.ndim - 1) if axis not in axes]
        return (contribution.sum(summed) if summed else contribution).reshape(len(contribution), -1)

    def units(self, index: int, shape: Sequence[int]) -> tuple[Unit, ...]:
        """One unit: its coordinates along the axes that tell units apart."""
        coordinates: list[int | None] = [None] * len(shape)
        for axis in reversed(self.axes(len(shape))):
            index, coordinates[axis] = divmod(index, shape[axis])
        return (tuple(coordinates),)

    def members(self, index: int, shape: Sequence[int]) -> Int[Tensor, " neurons"]:
        """The positions of a unit's neurons in the flattened layer."""
        ((*coordinates,),) = self.units(index, shape)
        position, stride = torch.zeros(1, dtype=torch.long), 1
        for i, size in zip(reversed(coordinates), reversed(shape), strict=True):
            along = torch.arange(size) if i is None else torch.tensor([i])
            position = (along[:, None] * stride + position).flatten()
            stride *= size
        return position

    def mask(self, chosen: Bool[Tensor, "B units"], shape: Sequence[int]) -> Bool[Tensor, "B *shape"]:
        """The neurons of the chosen units, for each sample."""
        return chosen.reshape(-1, *self._kept(shape)).expand(-1, *shape)

    def _kept(self, shape: Sequence[int]) -> list[int]:
        axes = self.axes(len(shape))
        return [size if axis in axes else 1 for axis, size in enumerate(shape)]


@dataclass(frozen=True)
class Blocks(Partition):
    """An axis, cut into blocks of one size, such as the heads of attention.

    Attributes:
        blocks: how many.
        axis: the axis that is cut, not counting the batch axis; -1 is the last one.
        name: for people and for JSON.
    """

    blocks: int
    axis: int = -1
    name: str = "blocks"

    def labels(self, shape: Sequence[int]) -> Int[Tensor, "*shape"]:
        """The block in which each neuron lies.

        Raises:
            PathError: the axis is not there, or cannot be cut into blocks of one size.
        """
        whole = all(isinstance(number, int) for number in (self.axis, self.blocks))
        size = shape[self.axis] if whole and -len(shape) <= self.axis < len(shape) else 0
        if size == 0 or self.blocks < 1 or size % self.blocks:
            raise PathError(
                f"axis {self.axis} of a layer of shape {list(shape)} cannot be cut into {self.blocks} blocks"
            )
        return _blocks(tuple(shape), self.axis % len(shape), self.blocks)


@dataclass(frozen=True, eq=False)
class Labels(Partition):
    """The labelling that the user gives.

    Attributes:
        given: a whole number for every neuron of the layer, 0, 1, 2, ...; axes of size 1 are repeated, so (1, H, W)
            labels the places of a layer (C, H, W).
        name: for people and for JSON.
    """

    given: Tensor = field(repr=False)
    name: str = "labels"

    def labels(self, shape: Sequence[int]) -> Int[Tensor, "*shape"]:
        """The labels, repeated to the shape.

        Raises:
            PathError: there is not one label, a whole number from 0 on, for every neuron.
        """
        given = self.given
        if not isinstance(given, Tensor):
            raise PathError(f"partition {self.name!r} needs a tensor of labels; got {type(given).__name__}")
        fits = given.ndim == len(shape) and all(n in (1, size) for n, size in zip(given.shape, shape, strict=True))
        if not fits:
            raise PathError(
                f"partition {self.name!r} has labels of shape {list(given.shape)}, the layer has shape {list(shape)}: "
                "give one label a neuron, or 1 for the size of an axis along which they repeat"
            )
        if given.is_floating_point() or given.dtype == torch.bool or int(given.min()) < 0:
            raise PathError(f"partition {self.name!r} needs whole numbers from 0 on as labels; got {given.dtype}")
        return given.long().expand(*shape)


def refuse_no_partitions(given: Mapping[Layer, object], layers: Sequence[Layer]) -> None:
    """Refuse what is no partition, and one of a layer that is not among those asked for.

    Raises:
        PathError: something is not.
    """
    for layer, one in given.items():
        if layer not in layers:
            raise PathError(f"a partition is given for layer {layer.name!r}, which is not among the layers chosen")
        if not isinstance(one, Partition):
            raise PathError(f"a partition is one such as neurons, channels or heads(12); got {one!r}")


neurons = Axes("neurons")
channels = Axes("channels", last=1)
locations = Axes("locations", first=1)


def heads(count: int, axis: int = -1) -> Blocks:
    """The heads of attention: ``count`` blocks of the features, which stand along ``axis`` (-1, the last one)."""
    return Blocks(count, axis, "heads")


def labels(given: Tensor, name: str = "labels") -> Labels:
    """Any labelling: a whole number for every neuron of a layer; see ``Labels``."""
    return Labels(given, name)


@lru_cache(maxsize=64)
def _blocks(shape: tuple[int, ...], axis: int, blocks: int) -> Tensor:
    size = shape[axis]
    along = torch.arange(size) // (size // blocks)
    return along.view([size if a == axis else 1 for a in range(len(shape))]).expand(*shape)
