"""Does the output fall by a path's value when its units are cut? Values against real forward passes, per search.

    python paper/causal.py --count 48 --json paper/expected/causal-creatures.json --output PLOT
    python paper/causal.py --cifar10 test.zip --weights toycnn_cifar10.safetensors --json FILE --output PLOT

Of every picture the paths of each search, cut after so many layers from the top, and units drawn at random, are set to
zero in a real forward pass. The fall of the predicted class's logit stands against two predictions: the path's value
(the routes that pass a chosen unit on *every* layer), and that of the frozen network without the units (the routes that
pass a chosen unit on *any* layer). Of one layer the two are one. Intervals are bootstrapped over pictures.

Controls, of units that contribute anything: a path of one at random a layer, and sets at random, as many as Mass takes.
As a large logit makes all numbers large, correlation is also given with the logit held constant, and within a picture.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from tqdm import tqdm

import asked
import relupath
from relupath import _canvas, draw
from relupath._partitions import Partition
from relupath._search import Search

SEARCHES: dict[str, Search] = {
    "Greedy": relupath.Greedy(),
    "Beam": relupath.Beam(8),
    "Exact": relupath.Exact(2),
    "BestFirst": relupath.BestFirst(16),
    "Mass": relupath.Mass(0.5),
    "Selective": relupath.Selective(64),
}
SHORT = ("Exact",)
"""Searches that are measured where there are few layers only: through many, to prove the best path takes too long."""
FEW = 5
"""So many layers are few."""
PARTITIONS = {"neurons": relupath.neurons, "channels": relupath.channels}
DEPTHS = (1, 2, 4)
"""Layers from the top; beside these, the whole path."""
EACH = 2
"""So many paths of a search that finds several."""
DRAWS = 1000
FIRST = 2
"""So many pictures are written one by one beside the figures, for a test."""
Kind = tuple[str, str, str]
"""A search or how units were drawn, the partition, and how deep."""
Cut = tuple[float, float, float]
"""By the value, by the frozen network, and in truth: how much the logit falls."""
Units = tuple[tuple[int | None, ...], ...]
Lots = Callable[[str, int], Units]
"""From a layer's name and how many to units drawn at random."""
Numbers = Float[np.ndarray, " N"]


def measured(model: nn.Module, x: torch.Tensor, number: int) -> dict[str, Any]:
    """The logit of one picture (1, C, H, W) and every cut, by kind; the number seeds what is drawn."""
    frozen = relupath.freeze(model, x)
    cuts: dict[str, list[Cut]] = {}
    for kind, path in _paths(frozen, torch.Generator().manual_seed(number)):
        told = relupath.ablate(frozen, path)
        left = (told.without_path, told.with_frozen_gates, told.ablated)
        cuts.setdefault(" | ".join(kind), []).append(tuple(float(told.value - rest) for rest in left))
    return {"number": number, "logit": float(frozen.output.max()), "cuts": cuts}


def _paths(frozen: relupath.Frozen, generator: torch.Generator) -> Iterator[tuple[Kind, relupath.Path]]:
    """Every path that is cut, with its kind; none twice in a kind."""
    for word, partition in PARTITIONS.items():
        draw_units = _lots(frozen, partition, generator)
        for name, search in SEARCHES.items():
            if name in SHORT and len(frozen.layers) > FEW:
                continue
            found = [path for path in relupath.find_paths(frozen, None, search, partition=partition).ranked[0] if path]
            if name == "BestFirst":  # its leaves are of unequal depth by themselves
                yield from (((name, word, "leaves"), path) for path in found[:EACH])
                continue
            yield from _depths(name, word, found[:EACH])
            if name == "Mass":
                for mass in found:
                    yield from _depths("random path", word, [_drawn(mass, draw_units, most=1)])
                    yield from _depths("random sets", word, [_drawn(mass, draw_units)])
        for layer in frozen.layers:
            some = dict.fromkeys(draw_units(layer.name, 1) for _ in range(EACH))
            yield from ((("unit", word, layer.name), _cut_at(layer.name, units)) for units in some if units)


def _depths(name: str, word: str, found: Sequence[relupath.Path]) -> Iterator[tuple[Kind, relupath.Path]]:
    """Each path from thin to deep."""
    for depth in DEPTHS:
        some = dict.fromkeys(path.top(depth) for path in found if len(path) > depth)
        yield from (((name, word, f"top {depth}"), path) for path in some)
    yield from (((name, word, "all"), path) for path in found)


