"""Recordings that look for what broke completeness: step by step, and among what was taken for constant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ._calls import Call, leaves, version_of
from ._choices import Choices
from ._gates import Rule
from ._marks import Mark, mark_of
from ._model import without_fast_path
from ._places import line, place
from ._record import Recorder
from ._straight import Straight
from ._tested import follows, wave
from ._units import Layer
from .errors import IncompleteError, ModelError

T = TypeVar("T")
Constants: TypeAlias = list[tuple[str, list[Tensor | float]]]


class StepRecorder(Recorder):
    """Verifies every step by itself."""

    def _frozen(self, call: Call, rule: Rule) -> Straight:
        twins = {id(t): t.detach().clone().requires_grad_() for t in call.signals}
        alone = call.on(lambda t: twins[id(t)] * 1 if id(t) in twins else t.clone() if t is call.first else t)
        trial = rule.freeze(alone)
        straight = super()._frozen(call, rule)
        if any(t.requires_grad for t in leaves(straight.output)) and not follows(list(twins.values()), trial):
            where = place(call.name, self._path, line())
            raise IncompleteError(f"{where} does not do what its rule ({rule.kind}) says")
        return straight


class ConstantRecorder(Recorder):
    """Notes the constants that meet what depends on the input, at an input moved a little.

    Attributes:
        step: how far the input is moved, relative to its mean magnitude.
        constants: for each operation where it is, and its constants that are not the model's own.
    """

    step = 0.0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.constants: Constants = []

    def enter(self, name: str, value: Tensor) -> Tensor:
        """Take a value, moved a little, as an explained input."""
        with torch._C.DisableTorchFunction():
            return super().enter(name, value + self.step * value.abs().mean() * wave(value, 1.3))

    def __torch_function__(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run one function; memory that nobody wrote to yet is cleared, so that it is the same in every recording."""
        output = super().__torch_function__(func, *args, **kwargs)
        return output.zero_() if func in _UNWRITTEN else output

    def _dependent(self, call: Call, plain: Call, rule: Rule, marks: Sequence[Mark]) -> Any:
        with torch._C.DisableTorchFunction():
            overwritten = plain.func == torch.Tensor.copy_
            read = plain.tensors[overwritten : 1 if rule.pattern else None]
            read += [plain.first._base] if plain.mutates and plain.first._base is not None else []
            foreign = [t for t in read if not t.requires_grad and mark_of(t) is None and t.layout == torch.strided]
            met: list[Tensor | float] = [t.clone() for t in foreign if self.own.holder(t) is None]
            met += _numbers((call.args, call.kwargs))
            self.constants.append((place(call.name, self._path, line()), met))
        return super()._dependent(call, plain, rule, marks)


