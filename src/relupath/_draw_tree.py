"""The figure of a decomposition tree: what a target is the sum of, level by level."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ._canvas import FAINT, INK, LINE, MARGIN, MINUS, bar, canvas, clip, cut, frame, matplotlib, overlay, photo, short
from ._node import Node
from .errors import UsageError
from .explanations import Explanation

MOST = 12
"""How many nodes stand on a level, unless the children of one node are more."""
WIDTH, NARROW, WIDE, GAP, APART = 12.0, 0.915, 1.5, 0.11, 0.24  # inches
HEADER, ROOT, TRUNK, LABEL, NUMBERS = 0.6, 1.8, 0.9, 0.36, 0.54  # inches
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Level = Sequence[Node]
"""The nodes that are opened on one level, from left to right."""


def tree_figure(explanation: Explanation, colours: str = "RdBu_r", bare: bool = False) -> Any:
    """Draw the decomposition tree of an explanation: the root on top, below it level by level what it is the sum of.

    The children of a node stand side by side under one line with their sum; the maps of siblings share one scale, and
    the bars below them compare their values, red for the target. On each level as many nodes are opened as find room,
    units before the rest, those of the largest |value| first; what is drawn adds up as it stands.

    Args:
        explanation: what to draw; its ``tree`` as far as it is expanded.
        colours: a diverging matplotlib colour map.
        bare: leave the picture out, maps and numbers only.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        UsageError: there is no tree, or it was read from a file and has no maps.
        MissingExtraError: matplotlib is not installed.

    Source: section 3 of the paper, of which every split is an identity.
    """
    root = explanation.tree
    if root is None:
        raise UsageError("there is no tree to draw: ask for one with Plan(tree=(depth, width)) or --tree")
    if root.contribution is None:
        raise UsageError("a tree that was read from a file has no maps: draw one that decompose gave")
    levels = _levels(root)
    width = max([WIDTH, *(_span(level, NARROW) + 2 * MARGIN for level in levels)])
    pitches = [_pitch(level, width - 2 * MARGIN) for level in levels]
    height = (
        HEADER
        + LABEL
        + ROOT
        + (MARGIN if levels else NUMBERS)
        + sum(TRUNK + LABEL + pitch - GAP + NUMBERS for pitch in pitches)
    )
    fig = canvas(width, height, f"What {explanation.rows[0].title} is the sum of")
    sheet = fig.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    sheet.set_axis_off()
    board = _Board(sheet, np.ones_like(explanation.shown) if bare else explanation.shown, colours)
    top = HEADER + LABEL
    if not bare:
        photo(board.cell(MARGIN, top, ROOT, ROOT), explanation)
    board.words(width - MARGIN - 2.35, top, explanation)
    board.node(root, (width - ROOT) / 2, top, ROOT, clip([_map(root)]), None if levels else _numbers([root]))
    stands, top = {id(root): width / 2}, top + ROOT + (0 if levels else NUMBERS)
    for level, pitch in zip(levels, pitches, strict=True):
        stands = board.level(level, stands, top, pitch)
        top += TRUNK + LABEL + pitch - GAP + NUMBERS
    return fig


def _levels(root: Node) -> list[Level]:
    """Which nodes are opened on each level: units first, the largest first, as long as their children find room."""
    levels: list[Level] = []
    nodes: Sequence[Node] = [root]
    while True:
        open_to = [node for node in nodes if node.is_expanded and node.children]
        if not open_to:
            return levels
        room, chosen = MOST, list[Node]()
        for node in sorted(open_to, key=lambda node: (node.kind != "path", -abs(node.value))):
            if not chosen or len(node.children) <= room:
                chosen.append(node)
                room -= len(node.children)
        levels.append([node for node in open_to if node in chosen])
        nodes = [child for node in levels[-1] for child in node.children]


def _span(level: Level, pitch: float) -> float:
    """How wide a level is, of which each cell is so wide."""
    return pitch * sum(len(node.children) for node in level) + APART * (len(level) - 1)


def _pitch(level: Level, room: float) -> float:
    """How wide the cells of a level can be in a room."""
    gaps = APART * (len(level) - 1)
    return min(WIDE, (room - gaps) / sum(len(node.children) for node in level))


@dataclass(frozen=True, eq=False)
class _Board:
    """What nodes are drawn on.

    Attributes:
        sheet: axes over the whole figure, in inches from its left upper corner.
        shown: the picture below the maps.
        colours: the colour map.
    """

    sheet: Any
    shown: Float[np.ndarray, "H W 3"]
    colours: str

    def cell(self, left: float, top: float, wide: float, tall: float) -> Any:
        """Axes at a place."""
        width, height = self.sheet.figure.get_size_inches()
        return self.sheet.figure.add_axes((left / width, 1 - (top + tall) / height, wide / width, tall / height))

    def text(
        self, left: float, top: float, text: str, size: float = 7, colour: str = FAINT, align: str = "left"
    ) -> None:
        """A text at a place."""
        self.sheet.text(left, top, text, fontsize=size, color=colour, ha=align)

    def line(self, xs: Any, ys: Any, colour: Any = FAINT, thick: float = 0.7) -> None:
        """A line through places."""
        self.sheet.plot(xs, ys, color=colour, linewidth=thick, solid_capstyle="butt")

    def node(self, node: Node, left: float, top: float, side: float, end: float, said: _Numbers | None) -> None:
        """The name of a node, its map on a scale, and its numbers below."""
        self.text(left, top - 0.06, cut(_name(node), int(side * 15)), 8.5, INK)
        axes = self.cell(left, top, side, side)
        frame(axes)
        if node.kind == "bias":
            axes.set_facecolor("#f7f7f7")
            axes.text(0.5, 0.5, "constants\nhave no map", fontsize=7, color=FAINT, ha="center", va="center")
        else:
            overlay(axes, self.shown, _map(node), end, self.colours)
        middle, bottom = left + side / 2, top + side
        if said is not None:
            self.text(middle, bottom + 0.29, said(node.value), 9.5, INK, align="center")
            self.text(middle, bottom + 0.45, "" if node.kind == "bias" else said.parts(node), align="center")

    def level(self, level: Level, stands: dict[int, float], top: float, pitch: float) -> dict[int, float]:
        """The children of the opened nodes side by side below their parents; returns where each child stands."""
        width = self.sheet.figure.get_size_inches()[0]
        wide = _span(level, pitch)
        wish = sum(stands[id(node)] for node in level) / len(level) - wide / 2
        left, below = min(max(wish, MARGIN), width - MARGIN - wide), dict[int, float]()
        for parent in level:
            right = left + pitch * len(parent.children)
            self.trunk(stands[id(parent)], (left + right) / 2, top)
            below |= self.split(parent, left, top + TRUNK, pitch)
            left = right + APART
        return below

    def trunk(self, start: float, end: float, top: float) -> None:
        """A soft line from a parent down to its children."""
        t = np.linspace(0, 1, 50)
        self.line(start + (end - start) * t * t * (3 - 2 * t), top + 0.04 + (TRUNK - 0.5) * t)

    def split(self, parent: Node, left: float, top: float, pitch: float) -> dict[int, float]:
        """The children of one node under a line with their sum; returns where each stands."""
        children, side = parent.children, pitch - GAP
        said, end = _numbers([parent, *children]), _end(children)
        middle, most = left + pitch * len(children) / 2, max(abs(child.value) for child in children) or 1.0
        total = f"{said(parent.value)} = {said.parts(parent)}{said.unit}"
        self.text(middle, top - 0.29, total, 8.5, INK, align="center")
        layers, ends = _layers(children), f"colours end at ±{short(end)}"
        room = int(pitch * len(children) * 16) - len(ends)
        self.text(middle, top - 0.15, f"{_squeezed(' | '.join(layers), room)}    {ends}", align="center")
        self.line([left + GAP / 2, left + pitch * len(children) - GAP / 2], [top - 0.08] * 2)
        stands, colours = {}, matplotlib("cm").ScalarMappable(cmap=self.colours).cmap
        for number, child in enumerate(children):
            at, y = left + pitch * number + GAP / 2, top + LABEL + side
            self.text(at, top + LABEL - 0.21, cut(_tag(child, layers), int(side * 16)))
            self.node(child, at, top + LABEL, side, end, said)
            if number:
                self.text(at - GAP / 2, y + 0.29, "+", 9.5, FAINT, align="center")
            middle, share = at + side / 2, child.value / most
            self.line([at, at + side], [y + 0.08] * 2, LINE)
            shade = colours(0.5 + math.copysign(0.36, share))
            self.line([middle, middle + share * side / 2], [y + 0.08] * 2, shade, 4)
            stands[id(child)] = middle
        return stands

    def words(self, left: float, top: float, explanation: Explanation) -> None:
        """How to read the figure."""
        text = [
            "Value = weight part + bias; each node",
            "is the sum of those below it.",
            "Maps: weight \N{MULTIPLICATION SIGN} input, siblings on",
            "one scale; red speaks for.",
            "Bars: values beside their siblings'.",
            f"Model: {cut(explanation.model, 28)}",
        ]
        self.sheet.text(left, top, "\n".join(text), fontsize=8, color=INK, va="top", linespacing=1.5)
        bar(self.cell(left, top + 1.5, 2.35, 0.1), self.colours, "units' |values|")


@dataclass(frozen=True)
class _Numbers:
    """How the numbers of siblings are printed: in one unit, a power of ten, with so many digits after the point."""

    power: int
    digits: int

    def __call__(self, value: float) -> str:
        """One number."""
        text = f"{value / 10.0**self.power:.{self.digits}f}"
        return f"{0:.{self.digits}f}" if not float(text) else text.replace("-", MINUS)

    def parts(self, node: Node) -> str:
        """The weight part and the bias of a node."""
        bias = self(node.bias)
        return f"{self(node.weight_part)} {MINUS if bias.startswith(MINUS) else '+'} {bias.removeprefix(MINUS)}"

    @property
    def unit(self) -> str:
        """The power of ten in words; empty for 1."""
        return f"   (in units of 10{str(self.power).translate(RAISED)})" if self.power else ""


def _numbers(nodes: Iterable[Node]) -> _Numbers:
    """Four digits of the largest number, as many after the point in all others."""
    largest = max(max(abs(node.value), abs(node.weight_part), abs(node.bias)) for node in nodes)
    size = math.floor(math.log10(largest)) if largest else 0
    power = 0 if -1 <= size <= 3 else 3 * (size // 3)
    return _Numbers(power, 3 - max(size - power, 0))


def _map(node: Node) -> Float[np.ndarray, "H W"]:
    """What the pixels add to a node, summed over colours."""
    assert node.contribution is not None
    return node.contribution[0].sum(0).cpu().double().numpy()


def _end(children: Sequence[Node]) -> float:
    """Where the colours of siblings end: among the values of the units, beside which the rest may be far larger."""
    units = [child for child in children if child.kind == "path"]
    return clip(map(_map, units or children))


def _name(node: Node) -> str:
    """The units of a node in a few words; of the root the target."""
    if node.kind != "path":
        return "the rest" if node.kind == "rest" else node.kind
    if not node.path.steps:
        return node.path.target
    lowest = node.path.steps[0]
    return str(lowest).removeprefix(lowest.layer)[1:-1] if len(lowest.units) == 1 else f"{len(lowest.units)} units"


def _layers(children: Iterable[Node]) -> list[str]:
    """The layers at which a node was split, without the units."""
    lowest = [child.path.steps[0] for child in children if child.kind in ("path", "rest")]
    return list(dict.fromkeys(layer for step in lowest for layer in step.layers))


def _tag(node: Node, layers: Sequence[str]) -> str:
    """The layer of a unit among siblings of several layers, without what the names have in common."""
    if len(layers) == 1 or node.kind != "path":
        return ""
    common = os.path.commonpath([layer.replace(".", "/") for layer in layers])
    return node.path.steps[0].layer[len(common) :].removeprefix(".")


def _squeezed(text: str, width: int) -> str:
    """A text without its middle where it is too long."""
    tail = width // 2
    return text if len(text) <= width else f"{text[: width - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{text[-tail:]}"
