"""What a report says in words and tables, readable without a script."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ._frozen import Frozen
from ._html import adding, number, places, table, text
from ._linear import linear_model
from ._targets import logit
from ._wire import plane
from .reach import STRAIGHT

MINUS = "\N{MINUS SIGN}"
THIRDS = [
    "upper left", "upper middle", "upper right", "middle left", "middle", "middle right", "lower left", "lower middle",
    "lower right",
]  # fmt: skip
ROLES = ("target", "against", "contrast")


@dataclass(frozen=True)
class Told:
    """What is told about a picture.

    Attributes:
        frozen: the recorded network.
        ask: gives the answers that the report holds.
        depth: how many levels of shares it holds.
        notes: sentences that a person should read.
        command: shows one level more than the file holds.
    """

    frozen: Frozen
    ask: Callable[[dict[str, Any]], dict[str, Any]]
    depth: int
    notes: tuple[str, ...]
    command: str

    def summary(self) -> str:
        """What a person reads first."""
        opened = self.opened
        picture = opened["picture"]
        image = picture["image"]
        photo = f'<img alt="the picture as the network sees it" src="data:{image["mime"]};base64,{image["data"]}">'
        parts = [
            f"<h2>{title}</h2>{''.join(f'<p>{sentence}</p>' for sentence in sentences)}"
            for title, sentences in (
                ("What the network saw", self._seen()),
                ("What speaks for it, and for the runner-up", self._speaks()),
                ("How much is bias", self._bias()),
                ("Do the numbers add up?", self._adds_up()),
            )
        ]
        limits = "".join(f"<li>{limit}</li>" for limit in self._limits())
        about = f"{text(picture['name'])}, explained by relupath for the network {text(self.model)}"
        return (
            f'<section class="paper summary" aria-label="summary"><header><h1>Why {self._name("target")}?</h1>'
            f"<p>{about}</p></header>{photo}<div>{''.join(parts)}<h2>Limits</h2><ul>{limits}</ul></div></section>"
        )

    def tables(self) -> str:
        """The numbers as tables."""
        opened = self.opened
        digits, roles = places(s["logit"] for s in opened["best"]), {opened[role]["index"]: role for role in ROLES[:2]}
        best = [
            (s["name"], self.printed(roles[s["index"]], digits)[0] if s["index"] in roles else s["logit"], _percent(s))
            for s in opened["best"]
        ]
        names = [self._plain(role) for role in ROLES]
        parts = [
            ("The best classes", table(("class", "logit", "probability"), best, 400, digits)),
            ("Where the pixels speak", self._ninths()),
            ("Where the biases enter", self._layers()),
        ]
        trees = [(f"{name}, as a sum of paths", self._tree(role)) for role, name in zip(ROLES, names, strict=True)]
        return "".join(
            f'<section class="paper numbers" aria-label="{name}">'
            f"{''.join(f'<div><h2>{text(title)}</h2>{part}</div>' for title, part in some)}</section>"
            for name, some in (("classes, pixels and biases", parts), ("shares", trees))
        )

    @cached_property
    def opened(self) -> dict[str, Any]:
        """What was seen."""
        return self.ask({"ask": "open"})

    @property
    def model(self) -> str:
        """The network's name."""
        return str(self.ask({"ask": "hello"})["model"])

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The whole linear model for each role."""
        return {row["role"]: row for row in self.opened["rows"]}

    def printed(self, role: str, digits: int) -> tuple[float, float, float]:
        """A logit, and what the pixels and the biases add to it, in so many decimal places; they add up as printed.

        Those of the other class are the target's less the contrast's, as on the page, so that the three add up too.
        Coarser ones are those of the sentences, rounded.
        """
        fine = max(digits, self.digits)
        if role == "against":
            target, contrast = self.printed("target", fine), self.printed("contrast", fine)
            value, pixels, biases = (one - other for one, other in zip(target, contrast, strict=True))
        else:
            row = self.rows[role]
            value, pixels, biases = float(row["value"]), row["weight_part"], row["bias"]
        whole = round(round(value, fine), digits)
        first, second = adding((pixels, biases), whole, digits)
        return whole, first, second

    @cached_property
    def thirds(self) -> dict[str, list[float]]:
        """What the pixels of each ninth of the picture add."""
        x = self.frozen.inputs[0].output
        maps: dict[str, Tensor] = {}
        for role in ROLES[:2]:
            weight = linear_model(self.frozen, logit(self.opened[role]["index"])).weight
            weight = weight[0] if isinstance(weight, tuple) else weight
            maps[role] = plane((weight * x)[0]).double()
        maps["contrast"] = maps["target"] - maps["against"]
        return {
            role: [float(part.sum()) for rows in one.tensor_split(3, 0) for part in rows.tensor_split(3, 1)]
            for role, one in maps.items()
        }

    def _plain(self, role: str) -> str:
        if role == "contrast":
            return f"{self._plain('target')} {MINUS} {self._plain('against')}"
        return str(self.opened[role]["name"])

    @property
    def digits(self) -> int:
        """In how many decimal places the logits are printed: four digits, or two of what they differ by."""
        values = [self.rows[role]["value"] for role in ROLES]
        return max(places(values), min(9, places(values[2:]) - 2))

    def _told(self, role: str) -> str:
        return number(self.printed(role, self.digits)[0], self.digits)

    def _name(self, role: str) -> str:
        return f"<b>{text(self._plain(role))}</b>"

    # --- sentences, each HTML

    def _seen(self) -> Iterator[str]:
        opened = self.opened
        first, target, other = opened["best"][0], opened["target"], opened["against"]
        if first["index"] == target["index"]:
            yield f"It takes the picture for {self._name('target')}, with a probability of {_percent(target)}."
            yield f"It is compared here with {self._name('against')}, to which it gives {_percent(other)}."
        else:
            yield (
                f"It takes the picture for <b>{text(first['name'])}</b>, with a probability of {_percent(first)}. This "
                f"report is about {self._name('target')} ({_percent(target)}) beside {self._name('against')} "
                f"({_percent(other)})."
            )
        gap, digits = target["logit"] - other["logit"], self.digits
        winner = self._name("target" if gap >= 0 else "against")
        yield (
            f"Between these two alone the odds are {_odds(abs(gap))} for {winner}: their logits, "
            f"{self._told('target')} and {self._told('against')}, differ by "
            f"{number(abs(self.printed('contrast', digits)[0]), digits)}. These are the "
            "network's own figures; how often it is right at such odds must be measured on labelled pictures."
        )

    def _speaks(self) -> Iterator[str]:
        for role in ROLES:
            ninths = self.thirds[role]
            high, low = max(range(9), key=ninths.__getitem__), min(range(9), key=ninths.__getitem__)
            way, share = max(self._units(role), key=lambda one: float(one[1]["value"]), default=((), None))
            what = "The difference" if role == "contrast" else f"The logit of {self._name(role)}"
            _, pixels, _ = self.printed(role, self.digits)
            said = f"{what} is {self._told(role)}, of which the pixels add {number(pixels, self.digits)}"
            said += f": most in the {THIRDS[high]} of the picture ({number(ninths[high])})"
            said += f", least in the {THIRDS[low]} ({number(ninths[low])})."
            if share is not None and share["value"] > 0:
                said += f" The unit of the largest share, {text(' › '.join(way))}, adds {number(share['value'])}."
            yield said

    def _bias(self) -> Iterator[str]:
        yield (
            "Biases are constants of the network, let through by what the picture switches on. They belong to the "
            "decision, but to no pixel."
        )
        for role in ROLES[:2]:
            row, layers = self.rows[role], self.ask({"ask": "bias", "on": role})["layers"]
            share = row["bias"] / row["value"] if row["value"] else math.nan
            part = f" ({100 * share:.3g} % of the logit)" if 0 <= share <= 1 else ""
            largest = max(layers, key=lambda layer: abs(layer["value"]))
            yield (
                f"They add {number(row['bias'])} to {self._name(role)}{part}, the most of it at "
                f"{_place(largest['layer'])} ({number(largest['value'])})."
            )

    def _adds_up(self) -> Iterator[str]:
        checks = [self.ask({"ask": "check", "on": role}) for role in ROLES]
        error, allowed = max(check["error"] for check in checks), checks[0]["tolerance"]
        yield (
            "Yes. The constants were also summed one by one, by another route than the pixels: together they give the "
            f"network's output up to {_power(error)} of the largest term, where {_power(allowed)} would count as "
            "round-off."
        )
        off = max(abs(self._sum(role) - self.rows[role]["value"]) for role in ROLES)
        yield f"The shares in the tables below sum to the three numbers above up to {_power(off)}."

    def _limits(self) -> Iterator[str]:
        yield (
            "The account is exact for this picture. Another picture, or enough change in this one, switches other "
            "units on and needs an account of its own."
        )
        bent = Counter(op.kind for op in self.frozen.operations if op.kind not in STRAIGHT)
        if bent:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(bent.items()))
            yield (
                f"Some operations of this network ({text(kinds)}) bend rather than switch: they are held at what they "
                "are at this picture, and the sums are exact with them held."
            )
        if left_out := self.ask({"ask": "node", "on": "target", "path": []})["left_out"]:
            yield (
                f"The trees are not split at {text(', '.join(left_out))}: no unit there is for both classes, so that "
                "below it there would be nothing to compare."
            )
        yield "It says how the network came to its output, not whether that is right, nor why the world is so."
        yield "Units have numbers, not names: what one stands for must be seen in many pictures."
        yield "Where in the picture a bias lies is a convention; its sum is exact."
        shape, seen = self.opened["rows"][0]["map"]["shape"], self.frozen.inputs[0].output.shape[-2:]
        step = math.ceil(max(seen) / max(shape))
        grain = f" An entry of a map is the sum over {step} × {step} pixels." if step > 1 else ""
        yield (
            f"The file holds {self.depth} level{'s' * (self.depth > 1)} of the trees.{grain} To see more: "
            f"<code>{text(self.command)}</code>. Other classes, cuts and searches: <code>relupath explore</code>."
        )
        yield from map(text, self.notes)

    # --- tables

    def _ninths(self) -> str:
        digits, columns = self.digits, {}
        for role in ROLES[:2]:
            whole, *sums = self.printed(role, digits)
            columns[role] = [*adding(self.thirds[role], sums[0], digits), *sums, whole]
        return self._columns("part of the picture", [*THIRDS, "all pixels", "biases", "logit"], columns, digits)

    def _layers(self) -> str:
        told = [self.ask({"ask": "bias", "on": role})["layers"] for role in ROLES[:2]]
        live = [pair for pair in zip(*told, strict=True) if any(one["value"] for one in pair)]
        digits, columns = places(one["value"] for pair in live for one in pair), {}
        for role, layers in zip(ROLES, zip(*live, strict=True), strict=False):
            whole = round(self.rows[role]["bias"], digits)
            columns[role] = [*adding([one["value"] for one in layers], whole, digits), whole]
        return self._columns("below layer", [*(one["layer"] for one, _ in live), "all biases"], columns, digits)

    def _columns(self, head: str, names: Sequence[str], columns: Mapping[str, Sequence[float]], digits: int) -> str:
        """Target, the other class, and the difference of the two as it is printed."""
        pairs = zip(names, *(columns[role] for role in ROLES[:2]), strict=True)
        rows = [(name, one, other, one - other) for name, one, other in pairs]
        return table((head, *map(self._plain, ROLES)), rows, 400, digits)

    def _tree(self, role: str) -> str:
        root = self.ask({"ask": "node", "on": role})["node"]
        below = [*self._below(role)]
        digits = places([root["value"], *(share["value"] for _, share in below)])
        whole = self.printed(role, digits)
        values: dict[tuple[str, ...], float] = {(): whole[0]}
        for above in dict.fromkeys(path[:-1] for path, _ in below):
            children = {path: share["value"] for path, share in below if path[:-1] == above}
            values |= zip(children, adding([*children.values()], values[above], digits), strict=True)
        rows: list[tuple[str, float, float, float]] = []
        rows.append((self._plain(role), *whole))
        for path, share in below:
            pixels, biases = adding((share["weight_part"], share["bias"]), values[path], digits)
            rows.append(("\N{EM SPACE}" * len(path) + _called(share), values[path], pixels, biases))
        return table(("share", "value", "pixels", "biases"), rows, 400, digits)

    def _below(self, role: str, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        """The shares of a tree below a node, each before its parts, with their keys from the root down."""
        for share in self.ask({"ask": "node", "on": role, "path": list(path)})["children"]:
            here = (*path, share["key"])
            yield here, share
            if share["kind"] in ("path", "rest") and len(here) < self.depth:
                yield from self._below(role, here)

    def _units(self, role: str) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
        """The units of the first level that has several, or of the last one."""
        units = [(path, share) for path, share in self._below(role) if share["kind"] == "path" and "rest" not in path]
        counts = Counter(len(path) for path, _ in units)
        level = min((depth for depth, count in counts.items() if count > 1), default=max(counts, default=0))
        return [(path, share) for path, share in units if len(path) == level]

    def _sum(self, role: str) -> float:
        """The shares that are not split further, together."""
        below = list(self._below(role))
        split = {path[:-1] for path, _ in below}
        return math.fsum(share["value"] for path, share in below if path not in split)


def _called(share: dict[str, Any]) -> str:
    if share["kind"] == "path":
        return f"{share['layer']}[{share['unit']}]"
    names = {"rest": f"the rest of {share['layer']}", "bias": "biases that enter here"}
    return names.get(share["kind"], "routes around the layer")


def _place(layer: str) -> str:
    return "the output layer" if layer == "output" else f"the layers up to {text(layer)}"


def _percent(score: dict[str, Any]) -> str:
    p = score["probability"]
    return "over 99.9 %" if p >= 0.9995 else "under 0.1 %" if p < 0.0005 else f"{100 * p:.1f} %"


def _power(size: float) -> str:
    """A small number as HTML, such as 3 × 10<sup>−7</sup>."""
    digits, _, exponent = f"{size:.0e}".partition("e")
    return f"{digits} × 10<sup>{number(int(exponent))}</sup>" if size else "0"


def _odds(gap: float) -> str:
    """exp(gap) to 1."""
    if gap > math.log(1e6):
        return "more than a million to 1"
    odds = float(f"{math.exp(gap):.2g}")
    return f"{odds:,.0f} to 1" if odds >= 10 else f"{odds:.1f} to 1"
