"""Figures of an explanation: maps of the whole model and its paths, where the bias lies, linear models elsewhere."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Float

from .elsewhere import Elsewhere
from .errors import MissingExtraError
from .explanations import Explanation, Part, Row
from .files import replacing, writable

ENDINGS = (".png", ".pdf", ".svg")
CLIP = 99.5
STRENGTH = 0.6
TILES = 16
INK, FAINT = "#222222", "#767676"
MINUS = "\N{MINUS SIGN}"
SIDE, GAP, MARGIN, HEADER, ROW, FOOTER = 2.35, 0.3, 0.25, 1.15, 3.4, 0.35  # inches


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
    width, height = MARGIN + (SIDE + GAP) * (len(depths) + 1), HEADER + ROW * rows + FOOTER
    fig = _matplotlib("figure").Figure(figsize=(width, height), facecolor="white")

    def cell(row: int, column: int) -> Any:
        left, bottom = MARGIN + (SIDE + GAP) * column, height - HEADER - ROW * row - SIDE
        return fig.add_axes((left / width, bottom / height, SIDE / width, SIDE / height))

    fig.text(MARGIN / width, 1 - 0.32 / height, f"Why {explanation.target.name}?", fontsize=17, color=INK, va="center")
    if bare:
        explanation = replace(explanation, shown=np.ones_like(explanation.shown))
    else:
        _photo(cell(0, 0), explanation)
    _words(cell(1, 0), explanation)
    shared = _scale([row.whole.contribution for row in explanation.rows])
    for r, row in enumerate(explanation.rows):
        for column, depth in enumerate(depths, start=1):
            _cell(cell(r, column), explanation, row, depth, shared, colours)
    _bar(fig.add_axes((MARGIN / width, 0.42 / height, SIDE / width, 0.1 / height)), colours)
    return fig


def save(
    explanation: Explanation, path: str | Path, columns: int = 4, colours: str = "RdBu_r", bare: bool = False
) -> None:
    """Draw an explanation into a PNG, PDF or SVG file, whole or not at all.

    Raises:
        UsageError: another ending, or a folder that is not there.
        InputError: the file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    path = Path(path)
    writable(path, ENDINGS)
    write(figure(explanation, columns, colours, bare), path)


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
    fig = _matplotlib("figure").Figure(figsize=(width, height), facecolor="white")
    fig.text(MARGIN / width, 1 - 0.32 / height, "Pixels or biases?", fontsize=17, color=INK, va="center")

    def cell(row: int, column: int, size: float = SIDE) -> Any:
        left, bottom = MARGIN + (SIDE + GAP) * column, height - HEADER - tall * row - SIDE
        return fig.add_axes((left / width, bottom / height, size / width, size / height))

    maps = [(_tiled(row.whole.contribution), _tiled(row.origin.map)) for row in rows]
    shared, own = _scale([m for pair in maps for m in pair]), _scale([bias for _, bias in maps])
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
            _frame(axes)
            axes.imshow(tiles, cmap=colours, vmin=-scale, vmax=scale, interpolation="nearest")
            axes.set_title(title, fontsize=8.5, color=INK)
            axes.set_xlabel(f"{_short(number)}   (scale {_short(scale)})", fontsize=9, color=INK, labelpad=4)
    if not bare:
        _photo(cell(0, 0, 0.5 * SIDE), explanation)
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
    fig = _matplotlib("figure").Figure(figsize=(width, height), facecolor="white")
    names = [_cut(PurePath(name).stem, 16) for name in found.pictures]
    for p, (title, values) in enumerate(panels):
        at = left + (side + GAP) * p
        axes = fig.add_axes((at / width, bottom / height, side / width, side / height))
        _frame(axes)
        _matrix(axes, values, scale, colours)
        axes.set_title(_cut(title, int(14 * side)), fontsize=8.5, color=INK)
        axes.set_xticks(range(count), labels=names, rotation=60, ha="right", fontsize=7, color=FAINT)
        if p == 0:
            rows = [f"{name}\n{_cut(target, 18)}" for name, target in zip(names, found.targets, strict=True)]
            axes.set_yticks(range(count), labels=rows, fontsize=7, color=FAINT)
    note = f"{_cut(found.model, 40)}. Row: frozen at that picture, for that class. Column: applied to that picture. "
    note += f"Scale ±{_short(scale)}."
    fig.text(MARGIN / width, 0.15 / height, note, fontsize=7, color=FAINT)
    return fig


def save_bias(explanation: Explanation, path: str | Path, colours: str = "RdBu_r", bare: bool = False) -> None:
    """Draw ``bias_figure`` into a PNG, PDF or SVG file, whole or not at all.

    Raises:
        UsageError: another ending, or a folder that is not there.
        InputError: the file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    path = Path(path)
    writable(path, ENDINGS)
    write(bias_figure(explanation, colours, bare), path)


def write(fig: Any, path: Path) -> None:
    """Write a figure to a PNG, PDF or SVG file, whole or not at all."""
    with replacing(path) as draft:
        fig.savefig(draft, format=path.suffix[1:].lower(), dpi=150)


def _bias_words(axes: Any, row: Row) -> None:
    """The layers whose biases add most to a target, either way."""
    axes.set_axis_off()
    axes.text(0, 1.1, row.role.upper(), fontsize=7, color=FAINT, transform=axes.transAxes)
    axes.text(0, 1.02, _cut(row.title, 34), fontsize=9.5, color=INK, transform=axes.transAxes)
    largest = sorted(row.origin.layers.items(), key=lambda item: -abs(item[1]))[:5]
    words = ["Largest biases below a layer", *(f"{_short(value)}  {_cut(name, 30)}" for name, value in largest)]
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
        axes.text(j, i, _short(value), ha="center", va="center", fontsize=6.5, color=ink)


def _frame(axes: Any) -> None:
    """A frame without ticks."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color("#dddddd")


