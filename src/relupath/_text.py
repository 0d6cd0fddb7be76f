"""Results as text for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .elsewhere import Elsewhere
    from .evaluation import Evaluation
    from .explanations import Explanation, Layers, Row


def report(explanation: Explanation) -> str:
    """The results as text: classes, each target's weight part and bias, each path depth by depth."""
    lines = [f"{explanation.picture} explained by {explanation.model}", ""]
    lines.append(f"{'best classes':<36}{'logit':>10}{'probability':>13}")
    lines += [f"  {_cut(s.name, 34):<34}{s.logit:>10.3f}{100 * s.probability:>11.1f} %" for s in explanation.best]
    for row in explanation.rows:
        lines += _paths(row)
    if explanation.tree is not None:
        lines += ["", "as a sum of paths, with what the rest of each layer and the biases add:", str(explanation.tree)]
    lines += [
        "",
        f"completeness: W x + bias equals the output to {explanation.error:.0e} (bias summed over its sources)",
    ]
    return "\n".join(lines)


def _paths(row: Row) -> list[str]:
    """One target: its value, and its path depth by depth, or its several paths, as text."""
    whole = row.whole
    lines = ["", f"{row.role}: {row.title}"]
    lines.append(f"  {_number(whole.value)} = W x {_number(whole.weight_part)} + bias {_number(whole.bias)}")
    names = [str(part.path) if row.several else part.unit for part in row.parts]
    said = "paths, the best one first" if row.several else "path from the output down"
    cells = [[_number(n) for n in (p.importance, p.value, p.weight_part, p.bias, p.ablated)] for p in row.parts]
    heads = ["importance", "value", "W x", "bias", "without"]
    used = [i for i in range(len(heads)) if any(cell[i] for cell in cells)]
    width = 0 if row.several else max(map(len, [*names, said]))
    lines.append(f"  {said:<{width + 5}}" + "".join(f"{heads[i]:>11}" for i in used))
    for number, (name, cell) in enumerate(zip(names, cells, strict=True), start=1):
        values = "".join(f"{cell[i]:>11}" for i in used)
        lines += [f"  {number:>3}  {name}", f"{'':<{len(said) + 2}}{values}"] if row.several else []
        lines += [] if row.several else [f"  {number:>3}  {name:<{width}}{values}"]
    if row.end is not None:
        element, value = row.end
        lines.append(f"       {element:<{width + 11}}{_number(value):>11}{_number(value):>11}")
    share = (
        "the value is 0, of which there is no share"
        if row.held is None
        else f"{100 * row.held:.3g} % of the value held"
    )
    held = share if row.parts else "no path"
    return [*lines, f"       {row.stopped}; {held}", *_gap(row)]


def _gap(row: Row) -> list[str]:
    """How far Algorithm 1 is from the exact best path, as text."""
    if row.gap is None:
        return []
    greedy, exact = row.gap
    if exact is None:
        return ["       no complete path has a positive value: there is no best one to compare greedy with"]
    best = f"the exact best path holds {_number(exact)}"
    if greedy is None:
        return [f"       greedy ends early or skips a layer: no complete path to compare; {best}"]
    return [f"       greedy holds {_number(greedy)}, {best}: greedy reaches {100 * greedy / exact:.3g} %"]


def biases(explanation: Explanation) -> str:
    """What the constants below each layer add to the logits of both classes and to their difference, as text."""
    rows = explanation.rows
    width = max(map(len, ["biases below", *rows[0].origin.layers]))
    heads = (*(_cut(row.title, 16) for row in rows[:2]), "difference")
    lines = ["", f"{'biases below':<{width}}" + "".join(f"{head:>18}" for head in heads)]
    parts = [("W x (pixels)", [row.whole.weight_part for row in rows])]
    parts += [(name, [row.origin.layers[name] for row in rows]) for name in rows[0].origin.layers]
    parts += [("all biases", [row.whole.bias for row in rows]), ("logit", [row.whole.value for row in rows])]
    lines += [f"{name:<{width}}" + "".join(f"{_number(n):>18}" for n in numbers) for name, numbers in parts]
    return "\n".join(lines)


def table(found: Layers) -> str:
    """The layers as text."""
    width = max(len(row.name) for row in found.rows)
    shapes = ["x".join(map(str, row.shape)) for row in found.rows]
    wide = max(map(len, [*shapes, "shape"]))
    lines = [f"{found.model} at {found.picture}", ""]
    lines.append(
        f"{found.target.name}: {_number(found.target.logit)} = W x {_number(found.weight_part)} + bias "
        f"{_number(found.bias)}"
    )
    lines.append(f"{'layer':<{width}}  {'shape':>{wide}}{'neurons':>11}{'gates open':>12}{'bias':>11}{'of bias':>10}")
    for row, shape in zip(found.rows, shapes, strict=True):
        gates = "" if row.open is None else f"{100 * row.open:.1f} %"
        share = f"{100 * row.bias / found.bias + 0.0:.1f} %" if found.bias else ""
        line = f"{row.name:<{width}}  {shape:>{wide}}{row.neurons:>11}{gates:>12}"
        lines.append(line if row.name == "x" else f"{line}{_number(row.bias):>11}{share:>10}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.operations.items()))
    return "\n".join([*lines, "", f"operations: {kinds}"])


def matrices(found: Elsewhere) -> str:
    """What each linear model gives for each picture, as text."""
    names = [f"{number} {_cut(Path(name).stem, 18)}" for number, name in enumerate(found.pictures, start=1)]
    lines = [f"{found.model}, frozen at each picture (a row) for its class, applied to every picture (a column)"]
    for title, values in (("the network itself", found.logits), *zip(found.titles, found.values, strict=True)):
        lines += ["", title, f"{'':<40}" + "".join(f"{number:>11}" for number in range(1, len(names) + 1))]
        for name, target, row in zip(names, found.targets, values.tolist(), strict=True):
            lines.append(f"  {name:<21}{_cut(target, 16):<17}" + "".join(f"{_number(value):>11}" for value in row))
    return "\n".join(lines)


def faithfulness(found: Evaluation) -> str:
    """Means over the pictures with their intervals, an arrow where it is better, the control last, as text."""
    said = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}"}
    figures = found.to_dict()["figures"]
    arrows = {figure["measure"]: said[figure["better"]] for figure in figures}
    lines = [f"{found.model} on {len(found.pictures)} pictures: areas under the curves, means and 95 % intervals", ""]
    lines.append(f"{'method':<14}" + "".join(f"{f'{name} {arrow}':<26}" for name, arrow in arrows.items()).rstrip())
    for method in found.methods:
        cells = [f"{f['mean']:.3f}  {f['low']:.3f} to {f['high']:.3f}" for f in figures if f["method"] == method]
        lines.append(f"{method:<14}" + "".join(f"{cell:<26}" for cell in cells).rstrip())
    for method, count in zip(found.methods, found.empty, strict=True):
        if count:
            lines += [
                "",
                f"{method}: all zero at {count} of {len(found.pictures)} pictures: pixels are at random there",
            ]
    if found.tolerance is not None:
        lines += ["", f"steps that move an area by less than {found.tolerance:g}, by estimate, were left out"]
    lines += ["", "\N{UPWARDS ARROW} higher is better, \N{DOWNWARDS ARROW} lower is better; random is the control"]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """Four digits, in powers of ten where the plain form would hide them."""
    if value is None:
        return ""
    return f"{value:.3f}" if value == 0 or 1e-2 <= abs(value) < 1e5 else f"{value:.2e}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
