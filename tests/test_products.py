"""Products: gates and scales are frozen, and every result equals a twin in which they are constants by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asserts import assert_branches, assert_close, assert_complete
from nets import Branches, Lambda, randomise
from relupath import (
    Beam,
    BestFirst,
    Exact,
    Greedy,
    Mass,
    Path,
    Selective,
    ablate,
    bias_sources,
    decompose,
    find_paths,
    freeze,
    linear_model,
    linear_models,
    path_mass,
)  # fmt: skip
from relupath.errors import UnsupportedOperation
from relupath.reach import first_flip


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


def answered(x, axis):
    """What is asked of a network whose second layer has an axis of one unit, or none."""

    def forward(m, x):
        h = m.act(m.fc(x)).sum(1, keepdim=True) - 0.1
        h = F.relu(h if axis else h[:, 0])
        return m.tail(h.view(len(h), 1))

    parts = {"fc": nn.Linear(x.shape[1], 4), "act": nn.ReLU(), "tail": nn.Linear(1, 2)}
    frozen, target = freeze(randomise(Lambda(forward, **parts), 0).eval(), x), 0
    lower, upper = frozen.layers
    whole = (0,) if axis else [()]
    paths = [Path.of([(upper.name, whole)]), Path.of([(lower.name, (1,)), (upper.name, whole)])] * 3
    several = linear_models(frozen, paths, target, samples=[0, 0, 1, 1, 2, 2])
    found = [linear_model(frozen, target).weight, several.weight, several.bias, bias_sources(frozen, target).model.bias]
    for search in (Greedy(), Beam(2), BestFirst(3), Exact(2), Mass(), Selective(2)):
        model = find_paths(frozen, target, search).model
        found += [model.weight, model.value]
    found += [term.total for term in bias_sources(frozen, target).terms]
    for b in range(3):
        root = decompose(frozen, target, sample=b)
        found += [torch.tensor(node.value) for child in root.children for node in (child, *child.children)]
    mass = path_mass(frozen, target)
    found += [mass.count_log10, mass.positive, ablate(frozen, paths[0], target).ablated]
    found += [1 / first_flip(frozen, torch.ones_like(x)).t]
    return found


def test_one_number_a_sample_is_one_unit():
    x = torch.tensor([[0.4], [-1.3], [2.0]], dtype=torch.float64)
    expected, found = answered(x, axis=True), answered(x, axis=False)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_close(one.view(-1), other.view(-1), 1.0)


# --- every product of two signals: refused by name, or as chosen ---

C = torch.linspace(-1, 1, 48, dtype=torch.float64).view(2, 4, 6).cos()
WEIGHTS = torch.linspace(-1, 1, 3 * 6 * 6, dtype=torch.float64).view(3, 6, 6).sin()
CARRY = ("first", "second", "half")


def each(function):
    """A function of two matrices, sample by sample."""
    return lambda u, v: torch.stack([function(s, t) for s, t in zip(u, v, strict=True)])


PRODUCTS = {
    "two branches": ("mul", lambda u, v: u * v),
    "mul": ("mul", torch.mul),
    "mul by keyword": ("mul", lambda u, v: torch.mul(input=u, other=v)),
    "multiply": ("multiply", torch.multiply),
    "mul, broadcast": ("mul", lambda u, v: u[:, :, None] * v[:, None, :, :2].repeat(1, 1, 1, 3)),
    "mul, then a sum": ("mul", lambda u, v: (u * v).sum(-1)),
    "matmul": ("matmul", lambda u, v: u @ v.mT),
    "torch.matmul": ("matmul", lambda u, v: torch.matmul(u, v.transpose(1, 2))),
    "torch.linalg.matmul": ("linalg_matmul", lambda u, v: torch.linalg.matmul(u, v.mT)),
    "bmm": ("bmm", lambda u, v: torch.bmm(u, v.mT)),
    "mm": ("mm", each(lambda s, t: s.mm(t.T))),
    "mv": ("mv", each(lambda s, t: torch.mv(s, t[1]))),
    "dot": ("dot", each(lambda s, t: torch.dot(s[0], t[1])[None])),
    "inner": ("inner", each(torch.inner)),
    "outer": ("outer", each(lambda s, t: torch.outer(s[0], t[1]))),
    "tensordot": ("tensordot", each(lambda s, t: torch.tensordot(s, t, ([1], [1])))),
    "einsum": ("einsum", lambda u, v: torch.einsum("bij,bkj->bik", u, v)),
    "einsum of a list": ("einsum", lambda u, v: torch.einsum("bij,bij->bi", [u, v])),
    "einsum by numbers": ("einsum", lambda u, v: torch.einsum(u, [0, 1, 2], v, [0, 3, 2], [0, 1, 3])),
    "bilinear pooling": ("einsum", lambda u, v: torch.einsum("bic,bid->bcd", u, v)),
    "bilinear": ("bilinear", lambda u, v: F.bilinear(u, v, WEIGHTS, WEIGHTS[:, 0, 0])),
    "bilinear without bias": ("bilinear", lambda u, v: torch.bilinear(u, v, WEIGHTS, None)),
    "addcmul": ("addcmul", lambda u, v: torch.addcmul(C, u, v, value=0.5)),
    "addmm": ("addmm", each(lambda s, t: torch.addmm(C[0, :, :4], s, t.T, beta=0.3, alpha=2))),
    "addmm method": ("addmm", each(lambda s, t: C[0, :, :4].addmm(s, t.T))),
    "addmv": ("addmv", each(lambda s, t: torch.addmv(C[0, :, 0], s, t[0]))),
    "addr": ("addr", each(lambda s, t: torch.addr(C[0], s[:, 1], t[2]))),
    "baddbmm": ("baddbmm", lambda u, v: torch.baddbmm(C[:, :, :4], u, v.mT, beta=0.3, alpha=2.0)),
    "addbmm": ("addbmm", each(lambda s, t: torch.addbmm(C[0, :, :4], s[None], t.T[None]))),
}


def out_of(h):
    """The two factors."""
    return h, h.flip(1)


@pytest.mark.parametrize("case", PRODUCTS)
def test_products_of_two_signals_are_refused_by_name(case):
    name, product = PRODUCTS[case]
    with pytest.raises(UnsupportedOperation, match=rf"^{name} in module 'branches\.0'.*two signals.*carry='first'"):
        freeze(randomise(Branches([lambda m, h: product(*out_of(h))]), 3), given_input())


def assert_carried(cases, carry):
    """Branches by name, each with its twin, with a choice of what carries on in products."""
    model = randomise(Branches([branch for branch, _ in cases.values()]), 3)
    return assert_branches(model, given_input(), [twin for _, twin in cases.values()], list(cases), carry=carry)


def carrying(product, carry):
    """The twin of a product in which one factor carries on, or each by half."""
    twins = {
        "first": lambda u, v: product(u, v.detach()),
        "second": lambda u, v: product(u.detach(), v),
        "half": lambda u, v: (product(u, v.detach()) + product(u.detach(), v)) / 2,
    }
    return lambda m, h: twins[carry](*out_of(h))


@pytest.mark.parametrize("carry", CARRY)
def test_products_of_two_signals_carry_on_as_chosen(carry):
    cases = {
        case: (lambda m, h, f=product: f(*out_of(h)), carrying(product, carry))
        for case, (_, product) in PRODUCTS.items()
    }
    frozen = assert_carried(cases, carry)
    assert [op.kind for op in frozen.operations].count("carried") >= len(cases)


@pytest.mark.parametrize("carry", CARRY)
def test_what_is_added_to_a_product_is_added_whole(carry):
    """A signal that is added counts once, also where each factor carries on by half."""
    added = {
        "addcmul": (lambda m, h: torch.addcmul(h, h, h.flip(1)), lambda u, v: u * v, lambda h: h),
        "baddbmm": (
            lambda m, h: torch.baddbmm(h[..., :4], h, h.flip(1).mT),
            lambda u, v: u @ v.mT,
            lambda h: h[..., :4],
        ),
    }
    cases = {
        name: (branch, lambda m, h, f=product, rest=rest: rest(h) + carrying(f, carry)(m, h))
        for name, (branch, product, rest) in added.items()
    }
    assert_carried(cases, carry)


def norms(u, v, dim):
    return (u.norm(dim=dim) * v.norm(dim=dim)).detach()


COSINES = {
    "function": (
        lambda u, v: F.cosine_similarity(u, v, dim=-1),
        lambda u, v: (u * v).sum(-1),
        lambda u, v: norms(u, v, -1),
    ),
    "keywords": (
        lambda u, v: torch.cosine_similarity(x1=u, x2=v, dim=1, eps=1e-6),
        lambda u, v: (u * v).sum(1),
        lambda u, v: norms(u, v, 1),
    ),
    "broadcast": (
        lambda u, v: F.cosine_similarity(u[:, :, None], v[:, None], dim=-1),
        lambda u, v: u @ v.mT,
        lambda u, v: norms(u[:, :, None], v[:, None], -1),
    ),
}


@pytest.mark.parametrize("carry", CARRY)
def test_cosine_similarity_is_a_product_over_frozen_norms(carry):
    cases = {
        name: (
            lambda m, h, f=function: f(*out_of(h)),
            lambda m, h, f=product, size=size: carrying(f, carry)(m, h) / size(*out_of(h)),
        )
        for name, (function, product, size) in COSINES.items()
    }
    cases["module"] = lambda m, h: nn.CosineSimilarity(-1)(*out_of(h)), cases["function"][1]
    assert_carried(cases, carry)


def test_cosine_similarity_with_a_constant_needs_no_choice():
    cases = {
        "second": (lambda m, h: F.cosine_similarity(h, C, -1), lambda m, h: (h * C).sum(-1) / norms(h, C, -1)),
        "first": (lambda m, h: F.cosine_similarity(C, h, 1), lambda m, h: (h * C).sum(1) / norms(h, C, 1)),
        "a head": (
            lambda m, h: F.linear(F.normalize(h, dim=-1), F.normalize(C[0], dim=-1)),
            lambda m, h: h / h.norm(dim=-1, keepdim=True).detach() @ F.normalize(C[0], dim=-1).T,
        ),
    }
    assert_carried(cases, None)
    model = Branches([lambda m, h: F.cosine_similarity(*out_of(h), dim=-1)])
    with pytest.raises(UnsupportedOperation, match=r"^cosine_similarity in module.*carry='first'"):
        freeze(randomise(model, 3), given_input())


def _times(y, factor):
    y *= factor
    return y


def _over(y, divisor):
    y /= divisor
    return y


POWERS = {
    "x**2": (lambda h: h**2, lambda h: h * h.detach()),
    "x*x": (lambda h: h * h, lambda h: h * h.detach()),
    "square": (torch.square, lambda h: h * h.detach()),
    "pow": (lambda h: h.pow(2), lambda h: h * h.detach()),
    "float_power": (lambda h: torch.float_power(h, 2), lambda h: h * h.detach()),
    "x**3": (lambda h: h**3, lambda h: h * (h * h).detach()),
    "a root": (lambda h: (h.abs() + 1) ** 0.5, lambda h: (h.abs() + 1) * (h.abs() + 1).rsqrt().detach()),
    "an inverse": (lambda h: (h.abs() + 1) ** -1, lambda h: (h.abs() + 1) / (h.abs() + 1).square().detach()),
    "x/x.sum()": (lambda h: h / h.sum(-1, keepdim=True), lambda h: h / h.sum(-1, keepdim=True).detach()),
    "div by keyword": (lambda h: torch.div(h, other=h.flip(1) + 9), lambda h: h / (h.flip(1) + 9).detach()),
    "div_": (lambda h: h.clone().div_(h.flip(1) + 9), lambda h: h / (h.flip(1) + 9).detach()),
    "idiv": (lambda h: _over(h.clone(), h.flip(1) + 9), lambda h: h / (h.flip(1) + 9).detach()),
    "L1 normalisation": (
        lambda h: h / h.abs().sum(-1, keepdim=True),
        lambda h: h / h.abs().sum(-1, keepdim=True).detach(),
    ),
    "softsign by hand": (lambda h: h / (1 + h.abs()), lambda h: h / (1 + h.abs()).detach()),
}


@pytest.mark.parametrize("case", POWERS)
def test_powers_and_quotients_of_signals_are_refused_by_name(case):
    name = "|".join(("mul", "pow", "square", "float_power", "div"))
    model = randomise(Branches([lambda m, h: POWERS[case][0](h)]), 3)
    with pytest.raises(UnsupportedOperation, match=rf"^({name}) in module 'branches\.0'.*carry='first'"):
        freeze(model, given_input())


@pytest.mark.parametrize("carry", CARRY)
def test_powers_and_quotients_freeze_all_but_one_factor(carry):
    cases = {name: (lambda m, h, f=f: f(h), lambda m, h, f=twin: f(h)) for name, (f, twin) in POWERS.items()}
    assert_carried(cases, carry)


THREE = {
    "a product": (lambda u, v, w: torch.einsum("bij,bij,bij->bij", u, v, w)),
    "a form": (lambda u, v, w: torch.einsum("bid,bjd,bje->bie", u, v, w)),
}


@pytest.mark.parametrize("case", THREE)
def test_an_einsum_of_three_signals(case):
    f = THREE[case]

    def branch(m, h):
        return f(h, h.flip(1), h.roll(1, 2))

    def share(h, one):
        return f(*(t if i == one else t.detach() for i, t in enumerate((h, h.flip(1), h.roll(1, 2)))))

    with pytest.raises(UnsupportedOperation, match=r"^einsum in module.*carry='first'"):
        freeze(randomise(Branches([branch]), 3), given_input())
    assert_carried({case: (branch, lambda m, h: share(h, 0))}, "first")
    assert_carried({case: (branch, lambda m, h: sum(share(h, i) for i in range(3)) / 3)}, "half")
    assert_complete(freeze(randomise(Branches([branch]), 3), given_input(), carry="second"), 0)


def test_two_of_three_factors_that_are_gates_leave_the_signal():
    cases = {
        "a squashed one": (
            lambda m, h: torch.einsum("bid,bjd,bij->bid", h, F.relu(h.flip(1)), torch.sigmoid(h[..., :4])),
            lambda m, h: torch.einsum("bid,bjd,bij->bid", h, F.relu(h.flip(1)).detach(), h[..., :4].sigmoid().detach()),
        ),
        "activations": (
            lambda m, h: torch.einsum("bij,bij,bij->bij", F.relu(h), h.roll(1, 2), F.gelu(h.flip(1))),
            lambda m, h: F.relu(h).detach() * h.roll(1, 2) * F.gelu(h.flip(1)).detach(),
        ),
    }
    assert_carried(cases, None)


@pytest.mark.parametrize("carry", [None, "first", "half"])
def test_the_factor_that_comes_out_of_an_activation_is_the_gate_whatever_is_chosen(carry):
    def twin(f):
        return lambda m, h: f(F.relu(h).detach(), h.flip(1))

    forms = {
        "mul": lambda r, v: r * v,
        "matmul": lambda r, v: r @ v.mT,
        "bmm": lambda r, v: torch.bmm(r, v.mT),
        "einsum": lambda r, v: torch.einsum("bij,bkj->bik", r, v),
        "bilinear": lambda r, v: F.bilinear(r, v, WEIGHTS),
        "baddbmm": lambda r, v: torch.baddbmm(C[:, :, :4], r, v.mT),
        "addcmul": lambda r, v: torch.addcmul(C, r, v),
        "scaled and moved": lambda r, v: (2 * r).flip(1).transpose(1, 2) @ v,
    }
    cases = {name: (lambda m, h, f=f: f(F.relu(h), h.flip(1)), twin(f)) for name, f in forms.items()}
    cases["in place"] = (
        lambda m, h: h.flip(1).mul_(F.relu(h)),
        lambda m, h: h.flip(1) * F.relu(h).detach(),
    )
    cases["a squashed factor of an activation"] = (
        lambda m, h: F.relu(h.flip(1)) * F.hardsigmoid(h),
        lambda m, h: F.relu(h.flip(1)) * F.hardsigmoid(h).detach(),
    )
    assert_carried(cases, carry)


def test_a_product_in_place_carries_on_what_is_written_to():
    cases = {
        "mul_": (lambda m, h: h.clone().mul_(h.flip(1)), lambda m, h: h * h.flip(1).detach()),
        "imul": (lambda m, h: _times(h.clone(), h.flip(1)), lambda m, h: h * h.flip(1).detach()),
        "out": (lambda m, h: torch.mul(h, h.flip(1), out=torch.empty_like(C)), lambda m, h: h * h.flip(1).detach()),
    }
    assert_carried(cases, "first")
    for branch, _ in cases.values():
        with pytest.raises(UnsupportedOperation, match=r"^mul in module 'branches\.0'.*carry='first'"):
            freeze(randomise(Branches([branch]), 3), given_input())


@pytest.mark.parametrize("carry", ["second", "half"])
def test_a_choice_leaves_gates_scales_and_attention_as_they_are(carry):
    cases = {
        "attention": (
            lambda m, h: (h @ h.flip(1).mT).softmax(-1) @ h,
            lambda m, h: (h @ h.flip(1).mT).softmax(-1).detach() @ h,
        ),
        "layer norm by hand": (
            lambda m, h: (h - h.mean(-1, True)) / ((h - h.mean(-1, True)) ** 2).mean(-1, True).sqrt(),
            lambda m, h: (h - h.mean(-1, True)) / ((h - h.mean(-1, True)) ** 2).mean(-1, True).sqrt().detach(),
        ),
        "swish": (lambda m, h: h * torch.sigmoid(h), lambda m, h: h * torch.sigmoid(h).detach()),
    }
    assert_carried(cases, carry)
