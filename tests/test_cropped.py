"""Cotangents in windows: what comes down through every operation is the full product, at borders too."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from asserts import assert_close, weighted
from nets import Lambda, example, randomise
from relupath import Path, _cropped, _crops, freeze, linear_model, linear_models
from relupath._cropped import NotCropped
from relupath._crops import Crops, Entries
from relupath._way import Part, Way

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


def pull(frozen, upper, lower, crops, wanted=None):
    """The products of all cotangents together."""
    (part,) = Way(frozen, upper, lower, 2**30).pull(crops, wanted)
    return part.found


def assert_windows_are_full(frozen, upper, lower, crops):
    """Products in windows are the full ones to 1e-12, of all channels and of some of them; what they took is given."""
    expected = full(frozen, upper, lower, crops)
    size = float(expected.abs().max())
    pulled = pull(frozen, upper, lower, crops)
    assert float((pulled.dense() - expected).abs().max()) <= ROUNDING * size
    every = slice(None, None, 9)
    for number, part in enumerate(Way(frozen, upper, lower, together=1).pull(crops.select(every))):
        assert part.rows == slice(number, number + 1)
        assert float((part.found.dense() - expected[every][part.rows]).abs().max()) <= ROUNDING * size
    if len(lower.shape) == 3:
        wanted = torch.stack([torch.arange(2) + n % (lower.shape[0] - 1) for n in range(len(crops))])
        some = pull(frozen, upper, lower, crops, wanted)
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
    "convolution, to few": lambda: nn.Conv2d(4, 40, (3, 2), (2, 1), (2, 3), (1, 2)),
    "convolutions, to few": lambda: nn.Sequential(nn.Conv2d(4, 40, 3, (2, 1), 1), nn.Conv2d(40, 3, 2)),
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
    "relu6 in place": lambda: op(lambda m, h: F.relu6(m.conv(h), inplace=True), conv=nn.Conv2d(4, 4, 1)),
    "silu in place": lambda: op(lambda m, h: F.silu(m.conv(h), inplace=True), conv=nn.Conv2d(4, 4, 3)),
    "leaky relu in place": lambda: op(lambda m, h: F.leaky_relu(m.conv(h), 0.2, True), conv=nn.Conv2d(4, 4, 3)),
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


class Both(nn.Module):
    """Two branches, added or concatenated and mixed again to four channels."""

    def __init__(self, join: str, inner: nn.Module) -> None:
        super().__init__()
        self.join, self.inner, self.mix = join, inner, nn.Conv2d(8, CHANNELS, 1)

    def forward(self, h):
        other = self.inner(h)
        return h + other if self.join == "sum" else self.mix(torch.cat([other, h], 1))


@st.composite
def operations(draw: st.DrawFn) -> nn.Module:
    """An operation on four channels."""

    def pair(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kind = draw(st.sampled_from(["convolution", "max", "average", "bends", "borders", "resizes", "both"]))
    if kind == "convolution":
        groups = draw(st.sampled_from([1, 2, 4]))
        return nn.Conv2d(4, 4, pair(1, 3), pair(1, 3), pair(0, 3), pair(1, 2), groups)
    if kind == "max":
        return nn.MaxPool2d(pair(2, 3), pair(1, 3), pair(0, 1), pair(1, 2), ceil_mode=draw(st.booleans()))
    if kind == "average":
        divisor = draw(st.sampled_from([None, None, 3]))
        return nn.AvgPool2d(pair(2, 3), pair(1, 3), pair(0, 1), draw(st.booleans()), draw(st.booleans()), divisor)
    if kind == "bends":
        return draw(st.sampled_from([nn.ReLU, lambda: nn.PReLU(4), nn.GELU, nn.Hardtanh, lambda: nn.BatchNorm2d(4)]))()
    if kind == "borders":
        border = *pair(-1, 2), *pair(-1, 2)
        mode = draw(st.sampled_from(["constant", "reflect", "replicate"]))
        return op(lambda m, h: F.pad(h, border if mode == "constant" else [max(0, n) for n in border], mode))
    if kind == "resizes":
        mode = draw(st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic"]))
        how = {"size": pair(2, 11)} if draw(st.booleans()) else {"scale_factor": (draw(st.floats(0.5, 2.5)), 1.5)}
        return op(lambda m, h: F.interpolate(h, mode=mode, **how))
    inner = draw(st.sampled_from([lambda: nn.Conv2d(4, 4, 3, 1, 1), lambda: nn.MaxPool2d(3, 1, 1), nn.SiLU]))
    return Both(draw(st.sampled_from(["sum", "cat"])), inner())


@given(
    st.lists(operations(), min_size=2, max_size=4), st.integers(5, 11), st.integers(5, 11), st.integers(0, 99),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=15)
def test_windows_are_full_through_any_stack(stack, height, width, seed, channels):
    model = randomise(nn.Sequential(nn.Conv2d(2, CHANNELS, 3, padding=1), *stack, nn.Flatten()), seed)
    x = example((2, height, width), seed)
    try:
        assume(model(x).shape[1] > 0)
    except RuntimeError:  # the picture has become too small for a kernel
        assume(False)
    frozen = freeze(model, x, layers=[str(n) for n in range(len(stack) + 1)])
    top = frozen.layers[-1]
    crops = every_neuron(top, channels, seed)
    crops = crops.select(torch.randperm(len(crops), generator=torch.Generator().manual_seed(seed))[:24])
    for lower in (frozen.inputs[0], *frozen.layers[:-1]):
        assert_windows_are_full(frozen, top, lower, crops)


MIXING = {
    "transposed convolution": lambda: nn.ConvTranspose2d(4, 3, 3, stride=2),
    "pixel shuffle": lambda: nn.PixelShuffle(2),
    "channel shuffle": lambda: nn.ChannelShuffle(2),
    "channels taken apart": lambda: op(lambda m, h: torch.cat(h.chunk(2, 1)[::-1], 1)),
    "places left out": lambda: op(lambda m, h: h[:, :, 1:, :-2].clone()),
    "places turned round": lambda: op(lambda m, h: h.flip(-1)),
    "concatenation over places": lambda: op(lambda m, h: torch.cat([h, 2 * h], 2)),
    "addition of a column": lambda: op(lambda m, h: h + h[..., :1]),
    "a column times": lambda: op(lambda m, h: h[..., :1] * m.row, row=nn.Parameter(torch.ones(8))),
    "subtraction of the mean": lambda: op(lambda m, h: h - h.mean(1, keepdim=True)),
    "global pooling": lambda: nn.AdaptiveAvgPool2d(1),
    "addition of the largest": lambda: op(lambda m, h: h + F.max_pool2d(h, (9, 8))),
    "circular": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "a linear map of the channels": lambda: op(lambda m, h: m.fc(h.movedim(1, -1)).movedim(-1, 1), fc=nn.Linear(4, 3)),
    "attention": lambda: op(lambda m, h: F.scaled_dot_product_attention(h, h, h)),
    "smooth resizing": lambda: op(
        lambda m, h: F.interpolate(h, size=(4, 5), mode="bilinear", antialias=True, align_corners=False)
    ),
    "a signal as kernel": lambda: op(
        lambda m, h: F.conv2d(m.fixed, h.clone()), fixed=nn.Parameter(torch.ones(1, 4, 12, 12))
    ),
    "two constants among the channels": lambda: op(
        lambda m, h: torch.cat([m.grid, h, m.grid], 1), grid=nn.Parameter(torch.ones(1, 2, 9, 8))
    ),
}
"""Operations that windows do not go through."""


def assert_paths_are_full(frozen, lower, upper):
    """Paths from the largest neurons of a layer to the channels of a lower one are what they are one by one."""
    top, more = frozen.layer(upper), [None] * (len(frozen.layer(lower).shape) - 1)
    largest = top.output[0].flatten().argsort(descending=True)[:4]
    neurons = [tuple(int(i) for i in torch.unravel_index(n, top.shape)) for n in largest]
    paths = [Path.of([(lower, (c, *more)), (upper, neuron)]) for neuron in neurons for c in (0, 1, 3)]
    found = linear_models(frozen, paths, weighted)
    for k, path in enumerate(paths):
        expected = linear_model(frozen, weighted, path)
        assert_close(found.weight[k], expected.weight[0])
        assert_close(found.value[k].to(expected.value.dtype), expected.value[0])
    assert found.weight.any()


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_places_takes_the_full_product(name):
    frozen, upper, lower = between(MIXING[name](), batch=1)
    with pytest.raises(NotCropped):
        pull(frozen, upper, lower, every_neuron(upper))
    assert_paths_are_full(frozen, "0", "1")


@pytest.mark.parametrize("axes", [1, 3])
def test_other_numbers_of_axes_take_the_full_product(axes):
    convolution, pool, norm = {
        1: (nn.Conv1d, nn.MaxPool1d, nn.BatchNorm1d), 3: (nn.Conv3d, nn.MaxPool3d, nn.BatchNorm3d),
    }[axes]  # fmt: skip
    parts = convolution(2, 4, 3), norm(4), nn.ReLU(), pool(2), convolution(4, 3, 2), nn.ReLU(), nn.Flatten()
    frozen = freeze(randomise(nn.Sequential(*parts), 1), example((2, *[9, 8, 8][:axes]), 1, 1), layers=["2", "5"])
    with pytest.raises(NotCropped):
        Way(frozen, *reversed(frozen.layers), 2**30)
    assert_paths_are_full(frozen, "2", "5")


def test_windows_are_as_large_as_the_receptive_field():
    parts = [part for n in (2, 6, 6) for part in (nn.Conv2d(n, 6, 3, padding=1), nn.ReLU())]
    model = randomise(nn.Sequential(*parts, nn.Flatten()), 0)
    frozen = freeze(model, example((2, 30, 30), 0, 1))
    low, middle, top = frozen.layers
    crops = every_neuron(top).select(torch.arange(300, 420))
    for lower, size in ((middle, 3), (low, 5), (frozen.inputs[0], 7)):
        assert pull(frozen, top, lower, crops).values.shape[1:] == (lower.shape[0], size, size)
    few = pull(frozen, top, middle, crops, torch.arange(len(crops))[:, None] % 6)
    assert few.values.shape[1:] == (1, 3, 3)


POOLINGS = {
    "side by side": (lambda: nn.MaxPool2d(2), 2),
    "overlap": (lambda: nn.MaxPool2d(3, 2, 1), 3),
    "dilation": (lambda: nn.MaxPool2d(3, 2, dilation=2), 5),
    "adaptive": (lambda: nn.AdaptiveMaxPool2d(10), 3),
}
"""With how many places a side each looks at."""


@pytest.mark.parametrize("name", POOLINGS)
def test_windows_below_pooling_are_as_large_as_what_it_looks_at(name):
    pooling, size = POOLINGS[name]
    frozen, upper, lower = between(pooling(), size=(30, 30), batch=1)
    inner = [h * upper.shape[2] + w for h in (0, 4, upper.shape[1] - 1) for w in (0, 4, upper.shape[2] - 1)]
    pulled = pull(frozen, upper, lower, every_neuron(upper).select(torch.tensor(inner)))
    assert pulled.values.shape[2:] == (size, size)
    corner = pull(frozen, upper, lower, every_neuron(upper).select(torch.tensor([0])))
    assert corner.corners.tolist() == [[0, 0]]
    assert max(corner.values.shape[2:]) <= size


@pytest.mark.parametrize("layers", [["0", "1"], ["0", "2"]], ids=["pooling", "activation"])
def test_pooling_that_looks_beyond_the_border_alone_goes_in_no_window(layers):
    model = nn.Sequential(nn.Conv2d(2, CHANNELS, 1), nn.MaxPool2d(2, 1, 1, dilation=4), nn.ReLU(), nn.Flatten())
    frozen = freeze(randomise(model, 0), example((2, 3, 3), 0, 1), layers=layers)
    lower, upper = frozen.layers
    with pytest.raises(NotCropped):
        pull(frozen, upper, lower, every_neuron(upper))
    with pytest.raises(NotCropped):
        pull(frozen, upper, lower, every_neuron(upper).all_channels().all_places())


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_values_are_added_at_their_places_on_every_device(channels, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(height * width, (2, channels, 3, 2), generator=generator)
    values = torch.randn(place.shape, generator=generator, dtype=torch.float64)
    expected = torch.zeros(2, channels, height, width, dtype=torch.float64)
    for n, c, i, j in itertools.product(*map(range, place.shape)):
        expected[n, c].view(-1)[place[n, c, i, j]] += values[n, c, i, j]
    for added in (_cropped._added, _cropped._added_in_parallel):
        assert_close(added(values, place, (height, width)), expected)


def test_windows_that_hold_nearly_all_become_the_whole_layer():
    frozen, upper, lower = between(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 7, padding=3)))
    assert pull(frozen, upper, lower, every_neuron(upper)).corners is None


@pytest.mark.parametrize("name", [name for name in WINDOWED if name.startswith("convolution")])
def test_cotangents_on_all_places_need_no_windows(name):
    frozen, upper, lower = between(WINDOWED[name](), size=(10, 9))
    values = torch.randn(3, *upper.shape, generator=torch.Generator().manual_seed(1), dtype=upper.output.dtype)
    crops = Crops(values, upper.shape, torch.tensor([0, 1, 0]))
    pulled, expected = pull(frozen, upper, lower, crops), full(frozen, upper, lower, crops)
    assert pulled.corners is None
    assert float((pulled.dense() - expected).abs().max()) <= ROUNDING * float(expected.abs().max())


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_windows_are_written_one_after_the_other_as_all_at_once(height, width, h, w, seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.stack(
        [torch.randint(-k, n + 1, (5,), generator=generator) for k, n in ((h, height), (w, width))], 1
    )
    values = torch.randn(5, 3, h, w, generator=generator)
    channels = torch.stack([torch.randperm(7, generator=generator)[:3] for _ in range(5)]) if seed % 3 == 0 else None
    depth = 3 if channels is None else 7
    crops = Crops(values, (depth, height, width), torch.zeros(5, dtype=torch.int64), corners, channels).bounded()
    rows, factors = torch.randperm(6, generator=generator)[:5], torch.randn(5, generator=generator)
    found, sums = [], []
    for large in (0, 2**20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_crops, "LARGE", large)
            crops.write_to(whole := torch.zeros(6, depth, height, width), rows)
            crops.sum_into(total := torch.ones(1, depth, height, width), factors)
        found.append(whole)
        sums.append(total)
    assert torch.equal(*found)
    assert float((sums[0] - sums[1]).abs().max()) <= 1e-5
    assert float((sums[0] - 1 - (found[0][rows] * factors.view(-1, 1, 1, 1)).sum(0)).abs().max()) <= 1e-5
    assert float(found[0].abs().sum()) == pytest.approx(float(crops.values.abs().sum()), rel=1e-5)


@pytest.mark.parametrize(
    "kind", ["neurons", "channels", "two channels", "rows", "mixed", "few places", "line", "nearly all"]
)
def test_placed_cotangents_are_what_was_placed(kind):
    generator = torch.Generator().manual_seed(0)
    shape = (40,) if kind == "line" else (16, 6, 5)
    masks = torch.zeros(4, *shape, dtype=torch.bool)
    for n, mask in enumerate(masks):
        if kind in ("neurons", "mixed"):
            mask[2 * n, n, 1] = True
        if kind == "channels" or (kind == "mixed" and n == 1):
            mask[3 * n] = True
        if kind == "two channels":
            mask[[n, 9 + n]] = True
        if kind == "rows":
            mask[:, n] = True
        if kind == "few places":
            mask[5, 2:5, 1:3] = True
        if kind == "line":
            mask[n : n + 9] = True
        if kind == "nearly all":
            mask[:, 1:, : 4 - n] = True
    dense = torch.randn(masks.shape, generator=generator) * masks
    positions = [mask.flatten().nonzero()[:, 0] for mask in masks]
    some = {m: (p, v.flatten()[p]) for m, (v, p) in enumerate(zip(dense, positions, strict=True))}
    entries = Entries.of(some, dense[0].numel())
    assert torch.equal(entries.dense(shape, 4)[0], dense)
    twice = Entries(entries.places, torch.cat([entries.values, -entries.values]))
    crops = Crops.placed(twice, shape, torch.arange(4))
    assert torch.equal(crops.dense(), torch.cat([dense, -dense]))
    assert crops.samples.tolist() == [*range(4), *range(4)]
    expected = {"neurons": (1, 1, 1), "channels": (1, 6, 5), "two channels": (2, 6, 5), "rows": (16, 1, 5),
                "mixed": (2, 6, 5), "few places": (1, 3, 2), "line": (40,), "nearly all": (16, 6, 5)}  # fmt: skip
    assert crops.values.shape[1:] == expected[kind]


def test_the_dtype_of_a_number_written_in_forward_does_not_matter():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), op(lambda m, h: m.conv(h) * 2.5, conv=nn.Conv2d(4, 4, 3)), nn.Flatten())
    frozen = freeze(randomise(model, 0, torch.float32), example((2, 9, 8), 0, 1, torch.float32), layers=["0", "1"])
    upper, lower = frozen.layers[::-1]
    pulled = pull(frozen, upper, lower, every_neuron(upper))
    assert pulled.values.dtype == torch.float32
    assert_close(pulled.dense(), full(frozen, upper, lower, every_neuron(upper)))


def test_a_stretch_that_runs_in_another_dtype_is_carried_in_it():
    def wide(m, h):
        return m.conv(h) * m.factor

    middle = op(wide, conv=nn.Conv2d(4, 4, 3), factor=nn.Parameter(torch.ones(4, 1, 1).double()))
    frozen = freeze(nn.Sequential(nn.Conv2d(2, 4, 1), middle, nn.Flatten()).eval(),
                    example((2, 9, 8), 0, 1, torch.float32), layers=["0", "1"])  # fmt: skip
    lower, upper = frozen.layers
    assert upper.output.dtype == torch.float64
    pulled = pull(frozen, upper, lower, every_neuron(upper))
    assert pulled.values.dtype == torch.float32
    assert_close(pulled.dense(), full(frozen, upper, lower, every_neuron(upper)))
    assert_paths_are_full(frozen, "0", "1")


@pytest.mark.parametrize(
    ("count", "most", "sizes"), [(12, 11, [6, 6]), (12, 5, [4, 4, 4]), (7, 3, [2, 2, 3]), (3, 9, [3])]
)
def test_parts_are_as_alike_in_size_as_can_be(count, most, sizes):
    shape = (2, 3, 3)
    crops = Crops(torch.randn(count, *shape), shape, torch.zeros(count, dtype=torch.int64))
    whole = Part(slice(0, count), crops, torch.zeros(2, count), {("here", 0): [crops]}, 4)
    parts = whole.split(most)
    assert [len(part.met["here", 0][0]) for part in parts] == [part.biases.shape[1] for part in parts] == sizes
    assert torch.equal(torch.cat([part.met["here", 0][0].values for part in parts]), crops.values)
    assert [part.rows.start for part in parts] == [sum(sizes[:k]) for k in range(len(sizes))]


def test_cotangents_are_parted_before_an_operation_that_makes_them_larger():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(2, 2, 1), nn.ReLU())
    frozen = freeze(randomise(model, 0), torch.randn(1, 1, 16, 16).double())
    lower, upper = frozen.layers
    crops = Crops(torch.randn(8, *upper.shape).double(), upper.shape, torch.zeros(8, dtype=torch.int64))
    parts = [*Way(frozen, upper, lower, 2 * lower.output.nbytes).pull(crops)]
    assert [len(part.found) for part in parts] == [2, 2, 2, 2]
