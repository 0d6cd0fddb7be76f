"""Families of maps of one picture: paths of several searches, channels of zennit-crp, clusters, units at random."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from crp.attribution import CondAttribution
from jaxtyping import Float
from torch import Tensor, nn
from zennit.composites import EpsilonPlusFlat

import peers
import relupath
from relupath import Partition, linear_models
from relupath._contributions import contributions
from relupath._node import Node
from relupath._search import Search

COUNT = 8
"""Maps in a family."""
Family = Float[Tensor, "K H W"]
Maker = Callable[["Picture"], Family]


class Picture:
    """One picture in the network: frozen once, for its predicted class.

    Attributes:
        model: the network.
        x: the picture, (1, 3, H, W).
        frozen: the recorded network.
        predicted: the class that is explained.
        seed: of what is random.
    """

    def __init__(self, model: nn.Module, x: Float[Tensor, "1 3 H W"], seed: int) -> None:
        self.model, self.x, self.seed = model, x, seed
        self.frozen = relupath.freeze(model, x)
        self.predicted = int(self.frozen.output.argmax())

    @property
    def generator(self) -> torch.Generator:
        """Random numbers, the same for every family."""
        return torch.Generator().manual_seed(self.seed)


def families(depths: Sequence[int], convolutions: Sequence[str]) -> dict[str, Maker]:
    """By name, how each family is made.

    Args:
        depths: on so many layers from the top the paths have units; 0 means all.
        convolutions: the layers whose channels zennit-crp takes, from the top.
    """
    found: dict[str, Maker] = {
        "whole network": lambda p: contributions(p.frozen)[0].sum(1),
        "LRP, epsilon-plus": lambda p: peers.methods(p.model, convolutions[0], convolutions[0])["LRP, epsilon-plus"](
            p.x, torch.tensor([p.predicted])
        ).sum(1),
        "clusters by place": lambda p: clusters(p, 0.0),
        "clusters by place and colour": lambda p: clusters(p, 1.0),
    }
    for layer in convolutions:
        found[f"zennit-crp, channels of {layer}"] = lambda p, layer=layer: of_channels(p, layer)
    for depth in depths:
        told = f"{depth} layer{'s' * (depth > 1)}" if depth else "all layers"
        found[f"units at random, {told}"] = lambda p, depth=depth: at_random(p, depth)
        for partition in (relupath.neurons, relupath.channels, relupath.locations):
            word = partition.name
            beam = relupath.Beam(COUNT, depth or None)
            found[f"Beam, {word}, {told}"] = lambda p, s=beam, q=partition: of_search(p, s, q)
            if depth != 1 and partition is not relupath.locations:
                found[f"branches, {word}, {told}"] = lambda p, d=depth, q=partition: branches(p, d, q)
    found["BestFirst, neurons"] = lambda p: of_search(p, relupath.BestFirst(COUNT), relupath.neurons)
    found["BestFirst, locations"] = lambda p: of_search(p, relupath.BestFirst(COUNT), relupath.locations)
    found["Exact, neurons"] = lambda p: of_search(p, relupath.Exact(COUNT), relupath.neurons)
    return found


def of_search(p: Picture, search: Search, partition: Partition) -> Family:
    """``W x`` of each of the first paths of a search, by the size of their values."""
    found = relupath.find_paths(p.frozen, p.predicted, search, partition=partition)
    pairs = sorted(zip(found.values[0], found.ranked[0], strict=True), key=lambda pair: -abs(pair[0]))
    return _maps(p, [path for _, path in pairs[:COUNT] if path])


def branches(p: Picture, depth: int, partition: Partition) -> Family:
    """``W x`` of paths that part at the top: its largest units, and below each the largest unit on every layer."""
    root = relupath.decompose(p.frozen, p.predicted, partition=partition, width=COUNT)
    ends = []
    for node in _paths(root):
        for _ in range((depth or len(p.frozen.layers)) - 1):
            node = next(iter(_paths(node)), node)
        ends.append(node)
    return torch.stack([node.contribution[0].sum(0) for node in ends if node.contribution is not None])


def at_random(p: Picture, depth: int) -> Family:
    """``W x`` through single neurons of the layer that lies so deep, any of those through which something goes."""
    layer = p.frozen.layers[-depth if depth else 0]
    (pulled,) = p.frozen.vjp({p.frozen.top: p.frozen.functional(p.predicted).gradient}, [layer])
    live = (pulled * layer.output)[0].nonzero()
    some = live[torch.randperm(len(live), generator=p.generator)[:COUNT]]
    return _maps(p, [relupath.Path.of([(layer.name, tuple(unit))]) for unit in some.tolist()])


def of_channels(p: Picture, layer: str) -> Family:
    """zennit-crp's maps on condition of single channels of a layer, those of the largest relevance."""
    attribution = CondAttribution(copy.deepcopy(p.model))
    composite = EpsilonPlusFlat()

    def run(conditions: list[dict[str, list[int]]], record: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = attribution(p.x.clone().requires_grad_(), conditions, composite, record_layer=record)
        return found.heatmap.detach(), found.relevances

    _, relevances = run([{"y": [p.predicted]}], [layer])
    best = relevances[layer].sum((2, 3))[0].abs().topk(COUNT).indices.tolist()
    return run([{"y": [p.predicted], layer: [channel]} for channel in best], [])[0]


def clusters(p: Picture, colour: float) -> Family:
    """``W x`` of the whole network cut into clusters of its pixels, by k-means weighted with ``|W x|``.

    Args:
        p: the picture.
        colour: how much a difference in colour counts beside one in place; 0: places alone.
    """
    whole = contributions(p.frozen)[0].sum(1)[0]
    height, width = whole.shape
    place = torch.cartesian_prod(torch.arange(height) / height, torch.arange(width) / width) * 4
    points = torch.cat([place, colour * p.x[0].flatten(1).T], 1)
    nearest = k_means(points, whole.abs().flatten(), COUNT, p.generator)
    return torch.stack([torch.where(nearest.view(height, width) == k, whole, 0) for k in range(COUNT)])


def k_means(
    points: Float[Tensor, "n d"], weights: Float[Tensor, " n"], count: int, generator: torch.Generator
) -> Tensor:
    """The number of each point's cluster: weighted k-means, begun far apart (k-means++).

    Source: Arthur, Vassilvitskii: k-means++, SODA 2007.
    """
    centres = points[torch.multinomial(weights, 1, generator=generator)]
    for _ in range(count - 1):
        far = torch.cdist(points, centres).amin(1) ** 2
        centres = torch.cat([centres, points[torch.multinomial(weights * far, 1, generator=generator)]])
    for _ in range(20):
        nearest = torch.cdist(points, centres).argmin(1)
        total = weights.new_zeros(count).index_add(0, nearest, weights)
        sums = torch.zeros_like(centres).index_add(0, nearest, points * weights[:, None])
        centres = torch.where(total[:, None] > 0, sums / total[:, None], centres)
    return torch.cdist(points, centres).argmin(1)


def _maps(p: Picture, paths: Sequence[relupath.Path]) -> Family:
    if not paths:
        return p.x.new_zeros(0, *p.x.shape[2:])
    weight = linear_models(p.frozen, paths, p.predicted).weight
    assert isinstance(weight, Tensor)
    return (weight * p.x).sum(1)


def _paths(node: Node) -> Iterator[Node]:
    """The children that go through single units of the next layer."""
    return (child for child in node.children if child.kind == "path" and len(child.path) > len(node.path))
