"""The transposed convolution of a 3 x 3 kernel with half the multiplications: Winograd's tiles of four rows.

Four rows of the result take six rows and three taps. As six products of sums, each with a sum of the taps, they take 6
multiplications instead of 12; along a row the convolution stays what it is. Round-off is about four times as large.

Source: Winograd: Arithmetic complexity of computations, 1980; Lavin, Gray: Fast algorithms for convolutional neural
networks, CVPR 2016 (F(4, 3)).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

TAPS = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
"""The six sums of the taps."""
SIDE, PLACES, WIDTH, WORTH = 12, 2**11, 2**6, 2**11
"""It pays from so many places a side, and together; from so many channels ``c d / (c + d)``, and times the side."""


def pays(values: Float[Tensor, "N c h w"], weight: Float[Tensor, "c d k l"]) -> bool:
    """Whether it is faster than torch's own: on a processor, where the sums are few beside the multiplications."""
    (count, c, h, w), (_, d, *taps), side = values.shape, weight.shape, min(values.shape[2:])
    width = c * d / (c + d)
    fits = taps == [3, 3] and values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)
    return fits and side >= SIDE and count * h * w >= PLACES and width >= WIDTH and side * width >= WORTH


def conv_transpose(
    values: Float[Tensor, "N c h w"], weight: Float[Tensor, "c d 3 3"], padding: tuple[int, int]
) -> Float[Tensor, "N d height width"]:
    """What ``torch.conv_transpose2d`` gives with stride 1 and a padding of at most 2, 0 where no entry reaches."""
    height = values.shape[2] + 2 - 2 * padding[0]
    tiles = -(-height // 4)
    top = 2 - padding[0]
    padded = F.pad(values, (0, 0, top, 4 * tiles + 2 - top - values.shape[2]))
    r0, r1, r2, r3, r4, r5 = (padded[:, :, i : i + 4 * tiles - 3 : 4] for i in range(6))
    near, far = r4 - r2, r3 - r1
    even, odd = torch.sub(r4, r2, alpha=4), torch.sub(r3, r1, alpha=4)
    kernels = torch.einsum("ik,cdkl->idcl", weight.new_tensor(TAPS).flip(1), weight.flip(3)).unsqueeze(3)

    def along(number: int, rows: Tensor) -> Tensor:
        return F.conv2d(rows, kernels[number], padding=(0, 2 - padding[1]))

    first, last = along(0, near + 4 * (r0 - r2)), along(5, torch.sub(r5 - r3, far, alpha=4))
    one, two = along(1, even + odd), along(2, even - odd)
    three, four = along(3, torch.add(near, far, alpha=2)), along(4, torch.sub(near, far, alpha=2))
    plus, minus, twice, thrice = one + two, one - two, three + four, three - four
    found = values.new_empty(*plus.shape[:2], tiles, 4, plus.shape[3])
    torch.add(first + plus, twice, out=found[:, :, :, 0])
    torch.add(minus, thrice, alpha=2, out=found[:, :, :, 1])
    torch.add(plus, twice, alpha=4, out=found[:, :, :, 2])
    torch.add(minus + last, thrice, alpha=8, out=found[:, :, :, 3])
    found, live = found.flatten(2, 3)[:, :, :height], values.any(1, keepdim=True)
    if bool(live.all()):
        return found
    reached = F.max_pool2d(F.pad(live.to(values.dtype), (2, 2, 2, 2)), 3, 1)
    ends = [size - have for size, have in zip(reached.shape[2:], found.shape[2:], strict=True)]
    reached = F.pad(reached, (-padding[1], padding[1] - ends[1], -padding[0], padding[0] - ends[0]))
    return found.mul_(reached)  # a tile's sums leave round-off where nothing comes
