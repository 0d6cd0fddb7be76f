"""The constants of the network, and what they add to a functional: summed while one backward product runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jaxtyping import Inexact
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ._calls import version_of
from .errors import ModelError

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Source:
    """A constant that is added to a signal: a bias, a batch-norm shift, the intercept of a piece.

    Attributes:
        name: the parameter's name, or the operation that adds the constant.
        layers: how many hidden layers were recorded before it: it enters below the next one.
        edge: where the sum stands in the autograd graph.
        constant: what is added, broadcast to the sum's shape.
        version: how often something had written to the constant.
    """

    name: str
    layers: int
    edge: GradientEdge = field(repr=False)
    constant: Inexact[Tensor, "..."] = field(repr=False)
    version: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", version_of(self.constant))


@contextmanager
def tallied(sources: Sequence[Source]) -> Iterator[dict[Source, Tensor]]:
    """Collect <df/ds, s> of every source s that a product running inside passes, summed over the samples.

    The graph is shared by every product of a frozen network: run no other one meanwhile.

    Raises:
        ModelError: something has written to a constant.
    """
    with reduced(sources, _sum_of_product) as tally:
        yield tally


@contextmanager
def reduced(sources: Sequence[Source], reduce: Callable[[Tensor, Tensor], T]) -> Iterator[dict[Source, T]]:
    """Collect what ``reduce`` makes of (df/ds, s) for every source s that a product running inside passes.

    The graph is shared by every product of a frozen network: run no other one meanwhile.

    Raises:
        ModelError: something has written to a constant.
    """
    refuse_changed(sources)
    tally: dict[Source, T] = {}
    by_node = defaultdict(list)
    for source in sources:
        by_node[source.edge.node].append(source)

    def hook(here: Sequence[Source]) -> Callable[[tuple[Tensor | None, ...]], None]:
        def note(gradients: tuple[Tensor | None, ...]) -> None:
            for source in here:
                gradient = gradients[source.edge.output_nr]
                if gradient is not None:
                    tally[source] = reduce(gradient.detach(), source.constant)

        return note

    handles: list[Any] = [node.register_prehook(hook(here)) for node, here in by_node.items()]
    try:
        yield tally
    finally:
        for handle in handles:
            handle.remove()


def refuse_changed(sources: Sequence[Source]) -> None:
    """Refuse constants that something has written to.

    Raises:
        ModelError: it has.
    """
    for source in sources:
        if version_of(source.constant) != source.version:
            raise ModelError(f"the constant {source.name!r} was changed since the network was frozen: freeze again")


def _sum_of_product(gradient: Tensor, constant: Tensor) -> Tensor:
    return sum_and_size(gradient, constant)[0]


def sum_and_size(gradient: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """The real sum of conj(gradient) * constant, and the sum of the magnitudes.

    The gradient is first summed along axes where the constant repeats.
    """
    shape = (1,) * (gradient.ndim - constant.ndim) + constant.shape
    repeats = [axis for axis, size in enumerate(shape) if size == 1 < gradient.shape[axis]]
    summed = gradient.sum(repeats, keepdim=True) if repeats else gradient
    product = summed.conj() * constant.to(summed.dtype)
    return product.sum().real, product.abs().sum()
