"""Small random networks, from a seed: biases, batch-norm statistics and slopes are random, so that none can be lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANGES = {
    "written in place": lambda m: nn.init.zeros_(m[0].weight),
    "written unseen": lambda m: m[0].bias.data.add_(1),
    "replaced by its like": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.detach().clone())),
    "parameter replaced": lambda m: setattr(m[2], "weight", nn.Parameter(-m[2].weight.detach())),
    "module replaced": lambda m: m.__setitem__(2, nn.Linear(m[2].in_features, m[2].out_features).double()),
    "other shape": lambda m: m.__setitem__(2, nn.Linear(99, 5).double()),
    "moved": lambda m: m[2].register_forward_hook(lambda module, args, output: output + 1),
}
"""What may happen to a chain of linear maps and activations after it was frozen."""


class Lambda(nn.Module):
    """A module from a function of (module, x) and its parts: modules, parameters, buffers."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def randomise(model: nn.Module, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Set weights, biases and statistics from a seed; keep signals of order one; return the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator, dtype=torch.float64)

    def uniform(t: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(t.shape, generator=generator, dtype=torch.float64)

    model = model.to(dtype)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(normal(module.running_mean) / 2)
                module.running_var.copy_(uniform(module.running_var, 0.3, 2.0))
                if module.affine:
                    module.weight.copy_(normal(module.weight) + 0.3)
                    module.bias.copy_(normal(module.bias) / 2)
            else:
                for parameter in module.parameters(recurse=False):
                    fan = max(1, parameter[0].numel() if parameter.ndim > 1 else 4)
                    parameter.copy_(normal(parameter) * (2 / fan) ** 0.5)
    return model.eval()


def example(shape: Sequence[int], seed: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """A batch of inputs from a seed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(dtype)


def deep(dtype: torch.dtype, layers: int = 130, width: int = 32) -> nn.Module:
    """A chain so deep that the product of the derivatives down a path leaves the range of single precision."""
    generator = torch.Generator().manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(*parts, nn.Linear(width, 3))
    for linear in model[::2]:
        nn.init.kaiming_normal_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
    return model.to(dtype).eval()


class Branches(nn.Module):
    """A linear map to shape (4, 6), then branches side by side: the logit of each is a fixed sum of all that it gives.

    A branch is a module, or a function of (this module, h) that may use its parts and writes to no h but its own.
    Called with twins in place of the branches it is a twin of itself; that of a module is a function of (module, h).
    """

    def __init__(self, branches: Sequence[Callable[..., Tensor]], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 24)
        self.branches = nn.ModuleList(
            branch if isinstance(branch, nn.Module) else Lambda(self._of_this, branch=branch) for branch in branches
        )
        for name, part in parts.items():
            setattr(self, name, part)
        self.register_buffer("readout", torch.cos(1.3 * torch.arange(100) + 1))

    def forward(self, x: Tensor, twins: Sequence[Callable[..., Tensor]] | None = None) -> Tensor:
        h = self.fc(x).unflatten(1, (4, 6))
        if twins is None:
            results = [branch(h.clone() if hasattr(branch, "inplace") else h) for branch in self.branches]
        else:
            owners = [self if hasattr(branch, "branch") else branch for branch in self.branches]
            results = [twin(owner, h) for twin, owner in zip(twins, owners, strict=True)]
        return torch.stack([(y := result.flatten(1)) @ self.readout[: y.shape[1]] for result in results], 1)

    def _of_this(self, own: Lambda, h: Tensor) -> Tensor:
        return own.branch(self, h)


# --- layered networks: h_l = sum_{k<l} A_lk a_k + c_l, a_l = relu(h_l), y = sum_k B_k a_k + d ---

STYLES = ("module", "shared", "functional", "method", "inplace", "inplace_method", "leaky")
JOINS = ("sum", "iadd", "concat", "addmm", "matmul")


class Layered(nn.Module):
    """A layered network with skips, written in one of several styles that all mean the same.

    Attributes:
        matrices: (l, k) -> matrix from layer k (0 is the input) to layer l (the last is the output); missing: no edge.
        offsets: l -> bias of layer l.
    """

    def __init__(
        self, matrices: dict[tuple[int, int], Tensor], offsets: dict[int, Tensor], style: str, join: str
    ) -> None:
        super().__init__()
        self.style, self.join, self.depth = style, join, max(l for l, _ in matrices)
        self.matrices, self.offsets = matrices, offsets
        self.slope = 0.3 if style == "leaky" else 0.0
        self.weights = nn.ParameterDict({f"{l}_{k}": nn.Parameter(m.clone()) for (l, k), m in matrices.items()})
        self.biases = nn.ParameterDict({str(l): nn.Parameter(c.clone()) for l, c in offsets.items()})
        if style == "module":
            self.relus = nn.ModuleList(nn.ReLU() for _ in range(self.depth - 1))
        elif style == "shared":
            self.relu = nn.ReLU()
        elif style == "leaky":
            self.leaky = nn.LeakyReLU(self.slope, inplace=True)

    def pre(self, l: int, a: Sequence[Tensor]) -> Tensor:
        sources = [k for k in range(l) if (l, k) in self.matrices]
        bias = self.biases[str(l)]
        pairs = [(a[k], self.weights[f"{l}_{k}"]) for k in sources]
        if self.join == "concat":
            return F.linear(torch.cat([s for s, _ in pairs], 1), torch.cat([w for _, w in pairs], 1), bias)
        if self.join == "iadd":
            h = F.linear(*pairs[0], bias)
            for s, w in pairs[1:]:
                h += F.linear(s, w)
            return h
        if self.join == "addmm":
            h = torch.addmm(bias, pairs[0][0], pairs[0][1].t())
            return h if len(pairs) == 1 else h.add(sum(s @ w.T for s, w in pairs[1:]))
        if self.join == "matmul":
            return sum(torch.matmul(w, s.unsqueeze(-1)).squeeze(-1) for s, w in pairs) + bias
        return sum(F.linear(s, w) for s, w in pairs) + bias

    def act(self, l: int, h: Tensor) -> Tensor:
        if self.style == "module":
            return self.relus[l - 1](h)
        if self.style == "shared":
            return self.relu(h)
        if self.style == "functional":
            return F.relu(h)
        if self.style == "method":
            return h.relu()
        if self.style == "inplace":
            return F.relu(h, inplace=True)
        if self.style == "inplace_method":
            return h.relu_()
        return self.leaky(h)

    def names(self) -> list[str]:
        """The names of the hidden layers, by the naming rules."""
        stem = {"shared": "relu", "leaky": "leaky"}.get(self.style, ":relu")
        if self.style == "module":
            return [f"relus.{l}" for l in range(self.depth - 1)]
        return [stem if l == 0 else f"{stem}#{l + 1}" for l in range(self.depth - 1)]

    def forward(self, x: Tensor) -> Tensor:
        a = [x]
        for l in range(1, self.depth):
            a.append(self.act(l, self.pre(l, a)))
        return self.pre(self.depth, a)


def layered(
    seed: int,
    widths: Sequence[int],
    *,
    skips: float = 0.5,
    style: str = "functional",
    join: str = "sum",
    dtype: torch.dtype = torch.float64,
) -> Layered:
    """A layered network: every layer sees the one before it, and each earlier one with probability ``skips``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    matrices, offsets = {}, {}
    for l in range(1, len(widths)):
        for k in range(l):
            if k == l - 1 or float(torch.rand((), generator=generator)) < skips:
                matrices[l, k] = normal(widths[l], widths[k])
        offsets[l] = normal(widths[l])
    return Layered(matrices, offsets, style, join).eval()


# --- networks like those people explain ---


def mlp(seed: int, widths: Sequence[int] = (6, 7, 5, 4), act: Callable[[], nn.Module] = nn.ReLU, **kw) -> nn.Module:
    """Linear maps and activations."""
    parts: list[nn.Module] = []
    for i, (m, n) in enumerate(pairwise(widths)):
        parts += [nn.Linear(m, n), act()] if i < len(widths) - 2 else [nn.Linear(m, n)]
    return randomise(nn.Sequential(*parts), seed, **kw)


class VGG(nn.Module):
    """Convolutions, in-place ReLU, max pooling, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True),
            nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(inplace=True), nn.AvgPool2d(2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class Block(nn.Module):
    """A residual block: one ReLU module runs twice, in place; the second time after ``out += identity``."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride > 1 or inplanes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """Stem, max pool with padding, residual blocks, average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(3, 3), Block(3, 4, 2))
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Fire(nn.Module):
    """Squeeze, then two branches side by side that are concatenated."""

    def __init__(self, planes: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(planes, squeeze, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        a, b = self.expand1x1(x), self.expand3x3(x)
        return torch.cat([self.expand1x1_activation(a), self.expand3x3_activation(b)], 1)


class Squeeze(nn.Module):
    """SqueezeNet in small: ceil-mode max pooling, fire modules, a classifier of 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2, ceil_mode=True),
            Fire(3, 2, 3), Fire(6, 3, 2),
        )  # fmt: skip
        final = nn.Conv2d(4, 4, 1)
        self.classifier = nn.Sequential(nn.Dropout(0.5), final, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class Dense(nn.Module):
    """DenseNet in small: batch norm, functional ReLU, convolution, concatenated with all that came before."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (2, 4, 6))
        self.convs = nn.ModuleList(nn.Conv2d(n, 2, 3, padding=1) for n in (2, 4, 6))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x), inplace=True))], 1)
        return self.fc(F.avg_pool2d(x, x.shape[-1]).view(len(x), -1))


