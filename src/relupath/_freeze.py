"""Freeze a model at an input: take it as it is, run it once under the recorder, leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from ._belongings import Belongings
from ._calls import copied
from ._choices import Choices
from ._frozen import Frozen
from ._memory import keep_freed
from ._model import Surroundings, kept, refuse_unusable, unwrapped
from ._own import RULE
from ._places import UNSEEN, module_paths, numbered, origin, place, refusal
from ._probe import Probe, parameters_of
from ._record import Recorder
from ._tested import TOLERANCE
from ._units import Layer
from .errors import InputError, ModelError, RelupathError, UnknownLayerError, UnsupportedOperation, UsageError

Names = str | nn.Module | Iterable[str | nn.Module | tuple[nn.Module, int]]
"""Layers by name, by module, or by module and number of the call."""

EMBEDDINGS = frozenset({"embeddings"})
"""Explained inputs that are what the nn.Embedding modules give that look up the model's own inputs."""


def freeze(
    model: nn.Module,
    x: Tensor | tuple[Tensor, ...],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    inputs: Names | None = None,
    output: Callable[[Any], Tensor] | None = None,
    layers: Names | None = None,
    carry: Literal["first", "second", "half"] | None = None,
) -> Frozen:
    """Record the affine map that the model is at x: f(x) = W x + b.

    With glibc the process keeps up to 512 MiB of what is freed from then on, unless the environment says anything of
    malloc (``MALLOC_...``, ``GLIBC_TUNABLES``).

    Args:
        model: any module in eval mode; it is left as it was, parameters, buffers, flags and hooks. Of one that is
            wrapped (DataParallel, DistributedDataParallel, torch.compile) the original is used.
        x: the explained input, (B, ...), or a tuple of several, passed as the model's first arguments.
        *args: further positional arguments, held constant.
        kwargs: further keyword arguments, held constant.
        inputs: explain the output of this layer (or of these) in place of x, such as an embedding's, by name or module;
            ``embeddings`` means every nn.Embedding that looks up x. What reaches the output around them is constant.
        output: picks the explained tensor (B, ..., C) from what the model returns; needed if that is no tensor.
        layers: the hidden layers to record, by name or module; None records every activation function's output.
        carry: of a product of two signals with no gate among them, the factor that carries on while the other is
            frozen: ``first``, ``second``, or ``half`` (each with half the derivative). None refuses such products. With
            any choice a signal that others are divided by is frozen, and ``h**p`` is ``h`` times a frozen ``h**(p-1)``.

    Returns:
        The frozen network, on which linear models, paths and searches work.

    Raises:
        InputError: x is not floating point, is empty or not finite.
        ModelError: the output is not a finite tensor with one entry a sample, or does not depend on x.
        TrainingModeError: a module is in training mode.
        UnsupportedOperation: an operation is not affine at x, and no gate of the table makes it so.
        UnknownLayerError: a named layer does not run.
        UsageError: output or carry is none of what they may be.
    """
    _refuse_arguments(model, output, layers, carry)
    model = unwrapped(model)
    modules = module_paths(model)
    refuse_unusable(modules)
    explained = x if isinstance(x, tuple) else (x,)
    _refuse_input(explained, inputs is not None)
    named = _names([inputs] if isinstance(inputs, str) else inputs or [], modules)
    choices = Choices(named, None if layers is None else _names(layers, modules), carry)
    run = _Run(
        model, modules, (*explained, *args), dict(kwargs or {}), output, len(explained), Surroundings((explained, args))
    )
    recorder = Recorder(modules, choices)
    keep_freed()
    try:
        top = run.recorded(recorder)
        tolerance = _tolerance(recorder.dtypes)
    except RelupathError as error:
        if UNSEEN in str(error):
            with torch.autograd.set_detect_anomaly(True, check_nan=False):
                run.recorded(Recorder(modules, choices))  # now autograd notes the lines, so that the error names it
        raise
    except Exception as error:
        if RULE in getattr(error, "__notes__", ()):
            raise
        _refuse_if_the_model_runs(run, error)
        raise
    return Frozen(
        output=top.output,
        layers=tuple(recorder.layers),
        inputs=tuple(recorder.inputs),
        operations=tuple(recorder.operations),
        sources=tuple(recorder.sources),
        top=top,
        modules=modules,
        tolerance=tolerance,
        writes_to_views=recorder.writes_to_views,
        savings=recorder.savings,
        probe=Probe(run.recorded, run.plain, modules, choices, parameters_of(modules)),
    )


