"""What autograd keeps for derivatives: kept safe from in-place writes, and no more of it than is needed."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from ._calls import storage_of
from .errors import ModelError


class _Saved:
    """A tensor kept for derivatives: shared while nothing writes to it, a copy from then on.

    Indices, such as those of max pooling, are kept in as few bytes as they need.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        self.tensor = tensor.to(_smallest(tensor)) if tensor.dtype == torch.int64 else tensor.detach()
        self.version = self.tensor._version

    def keep(self) -> None:
        """Keep the present value, as it is about to be overwritten."""
        self.load()
        self.tensor = self.tensor.clone()
        self.version = self.tensor._version

    def load(self) -> Tensor:
        """The value as it was saved. Writes through ``.data``, which torch does not count, go unnoticed.

        Raises:
            ModelError: something has written to it.
        """
        if self.tensor._version != self.version:
            raise ModelError(
                "a tensor of the recorded pass was overwritten since (the model's weights were changed, or an "
                "operation that could not be seen wrote in place): freeze again"
            )
        return self.tensor.to(self.dtype)


class _Shape:
    """Stands for the input of a convolution, of which the product with its weight needs the shape alone."""

    def __init__(self, tensor: Tensor) -> None:
        self.like = torch.empty_like(tensor, device="meta"), tensor.device

    def load(self) -> Tensor:
        """Memory of that shape; nobody reads it."""
        like, device = self.like
        return torch.empty_like(like, device=device)


class Savings:
    """What autograd saves for derivatives, by storage. It holds no recorder: that would close a cycle through C++."""

    def __init__(self) -> None:
        self.by_storage: dict[int, list[weakref.ref[_Saved]]] = {}
        self.shape_only: Tensor | None = None

    def save(self, tensor: Tensor) -> _Saved | _Shape:
        """Keep a tensor, or its shape if that is all that is needed and nobody else keeps it."""
        with torch._C.DisableTorchFunction():
            return self._save(tensor)

    def _save(self, tensor: Tensor) -> _Saved | _Shape:
        storage = storage_of(tensor)
        kept = any(reference() is not None for reference in self.by_storage.get(storage, ()))
        unread = self.shape_only
        if unread is not None and not kept and tensor.shape == unread.shape and tensor.data_ptr() == unread.data_ptr():
            return _Shape(tensor)
        saved = _Saved(tensor)
        self.by_storage.setdefault(storage, []).append(weakref.ref(saved))
        return saved

    def about_to_write(self, storage: int) -> None:
        """Copy what is kept of a storage."""
        for reference in self.by_storage.pop(storage, ()):
            saved = reference()
            if saved is not None:
                saved.keep()


def load(saved: _Saved | _Shape) -> Tensor:
    """The tensor that ``Savings.save`` was given."""
    with torch._C.DisableTorchFunction():
        return saved.load()


def _smallest(indices: Tensor) -> torch.dtype:
    """The smallest integer type that holds the values."""
    if indices.numel() == 0 or int(indices.min()) < 0:
        return torch.int64
    largest = int(indices.max())
    kinds = ((torch.uint8, 2**8), (torch.uint16, 2**16), (torch.int32, 2**31))
    return next((kind for kind, limit in kinds if largest < limit), torch.int64)
