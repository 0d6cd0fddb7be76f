"""Where the bias comes from: the bias of the network or of a path, constant by constant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ._frozen import Frozen
from ._html import SHOWN, block, said, table
from ._linear import PathModel, column, descend, model_from, paths_of
from ._paths import Path
from ._sources import Source, reduced
from ._targets import TargetLike
from ._tested import imbalance
from ._units import Layer
from .errors import IncompleteError, InputError, UnknownLayerError


class Sums(NamedTuple):
    """The products of a constant and its derivative, summed in three ways.

    Attributes:
        total: over everything but the samples, (B,).
        units: over the places: one number a channel or unit, (B, n).
        places: over the channels, (B, h, w); None where the constant has no place.
    """

    total: Float[Tensor, " B"]
    units: Float[Tensor, "B n"]
    places: Float[Tensor, "B h w"] | None

    def times(self, scale: Float[Tensor, " B"]) -> Sums:
        """The sums, multiplied by one number a sample."""
        total, units = (t * column(scale.to(t.dtype), t) for t in (self.total, self.units))
        return Sums(total, units, None if self.places is None else self.places * column(scale, self.places).to(total))


@dataclass(frozen=True, eq=False)
class Term:
    """What one constant s adds to the target: ``<df/ds, s>``.

    Attributes:
        name: the parameter's name, or the operation that adds the constant; ``#k`` where it is added for the kth time.
        layer: the hidden layer below which it enters, or ``output``.
        total: its term, (B,).
        units: the part of each channel or unit, (B, n).
        places: the part of each place of its feature map, (B, h, w); None where it has no place.
    """

    name: str
    layer: str
    total: Float[Tensor, " B"]
    units: Float[Tensor, "B n"] = field(repr=False)
    places: Float[Tensor, "B h w"] | None = field(repr=False)


@dataclass(frozen=True, eq=False)
class BiasSources:
    """A bias as the sum of what every constant of the network adds to it.

    Each view adds up to ``model.bias``, to round-off.

    Attributes:
        model: the linear model whose bias it is.
        terms: one for each constant, in the order of execution.
        layers: the names of the recorded layers in order, then ``output``.
        x: the explained inputs.
    """

    model: PathModel
    terms: tuple[Term, ...]
    layers: tuple[str, ...] = field(repr=False)
    x: tuple[Float[Tensor, "B ..."], ...] = field(repr=False)

    def _repr_html_(self) -> str:
        targets = self.model.labels[:SHOWN]
        parts = {name: part for name, part in self.by_layer().items() if part.any()} | {"all": self.model.bias}
        rows = [(name, *part.tolist()[:SHOWN]) for name, part in parts.items()]
        count = said(f"{len(self.terms)} constants; by_source(), by_unit(...) and by_location() tell more")
        return block("What the constants of the network add", table(("that enter below", *targets), rows, 200), count)

    def by_source(self) -> dict[str, Float[Tensor, " B"]]:
        """The term of every constant, by its name."""
        return {term.name: term.total for term in self.terms}

    def by_layer(self) -> dict[str, Float[Tensor, " B"]]:
        """The terms by the hidden layer below which the constants enter; ``output`` for those above the last one.

        Of layers side by side (the branches of a concatenation) a constant counts to the one that ran next.
        """
        zero = torch.zeros_like(self.model.bias)
        return {name: sum((t.total for t in self.terms if t.layer == name), zero) for name in self.layers}

    def by_unit(self, name: str) -> Float[Tensor, "B n"]:
        """The term of each channel of a constant, or of the constants that enter below a layer.

        The channels stand along the one axis on which the constant differs, otherwise along the axis after the batch.
        Where a layer and a constant bear one name, such as ``:relu6``, the layer is meant; see ``terms`` for the other.

        Raises:
            UnknownLayerError: there is no such layer or constant, none enters there, or they differ in channels.
        """
        found = [term for term in self.terms if term.layer == name] or [t for t in self.terms if t.name == name]
        if not found:
            raise UnknownLayerError(
                f"no constant is named {name!r} or enters below a layer of that name; there are "
                f"{', '.join(repr(term.name) for term in self.terms[:3]) or 'none'}{', ...' * (len(self.terms) > 3)}"
            )
        found = [term for term in found if term.units.any()] or found[-1:]  # a padding with zeros adds nothing
        if len({term.units.shape for term in found}) > 1:
            counts = ", ".join(f"{term.name!r} ({term.units.shape[1]})" for term in found)
            raise UnknownLayerError(f"the constants below {name!r} differ in channels: name one of {counts}")
        return torch.stack([term.units for term in found]).sum(0)

    @property
    def unplaced(self) -> Float[Tensor, " B"]:
        """What constants without a place add: those of linear layers, of tokens, and after global pooling."""
        return sum((term.total for term in self.terms if term.places is None), torch.zeros_like(self.model.bias))

    def by_location(self) -> Float[Tensor, "B H W"]:
        """The bias laid out over the input's places.

        The sum is exact, the placement a convention: place (y, x) of an (h, w) feature map is taken to be the block
        ``[y H/h, (y+1) H/h) x [x W/w, (x+1) W/w)`` of the (H, W) input, over which its term is spread evenly; pixels
        that the block cuts get their share by area. What has no place (``unplaced``) is spread over the whole picture.
        Together with ``weight_map`` it sums to the value of the linear model.

        Raises:
            InputError: the explained input is not one picture (B, C, H, W).
        """
        _, _, height, width = self._picture().shape
        spread = self.unplaced / (height * width)
        placed = spread.view(-1, 1, 1).expand(-1, height, width).clone()
        for term in self.terms:
            if term.places is not None:
                down, across = _cover(height, term.places.shape[1]), _cover(width, term.places.shape[2])
                placed += down.to(term.places) @ term.places @ across.to(term.places).T
        return placed

    def weight_map(self) -> Float[Tensor, "B H W"]:
        """``W * x`` summed over the channels: what the pixels themselves add.

        Raises:
            InputError: the explained input is not one picture (B, C, H, W).
        """
        assert isinstance(self.model.weight, Tensor)
        return (self.model.weight * self._picture()).sum(1)

    def _picture(self) -> Tensor:
        if len(self.x) != 1 or self.x[0].ndim != 4:
            shapes = ", ".join(str(list(x.shape)) for x in self.x)
            raise InputError(f"a map needs one explained input of shape (B, C, H, W); got {shapes}")
        return self.x[0]


def bias_sources(frozen: Frozen, target: TargetLike = None, path: Path | None = None) -> BiasSources:
    """The bias as a sum over every constant s of the network, ``b = sum <df/ds, s>``.

    With a path it is b^P: the constants below the path's lowest layer, through the path's masks, with v_1 the masked
    cotangent there::

        b^P = sum over s below l_1 of <(d a_1 / d s)^T v_1, s>

    Args:
        frozen: the recorded network.
        target: what is explained; None means each sample's predicted class.
        path: one path for all samples; None means the whole network.

    Raises:
        PathError: a unit is outside its layer, units overlap, or the layers are not in the network's order.
        UnknownLayerError: a layer is not recorded.
        TargetError: the target does not fit the output or is not linear.
        IncompleteError: a sample's terms do not add up to the bias of its linear model, f(x) - <W, x>.

    Source: section 3 of the paper, counted constant by constant; its figure 1 shows why the bias matters.
    """
    functional = frozen.functional(target)
    path, *_ = paths_of((path or Path(),), frozen.batch)
    ends, value, scale = descend(frozen, functional.gradient, [path] * frozen.batch)
    value = value if path else functional.value
    found, products = _collect(frozen, ends, samples=True)
    model = model_from(frozen, products, value, functional.labels)
    error = _error(frozen, ends, found, model)
    if not error <= frozen.tolerance:  # a constant is added to a tensor whose first axis is not the batch
        found = _sample_by_sample(frozen, ends)
        error = _error(frozen, ends, found, model)
    if not error <= frozen.tolerance:
        raise IncompleteError(
            f"the constants of the network do not add up to the bias (relative error {error:.1e}, tolerance "
            f"{frozen.tolerance:.0e}): frozen.check() names the operation"
        )
    layers = (*(layer.name for layer in frozen.layers), frozen.top.name)
    model = model_from(frozen, products, (value * scale).to(value.dtype), functional.labels, scale)
    found = [sums and sums.times(scale) for sums in found]
    return BiasSources(model, _terms(frozen, found, layers), layers, tuple(layer.output for layer in frozen.inputs))


def _collect(
    frozen: Frozen, ends: Mapping[Layer, Tensor], samples: bool
) -> tuple[list[Sums | None], list[Float[Tensor, "B ..."]]]:
    """The sums of every source below the ends, None where nothing leads, and the products at the inputs.

    Where a first axis is not the batch, the sums of a tally by samples are NaN.
    """

    def reduce(gradient: Tensor, constant: Tensor) -> Sums:
        return _sums(gradient, constant, frozen.batch, samples)

    with frozen.lock, reduced(frozen.sources, reduce) as tally:
        products = frozen.vjp(ends, frozen.inputs)
    return [tally.get(source) for source in frozen.sources], products


def _sample_by_sample(frozen: Frozen, ends: Mapping[Layer, Tensor]) -> list[Sums | None]:
    """The sums from one product a sample, in which all other samples' cotangents are zero."""
    rows = []
    for sample in range(frozen.batch):
        alone = {layer: torch.zeros_like(v) for layer, v in ends.items()}
        for layer, v in ends.items():
            alone[layer][sample] = v[sample]
        rows.append(_collect(frozen, alone, samples=False)[0])
    return [None if None in column else _stacked(column) for column in zip(*rows, strict=True)]


