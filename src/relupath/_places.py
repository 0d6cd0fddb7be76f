"""Where in the user's model something happens: module paths, numbers of calls, source lines."""

from __future__ import annotations

import os
import sys
from types import FrameType

from torch import Tensor, nn


def module_paths(model: nn.Module) -> dict[nn.Module, str]:
    """Every module of the model with its path; a module that stands at several places has its first one."""
    paths: dict[nn.Module, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, path)
    return paths


def own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of a module itself, by name."""
    return [(n, t) for own in (module._parameters, module._buffers) for n, t in own.items() if t is not None]


def numbered(name: str, call: int) -> str:
    """The name, with ``#k`` from the second call on."""
    return name if call == 1 else f"{name}#{call}"


def line() -> str:
    """The line of the user's code that is running, as `` (file.py:12)``."""
    frame: FrameType | None = sys._getframe()
    ours = (__name__.partition(".")[0], "torch", "jaxtyping", "beartype")
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ours:
        frame = frame.f_back
    return f" ({os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno})" if frame else ""