def freeze_each(
    model: nn.Module,
    batches: Tensor | Iterable[Any],
    batch_size: int | None = None,
    *,
    inputs: Names | None = None,
    output: Callable[[Any], Tensor] | None = None,
    layers: Names | None = None,
    carry: Literal["first", "second", "half"] | None = None,
) -> Iterator[Frozen]:
    """Record a stack of inputs, batch by batch, each when it is asked for: one recording at a time.

    Nothing of a recording is held here once it is handed out. A loop variable holds it until the next one is recorded;
    where two do not fit into memory, end the body with ``del``, or explain with ``map(explain, freeze_each(...))``.

    Args:
        model: as in ``freeze``; a model that takes more than x is wrapped in a module that holds the rest.
        batches: one tensor (N, ...), or what gives tensors (B, ...) one after another, such as a DataLoader; of a tuple
            or list, such as (x, label), the first entry is explained.
        batch_size: the most samples in one recording; None: 1 of one tensor, and what batches hold as they come.
        inputs: as in ``freeze``.
        output: as in ``freeze``.
        layers: as in ``freeze``.
        carry: as in ``freeze``.

    Returns:
        What gives the recordings in the order of the inputs; the last of a tensor may hold fewer samples.

    Raises:
        InputError: there is no sample, or a batch is no tensor, when its turn comes.
        UsageError: batch_size is no whole number above 0.
        RelupathError: what ``freeze`` refuses, when the turn of that input comes; the next one can be asked for then.
    """
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise UsageError(f"batch_size must be a whole number, at least 1, or None; got {batch_size!r}")
    if isinstance(batches, str | Mapping) or not isinstance(batches, Iterable):
        raise InputError(
            "give a tensor (samples, ...) or what gives such tensors one after another, such as a DataLoader; "
            f"got {type(batches).__name__}"
        )
    inputs, layers = ([*names] if isinstance(names, Iterator) else names for names in (inputs, layers))
    most = batch_size or (1 if isinstance(batches, Tensor) else None)
    parts = _parts([batches] if isinstance(batches, Tensor) else batches, most)
    return map(partial(freeze, model, inputs=inputs, output=output, layers=layers, carry=carry), parts)


def _parts(batches: Iterable[Any], most: int | None) -> Iterator[Tensor]:
    """What is recorded at once.

    Raises:
        InputError: a batch is no tensor, or there is no sample.
    """
    number = -1
    for number, batch in enumerate(batches):
        x = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(x, Tensor):
            raise InputError(
                f"batch {number} must be a tensor, or begin with one as (x, label) does; got {type(x).__name__}"
            )
        if x.ndim == 0 or len(x) == 0:
            raise InputError(f"batch {number} must have shape (samples, ...) with a sample; got {list(x.shape)}")
        yield from torch.split(x, most or len(x)) if x.layout == torch.strided else [x]
    if number < 0:
        raise InputError("there is nothing to record: no batch came")


@dataclass(frozen=True)
class _Run:
    """A model with its arguments, of which the first ones are explained, unless layers are."""

    model: nn.Module
    modules: Mapping[nn.Module, str]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Callable[[Any], Tensor] | None
    explained: int
    surroundings: Surroundings

    def plain(self) -> Any:
        """The explained output, as the model gives it by itself."""
        args, kwargs = copied((self.args, self.kwargs))
        with torch.no_grad(), kept(self.modules, Belongings(self.modules), self.surroundings):
            raw = self.model(*args, **kwargs)
            return raw if self.output is None else self.output(raw)

    def recorded(self, recorder: Recorder) -> Layer:
        """The explained output, of a run under a recorder."""
        choices, (args, kwargs) = recorder.choices, copied((self.args, self.kwargs))
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            kept(self.modules, recorder.own, self.surroundings),
            recorder.recording(),
        ):
            if not choices.inputs:
                names = ["x"] if self.explained == 1 else [f"x{i}" for i in range(self.explained)]
                signals = [recorder.enter(name, value) for name, value in zip(names, args, strict=False)]
                args = (*signals, *args[self.explained :])
            elif choices.inputs == EMBEDDINGS and "embeddings" not in self.modules.values():
                recorder.explain_lookups_of(args[: self.explained])
            raw = self.model(*args, **kwargs)
            result = raw if self.output is None else self.output(raw)
            _refuse_missing(choices.inputs if not recorder.inputs or len(choices.inputs) > 1 else None, recorder.inputs)
            _refuse_missing(choices.layers, recorder.layers)
            signal = recorder.signal(result) if isinstance(result, Tensor) else None
        return _top(result, signal, recorder.inputs)


def _refuse_if_the_model_runs(run: _Run, error: Exception) -> None:
    """Say in words what torch cannot do while a model is recorded; a model's own error stays as it is.

    Raises:
        UnsupportedOperation: the model runs on these arguments, so that recording is to blame.
    """
    try:
        run.plain()
    except Exception:  # the model's own error
        return
    path, where = origin(error, run.modules)
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    raise refusal(
        place("an operation", path, where), f"torch cannot run it where derivatives are taken ({said})"
    ) from error


