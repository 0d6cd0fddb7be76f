"""Gates and scales in each form that they are written in: output and weight are a twin's that has them as constants."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asserts import assert_branches, assert_close, assert_complete, assert_twin
from nets import Branches, Lambda, example, randomise
from relupath import freeze
from relupath.errors import IncompleteError, UnsupportedOperation

EPS = 1e-5
W6 = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
BIAS = torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4).sin()
CAUSAL = torch.full((4, 4), -torch.inf, dtype=torch.float64).triu(1)
PADDING = torch.tensor([[False, False, False, True], [False, True, False, True]])


def given_input():
    return torch.linspace(-1.5, 2, 10, dtype=torch.float64).view(2, 5).sin()


def assert_twins(cases, to_the_bit=True, **parts):
    """Branches by name, each with its twin."""
    model = randomise(Branches([branch for branch, _ in cases.values()], **parts), 3)
    return model, assert_branches(model, given_input(), [twin for _, twin in cases.values()], list(cases), to_the_bit)


def own(function):
    """A function of h alone as a function of the module and h."""
    return lambda m, h: function(h)


# --- scales: what a normalisation divides by ---


def centred(h, axes):
    return h - h.mean(axes, keepdim=True)


def standard(h, axes, eps=EPS):
    return centred(h, axes) / (h.var(axes, keepdim=True, unbiased=False) + eps).sqrt().detach()


def affine(m, y):
    """Weight and bias of a norm over channels."""
    shape = (-1, *[1] * (y.ndim - 2))
    return y * m.weight.view(shape) + m.bias.view(shape)


def grouped(h, groups):
    return standard(h.reshape(len(h), groups, -1), -1).view_as(h)


def by_moments(h):
    mean = h.mean(-1, keepdim=True)
    return (h - mean) * torch.rsqrt((h * h).mean(-1, keepdim=True) - mean * mean + EPS)


def layer_norm_by_hand(h):
    mean = h.mean(dim=-1, keepdim=True)
    deviation = ((h - mean) ** 2).mean(dim=-1, keepdim=True)
    return (h - mean) / torch.sqrt(deviation + EPS)


def in_place(h):
    h = h - 1
    h -= h.mean(-1, keepdim=True)
    h /= torch.sqrt(h.square().mean(-1, keepdim=True) + EPS)
    return h


def pictures(h):
    return h.unflatten(-1, (2, 3))


def rms_twin(h, eps=1e-6):
    return h / (h.square().mean(-1, keepdim=True) + eps).sqrt().detach()


def l2_twin(h, axis=-1):
    return h / h.norm(dim=axis, keepdim=True).detach()


NORMS = {
    "layer norm": {
        "LayerNorm": (nn.LayerNorm(6), lambda m, h: standard(h, -1) * m.weight + m.bias),
        "LayerNorm of two axes": (nn.LayerNorm((4, 6)), lambda m, h: standard(h, (1, 2)) * m.weight + m.bias),
        "LayerNorm without parameters": (nn.LayerNorm(6, elementwise_affine=False), own(lambda h: standard(h, -1))),
        "LayerNorm without bias": (nn.LayerNorm(6, bias=False), lambda m, h: standard(h, -1) * m.weight),
        "torch.layer_norm": (
            lambda m, h: torch.layer_norm(h, (6,), W6, None, 0.1),
            own(lambda h: standard(h, -1, 0.1) * W6),
        ),
        "layer norm by mean, power and sqrt": (own(layer_norm_by_hand), own(lambda h: standard(h, -1))),
        "layer norm by var": (
            own(lambda h: (h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, keepdim=True, unbiased=False) + EPS)),
            own(lambda h: standard(h, -1)),
        ),
        "layer norm by rsqrt": (
            own(lambda h: centred(h, -1) * torch.rsqrt(torch.var(h, dim=-1, keepdim=True, correction=0) + EPS)),
            own(lambda h: standard(h, -1)),
        ),
        "layer norm by std": (
            own(lambda h: W6 * centred(h, -1) / (h.std(-1, keepdim=True) + EPS) + W6),
            own(lambda h: W6 * centred(h, -1) / (h.std(-1, keepdim=True) + EPS).detach() + W6),
        ),
        "layer norm by moments": (own(by_moments), own(lambda h: standard(h, -1))),
        "layer norm in place": (own(in_place), own(lambda h: standard(h, -1))),
        "layer norm of channels": (
            own(lambda h: (h - h.mean(1, keepdim=True)) / ((h - h.mean(1, True)).pow(2).mean(1, True) + EPS).sqrt()),
            own(lambda h: standard(h, 1)),
        ),
    },
    "RMS norm": {
        "RMSNorm": (nn.RMSNorm(6, eps=1e-6), lambda m, h: rms_twin(h) * m.weight),
        "RMSNorm of two axes": (
            nn.RMSNorm((4, 6), eps=1e-6, elementwise_affine=False),
            own(lambda h: rms_twin(h.flatten(1)).view_as(h)),
        ),
        "torch.rms_norm": (lambda m, h: torch.rms_norm(h, (6,), W6), own(lambda h: rms_twin(h, 2**-52) * W6)),
        "RMS norm by pow and rsqrt": (
            own(lambda h: W6 * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6))),
            own(lambda h: W6 * rms_twin(h)),
        ),
        "RMS norm by square and sqrt": (
            own(lambda h: h / torch.sqrt(torch.mean(torch.square(h), dim=-1, keepdim=True) + 1e-6)),
            own(rms_twin),
        ),
        "RMS norm by norm": (
            own(lambda h: h / (h.norm(2, dim=-1, keepdim=True) * 6**-0.5 + 1e-8)),
            own(lambda h: h / (h.norm(2, dim=-1, keepdim=True) * 6**-0.5 + 1e-8).detach()),
        ),
    },
    "group norm": {
        "GroupNorm": (nn.GroupNorm(2, 4), lambda m, h: affine(m, grouped(h, 2))),
        "GroupNorm of pictures": (
            lambda m, h: m.norm(pictures(h)).flatten(2),
            lambda m, h: affine(m.norm, grouped(h, 2)),
        ),
        "GroupNorm of vectors": (
            lambda m, h: m.norm24(h.flatten(1)),
            lambda m, h: affine(m.norm24, grouped(h.flatten(1), 3)),
        ),
        "torch.group_norm": (lambda m, h: torch.group_norm(h, 4), own(lambda h: grouped(h, 4))),
    },
    "instance norm": {
        "InstanceNorm1d": (nn.InstanceNorm1d(4), own(lambda h: standard(h, -1))),
        "InstanceNorm1d, affine": (nn.InstanceNorm1d(4, affine=True), lambda m, h: affine(m, standard(h, -1))),
        "InstanceNorm1d, one sample at a time": (
            lambda m, h: torch.stack([m.instance1(sample) for sample in h]),
            own(lambda h: standard(h, -1)),
        ),
        "InstanceNorm2d": (
            lambda m, h: m.instance2(pictures(h)).flatten(2),
            lambda m, h: affine(m.instance2, standard(h, -1)),
        ),
        "InstanceNorm3d": (
            lambda m, h: m.instance3(pictures(h)[:, :, None]).flatten(2),
            own(lambda h: standard(h, -1)),
        ),
    },
    "L2 and other norms": {
        "L2 normalisation": (own(lambda h: F.normalize(h, dim=-1)), own(l2_twin)),
        "L2 normalisation of channels": (own(F.normalize), own(lambda h: l2_twin(h, 1))),
        "L1 normalisation": (own(lambda h: F.normalize(h, 1.0, 2)), own(lambda h: h / h.abs().sum(-1, True).detach())),
        "L2 by norm": (own(lambda h: h / h.norm(dim=-1, keepdim=True)), own(l2_twin)),
        "L2 by torch.norm and clamp": (own(lambda h: h / torch.norm(h, 2, -1, True).clamp(min=1e-12)), own(l2_twin)),
        "L2 by torch.linalg": (
            own(
                lambda h: h.div(
                    torch.linalg.vector_norm(h, dim=-1, keepdim=True) + torch.linalg.norm(h, dim=-1)[..., None]
                )
            ),
            own(lambda h: l2_twin(h) / 2),
        ),
        "L2 by sqrt": (own(lambda h: h / torch.sqrt((h * h).sum(-1, keepdim=True))), own(l2_twin)),
        "L2 by rsqrt, in place": (
            own(lambda h: h.clone().mul_(torch.sum(h**2, -1, keepdim=True).rsqrt())),
            own(l2_twin),
        ),
        "L2 in place": (own(lambda h: h.clone().div_(h.norm(dim=-1, keepdim=True))), own(l2_twin)),
        "global response norm": (
            own(lambda h: W6 * (h * _response(h)) + W6 + h),
            own(lambda h: W6 * (h * _response(h).detach()) + W6 + h),
        ),
    },
    "weight standardisation": {
        "weight standardisation": (
            lambda m, h: F.conv1d(h, _standardised(m.conv.weight), m.conv.bias, padding=1),
            lambda m, h: F.conv1d(h, _standardised(m.conv.weight).detach(), m.conv.bias, padding=1),
        ),
        "weight standardisation by F.batch_norm": (
            lambda m, h: F.conv1d(h, _standardised_as_timm(m.conv.weight), m.conv.bias, padding=1),
            lambda m, h: F.conv1d(h, _standardised_as_timm(m.conv.weight).detach(), m.conv.bias, padding=1),
        ),
    },
}


def _response(h):
    size = torch.norm(h, p=2, dim=1, keepdim=True)
    return size / (size.mean(dim=-1, keepdim=True) + 1e-6)


def _standardised(weight):
    deviation, mean = torch.std_mean(weight, dim=(1, 2), keepdim=True)
    return (weight - mean) / (deviation + EPS)


def _standardised_as_timm(weight):
    flat = weight.reshape(1, len(weight), -1)
    return F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(weight)


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_is_linear_with_its_scale_frozen(kind):
    assert_twins(NORMS[kind], norm=nn.GroupNorm(2, 4), norm24=nn.GroupNorm(3, 24), conv=nn.Conv1d(4, 3, 3),
                 instance1=nn.InstanceNorm1d(4), instance2=nn.InstanceNorm2d(4, affine=True),
                 instance3=nn.InstanceNorm3d(4))  # fmt: skip


# --- gates: what multiplies a signal ---


def detached(function):
    return lambda h: function(h).detach()


def excited(squash):
    """The gate of squeeze-and-excitation, from parts of the module."""
    return lambda m, h: squash(m.up(F.relu(m.down(h.mean(-1, keepdim=True)))))


def halves(h):
    return h.chunk(2, -1)


GATED = {
    "squeeze and excite": {
        "squeeze and excite": (
            lambda m, h: h * excited(torch.sigmoid)(m, h),
            lambda m, h: h * excited(torch.sigmoid)(m, h).detach(),
        ),
        "squeeze and excite in place": (
            lambda m, h: h.clone().mul_(excited(nn.Sigmoid())(m, h).expand(-1, -1, 6)),
            lambda m, h: h * excited(torch.sigmoid)(m, h).detach(),
        ),
        "squeeze and excite, the gate first": (
            lambda m, h: excited(torch.Tensor.sigmoid)(m, h) * F.relu(h),
            lambda m, h: excited(torch.sigmoid)(m, h).detach() * F.relu(h),
        ),
        "squeeze and excite, hard": (
            lambda m, h: h * excited(nn.Hardsigmoid())(m, h),
            lambda m, h: h * excited(F.hardsigmoid)(m, h).detach(),
        ),
        "squeeze and excite, hard in place": (
            lambda m, h: h * excited(lambda z: F.hardsigmoid(z, inplace=True))(m, h),
            lambda m, h: h * excited(F.hardsigmoid)(m, h).detach(),
        ),
        "squeeze and excite, relu6": (
            lambda m, h: h * (excited(lambda z: F.relu6(z + 3.0))(m, h) / 6.0),
            lambda m, h: h * excited(F.hardsigmoid)(m, h).detach(),
        ),
        "squeeze and excite, soft-max": (
            lambda m, h: h * excited(lambda z: z.softmax(1))(m, h),
            lambda m, h: h * excited(lambda z: z.softmax(1))(m, h).detach(),
        ),
        "spatial attention": (
            lambda m, h: h * torch.sigmoid(torch.cat([h.mean(1, True), h.amax(1, True)], 1).sum(1, True)),
            lambda m, h: h * torch.sigmoid(h.mean(1, True) + h.amax(1, True)).detach(),
        ),
    },
    "gated linear units": {
        "GLU": (lambda m, h: nn.GLU()(h), own(lambda h: halves(h)[0] * halves(h)[1].sigmoid().detach())),
        "GLU of channels": (lambda m, h: F.glu(h, dim=1), own(lambda h: h[:, :2] * h[:, 2:].sigmoid().detach())),
        "GLU by hand": (
            own(lambda h: h[..., :3] * torch.sigmoid(h[..., 3:])),
            own(lambda h: h[..., :3] * torch.sigmoid(h[..., 3:]).detach()),
        ),
        "GEGLU": (
            own(lambda h: halves(h)[0] * F.gelu(halves(h)[1])),
            own(lambda h: halves(h)[0] * F.gelu(halves(h)[1]).detach()),
        ),
        "GEGLU, tanh": (
            own(lambda h: F.gelu(halves(h)[0], approximate="tanh") * halves(h)[1]),
            own(lambda h: F.gelu(halves(h)[0], approximate="tanh").detach() * halves(h)[1]),
        ),
        "GEGLU of modules": (
            lambda m, h: m.tail(m.act(m.gate(h)) * m.value(h)),
            lambda m, h: m.tail(F.gelu(m.gate(h)).detach() * m.value(h)),
        ),
        "SwiGLU": (
            lambda m, h: m.tail(F.silu(m.gate(h)) * m.value(h)),
            lambda m, h: m.tail(F.silu(m.gate(h)).detach() * m.value(h)),
        ),
        "SwiGLU in place": (
            lambda m, h: m.value(h).mul_(F.silu(m.gate(h), inplace=True)),
            lambda m, h: m.value(h) * F.silu(m.gate(h)).detach(),
        ),
        "ReGLU": (
            lambda m, h: F.relu(m.gate(h)) * m.value(h),
            lambda m, h: F.relu(m.gate(h)).detach() * m.value(h),
        ),
        "gated tanh": (
            lambda m, h: torch.tanh(m.value(h)) * torch.sigmoid(m.gate(h)),
            lambda m, h: m.value(h) * (torch.tanh(m.value(h)) / m.value(h) * torch.sigmoid(m.gate(h))).detach(),
        ),
    },
    "more than one gate": {
        "highway": (
            lambda m, h: _highway(torch.sigmoid(m.gate(h)), F.relu(m.value(h)), h),
            lambda m, h: _highway(torch.sigmoid(m.gate(h)).detach(), F.relu(m.value(h)), h),
        ),
        "gates in one": (
            own(lambda h: _two(torch.sigmoid(h).chunk(2, -1), h)),
            own(lambda h: _two(torch.sigmoid(h).detach().chunk(2, -1), h)),
        ),
        "mixture of experts": (
            lambda m, h: torch.einsum("bte,betd->btd", m.gate(h)[..., :2].softmax(-1), torch.stack([m.value(h), h], 1)),
            lambda m, h: (m.gate(h)[..., :2].softmax(-1).detach().unsqueeze(-1) * torch.stack([m.value(h), h], 2)).sum(
                2
            ),
        ),
        "top-2 mixture": (
            lambda m, h: _top2(m.gate(h), m.value(h), h),
            lambda m, h: _top2(m.gate(h).detach(), m.value(h), h),
        ),
    },
}


def _highway(gate, new, old):
    return gate * new + (1 - gate) * old


def _two(gates, h):
    return gates[0] * h[..., :3] - h[..., 3:] * gates[1]


def _top2(logits, a, b):
    weights, indices = logits.softmax(-1).topk(2, -1)
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights[..., :1] * a + weights[..., 1:] * b) * (indices[..., :1] > 2)


@pytest.mark.parametrize("kind", GATED)
def test_a_gate_scales_a_signal(kind):
    assert_twins(GATED[kind], gate=nn.Linear(6, 6), value=nn.Linear(6, 6), tail=nn.Linear(6, 6), act=nn.GELU(),
                 down=nn.Conv1d(4, 3, 1), up=nn.Conv1d(3, 4, 1))  # fmt: skip


# --- attention ---


def heads(h):
    return h.unflatten(-1, (2, 3)).transpose(1, 2)


def attended(q, k, v, mask=0.0, scale=None):
    """Attention with its probabilities as constants."""
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale) + mask
    return torch.softmax(logits, -1).detach() @ v


def by_exp(q, k, v):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    powers = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    return (powers / powers.sum(dim=-1, keepdim=True)) @ v


def by_bmm_in_place(h):
    scores = torch.bmm(h, h.transpose(1, 2))
    scores /= math.sqrt(6)
    scores += BIAS
    scores.masked_fill_(CAUSAL < 0, -torch.inf)
    return torch.bmm(F.dropout(F.softmax(scores, dim=-1), 0.1, training=False), h)


def by_assignment(h):
    scores = h @ h.mT * 6**-0.5
    scores[:, CAUSAL < 0] = float("-inf")
    return nn.Softmax(dim=-1)(scores) @ h


sdpa = F.scaled_dot_product_attention
ATTENTION = {
    "by hand": {
    "q @ k.T": (
        own(lambda h: ((h @ h.flip(1).transpose(-2, -1)) / math.sqrt(6)).softmax(dim=-1) @ h),
        own(lambda h: attended(h, h.flip(1), h)),
    ),
    "of heads": (
        own(lambda h: (F.softmax(heads(h) @ heads(h).mT * 3**-0.5, -1) @ heads(h)).transpose(1, 2).flatten(2)),
        own(lambda h: attended(heads(h), heads(h), heads(h)).transpose(1, 2).flatten(2)),
    ),
    "by exp and sum": (own(lambda h: by_exp(h, h.flip(1), h)), own(lambda h: attended(h, h.flip(1), h))),
    "by bmm, in place, with a mask": (own(by_bmm_in_place), own(lambda h: attended(h, h, h, BIAS + CAUSAL))),
    "by assignment": (own(by_assignment), own(lambda h: attended(h, h, h, CAUSAL))),
    "by baddbmm": (
        own(lambda h: torch.bmm(torch.baddbmm(BIAS.expand(2, 4, 4), h, h.mT, alpha=0.4).softmax(-1), h)),
        own(lambda h: attended(h, h, h, BIAS, 0.4)),
    ),
    "by baddbmm on nothing": (
        own(lambda h: torch.baddbmm(h.new_zeros(2, 4, 4), h, h.mT, beta=0, alpha=0.4).softmax(-1).bmm(h)),
        own(lambda h: attended(h, h, h, scale=0.4)),
    ),
    },
    "by einsum": {
    "by einsum": (
        own(lambda h: torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", h, h).softmax(-1), h)),
        own(lambda h: attended(h, h, h, scale=1.0)),
    ),
    "by einsum, of heads": (
        own(lambda h: _einsum_heads(h.unflatten(-1, (2, 3)))),
        own(lambda h: attended(heads(h), heads(h), heads(h), scale=1.0).transpose(1, 2)),
    ),
    },
    "kinds": {
    "by log_softmax": (
        own(lambda h: torch.log_softmax(h @ h.mT, -1).exp() @ h),
        own(lambda h: attended(h, h, h, scale=1.0)),
    ),
    "in single precision": (
        own(lambda h: F.softmax(h @ h.mT, -1, dtype=torch.float32).to(h.dtype) @ h),
        own(lambda h: F.softmax(h @ h.mT, -1, dtype=torch.float32).to(h.dtype).detach() @ h),
    ),
    "of cosines": (
        own(lambda h: (F.normalize(h, dim=-1) @ F.normalize(h, dim=-1).mT * 5).softmax(-1) @ h),
        own(lambda h: attended(l2_twin(h), l2_twin(h), h, scale=5)),
    ),
    "of sigmoids": (own(lambda h: torch.sigmoid(h @ h.mT) @ h), own(lambda h: torch.sigmoid(h @ h.mT).detach() @ h)),
    "talking heads": (
        lambda m, h: torch.einsum("bhij,gh->bgij", (heads(h) @ heads(h).mT).softmax(-1), m.mix.weight) @ heads(h),
        lambda m, h: (
            torch.einsum("bhij,gh->bgij", (heads(h) @ heads(h).mT).softmax(-1), m.mix.weight).detach() @ heads(h)
        ),
    ),
    "efficient": (
        own(lambda h: h.softmax(-1) @ (h.softmax(1).mT @ h)),
        own(lambda h: h.softmax(-1).detach() @ (h.softmax(1).mT.detach() @ h)),
    ),
    "pooling": (
        lambda m, h: (m.pool(h).softmax(1) * h).sum(1),
        lambda m, h: (m.pool(h).softmax(1).detach() * h).sum(1),
    ),
    "of a class token": (
        lambda m, h: sdpa(m.token.expand(2, 1, 6), h, h),
        lambda m, h: attended(m.token.expand(2, 1, 6), h, h),
    ),
    },
    "fused": {
    "sdpa": (own(lambda h: sdpa(h, h.flip(1), h)), own(lambda h: attended(h, h.flip(1), h))),
    "sdpa, scale": (own(lambda h: sdpa(heads(h), heads(h), heads(h), scale=0.3)), own(
        lambda h: attended(heads(h), heads(h), heads(h), scale=0.3))),
    "sdpa, causal": (own(lambda h: sdpa(h, h, h, is_causal=True)), own(lambda h: attended(h, h, h, CAUSAL))),
    "sdpa, causal, fewer queries": (
        own(lambda h: sdpa(h[:, :2], h, h, is_causal=True)),
        own(lambda h: attended(h[:, :2], h, h, CAUSAL[:2])),
    ),
    "sdpa, truth mask": (own(lambda h: sdpa(h, h, h, CAUSAL == 0)), own(lambda h: attended(h, h, h, CAUSAL))),
    "sdpa, additive mask": (own(lambda h: sdpa(h, h, h, attn_mask=BIAS)), own(lambda h: attended(h, h, h, BIAS))),
    "sdpa, padding": (
        own(lambda h: sdpa(h, h, h, attn_mask=~PADDING[:, None])),
        own(lambda h: attended(h, h, h, torch.where(PADDING[:, None], -torch.inf, 0.0))),
    ),
    },
    "fused, masks that move": {
    "sdpa, mask from a signal": (
        lambda m, h: sdpa(h, h, h, attn_mask=m.mask(h)),
        lambda m, h: attended(h, h, h, m.mask(h)),
    ),
    "sdpa, mask from a gate": (
        lambda m, h: sdpa(h, h, h, attn_mask=torch.sigmoid(m.mask(h))),
        lambda m, h: attended(h, h, h, torch.sigmoid(m.mask(h))),
    ),
    },
    "fused, arguments": {
    "sdpa, by keyword": (
        own(lambda h: sdpa(value=h, query=h[:, :3], key=h.flip(1), dropout_p=0.0)),
        own(lambda h: attended(h[:, :3], h.flip(1), h)),
    ),
    "sdpa, grouped queries": (
        own(lambda h: sdpa(heads(h), heads(h)[:, :1], heads(h)[:, 1:], enable_gqa=True)),
        own(lambda h: attended(heads(h), heads(h)[:, :1], heads(h)[:, 1:])),
    ),
    "sdpa, one query and key for all": (
        own(lambda h: sdpa(BIAS.expand(2, 4, 4), BIAS.expand(2, 4, 4), h)),
        own(lambda h: attended(BIAS, BIAS, h)),
    ),
    },
}  # fmt: skip


def _einsum_heads(h):
    probabilities = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", [h, h]), dim=-1)
    return torch.einsum("bhqk,bkhd->bhqd", probabilities, h).transpose(1, 2)


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_has_its_probabilities_frozen(kind):
    assert_twins(ATTENTION[kind], kind != "fused, masks that move", mix=nn.Linear(2, 2), mask=nn.Linear(6, 4),
                 pool=nn.Linear(6, 1), token=nn.Parameter(torch.zeros(1, 1, 6)))  # fmt: skip


def multi_head(m, q, k=None, v=None, mask=0.0):
    """nn.MultiheadAttention from its parameters, (B, T, E), probabilities as constants; mask (B, heads or 1, T, S)."""
    k, v = q if k is None else k, q if v is None else v
    weights = (
        m.in_proj_weight.chunk(3) if m._qkv_same_embed_dim else (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
    )
    biases = (None,) * 3 if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
    q, k, v = (F.linear(t, w, b) for t, w, b in zip((q, k, v), weights, biases, strict=True))
    if m.bias_k is not None:
        k, v = (torch.cat([t, b.expand(len(t), 1, -1)], 1) for t, b in ((k, m.bias_k), (v, m.bias_v)))
    if m.add_zero_attn:
        k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
    if isinstance(mask, torch.Tensor):
        mask = F.pad(mask, (0, k.shape[1] - mask.shape[-1]))
    split = (t.unflatten(-1, (m.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    return m.out_proj(attended(*split, mask).transpose(1, 2).flatten(2))


def padded(mask=PADDING):
    return torch.where(mask[:, None, None], -torch.inf, torch.zeros((), dtype=torch.float64))


MULTI_HEAD = {
    "as it comes": ({"dropout": 0.4}, {}, 0.0),
    "without its weights": ({}, {"need_weights": False}, 0.0),
    "weights of every head": ({}, {"average_attn_weights": False}, 0.0),
    "padding, without weights": ({}, {"key_padding_mask": PADDING, "need_weights": False}, padded()),
    "additive mask": ({}, {"attn_mask": BIAS}, BIAS),
    "truth mask": ({}, {"attn_mask": CAUSAL < 0}, CAUSAL),
    "causal": ({}, {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False}, CAUSAL),
    "a mask for every head": ({}, {"attn_mask": BIAS.repeat(4, 1, 1)}, BIAS),
    "mask and padding": ({}, {"attn_mask": CAUSAL < 0, "key_padding_mask": PADDING}, CAUSAL + padded()),
    "no bias": ({"bias": False}, {}, 0.0),
    "a key and value more": ({"add_bias_kv": True}, {"attn_mask": BIAS}, BIAS),
    "a zero more": ({"add_zero_attn": True}, {"need_weights": False}, 0.0),
}


class MultiHead(nn.Module):
    """Self-attention, batch first whatever its own order is."""

    def __init__(self, made, called):
        super().__init__()
        self.attention, self.called = nn.MultiheadAttention(6, 2, **made), called

    def forward(self, h):
        h = h if self.attention.batch_first else h.transpose(0, 1)
        y, _ = self.attention(h, h, h, **self.called)
        return y if self.attention.batch_first else y.transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False])
def test_multi_head_attention_equals_the_twin(batch_first):
    cases = {
        name: (
            MultiHead(made | {"batch_first": batch_first}, called),
            lambda m, h, mask=mask: multi_head(m.attention, h, mask=mask),
        )
        for name, (made, called, mask) in MULTI_HEAD.items()
        if batch_first or name in ("as it comes", "padding, without weights", "additive mask", "a key and value more")
    }
    assert_twins(cases, to_the_bit=False)


def test_multi_head_attention_of_several_signals():
    cases = {
        "keys and values of other widths": (
            lambda m, h: m.of_widths(h[:, :3], h[..., :3], h[..., :2])[0],
            lambda m, h: multi_head(m.of_widths, h[:, :3], h[..., :3], h[..., :2]),
        ),
        "keys and values from elsewhere": (
            lambda m, h: m.attention(h, h.flip(1), h.flip(1))[0],
            lambda m, h: multi_head(m.attention, h, h.flip(1), h.flip(1)),
        ),
        "the mean of the probabilities as a gate": (
            lambda m, h: m.attention(h, h, h)[1] @ h,
            lambda m, h: _mean_weights(m.attention, h).detach() @ h,
        ),
    }
    attention = nn.MultiheadAttention(6, 3, batch_first=True)
    assert_twins(
        cases, False, attention=attention, of_widths=nn.MultiheadAttention(6, 2, kdim=3, vdim=2, batch_first=True)
    )


def _mean_weights(m, h):
    q, k, _ = F.linear(h, m.in_proj_weight, m.in_proj_bias).chunk(3, -1)
    q, k = (t.unflatten(-1, (m.num_heads, -1)).transpose(1, 2) for t in (q, k))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).mean(1)


def layer_norm(norm, h):
    return standard(h, -1) * norm.weight + norm.bias


def gelu_twin(z):
    return z * (0.5 * (1 + torch.erf(z / math.sqrt(2)))).detach()


def encoded(m, h, mask=0.0):
    """nn.TransformerEncoderLayer with GELU, gates and scales as constants."""

    def feed_forward(h):
        return m.linear2(gelu_twin(m.linear1(h)))

    if m.norm_first:
        h = h + multi_head(m.self_attn, layer_norm(m.norm1, h), mask=mask)
        return h + feed_forward(layer_norm(m.norm2, h))
    h = layer_norm(m.norm1, h + multi_head(m.self_attn, h, mask=mask))
    return layer_norm(m.norm2, h + feed_forward(h))


class Encoder(nn.Module):
    """Encoder layers of torch, batch first whatever their own order is."""

    def __init__(self, count, called, **made):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, activation="gelu", **made)
        self.layers = (
            nn.TransformerEncoder(layer, count, nn.LayerNorm(6), enable_nested_tensor=False) if count else layer
        )
        self.called, self.batch_first = called, made["batch_first"]

    def forward(self, h):
        h = h if self.batch_first else h.transpose(0, 1)
        y = self.layers(h, **self.called)
        return y if self.batch_first else y.transpose(0, 1)

    def twin(self, h, mask):
        if isinstance(self.layers, nn.TransformerEncoderLayer):
            return encoded(self.layers, h, mask)
        for layer in self.layers.layers:
            h = encoded(layer, h, mask)
        return layer_norm(self.layers.norm, h)


def encoder(count, mask=0.0, called=None, **made):
    """An encoder and its twin."""
    return Encoder(count, called or {}, **({"batch_first": True} | made)), lambda m, h: m.twin(h, mask)


@pytest.fixture
def slow_path():
    """Torch's fast path gives NaN under an additive mask."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.usefixtures("slow_path")
