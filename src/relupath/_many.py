"""Many paths at one input: their linear models share the recorded pass, common beginnings and every product."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ._crops import Crops, few_channels, joined
from ._frozen import Frozen
from ._linear import PathModel, column, mask_of_step, refuse_order, scale_of
from ._memory import at_once
from ._paths import Path, Step
from ._products import Products
from ._targets import TargetLike, resolve
from ._units import Layer, number_below, refuse_unit
from .errors import PathError


def linear_models(
    frozen: Frozen,
    paths: Sequence[Path],
    target: TargetLike = None,
    *,
    samples: Sequence[int] | None = None,
    max_bytes: int | None = None,
) -> PathModel:
    """The linear models of K paths as rows of one: row k is what ``linear_model`` gives for path k.

    All share the recorded forward pass. Beginnings that paths have in common, from the output down, are computed once,
    a path through dead units costs nothing more, and the cotangents of many paths go down together: in windows of
    their receptive field where they live on few places, with those kernels alone whose channels they name. Each row's
    weight is verified by the constants below its lowest step; between steps few rows are too, each by itself, of many
    the sums, and where few channels of a layer are named, those of three of the rows with all that name the same.

    Args:
        frozen: the recorded network.
        paths: K paths, each step on one layer.
        target: what is explained, one for all paths or one a path; None means each sample's predicted class.
        samples: for each path the sample of the batch; None where there is one sample.
        max_bytes: how much memory the products may take at once; None: a part of what is free.

    Raises:
        PathError: there is no path, a step is over layers side by side, samples and paths do not fit, or as
            ``linear_model``.
        UnknownLayerError: a layer is not recorded.
        TargetError: the target does not fit the output or is not linear.
        IncompleteError: the weights and the constants of the network do not add up to the paths' values.

    Source: section 3 of the paper, for many paths at once.
    """
    _refuse(frozen, paths)
    rows = _samples(frozen, paths, samples)
    functional = resolve(target, frozen.output[rows])
    products = Products(frozen, at_once(frozen.output.device, max_bytes))
    factor = torch.ones(len(paths), dtype=torch.float64, device=rows.device)
    ends = _Descent(products, paths, factor).ends(functional.gradient, rows)
    value = factor.new_zeros(len(paths))
    for end in ends:
        value[end.path] = end.crops.dot(end.layer.output)[0][end.row].to(value.dtype)
    whole = torch.tensor([not path for path in paths], device=value.device)
    value = torch.where(whole, functional.value, (value * factor).to(functional.value.dtype))
    weights, weight_part = _weights(products, ends, rows)
    if bool((factor != 1).any()):
        weights = tuple(w.mul_(column(factor.to(w.dtype), w)) for w in weights)
    bias = value - (weight_part * factor).to(value.dtype)
    return PathModel(weights if len(weights) > 1 else weights[0], bias, value, functional.labels)


def _refuse(frozen: Frozen, paths: Any) -> None:
    """Refuse what is no list of paths of this network with one layer a step.

    Raises:
        PathError: it is not.
        UnknownLayerError: a layer is not recorded.
    """
    if not isinstance(paths, Sequence) or isinstance(paths, str):
        raise PathError(f"linear_models takes a list of paths; got {paths!r}")
    if not paths:
        raise PathError("there is no path: give at least one")
    steps: dict[Step, None] = {}
    for path in paths:
        if not isinstance(path, Path):
            raise PathError(f"a path is a relupath.Path, such as Path.of([(layer, unit)]); got {path!r}")
        above = frozen.top
        for step in reversed(path.steps):
            if step.beside:
                raise PathError(f"linear_models takes paths with one layer a step; use linear_model for {path}")
            layer = frozen.layer_of_path(step.layer)
            refuse_order(frozen, [layer], [above], path)
            above = layer
            steps[step] = None
    for step in steps:
        layer = frozen.layer(step.layer)
        if len(step.units) == 1:
            refuse_unit(step.units[0], layer)
        else:
            mask_of_step(step, layer)


def _samples(frozen: Frozen, paths: Sequence[Path], samples: Sequence[int] | None) -> Int[Tensor, " K"]:
    """The sample of each path."""
    if samples is None and frozen.batch > 1:
        raise PathError(f"there are {frozen.batch} samples: say with samples=[...] to which each path belongs")
    chosen = [0] * len(paths) if samples is None else [*samples]
    if len(chosen) != len(paths):
        raise PathError(f"{len(chosen)} samples for {len(paths)} paths: give one a path")
    rows = [number_below(frozen.batch, b) for b in chosen]
    if None in rows:
        raise PathError(f"a sample is a number from 0 to {frozen.batch - 1}; got {chosen}")
    return torch.tensor(rows, device=frozen.output.device)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Cotangents that stand at one layer, and whose they are.

    Attributes:
        layer: the layer.
        crops: the cotangents.
        path: numbers of paths.
        row: for each of them, which cotangent is its.
    """

    layer: Layer
    crops: Crops
    path: list[int]
    row: list[int]


