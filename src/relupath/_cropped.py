"""What the operations of the autograd graph do to cotangents that live on few places, in windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from . import _transposed, _winograd
from ._crops import Crops

Place: TypeAlias = tuple[Any, int]
"""A tensor of the recorded pass: the node of the autograd graph that gave it, and the number of the output."""
Channels: TypeAlias = Int[Tensor, "N c"] | None
Pulled: TypeAlias = Sequence[Crops]
"""What an operation's arguments get, in their order."""


NARROW = 8
"""To so many channels a convolution goes back faster as one matrix product, or phase by phase."""


class NotCropped(Exception):
    """Raised where an operation mixes all places, or is none of those that windows go through."""


def metadata(place: Place) -> Any:
    """What autograd knows of the tensor at a place: shape, dtype and device."""
    return place[0]._input_metadata[place[1]]


def shape_of(place: Place) -> tuple[int, ...]:
    """The shape of the tensor at a place, without the batch axis."""
    return tuple(metadata(place).shape)[1:]


def _signal(node: Any) -> tuple[int, ...]:
    """The shape of the first argument, without the batch axis."""
    place = node.next_functions[0]
    if place[0] is None or len(shape_of(place)) != 3:
        raise NotCropped
    return shape_of(place)


def _signed(number: int) -> int:
    """What autograd kept, which gives negative numbers as those of 64 bits without a sign."""
    return number - 2**64 if number >= 2**63 else number


def _same(node: Any, crops: Crops, wanted: Channels) -> Pulled:
    return [crops]


def _overwritten(node: Any, crops: Crops, wanted: Channels) -> Pulled:
    """What an operation in place wrote over gets nothing; what it wrote gets all."""
    return [crops.with_values(torch.zeros_like(crops.values)), crops]


def _sum(node: Any, crops: Crops, wanted: Channels) -> Pulled:
    factor = -node._saved_alpha if node.name() == "SubBackward0" else node._saved_alpha
    return [crops, crops if factor == 1 else crops.with_values(crops.values * factor)]


def _relu(node: Any, crops: Crops, wanted: Channels) -> Pulled:
    result = crops.take(node._saved_result).expand_as(crops.values)
    return [crops.with_values(torch.ops.aten.threshold_backward(crops.values, result, 0))]


def _slope(node: Any, crops: Crops, wanted: Channels) -> Pulled:
    (slope,) = node.saved_tensors or (node.slope,)
    return [crops.with_values(crops.values * crops.take(slope).to(crops.values.dtype))]


def _elementwise(node: Any, crops: Crops, wanted: Channels) -> Pulled:
    """The slopes are what autograd gives for ones."""
    place = metadata((node, 0))
    slopes = node(torch.ones(tuple(place.shape), dtype=place.dtype, device=place.device))
    slopes = slopes if isinstance(slopes, tuple) else (slopes,)
    return [crops if slope is None else crops.with_values(crops.values * crops.take(slope)) for slope in slopes]


def _cat(node: Any, crops: Crops, wanted: Channels) -> Pulled:
    if _signed(node._saved_dim) not in (1, -3):
        raise NotCropped
    sizes = [None if place[0] is None else shape_of(place)[0] for place in node.next_functions]
    if sizes.count(None) > 1:  # constants, whose sizes are not kept; that of one follows
        raise NotCropped
    rest = crops.shape[0] - sum(size for size in sizes if size is not None)
    parts, start = [], 0
    for size in (rest if size is None else size for size in sizes):
        values, channels = crops.values, crops.channels
        if channels is not None and bool(((channels >= start) & (channels < start + size)).all()):
            channels = channels - start
        else:  # a row has a channel of another part: name none, so that none is named twice
            values, channels = crops.all_channels().values[:, start : start + size], None
        parts.append(replace(crops, values=values, channels=channels, shape=(size, *crops.shape[1:])))
        start += size
    return parts


def _pad(node: Any, crops: Crops, wanted: Channels) -> Pulled:
    left, right, top, bottom, *others = [*map(_signed, node._saved_pad), 0, 0]
    if any(others):
        raise NotCropped
    if crops.corners is None:
        values = F.pad(crops.values, (-left, -right, -top, -bottom))
        return [replace(crops, values=values, shape=_signal(node))]
    corners = crops.corners - torch.tensor([top, left], device=crops.values.device)
    return [replace(crops, corners=corners, shape=_signal(node)).bounded()]


