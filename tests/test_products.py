"""Products: gates and scales are frozen, and every result equals a twin in which they are constants by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asserts import assert_close, assert_complete
from nets import randomise
from relupath import Path, freeze, linear_model
from relupath.errors import UnsupportedOperation


class Net(nn.Module):
    """A linear layer, something in the middle, a linear layer."""

    def __init__(self, middle, shape=(4, 6), **parts):
        super().__init__()
        self.fc, self.shape, self.middle = nn.Linear(5, 24), shape, middle
        for name, part in parts.items():
            setattr(self, name, part)
        self.tail = nn.Linear(24, 3)

    def forward(self, x):
        h = self.fc(x).unflatten(1, self.shape)
        y = self.middle(self, h).flatten(1)
        return self.tail(torch.cat([y] * (24 // y.shape[1]), 1))


def given_input():
    return torch.linspace(-1.5, 2, 10, dtype=torch.float64).view(2, 5).sin()


def rms(h):
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)


def rms_twin(h):
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6).detach()


def standard(h, axes):
    centred = h - h.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt().detach()


def attention(q, k, v, mask=0.0):
    return ((q @ k.mT) * q.shape[-1] ** -0.5 + mask).softmax(-1) @ v


CAUSAL = torch.full((4, 4), -torch.inf, dtype=torch.float64).triu(1)
WEIGHT = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)

CASES = {
    "layer_norm": (lambda m, h: F.layer_norm(h, (6,), WEIGHT, WEIGHT), lambda h: standard(h, -1) * WEIGHT + WEIGHT),
    "layer_norm of two axes": (lambda m, h: F.layer_norm(h, (4, 6)), lambda h: standard(h, (1, 2))),
    "group_norm": (
        lambda m, h: F.group_norm(h, 2, WEIGHT[:4], WEIGHT[1:5]),
        lambda h: standard(h.reshape(-1, 2, 12), -1).view_as(h) * WEIGHT[:4, None] + WEIGHT[1:5, None],
    ),
    "instance_norm": (lambda m, h: F.instance_norm(h), lambda h: standard(h, -1)),
    "rms_norm": (lambda m, h: F.rms_norm(h, (6,), WEIGHT, 1e-6), lambda h: rms_twin(h) * WEIGHT),
    "rms norm by hand": (lambda m, h: rms(h), rms_twin),
    "layer norm by hand": (
        lambda m, h: (h - h.mean(-1, keepdim=True)) / h.std(-1, keepdim=True),
        lambda h: (h - h.mean(-1, keepdim=True)) / h.std(-1, keepdim=True).detach(),
    ),
    "normalize": (lambda m, h: F.normalize(h, dim=-1), lambda h: h / h.norm(dim=-1, keepdim=True).detach()),
    "squeeze and excite": (
        lambda m, h: h * torch.sigmoid(h.mean(-1, keepdim=True)),
        lambda h: h * torch.sigmoid(h.mean(-1, keepdim=True)).detach(),
    ),
    "hard squeeze and excite": (
        lambda m, h: F.hardsigmoid(h.mean(-1, keepdim=True)) * F.relu(h),
        lambda h: F.hardsigmoid(h.mean(-1, keepdim=True)).detach() * F.relu(h),
    ),
    "glu": (lambda m, h: F.glu(h, -1), lambda h: h[..., :3] * torch.sigmoid(h[..., 3:]).detach()),
    "swiglu": (
        lambda m, h: F.silu(h[..., :3]) * h[..., 3:],
        lambda h: F.silu(h[..., :3]).detach() * h[..., 3:],
    ),
    "geglu, gate scaled and moved": (
        lambda m, h: h[..., :3] * (F.gelu(h[..., 3:]) * 2).flip(-1),
        lambda h: h[..., :3] * (F.gelu(h[..., 3:]) * 2).flip(-1).detach(),
    ),
    "swish by hand": (lambda m, h: h * torch.sigmoid(h), lambda h: h * torch.sigmoid(h).detach()),
    "hard swish by hand": (lambda m, h: h * F.relu6(h + 3) / 6, lambda h: h * F.relu6(h + 3).detach() / 6),
    "squared relu": (lambda m, h: F.relu(h).pow(2), lambda h: F.relu(h) * F.relu(h).detach()),
    "gated recurrence": (
        lambda m, h: (1 - torch.sigmoid(h)) * torch.tanh(h) + torch.sigmoid(h) * h.flip(-1),
        lambda h: (
            (1 - torch.sigmoid(h)).detach() * h * (torch.tanh(h) / h).detach() + torch.sigmoid(h).detach() * h.flip(-1)
        ),
    ),
    "attention by hand": (
        lambda m, h: attention(h, h.flip(1), h, CAUSAL),
        lambda h: (h @ h.flip(1).mT * 6**-0.5 + CAUSAL).softmax(-1).detach() @ h,
    ),
    "scaled_dot_product_attention": (
        lambda m, h: F.scaled_dot_product_attention(h, h.flip(1), h, is_causal=True),
        lambda h: (h @ h.flip(1).mT * 6**-0.5 + CAUSAL).softmax(-1).detach() @ h,
    ),
    "attention by einsum with a mask": (
        lambda m, h: torch.einsum("bij,bjd->bid", F.softmax(torch.einsum("bid,bjd->bij", h, h) + CAUSAL, -1), h),
        lambda h: (h @ h.mT + CAUSAL).softmax(-1).detach() @ h,
    ),
    "expert weights": (
        lambda m, h: F.linear(h[:1].mean(0), torch.softmax(h.mean(), 0) * torch.eye(6).double()).expand(2, 4, 6),
        lambda h: h[:1].mean(0).expand(2, 4, 6),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_frozen_gates_and_scales_equal_the_twin(case):
    middle, twin = CASES[case]
    model, x = randomise(Net(middle), 3).eval(), given_input()
    x = x[:1].expand(2, 5).contiguous() if case == "expert weights" else x
    frozen = freeze(model, x)
    with torch.no_grad():
        assert torch.equal(frozen.output, model(x))
    if case == "expert weights":
        return
    assert_complete(frozen, 1)
    model.middle = lambda _, h: twin(h)
    entry = x.clone().requires_grad_()
    expected = model(entry)
    assert_close(frozen.output, expected.detach())
    (weight,) = torch.autograd.grad(expected[:, 1].sum(), entry)
    assert_close(linear_model(frozen, 1).weight, weight)


def test_multi_head_attention_is_seen_from_inside():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    model = randomise(nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3)), 1).eval()
    x = torch.linspace(-1, 1, 48, dtype=torch.float64).view(2, 3, 8).cos()
    frozen = freeze(model, x)
    assert_complete(frozen, 2)
    assert_close(frozen.output, model(x).detach())
    assert {"linear", "layer_norm", "gelu"} <= {operation.name for operation in frozen.operations}


def product(m, h):
    return h[..., :3] * h[..., 3:]


def test_a_product_of_two_signals_is_refused_or_carried_as_chosen():
    model, x = randomise(Net(product), 3).eval(), given_input()
    with pytest.raises(UnsupportedOperation, match=r"mul in module.*carry='first'"):
        freeze(model, x)
    with torch.no_grad():
        h = model.fc(x).unflatten(1, (4, 6))
    a, b = h[..., :3], h[..., 3:]
    twins = {
        "first": lambda _, h: h[..., :3] * b,
        "second": lambda _, h: a * h[..., 3:],
        "half": lambda _, h: (h[..., :3] * b + a * h[..., 3:]) / 2,
    }
    for carry, twin in twins.items():
        frozen = freeze(model, x, carry=carry)
        assert_complete(frozen, 0)
        other = Net(twin).double()
        other.load_state_dict(model.state_dict())
        entry = x.clone().requires_grad_()
        (weight,) = torch.autograd.grad(other(entry)[:, 0].sum(), entry)
        assert_close(linear_model(frozen, 0).weight, weight)


@pytest.mark.parametrize("carry", ["first", "second", "half"])
def test_linear_attention_is_complete_with_a_choice(carry):
    model = randomise(Net(lambda m, h: h @ (h.mT @ h)), 3).eval()
    with pytest.raises(UnsupportedOperation, match="matmul"):
        freeze(model, given_input())
    assert_complete(freeze(model, given_input(), carry=carry), 0)


REFUSED = {
    "a gate added to a signal": (lambda m, h: h + torch.sigmoid(h), "sigmoid"),
    "a gate beside a signal": (lambda m, h: torch.cat([h, torch.softmax(h, -1)], 0)[:2], "softmax"),
    "a scale as a feature": (lambda m, h: h.norm(dim=-1, keepdim=True) * torch.ones_like(h), "norm"),
    "a gate as a bias": (lambda m, h: F.linear(h, WEIGHT.diag(), torch.sigmoid(h).mean((0, 1))), "linear"),
    "a number out of a gate": (lambda m, h: h * torch.sigmoid(h).sum().item(), "sigmoid"),
    "a number out of a bent tensor": (lambda m, h: h * torch.sin(h).sum().item(), "sin"),
    "a copy of the values": (lambda m, h: h + h.new_tensor(h), "new_tensor"),
    "a smooth function of degree one": (lambda m, h: torch.hypot(h, h.flip(-1)), "hypot"),
    "a bent factor": (lambda m, h: h * torch.sin(h), "sin"),
    "a bent tensor written into a constant": (lambda m, h: _written(h), "sin"),
}


def _written(h):
    buffer = torch.zeros_like(h, requires_grad=False)
    buffer[:, 0].copy_(torch.sin(h[:, 0]))
    return h + buffer


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("case", REFUSED)
def test_a_gate_is_no_signal(case):
    middle, name = REFUSED[case]
    with pytest.raises(UnsupportedOperation, match=rf"^{name} in module"):
        freeze(randomise(Net(middle), 3).eval(), given_input())


def test_what_the_explained_output_does_not_need_is_not_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x):
            y = self.fc(x)
            return {"logits": y, "other": torch.sin(y).exp()}

    model = randomise(Two(), 0).eval()
    assert_complete(freeze(model, given_input(), output=lambda out: out["logits"]), 0)
    with pytest.raises(UnsupportedOperation, match=r"^sin in module"):
        freeze(model, given_input(), output=lambda out: out["other"])


ZOO = ("shufflenet_v2_x0_5", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "swin_t")


@pytest.mark.parametrize("name", ZOO)
def test_torchvision_classifiers_are_complete(name):
    torchvision = pytest.importorskip("torchvision")
    model = randomise(torchvision.models.get_model(name, weights=None), 5).eval()
    x = torch.linspace(0, 300, 3 * 64 * 64, dtype=torch.float64).view(1, 3, 64, 64).sin()
    frozen = freeze(model, x)
    assert_complete(frozen, 7)
    assert all(operation.kind != "tested" for operation in frozen.operations)


def test_vision_transformers_are_complete():
    torchvision = pytest.importorskip("torchvision")
    make = torchvision.models.vision_transformer.VisionTransformer
    model = randomise(make(32, 8, 2, 2, 16, 32, num_classes=5), 5).eval()
    x = torch.linspace(0, 300, 2 * 3 * 32 * 32, dtype=torch.float64).view(2, 3, 32, 32).sin()
    assert_complete(freeze(model, x), 2)


def test_a_weight_that_is_a_signal_is_differentiated_as_one():
    """Nothing of a convolution's or linear map's constant input may be thrown away when the weight is the signal."""
    fixed = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6)
    for middle in (
        lambda m, h: F.linear(fixed, h[:1].squeeze(0)).expand(2, 4, 4)[..., :3],
        lambda m, h: F.conv1d(fixed[None], h[:1].squeeze(0)[:, :, None].expand(4, 6, 1)[:, :4]).expand(2, 4, 6),
    ):
        model, x = randomise(Net(middle), 3).eval(), given_input()[:1].expand(2, 5).contiguous()
        frozen = freeze(model, x)
        entry = x.clone().requires_grad_()
        (weight,) = torch.autograd.grad(model(entry)[0, 1], entry)
        seed = torch.zeros_like(frozen.output)
        seed[0, 1] = 1
        (pulled,) = frozen.vjp({frozen.top: seed}, frozen.inputs)
        assert_close(pulled, weight)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2, return_indices=True), nn.AdaptiveMaxPool2d(2, return_indices=True)])
def test_pooling_that_returns_indices_is_a_piece(pool):
    def middle(m, h):
        y, indices = pool(F.relu(h[:, None]))
        return F.max_unpool2d(y, indices, 2, output_size=(4, 6)) if isinstance(pool, nn.MaxPool2d) else y

    model = randomise(Net(middle), 3).eval()
    assert_complete(freeze(model, given_input()), 0)


def test_the_torch_function_of_batch_norm_has_its_own_order_of_arguments():
    weight, bias = torch.tensor([2.0, 3.0, 0.5, 1.5]).double(), torch.tensor([-1.0, 0.5, 0.2, 0.1]).double()
    mean, var = torch.tensor([0.1, -0.3, 0.2, 0.4]).double(), torch.tensor([0.5, 1.5, 2.0, 0.7]).double()

    def middle(m, h):
        return torch.batch_norm(h, weight, bias, mean, var, False, 0.1, 1e-5, False)

    model, x = randomise(Net(middle), 3).eval(), given_input()
    frozen = freeze(model, x)
    assert_complete(frozen, 0)
    entry = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(entry)[:, 0].sum(), entry)
    assert_close(linear_model(frozen, 0).weight, expected)


@pytest.mark.parametrize("seed", range(6))
def test_a_smooth_function_of_degree_one_is_never_taken_for_a_piece(seed):
    model = randomise(Net(lambda m, h: torch.hypot(h[:, :1, :1], h[:, 1:2, :1]).expand(-1, 4, 6)), seed).eval()
    with pytest.raises(UnsupportedOperation, match="hypot"):
        freeze(model, given_input()[:1])


def test_a_path_can_stand_on_a_layer_of_one_number_a_sample():
    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.tail = nn.Linear(5, 1), nn.Linear(1, 3)

        def forward(self, x):
            return self.tail(F.relu(self.fc(x).squeeze(1) + 3)[:, None])

    frozen = freeze(randomise(Scalar(), 0).eval(), given_input())
    path = Path.of([(frozen.layers[0].name, [()])])
    whole = linear_model(frozen, 0)
    assert_close(linear_model(frozen, 0, path=path).weight, whole.weight)
