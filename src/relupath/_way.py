"""Products of cotangents that live on few places: carried down the graph in windows of their receptive field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ._cropped import KEEP_CHANNELS, OPERATIONS, Channels, NotCropped, Place, metadata, shape_of, taken
from ._crops import Crops, added
from ._frozen import Frozen
from ._graph import as_recorded, route
from ._sources import refuse_changed
from ._units import Layer


@dataclass
class Part:
    """Some of the cotangents on their way down.

    Attributes:
        rows: which they are.
        found: the products, once they are down.
        biases: what the constants on the way add to each ``<cotangent, upper>``, and the sum of the terms' sizes.
        met: what the places below have got so far.
        position: the number of the node that comes next.
    """

    rows: slice
    found: Crops
    biases: Float[Tensor, "2 n"]
    met: dict[Place, list[Crops]]
    position: int = 0

    def split(self, most: int) -> list[Part]:
        """The same in parts of at most so many cotangents, as alike in size as can be."""
        first, count = self.rows.start, self.biases.shape[1]
        number = math.ceil(count / most)
        parts = []
        for k in range(number):
            some = slice(k * count // number, (k + 1) * count // number)
            met = {place: [crops.select(some) for crops in every] for place, every in self.met.items()}
            rows = slice(first + some.start, first + some.stop)
            parts.append(Part(rows, self.found, self.biases[:, some], met, self.position))
        return parts


class Way:
    """The way from one layer down to a lower one that it depends on.

    Args:
        frozen: the recorded network.
        upper: where the cotangents stand.
        lower: the layer below.
        together: the most bytes of cotangents that go down at once.

    Raises:
        ModelError: a constant was changed since the network was frozen.
        NotCropped: nothing leads down, or on the way an operation mixes all places.
    """

    def __init__(self, frozen: Frozen, upper: Layer, lower: Layer, together: int) -> None:
        self.frozen, self.together, self.start, self.goal = frozen, together, _place(upper), _place(lower)
        self.nodes = sorted(route(upper.edge, lower.edge), key=lambda node: -node._sequence_nr())
        self.on_way = set(self.nodes)
        refuse_changed(frozen.sources)
        self.constants: dict[Place, list[Tensor]] = {}
        for source in frozen.sources:
            self.constants.setdefault((source.edge.node, source.edge.output_nr), []).append(source.constant)
        known = all(node.name() in OPERATIONS for node in self.nodes)
        if len(upper.shape) != 3 or not self.nodes or not known:
            raise NotCropped

    def pull(self, crops: Crops, wanted: Channels = None) -> Iterator[Part]:
        """Vector-Jacobian products, ``(d upper / d lower)^T cotangent``, in windows.

        They come part by part: where cotangents outgrow what a processor keeps at hand, some go down before the others.

        Args:
            crops: the cotangents.
            wanted: the only channels of the lower layer that are looked at afterwards; None: all.

        Raises:
            NotCropped: an operation is of a kind that windows do not go through.
        """
        narrow = self._narrow() if wanted is not None else {}
        todo = [Part(slice(0, len(crops)), crops, crops.values.new_zeros(2, len(crops)), {self.start: [crops]})]
        while todo:
            part = todo.pop()
            with self.frozen.lock, torch.no_grad(), as_recorded(crops.values.device):
                several = self._down(part, None if wanted is None else wanted[part.rows], narrow)
            if several:
                todo += reversed(several)
            else:
                yield part

    def _down(self, part: Part, wanted: Channels, narrow: Mapping[Place, bool]) -> Sequence[Part]:
        """Carry a part down; gives those in which it goes on where it has become too large, else none."""
        met = part.met
        for position, node in enumerate(self.nodes[part.position :], part.position):
            if (node, 0) not in met:
                raise NotCropped
            above = added(met.pop((node, 0))).simplest()
            channels = [wanted if narrow.get(place, False) else None for place in node.next_functions]
            most = max(1, self.together // taken(node, above, channels[0]))
            if len(above) > most:
                return replace(part, position=position, met=met | {(node, 0): [above]}).split(most)
            for constant in self.constants.get((node, 0), []):
                part.biases += above.dot(constant)
            pulled = OPERATIONS[node.name()](node, above, channels[0])
            for place, lower, some in zip(node.next_functions, pulled, channels, strict=False):
                if not self._leads(place):
                    continue
                if lower.shape != shape_of(place):
                    raise NotCropped
                lower = lower.with_values(lower.values.to(metadata(place).dtype))
                met.setdefault(place, []).append(lower if some is None else lower.of_channels(some))
        if self.goal not in met:
            raise NotCropped
        found = added(met[self.goal])
        part.found = found if wanted is None else found.of_channels(wanted)
        return ()

    def _leads(self, place: Place) -> bool:
        return place == self.goal or place[0] in self.on_way

    def _narrow(self) -> dict[Place, bool]:
        """For each place on the way, whether all below it keeps the channels apart."""
        found: dict[Place, bool] = {self.goal: True}
        for node in reversed(self.nodes):
            lower = [place for place in node.next_functions if self._leads(place)]
            found[node, 0] = node.name() in KEEP_CHANNELS and all(found.get(place, False) for place in lower)
        return found


def _place(layer: Layer) -> Place:
    return layer.edge.node, layer.edge.output_nr
