"""Cotangents that live on few places and channels of a layer: kept as windows, many at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

WHOLE = 0.6
"""From this share of a layer's places on, a window is not worth its bookkeeping."""
LARGE = 4096
"""From so many entries on, windows are written and added one after the other."""
MANY = 0.25
"""From this share of a layer's neurons on, the places of entries take more memory than zeros between them."""
SLICED = 0.25
"""Up to this share of the channels, they are worth naming,"""
NAMED = 4
"""and up to so many: the kernels of each cotangent take memory of their own."""

Ends: TypeAlias = tuple[Int[Tensor, " N"], Int[Tensor, " N"]]
"""The first of some numbers in each row, and how many there are up to the last one; at least one."""


@dataclass(frozen=True)
class Entries:
    """What is not zero of ``K M`` cotangents, those of K of them at the same places.

    Attributes:
        places: where, counted through M tensors one after the other; each once.
        values: of each of the K.
    """

    places: Int[Tensor, " n"]
    values: Float[Tensor, "K n"]

    @classmethod
    def of(cls, some: Mapping[int, tuple[Int[Tensor, " _"], Float[Tensor, " _"]]], size: int) -> Entries:
        """Those of some of the M: where in a tensor of that size, and what."""
        places = [position.to(values.device) + m * size for m, (position, values) in some.items()]
        return cls(torch.cat(places), torch.cat([values for _, values in some.values()])[None])

    def sparse(self, shape: torch.Size) -> Tensor:
        """The first M in one sparse tensor, of which the places are in order."""
        where, values = torch.stack(torch.unravel_index(self.places, shape)), self.values[0]
        return torch.sparse_coo_tensor(where, values, shape, is_coalesced=True, check_invariants=False)

    def dense(self, shape: Sequence[int], count: int) -> Float[Tensor, "K M ..."]:
        """The M cotangents of a shape with zeros between, K times."""
        whole = self.values.new_zeros(len(self.values), count * math.prod(shape))
        return whole.index_copy_(1, self.places, self.values).view(len(self.values), count, *shape)


