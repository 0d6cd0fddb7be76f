"""The exact linear model (weight and bias) of the network and of a path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ._frozen import Frozen
from ._html import block, said, samples, shape
from ._paths import Path, Step
from ._targets import TargetLike
from ._units import Layer, mask_of
from .errors import InputError, PathError


@dataclass(frozen=True, eq=False)
class PathModel:
    """An affine function of the input for each sample: x' -> <weight, x'> + bias.

    Attributes:
        weight: (B, *input), a tuple where the network has several explained inputs.
        bias: (B,).
        value: the function at the explained input, (B,).
        labels: the target of each sample.
    """

    weight: Float[Tensor, "B ..."] | tuple[Float[Tensor, "B ..."], ...] = field(repr=False)
    bias: Float[Tensor, " B"]
    value: Float[Tensor, " B"]
    labels: tuple[str, ...] = ()

    @property
    def weight_part(self) -> Float[Tensor, " B"]:
        """<weight, x> at the explained input: value - bias."""
        return self.value - self.bias

    def _repr_html_(self) -> str:
        weights = self.weight if isinstance(self.weight, tuple) else (self.weight,)
        numbers = {name.replace("_", " "): getattr(self, name).tolist() for name in ("value", "weight_part", "bias")}
        columns = {"target": self.labels, **numbers} if self.labels else numbers
        size = " and ".join(shape(w.shape[1:]) for w in weights)
        return block("Linear model: value = weight part + bias", samples(columns), said(f"weight of {size}"))

    def __call__(self, x: Float[Tensor, "B ..."] | tuple[Float[Tensor, "B ..."], ...]) -> Float[Tensor, " B"]:
        """Apply each sample's function to another input of the explained input's shape.

        Raises:
            InputError: the shape differs.
        """
        weights = self.weight if isinstance(self.weight, tuple) else (self.weight,)
        inputs = x if isinstance(x, tuple) else (x,)
        if [w.shape for w in weights] != [v.shape for v in inputs]:
            shapes = [list(w.shape) for w in weights], [list(v.shape) for v in inputs]
            raise InputError(f"the linear model takes inputs of shape {shapes[0]}; got {shapes[1]}")
        return inner(weights, inputs) + self.bias


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Float[Tensor, " B"]:
    """<a, b> for each sample, summed over several tensors."""
    return torch.stack([(u * v).reshape(len(u), -1).sum(1) for u, v in zip(a, b, strict=True)]).sum(0)


def linear_model(frozen: Frozen, target: TargetLike = None, path: Path | Sequence[Path] | None = None) -> PathModel:
    """The terms of the unfolded network that pass the path's units on every layer of the path.

    With a_i the output of the path's layer l_i and M_i the mask of its units::

        v_m = M_m * d<t, y>/d a_m      v_i = M_i * (d a_{i+1} / d a_i)^T v_{i+1}      W^P = (d a_1 / d x)^T v_1
        f^P(x) = <v_1, a_1>            b^P = f^P(x) - <W^P, x>

    Without a path (or with an empty one) it is the whole linear model, f(x) = W x + b. The gates are those of the
    recorded forward pass.

    Args:
        frozen: the recorded network.
        target: what is explained; None means each sample's predicted class.
        path: one path for all samples, or one a sample.

    Raises:
        PathError: a unit is outside its layer, units overlap, or the layers are not in the network's order.
        UnknownLayerError: a layer is not recorded.
        TargetError: the target does not fit the output or is not linear.
        IncompleteError: the weights and the constants of the network do not add up to the path's value.

    Source: section 3 of the paper.
    """
    functional = frozen.functional(target)
    paths = paths_of(path, frozen.batch)
    if len(paths) != frozen.batch:
        raise PathError(f"{len(paths)} paths for {frozen.batch} samples: give one path, or one a sample")
    layers = [tuple(step.layers for step in p.steps) for p in paths]
    if len(set(layers)) == 1:
        ends, value, scale = descend(frozen, functional.gradient, paths)
        value = functional.value if not paths[0] else (value * scale).to(value.dtype)
        return model_from(frozen, frozen.to_inputs(ends), value, functional.labels, scale)
    ends, value, scale = {}, torch.zeros_like(functional.value), torch.ones_like(functional.value).double()
    for some in dict.fromkeys(layers):
        rows = torch.tensor([own == some for own in layers], device=value.device)
        like = paths[layers.index(some)]
        gradient = torch.where(rows.view(-1, *[1] * (functional.gradient.ndim - 1)), functional.gradient, 0)
        part, partial, own = descend(
            frozen, gradient, [p if t == some else like for p, t in zip(paths, layers, strict=True)]
        )
        scale = scale * own
        value = value + torch.where(rows, (partial * own).to(value.dtype) if some else functional.value, 0)
        for layer, cotangent in part.items():
            ends[layer] = ends[layer] + cotangent if layer in ends else cotangent
    return model_from(frozen, frozen.to_inputs(ends), value, functional.labels, scale)


def paths_of(path: Any, samples: int) -> list[Path]:
    """One path for each sample, where one is given for all or none.

    Raises:
        PathError: what is given is no path.
    """
    several = isinstance(path, Sequence) and not isinstance(path, str)
    paths = [*path] if several else [Path() if path is None else path] * samples
    for one in paths:
        if not isinstance(one, Path):
            raise PathError(f"a path is a relupath.Path, such as Path.of([(layer, unit)]); got {one!r}")
    return paths


def model_from(
    frozen: Frozen,
    weights: Sequence[Tensor],
    value: Float[Tensor, " B"],
    labels: tuple[str, ...],
    scale: Float[Tensor, " B"] | None = None,
) -> PathModel:
    """The linear model that has the given value at x and these weights, one tensor for each explained input.

    Weights from cotangents that were divided by a scale are multiplied by it.
    """
    weights = tuple(w if scale is None else w * column(scale.to(w.dtype), w) for w in weights)
    bias = value - inner(weights, [layer.output for layer in frozen.inputs])
    return PathModel(weights if len(weights) > 1 else weights[0], bias, value, labels)


def column(numbers: Shaped[Tensor, " B"], like: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "B ..."]:
    """One number a sample, shaped to multiply a tensor."""
    return numbers.view(-1, *[1] * (like.ndim - 1))


def scale_of(sizes: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """By what to divide cotangents of these largest magnitudes: powers of two, so that nothing is rounded.

    The product of the derivatives down a deep network leaves the range of single precision, though no derivative does.
    So whatever goes down a network divides its cotangents on every level, and keeps the product of the divisors in
    double precision.
    """
    exponents = torch.frexp(sizes.double())[1].clamp(-126, 126)
    return torch.where(sizes > 0, 2.0 ** exponents.double(), 1.0)


def descend(
    frozen: Frozen, gradient: Tensor, paths: Sequence[Path]
) -> tuple[dict[Layer, Tensor], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """The masked cotangents at the lowest step of paths over the same layers, and each path's value.

    Both are divided by a scale of each sample, which is the third.
    """
    above: tuple[Layer, ...] = (frozen.top,)
    cotangents = [gradient]
    scale = torch.ones(frozen.batch, dtype=torch.float64, device=gradient.device)
    for chosen in reversed(list(zip(*(p.steps for p in paths), strict=True))):
        layers = tuple(frozen.layer_of_path(name) for name in chosen[0].layers)
        refuse_order(frozen, layers, above, paths[0])
        pulled = frozen.vjp(dict(zip(above, cotangents, strict=True)), layers)
        shared = all(step == chosen[0] for step in chosen)
        steps = [step.parts for step in (chosen[:1] if shared else chosen)]
        masks = [torch.stack([mask_of_step(step[layer.name], layer) for step in steps]) for layer in layers]
        above, cotangents = layers, [v * mask for v, mask in zip(pulled, masks, strict=True)]
        own = scale_of(torch.stack([v.abs().reshape(len(v), -1).amax(1) for v in cotangents]).amax(0))
        scale, cotangents = scale * own, [v / column(own.to(v.dtype), v) for v in cotangents]
    return dict(zip(above, cotangents, strict=True)), inner(cotangents, [layer.output for layer in above]), scale


def mask_of_step(step: Step, layer: Layer) -> Float[Tensor, "*shape"]:
    """The 0/1 mask of the neurons that a step chooses on a layer."""
    mask = mask_of(step.units, layer)
    return 1 - mask if step.but else mask


def refuse_order(frozen: Frozen, layers: Sequence[Layer], above: Sequence[Layer], path: Path) -> None:
    """Refuse layers that do not come before those above them, or that are not side by side."""
    here, there = ([frozen.order(layer) for layer in some] for some in (layers, above))
    if min(here) > min(there) or max(here) > max(there):
        raise PathError(f"the layers of a path go from the input up; the network runs them in another order: {path}")
    if len(layers) > 1 and any(frozen.below(layers)[layer] for layer in layers):
        raise PathError(f"the layers {', '.join(l.name for l in layers)} are not side by side: one depends on another")
