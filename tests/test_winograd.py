"""Transposed convolutions by Winograd's tiles: they give what torch's own gives, and run where they pay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from asserts import assert_close
from nets import randomise
from relupath import Path, freeze, linear_model, linear_models
from relupath import _winograd as winograd
from test_cropped import ROUNDING, assert_windows_are_full, between, every_neuron


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2), st.integers(0, 2), st.integers(0, 99))
def test_tiles_are_the_transposed_convolution(height, width, top, left, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 3, height, width, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 4, 3, 3, dtype=torch.float64, generator=generator)
    values *= torch.rand(2, 1, height, width, generator=generator) < 0.3 + seed / 100
    top, left = min(top, (height + 1) // 2), min(left, (width + 1) // 2)
    expected = F.conv_transpose2d(values, weight, padding=(top, left))
    found = winograd.conv_transpose(values, weight, (top, left))
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= ROUNDING * float(expected.abs().max())
    assert torch.equal(found == 0, expected == 0)


@pytest.mark.parametrize("padding", [0, 1, (2, 1), (1, 0), 3])
@pytest.mark.parametrize("channels", [True, False], ids=["neurons", "places"])
def test_windows_by_tiles_are_full(monkeypatch, channels, padding):
    for name in ("SIDE", "PLACES", "WIDTH", "WORTH"):
        monkeypatch.setattr(winograd, name, 0)
    middle = nn.Sequential(nn.Conv2d(4, 9, 3, padding=padding), nn.ReLU(), nn.Conv2d(9, 12, 3, padding=1))
    assert_windows_are_full(*(parts := between(middle)), every_neuron(parts[1], channels))


def test_many_wide_convolutions_run_by_tiles(monkeypatch):
    ran, plain = [], winograd.conv_transpose
    monkeypatch.setattr(winograd, "conv_transpose", lambda *args: ran.append(args[2]) or plain(*args))
    convolutions = [nn.Sequential(nn.Conv2d(n, 160, 3, padding=1), nn.ReLU()) for n in (3, 160, 160)]
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(160 * 28 * 28, 2))
    frozen = freeze(randomise(model, 0).float(), torch.randn(1, 3, 28, 28))
    paths = [Path.of([(frozen.layers[-1].name, (c, None, None))]) for c in range(6)]
    models = linear_models(frozen, paths, 1)
    assert ran == [(1, 1)]
    for number in (0, 5):
        one = linear_model(frozen, 1, paths[number])
        assert_close(models.weight[number], one.weight[0])
        assert_close(models.bias[number], one.bias[0])


@pytest.mark.parametrize(
    ("count", "channels", "side", "taps", "dtype"),
    [(12, 256, 11, 3, torch.float32), (1, 256, 28, 3, torch.float32), (12, 96, 224, 3, torch.float32),
     (12, 128, 28, 3, torch.float32), (12, 256, 28, 5, torch.float32), (12, 256, 28, 3, torch.bfloat16)],
)  # fmt: skip
def test_others_do_not(count, channels, side, taps, dtype):
    values = torch.empty(1, 1, 1, 1, dtype=dtype).expand(count, channels, side, side)
    assert not winograd.pays(values, torch.empty(channels, channels, taps, taps, dtype=dtype))
    assert winograd.pays(torch.empty(12, 256, 28, 28), torch.empty(256, 256, 3, 3))