@dataclass(frozen=True)
class Crops:
    """N cotangents at one place of the network, zero outside their windows.

    Attributes:
        values: (N, *shape), or windows (N, c, h, w) of a place of shape (C, H, W).
        shape: of the place, without the batch axis.
        samples: to which sample of the batch each belongs.
        corners: the first row and column of each window, which may lie outside the place; None: all of it.
        channels: which channels each has; None: all.
    """

    values: Float[Tensor, "N ..."]
    shape: tuple[int, ...]
    samples: Int[Tensor, " N"]
    corners: Int[Tensor, "N 2"] | None = None
    channels: Int[Tensor, "N c"] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def bytes_each(self) -> int:
        """How many bytes the values of each take."""
        return self.values[0].numel() * self.values.element_size()

    def with_values(self, values: Float[Tensor, "N ..."]) -> Crops:
        """The same windows, other values."""
        return replace(self, values=values)

    def rows(self) -> tuple[Int[Tensor, "N h"], Int[Tensor, "N w"]]:
        """The row and column numbers of each window."""
        (h, w), device = self.values.shape[2:], self.values.device
        corners = torch.zeros(len(self), 2, dtype=torch.int64, device=device) if self.corners is None else self.corners
        return corners[:, :1] + torch.arange(h, device=device), corners[:, 1:] + torch.arange(w, device=device)

    def take(self, of: Tensor) -> Tensor:
        """What a tensor (B, *shape), or one that broadcasts to it, holds in the windows; beyond its border anything."""
        if of.ndim <= len(self.shape):
            of = of.view(*[1] * (len(self.shape) + 1 - of.ndim), *of.shape)
        samples = self.samples if len(of) > 1 else torch.zeros_like(self.samples)
        if self.corners is None and self.channels is None:
            return of if len(of) == 1 else of[samples]
        _, channels, height, width = of.shape
        if self.channels is None and (height, width) == (1, 1):
            return of[samples]
        if self.corners is not None and self.channels is None and min(height, width) > 1:
            return _windows(of, samples, self.corners, self.values.shape[2:])
        rows, columns = self.rows()
        rows = rows.clamp(0, height - 1) if height > 1 else torch.zeros_like(rows[:, :1])
        columns = columns.clamp(0, width - 1) if width > 1 else torch.zeros_like(columns[:, :1])
        if channels == 1:
            which = torch.zeros(1, 1, dtype=torch.int64, device=of.device)
        elif self.channels is None:
            which = torch.arange(channels, device=of.device)[None]
        else:
            which = self.channels
        return of[samples[:, None, None, None], which[:, :, None, None], rows[:, None, :, None],
                  columns[:, None, None, :]]  # fmt: skip

    def inside(self) -> Crops:
        """The same cotangents in windows that do not reach beyond the place."""
        if self.corners is None:
            return self
        height, width = (min(have, size) for have, size in zip(self.values.shape[2:], self.shape[1:], strict=True))
        last = torch.tensor([self.shape[1] - height, self.shape[2] - width], device=self.corners.device)
        corners = torch.minimum(self.corners.clamp(min=0), last)
        if torch.equal(corners, self.corners) and self.values.shape[2:] == (height, width):
            return self
        return self.window(corners, (height, width))

    def dot(self, of: Tensor) -> Float[Tensor, "2 N"]:
        """<cotangent, of> for a tensor (B, *shape), or one that broadcasts to it; and the sum of the terms' sizes."""
        of = self.take(of)
        repeats = [axis for axis, size in enumerate(of.shape) if size == 1 < self.values.shape[axis] and axis > 0]
        terms = (self.values.sum(repeats, keepdim=True) if repeats else self.values) * of
        terms = terms.reshape(len(terms), -1)
        return torch.stack([terms.sum(1), terms.abs().sum(1)])

    def bounded(self) -> Crops:
        """The same, zero where the windows lie outside the place."""
        if self.corners is None:
            return self
        inside = [(n >= 0) & (n < size) for n, size in zip(self.rows(), self.shape[1:], strict=True)]
        if all(bool(part.all()) for part in inside):
            return self
        rows, columns = inside
        return self.with_values(self.values * (rows[:, None, :, None] & columns[:, None, None, :]))

    def dense(self) -> Float[Tensor, "N ..."]:
        """The cotangents with zeros around the windows."""
        if self.corners is None and self.channels is None:
            return self.values
        whole = self.values.new_zeros(len(self), *self.shape)
        self.write_to(whole, torch.arange(len(self), device=whole.device))
        return whole

    def write_to(self, whole: Float[Tensor, "M ..."], rows: Int[Tensor, " N"]) -> None:
        """Write each cotangent to a row of its own of a tensor that is zero there."""
        if self.corners is None and self.channels is None:
            whole[rows] = self.values
            return
        if self._is_large:
            for row, value, (where, inside) in zip(rows.tolist(), self.values, self._slices(), strict=True):
                whole[row][where] = value[inside]
            return
        outside = self.corners is not None and bool((self.corners < 0).any() or (self._last() > 0).any())
        whole.index_put_(replace(self, samples=rows)._places(), self.values, accumulate=outside)

    def all_channels(self) -> Crops:
        """The same with every channel in its place."""
        if self.channels is None:
            return self
        values = self.values.new_zeros(len(self), self.shape[0], *self.values.shape[2:])
        where = self.channels[:, :, None, None].expand_as(self.values)
        return replace(self, values=values.scatter_add_(1, where, self.values), channels=None)

    def all_places(self) -> Crops:
        """The same without windows."""
        if self.corners is None:
            return self
        return replace(self, values=replace(self, channels=None, shape=(self.values.shape[1], *self.shape[1:])).dense(),
                       corners=None)  # fmt: skip

    def simplest(self) -> Crops:
        """Without windows or channels where these are nearly all there are."""
        if len(self.shape) != 3:
            return self
        crops, (c, h, w) = self, self.values.shape[1:]
        if crops.corners is not None and h * w >= WHOLE * self.shape[1] * self.shape[2]:
            crops = crops.all_places()
        return crops if few_channels(c, self.shape[0]) else crops.all_channels()

    def of_channels(self, channels: Int[Tensor, "N c"]) -> Crops:
        """Some channels of each, given by their numbers; those that it has not are zero."""
        if self.channels is None:
            where = channels[:, :, None, None].expand(-1, -1, *self.values.shape[2:])
            return replace(self, values=self.values.gather(1, where), channels=channels)
        same = (self.channels[:, None, :] == channels[:, :, None]).to(self.values.dtype)
        return replace(self, values=torch.einsum("nij,njhw->nihw", same, self.values), channels=channels)

    @property
    def form(self) -> tuple[object, ...]:
        """What cotangents that stand in one tensor have in common."""
        return self.values.shape[1:], self.shape, self.corners is None, self.channels is None

    def select(self, which: Int[Tensor, " M"] | slice) -> Crops:
        """Some of the N, in any order and number."""
        corners = None if self.corners is None else self.corners[which]
        channels = None if self.channels is None else self.channels[which]
        return Crops(self.values[which], self.shape, self.samples[which], corners, channels)

    def units(
        self, which: Int[Tensor, " M"], channel: Int[Tensor, " M"] | None, corner: Int[Tensor, "M 2"] | None
    ) -> Crops:
        """One channel, one place, or one channel at one place, of some of the N; what they have not is zero."""
        if corner is None:
            return self.select(which).of_channels(channel[:, None]) if channel is not None else self.select(which)
        mine = 0 if self.corners is None else self.corners[which]
        row, column = (corner - mine).unbind(1)
        height, width = self.values.shape[2:]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        place = row.clamp(0, height - 1), column.clamp(0, width - 1)
        channels = None if self.channels is None else self.channels[which]
        if channel is None or channels is not None:
            values = self.values[which, :, *place]
        else:
            values, channels = self.values[which, channel, *place][:, None], channel[:, None]
        found = Crops((values * inside[:, None])[:, :, None, None], self.shape, self.samples[which], corner, channels)
        return found if channel is None else found.of_channels(channel[:, None])

    @classmethod
    def placed(cls, entries: Entries, shape: tuple[int, ...], samples: Int[Tensor, " M"]) -> Crops:
        """The ``K M`` cotangents with these entries, in the smallest windows of one size, with few channels.

        Args:
            entries: of the cotangents; row ``k M + m`` is the k-th at the places of the m-th.
            shape: of the place.
            samples: to which sample each of the M belongs.
        """
        times, count, size = len(entries.values), len(samples), math.prod(shape)
        if len(shape) != 3 or len(entries.places) > MANY * count * size:
            return cls(entries.dense(shape, count).flatten(0, 1), shape, samples.repeat(times)).shrunk()
        row, position = entries.places // size, entries.places % size
        channel, place = position // (shape[1] * shape[2]), position % (shape[1] * shape[2])
        used = torch.zeros(count, shape[0], dtype=torch.bool, device=row.device)
        used[row, channel] = True
        channels, kept = _few(used), shape[0]
        if channels is not None:
            channel, kept = (channels[row] == channel[:, None]).to(torch.uint8).argmax(1), channels.shape[1]
        y, x, (height, width) = place // shape[2], place % shape[2], shape[1:]
        corners, found = None, _smallest([_ends_of(i, row, count, n) for i, n in ((y, height), (x, width))], shape)
        if found is not None:
            corners, (height, width) = found
            y, x = y - corners[row, 0], x - corners[row, 1]
        where = ((row * kept + channel) * height + y) * width + x
        values = Entries(where, entries.values).dense((kept, height, width), count).flatten(0, 1)
        corners, channels = (None if t is None else t.repeat(times, 1) for t in (corners, channels))
        return cls(values, shape, samples.repeat(times), corners, channels)

    def shrunk(self) -> Crops:
        """The same cotangents, which have no windows yet, in the smallest windows of one size, with few channels."""
        if len(self.shape) != 3 or self.corners is not None:
            return self
        channels = _few(self.values.flatten(2).any(2)) if self.channels is None else None
        crops = self if channels is None else self.of_channels(channels)
        places = crops.values.any(1)
        found = _smallest([_ends(places.any(axis)) for axis in (2, 1)], self.shape)
        return crops if found is None else crops.window(*found)

    def sum_into(self, total: Float[Tensor, "B *shape"], factors: Float[Tensor, " N"]) -> None:
        """Add the cotangents, each times a factor, to those of their samples."""
        if self.corners is None and self.channels is None:
            mine = (self.samples == torch.arange(len(total), device=total.device)[:, None]) * factors
            total += (mine @ self.values[..., None].flatten(1)).view(total.shape)
            return
        if self._is_large:
            rows = zip(self.samples.tolist(), self.values, factors.tolist(), self._slices(), strict=True)
            for b, value, factor, (where, inside) in rows:
                total[b][where].add_(value[inside], alpha=factor)
            return
        values = self.values * factors.view(-1, *[1] * (self.values.ndim - 1))
        total.index_put_(self._places(), values, accumulate=True)

    @property
    def _is_large(self) -> bool:
        """Whether the windows have all channels, and so many entries that they are handled one after the other."""
        return self.corners is not None and self.channels is None and math.prod(self.values.shape[1:]) >= LARGE

    def _slices(self) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """Where each window stands, and what of it is not beyond the border."""
        for corner in self.corners.tolist() if self.corners is not None else ():
            sides = [*zip(corner, self.values.shape[2:], self.shape[1:], strict=True)]
            where = [slice(max(0, start), max(0, start + size)) for start, size, _ in sides]
            inside = [slice(max(0, -start), max(0, whole - start)) for start, _, whole in sides]
            yield (slice(None), *where), (slice(None), *inside)

    def _last(self) -> Int[Tensor, "N 2"]:
        """How far the windows reach beyond the last row and column."""
        rows, columns = self.rows()
        return torch.stack([rows[:, -1] - self.shape[1] + 1, columns[:, -1] - self.shape[2] + 1], 1)

    def _places(self) -> tuple[Tensor, ...]:
        """Where the windows' entries stand in (B, *shape); those outside, which are zero, at the border."""
        rows, columns = (n.clamp(0, size - 1) for n, size in zip(self.rows(), self.shape[1:], strict=True))
        channels = torch.arange(self.shape[0], device=rows.device)[None] if self.channels is None else self.channels
        return (self.samples[:, None, None, None], channels[:, :, None, None], rows[:, None, :, None],
                columns[:, None, None, :])  # fmt: skip

    def window(self, corners: Int[Tensor, "N 2"], size: tuple[int, int]) -> Crops:
        """Their values in other windows."""
        start = corners if self.corners is None else corners - self.corners
        values = _windows(self.values, torch.arange(len(self), device=corners.device), start, size)
        return replace(self, values=values, corners=corners)


