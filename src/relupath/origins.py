"""Where the bias of an explained target comes from, in plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from ._bias import BiasSources


@dataclass(frozen=True, eq=False)
class Origin:
    """The bias of one target, taken apart.

    Attributes:
        layers: what the constants add that enter below each hidden layer, in order, and above the last (``output``).
        unplaced: what constants without a place add (linear layers, after global pooling).
        map: the bias laid out over the picture, (H, W); what has no place is spread evenly. It sums to the bias.
    """

    layers: Mapping[str, float]
    unplaced: float
    map: Float[np.ndarray, "H W"] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, without the map."""
        return {"layers": dict(self.layers), "unplaced": self.unplaced}


def origins(sources: BiasSources) -> tuple[Origin, ...]:
    """Where the bias comes from, for each sample.

    Raises:
        InputError: the explained input is not one picture (B, C, H, W).
    """
    by_layer, maps, unplaced = sources.by_layer(), sources.by_location().cpu().double().numpy(), sources.unplaced
    return tuple(
        Origin({name: float(part[b]) for name, part in by_layer.items()}, float(unplaced[b]), maps[b])
        for b in range(len(maps))
    )
