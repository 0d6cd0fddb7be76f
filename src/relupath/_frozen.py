"""The network as the affine map it is at one input: run once, frozen, then asked for vector-Jacobian products."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ._gates import TOLERANCE
from ._model import kept, refuse_unusable
from ._places import module_paths
from ._record import Operation, Recorder, Source
from ._targets import Functional, TargetLike, resolve
from ._units import Layer
from .errors import (
    IncompleteError,
    InputError,
    ModelError,
    PathError,
    UnknownLayerError,
)

LayerLike = Layer | str | int | nn.Module | tuple[nn.Module, int]
"""A layer, its name, its position, its module, or a module that runs several times with the number of the call."""


@dataclass(frozen=True, eq=False)
class Completeness:
    """The output of the target by two independent routes, one number a sample.

    Attributes:
        value: the target's value f(x), (B,).
        weight_part: <W, x>, (B,).
        bias: f(x) - <W, x>, (B,).
        bias_from_sources: the sum over all constants s of <df/ds, s>, (B,).
        error: |bias - bias_from_sources| relative to the largest term, (B,).
        tolerance: the largest error that is round-off in this dtype.
    """

    value: Float[Tensor, " B"]
    weight_part: Float[Tensor, " B"]
    bias: Float[Tensor, " B"]
    bias_from_sources: Float[Tensor, " B"]
    error: Float[Tensor, " B"]
    tolerance: float


@dataclass(frozen=True, eq=False)
class Frozen:
    """A network at one input (or batch), with every gate frozen: an affine map, recorded once.

    Attributes:
        output: the model's output, (B, ..., C).
        layers: the hidden layers in order of execution.
        inputs: the explained inputs as layers, ``x``, or ``x0``, ``x1``, ... where there are several.
        operations: every operation that a signal went through, and how it is straight at the input.
        sources: every constant that is added to a signal.
    """

    output: Float[Tensor, "B ..."]
    layers: tuple[Layer, ...]
    inputs: tuple[Layer, ...]
    operations: tuple[Operation, ...] = field(repr=False)
    sources: tuple[Source, ...] = field(repr=False)
    top: Layer = field(repr=False)
    modules: Mapping[nn.Module, str] = field(repr=False)

    @property
    def batch(self) -> int:
        """The number of samples B."""
        return len(self.output)

    def functional(self, target: TargetLike = None) -> Functional:
        """The target's value and derivative at this output; None means each sample's predicted class."""
        return resolve(target, self.output)

    def layer(self, which: LayerLike) -> Layer:
        """A hidden layer by name, position, module, or (module, number of the call from 1).

        Raises:
            UnknownLayerError: there is none.
        """
        if isinstance(which, Layer) and which in self.layers:
            return which
        if isinstance(which, int) and -len(self.layers) <= which < len(self.layers):
            return self.layers[which]
        module, call = which if isinstance(which, tuple) else (which, 1)
        name: object = module
        if isinstance(module, nn.Module):
            path = self.modules.get(module)
            name = path if call == 1 or path is None else f"{path}#{call}"
        for layer in self.layers:
            if layer.name == name:
                return layer
        names = [layer.name for layer in self.layers]
        close = difflib.get_close_matches(str(name), names, n=3) or names[:3]
        asked = type(module).__name__ if name is None else name
        raise UnknownLayerError(
            f"no hidden layer {asked!r} is recorded; {len(names)} are ({', '.join(map(repr, close)) or 'none'}). "
            "Other modules' outputs are recorded when freeze(..., layers=[...]) names them"
        )

    def layer_of_path(self, which: LayerLike) -> Layer:
        """A hidden layer on which a path can stand: its first axis is the batch.

        Raises:
            UnknownLayerError: there is no such layer.
            PathError: its first axis is not the batch.
        """
        layer = self.layer(which)
        if len(layer.output) != self.batch:
            raise PathError(
                f"the first axis of layer {layer.name!r} (shape {list(layer.output.shape)}) is not the batch of "
                f"{self.batch}: leave the layer out, or freeze one input at a time"
            )
        return layer

    def vjp(
        self, cotangents: Mapping[Layer, Float[Tensor, "B ..."]], to: Sequence[Layer]
    ) -> list[Float[Tensor, "B ..."]]:
        """Vector-Jacobian products in the frozen network: sum of (d layer / d to)^T cotangent over the layers.

        Args:
            cotangents: layers (``frozen.top`` is the output) with a cotangent of each one's shape.
            to: layers (or ``frozen.inputs``) below.

        Returns:
            One product for each layer of ``to``; zeros where nothing leads there.
        """
        if not cotangents or not to:
            return [torch.zeros_like(layer.output) for layer in to]
        with torch.inference_mode(False), torch.enable_grad():
            grads = torch.autograd.grad(
                [layer.edge for layer in cotangents],
                [layer.edge for layer in to],
                [cotangent.contiguous() for cotangent in cotangents.values()],
                retain_graph=True,
                allow_unused=True,
            )
        return [torch.zeros_like(l.output) if g is None else g for l, g in zip(to, grads, strict=True)]

    def below(self, layers: Sequence[Layer]) -> dict[Layer, frozenset[Layer]]:
        """For the output and each of the layers, those of the layers on which it depends."""
        layers = sorted(layers, key=self.layers.index)
        places: dict[tuple[Any, int], list[Layer]] = {}
        for layer in layers:
            places.setdefault(_key(layer.edge), []).append(layer)
        found: dict[Layer, frozenset[Layer]] = {}
        for layer in [*layers, self.top]:
            twins = places.get(_key(layer.edge), [])
            direct = twins[: twins.index(layer)] if layer in twins else twins
            if not direct:
                direct = _nearest(layer.edge, places)
            found[layer] = frozenset(direct).union(*(found[lower] for lower in direct))
        return found

    def levels(self, layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], ...]:
        """Layers from the top down, those that do not depend on each other (branches of a concatenation) together.

        A layer's level is the length of the longest way from it up to the output, counted in layers.
        """
        layers = sorted(layers, key=self.layers.index)
        below, height = self.below(layers), dict.fromkeys(layers, 0)
        for layer in reversed(layers):
            for lower in below[layer]:
                height[lower] = max(height[lower], height[layer] + 1)
        count = max(height.values(), default=-1) + 1
        return tuple(tuple(layer for layer in layers if height[layer] == h) for h in range(count))

    def check(self, target: TargetLike = None) -> Completeness:
        """Verify f(x) = <W, x> + b, with b summed over every constant of the network: b = sum <df/ds, s>.

        Source: section 3 of the paper (the locally linear model); the second route counts what each constant adds.

        Raises:
            IncompleteError: the routes differ beyond round-off, or samples of the batch influence each other.
        """
        functional = self.functional(target)
        rows = [self._account(functional, sample) for sample in range(self.batch)]
        weight_part, from_sources, size = (torch.stack(column) for column in zip(*rows, strict=True))
        bias = functional.value - weight_part
        scale = torch.stack([functional.value.abs(), weight_part.abs(), bias.abs(), size]).amax(0)
        error = torch.where(scale > 0, (bias - from_sources).abs() / scale, torch.zeros_like(scale))
        tolerance = TOLERANCE[self.output.dtype]
        if not (error <= tolerance).all():
            worst = int(error.nan_to_num(torch.inf).argmax())
            tests = ", ".join(f"{op.name} in {op.module!r}" for op in self.operations if op.kind == "tested")
            raise IncompleteError(
                f"the model was not understood: for {functional.labels[worst]} of sample {worst}, output - <W, x> is "
                f"{float(bias[worst]):.6g} but the constants add up to {float(from_sources[worst]):.6g} "
                f"(relative error {float(error[worst]):.1e}, tolerance {tolerance:.0e}). "
                f"Operations outside the table: {tests or 'none'}"
            )
        return Completeness(functional.value, weight_part, bias, from_sources, error, tolerance)

    def _account(self, functional: Functional, sample: int) -> tuple[Tensor, Tensor, Tensor]:
        """<W, x>, the bias summed over sources, and the largest term, of one sample."""
        cotangent = torch.zeros_like(functional.gradient)
        cotangent[sample] = functional.gradient[sample]
        batched = [*self.inputs, *(layer for layer in self.layers if len(layer.output) == self.batch > 1)]
        edges = [layer.edge for layer in batched] + [source.edge for source in self.sources]
        with torch.inference_mode(False), torch.enable_grad():
            grads = torch.autograd.grad([self.top.edge], edges, [cotangent], retain_graph=True, allow_unused=True)
        for layer, grad in zip(batched, grads, strict=False):
            if grad is not None and bool(grad[:sample].any() or grad[sample + 1 :].any()):
                raise IncompleteError(
                    f"at {layer.name!r} the samples of a batch influence each other, or the first axis is not the "
                    "batch: freeze one input at a time"
                )
        zero = functional.value.new_zeros(())
        inputs = zip(self.inputs, grads, strict=False)
        sources = zip(self.sources, grads[len(batched) :], strict=True)
        terms = [(grad * layer.output).sum() for layer, grad in inputs if grad is not None]
        biases = [(grad * source.constant).sum() for source, grad in sources if grad is not None]
        largest = torch.stack([t.abs() for t in [*terms, *biases, zero]]).amax()
        return sum(terms, zero), sum(biases, zero), largest


def freeze(
    model: nn.Module,
    x: Tensor | tuple[Tensor, ...],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    output: Callable[[Any], Tensor] | None = None,
    layers: Iterable[str | nn.Module | tuple[nn.Module, int]] | None = None,
    carry: Literal["first", "second", "half"] | None = None,
) -> Frozen:
    """Record the affine map that the model is at x: f(x) = W x + b.

    Args:
        model: any module in eval mode; it is left as it was, parameters, buffers, flags and hooks.
        x: the explained input, (B, ...), or a tuple of several, passed as the model's first arguments.
        args: further positional arguments, held constant.
        kwargs: further keyword arguments, held constant.
        output: picks the explained tensor (B, ..., C) from what the model returns; needed if that is no tensor.
        layers: the hidden layers to record, by name or module; None records every activation function's output.
        carry: of a product of two signals with no gate among them, the factor that carries on while the other is
            frozen: ``first``, ``second``, or ``half`` (each with half the derivative). None refuses such products.

    Returns:
        The frozen network, on which linear models, paths and searches work.

    Raises:
        InputError: x is not floating point, is empty or not finite.
        ModelError: the output is not a finite tensor with one entry a sample, or does not depend on x.
        TrainingModeError: a module is in training mode.
        UnsupportedOperation: an operation is not affine at x, and no gate of the table makes it so.
        UnknownLayerError: a named layer does not run.
    """
    modules = module_paths(model)
    refuse_unusable(modules)
    inputs = x if isinstance(x, tuple) else (x,)
    _refuse_input(inputs)
    wanted = None if layers is None else _wanted_names(layers, modules)
    recorder = Recorder(modules, wanted, carry)
    with torch.inference_mode(False), torch.enable_grad(), kept(modules, inputs):
        entries = [value.detach().clone().requires_grad_() for value in inputs]
        names = ["x"] if len(entries) == 1 else [f"x{i}" for i in range(len(entries))]
        placed = [Layer(n, e.detach(), get_gradient_edge(e)) for n, e in zip(names, entries, strict=True)]
        signals = [entry.clone() for entry in entries]
        with recorder.recording(*signals):
            raw = model(*signals, *args, **(kwargs or {}))
            result = raw if output is None else output(raw)
            signal = recorder.signal(result) if isinstance(result, Tensor) else None
    top = _top(result, signal, len(inputs[0]))
    _refuse_missing(wanted, recorder.layers)
    return Frozen(
        output=top.output,
        layers=tuple(recorder.layers),
        inputs=tuple(placed),
        operations=tuple(recorder.operations),
        sources=tuple(recorder.sources),
        top=top,
        modules=modules,
    )


def _refuse_input(inputs: tuple[Any, ...]) -> None:
    if not inputs:
        raise InputError("x is an empty tuple: give at least one tensor to explain")
    for value in inputs:
        if not isinstance(value, Tensor):
            raise InputError(f"x must be a tensor or a tuple of tensors; got {type(value).__name__}")
        if not value.is_floating_point():
            raise InputError(f"x must be floating point to have a linear model; got {value.dtype}")
        if value.ndim < 2 or value.numel() == 0 or len(value) != len(inputs[0]):
            raise InputError(f"x must have shape (samples, ...) with at least one sample; got {list(value.shape)}")
        if not torch.isfinite(value).all():
            raise InputError("x holds NaN or infinite values: the linear model exists at finite inputs only")


def _wanted_names(
    layers: Iterable[str | nn.Module | tuple[nn.Module, int]], modules: Mapping[nn.Module, str]
) -> frozenset[str]:
    names = []
    if isinstance(layers, str):
        raise UnknownLayerError(f"layers takes a list of names, such as [{layers!r}]; got the text {layers!r}")
    for which in layers:
        module, call = which if isinstance(which, tuple) else (which, 1)
        if isinstance(module, nn.Module) and module not in modules:
            raise UnknownLayerError(f"the module {type(module).__name__} given as a layer is not part of the model")
        name = modules[module] if isinstance(module, nn.Module) else module
        names.append(name if call == 1 else f"{name}#{call}")
    return frozenset(names)


def _refuse_missing(wanted: frozenset[str] | None, layers: Sequence[Layer]) -> None:
    missing = sorted((wanted or frozenset()) - {layer.name for layer in layers})
    if missing:
        raise UnknownLayerError(
            f"no module or operation named {missing[0]!r} ran in the forward pass; "
            "a name is a module path such as 'layer4.1.relu', '#2' for its second call, 'path:relu' for a function"
        )


def _top(result: Any, signal: Tensor | None, samples: int) -> Layer:
    if not isinstance(result, Tensor):
        raise ModelError(
            f"the model returns {type(result).__name__}, not a tensor: pick one with output=, "
            "such as freeze(model, x, output=lambda out: out.logits)"
        )
    if result.ndim < 2 or len(result) != samples:
        raise ModelError(f"the output must have shape (samples, ..., classes); got {list(result.shape)}")
    if not torch.isfinite(result).all():
        raise ModelError("the model's output holds NaN or infinite values")
    if signal is None:
        raise ModelError("the output does not depend on x: was it detached, or computed under torch.no_grad()?")
    return Layer("output", signal.detach(), get_gradient_edge(signal))


def _key(edge: GradientEdge) -> tuple[Any, int]:
    return edge.node, edge.output_nr


def _nearest(edge: GradientEdge, places: Mapping[tuple[Any, int], list[Layer]]) -> list[Layer]:
    """The layers met first on the ways from a place in the graph down to the input."""
    found: list[Layer] = []
    todo, seen = list(edge.node.next_functions), set()
    while todo:
        place = todo.pop()
        if place[0] is None or place in seen:
            continue
        seen.add(place)
        if place in places:
            found += places[place]
        else:
            todo += place[0].next_functions
    return found
