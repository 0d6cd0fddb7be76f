"""How far an explanation reaches: where along a line the first gate flips, and how many gates two inputs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ._calls import Call, leaves
from ._frozen import Frozen
from ._gates import Rule
from ._html import block, samples
from ._kinks import first_crossing
from ._places import Operation, line, numbered, place
from ._record import Recorder
from ._straight import Straight
from ._units import Unit
from .errors import InputError, UnsupportedOperation

Inputs = Float[Tensor, "B ..."] | tuple[Float[Tensor, "B ..."], ...]
STRAIGHT = ("affine", "piece", "look", "ignored")


@dataclass(frozen=True, eq=False)
class FirstFlip:
    """Where the linear models of some samples end along a direction.

    Attributes:
        t: the linear model holds from x up to x + t d, (B,); infinite where no gate ever flips, and 0 where a unit
            stands on its kink and the direction leads across.
        layer: the layer in which the first gate flips, or the pooling operation; empty where none does.
        unit: which neuron of it: the unit, or the place of the pooling operation's output; empty where none does.
    """

    t: Float[Tensor, " B"]
    layer: tuple[str, ...]
    unit: tuple[Unit, ...]

    def _repr_html_(self) -> str:
        units = ["" if unit == () else ", ".join(map(str, unit)) for unit in self.unit]
        columns = {"t": self.t.tolist(), "layer": self.layer, "unit": units}
        return block("The linear model holds from x up to x + t d", samples(columns))


@dataclass(frozen=True, eq=False)
class Piece:
    """A piecewise-linear operation of a forward pass.

    Attributes:
        call: what was called, on plain values from before it ran.
        name: the operation with the path of its module.
        below: where its signal stands in the autograd graph.
        above: where its output stands.
    """

    call: Call = field(repr=False)
    name: str
    below: GradientEdge = field(repr=False)
    above: GradientEdge = field(repr=False)


class PieceRecorder(Recorder):
    """Keeps what decides on the pieces: the signal before every piecewise-linear operation.

    Attributes:
        pieces: these operations, in order.
        unknown: an operation that decides by values in another way: its place, or nothing.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.pieces: list[Piece] = []
        self.unknown = ""
        self._times: dict[str, int] = {}

    def _frozen(self, call: Call, rule: Rule) -> Straight:
        if rule.kind != "piece":
            straight = super()._frozen(call, rule)
            found = leaves(straight.output)
            if rule.kind == "tested" and found and not any(t.requires_grad for t in found):  # a comparison or the like
                self.unknown = place(call.name, self._path, line())
            return straight
        name = f"{self._path}:{call.name}"
        self._times[name] = self._times.get(name, 0) + 1
        if len(call.signals) != 1 or not call.first.requires_grad:
            self.unknown = place(call.name, self._path, line())
            return super()._frozen(call, rule)
        before, below = call.on(lambda t: t.detach().clone()), get_gradient_edge(call.first)
        straight = super()._frozen(call, rule)
        above = get_gradient_edge(leaves(straight.output)[0])
        self.pieces.append(Piece(before, numbered(name, self._times[name]), below, above))
        return straight


class MovedRecorder(Recorder):
    """Records at an input that is moved.

    Attributes:
        steps: how far, for each explained input.
    """

    steps: Mapping[str, Tensor]

    def enter(self, name: str, value: Tensor) -> Tensor:
        """Take a value, moved, as an explained input."""
        with torch._C.DisableTorchFunction():
            return super().enter(name, value + self.steps[name])


