"""The options that commands of the command line share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from . import plans

EXISTING = click.Path(exists=True, path_type=Path)
MODEL = (
    "creatures, torchvision/NAME[@WEIGHTS], timm/NAME[@WEIGHTS], package.module:factory or file.py:factory "
    "(the last two run that code)."
)
LOADING = (
    click.option("--weights", type=EXISTING, help="State dict: safetensors, or a pickle of tensors."),
    click.option("--labels", type=EXISTING, help="Text file with one class name a line."),
    click.option(
        "--carry",
        type=click.Choice(["first", "second", "half"]),
        help="Which factor of a product of two signals carries on.  [default: refuse such products]",
    ),
    click.option("--device", default="cpu", show_default=True, help="Such as cpu, cuda or mps."),
    click.option("--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True),
    click.option("--quiet", is_flag=True, help="No progress on stderr."),
)
TARGET = (
    click.option("--target", help="Class to explain, by number or name.  [default: the predicted one]"),
    click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all numbers to this file."),
)


def _number(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    """What stands for no number is no number."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no number")
    return value


def given(options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """A decorator that gives a command some options."""

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorated


SCENES = click.option(
    "--scene", type=click.IntRange(min=0), help="Without a photo: the seed of the scene that is drawn."
)
STRATEGY = (
    click.option("--layers", help="Layers for the path: names separated by commas, every:K or all.  [default: all]"),
    click.option("--depth", type=click.IntRange(min=1), help="Use only so many layers from the top."),
    click.option("--width", type=int, help="selective: at most so many units a level.  [default: 64]"),
    click.option("--classes", type=int, help="selective: how many classes are compared.  [default: 10]"),
    click.option("--share", type=float, help="mass: share of the positive contribution.  [default: 0.5]"),
    click.option("--k", type=int, help="beam, exact: how many paths.  [default: 8]"),
    click.option("--budget", type=int, help="best-first: how many paths are split.  [default: 64]"),
    click.option(
        "--partition",
        default="neurons",
        show_default=True,
        help="What counts as one unit: neurons, channels, locations, axis:N or heads:N.",
    ),
)
SEARCHING = (
    click.option(
        "--search", type=click.Choice([*plans.SEARCHES]), default="greedy", show_default=True, help="How to find paths."
    ),
    *STRATEGY,
    click.option("--gap", is_flag=True, help="Also say how far greedy is from the exact best path."),
    click.option("--ablate", is_flag=True, help="Also run the model without each path's units."),
    click.option("--tree", is_flag=True, help="Print the decision as a sum of paths; draws another figure, *.tree.*"),
    click.option("--tree-depth", type=click.IntRange(min=1), help="Layers of the tree.  [default: 2]"),
    click.option("--tree-width", type=click.IntRange(min=1), help="Units a layer there.  [default: 4]"),
)
MEASURING = (
    click.option("--by-channel", is_flag=True, help="Also sort the channels apart, as the paper's authors do."),
    click.option(
        "--tolerance",
        type=click.FloatRange(min=0),
        callback=_number,
        help="Leave out steps of a curve that move its area by less, by estimate.  [default: take every step]",
    ),
    click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="The areas, photo by photo."),
)
EXTENT = (
    click.option("--depth", type=click.IntRange(min=1), default=2, show_default=True, help="Levels of the trees."),
    click.option("--width", type=click.IntRange(1, 64), default=6, show_default=True, help="Units a level there."),
    click.option(
        "--layers",
        help="Layers of the trees: names separated by commas, every:K or all.  "
        "[default: all, but for those on top where no unit serves both classes]",
    ),
    click.option(
        "--partition",
        default="channels",
        show_default=True,
        help="What counts as one unit: neurons, channels, locations, axis:N or heads:N.",
    ),
)