def _windows(
    of: Shaped[Tensor, "B C H W"], samples: Int[Tensor, " N"], corners: Int[Tensor, "N 2"], size: Sequence[int]
) -> Shaped[Tensor, "N C h w"]:
    """What a tensor holds in windows of one size; zero beyond its border."""
    height, width = size
    have = torch.tensor(of.shape[2:], device=of.device)
    before = (-corners).amax(0).clamp(min=0)
    after = (corners + torch.tensor(size, device=of.device) - have).amax(0).clamp(min=0)
    (top, left), (bottom, right) = before.tolist(), after.tolist()
    of = F.pad(of, (left, right, top, bottom)) if top or left or bottom or right else of
    _, channels, *whole = of.shape
    sample, channel, row, column = of.stride()
    count = 1 + (len(of) - 1) * sample + (whole[0] - height) * row + (whole[1] - width) * column
    every = of.as_strided((count, channels, height, width), (1, channel, row, column))
    starts = samples * sample + (corners + before) @ torch.tensor([row, column], device=of.device)
    return every.index_select(0, starts)


def few_channels(count: int, channels: int) -> bool:
    """Whether so many of a layer's channels are worth naming."""
    return count == 1 or count <= min(NAMED, SLICED * channels)


def added(some: Sequence[Crops]) -> Crops:
    """The sum of cotangents at the same place, in windows that hold all of theirs."""
    first = some[0]
    if len(some) == 1:
        return first
    if len(first.shape) == 3:
        if not all(_equal(crops.channels, first.channels) for crops in some):
            some = [crops.all_channels() for crops in some]
        corners = [crops.corners for crops in some if crops.corners is not None]
        if len(corners) < len(some):
            some = [crops.all_places() for crops in some]
        else:
            starts = torch.stack(corners)
            sizes = torch.tensor([list(crops.values.shape[2:]) for crops in some], device=starts.device)
            height, width = (starts + sizes[:, None] - starts.amin(0)).amax((0, 1)).tolist()
            some = [crops.window(starts.amin(0), (height, width)) for crops in some]
    return some[0].with_values(functools.reduce(torch.add, [crops.values for crops in some])).simplest()


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def joined(some: Sequence[Crops]) -> Crops:
    """Cotangents of one form, one after the other."""
    values, samples = (torch.cat(column) for column in zip(*((c.values, c.samples) for c in some), strict=True))
    corners, channels = (
        None if column[0] is None else torch.cat([part for part in column if part is not None])
        for column in zip(*((c.corners, c.channels) for c in some), strict=True)
    )
    return Crops(values, some[0].shape, samples, corners, channels)


