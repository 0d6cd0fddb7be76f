"""Known answers: which searches find a circuit whose weights were set by hand, among units with random ones.

    python paper/circuits.py --output docs/images/circuits.png --json paper/expected/circuits.json

Six circuits (``paper/planted.py``) in networks of three sizes, hidden in four ways; a network that does not compute its
circuit's function is drawn anew. At inputs where the circuit's result is at least a half, every method names units of
each layer. Right are the circuit's units that are active there. Methods that need a number are told it: how many units
a layer (rankings), or as many as the circuit has on its widest layer (paths, and the width of a set).
"""

import argparse
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

import asked
import planted
import relupath
from relupath import _canvas, draw, metrics

SIZES = ((32, 3), (128, 3), (64, 6))
"""Width and depth of the networks."""
INPUTS, TRIED = 8, 256
WORDS = {"precision": "of the units named, right", "recall": "of the right units, named", "first": "first path right"}
Units = list[set[int]]


@dataclass(frozen=True)
class Named:
    """What a method names at one input: units of every layer, and its first path where it finds single paths."""

    units: Units
    first: Units | None = None


@dataclass(frozen=True)
class Given:
    """What a method is given: the frozen network, and at each input how many units each layer of the circuit has."""

    frozen: relupath.Frozen
    counts: list[list[int]]
    generator: torch.Generator

    def paths(self, search: relupath.Greedy | relupath.Beam | relupath.BestFirst | relupath.Exact) -> list[Named]:
        """The units of the first paths together, as many paths as the circuit is wide."""
        found = relupath.find_paths(self.frozen, 0, search)
        each = [[self._units(path) for path in ranked] for ranked in found.ranked]
        return [
            Named([set().union(*layer) for layer in zip(*paths[: max(counts)], strict=True)], paths[0])
            for paths, counts in zip(each, self.counts, strict=True)
        ]

    def sets(self, search: Callable[[int], relupath.Mass | relupath.Selective]) -> list[Named]:
        """The units of a set of paths, searched for with the circuit's width."""
        widths = {max(counts) for counts in self.counts}
        found = {width: relupath.find_paths(self.frozen, 0, search(width)).paths for width in widths}
        return [Named(self._units(found[max(counts)][b])) for b, counts in enumerate(self.counts)]

    def ranked(self, scores: list[Float[Tensor, "B units"]]) -> list[Named]:
        """On every layer the units of the largest scores, as many as the circuit has there."""
        orders = [score.argsort(dim=1, descending=True) for score in scores]
        return [
            Named(
                [set(order[b, :n].tolist()) for order, n in zip(orders, counts, strict=True)],
                [{int(order[b, 0])} for order in orders],
            )
            for b, counts in enumerate(self.counts)
        ]

    def gradient_times_activation(self) -> list[Float[Tensor, "B units"]]:
        """Of every layer by itself, through all routes above it."""
        logit = self.frozen.functional(0).gradient
        pulled = self.frozen.vjp({self.frozen.top: logit}, self.frozen.layers)
        return [v * layer.output for v, layer in zip(pulled, self.frozen.layers, strict=True)]

    def activation(self) -> list[Float[Tensor, "B units"]]:
        """The values of the units, which tell nothing of the class."""
        return [layer.output for layer in self.frozen.layers]

    def chance(self) -> list[Float[Tensor, "B units"]]:
        """Random numbers, below zero for units that are not active."""
        outputs = [layer.output for layer in self.frozen.layers]
        return [torch.rand(a.shape, generator=self.generator) - (a == 0).float() for a in outputs]

    def mass(self) -> list[Float[Tensor, "B units"]]:
        """What all paths through each unit carry, by size."""
        found = relupath.path_mass(self.frozen, 0).units
        return [found[layer.name][0] - found[layer.name][1] for layer in self.frozen.layers]

    def _units(self, path: relupath.Path) -> Units:
        steps = {step.layer: {unit[0] for unit in step.units} for step in path.steps}
        return [{u for u in steps.get(layer.name, ()) if u is not None} for layer in self.frozen.layers]


METHODS: dict[str, Callable[[Given], list[Named]]] = {
    "Greedy": lambda given: given.paths(relupath.Greedy()),
    "Beam": lambda given: given.paths(relupath.Beam(8)),
    "BestFirst": lambda given: given.paths(relupath.BestFirst(16)),
    "Exact": lambda given: given.paths(relupath.Exact(4)),
    "Mass, half": lambda given: given.sets(lambda _: relupath.Mass(0.5)),
    "Mass, nine tenths": lambda given: given.sets(lambda _: relupath.Mass(0.9)),
    "Selective": lambda given: given.sets(relupath.Selective),
    "path_mass": lambda given: given.ranked(given.mass()),
    "gradient x activation": lambda given: given.ranked(given.gradient_times_activation()),
    "activation": lambda given: given.ranked(given.activation()),
    "random": lambda given: given.ranked(given.chance()),
}


def network(circuit: str, hiding: str, width: int, depth: int, seed: int) -> planted.Planted:
    """The first network from a seed on that computes its circuit's function at random inputs."""
    for number in range(1000 * seed, 1000 * (seed + 1)):
        net = planted.planted(planted.CIRCUITS[circuit], hiding, width, depth, number)
        steps, generator = net.circuit.steps, torch.Generator().manual_seed(number)
        x = torch.randint(steps + 1, (TRIED, planted.INPUTS), generator=generator).double() / steps
        if net.error(x) < 0.5:
            return net
    raise AssertionError(f"no network of a thousand computes {circuit}")


