"""Figures of an explanation: maps of the whole model and its paths, where the bias lies, linear models elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Float

from ._canvas import CLIP, FAINT, INK, LINE, MARGIN, MINUS, bar, canvas, clip, cut, frame, overlay, photo, save, short
from ._draw_evaluation import evaluation_figure
from ._draw_tree import tree_figure
from .elsewhere import Elsewhere
from .explanations import Explanation, Part, Row

__all__ = ["bias_figure", "elsewhere_figure", "evaluation_figure", "figure", "save", "tree_figure"]

TILES = 16
SIDE, GAP, HEADER, ROW = 2.35, 0.3, 1.15, 3.4  # inches


def figure(explanation: Explanation, columns: int = 4, colours: str = "RdBu_r", bare: bool = False) -> Any:
    """Draw an explanation: a row for each target; the whole network, then its path from thin to deep.

    Colours are symmetric about zero, red speaks for the target, and they end at a percentile of the absolute values.
    The maps of the whole network share one scale; each path's map has its own, printed below it.

    Args:
        explanation: what to draw.
        columns: how many depths of the paths to show.
        colours: a diverging matplotlib colour map.
        bare: leave the picture out, maps and numbers only.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    deepest = max(len(row.parts) for row in explanation.rows)
    several = any(row.several for row in explanation.rows)
    depths = [0, *(range(1, min(columns, deepest) + 1) if several else _depths(deepest, columns))]
    rows = len(explanation.rows)
    width, height = MARGIN + (SIDE + GAP) * (len(depths) + 1), HEADER + ROW * rows
    fig = canvas(width, height, f"Why {explanation.target.name}?")

    def cell(row: int, column: int) -> Any:
        left, bottom = MARGIN + (SIDE + GAP) * column, height - HEADER - ROW * row - SIDE
        return fig.add_axes((left / width, bottom / height, SIDE / width, SIDE / height))

    beside = [photo, _classes, _legend][bare:]
    for r, draw in enumerate(beside[:rows]):
        draw(cell(r, 0), explanation)
    if bare:
        explanation = replace(explanation, shown=np.ones_like(explanation.shown))
    shared = clip([row.whole.contribution for row in explanation.rows])
    for r, row in enumerate(explanation.rows):
        for column, depth in enumerate(depths, start=1):
            _cell(cell(r, column), explanation, row, depth, shared, colours)
    bar(fig.add_axes((MARGIN / width, 0.4 / height, SIDE / width, 0.1 / height)), colours)
    return fig


def bias_figure(explanation: Explanation, colours: str = "RdBu_r", bare: bool = False) -> Any:
    """Draw what the pixels and what the biases add, side by side on one scale, and their sum; a row for each target.

    Maps are summed over tiles, in which the noise of single pixels cancels; the last column shows the biases again on a
    scale of their own. Where a bias lies is a convention (see ``BiasSources.by_location``), its sum is exact.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        MissingExtraError: matplotlib is not installed.

    Source: figure 1 of the paper, upper half.
    """
    rows, tall = explanation.rows, SIDE + 0.75
    width, height = MARGIN + (SIDE + GAP) * 5, HEADER + tall * len(rows)
    fig = canvas(width, height, "Pixels or biases?")

    def cell(row: int, column: int, size: float = SIDE) -> Any:
        left, bottom = MARGIN + (SIDE + GAP) * column, height - HEADER - tall * row - SIDE
        return fig.add_axes((left / width, bottom / height, size / width, size / height))

    maps = [(_tiled(row.whole.contribution), _tiled(row.origin.map)) for row in rows]
    shared, own = clip([m for pair in maps for m in pair]), clip([bias for _, bias in maps])
    for r, (row, (weights, bias)) in enumerate(zip(rows, maps, strict=True)):
        _bias_words(cell(r, 0), row)
        whole = row.whole
        panels = (
            ("W × x: the pixels", weights, whole.weight_part, shared),
            ("b: the biases", bias, whole.bias, shared),
            ("their sum", weights + bias, whole.value, shared),
            ("b again, on a scale of its own", bias, whole.bias, own),
        )
        for column, (title, tiles, number, scale) in enumerate(panels, start=1):
            axes = cell(r, column)
            frame(axes)
            axes.imshow(tiles, cmap=colours, vmin=-scale, vmax=scale, interpolation="nearest")
            axes.set_title(title, fontsize=8.5, color=INK)
            axes.set_xlabel(f"{short(number)}   (scale {short(scale)})", fontsize=9, color=INK, labelpad=4)
    if not bare:
        photo(cell(0, 0, 0.5 * SIDE), explanation)
    note = f"A map is summed over {maps[0][0].shape[0]} x {maps[0][0].shape[1]} tiles; red speaks for, blue against. "
    note += f"A scale is the {CLIP:g}th percentile of the |values|."
    fig.text(MARGIN / width, 1 - 0.62 / height, note, fontsize=8, color=FAINT, va="center")
    return fig


