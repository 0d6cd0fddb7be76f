"""The user's model: taken as it is, left as it was."""

from __future__ import annotations

import operator
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.fx
import torch.utils.checkpoint
from torch import nn
from torch.backends import mha
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from ._belongings import Belongings, own_tensors
from ._calls import leaves, version_of
from .errors import ModelError, TrainingModeError, UnsupportedOperation


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's module inside DataParallel, DistributedDataParallel and torch.compile."""
    wrapped = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    inner = model.module if wrapped else getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def refuse_unusable(modules: Mapping[nn.Module, str]) -> None:
    own = [t for module in modules for _, t in own_tensors(module)]
    if any(map(is_lazy, own)):
        raise ModelError("the model has parameters without a shape (lazy modules): run it once on an input first")
    if any(t.is_inference() for t in own):
        raise ModelError("the model was built under torch.inference_mode(), where it has no derivatives")
    for module, name in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedOperation(
                f"module {name or type(module).__name__!r} is scripted or traced, so its operations cannot be seen: "
                "use the module that it was made from"
            )
        if getattr(module, "max_norm", None) is not None:
            raise UnsupportedOperation(
                f"module {name or type(module).__name__!r} bounds the norms of its own weights in the forward pass "
                "(max_norm), and the model must stay as it is: set max_norm=None once the weights are bounded"
            )
        if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):
            raise ModelError(
                f"module {name or type(module).__name__!r} was made by torch.export and has no eval mode: give the "
                "module that was exported"
            )
        if module.training:
            raise TrainingModeError(
                f"module {name or type(module).__name__!r} is in training mode, where batch norm uses the batch's "
                "statistics and dropout is random, so the output is no function of one input: call model.eval() first"
            )


class Surroundings:
    """What a forward pass depends on beside model and input, as it is now: autocast and random states.

    Args:
        values: what tells the devices.
    """

    def __init__(self, values: Any) -> None:
        devices = {t.device for t in leaves(values)}
        kinds = filter(torch.amp.is_autocast_available, sorted({"cpu", *(device.type for device in devices)}))
        self._casts = {d: (torch.get_autocast_dtype(d), torch.is_autocast_enabled(d)) for d in kinds}
        self._random = torch.get_rng_state()
        self._cuda = {d.index or 0: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}

    @contextmanager
    def again(self) -> Iterator[None]:
        """As they were; autocast keeps no weight cast here, as the user's own passes would take it for theirs."""
        with torch.random.fork_rng(devices=sorted(self._cuda)), ExitStack() as stack:
            torch.set_rng_state(self._random)
            for index, state in self._cuda.items():
                torch.cuda.set_rng_state(state, index)
            for device, (dtype, enabled) in self._casts.items():
                stack.enter_context(torch.autocast(device, dtype, enabled, cache_enabled=False))
            yield


@contextmanager
def kept(modules: Iterable[nn.Module], own: Belongings, surroundings: Surroundings) -> Iterator[None]:
    """Suspend backward hooks, compiling, checkpointing; undo what a forward does to attributes, buffers, randomness.

    Recordings are kept one after the other: random states, warnings and compiling are the whole process's.
    """
    with _ONE, _kept(modules, own, surroundings):
        yield


_ONE = threading.RLock()


@contextmanager
def _kept(modules: Iterable[nn.Module], own: Belongings, surroundings: Surroundings) -> Iterator[None]:
    places = [module.__dict__ for module in modules]
    places += [place[key] for place in places for key in ("_parameters", "_buffers", "_modules")]
    cache: dict[Any, Any] = parametrize._cache
    before = [(place, dict(place)) for place in [*places, cache] if isinstance(place, dict)]
    cache.clear()
    with torch.no_grad():
        values = [(t, version_of(t), t.clone()) for _, t, _ in own.tensors if not isinstance(t, nn.Parameter)]
    for module in modules:
        hooks = [key for key in ("_backward_hooks", "_backward_pre_hooks") if getattr(module, key)]
        module.__dict__.update({key: OrderedDict() for key in hooks})
    try:
        with surroundings.again(), _plainly(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Using `torch\.compile\(module\)` when there are global hooks")
            yield
    finally:
        for place, kept in before:
            if not (place or kept):
                continue
            if list(place) != list(kept) or any(map(operator.is_not, place.values(), kept.values())):
                place.clear()
                place.update(kept)
        for t, version, value in values:
            if version_of(t) != version:
                t.data.copy_(value)


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Without the kernel by which torch runs transformer layers where no derivatives are taken."""
    with _ONE:
        fast = mha.get_fastpath_enabled()
        mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            mha.set_fastpath_enabled(fast)


@contextmanager
def _plainly() -> Iterator[None]:
    """No compiling, and checkpointing calls its function plainly."""
    checkpointing = vars(torch.utils.checkpoint)
    generators = {name: _once for name in checkpointing if name.startswith(_GENERATOR)}
    stand_ins = {"CheckpointFunction": _CheckpointFunction, **generators}
    before = {name: checkpointing[name] for name in stand_ins}
    checkpointing.update(stand_ins)
    try:
        with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
            yield
    finally:
        checkpointing.update(before)


class _CheckpointFunction:
    """Calls what torch.utils.checkpoint runs reentrantly."""

    @staticmethod
    def apply(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
        """As torch.utils.checkpoint calls it."""
        return function(*args)


def _once(*_args: Any, **_kwargs: Any) -> Iterator[None]:
    """As torch.utils.checkpoint surrounds what it does not run reentrantly."""
    yield


_GENERATOR = "_checkpoint_without_reentrant_generator"
