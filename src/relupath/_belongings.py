"""The tensors that belong to the user's model: known by where they lie, and watched, as nothing may write to them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ._calls import storage_of, version_of


def own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of a module itself, by name."""
    return [(n, t) for own in (module._parameters, module._buffers) for n, t in own.items() if t is not None]


def attributes(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors that are plain attributes of a module itself, or stand in a list, tuple or dictionary that is one."""
    found = []
    for name, value in vars(module).items():
        if name in _EVERY:
            continue
        if isinstance(value, Tensor):
            found.append((name, value))
        elif isinstance(value, _NESTS):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            found += [(f"{name}.{key}", t) for key, t in items if isinstance(t, Tensor)]
    return found


_EVERY = frozenset(vars(nn.Module()))
"""What every module has: its parameters, buffers, modules and hooks."""

_NESTS = (dict, list, tuple)


class Belongings:
    """The parameters, buffers and plain tensor attributes of modules.

    Attributes:
        tensors: each with its name and how often something had written to it.

    Args:
        paths: the modules with their paths.
    """

    def __init__(self, paths: Mapping[nn.Module, str]) -> None:
        named = [
            (f"{path}.{name}".strip("."), t)
            for tensors in (attributes, own_tensors)
            for module, path in paths.items()
            for name, t in tensors(module)
        ]
        self.tensors = [(name, t, version_of(t)) for name, t in named]
        dense = [(name, t) for name, t in named if t.layout == torch.strided and t.numel()]
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
        return [name for name, t, version in self.tensors if version_of(t) != version]