def test_a_transformer_encoder_equals_the_twin():
    _, frozen = assert_twins(
        {
            "a layer": encoder(0),
            "a layer, norm first": encoder(0, norm_first=True),
            "a layer, steps first": encoder(0, batch_first=False),
            "a layer, both first": encoder(0, batch_first=False, norm_first=True),
            "causal": encoder(2, CAUSAL, {"mask": CAUSAL, "is_causal": True}),
            "an additive mask": encoder(1, BIAS, {"mask": BIAS}),
            "padding": encoder(1, padded(), {"src_key_padding_mask": PADDING}),
        },
        to_the_bit=False,
    )
    assert {"linear", "layer_norm", "gelu"} <= {operation.name for operation in frozen.operations}
    assert [layer.name for layer in frozen.layers][:2] == ["branches.0.layers:gelu", "branches.1.layers:gelu"]


def test_the_fast_path_of_plain_torch_gives_the_same():
    """Without derivatives torch runs these layers by a kernel of its own; what is frozen is what they say."""
    model = Branches([encoder(0)[0], encoder(1)[0], MultiHead({"batch_first": True}, {})])
    with torch.no_grad():
        fast = randomise(model, 3)(given_input())
    assert_close(freeze(model, given_input()).output, fast)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("called", [{"mask": BIAS}, {"src_key_padding_mask": PADDING.sort(1).values}])
