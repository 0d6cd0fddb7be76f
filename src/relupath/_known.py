"""Which places of the autograd graph are understood; every other one that leads to the input hides an operation."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge


class Known:
    """The graph nodes that were seen to come about: those of signals, and those of gates and bent tensors."""

    def __init__(self) -> None:
        self._signals: set[Any] = set()
        self._marked: set[Any] = set()

    def admit(self, signal: Tensor) -> None:
        """Take a signal's place as understood."""
        if signal.grad_fn is not None:
            self._signals.add(signal.grad_fn)

    def admit_marked(self, leaf: Tensor) -> None:
        """Watch for what is computed unseen from a gate or a bent tensor, a leaf of the graph."""
        if leaf.requires_grad and leaf.is_leaf:
            self._marked.add(get_gradient_edge(leaf).node)

    def __contains__(self, signal: Tensor) -> bool:
        """Whether a signal's place is understood: it was admitted, or is a view of a signal that was written to."""
        if signal.grad_fn in self._signals:
            return True
        if signal._base is None or not self._is_view(signal.grad_fn):
            return False
        self.admit(signal)
        return True

    def _is_view(self, node: Any) -> bool:
        """Whether torch's own view operations alone lead from known signals to a graph node."""
        while node is not None and node not in self._signals:
            if node.name() not in VIEWS:
                return False
            node = node.next_functions[0][0]
        return node is not None

    def reached_from(self, t: Tensor) -> bool:
        """Whether a tensor depends on something known."""
        todo, seen = [t.grad_fn], set()
        while todo:
            node = todo.pop()
            if node in self._signals or node in self._marked:
                return True
            if node is not None and node not in seen:
                seen.add(node)
                todo += [parent for parent, _ in node.next_functions]
        return False

    def clear(self) -> None:
        """Forget everything, so that no part of the graph is kept alive from here."""
        self._signals.clear()
        self._marked.clear()


VIEWS = frozenset(
    f"{name}Backward0"
    for name in (
        *("AsStrided", "View", "UnsafeView", "ReshapeAlias", "Alias", "Slice", "Select", "Transpose", "T", "Permute"),
        *("Squeeze", "Unsqueeze", "Expand", "Diagonal", "Unfold", "Split", "SplitWithSizes", "Unbind"),
    )
)
"""Graph nodes that autograd makes anew for the views of a tensor that was written to."""
