"""What autograd keeps for derivatives: kept safe from in-place writes, and no more of it than is needed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ._calls import storage_of
from .errors import ModelError

T = TypeVar("T")
Need = Literal["values", "signs", "shape"]
"""What a derivative reads of a kept tensor: its values; whether each is greater than 0; or its shape alone."""


class _Saved:
    """A tensor kept for derivatives: shared while nothing writes to it, a copy from then on.

    Indices, such as those of max pooling, are kept in as few bytes as they need: as the difference from the smallest
    one at that place in any sample and channel.
    """

    __slots__ = ("__weakref__", "device", "dtype", "least", "need", "tensor", "version")

    def __init__(self, tensor: Tensor, need: Need) -> None:
        self.need, self.dtype, self.device = need, tensor.dtype, tensor.device
        self.least: Tensor | None = None
        if tensor.dtype == torch.int64 and tensor.numel() and int(tensor.min()) >= 0 and int(tensor.max()) < 2**31:
            tensor = tensor.to(torch.int32)
            least = tensor.amin([0, 1] if tensor.ndim > 2 else [], keepdim=True)
            self.least, tensor = _small(least), _small(tensor - least)
        self.tensor = tensor.detach()
        self.version = self.tensor._version

    def keep(self) -> None:
        """Keep the present value, as it is about to be overwritten."""
        self._refuse_overwritten()
        self.tensor = self.tensor.clone()
        self.version = self.tensor._version

    def lighten(self) -> None:
        """Keep no more than is needed: the signs, a byte each, or the shape; all of it where one is not a number."""
        self._refuse_overwritten()
        if self.need == "shape":
            self.tensor = torch.empty_like(self.tensor, device="meta")
        elif self.need == "signs" and not self.tensor.isnan().any():
            self.tensor = self.tensor > 0
        self.version = self.tensor._version

    def load(self) -> Tensor:
        """The value as it was saved; of one that was lightened the signs, as 1 and 0, or memory that nobody reads.

        Writes through ``.data``, which torch does not count, go unnoticed.

        Raises:
            ModelError: something has written to it.
        """
        self._refuse_overwritten()
        if self.tensor.is_meta:
            shape, stride = self.tensor.shape, self.tensor.stride()
            return torch.empty_strided(shape, stride, dtype=self.dtype, device=self.device)
        if self.least is not None:
            return self.tensor.to(self.dtype, copy=True).add_(self.least.to(self.dtype))
        return self.tensor.to(self.dtype)

    def _refuse_overwritten(self) -> None:
        if self.tensor._version != self.version:
            raise ModelError(
                "a tensor of the recorded pass was overwritten since (the model's weights were changed, or an "
                "operation that could not be seen wrote in place): freeze again"
            )


class Savings:
    """What autograd saves for derivatives, by storage. It holds no recorder: that would close a cycle through C++.

    Args:
        lean: whether signs are lightened as they are saved: where the values are most likely held by nothing else.
    """

    def __init__(self, lean: bool) -> None:
        self.lean = lean
        self._by_storage: dict[int, list[weakref.ref[_Saved]]] = {}
        self._running: tuple[Need, Tensor | None] = "values", None

    def needing(self, need: Need, of: Tensor, run: Callable[[], T]) -> T:
        """Run an operation whose derivative needs that much: of all it keeps, or the shape of one."""
        before, self._running = self._running, (need, of)
        try:
            return run()
        finally:
            self._running = before

    def save(self, tensor: Tensor) -> _Saved:
        """Keep a tensor, or its shape if that is all that is needed and nobody else keeps it."""
        with torch._C.DisableTorchFunction():
            (need, of), storage = self._running, storage_of(tensor)
            if need == "shape" and not _same(tensor, of):
                need = "values"
            saved = _Saved(tensor, need)
            if self.lean if need == "signs" else need == "shape" and not self._kept(storage):
                saved.lighten()
            if storage_of(saved.tensor) == storage:
                self._by_storage.setdefault(storage, []).append(weakref.ref(saved))
            return saved

    def about_to_write(self, storage: int) -> None:
        """Copy what is kept of a storage."""
        for saved in self._kept(storage):
            saved.keep()
        self._by_storage.pop(storage, None)

    def release(self, held: Collection[int]) -> None:
        """Lighten what is kept of every storage but those that something else holds, or of which values are needed.

        Raises:
            ModelError: something has written to what is kept.
        """
        with torch.inference_mode(False), torch.no_grad():
            for storage in self._by_storage.keys() - set(held):
                kept = self._kept(storage)
                if all(saved.need != "values" for saved in kept):
                    del self._by_storage[storage]
                    for saved in kept:
                        saved.lighten()

    def _kept(self, storage: int) -> list[_Saved]:
        return [saved for reference in self._by_storage.get(storage, ()) if (saved := reference()) is not None]


def load(saved: _Saved) -> Tensor:
    """The tensor that ``Savings.save`` was given."""
    with torch._C.DisableTorchFunction():
        return saved.load()


def _same(t: Tensor, other: Tensor | None) -> bool:
    return other is not None and (t.numel(), t.data_ptr()) == (other.numel(), other.data_ptr())


def _small(numbers: Tensor) -> Tensor:
    """Whole numbers, none below 0, in the smallest type that holds them."""
    largest = int(numbers.max())
    kinds = (kind for kind, limit in ((torch.uint8, 2**8), (torch.uint16, 2**16)) if largest < limit)
    return numbers.to(next(kinds, numbers.dtype))
