"""Every activation, piece and rearrangement that has a rule, in each form that it is written in.

Output to the bit, complete, and the weight is that of a twin in plain torch: the model itself where the derivative is
the operation's own; for a gate ``h * phi(h)``, ``h`` times phi as a constant.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asserts import assert_branches, assert_complete
from nets import Branches, Lambda, randomise
from relupath import freeze

C = torch.linspace(-1, 1, 48, dtype=torch.float64).view(2, 4, 6).sin()
MASK = torch.tensor([True, False, True, True, False, True])
LOG2, ROOT2, K = math.log(2), math.sqrt(2), math.sqrt(2 / math.pi)
"""In every case h has shape (2, 4, 6) and crosses zero in general position."""


def given_input():
    return torch.linspace(-1.5, 2, 10, dtype=torch.float64).view(2, 5).sin()


def of_h(function):
    """A function of h alone as one of the module and h; a module stays what it is."""
    return function if isinstance(function, nn.Module) else lambda _, h: function(h)


def assert_forms(forms, twins):
    """Branches by name, each with its twin."""
    model = randomise(Branches([of_h(form) for form in forms.values()]), 3)
    return assert_branches(
        model, given_input(), [lambda _, h, twin=twin: twin(h.clone()) for twin in twins], list(forms)
    )


# --- gates h * phi(h) ---

PHI = {
    "gelu": lambda h: 0.5 * (1 + torch.erf(h / ROOT2)),
    "gelu tanh": lambda h: 0.5 * (1 + torch.tanh(K * (h + 0.044715 * h**3))),
    "quick gelu": lambda h: torch.sigmoid(1.702 * h),
    "silu": torch.sigmoid,
    "mish": lambda h: torch.tanh(torch.log1p(torch.exp(h))),
    "hardswish": lambda h: (h + 3).clamp(0, 6) / 6,
    "elu": lambda h: torch.where(h > 0, 1.0, 0.7 * torch.expm1(h) / h),
    "selu": lambda h: 1.0507009873554805 * torch.where(h > 0, 1.0, 1.6732632423543772 * torch.expm1(h) / h),
    "celu": lambda h: torch.where(h > 0, 1.0, 1.3 * torch.expm1(h / 1.3) / h),
    "softplus shifted": lambda h: (torch.log1p(torch.exp(h)) - LOG2) / h,
    "softplus shifted, beta 2": lambda h: (torch.log1p(torch.exp(2 * h)) - LOG2) / 2 / h,
    "squared relu": lambda h: h.clamp(min=0),
    "tanh": lambda h: torch.tanh(h) / h,
    "softsign": lambda h: 1 / (1 + h.abs()),
    "tanhshrink": lambda h: 1 - torch.tanh(h) / h,
    "logsigmoid, shifted": lambda h: (torch.log(torch.sigmoid(h)) + LOG2) / h,
}


class Shifted(nn.Module):
    """As in SchNet."""

    def __init__(self):
        super().__init__()
        self.softplus = nn.Softplus()

    def forward(self, h):
        return self.softplus(h) - LOG2


def _times(y, factor):
    y *= factor
    return y


FORMS = {
    "gelu": {
        "module": nn.GELU(),
        "function": F.gelu,
        "by erf": lambda h: h * 0.5 * (1 + torch.erf(h / ROOT2)),
        "by erf, as in papers": lambda h: 0.5 * h * (1.0 + (h / ROOT2).erf()),
        "by erf, the gate first": lambda h: ((1 + torch.erf(h / ROOT2)) / 2).mul(h),
    },
    "gelu tanh": {
        "module": nn.GELU(approximate="tanh"),
        "function": lambda h: F.gelu(h, approximate="tanh"),
        "by hand": lambda h: 0.5 * h * (1 + torch.tanh(K * (h + 0.044715 * h**3))),
        "by torch.pow": lambda h: h * (1 + torch.tanh(K * (h + 0.044715 * torch.pow(h, 3)))) * 0.5,
        "by products": lambda h: 0.5 * h * (1 + torch.tanh(h * K * (1 + 0.044715 * h * h))),
    },
    "quick gelu": {"by hand": lambda h: h * torch.sigmoid(1.702 * h)},
    "silu": {
        "module": nn.SiLU(),
        "module in place": nn.SiLU(inplace=True),
        "function": F.silu,
        "function in place": lambda h: F.silu(h.clone(), inplace=True),
        "torch's own in place": lambda h: torch._C._nn.silu_(h.clone()),
        "by hand": lambda h: h * torch.sigmoid(h),
        "by hand, the gate first": lambda h: h.sigmoid() * h,
        "by exp": lambda h: h / (1 + torch.exp(-h)),
        "by a sigmoid by hand": lambda h: h * (1 / (1 + (-h).exp())),
        "mul_": lambda h: h.clone().mul_(h.sigmoid()),
        "imul": lambda h: _times(h.clone(), torch.sigmoid(h)),
        "einsum": lambda h: torch.einsum("bij,bij->bij", h, torch.sigmoid(h)),
        "addcmul": lambda h: torch.addcmul(torch.zeros((), dtype=h.dtype), h, torch.sigmoid(h)),
    },
    "mish": {
        "module": nn.Mish(),
        "module in place": nn.Mish(inplace=True),
        "function": F.mish,
        "by hand": lambda h: h * torch.tanh(F.softplus(h)),
        "in place by hand": lambda h: h.clone().mul_(F.softplus(h).tanh()),
    },
    "hardswish": {
        "module": nn.Hardswish(),
        "module in place": nn.Hardswish(inplace=True),
        "function": F.hardswish,
        "by relu6": lambda h: h * F.relu6(h + 3) / 6,
        "by relu6 in place": lambda h: h * F.relu6(h + 3, inplace=True) / 6,
        "by hardsigmoid": lambda h: h * F.hardsigmoid(h),
        "by hardtanh": lambda h: h * F.hardtanh(h + 3, 0.0, 6.0) / 6,
    },
    "elu": {
        "module": nn.ELU(0.7),
        "module in place": nn.ELU(0.7, inplace=True),
        "function": lambda h: F.elu(h, 0.7),
        "function in place": lambda h: F.elu_(h.clone(), 0.7),
    },
    "selu": {
        "module": nn.SELU(),
        "module in place": nn.SELU(inplace=True),
        "function": torch.selu,
        "function in place": lambda h: torch.selu_(h.clone()),
    },
    "celu": {
        "module": nn.CELU(1.3),
        "module in place": nn.CELU(1.3, inplace=True),
        "function": lambda h: torch.celu(h, 1.3),
        "function in place": lambda h: F.celu_(h.clone(), 1.3),
    },
    "softplus shifted": {"function": lambda h: F.softplus(h) - LOG2, "module": Shifted()},
    "softplus shifted, beta 2": {"function": lambda h: F.softplus(h, beta=2) - LOG2 / 2},
    "squared relu": {
        "power": lambda h: F.relu(h) ** 2,
        "pow": lambda h: h.relu().pow(2),
        "torch.pow": lambda h: torch.pow(torch.relu(h), 2),
        "square": lambda h: F.relu(h).square(),
        "torch.square": lambda h: torch.square(F.relu(h)),
        "float_power": lambda h: F.relu(h).float_power(2),
        "times the signal": lambda h: F.relu(h) * h,
    },
    "tanh": {
        "module": nn.Tanh(),
        "function": torch.tanh,
        "method in place": lambda h: h.clone().tanh_(),
        "F.tanh": lambda h: F.tanh(h),
    },
    "softsign": {"module": nn.Softsign(), "function": F.softsign},
    "tanhshrink": {"module": nn.Tanhshrink(), "function": F.tanhshrink},
    "logsigmoid, shifted": {"function": lambda h: F.logsigmoid(h) + LOG2},
}


@pytest.mark.parametrize("gate", FORMS)
def test_every_form_of_a_gate_has_its_slope(gate):
    phi = PHI[gate]
    assert_forms(FORMS[gate], [lambda h: h * phi(h).detach()] * len(FORMS[gate]))


@pytest.mark.parametrize(("f", "start", "limit"), [(F.softplus, LOG2, 0.5), (F.logsigmoid, -LOG2, 0.5)])
def test_the_value_at_zero_is_the_intercept_of_a_gate(f, start, limit):
    """``f(h) = f(0) + h * phi(h)``, and ``f'(0)`` is the slope where h is zero."""
    model = Lambda(lambda m, x: f(x)).eval()
    frozen = freeze(model, torch.tensor([[0.0, 0.4, -2.0, 1e-12]], dtype=torch.float64))
    assert_complete(frozen, 0)
    assert [float(source.constant) for source in frozen.sources] == [pytest.approx(start)]
    (slope,) = frozen.vjp({frozen.top: torch.ones_like(frozen.output)}, frozen.inputs)
    expected = [limit, (f(torch.tensor(0.4)).item() - start) / 0.4, (f(torch.tensor(-2.0)).item() - start) / -2, limit]
    assert slope.flatten().tolist() == pytest.approx(expected, rel=1e-5)