@dataclass(frozen=True)
class Probe:
    """Records the model again, to find what broke completeness.

    Attributes:
        record: runs the model under a recorder; gives the explained output.
        plain: runs the model as it is; gives the explained output.
        paths: the model's modules with their paths.
        choices: what the user chose.
        parameters: the model's own, each with how often something had written to it.
    """

    record: Callable[[Recorder], Layer]
    plain: Callable[[], Tensor]
    paths: Mapping[nn.Module, str]
    choices: Choices
    parameters: Sequence[tuple[Tensor, int]]

    def steps(self) -> None:
        """Verify every operation by itself.

        Raises:
            IncompleteError: one does not do what its rule says.
            ModelError: the model was changed since.
        """
        self.rerun(StepRecorder(self.paths, self.choices))

    def rerun(self, recorder: Recorder) -> Layer:
        """Run the model under another recorder; gives the explained output.

        Raises:
            ModelError: the model was changed since.
        """
        return self._again(self.record, recorder)

    def unchanged(self, output: Tensor, tolerance: float) -> None:
        """Verify that the model is the one that was recorded: it has the same parameters and gives the same output.

        Args:
            output: what was recorded.
            tolerance: the largest relative error that is round-off.

        Raises:
            ModelError: it is another one.
        """
        now = parameters_of(self.paths)
        if len(now) != len(self.parameters) or any(
            p is not q or version != own for (p, version), (q, own) in zip(now, self.parameters, strict=True)
        ):
            raise ModelError("a parameter of the model was changed since the network was frozen: freeze again")
        with without_fast_path():
            error = _error(output, self._again(self.plain))
        if not error <= tolerance:
            raise ModelError(
                f"the model does not give the recorded output any more (relative error {error:.1e}, tolerance "
                f"{tolerance:.0e}): {_OTHER}"
            )

    def again(self, output: Tensor, dtype: torch.dtype, tolerance: float) -> None:
        """Verify that what was taken for constant stays when the input moves a little, and the output without us.

        Args:
            output: what was recorded.
            dtype: the input's number format.
            tolerance: the largest relative error that is round-off.

        Where the input decides which operations run, those from the first difference on are not compared.

        Raises:
            IncompleteError: a constant moves with the input (its dependence was lost unseen), or the model gives
                another output by itself.
            ModelError: the model was changed since.
        """
        here, there = (ConstantRecorder(self.paths, self.choices) for _ in range(2))
        there.step = max(torch.finfo(d).eps for d in (dtype, torch.float32)) ** 0.6
        self._again(self.record, here)
        self._again(self.record, there)
        _refuse_moved(here.constants, there.constants, there.step**0.5)
        plain = self._again(self.plain)
        error = _error(output, plain)
        if error <= tolerance:
            return
        with without_fast_path():
            fast = _error(output, self._again(self.plain)) <= tolerance
        reason = _FAST if fast else _OTHER
        raise IncompleteError(
            f"the recorded output is not what the model gives by itself (relative error {error:.1e}, tolerance "
            f"{tolerance:.0e}): {reason}"
        )

    def _again(self, run: Callable[..., T], *args: Any) -> T:
        try:
            return run(*args)
        except IncompleteError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ModelError(f"the model no longer runs as when it was recorded, freeze again ({said})") from error


def parameters_of(paths: Mapping[nn.Module, str]) -> list[tuple[Tensor, int]]:
    """The parameters of a model, the first of these modules, each with how often something has written to it."""
    return [(parameter, version_of(parameter)) for parameter in next(iter(paths)).parameters()]


def _error(a: Tensor, b: Tensor) -> float:
    """How far two outputs are apart, relative to the second; not a number where they cannot be compared."""
    if a.shape != b.shape:
        return math.nan
    return float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(b.dtype).tiny))


def _refuse_moved(here: Constants, there: Constants, little: float) -> None:
    for (where, before), (elsewhere, after) in zip(here, there, strict=False):
        if where != elsewhere or len(before) != len(after):
            return
        if any(_moved(a, b, little) for a, b in zip(before, after, strict=True)):
            raise IncompleteError(
                f"{where} is given a constant that moves with the input: its dependence was lost where it could "
                "not be seen (nn.Parameter of a signal, .data, numpy, an extension that computes outside torch)"
            )


def _moved(a: Tensor | float, b: Tensor | float, little: float) -> bool:
    """Whether a constant is another: any entry moved a little; a tenth may have jumped, as the flips of a mask do."""
    if isinstance(a, float) or isinstance(b, float):
        return type(a) is not type(b) or bool(a != b)
    if a.shape != b.shape or a.numel() == 0 or not (a.is_floating_point() or a.is_complex()):
        return False
    differs = a != b
    near = (a - b).abs() <= little * torch.where(a.isfinite(), a, 0).abs().max()
    return bool((differs & near).any() or differs.float().mean() > 0.1)


_OTHER = (
    "it was changed since (freeze again), its forward pass changes from call to call, or asks whether derivatives are "
    "taken"
)
_FAST = (
    "where no derivatives are taken torch runs transformer layers by a fast path that gives another output under this "
    "mask: switch it off with torch.backends.mha.set_fastpath_enabled(False), or, if only padded places differ, build "
    "nn.TransformerEncoder with enable_nested_tensor=False"
)
_UNWRITTEN = (
    torch.empty,
    torch.empty_like,
    torch.empty_strided,
    torch.Tensor.new_empty,
    torch.Tensor.new_empty_strided,
)


def _numbers(value: Any) -> list[Tensor | float]:
    """Every plain floating-point number in nested arguments."""
    if isinstance(value, float):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [number for item in items for number in _numbers(item)]