class Pieces(nn.Module):
    """Many kinds of piece, constants written in forward, a position embedding, reductions and views."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular")
        self.prelu = nn.PReLU(4)
        self.position = nn.Parameter(torch.zeros(1, 4, 6, 6))
        self.register_buffer("scale", torch.tensor([0.5, -1.5, 2.0, 0.7]).view(4, 1, 1))
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.fc = nn.Linear(3 * 6 * 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.conv(x) + self.position) * self.scale
        x = 1.5 - F.relu6(2 * x) / 3
        x = torch.maximum(x, torch.tensor(-0.2, dtype=x.dtype)) - x.abs().mean((2, 3), keepdim=True)
        x = F.hardtanh(self.up(F.max_pool2d(x, 2)), -1.0, 0.8, inplace=True)
        x = torch.where(x > 0.1, x, 0.25 * x + 0.1).clamp(min=-0.3)
        return self.fc(torch.sort(x, -1).values[..., ::3].flatten(1)) + F.leaky_relu(x, 0.2).sum((1, 2, 3))[:, None]


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 4)), (6,)),
    "mlp": (lambda: mlp(0), (6,)),
    "vgg": (VGG, (2, 6, 6)),
    "resnet": (ResNet, (2, 8, 8)),
    "squeeze": (Squeeze, (2, 11, 11)),
    "dense": (Dense, (2, 5, 5)),
    "pieces": (Pieces, (2, 6, 6)),
}
"""Networks of affine and piecewise-linear parts, and the shape of one input; all have four outputs."""

CHAINS = ("mlp", "vgg")
"""Those where every layer depends on all below it through the one next to it."""


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network of the table with random parameters."""
    return randomise(NETS[name][0](), seed, dtype)


def inputs(name: str, seed: int = 0, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """Inputs that fit a network of the table."""
    return example(NETS[name][1], seed, batch, dtype)
