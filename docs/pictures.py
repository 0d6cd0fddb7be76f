"""Draw the pictures of the README and of docs/searches.md on one creature, and print the numbers told beside them.

python docs/pictures.py
"""

import argparse
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import relupath
from relupath import creatures, draw, files, images, models, runs

SCENE = 1_000_007
PLANS = {
    "greedy": runs.Plan(relupath.Greedy()),
    "selective": runs.Plan(relupath.Selective(64, depth=5)),
    "mass": runs.Plan(relupath.Mass(0.5)),
    "beam": runs.Plan(relupath.Beam(4, depth=3), relupath.channels),
    "best-first": runs.Plan(relupath.BestFirst(64), relupath.locations),
    "exact": runs.Plan(relupath.Exact(4)),
    "decompose": runs.Plan(partition=relupath.channels, tree=(2, 4)),
}


def picture(fig: Any, path: Path) -> None:
    """Write a figure a hundred dots an inch with the 256 colours nearest to its own, so that it stays small."""
    drawn = io.BytesIO()
    fig.savefig(drawn, format="png", dpi=100)
    few = Image.open(drawn).convert("RGB").quantize(256, kmeans=4, dither=Image.Dither.NONE)
    with files.replacing(path) as draft:
        few.save(draft, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def where(values: np.ndarray, scene: creatures.Scene) -> str:
    """For each decisive part and the background the sum of a map there, and its share of the sum of |values|."""
    whole, told = np.abs(values).sum(), []
    for part in (*creatures.parts_of(scene.label), "background"):
        there = values[scene.parts[part]]
        told.append(f"{part} {there.sum():.3g} ({100 * np.abs(there).sum() / whole:.0f} %)")
    return ", ".join(told)


def main() -> None:
    """Explain one scene by every search."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images", help="a folder")
    folder = parser.parse_args().output
    classifier = models.load("creatures")
    drawn = creatures.draw(SCENE)
    scene = images.Picture(Image.fromarray(drawn.image), f"scene {SCENE}")
    picture(draw.figure(runs.explain(classifier, scene)), folder / "demo.png")
    for name, plan in PLANS.items():
        explanation = runs.explain(classifier, scene, plan=plan)
        fig = (
            draw.tree_figure(explanation) if plan.tree else draw.figure(replace(explanation, rows=explanation.rows[:1]))
        )
        picture(fig, folder / f"search-{name}.png")
        row = explanation.rows[0]
        print(f"  {row.held:.3g} of the logit held")
        for part in (row.whole, *row.parts):
            print(f"  {part.value:10.3g}  {where(part.contribution, drawn)}  {part.path}")


if __name__ == "__main__":
    main()
