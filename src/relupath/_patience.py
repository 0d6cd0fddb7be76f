"""Long work that looks, from product to product, whether anyone still waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .errors import RelupathError

_left: ContextVar[Callable[[], bool] | None] = ContextVar("left", default=None)


class Abandoned(RelupathError):
    """Whoever asked does not wait any longer."""


@contextmanager
def while_waited_for(left: Callable[[], bool]) -> Iterator[None]:
    """Work done in here, in this thread, ends with ``Abandoned`` soon after ``left()`` is true."""
    token = _left.set(left)
    try:
        yield
    finally:
        _left.reset(token)


def go_on() -> None:
    """Said before each product.

    Raises:
        Abandoned: nobody waits any longer.
    """
    left = _left.get()
    if left is not None and left():
        raise Abandoned("nobody waits for this answer any longer")
