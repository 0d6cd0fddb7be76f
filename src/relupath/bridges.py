"""Bridges to Captum and Quantus: exact linear models as attributions in their form.

Each explains ``W * x`` of the network, or of the paths that a search finds. What is not exact is refused, as
everywhere.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from ._contributions import contributions
from ._freeze import freeze
from ._partitions import Partition, neurons
from ._search import Search
from .errors import InputError, MissingExtraError, TargetError

try:
    from captum.attr import Attribution
    from captum.log import log_usage
except ImportError as error:
    MISSING: ImportError | None = error
    Attribution, log_usage = object, lambda: lambda method: method
else:
    MISSING = None

__all__ = ["PathAttribution", "QuantusExplainer"]

Index = int | tuple[int, ...]


class PathAttribution(Attribution):  # type: ignore[misc]  # Captum has no types
    """``W * x`` of a network, or of the paths that a search finds in it, as an attribution of Captum.

    The attributions of the whole network sum to ``f(x) - b``, with ``b`` its bias at the input.

    >>> attribution = PathAttribution(model, relupath.Mass(0.5), partition=relupath.channels)
    >>> attribution.attribute(x, target=3)
    """

    def __init__(
        self,
        model: nn.Module,
        search: Search | None = None,
        *,
        layers: Sequence[str] | None = None,
        partition: Partition = neurons,
        carry: Literal["first", "second", "half"] | None = None,
        output: Callable[[Any], Tensor] | None = None,
    ) -> None:
        """Keep the choices; see ``freeze`` for the model, ``carry`` and ``output``, ``find_paths`` for the others.

        Raises:
            MissingExtraError: Captum is not installed.
        """
        if MISSING is not None:
            raise MissingExtraError(
                f"captum is needed for this: pip install 'relupath[captum]' ({MISSING})"
            ) from MISSING
        super().__init__(model)
        self.search, self.layers, self.partition, self.carry, self.output = search, layers, partition, carry, output

    @property
    def multiplies_by_inputs(self) -> bool:
        """Always: the attribution is W * x, not W."""
        return True

    @log_usage()  # type: ignore[untyped-decorator]  # gives the attribute __wrapped__ that NoiseTunnel asks for
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Index | list[Index] | Tensor | None = None,
        additional_forward_args: Any = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """The contribution of every input element to the target.

        Args:
            inputs: the explained inputs, each (B, ...).
            target: as everywhere in Captum. For an output (B, C) a class, or a list or tensor of one class a sample;
                for more axes a tuple of one index an axis, or a list of such tuples; None for one number a sample.
            additional_forward_args: further positional arguments of the model, held constant.

        Returns:
            A tensor, or a tuple of tensors, as the inputs, of their shapes.

        Raises:
            TargetError: the target names no number of the output, or leaves several a sample.
            RelupathError: as ``freeze`` and ``find_paths``.
        """
        more = additional_forward_args
        args = more if isinstance(more, tuple) else () if more is None else (more,)
        frozen = freeze(self.forward_func, inputs, *args, carry=self.carry, output=self._rows)
        found = contributions(frozen, _picks(target), self.search, layers=self.layers, partition=self.partition)
        maps = tuple(map_.contiguous() for map_ in found)  # Captum's metrics ask for that
        return maps if isinstance(inputs, tuple) else maps[0]

    def _rows(self, raw: Any) -> Any:
        """The explained tensor; where the model gives one number a sample, (B, 1)."""
        picked = raw if self.output is None else self.output(raw)
        return picked[:, None] if isinstance(picked, Tensor) and picked.ndim == 1 else picked


@dataclass(frozen=True)
class QuantusExplainer:
    """``W * x`` of a network, or of the paths that a search finds in it, as an ``explain_func`` of Quantus.

    Nothing is kept from one call to the next: a model whose weights were changed in place is explained as it is now.
    Quantus' Infidelity multiplies a map by a change of the input, so that it asks for ``W``: of what this gives with
    ``summed=False``, divided by the input.

    Attributes:
        search: the strategy; None means the whole network.
        layers: where paths are looked for, as in ``find_paths``.
        partition: what counts as one unit.
        summed: whether channels are summed, to (B, 1, ...), as Quantus' own explanations are.
        carry: as in ``freeze``.
    """

    search: Search | None = None
    layers: Sequence[str] | None = None
    partition: Partition = neurons
    summed: bool = True
    carry: Literal["first", "second", "half"] | None = None

    def __call__(
        self,
        model: nn.Module,
        inputs: Float[np.ndarray, "B C ..."],
        targets: Integer[np.ndarray, " B"] | Sequence[int] | int,
        device: str | None = None,
    ) -> Float[np.ndarray, "B _ ..."]:
        """The contribution of every input element to the logit of its sample's class.

        Args:
            model: the network, in eval mode; it gives logits (B, classes).
            inputs: on the side of the network channels come first.
            targets: one class a sample, or one for all.
            device: what Quantus passes; the inputs go where the model is.

        Returns:
            (B, 1, ...) or (B, C, ...), in the type of the inputs.

        Raises:
            InputError: the inputs have no axis of channels, or are whole numbers, in which a map would be cut off.
            RelupathError: as ``freeze`` and ``find_paths``.
        """
        if inputs.ndim < 2:
            raise InputError(f"expected inputs (B, C, ...); got shape {list(inputs.shape)}")
        if not np.issubdtype(inputs.dtype, np.floating):
            raise InputError(f"expected floating-point inputs; got {inputs.dtype}: give inputs.astype(np.float32)")
        like = next(model.parameters(), torch.zeros(()))
        x = torch.tensor(inputs, dtype=like.dtype, device=like.device)
        frozen = freeze(model, x, carry=self.carry)
        classes = _picks(np.asarray(targets).tolist())
        (found,) = contributions(frozen, classes, self.search, layers=self.layers, partition=self.partition)
        found = found.sum(1, keepdim=True) if self.summed else found
        return found.cpu().numpy().astype(inputs.dtype)


def _picks(target: Index | list[Index] | Tensor | None) -> Callable[[Tensor], Tensor]:
    """The number that a target of Captum names in each sample's output."""

    def picked(output: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        """The numbers, as a linear function of the output."""
        samples, sizes = len(output), output.shape[1:]
        where = _each(target, samples)
        if any(len(place) > len(sizes) for place in where) or len({len(place) for place in where}) > 1:
            raise TargetError(f"the target {target!r} does not fit an output of shape {list(output.shape)}")
        for place in where:
            if not all(-size <= i < size for i, size in zip(place, sizes, strict=False)):
                raise TargetError(f"the target {place} is out of range of an output of shape {list(output.shape)}")
        rows = torch.arange(samples, device=output.device)
        axes = torch.tensor(where, dtype=torch.long, device=output.device).T
        value = output[(rows, *axes)]
        if value.numel() != samples:
            raise TargetError(
                f"the target {target!r} leaves several numbers a sample of an output of shape {list(output.shape)}: "
                "give one index for each axis"
            )
        return value.reshape(samples)

    return picked


def _each(target: Index | list[Index] | Tensor | None, samples: int) -> list[tuple[int, ...]]:
    """One place a sample, for every form in which Captum takes targets.

    Raises:
        TargetError: it is none of them.
    """
    if target is None:
        return [()] * samples
    given: Any = target
    if isinstance(target, Tensor):
        given = target.item() if target.numel() == 1 else target.tolist()
    several = given if isinstance(given, list) else [given] * samples
    if len(several) != samples:
        raise TargetError(f"{len(several)} targets for {samples} samples: give one for all, or one a sample")
    try:
        return [tuple(map(operator.index, one if isinstance(one, tuple) else (one,))) for one in several]
    except TypeError as error:
        raise TargetError(
            f"a target is an index, a tuple of indices, or one of these a sample; got {target!r}"
        ) from error
