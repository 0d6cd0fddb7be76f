"""Routes from one tensor of the recorded pass down to another, in the autograd graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.autograd.graph import GradientEdge

from ._units import Layer


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
    stops, goals = ({(layer.edge.node, layer.edge.output_nr) for layer in some} for some in (level, inputs))
    todo: list[tuple[Any, int]] = [(layer.edge.node, layer.edge.output_nr) for layer in above]
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