def measured(net: planted.Planted, seed: int) -> dict[str, dict[str, float]]:
    """By method, the means over inputs of precision, recall and whether the first path is right."""
    generator = torch.Generator().manual_seed(seed)
    x = net.draw(INPUTS, generator)
    truth = net.units(x)
    given = Given(relupath.freeze(net.model, x), [[len(layer) for layer in units] for units in truth], generator)
    found = {}
    for name, method in METHODS.items():
        rows = [score(named, units) for named, units in zip(method(given), truth, strict=True)]
        found[name] = {word: sum(row[word] for row in rows) / len(rows) for word in rows[0]}
    return found


def score(named: Named, truth: Units) -> dict[str, float]:
    """Precision and recall over all layers, and whether the first path has one right unit on each."""
    pairs = [*zip(named.units, truth, strict=True)]
    right = sum(len(units & known) for units, known in pairs)
    row = {
        "precision": right / max(1, sum(len(units) for units, _ in pairs)),
        "recall": right / sum(len(known) for _, known in pairs),
    }
    if named.first is not None:
        row["first"] = float(all(unit and unit <= known for unit, known in zip(named.first, truth, strict=True)))
    return row


def cases(hiding: str, seeds: int) -> Iterator[tuple[str, int, planted.Planted]]:
    """Every network of one hiding: its circuit's name, a number of its own, and the network."""
    for circuit in planted.CIRCUITS:
        for width, depth in SIZES:
            for seed in range(seeds):
                number = zlib.crc32(f"{circuit} {width} {depth} {seed}".encode()) % 2**20
                yield circuit, number, network(circuit, hiding, width, depth, number)


def report(hiding: str, seeds: int) -> dict[str, Any]:
    """By method the means with intervals over networks, and the first networks one by one."""
    count = len(planted.CIRCUITS) * len(SIZES) * seeds
    each = tqdm(cases(hiding, seeds), hiding, count, file=sys.stderr, disable=None)
    rows = [(circuit, measured(net, number)) for circuit, number, net in each]
    found: dict[str, Any] = {}
    for name in METHODS:
        words = rows[0][1][name]
        numbers = {word: torch.tensor([row[name][word] for _, row in rows]) for word in words}
        found[name] = {word: asdict(metrics.interval(values)) for word, values in numbers.items()}
        found[name]["recall_by_circuit"] = {
            circuit: float(torch.tensor([row[name]["recall"] for c, row in rows if c == circuit]).mean())
            for circuit in planted.CIRCUITS
        }
    return {"networks": len(rows), "methods": found, "first": rows[0][1]}


def figure(found: dict[str, Any]) -> Any:
    """A panel a hiding: each method's precision, recall and right first paths, with intervals."""
    names, colours = [*METHODS], ("#0072b2", "#d55e00", "#009e73")
    width, height, left, side = 12.4, 4.6, 1.6, 2.5
    fig = _canvas.canvas(width, height, "Which units of a planted circuit are found")
    for column, (hiding, part) in enumerate(found["hidings"].items()):
        axes = fig.add_axes(((left + (side + 0.15) * column) / width, 0.75 / height, side / width, 2.95 / height))
        for shift, (word, colour) in enumerate(zip(WORDS, colours, strict=True)):
            for row, name in enumerate(names):
                if word in part["methods"][name]:
                    one = part["methods"][name][word]
                    y = row + 0.22 * (shift - 1)
                    axes.plot((one["low"], one["high"]), (y, y), color=colour, linewidth=1.5)
                    axes.plot(one["mean"], y, "o", color=colour, markersize=4, label=None if row else WORDS[word])
        axes.set(xlim=(-0.03, 1.03), ylim=(len(names) - 0.5, -0.5), xticks=(0, 0.5, 1))
        axes.set_yticks(range(len(names)), labels=[] if column else names, fontsize=8)
        axes.set_title(hiding, fontsize=9.5, color=_canvas.INK)
        axes.tick_params(labelsize=8, length=2)
        axes.grid(color=_canvas.LINE, linewidth=0.5)
        if not column:
            fig.legend(*axes.get_legend_handles_labels(), loc=(0.45, 0.905), ncols=3, fontsize=8, frameon=False)
    count = next(iter(found["hidings"].values()))["networks"]
    note = f"{count} networks a panel, {INPUTS} inputs each; lines: 95 % bootstrap intervals over networks."
    fig.text(0.02, 0.15 / height, note, fontsize=7, color=_canvas.FAINT)
    return fig


def main() -> None:
    """Measure every hiding, print the means, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4, help="networks of a circuit and size (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--output", type=Path, help="the figure: .png, .pdf or .svg")
    options = parser.parse_args()
    found = {"hidings": {hiding: report(hiding, options.seeds) for hiding in planted.HIDINGS}}
    for hiding, part in found["hidings"].items():
        print(f"\n{hiding:<24}" + "".join(f"{title:>36}" for title in WORDS.values()))
        for name, row in part["methods"].items():
            print(f"{name:<24}" + "".join(f"{_cell(row.get(word)):>36}" for word in WORDS))
    asked.write(options.json, found)
    if options.output:
        draw.save(figure(found), options.output)


def _cell(interval: dict[str, float] | None) -> str:
    return "-" if interval is None else f"{interval['mean']:.2f} ({interval['low']:.2f} to {interval['high']:.2f})"


if __name__ == "__main__":
    main()