# --- pieces and affine operations: the derivative is torch's own ---

GRID = torch.linspace(-1.2, 1.2, 60, dtype=torch.float64).view(2, 3, 5, 2).sin()
GRID3 = torch.linspace(-1.2, 1.2, 72, dtype=torch.float64).view(2, 2, 3, 2, 3).cos()
THETA = torch.tensor([[0.8, 0.1, 0.0], [0.0, 1.0, 0.2]], dtype=torch.float64).expand(2, 2, 3)


def image(h):
    return h[:, None]


def volume(h):
    return h.view(2, 1, 2, 2, 6)


def channels(h):
    return h.view(2, 4, 2, 3)


def _set(y, mask, value):
    y[mask] = value
    return y


PIECES = {
    "kin of ReLU": {
        "leaky_relu": nn.LeakyReLU(0.1),
        "leaky_relu in place": nn.LeakyReLU(0.1, inplace=True),
        "leaky_relu by maximum": lambda h: torch.max(0.1 * h, h),
        "leaky_relu by where": lambda h: torch.where(h > 0, h, 0.1 * h),
        "prelu": nn.PReLU(),
        "prelu of channels": nn.PReLU(4),
        "prelu method": lambda h: h.prelu(C[0, :1, 0].abs()),
        "rrelu": nn.RReLU(0.1, 0.4),
        "rrelu in place": nn.RReLU(0.1, 0.4, inplace=True),
        "rrelu_": lambda h: torch.rrelu_(h.clone(), 0.1, 0.4),
        "relu6": nn.ReLU6(),
        "relu6 in place": nn.ReLU6(inplace=True),
        "relu6 by clamp": lambda h: torch.clamp(h, 0, 0.5),
    },
    "bounds": {
        "hardtanh": nn.Hardtanh(-0.3, 0.4),
        "hardtanh in place": nn.Hardtanh(-0.3, 0.4, inplace=True),
        "hardtanh_": lambda h: F.hardtanh_(h.clone(), -0.3, 0.4),
        "clamp": lambda h: h.clamp(-0.3, 0.4),
        "clamp by tensors": lambda h: h.clamp(C - 0.5, C + 0.5),
        "clamp_": lambda h: h.clone().clamp_(max=0.4),
        "clip_": lambda h: h.clone().clip_(-0.3, 0.4),
        "clamp_min_": lambda h: h.clone().clamp_min_(-0.3),
        "threshold": nn.Threshold(0.2, 5.0),
        "threshold in place": nn.Threshold(0.2, 5.0, inplace=True),
        "threshold_": lambda h: torch.threshold_(h.clone(), 0.2, 5.0),
    },
    "absolute values": {
        "abs": lambda h: h.abs(),
        "built-in abs": lambda h: abs(h) + torch.absolute(h.flip(1)),
        "abs_": lambda h: h.clone().abs_(),
        "crelu": lambda h: torch.cat([F.relu(h), F.relu(-h)], -1),
        "relu by a mask": lambda h: h * (h > 0).double(),
        "relu by assignment": lambda h: _set(h.clone(), h < 0, 0.0),
    },
    "extrema": {
        "maximum": lambda h: torch.maximum(h, C),
        "maximum of signals": lambda h: torch.maximum(h, h.flip(1)),
        "minimum": lambda h: h.minimum(C),
        "fmax and fmin": lambda h: torch.fmin(torch.fmax(h, C - 0.4), h.flip(-1)),
        "max": lambda h: h.max(-1).values,
        "max by keyword": lambda h: torch.max(input=h, dim=1, keepdim=True)[0],
        "min": lambda h: h.min(dim=1)[0],
        "amax and amin": lambda h: h.amax((1, 2))[:, None] + h.amin(-1),
        "aminmax": lambda h: torch.aminmax(h, dim=-1).max,
        "maxout": lambda h: h.view(2, 4, 3, 2).max(-1)[0],
    },
    "max pooling": {
        "max_pool1d": nn.MaxPool1d(2),
        "max_pool2d": lambda h: F.max_pool2d(image(h), 2, 1, 1),
        "max_pool2d with ceil": lambda h: nn.MaxPool2d((3, 4), ceil_mode=True)(image(h)),
        "max_pool3d": lambda h: F.max_pool3d(volume(h), 2),
        "max_pool with dilation": lambda h: F.max_pool1d(h, 2, dilation=2),
        "adaptive_max_pool1d": nn.AdaptiveMaxPool1d(4),
        "adaptive_max_pool2d": lambda h: F.adaptive_max_pool2d(image(h), (3, 4)),
        "adaptive_max_pool3d": lambda h: F.adaptive_max_pool3d(volume(h), (1, 2, 4)),
        "adaptive_max_pool with indices": lambda h: F.adaptive_max_pool3d(volume(h), (1, 2, 4), return_indices=True)[0],
    },
    "max un-pooling": {
        "max_unpool1d": lambda h: F.max_unpool1d(*F.max_pool1d(h, 2, return_indices=True), 2),
        "max_unpool2d": lambda h: nn.MaxUnpool2d(2)(*nn.MaxPool2d(2, return_indices=True)(image(h))),
        "max_unpool3d": lambda h: F.max_unpool3d(*F.max_pool3d(volume(h), 2, return_indices=True), 2),
    },
    "order": {
        "sort": lambda h: h.sort(-1).values,
        "sort by keyword": lambda h: torch.sort(h, dim=1, descending=True)[0],
        "argsort and gather": lambda h: h.gather(-1, h.argsort(-1)),
        "take_along_dim": lambda h: torch.take_along_dim(h, h.argsort(1), 1),
        "topk": lambda h: h.topk(3, -1).values,
        "topk as a mask": lambda h: h * (h >= h.topk(3, -1).values[..., -1:]),
        "topk scattered": lambda h: torch.zeros_like(h).scatter(-1, h.topk(3, -1).indices, h.topk(3, -1).values),
        "kthvalue": lambda h: h.kthvalue(2, -1).values,
        "cummax and cummin": lambda h: h.cummax(1)[0] + h.cummin(-1).values,
    },
    "masks": {
        "where": lambda h: torch.where(h > 0, h, C),
        "where method": lambda h: h.where(h > 0, C),
        "where a number": lambda h: torch.where(h > 0.1, h, 1.5),
        "where both are signals": lambda h: torch.where(C > 0, h, 2 * h + 1),
        "masked_fill": lambda h: h.masked_fill(h > 0.2, 2.0),
        "masked_fill_": lambda h: h.clone().masked_fill_(C > 0, torch.tensor(3.0).double()),
        "masked_select": lambda h: h.masked_select(MASK).view(2, -1),
        "masked_scatter": lambda h: h.masked_scatter(C > 0, C),
        "masked mean": lambda h: (h * (C > 0)).sum(1) / (C > 0).sum(1).clamp(min=1),
        "indexed by a mask": lambda h: h[:, :, MASK],
    },
}