def _cut_at(layer: str, units: Units) -> relupath.Path:
    return relupath.Path((relupath.Step(layer, units),))


def _drawn(like: relupath.Path, draw_units: Lots, most: int | None = None) -> relupath.Path:
    """A path through the layers of another, of as many units drawn at random, or of fewer."""
    steps = []
    for step in like.steps:
        parts = {name: draw_units(name, len(part.units[:most])) for name, part in step.parts.items()}
        steps.append(relupath.Step.over([relupath.Step(name, units) for name, units in parts.items()]))
    return relupath.Path(tuple(steps), target=like.target)


def _lots(frozen: relupath.Frozen, partition: Partition, generator: torch.Generator) -> Lots:
    """Draws so many units of a layer, at random among those that contribute anything to the predicted class."""
    products = frozen.vjp({frozen.top: frozen.functional().gradient}, frozen.layers)
    alive = {}
    for layer, product in zip(frozen.layers, products, strict=True):
        (scores,) = partition.scores(product * layer.output)
        alive[layer.name] = layer.shape, scores.nonzero()[:, 0]

    def drawn(name: str, count: int) -> Units:
        shape, some = alive[name]
        some = some[torch.randperm(len(some), generator=generator)[:count]]
        return tuple(unit for index in some.tolist() for unit in partition.units(index, shape))

    return drawn


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For every kind the figures with their intervals, and how well values rank the cuts of one picture."""
    groups: dict[str, list[tuple[int, float, Cut]]] = defaultdict(list)
    for at, record in enumerate(records):
        for kind, cuts in record["cuts"].items():
            groups[kind] += [(at, record["logit"], cut) for cut in cuts]
    kinds = {}
    for kind, rows in tqdm(groups.items(), file=sys.stderr, desc="intervals"):
        picture = np.array([row[0] for row in rows])
        logit, value, frozen, real = np.array([[row[1], *row[2]] for row in rows]).T
        kinds[kind] = {
            "cuts": len(rows),
            "pictures": len({*picture.tolist()}),
            "share": {
                "value": float(np.median(value / logit)),
                "frozen": float(np.median(frozen / logit)),
                "real": float(np.median(real / logit)),
            },
            "value": figures(picture, value, real, logit),
            "frozen": figures(picture, frozen, real, logit),
        }
    return {"kinds": kinds, "within": _within(records)}


def figures(picture: Numbers, told: Numbers, real: Numbers, logit: Numbers) -> dict[str, Any]:
    """Pearson's and Spearman's correlation of the fall with its prediction, and the slope of the line through both.

    ``given_logit`` is Pearson's partial correlation with the logit held constant. Each is (number, low, high), with
    95 % intervals over pictures drawn with replacement; None where it is undefined.
    """
    rows = [np.flatnonzero(picture == at) for at in np.unique(picture)]
    generator = np.random.default_rng(0)
    draws = [np.concatenate([rows[k] for k in generator.integers(len(rows), size=len(rows))]) for _ in range(DRAWS)]
    measures: dict[str, Callable[[Numbers, Numbers, Numbers], float]] = {
        "pearson": lambda a, b, c: pearson(a, b),
        "spearman": lambda a, b, c: pearson(ranked(a), ranked(b)),
        "slope": lambda a, b, c: pearson(a, b) * b.std() / a.std() if a.std() else np.nan,
        "given_logit": partial,
    }
    told_of: dict[str, Any] = {}
    for name, measure in measures.items():
        at = measure(told, real, logit)
        if not np.isfinite(at):
            told_of[name] = None
            continue
        several = np.array([measure(told[some], real[some], logit[some]) for some in draws])
        told_of[name] = [float(at), *map(float, np.nanpercentile(several, (2.5, 97.5)))]
    return told_of


def pearson(one: Numbers, other: Numbers) -> float:
    """Pearson's correlation; not a number where one does not vary."""
    a, b = one - one.mean(), other - other.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else np.nan


def ranked(numbers: Numbers) -> Numbers:
    """The rank of each number, equal ones sharing the mean of theirs."""
    _, which, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[which]


def partial(one: Numbers, other: Numbers, held: Numbers) -> float:
    """The correlation of what is left of two when a third is held constant."""
    both, a, b = pearson(one, other), pearson(one, held), pearson(other, held)
    left = (1 - a * a) * (1 - b * b)
    return float((both - a * b) / np.sqrt(left)) if left > 1e-12 else np.nan


