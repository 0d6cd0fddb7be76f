"""What fewer multiplications give: transposed convolutions of VGG-16 in windows, torch's and by Winograd's tiles.

    python benchmarks/winograd.py --output benchmarks/results/0.1.0/NAME.json

Tiles of four results along the rows alone, as the library does it, or in both directions; how many times as fast as
torch's own convolution, run in turn, and the largest error over that of torch's, both against double precision. See
docs/decisions/0009-many-products.md.

Source: Winograd: Arithmetic complexity of computations, 1980; Lavin, Gray: Fast algorithms for convolutional neural
networks, CVPR 2016.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cost import machine, timed
from relupath._winograd import TAPS, conv_transpose, pays

KERNEL = torch.tensor(TAPS)
PICTURE = torch.tensor(
    [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
     [0, 4, 0, -5, 0, 1.0]]
)  # fmt: skip
RESULT = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1.0]])
SHAPES = ((512, 512, 14, 32), (512, 512, 28, 8), (256, 256, 56, 4), (128, 128, 112, 2), (64, 64, 224, 1))
"""Channels above and below, places a side, windows at a time."""


def direct(values: Tensor, weight: Tensor) -> Tensor:
    """Torch's own."""
    return F.conv_transpose2d(values, weight, padding=1)


def along_rows(values: Tensor, weight: Tensor) -> Tensor:
    """The library's."""
    return conv_transpose(values, weight, (1, 1))


def both_ways(values: Tensor, weight: Tensor) -> Tensor:
    """Tiles of 4 x 4 results, by one matrix product for each of their 36 coefficients."""
    (count, above, height, width), below = values.shape, weight.shape[1]
    down, across = -(-height // 4), -(-width // 4)
    padded = F.pad(values, (1, 4 * across + 1 - width, 1, 4 * down + 1 - height))
    padded = padded.permute(0, 2, 3, 1).contiguous()
    sample, row, column, _ = padded.stride()
    tiles = padded.as_strided((6, 6, count, down, across, above), (row, column, sample, 4 * row, 4 * column, 1))
    pictures = torch.kron(PICTURE, PICTURE) @ tiles.reshape(36, -1)
    kernels = torch.kron(KERNEL, KERNEL) @ weight.flip(2, 3).flatten(2).permute(2, 0, 1).reshape(9, -1)
    products = pictures.view(36, -1, above) @ kernels.view(36, above, below)
    found = torch.kron(RESULT, RESULT) @ products.flatten(1)
    found = found.view(4, 4, count, down, across, below).permute(2, 5, 3, 0, 4, 1)
    return found.reshape(count, below, 4 * down, 4 * across)[:, :, :height, :width]


WAYS = {"along the rows": along_rows, "in both directions": both_ways}


def row(above: int, below: int, side: int, count: int, repeats: int) -> dict[str, object]:
    """One shape: how many times as fast each way is, and how many times the error."""
    values, weight = torch.randn(count, above, side, side), torch.randn(above, below, 3, 3) / (9 * above) ** 0.5
    exact = F.conv_transpose2d(values.double(), weight.double(), padding=1)
    error = {name: float((f(values, weight) - exact).abs().amax()) for name, f in {"": direct, **WAYS}.items()}
    used = pays(values, weight)
    found: dict[str, object] = {"channels": above, "side": side, "windows": count, "used by the library": used}
    for name, way in WAYS.items():
        pairs = [(timed(direct, values, weight), timed(way, values, weight)) for _ in range(repeats + 1)]
        found[f"{name}: times as fast"] = round(statistics.median(a / b for a, b in pairs[1:]), 2)
        found[f"{name}: times the error"] = round(error[name] / error[""], 1)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    with torch.no_grad():
        rows = [row(*shape, options.repeats) for shape in SHAPES]
    for found in rows:
        print(", ".join(f"{name} {value}" for name, value in found.items()))
    if options.output:
        report = {"machine": machine(), "rows": rows}
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
