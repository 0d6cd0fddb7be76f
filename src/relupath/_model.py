"""The user's model: taken as it is, left as it was."""

from __future__ import annotations

import operator
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

from ._calls import leaves
from ._places import own_tensors
from .errors import ModelError, TrainingModeError, UnsupportedOperation


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's module inside DataParallel, DistributedDataParallel and torch.compile."""
    wrapped = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    inner = model.module if wrapped else getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def refuse_unusable(modules: Mapping[nn.Module, str]) -> None:
    if any(t.is_inference() for module in modules for _, t in own_tensors(module)):
        raise ModelError("the model was built under torch.inference_mode(), where it has no derivatives")
    for module, name in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedOperation(
                f"module {name or type(module).__name__!r} is scripted or traced, so its operations cannot be seen: "
                "use the module that it was made from"
            )
        if module.training:
            raise TrainingModeError(
                f"module {name or type(module).__name__!r} is in training mode, where batch norm uses the batch's "
                "statistics and dropout is random, so the output is no function of one input: call model.eval() first"
            )


@contextmanager
def kept(modules: Iterable[nn.Module], inputs: Sequence[Any]) -> Iterator[None]:
    """Suspend backward hooks, compiling and checkpointing; undo what a forward does to attributes and random states."""
    places = [module.__dict__ for module in modules]
    places += [place[key] for place in places for key in ("_parameters", "_buffers", "_modules")]
    before = [(place, dict(place)) for place in places if isinstance(place, dict)]
    for module in modules:
        hooks = [key for key in ("_backward_hooks", "_backward_pre_hooks") if getattr(module, key)]
        module.__dict__.update({key: OrderedDict() for key in hooks})
    devices = {value.device.index or 0 for value in leaves(tuple(inputs)) if value.device.type == "cuda"}
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        with torch.random.fork_rng(devices=sorted(devices)), eager, _without_checkpoints():
            yield
    finally:
        for place, kept in before:
            if list(place) != list(kept) or any(map(operator.is_not, place.values(), kept.values())):
                place.clear()
                place.update(kept)


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Let gradient checkpointing call its function plainly: what is recorded is not to be computed twice."""
    with _PLAIN.lock:
        if not _PLAIN.users:
            _PLAIN.before = {name: getattr(torch.utils.checkpoint, name) for name in _PLAIN.stand_ins}
            vars(torch.utils.checkpoint).update(_PLAIN.stand_ins)
        _PLAIN.users += 1
    try:
        yield
    finally:
        with _PLAIN.lock:
            _PLAIN.users -= 1
            if not _PLAIN.users:
                vars(torch.utils.checkpoint).update(_PLAIN.before)


class _Plain:
    """Stands in for both ways of checkpointing while at least one network is being recorded."""

    lock = threading.Lock()
    users = 0

    def __init__(self) -> None:
        self.before: dict[str, Any] = {}
        self.stand_ins = {"CheckpointFunction": self, "_checkpoint_without_reentrant_generator": self.without_reentrant}

    @staticmethod
    def apply(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
        """As torch.utils.checkpoint calls what it runs reentrantly."""
        return function(*args)

    @staticmethod
    def without_reentrant(*_args: Any, **_kwargs: Any) -> Iterator[None]:
        """As torch.utils.checkpoint surrounds what it runs otherwise."""
        yield


_PLAIN = _Plain()
