"""What dead units would save: transposed convolutions of VGG-16 for twelve cotangents that share their gates.

    pip install numba
    python benchmarks/lists.py --output benchmarks/results/0.1.0/NAME.json

At one picture all cotangents are zero at the same neurons, those that are off and those that lost in a pooling. Here
the ones that are left are listed, place by place, and a small matrix product, compiled by numba, takes its terms from
the list: for twelve cotangents and two vectors of channels at a time the sums stay in registers. Time over that of
torch's convolution of the same values, zeros included, run in turn on one thread; the time to copy what is listed is
counted, that to find what is alive is not. The library does without, see docs/decisions/0009-many-products.md.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from cost import machine, timed

COUNT, LANES = 12, 16
"""Cotangents, and numbers in one vector."""
SHAPES = ((512, 512, 14), (512, 512, 28), (256, 256, 56), (128, 128, 112), (64, 64, 224))
"""Channels above and below, places a side."""
ALIVE = (0.5, 0.25, 0.12)
"""Shares of the neurons: about half after a ReLU, a quarter of that after pooling."""


@intrinsic
def tile(_, rows, weights, out, sources, kernels, terms, d, to, across):
    """``out[to + i across + j] = sum over t of rows[sources_t + i] weights[kernels_t + d + j]``, j below 2 LANES."""

    def emit(context, builder, signature, arguments):
        arrays = zip(signature.args[:5], arguments, strict=False)
        v, w, o, s, k = (context.make_array(kind)(context, builder, given).data for kind, given in arrays)
        count, column, start, pitch = arguments[5:]
        scalar, index = ir.FloatType(), count.type
        vector, lane = ir.VectorType(scalar, LANES), ir.Constant(ir.IntType(32), 0)
        same = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        multiply_add = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(builder.module, multiply_add, f"llvm.fma.v{LANES}f32")

        def at(pointer, j):
            return builder.bitcast(builder.gep(pointer, [index(j * LANES)]), vector.as_pointer())

        sums = [[cgutils.alloca_once_value(builder, vector(None)) for _ in range(2)] for _ in range(COUNT)]
        with cgutils.for_range(builder, count, intp=index) as loop:
            source, kernel = (builder.load(builder.gep(p, [loop.index])) for p in (s, k))
            entry, line = builder.gep(v, [source]), builder.gep(w, [builder.add(kernel, column)])
            factors = [builder.load(at(line, j), align=4) for j in range(2)]
            for i, mine in enumerate(sums):
                value = builder.load(builder.gep(entry, [index(i)]))
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, lane)
                spread = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), same)
                for total, factor in zip(mine, factors, strict=True):
                    builder.store(builder.call(fma, [spread, factor, builder.load(total)]), total)
        for i, mine in enumerate(sums):
            line = builder.gep(o, [builder.add(start, builder.mul(pitch, index(i)))])
            for j, total in enumerate(mine):
                builder.store(builder.load(total), at(line, j), align=4)
        return context.get_dummy_value()

    return types.void(rows, weights, out, sources, kernels, terms, d, to, across), emit


@njit(nogil=True)
def listed(tiles, source, pitch, rows):
    """Copy what is alive: row after row the values of all cotangents at one neuron."""
    for entry in range(len(rows)):
        for i in range(rows.shape[1]):
            rows[entry, i] = tiles[source[entry] + i * pitch]


@njit(nogil=True)
def product(rows, start, channel, weight, out, side, above, below, scratch):
    """The transposed convolution, 3 x 3 with padding 1, of the listed values."""
    for y in range(side):
        for x in range(side):
            terms = 0
            for i in range(3):
                for j in range(3):
                    row, column = y + 1 - i, x + 1 - j
                    if 0 <= row < side and 0 <= column < side:
                        place = row * side + column
                        for entry in range(start[place], start[place + 1]):
                            scratch[0, terms] = entry * COUNT
                            scratch[1, terms] = ((3 * i + j) * above + channel[entry]) * below
                            terms += 1
            for d in range(0, below, 2 * LANES):
                to = (y * side + x) * COUNT * below + d
                tile(rows, weight, out, scratch[0], scratch[1], terms, d, to, below)


class Lists:
    """One convolution, and values that are zero where nothing is alive."""

    def __init__(self, above: int, below: int, side: int, alive: float) -> None:
        torch.manual_seed(0)
        mask = torch.rand(above, side, side) < alive
        self.values = torch.randn(COUNT, above, side, side) * mask
        self.weight = torch.randn(above, below, 3, 3) / (3 * below**0.5)
        flat = mask.permute(1, 2, 0).flatten(0, 1)
        self.start = torch.cat([torch.zeros(1, dtype=torch.int64), flat.sum(1).cumsum(0)])
        places, channels = flat.nonzero().unbind(1)
        self.channel, self.source = channels.int(), places * COUNT * above + channels
        self.tiles = self.values.permute(2, 3, 0, 1).contiguous()
        self.taps = self.weight.permute(2, 3, 0, 1).contiguous()
        self.sizes = side, above, below

    def ours(self) -> Tensor:
        """By the list, as (rows, columns, cotangents, channels)."""
        side, above, below = self.sizes
        rows, out = torch.empty(len(self.channel), COUNT), torch.empty(side, side, COUNT, below)
        listed(self.tiles.view(-1).numpy(), self.source.numpy(), above, rows.numpy())
        flat = [t.view(-1).numpy() for t in (rows, self.start, self.channel, self.taps, out)]
        product(*flat, *self.sizes, torch.empty(2, 9 * above, dtype=torch.int64).numpy())
        return out

    def torchs(self) -> Tensor:
        """By torch, as many at a time as a processor's cache holds."""
        some = self.values.split(max(1, 2**22 // self.values[0].numel()))
        return torch.cat([F.conv_transpose2d(part, self.weight, padding=1) for part in some])


def main() -> None:
    """Measure all shapes, print a table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'channels':>10}{'side':>6}{'alive':>7}{'times as fast':>15}{'error':>10}")
    for above, below, side in SHAPES:
        for alive in ALIVE:
            one = Lists(above, below, side, alive)
            expected = one.torchs()
            error = float((one.ours().permute(2, 3, 0, 1) - expected).abs().max() / expected.abs().max())
            assert error < 1e-5, f"the two differ by {error}"
            times = statistics.median(timed(one.torchs) / timed(one.ours) for _ in range(options.repeats))
            rows.append({"channels": above, "side": side, "alive": alive, "times_as_fast": times, "error": error})
            print(f"{above:>10}{side:>6}{alive:>7}{times:>15.1f}{error:>10.0e}")
    if options.output:
        report = {"machine": machine() | {"threads": 1}, "cotangents": COUNT, "rows": rows}
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
