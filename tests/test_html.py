"""What a notebook shows of results: every public verb's result, well-formed, without a script, names escaped."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

import relupath
from relupath import _html, bridges, explorer, metrics, plans, reach, runs
from relupath import elsewhere as elsewhere_module
from relupath import evaluation as evaluation_module
from relupath._ablate import Ablation
from relupath._bias import BiasSources
from relupath._complete import Completeness
from relupath._mass import PathMass, Sample
from relupath._search import Found, Gap
from relupath.elsewhere import Elsewhere
from relupath.evaluation import Evaluation
from relupath.explanations import Explanation, LayerRow, Layers, Part, Row, Score
from relupath.metrics import Curve, Interval
from relupath.origins import Origin
from relupath.reach import FirstFlip

HOSTILE = "</td></table><script>alert(1)</script>\"'&\udcff"
VOID = {"br", "hr", "img", "meta", "link", "input"}


class Reader(HTMLParser):
    """Refuses tags that do not close in order, scripts and handlers; keeps rows of cells and all text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.words = ""

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "iframe", "object", "link", "img")
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def read(shown: str) -> Reader:
    shown.encode("utf-8")
    reader = Reader()
    reader.feed(shown)
    reader.close()
    assert not reader.open, f"not closed: {reader.open}"
    widths = [len(row) for row in reader.rows]
    assert "table" not in reader.tags or min(widths) >= 1
    return reader


def model() -> nn.Module:
    """A network one of whose layers has a hostile name."""
    torch.manual_seed(1)
    layers = {
        "a": nn.Conv2d(3, 4, 3), HOSTILE.replace(".", ""): nn.ReLU(), "b": nn.Conv2d(4, 5, 3), "c": nn.ReLU(),
        "d": nn.AdaptiveAvgPool2d(1), "e": nn.Flatten(), "f": nn.Linear(5, 4),
    }  # fmt: skip
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net.double().eval()


def results() -> dict[type, object]:
    """One result of every kind that public verbs give, with hostile names wherever names come from outside."""
    net, x = model(), torch.randn(2, 3, 8, 8).double()
    frozen = relupath.freeze(net, x)
    found = relupath.find_paths(frozen, relupath.logit(1), relupath.Beam(2), partition=relupath.channels)
    mass = relupath.path_mass(frozen)
    tree = relupath.decompose(frozen, partition=relupath.channels, width=2).expand(2)
    path = dataclasses.replace(found.paths[0], target=HOSTILE)
    score = Score(1, HOSTILE, 1.5, 0.75)
    part = Part(path, 0.5, 1.0, 0.75, 0.25, np.zeros((2, 2)))
    row = Row("target", HOSTILE, part, (part,), None, HOSTILE, Origin({HOSTILE: 1.0}, 0.0, np.zeros((2, 2))))
    maps, pixels = torch.randn(1, 3, 8, 8).double(), 64
    curve = metrics.deletion(net, x[:1], 1, metrics.ranks(maps))
    assert curve.scores.shape[1] <= pixels + 1
    many = [
        frozen, frozen.check(), relupath.linear_model(frozen), found, found.gap(), path, mass, mass.sample(9),
        relupath.bias_sources(frozen), relupath.ablate(frozen, relupath.Path(path.steps[-1:])), tree,
        reach.first_flip(frozen, torch.randn_like(x)), curve, metrics.interval(torch.arange(4.0)),
        Explanation(HOSTILE, HOSTILE, np.zeros((2, 2, 3)), (score,), score, score, (row,), 1e-9, tree=tree),
        Layers(HOSTILE, HOSTILE, score, 1.0, 0.5, (LayerRow(HOSTILE, (2, 3), 6, 0.5, 0.25),), {"affine": 2}),
        Elsewhere(HOSTILE, (HOSTILE,), (HOSTILE,), (HOSTILE,), np.ones((1, 1, 1)), np.ones((1, 1))),
        Evaluation(
            HOSTILE, (HOSTILE,) * 3, (HOSTILE,) * 3, (HOSTILE,), ("insertion",), np.arange(3.0).reshape(1, 1, 3),
            np.zeros((1, 1, 2)), (0,), (HOSTILE,),
        ),
    ]  # fmt: skip
    return {type(one): one for one in many}