def test_where_the_fast_path_gives_another_output_check_says_so_and_what_to_do(called):
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    frozen = freeze(
        randomise(Branches([lambda m, h: m.e(h, **called)], e=nn.TransformerEncoder(layer, 1)), 3), given_input()
    )
    with pytest.raises(IncompleteError, match=r"fast path .* torch.backends.mha.set_fastpath_enabled\(False\), or"):
        frozen.check(0)
    assert torch.backends.mha.get_fastpath_enabled()


def test_padding_of_a_transformer_encoder_with_nested_tensors():
    """Out of nested tensors what was padded comes as zero, otherwise not: only the rest is compared."""
    layer = nn.TransformerEncoderLayer(6, 2, 8, activation="gelu", batch_first=True)

    def rest(y):
        return y.masked_fill(PADDING[..., None], 0)

    assert_twins(
        {"": (lambda m, h: rest(m.nested(h, src_key_padding_mask=PADDING)),
              lambda m, h: rest(encoded(m.nested.layers[0], h, padded())))},
        False, nested=nn.TransformerEncoder(layer, 1),
    )  # fmt: skip


def test_a_transformer_decoder_is_complete():
    branches = [lambda m, h: m.transformer(h, h.flip(1), tgt_mask=CAUSAL)]
    model = Branches(branches, transformer=nn.Transformer(6, 2, 1, 1, 8, batch_first=True))
    frozen = freeze(randomise(model, 3), given_input())
    assert_close(frozen.output, model(given_input()).detach())
    assert_complete(frozen, 0)


