"""Products through the recorded graph: a sparse cotangent is the dense one, and held no longer than it is needed."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from asserts import assert_close
from cost import peak
from nets import NETS, build, example, inputs, randomise
from relupath import freeze


def one_hot(frozen, layer):
    """A cotangent that is not zero at one neuron of the last sample, and at a second one of the first."""
    v = torch.zeros_like(layer.output)
    v[-1].view(-1)[0] = 0.3
    v[0].view(-1)[-1] = 1.7
    return v


@pytest.mark.parametrize("name", NETS)
def test_a_sparse_cotangent_is_the_dense_one(name):
    frozen = freeze(build(name), inputs(name), layers=None)
    for layer in (*frozen.layers, frozen.top):
        v = one_hot(frozen, layer)
        to = [*frozen.inputs, *frozen.layers]
        for got, expected in zip(frozen.vjp({layer: v.to_sparse()}, to), frozen.vjp({layer: v}, to), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.ReLU6, nn.Softplus, nn.Tanh])
def test_layers_at_one_place_share_a_sparse_cotangent(activation):
    model = nn.Sequential(nn.Linear(3, 4), activation(), nn.Identity(), nn.Linear(4, 2), activation()).double().eval()
    frozen = freeze(model, example((3,), 0, 2), layers=["1", "2", "4"])
    for upper, lower in ((frozen.layers[1], frozen.layers[0]), (frozen.top, frozen.layers[2])):
        v = one_hot(frozen, upper)
        assert torch.equal(frozen.vjp({upper: v.to_sparse()}, [lower])[0], v)


def test_sparse_cotangents_are_accounted_for_as_dense_ones_are():
    frozen = freeze(build("mlp"), inputs("mlp"))
    v = one_hot(frozen, frozen.top)
    assert torch.equal(frozen.to_inputs({frozen.top: v.to_sparse()})[0], frozen.to_inputs({frozen.top: v})[0])


@pytest.mark.parametrize("name", ["resnet", "squeeze", "dense"])
def test_sparse_cotangents_add_to_what_comes_from_above(name):
    frozen = freeze(build(name), inputs(name))
    dense = {layer: one_hot(frozen, layer) for layer in (*frozen.layers, frozen.top)}
    mixed = {layer: v.to_sparse() if number % 2 else v for number, (layer, v) in enumerate(dense.items())}
    for got, expected in zip(frozen.vjp(mixed, frozen.inputs), frozen.vjp(dense, frozen.inputs), strict=True):
        assert_close(got, expected)


def test_a_sparse_cotangent_is_not_held():
    parts = [part for _ in range(2) for part in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    frozen = freeze(randomise(nn.Sequential(*parts), 0), example((16, 64, 64), 0, 1))
    lower, upper = frozen.layers
    v = one_hot(frozen, upper)
    sparse = v.to_sparse()
    gc.collect()
    dense = peak(lambda: frozen.vjp({upper: v.clone()}, [lower]))
    assert dense - peak(lambda: frozen.vjp({upper: sparse}, [lower])) >= 0.9 * v.nbytes
