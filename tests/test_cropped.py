"""Cotangents in windows: what comes down through every operation is the full product, at borders too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nets import Lambda, example, randomise
from relupath import freeze
from relupath import _cropped as cropped
from relupath._cropped import OPERATIONS, NotCropped, Way
from relupath._crops import Crops

ROUNDING = 1e-12
CHANNELS = 4


def every_neuron(layer, channels=True, seed=0):
    """A cotangent for every place, of one channel each or of all, of samples in turn."""
    (c, h, w), generator = layer.shape, torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    corners = torch.stack([rows.flatten(), columns.flatten()], 1)
    count = len(corners)
    which = torch.randint(c, (count, 1), generator=generator) if channels else None
    values = torch.randn(count, 1 if channels else c, 1, 1, generator=generator, dtype=layer.output.dtype)
    return Crops(values, layer.shape, torch.arange(count) % len(layer.output), corners, which)


def full(frozen, upper, lower, crops):
    """The products of cotangents, each in full."""
    cotangents = torch.zeros(len(crops), *upper.output.shape, dtype=upper.output.dtype)
    cotangents[torch.arange(len(crops)), crops.samples] = crops.dense()
    (products,) = frozen.vjps({upper: cotangents}, [lower])
    return products[torch.arange(len(crops)), crops.samples]


def assert_windows_are_full(frozen, upper, lower, crops):
    """Products in windows are the full ones to 1e-12, of all channels and of some of them; what they took is given."""
    expected = full(frozen, upper, lower, crops)
    size = float(expected.abs().max())
    pulled = Way(frozen, upper, lower).pull(crops)
    assert float((pulled.dense() - expected).abs().max()) <= ROUNDING * size
    if len(lower.shape) == 3:
        wanted = torch.stack([torch.arange(2) + n % (lower.shape[0] - 1) for n in range(len(crops))])
        some = Way(frozen, upper, lower).pull(crops, wanted)
        chosen = expected[torch.arange(len(crops))[:, None], wanted]
        assert some.channels is not None
        assert float((some.all_places().values - chosen).abs().max()) <= ROUNDING * size
    return pulled


def between(middle, size=(9, 8), seed=0, batch=2):
    """A frozen network: a convolution ``0``, something in the middle ``1``, then all its values as outputs."""
    model = randomise(nn.Sequential(nn.Conv2d(2, CHANNELS, 1), middle, nn.Flatten()), seed)
    frozen = freeze(model, example((2, *size), seed, batch), layers=["0", "1"])
    return frozen, frozen.layer("1"), frozen.layer("0")


def op(function, **parts):
    return Lambda(function, **parts)


WINDOWED = {
    "convolution": lambda: nn.Conv2d(4, 3, 3),
    "convolution of one place": lambda: nn.Conv2d(4, 6, 1),
    "convolution, stride": lambda: nn.Conv2d(4, 3, (3, 2), stride=(2, 3)),
    "convolution, stride beyond the kernel": lambda: nn.Conv2d(4, 3, 2, stride=3),
    "convolution, padding": lambda: nn.Conv2d(4, 3, (5, 3), padding=(3, 1)),
    "convolution, dilation": lambda: nn.Conv2d(4, 3, (3, 2), dilation=(2, 3), padding=1),
    "convolution, all": lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 3), (1, 2), groups=2),
    "convolution, depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "convolution, same": lambda: nn.Conv2d(4, 3, 3, padding="same", dilation=2),
    "convolution, reflect": lambda: nn.Conv2d(4, 3, 3, padding=(2, 1), padding_mode="reflect"),
    "convolution, replicate": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="replicate"),
    "max pooling": lambda: nn.MaxPool2d(2),
    "max pooling, overlap": lambda: nn.MaxPool2d(3, 2, 1),
    "max pooling, dilation": lambda: nn.MaxPool2d((2, 3), (1, 2), (1, 0), (3, 2)),
    "max pooling, ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "max pooling, adaptive": lambda: nn.AdaptiveMaxPool2d((4, 3)),
    "average pooling": lambda: nn.AvgPool2d(2),
    "average pooling, overlap": lambda: nn.AvgPool2d((3, 2), (2, 1), (1, 0)),
    "average pooling, ceil": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "average pooling, without the border": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "average pooling, divisor": lambda: nn.AvgPool2d((3, 2), 2, 1, divisor_override=5),
    "average pooling, adaptive": lambda: nn.AdaptiveAvgPool2d((4, 3)),
    "average pooling, adaptive, of nothing": lambda: nn.AdaptiveAvgPool2d((9, 8)),
    "resizing by areas": lambda: op(lambda m, h: F.interpolate(h, size=(4, 5), mode="area")),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "relu": lambda: nn.ReLU(),
    "leaky relu": lambda: nn.LeakyReLU(0.3),
    "relu6": lambda: nn.ReLU6(),
    "prelu": lambda: nn.PReLU(4),
    "one slope": lambda: nn.PReLU(),
    "hardtanh": lambda: nn.Hardtanh(-0.3, 0.4),
    "clamp": lambda: op(lambda m, h: h.clamp(min=-0.2)),
    "gelu": lambda: nn.GELU(),
    "silu": lambda: nn.SiLU(),
    "elu": lambda: nn.ELU(),
    "modulus": lambda: op(lambda m, h: h.abs()),
    "the larger of two": lambda: op(lambda m, h: torch.maximum(h, m.conv(h)), conv=nn.Conv2d(4, 4, 1)),
    "the smaller of two": lambda: op(lambda m, h: torch.minimum(m.conv(h), h), conv=nn.Conv2d(4, 4, 1)),
    "choice": lambda: op(lambda m, h: torch.where(h > 0.2, h, m.conv(h)), conv=nn.Conv2d(4, 4, 1)),
    "addition": lambda: op(lambda m, h: h + m.conv(h), conv=nn.Conv2d(4, 4, 3, padding=1)),
    "addition in place": lambda: op(lambda m, h: m.conv(h).add_(h, alpha=2), conv=nn.Conv2d(4, 4, 3, padding=1)),
    "addition of a number": lambda: op(lambda m, h: h + 1.5),
    "addition of a row": lambda: op(lambda m, h: h + m.row, row=nn.Parameter(torch.ones(1, 4, 1, 8))),
    "subtraction": lambda: op(lambda m, h: h - m.conv(h), conv=nn.Conv2d(4, 4, 3, padding=1)),
    "subtraction from a number": lambda: op(lambda m, h: 1.5 - h),
    "subtraction of a multiple": lambda: op(lambda m, h: torch.sub(h, m.conv(h), alpha=3), conv=nn.Conv2d(4, 4, 1)),
    "negation": lambda: op(lambda m, h: -h),
    "a number times": lambda: op(lambda m, h: 0.3 * h * 2),
    "division": lambda: op(lambda m, h: h / m.by, by=nn.Parameter(torch.ones(4, 1, 1))),
    "a gate a channel": lambda: op(
        lambda m, h: h * torch.sigmoid(m.conv(h).mean((2, 3), True)), conv=nn.Conv2d(4, 4, 1)
    ),
    "a gate a place": lambda: op(lambda m, h: torch.sigmoid(m.conv(h)) * h, conv=nn.Conv2d(4, 1, 1)),
    "concatenation": lambda: op(lambda m, h: torch.cat([h, m.conv(h), h], 1), conv=nn.Conv2d(4, 3, 3, padding=1)),
    "concatenation, from behind": lambda: op(lambda m, h: torch.cat([m.conv(h), h], -3), conv=nn.Conv2d(4, 3, 1)),
    "concatenation with a constant": lambda: op(
        lambda m, h: torch.cat([h, m.grid.expand(len(h), -1, -1, -1), h], 1), grid=nn.Parameter(torch.ones(1, 2, 9, 8))
    ),
    "padding": lambda: nn.ZeroPad2d((1, 2, 3, 0)),
    "padding of columns": lambda: op(lambda m, h: F.pad(h, (2, 1), value=0.5)),
    "padding, negative": lambda: nn.ZeroPad2d((-2, 1, 2, -3)),
    "padding, reflect": lambda: nn.ReflectionPad2d((3, 1, 0, 2)),
    "padding, replicate": lambda: nn.ReplicationPad2d((3, 1, 0, 2)),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "nearest, odd scale": lambda: nn.Upsample(scale_factor=(1.3, 2.6)),
    "nearest, size": lambda: nn.Upsample(size=(13, 5)),
    "nearest, exact": lambda: nn.Upsample(size=(13, 5), mode="nearest-exact"),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear, odd scale": lambda: nn.Upsample(scale_factor=(0.7, 1.7), mode="bilinear"),
    "bilinear, size and corners": lambda: nn.Upsample(size=(13, 5), mode="bilinear", align_corners=True),
    "bilinear, scale computed again": lambda: nn.Upsample(
        scale_factor=1.7, mode="bilinear", recompute_scale_factor=True
    ),
    "bicubic": lambda: nn.Upsample(scale_factor=(1.4, 2), mode="bicubic"),
    "bicubic, corners": lambda: nn.Upsample(size=(12, 7), mode="bicubic", align_corners=True),
    "a copy": lambda: op(lambda m, h: h.clone()),
    "dropout": lambda: op(lambda m, h: m.dropout(h).clone(), dropout=nn.Dropout2d()),
}
"""Operations that windows go through, on four channels of 9 x 8 places."""


@pytest.mark.parametrize("channels", [True, False], ids=["neurons", "places"])
@pytest.mark.parametrize("name", WINDOWED)
def test_windows_are_full(name, channels):
    frozen, upper, lower = between(WINDOWED[name]())
    pulled = assert_windows_are_full(frozen, upper, lower, every_neuron(upper, channels))
    assert pulled.corners is not None
    assert_windows_are_full(frozen, upper, frozen.inputs[0], every_neuron(upper, channels))
