"""The causal check: the output when units are zero in a real forward pass, against what a path's value predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ._calls import Call
from ._frozen import Frozen
from ._gates import Rule
from ._html import block, samples
from ._linear import linear_model, mask_of_step, paths_of
from ._marks import Mark
from ._paths import Path
from ._record import Recorder
from ._sources import tallied
from ._targets import TargetLike
from ._units import Layer
from .errors import ModelError, PathError, TargetError


@dataclass(frozen=True, eq=False)
class Ablation:
    """What the target becomes without the units of a path, one number a sample.

    Attributes:
        value: f(x), the target's value, (B,).
        ablated: the target in a real forward pass in which the units are zero; the gates above them move, (B,).
        without_path: f(x) - f^P(x): what the path's value predicts, (B,).
        with_frozen_gates: the target without every route through one of the units, the gates as they were, (B,). For a
            path of one layer it equals ``without_path``.
        output: the model's output in that forward pass, (B, ..., C).
    """

    value: Float[Tensor, " B"]
    ablated: Float[Tensor, " B"]
    without_path: Float[Tensor, " B"]
    with_frozen_gates: Float[Tensor, " B"]
    output: Float[Tensor, "B ..."] = field(repr=False)

    def _repr_html_(self) -> str:
        names = "value", "ablated", "with_frozen_gates", "without_path"
        columns = {name.replace("_", " "): getattr(self, name).tolist() for name in names}
        return block("The target without the units of a path", samples(columns))


def ablate(frozen: Frozen, path: Path, target: TargetLike = None) -> Ablation:
    """Set the units of a path to zero in a real forward pass, and compare with what the path's value predicts.

    Where ``ablated`` and ``with_frozen_gates`` agree, the units act as the frozen network says; where they do not,
    removing them moves gates. A path of several layers predicts less than the ablation takes: other paths through its
    units go as well.

    Args:
        frozen: the recorded network.
        path: the units; one path for all samples.
        target: what is watched; None means each sample's predicted class, that of the unchanged network.

    Raises:
        PathError: it is no path, has no unit, or one is outside its layer.
        UnknownLayerError: a layer is not recorded.
        TargetError: the target does not fit the output or is not linear.
        ModelError: the model was changed since, or runs other layers without these units.
    """
    (path,) = paths_of((path,), frozen.batch)
    if not path.steps:
        raise PathError("the path has no unit to set to zero")
    functional = frozen.functional(target)
    keep: dict[Layer, Tensor] = {}
    for step in path.steps:
        for name, part in step.parts.items():
            layer = frozen.layer_of_path(name)
            keep[layer] = keep.get(layer, 1) * (1 - mask_of_step(part, layer))
    recorder = _Cutting(frozen.probe.paths, frozen.probe.choices)
    recorder.keep = {frozen.layers.index(layer): mask for layer, mask in keep.items()}
    output = frozen.rerun(recorder).output
    if [layer.name for layer in recorder.layers] != [layer.name for layer in frozen.layers]:
        raise ModelError("without these units the forward pass runs other layers: their effect cannot be compared")
    return Ablation(
        functional.value,
        (functional.gradient * output).flatten(1).sum(1),
        functional.value - linear_model(frozen, target, path).value,
        _with_frozen_gates(frozen, functional.gradient, keep),
        output,
    )


def plausible(frozen: Frozen, target: TargetLike = None) -> Int[Tensor, " B"]:
    """The runner-up of each sample: the best class that the target does not add.

    Args:
        frozen: the recorded network.
        target: what is explained; None means each sample's predicted class.

    Raises:
        TargetError: the output does not hold one number a class, or the target adds every class.
    """
    output = frozen.output
    if output.ndim != 2:
        raise TargetError(f"a class can be plausible in an output (samples, classes); got shape {list(output.shape)}")
    others = output.masked_fill(frozen.functional(target).gradient > 0, -torch.inf)
    if not (others > -torch.inf).any(1).all():
        raise TargetError("no other class is left: the target adds every logit")
    return others.argmax(1)


class _Cutting(Recorder):
    """Sets neurons of recorded layers to zero; what comes after is computed anew, gates included.

    Attributes:
        keep: from a layer's position to the mask of the neurons that stay.
    """

    keep: Mapping[int, Tensor]

    def _run(self, call: Call, rule: Rule, marks: Sequence[Mark] = ()) -> Any:
        before = len(self.layers)
        return self._cut(super()._run(call, rule, marks), before, in_place=call.mutates)

    def _module_done(self, module: nn.Module, name: str, args: tuple[Any, ...], output: Any) -> Any:
        before = len(self.layers)
        return self._cut(super()._module_done(module, name, args, output), before, in_place=False)

    def _cut(self, output: Any, before: int, in_place: bool) -> Any:
        """What was just noted as a layer, without the neurons."""
        if len(self.layers) == before or before not in self.keep:
            return output
        signal = output if in_place else output.clone()
        self._admit(signal)
        self.layers.copied(output, signal)
        signal.data.mul_(self.keep[before])
        return signal


def _with_frozen_gates(frozen: Frozen, gradient: Tensor, keep: Mapping[Layer, Tensor]) -> Float[Tensor, " B"]:
    """The target's value without every route through a neuron that goes: one backward product, masked on the way."""
    values = []
    for sample in range(frozen.batch):
        rows = torch.zeros_like(gradient)
        rows[sample] = gradient[sample]
        with frozen.lock, _masked(keep), tallied(frozen.sources) as tally:
            products = frozen.vjp({frozen.top: rows}, frozen.inputs)
        terms = [(w * x.output).sum() for w, x in zip(products, frozen.inputs, strict=True)]
        values.append(torch.stack([*terms, *tally.values()]).sum())
    return torch.stack(values)


@contextmanager
def _masked(keep: Mapping[Layer, Tensor]) -> Iterator[None]:
    """While a product runs inside, nothing comes down through the neurons that go."""

    def hook(position: int, mask: Tensor) -> Callable[[tuple[Tensor | None, ...]], tuple[Tensor | None, ...]]:
        def masked(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            return tuple(g * mask if i == position and g is not None else g for i, g in enumerate(gradients))

        return masked

    handles = [layer.edge.node.register_prehook(hook(layer.edge.output_nr, mask)) for layer, mask in keep.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
