"""What the user chose for a recording."""

from __future__ import annotations

from typing import NamedTuple


class Choices(NamedTuple):
    """What is explained, what is recorded, and how products of two signals are treated.

    Attributes:
        inputs: names of the layers whose outputs are the explained inputs; empty for the model's arguments.
        layers: names of the layers to record; None records the output of every activation function.
        carry: which factor of a product of two signals carries on: ``first``, ``second``, ``half``, or None (refuse).
    """

    inputs: frozenset[str] = frozenset()
    layers: frozenset[str] | None = None
    carry: str | None = None