def first_flip(frozen: Frozen, direction: Inputs) -> FirstFlip:
    """The first t > 0 at which a gate of the network flips on the way from x to x + t d, for each sample.

    All pre-activations h move at the rates ``dh/dx . d``, which come from one Jacobian-vector product, so with the kink
    of ReLU and its relatives at 0 ::

        t = min over units of -h / (dh/dx . d), of those greater than 0

    ReLU6, hardtanh and clamp have a kink at each bound; max pooling switches where another entry of a window overtakes
    the largest. The model runs again, to see the pre-activations. Among millions of units the first one to flip is
    one that all but stands on its kink, so in single precision round-off reaches into the first digits of t: freeze in
    double precision where they count.

    Args:
        frozen: the recorded network.
        direction: d, of the explained input's shape.

    Raises:
        InputError: the direction has another shape or holds NaN or infinite values, or a signal's first axis is not
            the batch of several samples.
        UnsupportedOperation: the network is not piecewise linear (smooth gates, frozen scales), or an operation decides
            by values in a way that is not known: a comparison, a sort, a maximum of two signals.
        ModelError: the model was changed since.

    Source: ``t = min -h / (dh/dx . d)``: the pieces of a ReLU network are polytopes, section 3 of the paper.
    """
    directions = _fitting(frozen, direction, "direction")
    _refuse_smooth(frozen.operations)
    recorder = PieceRecorder(frozen.probe.paths, frozen.probe.choices)
    frozen.rerun(recorder)
    if recorder.unknown:
        raise _unknown(recorder.unknown)
    t = torch.full_like(frozen.output.flatten(1)[:, 0], torch.inf)
    layer = [""] * frozen.batch
    unit: list[Unit] = [()] * frozen.batch
    names = {_key(noted.edge): noted.name for noted in recorder.layers}
    for piece, rate in zip(recorder.pieces, _rates(recorder, directions), strict=True):
        crossing = first_crossing(piece.call, rate)
        if crossing is None:
            raise _unknown(piece.name)
        if len(crossing) != frozen.batch:
            crossing = _of_one_sample(crossing, frozen.batch, piece.name)
        earliest, where = crossing[..., None].flatten(1).min(1)
        for sample in (earliest < t).nonzero().flatten().tolist():
            layer[sample] = names.get(_key(piece.above), piece.name)
            unit[sample] = _coordinates(int(where[sample]), crossing.shape[1:])
        t = torch.minimum(t, earliest)
    return FirstFlip(t, tuple(layer), tuple(unit))


def agreement(frozen: Frozen, other: Frozen) -> dict[str, Float[Tensor, " B"]]:
    """The share of each layer's gates that stand alike at two inputs of one model, for each pair of samples.

    Counted are the layers whose gates are open or shut (ReLU and its relatives): gates agree if their slopes are equal.

    Raises:
        InputError: one is no recording, the two differ in layers or shapes, or no layer has such gates.
    """
    if not isinstance(other, Frozen):
        raise InputError(f"give the recording at the other input, freeze(model, x); got {type(other).__name__}")
    here = [(layer.name, layer.output.shape) for layer in frozen.layers]
    if here != [(layer.name, layer.output.shape) for layer in other.layers]:
        raise InputError(
            "the two recordings differ in layers or shapes: freeze the same model at two inputs of one shape"
        )
    smooth = {name for op in frozen.operations if op.kind == "gate" for name in (op.module, f"{op.module}:{op.name}")}
    shares = {}
    for one, two in zip(frozen.layers, other.layers, strict=True):
        a, b = frozen.slopes(one), other.slopes(two)
        gated = not smooth & {one.name, one.name.rpartition("#")[0]}
        if gated and a is not None and b is not None and len(a) == frozen.batch:
            shares[one.name] = (a == b)[..., None].flatten(1).to(a.dtype).mean(1)
    if not shares:
        raise InputError("no recorded layer has gates that are open or shut, so none can agree")
    return shares


