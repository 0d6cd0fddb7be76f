"""The graph that autograd leaves of the recorded pass: which layers lie below which, and products through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ._patience import go_on
from ._units import Layer


def pulled(cotangents: Mapping[Layer, Tensor], down: Sequence[GradientEdge], batched: bool) -> Sequence[Tensor | None]:
    """Vector-Jacobian products down to places in the graph: None where nothing leads.

    Args:
        cotangents: layers with a cotangent of each one's shape, dense or sparse, or (batched) K dense ones.
        down: the places.
        batched: whether there are K.

    Raises:
        Abandoned: nobody waits for it any longer.
    """
    go_on()
    device = next(iter(cotangents)).output.device
    with torch.inference_mode(False), torch.enable_grad(), as_recorded(device), _started(cotangents, down) as starts:
        return torch.autograd.grad(
            [layer.edge for layer in cotangents],
            down,
            starts,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )


def as_recorded(device: torch.device) -> AbstractContextManager[object]:
    """Products run in the recording's own precision, also where they are asked for under autocast."""
    return torch.autocast(device.type, enabled=False)


@contextmanager
def _started(cotangents: Mapping[Layer, Tensor], down: Sequence[GradientEdge]) -> Iterator[list[Tensor]]:
    """Cotangents as autograd takes them: for a sparse one a zero, to which a hook adds it where it starts."""

    def hook(number: int, cotangent: Tensor) -> Callable[[tuple[Tensor | None, ...]], tuple[Tensor | None, ...]]:
        def start(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            pairs = enumerate(gradients)
            return tuple(g if g is None or i != number else cotangent.to_dense().add_(g) for i, g in pairs)

        return start

    starts, handles = [], []
    stops = {_key(edge) for edge in down}  # edges to one place may differ by a token that they hold
    for layer, cotangent in cotangents.items():
        if cotangent.is_sparse and _key(layer.edge) not in stops:
            handles.append(layer.edge.node.register_prehook(hook(layer.edge.output_nr, cotangent)))
            starts.append(layer.output.new_zeros(()).expand_as(layer.output))
        else:
            starts.append(cotangent.to_dense().contiguous())
    try:
        yield starts
    finally:
        for handle in handles:
            handle.remove()


def below(layers: Sequence[Layer]) -> dict[Layer, frozenset[Layer]]:
    """For each of the layers, in order of execution, those of them on which it depends; the last one is the output."""
    places: dict[tuple[Any, int], list[Layer]] = {}
    for layer in layers[:-1]:
        places.setdefault(_key(layer.edge), []).append(layer)
    found: dict[Layer, frozenset[Layer]] = {}
    for layer in layers:
        twins = places.get(_key(layer.edge), [])
        direct = twins[: twins.index(layer)] if layer in twins else twins
        if not direct:
            direct = _nearest(layer.edge, places)
        found[layer] = frozenset(direct).union(*(found[lower] for lower in direct))
    return found


def levels(layers: Sequence[Layer]) -> tuple[tuple[Layer, ...], ...]:
    """The layers but the last one, which is the output, by how many layers the longest way up to it has.

    Args:
        layers: in order of execution.

    Returns:
        The levels from the top down.
    """
    depends, height = below(layers), dict.fromkeys(layers[:-1], 0)
    for layer in reversed(layers[:-1]):
        for lower in depends[layer]:
            height[lower] = max(height[lower], height[layer] + 1)
    count = max(height.values(), default=-1) + 1
    return tuple(tuple(layer for layer in layers[:-1] if height[layer] == h) for h in range(count))


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


def route(above: GradientEdge, below: GradientEdge, without: Any = None) -> list[Any]:
    """The nodes on the routes from a place in the autograd graph down to another, that do not pass a given node."""
    goal = below.node, below.output_nr
    leads: dict[Any, bool] = {}
    todo: list[Any] = [above.node] if (above.node, above.output_nr) != goal else []
    while todo:
        node = todo[-1]
        lower = [place for place in node.next_functions if place[0] is not None and place != goal]
        new = [] if node is without else [n for n, _ in lower if n not in leads]
        if node not in leads and new:
            leads[node] = False
            todo += new
            continue
        todo.pop()
        at_goal = any(place == goal for place in node.next_functions)
        leads[node] = node is not without and (at_goal or any(leads[n] for n, _ in lower))
    return [node for node, does in leads.items() if does]


def by_pass(above: Iterable[Layer], level: Iterable[Layer], inputs: Iterable[Layer]) -> bool:
    """Whether a route leads from some layers to an input around all layers of a level."""
    stops, goals = ({_key(layer.edge) for layer in some} for some in (level, inputs))
    todo = [_key(layer.edge) for layer in above]
    seen: set[tuple[Any, int]] = set()
    while todo:
        place = todo.pop()
        if place in stops or place in seen or place[0] is None:
            continue
        if place in goals:
            return True
        seen.add(place)
        todo += place[0].next_functions
    return False
