"""Hidden layers and their units."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
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


def mask_of(units: Sequence[Unit], layer: Layer) -> Float[Tensor, "*shape"]:
    """The 0/1 mask of a set of units.

    Raises:
        PathError: a unit has the wrong number of coordinates, lies outside the layer, or shares neurons with another.
    """
    count = torch.zeros(layer.shape, dtype=layer.output.dtype, device=layer.output.device)
    for unit in units:
        refuse_unit(unit, layer)
        count[tuple(slice(None) if i is None else i for i in unit)] += 1
    if (count > 1).any():
        raise PathError(f"units of layer {layer.name!r} overlap: name every neuron once")
    return count


def refuse_unit(unit: Unit, layer: Layer) -> None:
    """Refuse a unit that is not in a layer.

    Raises:
        PathError: it has the wrong number of coordinates, or lies outside the layer.
    """
    if len(unit) != len(layer.shape) or any(
        i is not None and not 0 <= i < size for i, size in zip(unit, layer.shape, strict=True)
    ):
        raise PathError(
            f"unit {list(unit)} is not in layer {layer.name!r}, whose shape is {list(layer.shape)}; "
            "give one coordinate an axis, or None for a whole axis"
        )


def number_below(end: int, value: Any) -> int | None:
    """A whole number from 0 to ``end - 1``, also one of numpy or torch; None for anything else."""
    if isinstance(value, bool) or (isinstance(value, Tensor) and (value.ndim > 0 or value.dtype == torch.bool)):
        return None
    try:
        number = operator.index(value)
    except TypeError:
        return None
    return number if 0 <= number < end else None