# --- tokens: embeddings, positions, a class token ---


class Tokens(nn.Module):
    """Tokens to logits: embeddings, positions, a class token, one encoder layer."""

    def __init__(self):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(7, 6, padding_idx=0), nn.Embedding(5, 6)
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, activation="gelu", batch_first=True)
        self.head = nn.Linear(6, 3)

    def embed(self, tokens):
        return self.embedding(tokens)

    def forward(self, tokens):
        return self.rest(self.embedding(tokens), self.layer)

    def rest(self, h, layer):
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1)
        h = h + self.positions(torch.arange(h.shape[1]))
        return self.head(layer(h)[:, 0])


@pytest.mark.parametrize("inputs", ["embeddings", "embedding"])
def test_embeddings_are_explained_with_positions_and_class_token_as_constants(inputs):
    model = randomise(Tokens(), 2)
    tokens = torch.tensor([[1, 4, 2, 0], [3, 3, 6, 5]])
    frozen = freeze(model, tokens, inputs=inputs)
    assert_close(frozen.output, model(tokens).detach())
    assert [tuple(layer.shape) for layer in frozen.inputs] == [(4, 6)]
    assert_complete(frozen, 1)
    assert_twin(frozen, lambda h: model.rest(h, lambda h: encoded(model.layer, h)))


