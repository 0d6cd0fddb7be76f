"""Transposed convolutions faster than torch's own: to few channels, and of each cotangent with kernels of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def by_tap(
    values: Float[Tensor, "N c h w"],
    weight: Float[Tensor, "c d k l"],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Float[Tensor, "N d height width"]:
    """The transposed convolution as one matrix product, of whose results those of every tap are added where it stands.

    To few channels this is faster, where the results are no larger than what they come from.
    """
    (count, _, h, w), (_, d, k, l) = values.shape, weight.shape
    found = (weight.permute(2, 3, 1, 0).flatten(0, 2) @ values.flatten(2)).view(count, k, l, d, h, w)
    height, width = (size * step + 1 for size, step in zip((h - 1, w - 1), stride, strict=True))
    z = values.new_zeros(count, d, height + (k - 1) * dilation[0], width + (l - 1) * dilation[1])
    for i, j in itertools.product(range(k), range(l)):
        top, left = i * dilation[0], j * dilation[1]
        z[:, :, top : top + height : stride[0], left : left + width : stride[1]] += found[:, i, j]
    return z


def by_phase(
    values: Float[Tensor, "N c h w"], weight: Float[Tensor, "c d k l"], stride: int
) -> Float[Tensor, "N d height width"]:
    """The transposed convolution as one of stride 1 to the ``stride^2`` phases of each channel, which are interleaved.

    To few channels this is much faster.
    """
    (c, d, k, l), (h, w) = weight.shape, values.shape[2:]
    taps = [-(-size // stride) for size in (k, l)]
    whole = F.pad(weight, (0, taps[1] * stride - l, 0, taps[0] * stride - k))
    phases = whole.view(c, d, taps[0], stride, taps[1], stride).permute(1, 3, 5, 0, 2, 4)
    kernels = phases.reshape(d * stride**2, c, *taps).flip(2, 3)
    z = F.pixel_shuffle(F.conv2d(values, kernels, padding=(taps[0] - 1, taps[1] - 1)), stride)
    return z[:, :, : (h - 1) * stride + k, : (w - 1) * stride + l]


def each(
    values: Float[Tensor, "N c h w"], weight: Float[Tensor, "N c d k l"], stride: Sequence[int], dilation: Sequence[int]
) -> Float[Tensor, "N d height width"]:
    """The transposed convolution of each with kernels of its own."""
    (count, c, h, w), (_, _, d, k, l) = values.shape, weight.shape
    if (h, w) == (1, 1) and tuple(dilation) == (1, 1):
        return torch.einsum("nc,ncdkl->ndkl", values[:, :, 0, 0], weight)
    together = values.reshape(1, count * c, h, w)
    if tuple(stride) == (1, 1):
        turned = weight.transpose(1, 2).flip(3, 4).reshape(count * d, c, k, l)
        padding = (dilation[0] * (k - 1), dilation[1] * (l - 1))
        z = F.conv2d(together, turned, padding=padding, dilation=tuple(dilation), groups=count)
    else:
        kernels = weight.reshape(count * c, d, k, l)
        z = F.conv_transpose2d(together, kernels, stride=tuple(stride), dilation=tuple(dilation), groups=count)
    return z.view(count, d, *z.shape[2:])