def _stacked(column: Sequence[Sums | None]) -> Sums:
    total, units, places = zip(*(sums for sums in column if sums is not None), strict=True)
    return Sums(torch.cat(total), torch.cat(units), None if None in places else torch.cat(places))


def _sums(gradient: Tensor, constant: Tensor, batch: int, samples: bool) -> Sums:
    """The products of gradient and constant, summed at once; over all samples together unless by samples."""
    constant = constant[(None,) * (gradient.ndim - constant.ndim)]
    product, batched = gradient * constant.to(gradient.dtype), len(gradient) == batch
    if samples and not batched:
        return Sums(product.new_full((batch,), torch.nan), product.new_full((batch, 1), torch.nan), None)
    product = product if samples else product.sum(0, keepdim=True)
    if product.ndim == 1:
        return Sums(product, product[:, None], None)
    axis = _channel_axis(constant)
    by_channel = product.movedim(axis, 1)
    units = by_channel.flatten(2).sum(2) if product.ndim > 2 else by_channel
    placed = batched and product.ndim == 4 and by_channel[0, 0].numel() > 1
    return Sums(units.sum(1), units, by_channel.sum(1) if placed else None)


def _channel_axis(constant: Tensor) -> int:
    """The last axis if the constant differs along that one only (linear layers of tokens), else the first one."""
    last = constant.ndim - 1
    differs = [axis for axis in range(1, last + 1) if constant.shape[axis] > 1]
    if len(differs) > 1:
        differs = [axis for axis in differs if not bool((constant == constant.narrow(axis, 0, 1)).all())]
    return last if differs == [last] else 1