AFFINE = {
    "average pooling": {
        "avg_pool1d": nn.AvgPool1d(2),
        "avg_pool2d": lambda h: F.avg_pool2d(image(h), 3, 2, 1, count_include_pad=False),
        "avg_pool3d": lambda h: nn.AvgPool3d(2)(volume(h)),
        "avg_pool2d with a divisor": lambda h: F.avg_pool2d(image(h), 2, divisor_override=3),
        "adaptive_avg_pool1d": nn.AdaptiveAvgPool1d(4),
        "adaptive_avg_pool2d": lambda h: F.adaptive_avg_pool2d(image(h), (3, 4)),
        "adaptive_avg_pool3d": lambda h: F.adaptive_avg_pool3d(volume(h), (1, 2, 4)),
    },
    "resampling": {
        "up-sampling, nearest": nn.Upsample(9),
        "up-sampling, nearest-exact": lambda h: F.interpolate(image(h), size=(5, 9), mode="nearest-exact"),
        "up-sampling, linear": lambda h: F.interpolate(h, 9, mode="linear", align_corners=True),
        "up-sampling, bilinear": lambda h: nn.UpsamplingBilinear2d(scale_factor=2)(image(h)),
        "up-sampling, bicubic": lambda h: F.interpolate(image(h), scale_factor=1.5, mode="bicubic"),
        "up-sampling, trilinear": lambda h: F.interpolate(volume(h), size=(3, 5, 4), mode="trilinear"),
        "down-sampling, area": lambda h: F.interpolate(image(h), size=(2, 3), mode="area"),
        "down-sampling, antialias": lambda h: F.interpolate(image(h), size=(3, 4), mode="bilinear", antialias=True),
    },
    "shuffles": {
        "pixel_shuffle": lambda h: nn.PixelShuffle(2)(channels(h)),
        "pixel_unshuffle": lambda h: F.pixel_unshuffle(image(h), 2),
        "channel_shuffle": lambda h: nn.ChannelShuffle(2)(channels(h)),
        "fold": lambda h: nn.Fold((4, 6), 2)(nn.Unfold(2)(image(h))),
    },
    "sampling at constant places": {
        "grid_sample": lambda h: F.grid_sample(image(h), GRID, align_corners=False),
        "grid_sample, nearest": lambda h: F.grid_sample(image(h), GRID, "nearest", "border", True),
        "grid_sample, bicubic": lambda h: F.grid_sample(
            image(h), GRID, mode="bicubic", padding_mode="reflection", align_corners=True
        ),
        "grid_sample, volume": lambda h: F.grid_sample(volume(h), GRID3, align_corners=False),
        "grid_sample, affine grid": lambda h: F.grid_sample(
            image(h), F.affine_grid(THETA, (2, 1, 4, 6), align_corners=False), align_corners=False
        ),
    },
    "embeddings and tokens": {
        "position embedding": lambda h: h + C[:1],
        "position embedding in place": lambda h: h.clone().add_(C[:1]),
        "rotary position embedding": lambda h: h * C.cos() + torch.cat([-h[..., 3:], h[..., :3]], -1) * C.sin(),
        "class token": lambda h: torch.cat([C[:1, :1].expand(2, -1, -1), h], 1),
        "class token read": lambda h: (torch.cat([C[:1, :1].expand(2, -1, -1), h], 1).cumsum(1))[:, -1],
    },
    "nothing in eval mode": {
        "layer scale": lambda h: h * C[0, 0],
        "dropout": nn.Dropout(0.4),
        "dropout in place": nn.Dropout(0.4, inplace=True),
        "alpha dropout": nn.FeatureAlphaDropout(0.4),
    },
}