# --- recurrent cells ---


def tanh(a, frozen):
    """As written, or ``a * phi(a)`` with phi as a constant."""
    return a * (torch.tanh(a) / a).detach() if frozen else torch.tanh(a)


def sigmoid(a, frozen):
    return torch.sigmoid(a).detach() if frozen else torch.sigmoid(a)


def gru_step(m, x, state, frozen=False):
    """nn.GRUCell, written out."""
    ri, zi, ni = F.linear(x, m.weight_ih, m.bias_ih).chunk(3, 1)
    rh, zh, nh = F.linear(state, m.weight_hh, m.bias_hh).chunk(3, 1)
    z = sigmoid(zi + zh, frozen)
    return (1 - z) * tanh(ni + sigmoid(ri + rh, frozen) * nh, frozen) + z * state


def lstm_step(m, x, state, frozen=False):
    """nn.LSTMCell, written out."""
    hidden, cell = state
    gates = F.linear(x, m.weight_ih, m.bias_ih) + F.linear(hidden, m.weight_hh, m.bias_hh)
    i, f, g, o = gates.chunk(4, 1)
    cell = sigmoid(f, frozen) * cell + sigmoid(i, frozen) * tanh(g, frozen)
    return sigmoid(o, frozen) * tanh(cell, frozen), cell


