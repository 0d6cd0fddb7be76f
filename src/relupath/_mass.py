"""How much all paths carry: their number, their positive and negative mass, and paths drawn by size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ._frozen import AT_ONCE, Frozen, LayerLike
from ._html import block, said, samples, table
from ._partitions import neurons
from ._paths import Path, Step
from ._segments import next_layers, rows, segment
from ._simple import Of
from ._targets import Functional, TargetLike
from ._units import Layer
from .errors import PathError


@dataclass(frozen=True, eq=False)
class Sample:
    """Paths drawn from all complete one-way paths of one input, in proportion to the size of their values.

    Attributes:
        paths: the paths drawn; one may be drawn several times.
        signs: the sign of the value of each, (n,).
        mass: the sum of the sizes of the values of all paths.
    """

    paths: tuple[Path, ...]
    signs: Float[Tensor, " n"]
    mass: float

    def _repr_html_(self) -> str:
        counts = Counter(zip(map(str, self.paths), self.signs.sign().tolist(), strict=True))
        rows = [(count, "+" if sign > 0 else "\N{MINUS SIGN}", path) for (path, sign), count in counts.most_common()]
        title = f"{len(self.paths)} paths drawn in proportion to their size"
        return block(title, table(("drawn", "sign", "path"), rows, most=8))

    def estimate(self, statistic: Callable[[Path], float]) -> tuple[float, float]:
        """An unbiased estimate of ``sum over all paths P of f^P(x) statistic(P)``, and its standard error.

        The estimate is ``mass / n * sum over the paths drawn of sign(f^P(x)) statistic(P)``.
        """
        terms = self.mass * self.signs * self.signs.new_tensor([float(statistic(path)) for path in self.paths])
        spread = float(terms.std()) if len(terms) > 1 else math.inf
        return float(terms.mean()), spread / math.sqrt(len(terms))


@dataclass(frozen=True, eq=False)
class PathMass:
    """What all complete one-way paths over single neurons carry together; see ``path_mass``.

    Attributes:
        count_log10: the decimal logarithm of the number of active paths, those whose value is not zero, (B,); -inf for
            none.
        positive: the sum of the positive values, (B,).
        negative: the sum of the negative values, (B,).
        total: the sum of all values, to more digits than the two, which may be far larger, hold, (B,).
        units: for each layer, by name, the same two sums over the paths through each neuron, (B, *shape) each.
        labels: the target of each sample.
    """

    count_log10: Float[Tensor, " B"]
    positive: Float[Tensor, " B"]
    negative: Float[Tensor, " B"]
    total: Float[Tensor, " B"]
    units: Mapping[str, tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]] = field(repr=False)
    labels: tuple[str, ...]
    _passes: _Passes = field(repr=False)

    @property
    def mass(self) -> Float[Tensor, " B"]:
        """The sum of the sizes of the values, (B,)."""
        return self.positive - self.negative

    def _repr_html_(self) -> str:
        numbers = {"target": self.labels, "log10 of their number": self.count_log10.tolist()}
        sums = {name: getattr(self, name).tolist() for name in ("positive", "negative", "total")}
        layers = said("the same by neuron of " + ", ".join(self.units))
        return block("All complete one-way paths together", samples(numbers | sums), layers)

    def sample(self, n: int, generator: torch.Generator | None = None, *, of: int = 0) -> Sample:
        """Draw n paths of one sample of the batch, each with probability ``|f^P(x)| / mass``.

        Args:
            n: how many.
            generator: of random numbers, on the CPU; None takes torch's own.
            of: which sample of the batch.

        Raises:
            PathError: n is less than 1, the sample is not in the batch, or there is no active path.
        """
        if n < 1:
            raise PathError(f"n must be at least 1; got {n}")
        if not 0 <= of < len(self.mass):
            raise PathError(f"sample {of} is not in the batch of {len(self.mass)}")
        if not self.mass[of] > 0:
            raise PathError(f"no path to {self.labels[of]} of sample {of} is active: there is none to draw")
        paths, signs = _Draw(self._passes, of, n, generator).drawn(self.labels[of])
        return Sample(paths, signs, float(self.mass[of]))


def path_mass(
    frozen: Frozen, target: TargetLike = None, layers: Sequence[LayerLike] | None = None, *, products: int = 20_000
) -> PathMass:
    """Count all complete one-way paths over single neurons and sum up their values, without listing them.

    A complete path is what ``Exact`` searches; its value is ``f^P(x)``. From the bottom up, with D = d a_A / d a_B::

        N_A[u] = sum over w of [D[u, w] != 0] N_B[w]      T_A[u] = sum over w of |D[u, w]| T_B[w]
        S_A[u] = sum over w of D[u, w] S_B[w]

    from [a != 0], |a| and a on a lowest layer; and down again with the transposes, so that T and S of the paths through
    a neuron are products of what comes from above and from below. Their positive part is (T + S) / 2.

    Args:
        frozen: the recorded network.
        target: what is explained; None means each sample's predicted class.
        layers: the layers of the paths; None means every recorded one whose first axis is the batch.
        products: see ``Exact``.

    Raises:
        PathError: the derivative between two layers takes too many products, there is no layer, or one is named twice.
        UnknownLayerError: a layer is not recorded.
        TargetError: the target does not fit the output or is not linear.

    Source: section 6 of the paper asks how much paths carry; the recursion is this library's answer.
    """
    chosen = frozen.layers_of_paths(layers)
    functional = frozen.functional(target)
    lower = next_layers(frozen.top, frozen.levels(chosen), frozen.below(chosen))
    return _Passes(frozen, functional, lower, products).result()


class _Passes:
    """The pass from the bottom up, and the one down again.

    ``signed`` and ``sizes`` hold S and T of every layer; ``counts`` N, with the largest scaled to 1, and ``logs`` the
    decimal logarithm of what it was scaled by.
    """

    def __init__(
        self, frozen: Frozen, functional: Functional, lower: Mapping[Layer, tuple[Layer, ...]], products: int
    ) -> None:
        self.frozen, self.lower = frozen, lower
        self.order = sorted(lower.keys() - {frozen.top}, key=frozen.order)
        self.segments = {
            (layer, below): segment(frozen, layer, below, products) for layer in self.order for below in lower[layer]
        }
        pulled = frozen.vjp({frozen.top: functional.gradient}, lower[frozen.top])
        self.heads = {l: v[..., None].flatten(1).double() for l, v in zip(lower[frozen.top], pulled, strict=True)}
        self.labels = functional.labels
        self.signed: dict[Layer, Tensor] = {}
        self.sizes: dict[Layer, Tensor] = {}
        self.counts: dict[Layer, Tensor] = {}
        self.logs: dict[Layer, Tensor] = {}
        for layer in self.order:
            self._up(layer)

    def _up(self, layer: Layer) -> None:
        """S, T and N of one layer, from those of the layers below it."""
        if not self.lower[layer]:
            a = layer.output[..., None].flatten(1).double()
            parts, logs = [[a, a.abs(), _active(a)]], [a.new_zeros(len(a))]
        else:
            parts = [
                self.segments[layer, below].sums(_terms(self.signed[below], self.sizes[below], self.counts[below]))
                for below in self.lower[layer]
            ]
            logs = [self.logs[below] for below in self.lower[layer]]
        self.signed[layer] = torch.stack([part[0] for part in parts]).sum(0)
        self.sizes[layer] = torch.stack([part[1] for part in parts]).sum(0)
        self.counts[layer], self.logs[layer] = _together([part[2] for part in parts], logs)

    def result(self) -> PathMass:
        """The pass down, and what both give together."""
        signed, sizes = dict(self.heads), {layer: v.abs() for layer, v in self.heads.items()}
        units = {}
        for layer in reversed(self.order):
            whole, part = sizes[layer] * self.sizes[layer], signed[layer] * self.signed[layer]
            units[layer.name] = _halves(whole.reshape(-1, *layer.shape), part.reshape(-1, *layer.shape))
            for below in self.lower[layer]:
                found = self.segments[layer, below].spread(_terms(signed[layer], sizes[layer]))
                for sums, v in zip((signed, sizes), found, strict=True):
                    sums[below] = sums[below] + v if below in sums else v
        zero = self.frozen.output.new_zeros(self.frozen.batch, dtype=torch.float64)
        whole, part = zero, zero
        for layer, head in self.heads.items():
            whole, part = whole + (head.abs() * self.sizes[layer]).sum(1), part + (head * self.signed[layer]).sum(1)
        ways = [(_active(head) * self.counts[layer]).sum(1, keepdim=True) for layer, head in self.heads.items()]
        count, log = _together(ways, [self.logs[layer] for layer in self.heads]) if ways else (zero[:, None], zero)
        return PathMass(count[:, 0].log10() + log, *_halves(whole, part), part, units, self.labels, self)


class _Draw:
    """n paths of one sample, drawn from the top down: on from neuron u to w with probability |D[u, w]| T[w] / T[u]."""

    def __init__(self, passes: _Passes, sample: int, n: int, generator: torch.Generator | None) -> None:
        self.passes, self.sample, self.n, self.generator = passes, sample, n, generator
        self.at: list[Layer] = [passes.frozen.top] * n
        self.units = torch.zeros(n, dtype=torch.long)
        self.signs = torch.ones(n, dtype=torch.float64)
        self.steps: list[list[Step]] = [[] for _ in range(n)]

    def drawn(self, label: str) -> tuple[tuple[Path, ...], Float[Tensor, " n"]]:
        """The paths and the signs of their values."""
        passes, b = self.passes, self.sample
        top = passes.frozen.top
        self._draw(torch.arange(self.n), [head[b] for head in passes.heads.values()], passes.lower[top])
        for layer in reversed(passes.order):
            here = torch.tensor([i for i, at in enumerate(self.at) if at is layer], dtype=torch.long)
            units, lower = self.units[here], passes.lower[layer]
            for some in torch.unique(units).split(self._chunk(layer)) if lower else ():
                found = rows(passes.frozen, layer, some, lower)
                for k, unit in enumerate(some.tolist()):
                    self._draw(here[units == unit], [row[k, b] for row in found], lower)
            if not lower:
                self.signs[here] *= layer.output[b].flatten().cpu().double().sign()[units]
        paths = tuple(Path(tuple(reversed(steps)), None, label) for steps in self.steps)
        return paths, self.signs

    def _chunk(self, layer: Layer) -> int:
        size = sum(lower.output.numel() for lower in self.passes.lower[layer]) or 1
        return max(1, AT_ONCE // (8 * size))

    def _draw(self, which: Int[Tensor, " m"], parts: Sequence[Float[Tensor, " n"]], lower: Sequence[Layer]) -> None:
        """Draw a neuron of the lower layers for some of the paths, which all stand at one neuron with these rows."""
        row = torch.cat([part.double() for part in parts])
        sizes = torch.cat([self.passes.sizes[layer][self.sample] for layer in lower])
        ladder = (row.abs() * sizes).cumsum(0)
        height = torch.rand(len(which), generator=self.generator, dtype=torch.float64).to(ladder) * ladder[-1]
        chosen = torch.searchsorted(ladder, height, right=True)
        signs = row[chosen].sign().cpu()
        starts = [0, *torch.tensor([len(part) for part in parts]).cumsum(0).tolist()]
        for i, unit, sign in zip(which.tolist(), chosen.tolist(), signs.tolist(), strict=True):
            l = max(l for l in range(len(lower)) if starts[l] <= unit)
            self.at[i], self.units[i] = lower[l], unit - starts[l]
            self.signs[i] *= sign
            self.steps[i].append(Step(lower[l].name, neurons.units(unit - starts[l], lower[l].shape)))


def _itself(entries: Tensor) -> Tensor:
    return entries


def _active(entries: Tensor) -> Tensor:
    return (entries != 0).to(entries.dtype)


def _halves(sizes: Tensor, signed: Tensor) -> tuple[Tensor, Tensor]:
    """The positive and the negative terms of a sum, from the sum of their sizes and the sum itself."""
    return ((sizes + signed) / 2).clamp(min=0), ((signed - sizes) / 2).clamp(max=0)


def _terms(*vectors: Tensor) -> list[tuple[Of, Tensor]]:
    """S with D itself, T with its size, N with where it is not zero."""
    return list(zip((_itself, torch.abs, _active), vectors, strict=False))


def _together(
    counts: Sequence[Float[Tensor, "B n"]], logs: Sequence[Float[Tensor, " B"]]
) -> tuple[Float[Tensor, "B n"], Float[Tensor, " B"]]:
    """The sum of counts that are scaled each by its power of ten, the largest scaled to 1, and the new power."""
    log = torch.stack(list(logs)).amax(0)
    total = torch.stack([count * 10 ** (own - log)[:, None] for count, own in zip(counts, logs, strict=True)]).sum(0)
    size = total.amax(1)
    size = torch.where(size > 0, size, 1)
    return total / size[:, None], log + size.log10()