def _convolution(node: Any, crops: Crops, wanted: Channels) -> Pulled:
    """The transposed convolution, with those kernels alone whose channels count."""
    weight, groups, shape = node._saved_weight, node._saved_groups, _signal(node)
    if node._saved_transposed or weight.ndim != 4:
        raise NotCropped
    if groups > 1:
        crops, wanted = crops.all_channels(), None
    stride, padding, dilation = (tuple(getattr(node, f"_saved_{key}")) for key in ("stride", "padding", "dilation"))
    values = crops.values
    if crops.channels is not None or wanted is not None:
        weight = weight[None] if crops.channels is None else weight[crops.channels]
        if wanted is not None:
            weight = weight.expand(len(crops), *weight.shape[1:])
            where = wanted[:, None, :, None, None].expand(-1, weight.shape[1], -1, *weight.shape[3:])
            weight = weight.gather(2, where)
        z = _transposed.each(values, weight, stride, dilation)
    elif values.shape[2:] == (1, 1) == dilation and groups == 1:
        z = torch.einsum("nc,cikl->nikl", values[:, :, 0, 0], weight)
    elif tuple(weight.shape[2:]) == (1, 1) == stride and groups == 1:
        z = (weight[:, :, 0, 0].T @ values.flatten(2)).unflatten(2, values.shape[2:])
    elif weight.shape[1] <= NARROW and groups == 1 and weight[0].numel() <= len(weight):
        z = _transposed.by_tap(values, weight, stride, dilation)
    elif weight.shape[1] <= NARROW and stride[0] == stride[1] > 1 and dilation == (1, 1) and groups == 1:
        z = _transposed.by_phase(values, weight, stride[0])
    elif stride == dilation == (1, 1) and groups == 1 and max(padding) <= 2 and _winograd.pays(values, weight):
        z = _winograd.conv_transpose(values, weight, padding if crops.corners is None else (0, 0))
        if crops.corners is None:
            return [Crops(z, shape, crops.samples)]
    elif crops.corners is None:
        sides = zip(shape[1:], values.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
        rest = [size - (have - 1) * s + 2 * p - d * (k - 1) - 1 for size, have, k, s, p, d in sides]
        z = F.conv_transpose2d(values, weight, None, stride, padding, rest, groups, dilation)
        return [Crops(z, shape, crops.samples)]
    else:
        z = F.conv_transpose2d(values, weight, stride=stride, dilation=dilation, groups=groups)
    if crops.corners is None:
        ends = [size - have + pad for size, have, pad in zip(shape[1:], z.shape[2:], padding, strict=True)]
        if any((*ends, *padding)):
            z = F.pad(z, (-padding[1], ends[1], -padding[0], ends[0]))
        corners = None
    else:
        scale, shift = (torch.tensor(pair, device=z.device) for pair in (stride, padding))
        corners = crops.corners * scale - shift
    return [Crops(z, shape, crops.samples, corners, wanted).bounded()]


def taken(node: Any, crops: Crops, wanted: Channels) -> int:
    """The bytes that one cotangent takes in an operation: its values, above or below, or kernels that are its own."""
    own = 0
    if crops.corners is crops.channels is None and node.next_functions[0][0] is not None:
        own = math.prod(shape_of(node.next_functions[0])) * crops.values.element_size()
    if node.name() == "ConvolutionBackward0" and not (crops.channels is wanted is None):
        above, below = node._saved_weight.shape[:2]
        above = above if crops.channels is None else crops.channels.shape[1]
        below = wanted.shape[1] if wanted is not None and crops.channels is None else below
        own += 2 * above * below * math.prod(node._saved_weight.shape[2:]) * node._saved_weight.element_size()
    return max(crops.bytes_each, own)


def _max_pool(node: Any, crops: Crops, wanted: Channels) -> Pulled:
    """Each cotangent goes to the place of its maximum."""
    crops, shape, corners = crops.inside(), _signal(node), None
    place, (height, width) = crops.take(node._saved_result1), shape[1:]
    if crops.corners is not None:
        sides = zip(crops.corners.unbind(1), crops.values.shape[2:], _pooled(node, crops), strict=True)
        starts, ends = zip(*((first[at], last[at + size - 1]) for at, size, (first, last) in sides), strict=True)
        corners = torch.stack(starts, 1)
        height, width = (int((end - start).amax()) + 1 for start, end in zip(starts, ends, strict=True))
        place = torch.sub(place, place // shape[2], alpha=shape[2] - width)
        place -= (starts[0] * width + starts[1])[:, None, None, None]
    least, largest = place.aminmax()
    if least < 0 or largest >= height * width:  # as torch gives them where pooling looks beyond the border alone
        raise NotCropped
    added = _added_in_parallel if place.is_cpu else _added
    z = added(crops.values, place.expand_as(crops.values), (height, width))
    return [Crops(z, shape, crops.samples, corners, crops.channels)]


def _added(
    values: Float[Tensor, "N c h w"], place: Int[Tensor, "N c h w"], size: tuple[int, int]
) -> Float[Tensor, "N c height width"]:
    """Every value added at its place in a map of that size."""
    whole = (*values.shape[:2], *size)
    return values.new_zeros(whole).flatten(2).scatter_add_(2, place.flatten(2), values.flatten(2)).view(whole)


def _added_in_parallel(
    values: Float[Tensor, "N c h w"], place: Int[Tensor, "N c h w"], size: tuple[int, int]
) -> Float[Tensor, "N c height width"]:
    """The same on a processor, where scatter_add_ adds one after the other; places outside are not noticed."""
    z = values.new_empty(*values.shape[:2], *size)
    found: Tensor = torch.ops.aten.adaptive_max_pool2d_backward(values, z, place)
    return found


def _pooled(node: Any, crops: Crops) -> Iterator[tuple[Int[Tensor, " size"], Int[Tensor, " size"]]]:
    """For each row, and each column, that pooling gives, the first and the last one that it looks at."""
    for axis, (size, whole) in enumerate(zip(crops.shape[1:], _signal(node)[1:], strict=True)):
        number = torch.arange(size, device=crops.values.device)
        if node.name() == "AdaptiveMaxPool2DBackward0":
            yield number * whole // size, ((number + 1) * whole - 1) // size
            continue
        kernel, stride, padding, step = (
            _pair(node, key)[axis] for key in ("kernel_size", "stride", "padding", "dilation")
        )
        start = number * stride - padding
        first = start + step * (-start).clamp(min=0).add(step - 1).div(step, rounding_mode="floor")
        last = start + step * (whole - 1 - start).div(step, rounding_mode="floor").clamp(max=kernel - 1)
        yield first, last


def _pair(node: Any, key: str) -> tuple[int, int]:
    numbers = tuple(getattr(node, f"_saved_{key}")) or tuple(node._saved_kernel_size)
    return numbers * 2 if len(numbers) == 1 else numbers


def _average_pool(node: Any, crops: Crops, wanted: Channels) -> Pulled:
    divisor = node._saved_divisor_override
    kernel, stride, padding = (_pair(node, key) for key in ("kernel_size", "stride", "padding"))

    def along(axis: int) -> Callable[[Tensor], Tensor]:
        size, step, border = (kernel[axis], 1), (stride[axis], 1), (padding[axis], 0)
        override = None if divisor is None else (divisor, 1)[axis]
        rest = node._saved_ceil_mode, node._saved_count_include_pad, override
        return lambda eye: F.avg_pool2d(eye, size, step, border, *rest)

    return _separable(node, crops, along(0), along(1))


def _adaptive_pool(node: Any, crops: Crops, wanted: Channels) -> Pulled:
    if crops.shape == _signal(node):
        return [crops]
    ends = [lambda eye, size=size: F.adaptive_avg_pool2d(eye, (size, 1)) for size in crops.shape[1:]]
    return _separable(node, crops, *ends)


def _upsampled(mode: str) -> Callable[[Any, Crops, Channels], Pulled]:
    def operation(node: Any, crops: Crops, wanted: Channels) -> Pulled:
        corners = {"align_corners": node._saved_align_corners} if mode.startswith("bi") else {}

        def along(size: int, scale: float | None) -> Callable[[Tensor], Tensor]:
            how: dict[str, Any] = {"size": (size, 1)} if scale is None else {"scale_factor": (scale, 1.0)}
            return lambda eye: F.interpolate(eye, mode=mode, **how, **corners)

        _, height, width = crops.shape
        return _separable(node, crops, along(height, node._saved_scales_h), along(width, node._saved_scales_w))

    return operation


def _padded(mode: str) -> Callable[[Any, Crops, Channels], Pulled]:
    def operation(node: Any, crops: Crops, wanted: Channels) -> Pulled:
        left, right, top, bottom = map(_signed, node._saved_padding)
        ends = [lambda eye, both=both: F.pad(eye, (0, 0, *both), mode=mode) for both in ((top, bottom), (left, right))]
        return _separable(node, crops, *ends)

    return operation


def _separable(node: Any, crops: Crops, down: Callable[[Tensor], Tensor], across: Callable[[Tensor], Tensor]) -> Pulled:
    """An operation that is one matrix for the rows and one for the columns, given by what it does to a column."""
    shape, values = _signal(node), crops.values
    matrices = []
    for size, of in zip(shape[1:], (down, across), strict=True):
        eye = torch.eye(size, dtype=values.dtype, device=values.device).view(1, size, size, 1)
        matrices.append(of(eye)[0, :, :, 0].T)
    corners = None
    if crops.corners is not None:
        cut = [_cut(m, numbers) for m, numbers in zip(matrices, crops.rows(), strict=True)]
        (rows, top), (columns, left) = cut
        z = torch.einsum("nhi,nchw,nwj->ncij", rows, values, columns)
        corners = torch.stack([top, left], 1)
    else:
        z = torch.einsum("hi,nchw,wj->ncij", matrices[0], values, matrices[1])
    return [replace(crops, values=z, shape=shape, corners=corners).bounded()]


def _cut(
    matrix: Float[Tensor, "out size"], numbers: Int[Tensor, "N h"]
) -> tuple[Float[Tensor, "N h s"], Int[Tensor, " N"]]:
    """Some rows of a matrix each, cut to the columns that they reach, and the first of these."""
    size = matrix.shape[1]
    reached = matrix.ne(0)
    columns = torch.arange(size, device=matrix.device)
    first = torch.where(reached, columns, size).amin(1)
    last = torch.where(reached, columns, -1).amax(1)
    outside = (numbers < 0) | (numbers >= len(matrix))
    inside = numbers.clamp(0, len(matrix) - 1)
    start = torch.where(outside, size, first[inside]).amin(1)
    width = max(1, int((torch.where(outside, -1, last[inside]).amax(1) - start).amax()) + 1)
    where = start[:, None] + torch.arange(width, device=matrix.device)
    cut = matrix[inside[:, :, None], where.clamp(max=size - 1)[:, None, :]]
    return cut * ((where < size)[:, None, :] & ~outside[:, :, None]), start


OPERATIONS: Mapping[str, Callable[[Any, Crops, Channels], Pulled]] = {
    "ReluBackward0": _relu,
    "WithSlopeBackward": _slope,
    "LeakyReluBackward0": _elementwise,
    "LeakyReluBackward1": _elementwise,
    "PreluKernelBackward0": _elementwise,
    "AbsBackward0": _elementwise,
    "MaximumBackward0": _elementwise,
    "MinimumBackward0": _elementwise,
    "WhereBackward0": _elementwise,
    "MulBackward0": _elementwise,
    "DivBackward0": _elementwise,
    "NegBackward0": _elementwise,
    "RsubBackward1": _elementwise,
    "AddBackward0": _sum,
    "SubBackward0": _sum,
    "CloneBackward0": _same,
    "torch::autograd::CopyBackwards": _overwritten,
    "ExpandBackward0": _same,
    "AliasBackward0": _same,
    "CatBackward0": _cat,
    "ConstantPadNdBackward0": _pad,
    "ReflectionPad2DBackward0": _padded("reflect"),
    "ReplicationPad2DBackward0": _padded("replicate"),
    "ConvolutionBackward0": _convolution,
    "MaxPool2DWithIndicesBackward0": _max_pool,
    "AdaptiveMaxPool2DBackward0": _max_pool,
    "AvgPool2DBackward0": _average_pool,
    "AdaptiveAvgPool2DBackward0": _adaptive_pool,
    "UpsampleNearest2DBackward0": _upsampled("nearest"),
    "UpsampleNearestExact2DBackward0": _upsampled("nearest-exact"),
    "UpsampleBilinear2DBackward0": _upsampled("bilinear"),
    "UpsampleBicubic2DBackward0": _upsampled("bicubic"),
}
"""What windows go through, by autograd's name of the operation; what is not here takes the full product."""
KEEP_CHANNELS = frozenset(OPERATIONS) - {"ConvolutionBackward0", "CatBackward0"}
"""Operations that leave every channel where it is."""
