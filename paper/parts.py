"""Known answers: on creatures, whose class follows from three parts, do maps lie on these, and paths on single parts?

    python paper/parts.py --output docs/images/parts.png --json paper/expected/parts.json

*One map a picture*, of the predicted class: whether its largest pixel lies on a decisive part (pointing game), and
what share of what is positive in it (relevance mass) lies there.

*Families of eight maps* (``paper/families.py``): the purity of a map is the largest share that one part of the creature
has in its |values|; coverage is the share of the three decisive parts on which a map of the family is pure, above a
half. As what lies on an outline lies on the background too, purity is also measured with the background left out
(``among parts``). A small map is pure wherever it lies: so each is also moved, its peak to a pixel of the creature at
random, and measured there.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

import asked
import families
import peers
import relupath
from figure3 import extent
from relupath import _canvas, creatures, metrics, models
from relupath._contributions import contributions

DEPTHS = (1, 2, 4, 0)
CONVOLUTIONS = ("features.20", "features.18", "features.13", "features.8")
PURE, LITTLE = 0.5, 0.02
WORDS = (
    "extent",
    "purity",
    "gain",
    "among_parts",
    "among_parts_gain",
    "coverage",
    "coverage_moved",
    "decisive",
    "decisive_moved",
)
"""Of a family: a gain is over the same maps moved; decisive is the share of maps that are purest in a decisive part."""
SHOWN = {
    "whole network": "whole network",
    "clusters by place and colour": "clusters of |W x|",
    "zennit-crp, channels of features.18": "zennit-crp, 2nd layer",
    "zennit-crp, channels of features.8": "zennit-crp, 6th layer",
    "branches, channels, 2 layers": "branches of channels, 2 layers",
    "branches, neurons, 4 layers": "branches of neurons, 4 layers",
    "Exact, neurons": "Exact, all layers",
}
"""The families that are drawn."""
Masks = Bool[Tensor, "parts H W"]


def singles() -> dict[str, Callable[[families.Picture], Float[Tensor, "H W"]]]:
    """The methods with one map a picture, by name."""
    found: dict[str, Callable[[families.Picture], Tensor]] = {
        "random": lambda p: torch.rand(p.x.shape[2:], generator=p.generator)
    }

    def peer(name: str, p: families.Picture) -> Tensor:
        torch.manual_seed(p.seed)
        return peers.methods(p.model, "features.20", "features.21")[name](p.x, torch.tensor([p.predicted]))[0]

    def ours(search: Any, partition: relupath.Partition, p: families.Picture) -> Tensor:
        return contributions(p.frozen, p.predicted, search, partition=partition)[0][0]

    for name in ("Saliency", "Integrated Gradients", "SmoothGrad", "Guided Grad-CAM", "Grad-CAM", "LRP, epsilon-plus"):
        found[name] = partial(peer, name)
    found["whole network"] = lambda p: contributions(p.frozen, p.predicted)[0][0]
    for depth in DEPTHS:
        told = f"{depth} layer{'s' * (depth > 1)}" if depth else "all layers"
        for word, search in (
            ("Mass, half", relupath.Mass(0.5, depth or None)),
            ("Selective, 64", relupath.Selective(64, depth or None)),
        ):
            found[f"{word}, {told}"] = partial(ours, search, relupath.neurons)
    found["Greedy, all layers"] = partial(ours, relupath.Greedy(), relupath.neurons)
    found["Mass, half of channels, 2 layers"] = partial(ours, relupath.Mass(0.5, 2), relupath.channels)
    return {name: lambda p, make=make: _flat(make(p)) for name, make in found.items()}


def _flat(found: Tensor) -> Float[Tensor, "H W"]:
    return found.sum(0) if found.ndim == 3 else found


def pointing(found: Float[Tensor, "H W"], inside: Bool[Tensor, "H W"]) -> dict[str, float]:
    """Whether the largest pixel lies inside, and what share of what is positive does."""
    positive = found.clamp(min=0).double()
    return {
        "pointing": float(inside.flatten()[found.argmax()]),
        "mass": float(positive[inside].sum() / positive.sum()) if positive.any() else 0.0,
    }


def purity(
    found: Float[Tensor, "K H W"], masks: Masks, within: Bool[Tensor, "H W"] | None = None
) -> tuple[Float[Tensor, " K"], Int[Tensor, " K"]]:
    """Of each map the largest share that one part has in the |values|, and the number of that part.

    Args:
        found: the maps.
        masks: the parts' pixels.
        within: the pixels whose values are the whole; None: all.
    """
    size = found.abs().double()
    whole = (size if within is None else size * within).sum((1, 2))
    best, which = ((size[:, None] * masks).sum((2, 3)) / whole.clamp(min=1e-300)[:, None]).max(1)
    return best, which


def moved(found: Float[Tensor, "K H W"], creature: Bool[Tensor, "H W"], generator: torch.Generator) -> Tensor:
    """Each map with its peak at a random pixel of the creature; what leaves the picture comes in at the other side."""
    places = creature.nonzero()[torch.randint(int(creature.sum()), (len(found),), generator=generator)]
    width = found.shape[2]
    peaks = [divmod(int(one.abs().argmax()), width) for one in found]
    return torch.stack([
        one.roll((int(y) - py, int(x) - px), (0, 1))
        for one, (y, x), (py, px) in zip(found, places.tolist(), peaks, strict=True)
    ])  # fmt: skip


def of_family(found: Float[Tensor, "K H W"], scene: creatures.Scene, generator: torch.Generator) -> dict[str, float]:
    """The family's purity and coverage, and those of the same maps elsewhere on the creature."""
    names = [part for part in creatures.PARTS[1:] if scene.parts[part].any()]
    masks = torch.stack([torch.from_numpy(scene.parts[part]) for part in names])
    decisive = torch.tensor([part in creatures.parts_of(scene.label) for part in names])
    found = found[found.abs().sum((1, 2)) > 0]
    if not len(found):
        return dict.fromkeys(WORDS, 0.0)
    creature = masks.any(0)
    elsewhere = moved(found, creature, generator)
    (best, which), (away, where) = purity(found, masks), purity(elsewhere, masks)
    among, among_away = purity(found, masks, creature)[0], purity(elsewhere, masks, creature)[0]

    def covered(best: Tensor, which: Tensor) -> float:
        pure = set(which[best > PURE].tolist())
        return sum(k in pure for k in decisive.nonzero()[:, 0].tolist()) / int(decisive.sum())

    return {
        "extent": float(np.mean([extent(one.numpy()) for one in found])),
        "purity": float(best.mean()),
        "gain": float((best - away).mean()),
        "among_parts": float(among.mean()),
        "among_parts_gain": float((among - among_away).mean()),
        "coverage": covered(best, which),
        "coverage_moved": covered(away, where),
        "decisive": float(decisive[which].double().mean()),
        "decisive_moved": float(decisive[where].double().mean()),
    }