def elsewhere_figure(found: Elsewhere, colours: str = "RdBu_r") -> Any:
    """Draw what the linear model of each picture (a row) gives for every picture (a column), beside the network itself.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        MissingExtraError: matplotlib is not installed.

    Source: figure 1 of the paper, lower half.
    """
    panels = [("the network itself", found.logits), *zip(found.titles, found.values, strict=True)]
    count, scale = len(found.pictures), max(float(np.abs(values).max()) for _, values in panels) or 1.0
    side, left, bottom = max(2.4, 0.45 * count), 1.7, 1.35
    width, height = left + (side + GAP) * len(panels), bottom + side + 0.55
    fig = canvas(width, height)
    names = [cut(PurePath(name).stem, 16) for name in found.pictures]
    for p, (title, values) in enumerate(panels):
        at = left + (side + GAP) * p
        axes = fig.add_axes((at / width, bottom / height, side / width, side / height))
        frame(axes)
        _matrix(axes, values, scale, colours)
        axes.set_title(cut(title, int(14 * side)), fontsize=8.5, color=INK)
        axes.set_xticks(range(count), labels=names, rotation=60, ha="right", fontsize=7, color=FAINT)
        if p == 0:
            rows = [f"{name}\n{cut(target, 18)}" for name, target in zip(names, found.targets, strict=True)]
            axes.set_yticks(range(count), labels=rows, fontsize=7, color=FAINT)
    note = f"{cut(found.model, 40)}. Row: frozen at that picture, for that class. Column: applied to that picture. "
    note += f"Scale ±{short(scale)}."
    fig.text(MARGIN / width, 0.15 / height, note, fontsize=7, color=FAINT)
    return fig


def _bias_words(axes: Any, row: Row) -> None:
    """The layers whose biases add most to a target, either way."""
    axes.set_axis_off()
    axes.text(0, 1.1, row.role.upper(), fontsize=7, color=FAINT, transform=axes.transAxes)
    axes.text(0, 1.02, cut(row.title, 34), fontsize=9.5, color=INK, transform=axes.transAxes)
    largest = sorted(row.origin.layers.items(), key=lambda item: -abs(item[1]))[:5]
    words = ["Largest biases below a layer", *(f"{short(value)}  {cut(name, 30)}" for name, value in largest)]
    axes.text(0, 0.96, "\n".join(words), fontsize=7.5, va="top", color=INK, linespacing=1.4, transform=axes.transAxes)