def _refuse_arguments(model: Any, output: Any, layers: Any, carry: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the model must be an nn.Module, of which the modules can be seen; got {type(model).__name__}"
        )
    if output is not None and not callable(output):
        raise UsageError(
            f"output must be a function of what the model returns, such as lambda o: o.logits; got {output!r}"
        )
    if isinstance(layers, str):
        raise UnknownLayerError(f"layers takes a list of names, such as [{layers!r}]; got the text {layers!r}")
    if carry not in (None, "first", "second", "half"):
        raise UsageError(f"carry must be 'first', 'second', 'half' or None; got {carry!r}")


def _tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """The largest relative error that is round-off in any of the number formats.

    Raises:
        UnsupportedOperation: one of them is too coarse to verify anything.
    """
    for dtype in dtypes:
        if dtype not in TOLERANCE:
            raise UnsupportedOperation(
                f"the model computes in {dtype}, in which nothing can be verified: expected float64, float32, float16 "
                "or bfloat16, so convert it to one of these"
            )
    return max(TOLERANCE[dtype] for dtype in dtypes)


def _refuse_input(inputs: tuple[Any, ...], named: bool) -> None:
    if not inputs:
        raise InputError("x is an empty tuple: give at least one tensor to explain")
    for value in inputs:
        if not isinstance(value, Tensor):
            raise InputError(f"x must be a tensor or a tuple of tensors; got {type(value).__name__}")
        if value.layout != torch.strided:
            raise InputError(f"x must be a dense tensor; got {value.layout}: give x.to_dense()")
        if not value.is_floating_point() and not named:
            raise InputError(
                f"x must be floating point to have a linear model; got {value.dtype}. Of tokens the embeddings can be "
                "explained: freeze(..., inputs='embeddings'), or the name of any other layer"
            )
        if value.ndim < 2 - named or value.numel() == 0 or len(value) != len(inputs[0]):
            raise InputError(f"x must have shape (samples, ...) with at least one sample; got {list(value.shape)}")
        if not torch.isfinite(value).all():
            raise InputError("x holds NaN or infinite values: the linear model exists at finite inputs only")


def _names(which: Names, modules: Mapping[nn.Module, str]) -> frozenset[str]:
    """The names of layers that are given by name, by module, or by module and number of the call."""
    if not isinstance(which, nn.Module | Iterable):
        raise UnknownLayerError(f"layers are given as a list of names or modules; got {which!r}")
    names = []
    for one in [which] if isinstance(which, nn.Module) else which:
        module, call = one if isinstance(one, tuple) and len(one) == 2 else (one, 1)
        if not isinstance(module, str | nn.Module) or not isinstance(call, int):
            raise UnknownLayerError(
                f"a layer is a name, a module, or a module with the number of its call; got {one!r}"
            )
        if isinstance(module, nn.Module) and module not in modules:
            raise UnknownLayerError(f"the module {type(module).__name__} given as a layer is not part of the model")
        name = modules[module] if isinstance(module, nn.Module) else module
        names.append(numbered(name, call))
    return frozenset(names)


def _refuse_missing(wanted: frozenset[str] | None, layers: Sequence[Layer]) -> None:
    missing = sorted((wanted or frozenset()) - {layer.name for layer in layers})
    if missing:
        raise UnknownLayerError(
            f"no module or operation named {missing[0]!r} ran in the forward pass; "
            "a name is a module path such as 'layer4.1.relu', '#2' for its second call, 'path:relu' for a function"
        )


def _top(result: Any, signal: Tensor | None, inputs: Sequence[Layer]) -> Layer:
    samples = len(inputs[0].output)
    for layer in inputs:
        if len(layer.output) != samples:
            raise InputError(f"the inputs have {samples} and {len(layer.output)} samples (their first axis)")
    if not isinstance(result, Tensor):
        raise ModelError(
            f"the model returns {type(result).__name__}, not a tensor: pick one with output=, "
            "such as freeze(model, x, output=lambda out: out.logits)"
        )
    if result.is_complex():
        raise ModelError("the model's output is complex: pick real numbers with output=, such as output=torch.abs")
    if result.ndim < 2 or len(result) != samples:
        raise ModelError(f"the output must have shape (samples, ..., classes); got {list(result.shape)}")
    if not torch.isfinite(result).all():
        raise ModelError("the model's output holds NaN or infinite values")
    if signal is None:
        raise ModelError(
            f"the output does not depend on {', '.join(layer.name for layer in inputs)}: was it detached, or computed "
            "under torch.no_grad()?"
        )
    return Layer("output", signal.detach(), get_gradient_edge(signal))