def _cover(pixels: int, places: int) -> Float[Tensor, "pixels places"]:
    """How much of each of the places, cut side by side from a line of pixels, lies on each pixel; columns sum to 1."""
    edges = torch.arange(places + 1, dtype=torch.float64) * pixels / places
    starts = torch.arange(pixels, dtype=torch.float64)[:, None]
    overlap = torch.minimum(starts + 1, edges[1:]) - torch.maximum(starts, edges[:-1])
    return overlap.clamp(min=0) * places / pixels


def _error(frozen: Frozen, ends: Mapping[Layer, Tensor], found: Sequence[Sums | None], model: PathModel) -> float:
    """How far the terms are from the bias, relative to the largest number of the sample before it cancelled."""
    some = [sums for sums in found if sums is not None]
    weights = model.weight if isinstance(model.weight, tuple) else (model.weight,)
    below = [(w * layer.output).flatten(1) for w, layer in zip(weights, frozen.inputs, strict=True)]
    above = [(v * layer.output)[..., None].flatten(1) for layer, v in ends.items()]
    terms = [model.value, *(-p.sum(1) for p in below), *(-sums.total for sums in some)]
    sizes = [*(p.abs().sum(1) for p in above + below), *(sums.units.abs().sum(1) for sums in some)]
    return float(imbalance(terms, sizes).nan_to_num(torch.inf).max())


def _zero(frozen: Frozen, source: Source) -> Sums:
    """The sums of a constant that does not lead to the target."""
    shape = source.edge.node._input_metadata[source.edge.output_nr].shape
    gradient = frozen.output.new_zeros(()).expand(shape)
    units = _sums(gradient, source.constant, frozen.batch, samples=len(gradient) == frozen.batch).units
    return Sums(frozen.output.new_zeros(frozen.batch), units.expand(frozen.batch, -1), None)


def _terms(frozen: Frozen, found: Sequence[Sums | None], layers: Sequence[str]) -> tuple[Term, ...]:
    """The terms by name; a constant that does not lead to the target adds zero."""
    calls: Counter[str] = Counter()
    terms = []
    for source, sums in zip(frozen.sources, found, strict=True):
        calls[source.name] += 1
        count = calls[source.name]
        name = source.name if count == 1 else f"{source.name}#{count}"
        terms.append(Term(name, layers[source.layers], *(sums or _zero(frozen, source))))
    return tuple(terms)
