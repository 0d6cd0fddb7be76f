"""A thin path as the sum of deep ones: a tree whose leaves add up to the output at every depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ._crops import Crops
from ._frozen import Frozen, LayerLike
from ._graph import by_pass
from ._linear import descend, paths_of, scale_of
from ._memory import at_once
from ._node import Kind, Node
from ._partitions import Partition, neurons
from ._paths import Path, Step
from ._products import Products, by_layer
from ._sources import Source, reduced, sum_and_size
from ._targets import TargetLike
from ._tested import TOLERANCE, imbalance
from ._units import Layer, number_below
from .errors import IncompleteError, PathError


def decompose(
    frozen: Frozen,
    target: TargetLike = None,
    *,
    layers: Sequence[LayerLike] | None = None,
    partition: Partition | Mapping[LayerLike, Partition] = neurons,
    width: int = 8,
    sample: int = 0,
    path: Path | None = None,
) -> Node:
    """The tree of shares of the output, from the whole, or from a path, down to deep paths.

    A path P is split at the next layer l below it, of which ``width`` units S^j have a node of their own and the others
    one together::

        f^P = sum_j f^(P + (l, S^j)) + f^(P + (l, rest)) + r_l(P)

    The remainder r_l(P) is what does not pass l: the constants that enter between, and the routes that by-pass it. So
    at every depth the leaves sum to the target's value, and their contributions and biases to those of the whole. Nodes
    are computed when they are looked at; the children of a node in one batched product.

    Args:
        frozen: the recorded network.
        target: what is decomposed; None means the sample's predicted class.
        layers: the layers to split at; None means every recorded one whose first axis is the batch.
        partition: what counts as one unit, for all layers or for each.
        width: how many units of a layer have a node of their own, those of the largest |value|.
        sample: which sample of the batch.
        path: where the tree begins; it is split at the layers below. None means the whole output.

    Raises:
        PathError: the width is less than 1, the sample is not in the batch, or the layers, partitions or path do not
            fit.
        TargetError: the target does not fit the output or is not linear.
        IncompleteError: the children do not add up to their parent.

    Source: section 3 of the paper, of which every split is an identity.
    """
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise PathError(f"width must be a whole number of at least 1; got {width}")
    row = number_below(frozen.batch, sample)
    if row is None:
        raise PathError(f"sample {sample!r} is not in the batch of {frozen.batch}")
    functional, chosen = frozen.functional(target), frozen.layers_of_paths(layers)
    partitions = frozen.partitions(chosen, partition)
    gradient = torch.zeros_like(functional.gradient)
    gradient[row] = functional.gradient[row]
    (begin,) = paths_of((Path() if path is None else path,), 1)
    front, values, scales = descend(frozen, gradient, [begin] * frozen.batch)
    below = frozen.below([*dict.fromkeys([*chosen, *(layer for layer in front if layer is not frozen.top)])])
    levels = [
        [layer for layer in level if any(layer in below[top] for top in front)] for level in frozen.levels(chosen)
    ]
    tree = _Tree(frozen, tuple(tuple(level) for level in levels if level), below, partitions, width, row)
    mine = [w[row] for w in frozen.accounted(front)[0]]
    value = float(values[row] if begin else functional.value[row])
    split = _Split(tree, lambda: front, mine, begin.steps[0].parts if begin else {}, scale=float(scales[row]))
    return tree.node("path", replace(begin, target=functional.labels[row]), value, mine, split, split.scale)


@dataclass(frozen=True, eq=False)
class _Tree:
    """What all nodes of a tree share."""

    frozen: Frozen
    levels: tuple[tuple[Layer, ...], ...]
    below: Mapping[Layer, frozenset[Layer]]
    partitions: Mapping[Layer, Partition]
    width: int
    sample: int

    def node(
        self,
        kind: Kind,
        path: Path,
        value: float,
        weights: Sequence[Tensor],
        split: _Split | None = None,
        scale: float = 1.0,
    ) -> Node:
        """A node of this value and these weights, both divided by a scale."""
        terms = [w * layer.output[self.sample] for w, layer in zip(weights, self.frozen.inputs, strict=True)]
        bias = value - sum(float(c.double().sum()) for c in terms)
        return Node(kind, path, value * scale, bias * scale, tuple(c * scale for c in terms), split)

    def value(self, front: Mapping[Layer, Tensor]) -> float:
        """The value of the terms with these cotangents."""
        return sum(float((v * layer.output).double().sum()) for layer, v in front.items())


Front = dict[Layer, Tensor]


@dataclass(frozen=True, eq=False)
class _Passing:
    """The weights of the routes through a level; what constants above it add; value and weights of routes around it."""

    weights: Sequence[Tensor]
    entering: float
    around: float = 0.0
    routes: Sequence[Tensor] | None = None


@dataclass(frozen=True, eq=False)
class _Split:
    """How a node is split.

    Attributes:
        tree: the tree.
        front: gives the node's cotangents at the layers where its path stands, divided by the scale.
        weights: the node's, divided by the scale.
        parts: the path's lowest step, by layer.
        at: the first level that has not been split yet.
        scale: what the cotangents were divided by; see ``scale_of``.
    """

    tree: _Tree
    front: Callable[[], Front]
    weights: Sequence[Tensor]
    parts: Mapping[str, Step] = field(default_factory=dict)
    at: int = 0
    scale: float = 1.0

    def children(self, node: Node) -> tuple[Node, ...]:
        """The nodes into which the next level splits this one; none if nothing comes from any level below."""
        front, tree = self.front(), self.tree
        for at in range(self.at, len(tree.levels)):
            layers = [layer for layer in tree.levels[at] if any(layer in tree.below[above] for above in front)]
            leads = {above: v for above, v in front.items() if tree.below[above] & set(layers)}
            with tree.frozen.lock, reduced(tree.frozen.sources, sum_and_size) as constants:
                pulled = dict(zip(layers, tree.frozen.vjp(leads, layers), strict=True))
            if any(bool((v * layer.output).any()) for layer, v in pulled.items()):
                stays = {above: v for above, v in front.items() if above not in leads}
                passing = self._passing(front, pulled | stays, constants)
                return self._level(node, pulled, stays, at, passing)
        return ()

    def _passing(self, front: Front, through: Front, constants: Mapping[Source, tuple[Tensor, Tensor]]) -> _Passing:
        """What passes a level, and what does not; where every route leads through it, the weights are the node's."""
        tree, frozen = self.tree, self.tree.frozen
        if not by_pass(front, through, frozen.inputs):
            beyond = frozen.accounted(through)[1] if frozen.writes_to_views else {}  # products go on to the inputs then
            terms = [pair for source, pair in constants.items() if source not in beyond]
            self._refuse_difference(front, through, terms)
            return _Passing(self.weights, sum(float(term) for term, _ in terms))
        (products, below), (_, above) = frozen.accounted(through), frozen.accounted(front)
        weights = [w[tree.sample] for w in products]
        entering = sum(float(term) for source, term in above.items() if source not in below)
        around = tree.value(front) - tree.value(through) - entering
        routes = [w - u for w, u in zip(self.weights, weights, strict=True)]
        xs = [layer.output[tree.sample] for layer in frozen.inputs]
        whole, part = (_sizes(some, xs) for some in (self.weights, routes))
        if max(abs(around), *part) <= _round_off(weights[0]) * max(abs(tree.value(front)), *whole):
            return _Passing(self.weights, entering)
        return _Passing(weights, entering, around, routes)

    def _refuse_difference(self, front: Front, through: Front, constants: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Refuse a level whose layers and the constants above do not add up to the node, though no route is around it.

        Raises:
            IncompleteError: they do not.
        """
        above, below = ([v * layer.output for layer, v in some.items()] for some in (front, through))
        terms = [*(t.sum() for t in above), *(-t.sum() for t in below), *(-term for term, _ in constants)]
        sizes = [*(t.abs().sum() for t in [*above, *below]), *(size for _, size in constants)]
        error = float(imbalance(terms, sizes))
        if not error <= self.tree.frozen.tolerance:
            raise IncompleteError(
                f"what passes {', '.join(repr(layer.name) for layer in through)} does not add up to the node above "
                f"(relative error {error:.1e}): check the recording with frozen.check()"
            )

    def _level(self, node: Node, pulled: Front, stays: Front, at: int, passing: _Passing) -> tuple[Node, ...]:
        """The units of one level, the rest of it, and what does not pass it."""
        tree = self.tree
        chosen = self._best(pulled)
        units = [self._unit(pulled[layer], layer, index) for layer, index in chosen]
        left = {l: v * ~self._mask(l, [u for u in units if u.layer is l]) for l, v in pulled.items()} | stays
        parts = self._weights(units)
        others = [whole - sum(part) for whole, *part in zip(passing.weights, *parts, strict=True)]
        children = []
        for (layer, index), unit, w in zip(chosen, units, parts, strict=True):
            step = Step(layer.name, tree.partitions[layer].units(index, layer.shape))
            path = Path((step, *node.path.steps), target=node.path.target)
            own = float(scale_of(unit.values.abs().amax()))
            split = _Split(
                tree, unit.over(own, tree.sample), [u / own for u in w], {layer.name: step}, at + 1, self.scale * own
            )
            children.append(tree.node("path", path, unit.value(tree.sample), w, split, self.scale))
        if self._counts(left, others, passing.weights):
            steps = self._rest(pulled, stays, chosen)
            path = Path((Step.over(steps.values()), *node.path.steps), target=node.path.target)
            rest, own = _divided(left)
            split = _Split(tree, lambda: rest, [u / own for u in others], steps, at + 1, self.scale * own)
            children.append(tree.node("rest", path, tree.value(left), others, split, self.scale))
        if passing.entering:
            nothing = [torch.zeros_like(w) for w in passing.weights]
            children.append(tree.node("bias", node.path, passing.entering, nothing, scale=self.scale))
        if passing.routes is not None:
            children.append(tree.node("by-pass", node.path, passing.around, passing.routes, scale=self.scale))
        return tuple(children)

    def _best(self, pulled: Front) -> list[tuple[Layer, int]]:
        """Layer and number of the units of the largest |value| on a level."""
        b, found = self.tree.sample, []
        for layer, v in pulled.items():
            scores = self.tree.partitions[layer].scores((v * layer.output)[b : b + 1])[0]
            sizes, indices = scores.abs().topk(min(self.tree.width, len(scores)))
            found += [(s, layer, i) for s, i in zip(sizes.tolist(), indices.tolist(), strict=True) if s > 0]
        found.sort(key=lambda entry: -entry[0])
        return [(layer, index) for _, layer, index in found[: self.tree.width]]

    def _unit(self, v: Tensor, layer: Layer, index: int) -> _Unit:
        """The part of a cotangent that stands on one unit."""
        members = self.tree.partitions[layer].members(index, layer.shape).to(v.device)
        values = v[self.tree.sample].flatten()[members]
        live = values != 0
        return _Unit(layer, members[live], values[live])

    def _mask(self, layer: Layer, units: Sequence[_Unit]) -> Bool[Tensor, "*shape"]:
        """The live neurons of some units."""
        mask = torch.zeros(layer.output[0].numel(), dtype=torch.bool, device=layer.output.device)
        for unit in units:
            mask[unit.positions] = True
        return mask.view(layer.shape)

    def _weights(self, units: Sequence[_Unit]) -> list[list[Tensor]]:
        """The weights of several units, in batched products."""
        tree, inputs = self.tree, self.tree.frozen.inputs
        products = Products(tree.frozen, at_once(tree.frozen.output.device))
        found: list[list[Tensor]] = [[] for _ in units]
        for layer in dict.fromkeys(unit.layer for unit in units):
            mine = [(weights, unit) for weights, unit in zip(found, units, strict=True) if unit.layer is layer]
            ((_, entries),) = by_layer([(layer, unit.positions, unit.values) for _, unit in mine]).items()
            samples = torch.full((len(mine),), tree.sample, device=layer.output.device)
            crops = Crops.placed(entries, layer.shape, samples)
            for x in inputs:
                for part, pulled in products.parts(layer, crops, x):
                    for (weights, _), weight in zip(mine[part], pulled.dense(), strict=True):
                        weights.append(weight)
        return found

    def _counts(self, front: Front, weights: Sequence[Tensor], whole: Sequence[Tensor]) -> bool:
        """Whether a front has more than round-off to give."""
        pairs = zip(weights, whole, strict=True)
        return any(bool((v * layer.output)[self.tree.sample].any()) for layer, v in front.items()) or any(
            bool(w.abs().max() > TOLERANCE[w.dtype] * (every - w).abs().max()) for w, every in pairs
        )

    def _rest(self, pulled: Front, stays: Front, chosen: Sequence[tuple[Layer, int]]) -> dict[str, Step]:
        """The units of a level without a node of their own, by layer."""
        steps = {layer.name: self.parts[layer.name] for layer in stays}
        for layer in pulled:
            partition = self.tree.partitions[layer]
            units = [unit for l, i in chosen if l is layer for unit in partition.units(i, layer.shape)]
            steps[layer.name] = Step(layer.name, tuple(units), but=True)
        return steps


def _round_off(like: Tensor) -> float:
    """What two products down to an input may differ by, relative to the larger one."""
    return min(2**10 * torch.finfo(like.dtype).eps, 0.01)


def _sizes(weights: Sequence[Tensor], xs: Sequence[Tensor]) -> list[float]:
    """The largest |w x| of each input."""
    return [float((w * x).abs().amax()) for w, x in zip(weights, xs, strict=True)]


def _divided(front: Front) -> tuple[Front, float]:
    """Cotangents divided by their scale, and the scale."""
    own = float(scale_of(torch.stack([v.abs().amax() for v in front.values()]).amax()))
    return {layer: v / own for layer, v in front.items()}, own


@dataclass(frozen=True, eq=False)
class _Unit:
    """A cotangent that stands on the neurons of one unit.

    Attributes:
        layer: the layer.
        positions: of those neurons where it is not zero, in the flattened layer.
        values: there.
    """

    layer: Layer
    positions: Int[Tensor, " n"]
    values: Tensor

    def value(self, sample: int) -> float:
        """The value of the terms with this cotangent."""
        return float((self.values * self.layer.output[sample].flatten()[self.positions]).double().sum())

    def over(self, scale: float, sample: int) -> Callable[[], Front]:
        """Gives the cotangent divided by a scale."""
        values = self.values / scale

        def front() -> Front:
            whole = self.layer.output.new_zeros(self.layer.output.shape)
            whole[sample].view(-1)[self.positions] = values
            return {self.layer: whole}

        return front
