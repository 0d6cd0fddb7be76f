"""One decision as one file: a summary for people, the page with all answers that it needs, the numbers as tables.

The file asks for nothing: page, style and answers stand in it, and its policy forbids the rest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import PurePath
from typing import Any, get_args

from . import _summary, plans
from ._asked import On, Question
from ._html import text
from ._targets import logit
from .errors import UsageError
from .explorer import SIDE, Explorer
from .images import Picture
from .models import Classifier
from .runs import Progress, layers_asked

FORMAT = "relupath.report/1"
SIZE = 5_000_000
"""About how many bytes a file has at most: maps are as fine as fits, but not coarser than ``COARSEST``."""
COARSEST = 28
"""The longest side of a map, at least."""
BYTES = 1.2
"""What one entry of a map takes; maps hardly compress."""
MAPPED = ("path", "rest")
"""The kinds of shares that the page shows for target, other class and contrast."""
FIXED: dict[str, tuple[str, ...]] = {
    "hello": (),
    "open": ("picture", "target", "against"),
    "bias": ("picture", "target", "against"),
    "check": ("picture", "target", "against"),
}
"""What the page fills into these questions; into others all that is fixed."""


@dataclass(frozen=True)
class Extent:
    """How much of the trees a report holds.

    Attributes:
        depth: how many levels of shares.
        width: how many units of a level have a share of their own.
        partition: what counts as one unit, as on the command line.
        layers: as on the command line; None means all where both classes can be compared, see ``layers_asked``.
    """

    depth: int = 2
    width: int = 6
    partition: str = "channels"
    layers: str | None = None


@dataclass(frozen=True)
class Again:
    """What gives the same again, for people.

    Attributes:
        command: shows one level more than the file holds.
        model: the Python expression of the classifier; None means by its name.
        picture: the Python expression of the picture; None means by its name.
    """

    command: str = "relupath explore"
    model: str | None = None
    picture: str | None = None


@dataclass(frozen=True)
class Report:
    """What a report holds.

    Attributes:
        state: what is fixed in every question.
        answers: by ``Question.key()``.
        command: shows one level more than the file holds.
        summary: for people, as HTML.
        tables: the numbers, as HTML.
    """

    state: dict[str, Any]
    answers: dict[str, dict[str, Any]]
    command: str
    summary: str
    tables: str

    def to_dict(self) -> dict[str, Any]:
        """State, answers and command, as plain lists and dictionaries."""
        return {"format": FORMAT, "state": self.state, "answers": self.answers, "command": self.command}

    def to_html(self) -> str:
        """The file."""
        module, looks = _web("relupath.js"), _web("relupath.css") + _web("report.css")
        name = next(answer["target"]["name"] for answer in self.answers.values() if answer["ask"] == "open")
        policy = f"default-src 'none'; script-src {_hash(module)}; style-src 'unsafe-inline'; img-src data: blob:"
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="content-security-policy" content="{policy}; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Why {text(name)}?</title>
<style>{looks}</style>
</head>
<body>
{self.summary}
<relupath-view host="file"></relupath-view>
<noscript><p class="paper">The maps need JavaScript; the numbers below do not.</p></noscript>
{self.tables}
<script type="application/json" id="relupath-answers">{_embedded(self.to_dict())}</script>
<script type="module">{module}</script>
</body>
</html>
"""