def _few(used: Bool[Tensor, "N C"]) -> Int[Tensor, "N c"] | None:
    """The channels that each uses, equally many of each; None where that are too many to be named."""
    count = max(1, int(used.sum(1).max()))
    if not few_channels(count, used.shape[1]):
        return None
    return used.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]


def _smallest(ends: Sequence[Ends], shape: tuple[int, ...]) -> tuple[Int[Tensor, "N 2"], tuple[int, int]] | None:
    """The corners and the size of windows that hold the live rows and columns; None where that is nearly all."""
    height, width = (int(size.max()) for _, size in ends)
    if height * width >= WHOLE * shape[1] * shape[2]:
        return None
    last = shape[1] - height, shape[2] - width
    return torch.stack([first.clamp(max=most) for (first, _), most in zip(ends, last, strict=True)], 1), (height, width)


def _ends(live: Bool[Tensor, "N size"]) -> Ends:
    """The ends of what is live."""
    row, number = live.nonzero().unbind(1)
    return _ends_of(number, row, *live.shape)


def _ends_of(number: Int[Tensor, " n"], row: Int[Tensor, " n"], count: int, size: int) -> Ends:
    """The ends of numbers below a size that belong to rows."""
    first = row.new_full((count,), size).scatter_reduce(0, row, number, "amin")
    last = row.new_full((count,), -1).scatter_reduce(0, row, number, "amax")
    alive = last >= 0
    return torch.where(alive, first, 0), torch.where(alive, last - first + 1, 1)