Kind = tuple[bool, bool]
"""Whether a unit names its channel, and its place."""


@dataclass(frozen=True, eq=False)
class _Descent:
    """From the output down, step by step; equal beginnings go together.

    Attributes:
        products: gives the products.
        paths: the paths.
        factor: for each path, by what its cotangents have been divided on the way, so that they stay in range.
    """

    products: Products
    paths: Sequence[Path]
    factor: Float[Tensor, " K"]

    def ends(self, gradient: Float[Tensor, "K ..."], samples: Int[Tensor, " K"]) -> list[_Piece]:
        """The cotangents at each path's lowest step; a path through dead units has none."""
        both = torch.cat(
            [gradient.reshape(len(gradient), -1).double(), samples[:, None]], 1
        )  # in half precision numbers end early
        distinct, row = torch.unique(both, dim=0, return_inverse=True)
        shape = tuple(gradient.shape[1:])
        crops = Crops(distinct[:, :-1].reshape(-1, *shape).to(gradient.dtype), shape, distinct[:, -1].long())
        front = [_Piece(self.products.frozen.top, crops, list(range(len(self.paths))), row.tolist())]
        ends = []
        for depth in range(max(map(len, self.paths)) + 1):
            for piece in front:
                done = [(p, r) for p, r in zip(piece.path, piece.row, strict=True) if len(self.paths[p]) == depth]
                if done:
                    rows = {r: i for i, r in enumerate(sorted({r for _, r in done}))}
                    crops = piece.crops.select(torch.tensor([*rows], device=samples.device))
                    ends.append(_Piece(piece.layer, crops, [p for p, _ in done], [rows[r] for _, r in done]))
            front = [lower for piece in front for lower in self._step(piece, depth)]
        return ends

    def _step(self, piece: _Piece, depth: int) -> Iterator[_Piece]:
        """One step down: on each layer and for each kind of unit a piece, or several as memory allows."""
        groups: dict[tuple[str, Kind | None], dict[tuple[int, Step], list[int]]] = {}
        for path, row in zip(piece.path, piece.row, strict=True):
            if len(self.paths[path]) > depth:
                step = self.paths[path].steps[-1 - depth]
                layer = self.products.frozen.layer_of_path(step.layer)
                mine = groups.setdefault((step.layer, _kind(step, layer)), {})
                mine.setdefault((row, step), []).append(path)
        for (name, kind), children in groups.items():
            layer = self.products.frozen.layer_of_path(name)
            found: dict[tuple[object, ...], list[tuple[Crops, list[list[int]]]]] = {}
            for crops, owners in self._chosen(piece, layer, kind, children):
                found.setdefault(crops.form, []).append((crops, owners))
            for some in found.values():
                owners = [paths for _, part in some for paths in part]
                pairs = [(path, row) for row, paths in enumerate(owners) for path in paths]
                paths, rows = map(list, zip(*pairs, strict=True))
                yield self._in_range(_Piece(layer, joined([crops for crops, _ in some]), paths, rows))

    def _in_range(self, piece: _Piece) -> _Piece:
        """The piece with cotangents divided by their scale."""
        values = piece.crops.values
        own = scale_of(values.abs().reshape(len(values), -1).amax(1))
        self.factor[piece.path] *= own[piece.row]
        return replace(piece, crops=piece.crops.with_values(values / column(own.to(values.dtype), values)))

    def _chosen(
        self, piece: _Piece, layer: Layer, kind: Kind | None, children: Mapping[tuple[int, Step], list[int]]
    ) -> Iterator[tuple[Crops, list[list[int]]]]:
        """What comes to the units of one layer, and whose it is; without units to which nothing comes."""
        parents = sorted({row for row, _ in children})
        crops = piece.crops.select(torch.tensor(parents, device=piece.crops.values.device))
        wanted = _wanted(children, layer) if kind is not None and kind[0] else None
        size = 1 if kind == (True, True) else math.prod(layer.shape)
        count = max(1, self.products.most // (4 * size * layer.output.element_size()))
        alive = _alive(self.products.frozen, layer)
        for part, pulled in self.products.parts(piece.layer, crops, layer, wanted):
            numbers = {row: number for number, row in enumerate(parents[part])}
            every = [(numbers[row], step, paths) for (row, step), paths in children.items() if row in numbers]
            for start in range(0, len(every), count):
                rows, steps, owners = zip(*every[start : start + count], strict=True)
                cut = _cut(pulled, rows, steps, layer, kind)
                felt = cut.values if alive is None else cut.values * cut.take(alive)
                live = felt.reshape(len(felt), -1).any(1).nonzero()[:, 0]
                if len(live):
                    yield cut.select(live), [owners[i] for i in live.tolist()]


def _kind(step: Step, layer: Layer) -> Kind | None:
    """What the one unit of a step on channels and places names; None for other steps."""
    if step.but or len(step.units) != 1 or len(layer.shape) != 3:
        return None
    channel, row, column = (i is not None for i in step.units[0])
    return (channel, row) if row == column else None


def _alive(frozen: Frozen, layer: Layer) -> Bool[Tensor, "B *shape"] | None:
    """Which neurons of an activation have a slope or a value; nothing goes through the others. None: all may."""
    if frozen.writes_to_views or sum(node is not None for node, _ in layer.edge.node.next_functions) != 1:
        return None
    slopes = frozen.slopes(layer)
    return None if slopes is None else slopes.ne(0) | layer.output.ne(0)


def _wanted(children: Collection[tuple[int, Step]], layer: Layer) -> Int[Tensor, "N c"] | None:
    """The channels that are looked at of each parent, where they are few; equally many of each."""
    channels: dict[int, dict[int, None]] = {}
    for row, step in sorted(children, key=lambda child: child[0]):
        channels.setdefault(row, {})[step.units[0][0] or 0] = None
    most = max(map(len, channels.values()))
    if not few_channels(most, layer.shape[0]):
        return None
    rows = [[*some, *(c for c in range(most + len(some)) if c not in some)][:most] for some in channels.values()]
    return torch.tensor(rows, device=layer.output.device)


def _cut(pulled: Crops, rows: Sequence[int], steps: Sequence[Step], layer: Layer, kind: Kind | None) -> Crops:
    """The units of each step, of one row each."""
    device = pulled.values.device
    which = torch.tensor(rows, device=device)
    if kind is None:
        masks = {step: mask_of_step(step, layer) for step in dict.fromkeys(steps)}
        values = pulled.select(which).dense() * torch.stack([masks[step] for step in steps])
        return Crops(values, layer.shape, pulled.samples[which]).shrunk()
    units = [step.units[0] for step in steps]
    channel = torch.tensor([unit[0] for unit in units], device=device) if kind[0] else None
    corner = torch.tensor([unit[1:] for unit in units], device=device) if kind[1] else None
    return pulled.units(which, channel, corner)


def _weights(
    products: Products, ends: Sequence[_Piece], samples: Int[Tensor, " K"]
) -> tuple[tuple[Tensor, ...], Float[Tensor, " K"]]:
    """The weights of all paths for each explained input, and ``<W, x>``."""
    frozen = products.frozen
    weights = tuple(x.output.new_zeros(len(samples), *x.shape) for x in frozen.inputs)
    weight_part = torch.zeros(len(samples), dtype=torch.float64, device=samples.device)
    for end in ends:
        path, row = (torch.tensor(numbers, device=samples.device) for numbers in (end.path, end.row))
        for x, weight in zip(frozen.inputs, weights, strict=True):
            for part, pulled in products.parts(end.layer, end.crops, x):
                mine = (row >= part.start) & (row < part.stop)
                some = pulled.select(row[mine] - part.start)
                some.write_to(weight, path[mine])
                weight_part[path[mine]] += some.dot(x.output)[0]
    return weights, weight_part