def measured(model: torch.nn.Module, seed: int) -> dict[str, Any] | None:
    """Every method's numbers on one scene; None where the network errs, as then no part is known to decide."""
    scene = creatures.draw(seed)
    picture = families.Picture(model, creatures.preprocess(scene.image)[None], seed)
    if picture.predicted != scene.label:
        return None
    inside = torch.from_numpy(np.any([scene.parts[part] for part in creatures.parts_of(scene.label)], axis=0))
    made = families.families(DEPTHS, CONVOLUTIONS)
    return {
        "seed": seed,
        "area": float(inside.double().mean()),
        "maps": {name: pointing(make(picture), inside) for name, make in singles().items()},
        "families": {
            name: of_family(make(picture).detach(), scene, picture.generator) for name, make in made.items()
        },
    }  # fmt: skip


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals over scenes, and the first scene by itself."""

    def means(part: str) -> dict[str, Any]:
        return {
            name: {word: asdict(metrics.interval(torch.tensor([row[part][name][word] for row in rows])))
                   for word in rows[0][part][name]}
            for name in rows[0][part]
        }  # fmt: skip

    area = asdict(metrics.interval(torch.tensor([row["area"] for row in rows])))
    return {"scenes": len(rows), "area": area, "maps": means("maps"), "families": means("families"), "first": rows[0]}


def figure(model: torch.nn.Module, seed: int) -> Any:
    """Some families of one scene: the eight maps of each, and under each map the part it is purest in."""
    scene = creatures.draw(seed)
    picture = families.Picture(model, creatures.preprocess(scene.image)[None], seed)
    made = families.families(DEPTHS, CONVOLUTIONS)
    masks = torch.stack([torch.from_numpy(scene.parts[part]) for part in creatures.PARTS[1:]])
    side, gap, left = 1.05, 0.22, 1.75
    width, height = left + (side + 0.08) * (families.COUNT + 1) + 0.1, 0.75 + (side + gap) * len(SHOWN) + 0.3
    fig = _canvas.canvas(width, height, "Families of maps of one creature, and the part in which each is purest")
    for row, (name, title) in enumerate(SHOWN.items()):
        found = made[name](picture).detach()
        bottom = (height - 0.75 - (side + gap) * row - side) / height
        fig.text(0.1 / width, bottom + side / 2 / height, title, fontsize=8, color=_canvas.INK, va="center")
        best, which = purity(found, masks)
        for column, one in enumerate(found):
            axes = fig.add_axes(((left + (side + 0.08) * (column + 1)) / width, bottom, side / width, side / height))
            _canvas.overlay(axes, scene.image / 255, one.numpy(), _canvas.clip([one.numpy()]), "RdBu_r")
            _canvas.frame(axes)
            word = (
                f"{creatures.PARTS[1 + int(which[column])] if best[column] > LITTLE else 'no part'} {best[column]:.2f}"
            )
            axes.set_xlabel(word, fontsize=7, labelpad=2, color=_canvas.INK if best[column] > PURE else _canvas.FAINT)
        if not row:
            axes = fig.add_axes((left / width, bottom, side / width, side / height))
            axes.imshow(scene.image)
            _canvas.frame(axes)
    note = f"Scene {seed}, {creatures.CLASSES[scene.label]}: {', '.join(creatures.parts_of(scene.label))} decide. "
    fig.text(0.1 / width, 0.12 / height, note + "Each map on a scale of its own.", fontsize=7, color=_canvas.FAINT)
    return fig


def lines(found: dict[str, Any]) -> Iterable[str]:
    """Both tables."""
    yield f"{found['scenes']} scenes; the decisive parts cover {_cell(found['area'])} of the picture"
    for part in ("maps", "families"):
        words = next(iter(found[part].values()))
        yield "\n" + f"{part:<40}" + "".join(f"{word:>22}" for word in words)
        for name, row in found[part].items():
            yield f"{name:<40}" + "".join(f"{_cell(row[word]):>22}" for word in words)


def _cell(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.3f} ({interval['low']:.3f}-{interval['high']:.3f})"


def main() -> None:
    """Measure the scenes, print the tables, and draw one scene."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="scenes (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--output", type=Path, help="the figure: .png, .pdf or .svg")
    options = parser.parse_args()
    model = models.load("creatures").model
    seeds = [asked.FIRST + number for number in range(options.count)]
    rows = [measured(model, seed) for seed in tqdm(seeds, file=sys.stderr, disable=None)]
    found = report([row for row in rows if row is not None])
    print("\n".join(lines(found)))
    asked.write(options.json, found)
    if options.output:
        asked.picture(options.output, figure(model, asked.FIRST + 7))


if __name__ == "__main__":
    main()
