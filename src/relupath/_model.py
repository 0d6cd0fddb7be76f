"""The user's model: taken as it is, left as it was."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ._places import own_tensors
from .errors import ModelError, TrainingModeError, UnsupportedOperation


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
def kept(modules: Iterable[nn.Module], inputs: Sequence[Tensor]) -> Iterator[None]:
    """Suspend backward hooks; undo what a forward pass does to the model's attributes and to random generators."""
    places = [module.__dict__ for module in modules]
    places += [place[key] for place in places for key in ("_parameters", "_buffers", "_modules")]
    before = [(place, dict(place)) for place in places if isinstance(place, dict)]
    for module in modules:
        hooks = [key for key in ("_backward_hooks", "_backward_pre_hooks") if getattr(module, key)]
        module.__dict__.update({key: OrderedDict() for key in hooks})
    devices = {value.device.index or 0 for value in inputs if value.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        for place, kept in before:
            if list(place) != list(kept) or any(map(operator.is_not, place.values(), kept.values())):
                place.clear()
                place.update(kept)