def _within(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over pictures of Spearman's correlation among the cuts of one picture: of paths as deep, and of units.

    What most pictures have too few cuts for is left out.
    """
    several: dict[str, list[float]] = defaultdict(list)
    for record in records:
        pools: dict[str, list[Cut]] = defaultdict(list)
        for kind, cuts in record["cuts"].items():
            name, partition, depth = kind.split(" | ")
            pools[f"unit, {partition}" if name == "unit" else depth] += cuts
        for pool, cuts in pools.items():
            value, _, real = np.array(cuts).T
            if np.isfinite(at := pearson(ranked(value), ranked(real))):
                several[pool].append(at)
    told = {}
    for pool, numbers in several.items():
        if len(numbers) > max(1, len(records) // 2):
            mean = relupath.metrics.interval(torch.tensor(numbers), draws=DRAWS)
            told[pool] = [mean.mean, mean.low, mean.high]
    return told


def figure(found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Any:
    """A panel a search: the fall against the value, both as shares of the logit, a colour a depth; grey: as told."""
    names = dict.fromkeys(kind.split(" | ")[0] for kind in found["kinds"])
    panels = [(name, word) for word in PARTITIONS for name in (*SEARCHES, "random sets", "unit") if name in names]
    columns, side, gap = len(panels) // len(PARTITIONS), 1.9, 0.45
    width, height = gap + (side + gap) * columns, 0.75 + (side + 0.75) * len(PARTITIONS)
    fig = _canvas.canvas(width, height, "Value of the path, and fall of the logit when its units are cut")
    for at, (name, word) in enumerate(panels):
        left, low = gap + (side + gap) * (at % columns), height - 0.95 - side - (side + 0.65) * (at // columns)
        axes = fig.add_axes((left / width, low / height, side / width, side / height))
        kinds = [kind for kind in found["kinds"] if kind.startswith(f"{name} | {word} | ")]
        for number, kind in enumerate(kinds):
            rows = [
                (cut[0] / record["logit"], cut[2] / record["logit"])
                for record in records
                for cut in record["cuts"].get(kind, ())
            ]
            colour = _canvas.matplotlib("cm").viridis(number / max(1, len(kinds) - 0.5))
            axes.plot(*np.array(rows).T, ".", color=colour, markersize=2, alpha=0.5, label=kind.split(" | ")[2])
        axes.axline((0, 0), slope=1, color=_canvas.FAINT, linewidth=0.8)
        axes.set_title(f"{name}, {word}", fontsize=9.5, color=_canvas.INK)
        axes.tick_params(labelsize=7, length=2)
        axes.legend(fontsize=5.5, markerscale=3, frameon=False, handletextpad=0.1, loc="best")
    note = (
        f"{found['model']}, {found['pictures']} pictures; across: value, up: fall, as shares of the logit; line: equal."
    )
    fig.text(0.03, 0.12 / height, note, fontsize=7, color=_canvas.FAINT)
    return fig


def table(found: Mapping[str, Any]) -> str:
    """One line a kind, in Markdown."""
    lines = ["| search, units, depth | value | fall | Pearson | Spearman | slope | given the logit | frozen: Pearson |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for kind, row in found["kinds"].items():
        cells = [_cell(row["value"][word]) for word in ("pearson", "spearman", "slope", "given_logit")]
        share = row["share"]
        begin = f"{kind.replace(' | ', ', ')} | {share['value']:.2g} | {share['real']:.2g}"
        lines.append(f"| {begin} | {' | '.join(cells)} | {_cell(row['frozen']['pearson'])} |")
    within = (f"{pool}: {_cell(told)}" for pool, told in found["within"].items())
    return "\n".join([*lines, "", "ranks within a picture: " + "; ".join(within)])


def _cell(told: Sequence[float] | None) -> str:
    return "-" if told is None else f"{told[0]:.3g} ({told[1]:.3g} to {told[2]:.3g})"


def main() -> None:
    """Cut the units of every path of every picture, print the table, and draw."""
    parser = asked.parser(__doc__, 500)
    asked.add_cifar10(parser)
    parser.add_argument("--output", type=Path, help="the scatter plot: PNG, PDF or SVG")
    options = parser.parse_args()
    task = asked.task(options)
    model = task.model.double()
    records = [measured(model, task.x(n)[None].double(), n) for n in tqdm(range(len(task.names)), file=sys.stderr)]
    found = {"model": task.name, "pictures": len(records), **summary(records), "first": records[:FIRST]}
    print(table(found))
    asked.write(options.json, found)
    if options.output:
        draw.save(figure(found, records), options.output)


if __name__ == "__main__":
    main()