def gru(step, h):
    """A GRU over four steps, from a state that depends on the input."""
    state = h[:, 0, :4]
    for x in h.unbind(1):
        state = step(x, state)
    return state


def lstm(step, h):
    state = h[:, 0, :4], h[:, 1, 2:]
    for x in h.unbind(1):
        state = step(x, state)
    return state[0]


def test_an_unrolled_recurrent_cell_is_a_gate_times_a_signal():
    def unrolled(run, step, name):
        return tuple(
            lambda m, h, frozen=frozen: run(lambda x, state: step(getattr(m, name), x, state, frozen), h)
            for frozen in (False, True)
        )

    parts = {"gru": nn.GRUCell(6, 4), "lstm": nn.LSTMCell(6, 4)}
    model, _ = assert_twins({"GRU": unrolled(gru, gru_step, "gru"), "LSTM": unrolled(lstm, lstm_step, "lstm")}, **parts)
    h = example((4, 6), 1)
    with torch.no_grad():
        assert_close(gru(lambda x, state: gru_step(model.gru, x, state), h), gru(model.gru, h))
        assert_close(lstm(lambda x, state: lstm_step(model.lstm, x, state), h), lstm(model.lstm, h))


RECURRENT = {
    "LSTM": (nn.LSTM, "lstm"),
    "GRU": (nn.GRU, "gru"),
    "RNN": (nn.RNN, "rnn_tanh"),
    "LSTMCell": (nn.LSTMCell, "lstm_cell"),
    "GRUCell": (nn.GRUCell, "gru_cell"),
    "RNNCell": (nn.RNNCell, "rnn_tanh_cell"),
    "RNN, relu": (lambda i, o: nn.RNN(i, o, nonlinearity="relu"), "rnn_relu"),
    "RNNCell, relu": (lambda i, o: nn.RNNCell(i, o, nonlinearity="relu"), "rnn_relu_cell"),
    "LSTM, deep, both ways": (lambda i, o: nn.LSTM(i, o, 2, bidirectional=True), "lstm"),
    "GRU, packed": (nn.GRU, "gru"),
}


