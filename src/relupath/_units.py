"""Hidden layers, on which of the others each depends, and their units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def below(layers: Sequence[Layer]) -> dict[Layer, frozenset[Layer]]:
    """For each of the layers, in order of execution, those of them on which it depends; the last one is the output."""
    places: dict[tuple[Any, int], list[Layer]] = {}
    for layer in layers[:-1]:
        places.setdefault(_key(layer.edge), []).append(layer)
    found: dict[Layer, frozenset[Layer]] = {}
    for layer in layers:
        twins = places.get(_key(layer.edge), [])
        direct = twins[: twins.index(layer)] if layer in twins else twins
        if not direct:
            direct = _nearest(layer.edge, places)
        found[layer] = frozenset(direct).union(*(found[lower] for lower in direct))
    return found


def levels(layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], ...]:
    """The layers but the last one, which is the output, by how many layers the longest way up to it has.

    Args:
        layers: in order of execution.

    Returns:
        The levels from the top down.
    """
    depends, height = below(layers), dict.fromkeys(layers[:-1], 0)
    for layer in reversed(layers[:-1]):
        for lower in depends[layer]:
            height[lower] = max(height[lower], height[layer] + 1)
    count = max(height.values(), default=-1) + 1
    return tuple(tuple(layer for layer in layers[:-1] if height[layer] == h) for h in range(count))


def _key(edge: GradientEdge) -> tuple[Any, int]:
    return edge.node, edge.output_nr


def _nearest(edge: GradientEdge, places: Mapping[tuple[Any, int], list[Layer]]) -> list[Layer]:
    """The layers met first on the ways from a place in the graph down to the input."""
    found: list[Layer] = []
    todo, seen = list(edge.node.next_functions), set()
    while todo:
        place = todo.pop()
        if place[0] is None or place in seen:
            continue
        seen.add(place)
        if place in places:
            found += places[place]
        else:
            todo += place[0].next_functions
    return found