def report(
    classifier: Classifier,
    picture: Picture,
    classes: tuple[str | int | None, str | int | None] = (None, None),
    extent: Extent | None = None,
    again: Again | None = None,
    progress: Progress = lambda stage: None,
) -> Report:
    """Gather what the page shows of a picture: the trees of target, other class and contrast, with all maps.

    The numbers are those that ``Explorer.answer`` gives. Of where the picture lies only the file's name is told.

    Args:
        classifier: the model.
        picture: the picture.
        classes: target and the class to compare with, by index or name; None means the predicted one, and the best
            other one.
        extent: how much of the trees.
        again: what gives the same again.
        progress: called before each stage with its name.

    Raises:
        UsageError: depth or width is out of range.
        RelupathError: any of the library's errors, each in one sentence.
    """
    extent, again = extent or Extent(), again or Again()
    if extent.depth < 1:
        raise UsageError(f"a report holds at least one level of the trees; got depth {extent.depth}")
    picture = replace(picture, name=PurePath(picture.name).name)
    progress("recording the forward pass")
    explorer = Explorer(classifier, side=1, python=again.model)
    key = explorer.add(picture, again.picture)
    opened = explorer.answer({"ask": "open", "picture": key, "target": classes[0], "against": classes[1]})
    chosen = {role: opened[role]["index"] for role in ("target", "against")}
    units = {"partition": extent.partition, "layers": extent.layers, "width": extent.width}
    held, recording = explorer.shelf.take(key)
    targets = [logit(index) for index in chosen.values()]
    layers = layers_asked(recording.frozen, extent.layers, plans.partition(extent.partition), targets)
    asked = _Asked(explorer, {"picture": key, **chosen, **units}, len(recording.frozen.levels(layers)), {})
    questions = list(asked.questions(extent.depth, progress))
    picture_bytes = len(json.dumps(opened["picture"]))
    explorer.side = _side(held.x.shape[-2:], _maps(asked.answers, questions), 2 * picture_bytes)
    asked.answers.clear()
    for number, question in enumerate(questions, 1):
        progress(f"asking: {number} of {len(questions)}")
        asked.ask(question)
    told = _summary.Told(recording.frozen, asked.ask, extent.depth, classifier.notes + picture.notes, again.command)
    return Report(asked.state, asked.answers, again.command, told.summary(), told.tables())


@dataclass(frozen=True)
class _Asked:
    """Questions as the page asks them, and their answers.

    Attributes:
        explorer: answers.
        state: what is fixed in every question.
        levels: how deep a tree can be.
        answers: by key.
    """

    explorer: Explorer
    state: dict[str, Any]
    levels: int
    answers: dict[str, dict[str, Any]]

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer, which is kept."""
        full = {name: self.state[name] for name in FIXED.get(question["ask"], tuple(self.state))} | question
        key = Question.of(full).key()
        if key not in self.answers:
            self.answers[key] = self.explorer.answer(full)
        return self.answers[key]

    def questions(self, depth: int, progress: Progress) -> Iterator[dict[str, Any]]:
        """All that is asked: the trees are grown on the way."""
        yield {"ask": "hello"}
        yield {"ask": "open"}
        for on in get_args(On):
            yield from ({"ask": ask, "on": on} for ask in ("bias", "check"))
            paths: list[list[str]] = [[]]
            for level in range(min(depth, self.levels) + (depth >= self.levels)):  # a leaf says that it has no parts
                below = []
                for path in paths:
                    progress(f"growing the tree of the {on}, level {level + 1}")
                    question = {"ask": "node", "on": on, "path": path}
                    yield question
                    children = self.ask(question)["children"]
                    below += [[*path, child["key"]] for child in children if child["kind"] in MAPPED]
                yield from ({"ask": "compare", "on": on, "path": path} for path in below)
                paths = below


def _maps(answers: dict[str, dict[str, Any]], questions: list[dict[str, Any]]) -> int:
    """How many maps the answers to all questions hold, those to ``node`` being known."""
    roles = len(get_args(On))
    counts = {"open": roles, "compare": roles, "bias": 1}
    shares = [share for a in answers.values() for share in (a["node"], *a["children"])]
    return sum(counts.get(q["ask"], 0) for q in questions) + sum(share["map"] is not None for share in shares)


def _side(shape: tuple[int, ...], maps: int, more: int) -> int:
    """The longest side of a map so that the file is not too large."""
    longest = max(shape)
    for step in range(math.ceil(longest / SIDE), longest):
        side = math.ceil(longest / step)
        size = math.prod(math.ceil(edge / step) for edge in shape)
        if maps * size * BYTES + more + 100_000 <= SIZE or longest <= COARSEST * (step + 1):
            return side
    return longest


def _web(name: str) -> str:
    """A file of the page."""
    return files(__package__).joinpath("web", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """A script by its hash, as a policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end the element in which it stands: plain ASCII without <, so also U+2028 is escaped."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