@pytest.mark.parametrize("case", RECURRENT)
def test_a_fused_recurrent_layer_is_refused_with_what_to_do(case):
    make, name = RECURRENT[case]

    def run(m, h):
        if "Cell" in case:
            y = m.cell(h[:, 0])
            return y[0] if isinstance(y, tuple) else y
        steps = h.transpose(0, 1)
        packed = nn.utils.rnn.pack_padded_sequence(steps, [4, 4]) if "packed" in case else steps
        y, _ = m.cell(packed)
        return (nn.utils.rnn.pad_packed_sequence(y)[0] if "packed" in case else y).transpose(0, 1)

    model = randomise(Branches([run], cell=make(6, 3)), 3)
    with pytest.raises(UnsupportedOperation, match=rf"^{name} in module 'cell'.*fused.*write the cell out"):
        freeze(model, given_input())


# --- what a gate may not be ---

MISUSED = {
    "a gate from a gate and a bias": (lambda h: torch.addcmul(torch.sigmoid(h), h, W6), "addcmul"),
    "soft-max at the end": (lambda h: h.softmax(-1), "softmax"),
    "attention to constants": (lambda h: h + sdpa(h, h, torch.ones(2, 4, 6).double()), "scaled_dot_product_attention"),
    "active dropout in attention": (lambda h: sdpa(h, h, h, dropout_p=0.5), "scaled_dot_product_attention"),
    "values that are gates": (lambda h: sdpa(h, h, torch.sigmoid(h)), "scaled_dot_product_attention"),
    "a sampling grid from a signal": (
        lambda h: F.grid_sample(h[:, None], h[:, :, :2].view(2, 2, 2, 2), align_corners=False), "grid_sample",
    ),
    "a norm whose weight is a signal": (lambda h: F.layer_norm(h, (6,), h[0, 0]), "layer_norm"),
    "the statistics of the batch": (lambda h: F.batch_norm(h, None, None, training=True), "batch_norm"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISUSED)
def test_what_is_no_scaled_signal_is_refused_by_name(case):
    function, name = MISUSED[case]
    with pytest.raises(UnsupportedOperation, match=rf"^{name} in module 'branches.0'"):
        freeze(randomise(Branches([own(function)]), 3), given_input())


def test_stochastic_depth_is_the_identity():
    ops = pytest.importorskip("torchvision").ops

    def drop_path(m, h):
        if not m.training:
            return h
        return h * torch.bernoulli(h.new_full((len(h), 1, 1), 0.5))

    parts = {"depth": ops.StochasticDepth(0.5, "row"), "drop": Lambda(drop_path)}
    twin = own(lambda h: h + F.relu(h))
    assert_twins(
        {
            "torchvision": (lambda m, h: h + m.depth(F.relu(h)), twin),
            "a module": (lambda m, h: h + m.drop(F.relu(h)), twin),
            "a function": (own(lambda h: h + ops.stochastic_depth(F.relu(h), 0.5, "batch", training=False)), twin),
        },
        **parts,
    )