def agreement_along(frozen: Frozen, other: Inputs, steps: int = 10) -> dict[str, Float[Tensor, "steps B"]]:
    """The share of gates that stand as at x, on the straight line from x to another input.

    Args:
        frozen: the network, recorded at x.
        other: the input x' where the line ends, of the explained input's shape.
        steps: into how many steps the line is cut; the model runs once for each.

    Returns:
        For each layer of ``agreement`` the shares at x + (k / steps) (x' - x), k = 0 ... steps.

    Raises:
        InputError: x' has another shape, there is no step, or what ``agreement`` refuses.
        ModelError: the model was changed since.
    """
    ends = _fitting(frozen, other, "other input")
    if steps < 1:
        raise InputError(f"the line is cut into at least one step; got {steps}")
    frozen.probe.unchanged(frozen.output, frozen.tolerance)
    rows = []
    for k in range(steps + 1):
        recorder = MovedRecorder(frozen.probe.paths, frozen.probe.choices)
        pairs = zip(frozen.inputs, ends, strict=True)
        recorder.steps = {layer.name: (end - layer.output) * (k / steps) for layer, end in pairs}
        top = frozen.probe.rerun(recorder)
        there = replace(frozen, output=top.output, top=top, layers=tuple(recorder.layers))
        rows.append(agreement(frozen, there))
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _rates(recorder: PieceRecorder, directions: Sequence[Tensor]) -> list[Tensor]:
    """``dh/dx . d`` before every piece: the derivative of ``<J^T v, d>`` by the cotangents v, which is J d."""
    pieces = recorder.pieces
    if not pieces:
        return []
    with torch.inference_mode(False), torch.enable_grad():
        values = [piece.call.first for piece in pieces]
        cotangents = [torch.zeros_like(value, requires_grad=True) for value in values]
        pulled = torch.autograd.grad(
            [piece.below for piece in pieces],
            [layer.edge for layer in recorder.inputs],
            cotangents,
            create_graph=True,
            allow_unused=True,
        )
        inner = torch.stack([(g * d).sum() for g, d in zip(pulled, directions, strict=True) if g is not None]).sum()
        return list(torch.autograd.grad(inner, cotangents, materialize_grads=True))


def _fitting(frozen: Frozen, given: Inputs, what: str) -> tuple[Tensor, ...]:
    """One tensor for each explained input, of its shape."""
    tensors = given if isinstance(given, tuple) else (given,)
    if not all(isinstance(t, Tensor) for t in tensors):
        kinds = ", ".join(type(t).__name__ for t in tensors)
        raise InputError(f"the {what} must be a tensor, or a tuple of them for several explained inputs; got {kinds}")
    shapes, expected = [list(t.shape) for t in tensors], [list(layer.output.shape) for layer in frozen.inputs]
    if shapes != expected or not all(bool(torch.isfinite(t).all()) for t in tensors):
        raise InputError(f"the {what} must be finite and of the explained input's shape {expected}; got {shapes}")
    with torch.inference_mode(False):  # what was made there cannot take part in derivatives: copies can
        return tuple(t.to(layer.output, copy=True) for t, layer in zip(tensors, frozen.inputs, strict=True))


def _refuse_smooth(operations: Sequence[Operation]) -> None:
    for operation in operations:
        if operation.kind not in STRAIGHT:
            raise UnsupportedOperation(
                f"{place(operation.name, operation.module, operation.line)} is no piece of a piecewise-linear network "
                f"({operation.kind}), so its linear model changes with every step: no first flip exists"
            )


def _of_one_sample(crossing: Tensor, batch: int, where: str) -> Float[Tensor, "1 ..."]:
    """All of a tensor whose first axis is not the batch."""
    if batch > 1:
        raise InputError(f"the first axis of the signal at {where} is not the batch: freeze one input at a time")
    return crossing[None]


def _unknown(where: str) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"{where} decides by values in a way whose flips are not known: the first flip is exact for networks of affine "
        "operations, ReLU and its relatives, ReLU6, hardtanh, clamp with numbers, abs and max pooling"
    )


def _key(edge: GradientEdge) -> tuple[Any, int]:
    return edge.node, edge.output_nr


def _coordinates(index: int, shape: Sequence[int]) -> Unit:
    coordinates: list[int] = []
    for size in reversed(shape):
        index, here = divmod(index, size)
        coordinates.insert(0, here)
    return tuple(coordinates)