RESULTS = results()
HOLDS_A_NAME = (
    relupath.Frozen, Found, relupath.Path, PathMass, Sample, BiasSources, relupath.Node, FirstFlip, Explanation, Layers,
    Elsewhere, Evaluation,
)  # fmt: skip


@pytest.mark.parametrize("kind", RESULTS, ids=lambda kind: kind.__name__)
def test_a_result_is_shown_well_formed_without_a_script(kind):
    reader = read(RESULTS[kind]._repr_html_())
    assert reader.tags[:2] == ["div", "style"]
    assert any(character.isdigit() for character in reader.words)


@pytest.mark.parametrize("kind", HOLDS_A_NAME, ids=lambda kind: kind.__name__)
def test_hostile_names_are_text(kind):
    assert "<script>alert(1)</script>\"'&" in read(RESULTS[kind]._repr_html_()).words


def returned(function: object) -> set[type]:
    """The dataclasses of ours that a function's return annotation names."""
    words = re.findall(r"\w+", str(function.__annotations__.get("return", "")))
    return {OURS[word] for word in words if word in OURS}


def ours() -> dict[str, type]:
    loaded = [module for name, module in sys.modules.items() if name.partition(".")[0] == "relupath"]
    classes = [v for module in loaded for v in vars(module).values() if inspect.isclass(v)]
    return {one.__name__: one for one in classes if dataclasses.is_dataclass(one) and one.__name__[0] != "_"}


OURS = ours()
INPUTS = {
    "Classifier", "Picture", "Scene", "Axes", "Blocks", "Labels", "Target", "Functional", "Layer", "Step", "Question",
    "QuantusExplainer", "Problem", "Source", "Score",
}  # fmt: skip
"""What is asked with, and parts of what is found."""


def test_every_result_of_a_public_verb_is_shown():
    modules = [metrics, reach, runs, elsewhere_module, evaluation_module, explorer, plans, bridges]
    modules += [relupath.creatures, relupath.images, relupath.models]
    public = [getattr(relupath, name) for name in relupath.__all__]
    public += [
        v for m in modules for k, v in vars(m).items() if k[0] != "_" and getattr(v, "__module__", "") == m.__name__
    ]
    kinds = {one for one in public if inspect.isclass(one)} | set(RESULTS)
    methods = [m for one in kinds for k, m in inspect.getmembers(one, inspect.isfunction) if k[0] != "_"]
    found = {kind for f in (*filter(inspect.isfunction, public), *methods) for kind in returned(f)}
    assert {Completeness, Ablation, Curve, Interval, Gap, Explanation} <= found, "the annotations are read"
    assert {kind.__name__ for kind in found - set(RESULTS)} <= INPUTS


def test_numbers_are_those_of_the_result():
    model, check = RESULTS[relupath.PathModel], RESULTS[Completeness]
    rows = read(model._repr_html_()).rows[1:]
    want = [
        [model.labels[b], *(_html.number(float(v[b])) for v in (model.value, model.weight_part, model.bias))]
        for b in (0, 1)
    ]
    assert [row[1:] for row in rows] == want
    assert read(check._repr_html_()).rows[1][1:4] == [
        _html.number(float(v[0])) for v in (check.value, check.weight_part, check.bias)
    ]


def test_a_tree_is_nested_and_only_its_first_level_is_open():
    tree = RESULTS[relupath.Node]
    shown = tree._repr_html_()
    reader = read(shown)
    assert reader.tags.count("details") == 1 + len(tree.children) + sum(len(c.children) for c in tree.children)
    assert shown.count("<details open>") == 1
    assert str(tree).splitlines()[0].split("  ")[0] in reader.words


def test_a_tree_is_not_computed_by_looking():
    tree = relupath.decompose(RESULTS[relupath.Frozen])
    tree._repr_html_()
    assert not tree.is_expanded


def test_numbers():
    said = [_html.number(v) for v in (-1.5, 12345.678, -0.0, float("nan"), float("-inf"), float("inf"), -3, 10_000)]
    assert said == ["−1.5", "1.235e+04", "0", "not a number", "−∞", "∞", "−3", "10000"]


def test_long_tables_are_cut_and_say_so():
    shown = read(_html.table(("n", "word"), [(i, "a") for i in range(50)]))
    assert len(shown.rows) == 1 + 20 + 1
    assert shown.rows[-1] == ["and 30 more"]
