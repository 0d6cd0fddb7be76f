"""What all figures share: colours, scales, numbers, and a file that is written whole or not at all."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Float

from .errors import MissingExtraError
from .explanations import Explanation
from .files import replacing, writable

ENDINGS = (".png", ".pdf", ".svg")
CLIP = 99.5
STRENGTH = 0.6
INK, FAINT, LINE = "#222222", "#767676", "#dddddd"
MINUS = "\N{MINUS SIGN}"
MARGIN = 0.25  # inches


def save(fig: Any, path: str | Path) -> None:
    """Write a figure to a PNG, PDF or SVG file, whole or not at all.

    Raises:
        UsageError: another ending, or a folder that is not there.
        InputError: the file cannot be written.
    """
    path = Path(path)
    writable(path, ENDINGS)
    with replacing(path) as draft:
        fig.savefig(draft, format=path.suffix[1:].lower(), dpi=150)


def matplotlib(module: str) -> Any:
    """A module of matplotlib, loaded when a figure is drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise MissingExtraError(f"matplotlib is needed to draw: pip install 'relupath[draw]' ({error})") from error


def canvas(width: float, height: float, title: str = "") -> Any:
    """A white figure of so many inches, with a title where it has one."""
    fig = matplotlib("figure").Figure(figsize=(width, height), facecolor="white")
    fig.text(MARGIN / width, 1 - 0.32 / height, title, fontsize=17, color=INK, va="center")
    return fig


def frame(axes: Any) -> None:
    """A frame without ticks."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(LINE)


def photo(axes: Any, explanation: Explanation) -> None:
    """The picture that is explained, under its name."""
    axes.imshow(explanation.shown, interpolation="nearest")
    axes.set_title(cut(PurePath(explanation.picture).name, 34), fontsize=8, color=FAINT)
    axes.set_axis_off()


def clip(maps: Iterable[Float[np.ndarray, "H W"]]) -> float:
    """The percentile of the absolute values other than zero at which the colours end."""
    values = np.abs(np.concatenate([m.ravel() for m in maps]))
    values = values[values > 0]
    return float(np.percentile(values, CLIP)) if len(values) else 1.0


def overlay(
    axes: Any, shown: Float[np.ndarray, "H W 3"], values: Float[np.ndarray, "H W"], end: float, colours: str
) -> dict[str, Any]:
    """A map over the paled picture, on a scale that ends at a value; returns how its colours are chosen."""
    grey = shown @ np.array([0.299, 0.587, 0.114])
    axes.imshow(0.82 + 0.18 * grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    strength = np.clip(np.abs(values) / end, 0, 1) ** STRENGTH
    limits = {"cmap": colours, "vmin": -end, "vmax": end, "interpolation": "nearest"}
    axes.imshow(values, alpha=strength, **limits)
    return limits


def bar(axes: Any, colours: str, values: str = "a map's |values|") -> None:
    """One colour bar for all maps, in units of each one's scale."""
    ramp = np.linspace(-1, 1, 256)[None]
    axes.set_facecolor("0.91")
    axes.imshow(ramp, cmap=colours, alpha=np.abs(ramp) ** STRENGTH, aspect="auto", extent=(-1, 1, 0, 1))
    axes.set_xticks([-1, 0, 1], labels=[f"{MINUS}scale", "0", "+scale"], fontsize=7, color=FAINT)
    for label, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_horizontalalignment(side)
    axes.tick_params(length=0)
    axes.set(yticks=[])
    axes.set_title(f"scale: {CLIP:g}th percentile of {values}", fontsize=7, color=FAINT, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)


def short(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}".replace("-", MINUS)


def cut(text: str, width: int) -> str:
    """A text without its end where it is too long."""
    return text if len(text) <= width else f"{text[: width - 1]}\N{HORIZONTAL ELLIPSIS}"
