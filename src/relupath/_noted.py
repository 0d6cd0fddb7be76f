"""The hidden layers of a recording, noted as they come: their names, and their values kept from later writes."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ._calls import storage_of
from ._units import Layer
from .errors import UnknownLayerError


class NotedLayers(list[Layer]):
    """Hidden layers in the order of execution."""

    def __init__(self) -> None:
        super().__init__()
        self._versions: dict[Layer, int] = {}
        self._positions: dict[int, list[int]] = {}
        self._latest: tuple[Tensor, str] | None = None
        self._activated: Tensor | None = None

    def note(self, name: str, signal: Tensor, module: str, activation: bool | None = None) -> None:
        """Note a layer: what comes out of an operation, or (activation unsaid) of a module.

        Raises:
            UnknownLayerError: it holds complex numbers.
        """
        if signal.is_complex():
            raise UnknownLayerError(
                f"{name!r} holds complex numbers, on which no path can stand: record a layer before or after them"
            )
        if activation is None:
            activation = signal is self._activated
        self._latest = signal, module
        self._positions.setdefault(storage_of(signal), []).append(len(self))
        self.append(self._at_version(Layer(name, signal.detach(), get_gradient_edge(signal), activation)))

    def ran(self, output: Tensor, activation: bool) -> None:
        """Remember whether what came out last is what an activation function gives."""
        self._activated = output if activation else None

    def copied(self, source: Tensor, target: Tensor) -> None:
        """The latest layer's output was written to another tensor, which takes its place."""
        if self._latest is not None and self._latest[0] is source:
            self._latest = target, self._latest[1]

    def name_after(self, module: str, output: object) -> None:
        """Give the latest layer the name of the module whose output it is and in which it came about."""
        if self._latest is not None and output is self._latest[0] and module and module == self._latest[1]:
            self[-1] = self._at_version(replace(self[-1], name=module))

    def about_to_write(self, storage: int) -> None:
        """Keep the values of the layers that share a storage."""
        for position in self._positions.pop(storage, ()):
            layer = self[position]
            self[position] = self._at_version(replace(layer, output=layer.output.clone()))

    def overwritten(self) -> list[str]:
        """The names of the layers to which something wrote unseen."""
        return [layer.name for layer in self if layer.output._version != self._versions[layer]]

    def forget_tensors(self) -> None:
        """Drop what the recording alone needed."""
        self._latest = self._activated = None

    def _at_version(self, layer: Layer) -> Layer:
        self._versions[layer] = layer.output._version
        return layer
