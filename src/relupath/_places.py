"""What happens where in the user's model: operations, module paths, numbers of calls, source lines, refusals."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

from .errors import UnsupportedOperation


class Operation(NamedTuple):
    """One operation of the forward pass on what depends on the input.

    Attributes:
        name: the function, such as ``conv2d``.
        module: path of the module that called it.
        kind: how it was treated: ``affine``; ``piece``; ``gate``, x * phi(x) or scaled by a frozen gate; ``scale``,
            scaled by a frozen norm or deviation; ``carried``, a product of which the user chose the factor that carries
            on; ``tested``, not in the table and found affine at the input by a numeric test; ``frozen gate`` and
            ``frozen scale``, what comes out may only scale signals; ``bent``, not exact, for gates and scales only.
        line: the user's line of code that ran it, such as ``model.py:12``.
    """

    name: str
    module: str
    kind: str
    line: str


def module_paths(model: nn.Module) -> dict[nn.Module, str]:
    """Every module of the model with its path; a module that stands at several places has its first one."""
    paths: dict[nn.Module, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, path)
    return paths


def numbered(name: str, call: int) -> str:
    """The name, with ``#k`` from the second call on."""
    return name if call == 1 else f"{name}#{call}"


def place(operation: str, module: str, where: str) -> str:
    """An operation, with its module and its line of code."""
    return f"{operation} in module {module or '(the model itself)'!r}" + (f" ({where})" if where else "")


def line() -> str:
    """The line of the user's code that is running, such as ``model.py:12``."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and _INNER[frame.f_globals.get("__name__", "")]:
        frame = frame.f_back
    return f"{_basename(frame.f_code.co_filename)}:{frame.f_lineno}" if frame else ""


def line_of(node: Any) -> str:
    """The line of the user's code that made a graph node, if autograd was asked to note it (anomaly mode)."""
    frames = [_FRAME.match(frame) for frame in node.metadata.get("traceback_", ())]
    ours = tuple(os.path.dirname(sys.modules[own].__file__ or "") + os.sep for own in _OURS if own in sys.modules)
    found = [(m[1], m[2]) for m in frames if m and not m[1].startswith((*ours, "<"))]
    return f"{os.path.basename(found[-1][0])}:{found[-1][1]}" if found else ""


def origin(error: BaseException, modules: Mapping[nn.Module, str]) -> tuple[str, str]:
    """Module path and line of the user's code in which an error was raised."""
    path, where, trace = "", "", error.__traceback__
    while trace is not None:
        frame, last, trace = trace.tb_frame, trace.tb_lineno, trace.tb_next
        owner = frame.f_locals.get("self")
        path = modules.get(owner, path) if isinstance(owner, nn.Module) else path
        if not _INNER[frame.f_globals.get("__name__", "")]:
            where = f"{os.path.basename(frame.f_code.co_filename)}:{last}"
    return path, where


UNSEEN = "it ran unseen (a custom autograd function, or a compiled or scripted function)"


def refusal(where: str, reason: str) -> UnsupportedOperation:
    """The error of an operation, in one sentence: what, where, why, and what to do."""
    return UnsupportedOperation(
        f"{where} cannot be explained exactly: {reason}. "
        "Expected an operation that at one input is affine, piecewise linear, or a gate x*phi(x). "
        "Replace it by such operations, teach it with relupath.freezes, or explain an output that comes before it "
        "(freeze's output=...)."
    )


_OURS = (__name__.partition(".")[0], "torch", "functorch", "jaxtyping", "beartype")


class _Inner(dict[str, bool]):
    """Whether a module is not the user's, by its name."""

    def __missing__(self, module: str) -> bool:
        return self.setdefault(module, module.partition(".")[0] in _OURS)


_INNER = _Inner()
_basename = lru_cache(256)(os.path.basename)
_FRAME = re.compile(r'\s*File "(.*?)", line (\d+)')