def _tiled(values: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "h w"]:
    """A map summed over at most 16 x 16 tiles, whose sizes differ by a pixel at most."""
    for axis in (0, 1):
        size = values.shape[axis]
        values = np.add.reduceat(values, np.arange(min(size, TILES)) * size // min(size, TILES), axis=axis)
    return values


def _matrix(axes: Any, values: Float[np.ndarray, "n n"], scale: float, colours: str) -> None:
    """Numbers in cells, coloured on a symmetric scale."""
    axes.tick_params(length=0)
    axes.imshow(values, cmap=colours, vmin=-scale, vmax=scale)
    for (i, j), value in np.ndenumerate(values):
        ink = "white" if abs(value) > 0.6 * scale else INK
        axes.text(j, i, short(value), ha="center", va="center", fontsize=6.5, color=ink)


def _depths(deepest: int, columns: int) -> list[int]:
    """Depths from the top layer down to the deepest, evenly spaced."""
    return sorted({round(d) for d in np.linspace(1, deepest, min(columns, deepest))})


def _classes(axes: Any, explanation: Explanation) -> None:
    """The best classes, each with its probability as a number and a bar."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.text(0, 1, "BEST CLASSES", fontsize=7, color=FAINT, va="top")
    for y, score in zip(np.linspace(0.84, 0.08, 5), explanation.best, strict=False):
        axes.text(0, y, cut(score.name, 24), fontsize=9, color=INK)
        axes.text(1, y, f"{100 * score.probability:.1f} %", fontsize=9, color=INK, ha="right")
        axes.plot([0, 1], [y - 0.045] * 2, color=LINE, linewidth=2.5, solid_capstyle="butt")
        axes.plot([0, score.probability], [y - 0.045] * 2, color=INK, linewidth=2.5, solid_capstyle="butt")


def _legend(axes: Any, explanation: Explanation) -> None:
    """How to read the figure."""
    axes.set_axis_off()
    text = [
        "A map shows weight \N{MULTIPLICATION SIGN} input of an exact",
        "linear model, summed over colours:",
        "red speaks for, blue against.",
        "",
        "Below it: value = weight part + bias,",
        f"exact to {explanation.error:.0e}.",
        "",
        f"Model: {cut(explanation.model, 30)}",
    ]
    axes.text(0, 1, "HOW TO READ", fontsize=7, color=FAINT, va="top", transform=axes.transAxes)
    axes.text(0, 0.9, "\n".join(text), fontsize=8.5, va="top", color=INK, linespacing=1.5, transform=axes.transAxes)


def _cell(axes: Any, explanation: Explanation, row: Row, depth: int, shared: float, colours: str) -> None:
    """The map of a row's path at one depth (0: the whole network) over the paled picture, with its numbers."""
    frame(axes)
    if depth > len(row.parts):
        axes.text(
            0.5, 0.5, f"The path ended:\n{row.stopped}", ha="center", va="center", fontsize=7, color=FAINT, wrap=True
        )
        return
    part = row.parts[depth - 1] if depth else row.whole
    scale = clip([part.contribution]) if depth else shared
    _zoom(axes, part, overlay(axes, explanation.shown, part.contribution, scale, colours))
    if depth:
        layer, _, unit = part.unit.partition("[")
        down = f"path {depth}" if row.several else f"top {depth} layer{'s' if depth > 1 else ''}"
        axes.set_title(f"{down}, down to\n{cut(layer, 34)}\n[{unit}", fontsize=7.5)
    else:
        axes.set_title(f"{cut(row.title, 32)}\nwhole network", fontsize=9.5, color=INK)
        axes.text(0, 1.21, row.role.upper(), fontsize=7, color=FAINT, transform=axes.transAxes)
    sum_ = f"{short(part.value)} = {short(part.weight_part)} {'+' if part.bias >= 0 else MINUS} {short(abs(part.bias))}"
    axes.set_xlabel(sum_, fontsize=9, color=INK, labelpad=4)
    note = f"scale {short(scale)}"
    if row.end is not None and depth == len(row.parts):
        element, value = row.end
        y, x = map(int, element[2:-1].split(",")[-2:])
        axes.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=0.8)
        note += f"; ends at {element}: {short(value)}"
    axes.text(0.5, -0.165, note, fontsize=7, color=FAINT, ha="center", transform=axes.transAxes)


def _zoom(axes: Any, part: Part, limits: dict[str, Any]) -> None:
    """Where a map covers a small place only: frame the place and show it enlarged in the corner across."""
    height, width = part.contribution.shape
    ys, xs = np.nonzero(np.abs(part.contribution) > 0)
    if len(ys) == 0:
        return
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    side = max(bottom - top, right - left)
    if side > 0.3 * min(height, width):
        return
    corner = (0.02 if left + right > width else 0.53, 0.02 if top + bottom < height else 0.53)
    inset = axes.inset_axes((*corner, 0.45, 0.45))
    inset.imshow(part.contribution, **limits)
    middle = (left + right - 1) / 2, (top + bottom - 1) / 2
    inset.set(xlim=(middle[0] - side / 2, middle[0] + side / 2), ylim=(middle[1] + side / 2, middle[1] - side / 2))
    inset.set(xticks=[], yticks=[])
    axes.indicate_inset_zoom(inset, edgecolor=FAINT, linewidth=0.8)
