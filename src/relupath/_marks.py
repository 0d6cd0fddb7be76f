"""Marks on tensors that depend on the input: gates and bent ones, which are no signals, and signals that may gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ._calls import leaves
from .errors import UnsupportedOperation


@dataclass(frozen=True)
class Mark:
    """What a tensor is that depends on the input without being a signal.

    Attributes:
        kind: ``gate`` or ``scale`` (frozen: it may scale a signal) or ``bent`` (it may only become a gate).
        refusal: the error to raise where it would have to be a signal.
        constant: whether it may also stand for a constant: a frozen gate times a constant of its own shape.
    """

    kind: str
    refusal: UnsupportedOperation
    constant: bool = False


def mark_of(t: Tensor | None) -> Mark | None:
    """The mark of a tensor, if it has one."""
    return getattr(t, "_relupath_mark", None)


def gating(t: Tensor) -> int:
    """How much a signal is a gate: 0; 1 for an activation's output, up to scaling and moving; 2 for a squashed one.

    One to which something wrote since is none any more.
    """
    rank, version = getattr(t, "_relupath_gating", (0, 0))
    return rank if rank and t._version == version else 0


def ranked(t: Tensor, rank: int) -> None:
    """Remember how much a signal is a gate."""
    if rank:
        t._relupath_gating = rank, t._version  # type: ignore[attr-defined]


def carrying(t: Tensor, mark: Mark) -> Tensor:
    """The tensor, with a mark on it."""
    t._relupath_mark = mark  # type: ignore[attr-defined]
    return t


def marked(value: Any, mark: Mark) -> list[Tensor]:
    """Mark every floating-point tensor in a nested value, and return them.

    Such a tensor is made a leaf of the autograd graph, so that what is computed from it unseen can be told.
    """
    found = [t for t in leaves(value) if t.is_floating_point() or t.is_complex()]
    for t in found:
        carrying(t, mark)
        if t.is_leaf and not t.is_inference():
            t.requires_grad_()
    return found
