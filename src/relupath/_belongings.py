"""The tensors that belong to the user's model: known by where they lie, and watched, as nothing may write to them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ._calls import storage_of, version_of


def own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of a module itself, by name."""
    return [(n, t) for own in (module._parameters, module._buffers) for n, t in own.items() if t is not None]


class Belongings:
    """The parameters and buffers of modules.

    Args:
        named: the tensors with their names.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        self._tensors = [(name, t, version_of(t)) for name, t in named]
        dense = [(name, t) for name, t, _ in self._tensors if t.layout == torch.strided and t.numel()]
        self._addresses = {t.data_ptr(): name for name, t in dense}
        self._storages = {storage_of(t): name for name, t in dense}

    def holder(self, t: Tensor) -> str | None:
        """The name of the tensor with which another shares its memory."""
        return self._storages.get(storage_of(t))

    def name(self, t: Tensor) -> str | None:
        """The name of a tensor, or of the one that begins where it begins."""
        return self._addresses.get(t.data_ptr()) if t.layout == torch.strided else None

    def overwritten(self) -> list[str]:
        """The names of the tensors to which something wrote since."""
        return [name for name, t, version in self._tensors if version_of(t) != version]
