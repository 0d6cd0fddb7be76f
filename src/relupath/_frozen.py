"""The network as the affine map it is at one input: run once, frozen, then asked for vector-Jacobian products."""

from __future__ import annotations

import difflib
import itertools
import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ._calls import storage_of
from ._complete import Completeness
from ._graph import below, levels, pulled
from ._html import block, said, shape, table
from ._partitions import Partition, neurons, refuse_no_partitions
from ._places import Operation
from ._probe import Probe
from ._record import Recorder
from ._saved import Savings
from ._sources import Source, reduced, refuse_changed, sum_and_size, tallied
from ._targets import Functional, TargetLike, resolve
from ._tested import imbalance
from ._units import Layer
from .errors import (
    IncompleteError,
    ModelError,
    PathError,
    UnknownLayerError,
)

LayerLike = Layer | str | int | nn.Module | tuple[nn.Module, int]
"""A layer, its name, its position, its module, or a module that runs several times with the number of the call."""


AT_ONCE = 2**28
"""How many bytes of one layer's products run at once."""


@dataclass(frozen=True, eq=False)
class Frozen:
    """A network at one input (or batch), with every gate frozen: an affine map, recorded once.

    Attributes:
        output: the model's output, (B, ..., C).
        layers: the hidden layers in order of execution.
        inputs: the explained inputs as layers, ``x``, or ``x0``, ``x1``, ... where there are several.
        operations: every operation that a signal went through, and how it is straight at the input.
        sources: every constant that is added to a signal.
        released: the layers that were released, with the bytes of their values.
    """

    output: Float[Tensor, "B ..."]
    layers: tuple[Layer, ...]
    inputs: tuple[Layer, ...]
    operations: tuple[Operation, ...] = field(repr=False)
    sources: tuple[Source, ...] = field(repr=False)
    top: Layer = field(repr=False)
    modules: Mapping[nn.Module, str] = field(repr=False)
    tolerance: float = field(repr=False)
    writes_to_views: bool = field(repr=False)
    probe: Probe = field(repr=False)
    savings: Savings = field(repr=False)
    released: Mapping[str, int] = field(repr=False, default_factory=dict)
    lock: threading.RLock = field(repr=False, default_factory=threading.RLock)

    @property
    def batch(self) -> int:
        """The number of samples B."""
        return len(self.output)

    def _repr_html_(self) -> str:
        layers = [(layer.name, shape(layer.shape), math.prod(layer.shape)) for layer in self.layers]
        kinds = Counter(operation.kind for operation in self.operations)
        inputs = ", ".join(f"{layer.name} of {shape(layer.shape)}" for layer in self.inputs)
        return block(
            f"A network frozen at {self.batch} input{'s' * (self.batch > 1)}: f(x) = W x + b",
            said(f"input {inputs}; output {shape(self.output.shape[1:])}"),
            table(("layer for paths", "shape", "neurons"), layers, most=60),
            said("operations: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))),
        )

    def __reduce_ex__(self, _protocol: object) -> str:
        raise TypeError("a frozen network is a recorded pass and cannot be copied or pickled: freeze the model again")

    def functional(self, target: TargetLike = None) -> Functional:
        """The target's value and derivative at this output; None means each sample's predicted class."""
        return resolve(target, self.output)

    def layer(self, which: LayerLike) -> Layer:
        """A hidden layer by name, position, module, or (module, number of the call from 1).

        Raises:
            UnknownLayerError: there is none, or it was released.
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
        gone = which.name if isinstance(which, Layer) else name
        if gone in self.released:
            raise UnknownLayerError(f"layer {gone!r} was released: use the recording from before, or freeze again")
        names = [layer.name for layer in self.layers]
        close = ", ".join(map(repr, difflib.get_close_matches(str(name), names, n=3) or names[:3]))
        asked = type(module).__name__ if name is None else name
        raise UnknownLayerError(
            f"no hidden layer {asked!r} is recorded. Recorded: {len(names)}{', such as ' * bool(close)}{close}. "
            "Other modules' outputs are recorded when freeze(..., layers=[...]) names them"
        )

    def order(self, layer: Layer) -> int:
        """A layer's position in the order of execution; the output comes last."""
        return len(self.layers) if layer is self.top else self.layers.index(layer)

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

    def layers_of_paths(self, layers: Sequence[LayerLike] | None) -> list[Layer]:
        """The layers to choose units on; None means every recorded one whose first axis is the batch.

        Raises:
            PathError: there is none, one is named twice, or one has another first axis.
            UnknownLayerError: a layer is not recorded.
        """
        if layers is not None:
            _refuse_no_list(layers)
        batched = [layer for layer in self.layers if len(layer.output) == self.batch]
        chosen = batched if layers is None else [self.layer_of_path(which) for which in layers]
        if not chosen:
            raise PathError(
                "there is no hidden layer to search: the model has no activation function, layers is empty, or "
                "all were released; name module outputs with freeze(..., layers=[...])"
            )
        if len(set(chosen)) < len(chosen):
            raise PathError("a layer is named twice")
        return chosen

    def partitions(
        self, layers: Sequence[Layer], partition: Partition | Mapping[LayerLike, Partition]
    ) -> dict[Layer, Partition]:
        """The partition of each layer: one for all, or those of the layers named and neurons for the others.

        Raises:
            PathError: a partition does not fit its layer.
            UnknownLayerError: a named layer is not recorded.
        """
        if isinstance(partition, Mapping):
            chosen = dict.fromkeys(layers, neurons) | {self.layer(which): one for which, one in partition.items()}
        else:
            chosen = dict.fromkeys(layers, partition)
        refuse_no_partitions(chosen, layers)
        for layer in layers:
            chosen[layer].count(layer.shape)
        return chosen

    def release(self, layers: Sequence[LayerLike]) -> Frozen:
        """The same network at the same input without these layers for paths; it takes less memory.

        The values of a released layer are no longer kept where no operation needs them; of a ReLU one byte a neuron
        stays, whether it is open. Products, linear models and checks stay the same. For paths the values stay with this
        recording: they are freed with the last reference to it.

        Raises:
            UnknownLayerError: there is no such layer.
            PathError: layers is no list.
            ModelError: a constant was changed since.
        """
        _refuse_no_list(layers)
        gone = {self.layer(which) for which in layers}
        kept = tuple(layer for layer in self.layers if layer not in gone)
        refuse_changed(self.sources)
        before = list(itertools.accumulate((layer in kept for layer in self.layers), initial=0))
        with self.lock:
            self.savings.release({storage_of(layer.output) for layer in (*kept, *self.inputs, self.top)})
        choices = self.probe.choices._replace(layers=frozenset(layer.name for layer in kept))
        return replace(
            self,
            layers=kept,
            sources=tuple(replace(source, layers=before[source.layers]) for source in self.sources),
            probe=replace(self.probe, choices=choices),
            released={**self.released, **{layer.name: layer.output.nbytes for layer in gone}},
        )

    def vjp(
        self, cotangents: Mapping[Layer, Float[Tensor, "B ..."]], to: Sequence[Layer]
    ) -> list[Float[Tensor, "B ..."]]:
        """Vector-Jacobian products in the frozen network: sum of (d layer / d to)^T cotangent over the layers.

        Args:
            cotangents: layers (``frozen.top`` is the output) with a cotangent of each one's shape. A sparse one is made
                dense only where it starts, so that it is not held while the product goes on below.
            to: layers (or ``frozen.inputs``) below.

        Returns:
            One product for each layer of ``to``; zeros where nothing leads there.
        """
        if not cotangents or not to:
            return [torch.zeros_like(layer.output) for layer in to]
        return self._pull(cotangents, to, batched=False)

    def vjps(
        self, cotangents: Mapping[Layer, Float[Tensor, "K B ..."]], to: Sequence[Layer]
    ) -> list[Float[Tensor, "K B ..."]]:
        """K vector-Jacobian products at once; see ``vjp``. All layers have K cotangents.

        Returns:
            K products for each layer of ``to``; they may share memory with the cotangents.
        """
        count = len(next(iter(cotangents.values())))
        first = min((self.layers.index(layer) for layer in to if layer in self.layers), default=0)
        last = max(self.order(layer) for layer in cotangents)
        met = [*cotangents, *to, *self.layers[first:last]]
        largest = max([*(layer.output.nbytes for layer in met), *self.released.values()])
        chunk = min(count, max(1, AT_ONCE // largest))
        parts = []
        for start in range(0, count, chunk):
            some = {layer: v[start : start + chunk] for layer, v in cotangents.items()}
            if min(chunk, count - start) == 1:
                parts.append([v[None] for v in self.vjp({layer: v[0] for layer, v in some.items()}, to)])
            else:
                parts.append(self._pull(some, to, batched=True))
        return [torch.cat(column) if len(column) > 1 else column[0] for column in zip(*parts, strict=True)]

    def below(self, layers: Sequence[Layer]) -> dict[Layer, frozenset[Layer]]:
        """For the output and each of the layers, those of the layers on which it depends."""
        return below([*sorted(layers, key=self.layers.index), self.top])

    def levels(self, layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], ...]:
        """Layers from the top down, those that do not depend on each other (branches of a concatenation) together.

        A layer's level is the length of the longest way from it up to the output, counted in layers.
        """
        return levels([*sorted(layers, key=self.layers.index), self.top])

    def check(self, target: TargetLike = None) -> Completeness:
        """Verify f(x) = <W, x> + b, with b summed over every constant of the network: b = sum <df/ds, s>.

        The model runs three times more, to see that it gives this output by itself, and that the constants stay what
        they are when the input moves a little.

        Source: section 3 of the paper (the locally linear model); the second route counts what each constant adds.

        Raises:
            IncompleteError: the routes differ beyond round-off, samples of the batch influence each other, a constant
                moves with the input, or the model gives another output by itself.
        """
        functional = self.functional(target)
        rows = [self._account(functional, sample) for sample in range(self.batch)]
        self.probe.again(self.output, self.inputs[0].output.dtype, self.tolerance)
        weight_part, from_sources, size = (torch.stack(column) for column in zip(*rows, strict=True))
        bias = functional.value - weight_part
        size = torch.maximum(size, (functional.gradient * self.output).flatten(1).abs().sum(1))
        error = imbalance([functional.value, -weight_part, -from_sources], [size])
        if not (error <= self.tolerance).all():
            worst = int(error.nan_to_num(torch.inf).argmax())
            raise self._incomplete(
                f"{functional.labels[worst]} of sample {worst}, output - <W, x> is {float(bias[worst]):.6g} but the "
                f"constants add up to {float(from_sources[worst]):.6g}",
                float(error[worst]),
            )
        return Completeness(functional.value, weight_part, bias, from_sources, error, self.tolerance)

    def rerun(self, recorder: Recorder) -> Layer:
        """Run the model under another recorder, once it is clear that it is the recorded one; gives the output.

        Raises:
            ModelError: the model was changed since.
        """
        self.probe.unchanged(self.output, self.tolerance)
        return self.probe.rerun(recorder)

    def to_inputs(self, cotangents: Mapping[Layer, Float[Tensor, "B ..."]]) -> list[Float[Tensor, "B ..."]]:
        """Vector-Jacobian products down to the inputs, verified; see ``accounted``."""
        return self.accounted(cotangents)[0]

    def accounted(
        self, cotangents: Mapping[Layer, Float[Tensor, "B ..."]]
    ) -> tuple[list[Float[Tensor, "B ..."]], dict[Source, Tensor]]:
        """Vector-Jacobian products down to the inputs, and what each constant s below adds, summed over the samples.

        They are verified: ``sum <v, a> = <W, x> + sum <dv/ds, s>``.

        Raises:
            IncompleteError: the cotangents' layers are not what the weights and the constants below say.
        """
        cotangents = {layer: v.to_dense() for layer, v in cotangents.items()}
        with self.lock, reduced(self.sources, sum_and_size) as tally:
            products = self.vjp(cotangents, self.inputs)
        above = [v * layer.output for layer, v in cotangents.items()]
        below = [w * layer.output for w, layer in zip(products, self.inputs, strict=True)]
        sums = {source: term for source, (term, _) in tally.items()}
        terms = [*(-v.sum() for v in above), *(term.sum() for term in below), *sums.values()]
        sizes = [*(term.abs().sum() for term in [*above, *below]), *(size for _, size in tally.values())]
        error = float(imbalance(terms, sizes)) if terms else 0.0
        if not error <= self.tolerance:
            raise self._incomplete("the layers' outputs, they differ from weights and constants below", error)
        return products, sums

    def bias_terms(self, target: TargetLike = None) -> dict[Source, Tensor]:
        """What each constant s adds to the target, ``<df/ds, s>``, summed over the samples: together the bias b.

        Source: ``b = sum <df/ds, s>``, section 3 of the paper counted constant by constant.
        """
        with self.lock, tallied(self.sources) as tally:
            self.vjp({self.top: self.functional(target).gradient}, self.inputs)
        return {source: tally.get(source, self.output.new_zeros(())) for source in self.sources}

    def slopes(self, layer: LayerLike) -> Float[Tensor, "B ..."] | None:
        """The frozen slopes of an activation's neurons: 0 or 1 for ReLU, ``f(h) / h`` for gates; None for other layers.

        Raises:
            UnknownLayerError: there is no such layer.
        """
        layer = self.layer(layer)
        node, position = layer.edge.node.next_functions[0] if layer.activation else (None, 0)
        if node is None:
            return None
        with self.lock, torch.enable_grad():
            ones, below = torch.ones_like(layer.output), GradientEdge(node, position)
            (slope,) = torch.autograd.grad([layer.edge], [below], [ones], retain_graph=True, allow_unused=True)
        return slope if slope is not None and slope.shape == layer.output.shape else None

    def _pull(self, cotangents: Mapping[Layer, Tensor], to: Sequence[Layer], batched: bool) -> list[Tensor]:
        # Where the forward wrote to views, autograd fails on products that stop half way (CopySlices).
        down = [*to, *self.inputs] if self.writes_to_views else to
        with self.lock:
            grads = pulled(cotangents, [layer.edge for layer in down], batched)
        count = next(iter(cotangents.values())).shape[:batched]
        return [
            layer.output.new_zeros(*count, *layer.output.shape) if g is None else g
            for layer, g in zip(to, grads, strict=False)
        ]

    def _account(self, functional: Functional, sample: int) -> tuple[Tensor, Tensor, Tensor]:
        """<W, x>, the bias summed over sources, and the size of the largest term before it cancelled, of one sample."""
        cotangent = torch.zeros_like(functional.gradient)
        cotangent[sample] = functional.gradient[sample]
        batched = [*self.inputs, *(layer for layer in self.layers if len(layer.output) == self.batch > 1)]
        with self.lock, reduced(self.sources, sum_and_size) as tally:
            products = self.vjp({self.top: cotangent}, batched)
        for layer, product in zip(batched, products, strict=True):
            if bool(product[:sample].any() or product[sample + 1 :].any()):
                raise IncompleteError(
                    f"at {layer.name!r} the samples of a batch influence each other, or the first axis is not the "
                    "batch: freeze one input at a time"
                )
        zero = functional.value.new_zeros(())
        terms = [product * layer.output for layer, product in zip(self.inputs, products, strict=False)]
        largest = torch.stack([*(t.abs().sum() for t in terms), *(size for _, size in tally.values()), zero]).amax()
        return sum((t.sum() for t in terms), zero), sum((term for term, _ in tally.values()), zero), largest

    def _incomplete(self, what: str, error: float) -> IncompleteError:
        """The error that completeness does not hold, with the operation that breaks it."""
        tests = ", ".join(f"{op.name} in {op.module!r}" for op in self.operations if op.kind == "tested")
        culprit = f"Operations outside the table: {tests or 'none'}"
        try:
            self.probe.steps()
        except IncompleteError as found:
            culprit = str(found)
        except ModelError as found:
            culprit += f" ({found})"
        return IncompleteError(
            f"the model was not understood: for {what} (relative error {error:.1e}, tolerance {self.tolerance:.0e}). "
            f"{culprit}"
        )


def _refuse_no_list(layers: object) -> None:
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise PathError(f"layers takes a list of layers, such as ['layer1']; got {layers!r}")