def _depths(deepest: int, columns: int) -> list[int]:
    """Depths from the top layer down to the deepest, evenly spaced."""
    return sorted({round(d) for d in np.linspace(1, deepest, min(columns, deepest))})


def _scale(maps: Sequence[Float[np.ndarray, "H W"]]) -> float:
    """The percentile of the absolute values other than zero at which the colours end."""
    values = np.abs(np.concatenate([m.ravel() for m in maps]))
    values = values[values > 0]
    return float(np.percentile(values, CLIP)) if len(values) else 1.0


def _photo(axes: Any, explanation: Explanation) -> None:
    axes.imshow(explanation.shown, interpolation="nearest")
    axes.set_title(_cut(PurePath(explanation.picture).name, 34), fontsize=8, color=FAINT)
    axes.set_axis_off()


def _words(axes: Any, explanation: Explanation) -> None:
    axes.set_axis_off()
    best = [f"{100 * s.probability:4.1f} %  {_cut(s.name, 24)}" for s in explanation.best]
    text = [
        "Best classes",
        *best,
        "",
        "A map shows weight \N{MULTIPLICATION SIGN} input of an exact",
        "linear model, summed over colours:",
        "red speaks for, blue against.",
        "",
        "Below it: value = weight part + bias,",
        f"exact to {explanation.error:.0e}.",
        "",
        f"Model: {_cut(explanation.model, 30)}",
    ]
    axes.text(0, 1, "\n".join(text), fontsize=8, va="top", color=INK, linespacing=1.45, transform=axes.transAxes)


def _bar(axes: Any, colours: str) -> None:
    """One colour bar for all maps, in units of each one's scale."""
    ramp = np.linspace(-1, 1, 256)[None]
    axes.set_facecolor("0.91")
    axes.imshow(ramp, cmap=colours, alpha=np.abs(ramp) ** STRENGTH, aspect="auto", extent=(-1, 1, 0, 1))
    axes.set_xticks([-1, 0, 1], labels=["\N{MINUS SIGN}scale", "0", "+scale"], fontsize=7, color=FAINT)
    axes.tick_params(length=0)
    axes.set(yticks=[])
    axes.set_title(f"scale: {CLIP:g}th percentile of a map's |values|", fontsize=7, color=FAINT, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cell(axes: Any, explanation: Explanation, row: Row, depth: int, shared: float, colours: str) -> None:
    """The map of a row's path at one depth (0: the whole network) over the paled picture, with its numbers."""
    _frame(axes)
    if depth > len(row.parts):
        axes.text(
            0.5, 0.5, f"The path ended:\n{row.stopped}", ha="center", va="center", fontsize=7, color=FAINT, wrap=True
        )
        return
    part = row.parts[depth - 1] if depth else row.whole
    scale = _scale([part.contribution]) if depth else shared
    grey = explanation.shown @ np.array([0.299, 0.587, 0.114])
    axes.imshow(0.82 + 0.18 * grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    strength = np.clip(np.abs(part.contribution) / scale, 0, 1) ** STRENGTH
    limits = {"cmap": colours, "vmin": -scale, "vmax": scale, "interpolation": "nearest"}
    axes.imshow(part.contribution, alpha=strength, **limits)
    _zoom(axes, part, limits)
    if depth:
        layer, _, unit = part.unit.partition("[")
        down = f"path {depth}" if row.several else f"top {depth} layer{'s' if depth > 1 else ''}"
        axes.set_title(f"{down}, down to\n{_cut(layer, 34)}\n[{unit}", fontsize=7.5)
    else:
        axes.set_title(f"{_cut(row.title, 32)}\nwhole network", fontsize=9.5, color=INK)
        axes.text(0, 1.21, row.role.upper(), fontsize=7, color=FAINT, transform=axes.transAxes)
    sum_ = (
        f"{_short(part.value)} = {_short(part.weight_part)} {'+' if part.bias >= 0 else MINUS} {_short(abs(part.bias))}"
    )
    axes.set_xlabel(sum_, fontsize=9, color=INK, labelpad=4)
    note = f"scale {_short(scale)}"
    if row.end is not None and depth == len(row.parts):
        element, value = row.end
        y, x = map(int, element[2:-1].split(",")[-2:])
        axes.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=0.8)
        note += f"; ends at {element}: {_short(value)}"
    axes.text(0.5, -0.165, note, fontsize=7, color=FAINT, ha="center", transform=axes.transAxes)


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", MINUS)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}\N{HORIZONTAL ELLIPSIS}"


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


def _matplotlib(module: str) -> Any:
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise MissingExtraError(f"matplotlib is needed to draw: pip install 'relupath[draw]' ({error})") from error
