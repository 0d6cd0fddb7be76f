"""A figure of faithfulness: the mean curves of every method, and the areas under them with their intervals."""

from __future__ import annotations

from typing import Any

from ._canvas import FAINT, INK, LINE, MARGIN, canvas, cut
from .evaluation import RANDOM, Evaluation, better

COLOURS = ("#0072b2", "#e69f00", "#cc79a7", "#56b4e9", "#d55e00", "#6a3d9a", "#a6761d", "#000000")
"""Told apart by red-green blind eyes too."""
ARROWS = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}
SIDE, GAP, LEFT, HEADER, FOOT = 3.1, 1.5, 0.75, 1.0, 0.6  # inches


def evaluation_figure(found: Evaluation) -> Any:
    """Draw for each measure the mean score as pixels come or go, and beside it the areas; the control in grey.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = len(found.measures)
    tall = HEADER + (SIDE + 0.75) * rows + FOOT - 0.75
    width = LEFT + 2 * SIDE + GAP + 0.5
    fig = canvas(width, tall, "How faithful are the maps?")
    for r, measure in enumerate(found.measures):
        bottom = tall - HEADER - (SIDE + 0.75) * r - SIDE
        curves, areas = (
            fig.add_axes((left / width, bottom / tall, SIDE / width, SIDE / tall)) for left in (LEFT, LEFT + SIDE + GAP)
        )
        _curves(curves, found, r)
        _areas(areas, found, measure)
        title = f"{measure} {ARROWS[better(measure)]} {better(measure)} is better"
        curves.set_title(title, fontsize=9.5, color=INK, loc="left")
        areas.set_title("area under the curve, 95 % interval", fontsize=8.5, color=FAINT, loc="left")
    note = (
        f"{cut(found.model, 40)}, {len(found.pictures)} pictures. Zero deletes, a blurred picture is where insertion "
    )
    fig.text(MARGIN / width, 1 - 0.62 / tall, note + "starts.", fontsize=7.5, color=FAINT, va="center")
    return fig


def _colour(found: Evaluation, method: str) -> str:
    """Grey for the control; otherwise by the method's place."""
    return FAINT if method == RANDOM else COLOURS[found.methods.index(method) % len(COLOURS)]


def _curves(axes: Any, found: Evaluation, row: int) -> None:
    """The mean score after each step."""
    points = found.curves.shape[2]
    share = [100 * step / (points - 1) for step in range(points)]
    for method, curve in zip(found.methods, found.curves[row], strict=True):
        style = {"linestyle": "--"} if method == RANDOM else {}
        axes.plot(share, curve, color=_colour(found, method), linewidth=1.4, **style)
    axes.set(xlim=(0, 100), ylim=(0, None))
    axes.set_xlabel("% of the steps, one row of pixels each", fontsize=8, color=FAINT)
    axes.set_ylabel("score of the class", fontsize=8, color=FAINT)
    _plain(axes)


def _areas(axes: Any, found: Evaluation, measure: str) -> None:
    """The mean area of each method with its interval, the control's behind all."""
    for place, method in enumerate(found.methods):
        got = found.interval(measure, method)
        if method == RANDOM:
            axes.axvspan(got.low, got.high, color=LINE, zorder=0)
        axes.plot([got.low, got.high], [place, place], color=_colour(found, method), linewidth=2)
        axes.plot([got.mean], [place], "o", color=_colour(found, method), markersize=5)
    axes.set_yticks(range(len(found.methods)), labels=found.methods, fontsize=8, color=INK)
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5)
    _plain(axes)


def _plain(axes: Any) -> None:
    """Small grey numbers, and no frame above and on the right."""
    axes.tick_params(length=2, labelsize=8, color=LINE)
    for side, spine in axes.spines.items():
        spine.set_color(LINE)
        spine.set_visible(side in ("left", "bottom"))