@pytest.mark.parametrize("group", [*PIECES, *AFFINE])
def test_pieces_and_affine_operations_have_torchs_own_derivative(group):
    forms = {**PIECES, **AFFINE}[group]
    frozen = assert_forms(forms, forms.values())
    assert {op.kind for op in frozen.operations} <= {"affine", "tested"} | ({"piece"} if group in PIECES else set())


def pooled(windows, p):
    """``y = (sum h**p)**(1/p) = sum h * (h / y)**(p - 1)`` over the last axis, the second factor frozen."""
    y = windows.pow(p).sum(-1, keepdim=True) ** (1 / p)
    return (windows * (windows / y).detach() ** (p - 1)).sum(-1)


def windows2d(h):
    return F.unfold(image(h), 2, stride=2).transpose(1, 2)


LP = {
    "function": (lambda h: F.lp_pool1d(h, 2, 2), lambda h: pooled(h.unflatten(-1, (3, 2)), 2)),
    "module": (nn.LPPool1d(2.0, 3, stride=3), lambda h: pooled(h.unflatten(-1, (2, 3)), 2)),
    "third power": (lambda h: F.lp_pool2d(image(h).abs(), 3.0, 2), lambda h: pooled(windows2d(h.abs()), 3)),
    "by keyword": (
        lambda h: nn.LPPool2d(norm_type=2, kernel_size=2, ceil_mode=True)(image(h)),
        lambda h: pooled(windows2d(h), 2),
    ),
    "volume": (
        lambda h: F.lp_pool3d(h.view(2, 1, 4, 2, 3), 2, (1, 2, 3)),
        lambda h: pooled(h, 2),
    ),
    "sum": (lambda h: F.lp_pool1d(h, 1, 2), lambda h: h.unflatten(-1, (3, 2)).sum(-1)),
}


def test_lp_pooling_is_a_sum_with_frozen_weights():
    frozen = assert_forms({name: f for name, (f, _) in LP.items()}, [twin for _, twin in LP.values()])
    assert {op.kind for op in frozen.operations if op.name.startswith("lp_pool")} == {"gate"}
