"""Results as small tables for a notebook: plain HTML without a script, for light and dark pages; names are escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

Cell = str | int | float | None

SHOWN = 20
"""How many rows of a table are printed."""
NUMBER = ' class="n"'
STYLE = (
    ".relupath{font:13px/1.5 system-ui,sans-serif;overflow-x:auto}"
    ".relupath p{margin:.3em 0}"
    ".relupath table{border-collapse:collapse;font:inherit;margin:.3em 0;font-variant-numeric:tabular-nums}"
    ".relupath table tr{background:none}"
    ".relupath table th,.relupath table td{padding:.15em .9em .15em 0;text-align:left;vertical-align:baseline;"
    "border:0;border-bottom:1px solid color-mix(in srgb,currentColor 16%,transparent);unicode-bidi:isolate}"
    ".relupath table th{font-weight:600}"
    ".relupath table .n{text-align:right;white-space:nowrap}"
    ".relupath details{margin-left:1.2em}"
    ".relupath summary span{font-variant-numeric:tabular-nums;opacity:.75;padding-left:.6em}"
)


def text(words: object) -> str:
    """Words of any origin as HTML text: markup is escaped, and what is no character becomes a question mark."""
    return html.escape(str(words).encode("utf-8", "replace").decode("utf-8"))


def number(value: int | float, places: int | None = None) -> str:
    """A number in four digits or so many decimal places, with a proper minus sign; what is not finite in words."""
    if isinstance(value, int):
        return str(value).replace("-", "\N{MINUS SIGN}")
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "\N{MINUS SIGN}\N{INFINITY}" if value < 0 else "\N{INFINITY}"
    shown = f"{value:.4g}" if places is None else f"{value:.{places}f}"
    return (shown if float(shown) else shown.lstrip("-")).replace("-", "\N{MINUS SIGN}")


def places(values: Iterable[float]) -> int:
    """Decimal places that give the largest of some numbers four digits, so that a column of them adds up."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return max(0, min(9, 3 - math.floor(math.log10(largest)))) if largest else 0


def adding(values: Sequence[float], total: float, places: int) -> list[float]:
    """Numbers as they are printed, so that what is printed adds up: rounded down or up, up where the most is lost.

    Args:
        values: the numbers; where they do not add up to the total they are rounded one by one.
        total: what they add up to as printed.
        places: the decimal places.
    """
    if not abs(math.fsum(values) - total) * 10**places < 1:
        return [round(value, places) for value in values]
    scaled = [value * 10**places for value in values]
    low = [math.floor(value) for value in scaled]
    every, some = divmod(round(total * 10**places) - sum(low), len(values))
    order = sorted(range(len(values)), key=lambda i: low[i] - scaled[i])
    up = {i: every + (place < some) for place, i in enumerate(order)}
    return [(whole + up[i]) / 10**places for i, whole in enumerate(low)]


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell]], most: int = SHOWN, places: int | None = None) -> str:
    """A table; numbers stand to the right, see ``number``. Of more rows than ``most`` the rest are counted."""
    every = list(rows)
    body = "".join(_row(row, places) for row in every[:most])
    more = len(every) - most
    body += f'<tr><td colspan="{len(heads)}">and {more} more</td></tr>' if more > 0 else ""
    plain = [column for column in range(len(heads)) if not any(_is_number(row[column]) for row in every)]
    cells = "".join(f'<th scope="col"{"" if i in plain else NUMBER}>{text(head)}</th>' for i, head in enumerate(heads))
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def samples(columns: Mapping[str, Sequence[Cell]]) -> str:
    """A table of one row a sample, numbered."""
    count = len(next(iter(columns.values())))
    return table(("sample", *columns), zip(range(count), *columns.values(), strict=True))


def block(title: str, *parts: str) -> str:
    """What a notebook shows: a title and HTML below it."""
    return f'<div class="relupath"><style>{STYLE}</style><p><b>{text(title)}</b></p>{"".join(parts)}</div>'


def said(words: object) -> str:
    """A paragraph of words of any origin."""
    return f"<p>{text(words)}</p>"


def shape(sizes: Sequence[int]) -> str:
    """``3 × 224 × 224``."""
    return " × ".join(map(str, sizes)) or "one number"


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float)


def _row(cells: Sequence[Cell], places: int | None) -> str:
    told = (
        f"<td{NUMBER}>{number(cell, places)}</td>"
        if isinstance(cell, int | float)
        else f"<td>{text('' if cell is None else cell)}</td>"
        for cell in cells
    )
    return f"<tr>{''.join(told)}</tr>"
