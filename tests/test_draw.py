"""Figures: the tree's numbers add up as they are printed, its maps are the nodes' own, and nothing lies on another."""

import dataclasses
import re
import runpy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torch import nn

import relupath
from nets import randomise
from relupath import Node, _draw_tree, _search, draw, runs
from relupath.errors import InputError, UsageError
from relupath.images import Picture
from relupath.models import Classifier


def to_tensor(image):
    return torch.tensor(np.asarray(image) / 127.5 - 1).permute(2, 0, 1)


class Long(nn.Module):
    """A residual connection and two branches side by side, under long names, with a value of its own size."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.the_first_activation_of_them_all = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.inside_the_residual_connection = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.expand_one_by_one_activation = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU())
        self.expand_three_by_three_activation = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU())
        self.last = nn.Linear(12, 5)

    def forward(self, x):
        h = self.the_first_activation_of_them_all(x)
        h = h + self.inside_the_residual_connection(h)
        h = torch.cat([self.expand_one_by_one_activation(h), self.expand_three_by_three_activation(h)], 1)
        return self.size * self.last(h.mean((2, 3)))


@cache
def explained(depth, width, partition="channels", size=1.0):
    pixels = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    picture = Picture(Image.fromarray(pixels), "noise")
    model = randomise(Long(size), 3)
    classifier = Classifier("a model of a very long name, longer than the room", model, to_tensor, tuple("abcde"))
    classifier = dataclasses.replace(classifier, dtype=torch.float64)
    return runs.explain(
        classifier, picture, plan=runs.Plan(partition=getattr(relupath, partition), tree=(depth, width))
    )


def drawn(fig):
    """The nodes that a figure shows, level by level: for each opened node what is printed of it and of its children."""
    texts = [t for t in fig.axes[0].texts if t.get_text()]
    sums = [t for t in texts if " = " in t.get_text() and "\n" not in t.get_text()]
    values = [t for t in texts if t.get_fontsize() == 9.5 and t.get_text() != "+"]
    return sums, values


def number(text):
    return float(text.replace(draw.MINUS, "-"))


@pytest.mark.parametrize(("depth", "width", "size"), [(1, 6, 1.0), (2, 2, 1e-7), (2, 4, 1e6), (4, 3, 1.0)])
def test_what_is_printed_adds_up_to_the_last_digit(depth, width, size):
    explanation = explained(depth, width, size=size)
    levels = _draw_tree._levels(explanation.tree)
    assert len(levels) == min(depth, 3), "the network has three levels"
    sums, values = drawn(draw.tree_figure(explanation))
    parents = [node for level in levels for node in level]
    assert len(sums) == len(parents)
    assert len(values) == sum(len(node.children) for node in parents)
    at = 0
    for parent, total in zip(parents, sums, strict=True):
        said, weights, sign, bias, _, power = re.fullmatch(
            r"(\S+) = (\S+) ([+−]) (\S+)(   \(in units of 10(\S+)\))?", total.get_text()
        ).groups()
        unit = 10.0 ** int((power or "⁰").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
        last = 10.0 ** -len(said.partition(".")[2])
        assert number(said) * unit == pytest.approx(parent.value, abs=0.51 * last * unit)
        assert number(weights) * unit == pytest.approx(parent.weight_part, abs=0.51 * last * unit)
        assert number(sign + bias) * unit == pytest.approx(parent.bias, abs=0.51 * last * unit)
        printed = [number(t.get_text()) for t in values[at : at + len(parent.children)]]
        at += len(parent.children)
        assert [p * unit for p in printed] == pytest.approx([c.value for c in parent.children], abs=0.51 * last * unit)
        assert sum(printed) == pytest.approx(number(said), abs=0.51 * last * (len(printed) + 1))
        largest = max(abs(n.value) for n in (parent, *parent.children))
        assert last * unit <= largest / 100, "three digits of the largest at the least"


def test_siblings_share_a_scale_that_is_printed_and_every_map_is_its_nodes():
    explanation = explained(2, 3)
    tree = explanation.tree
    fig = draw.tree_figure(explanation, bare=True)
    maps = [axes for axes in fig.axes if len(axes.images) == 2]
    nodes = [tree, *(c for level in _draw_tree._levels(tree) for node in level for c in node.children)]
    nodes = [node for node in nodes if node.kind != "bias"]
    for axes, node in zip(maps, nodes, strict=True):
        values = axes.images[1].get_array()
        assert np.allclose(values, node.contribution[0].sum(0).numpy(), rtol=1e-12, atol=0)
        assert values.sum() == pytest.approx(node.weight_part, rel=1e-9)
    assert {"path", "rest", "by-pass"} <= {node.kind for node in nodes}
    limits = {id(node): axes.images[1].get_clim() for axes, node in zip(maps, nodes, strict=True)}
    printed = [t.get_text() for t in fig.axes[0].texts if "colours end at" in t.get_text()]
    parents = [node for level in _draw_tree._levels(tree) for node in level]
    for parent, text in zip(parents, printed, strict=True):
        ends = {limits[id(child)] for child in parent.children if child.kind != "bias"}
        units = np.abs([c.contribution[0].sum(0).numpy() for c in parent.children if c.kind == "path"])
        end = np.percentile(units[units > 0], 99.5)
        assert ends == {(-end, end)}
        assert float(text.partition("±")[2]) == pytest.approx(end, rel=1e-2)
    assert "99.5th percentile" in fig.axes[1].get_title()


def test_units_are_opened_before_the_rest_and_large_ones_first_while_there_is_room():
    tree = explained(3, 2).tree
    for level, below in zip(_draw_tree._levels(tree), _draw_tree._levels(tree)[1:], strict=False):
        some = [child for node in level for child in node.children if child.children]
        ranks = sorted(some, key=lambda node: (node.kind != "path", -abs(node.value)))
        assert below[0] in some
        assert ranks[0] in below
        counted = sum(len(node.children) for node in below)
        assert counted <= _draw_tree.MOST or len(below) == 1
        left_out = [node for node in some if node not in below]
        assert all(counted + len(node.children) > _draw_tree.MOST for node in left_out)
        assert [node for node in some if node in below] == list(below), "from left to right"


def test_where_there_is_room_for_one_split_the_largest_unit_is_opened():
    top = explained(2, 6, "neurons").tree
    ((root,), (opened,)) = _draw_tree._levels(top)
    assert root is top
    units = [child for child in top.children if child.kind == "path"]
    assert opened is max(units, key=lambda child: abs(child.value))
    (rest,) = (child for child in top.children if child.kind == "rest")
    assert abs(rest.value) > abs(opened.value), "though the rest is larger"


@pytest.mark.parametrize(("depth", "width", "partition"), [
    (2, 4, "channels"), (3, 6, "neurons"), (4, 2, "locations"), (1, 20, "neurons"),
])  # fmt: skip
def test_no_text_lies_on_another_or_leaves_the_page(depth, width, partition):
    assert_texts_apart(draw.tree_figure(explained(depth, width, partition, 1e-3)))


def test_names_that_are_too_long_are_cut():
    """By hand: twelve units of two layers with names longer than their place."""
    explanation = explained(1, 2)
    x = explanation.tree.contribution[0]

    def node(number, **below):
        layer = f"a.very.long.name.of.blocks.within.blocks.{'outer' * 8}.{'inner' * 8}.{number % 2}.activation"
        path = relupath.Path.of([(layer, (1000, 2000, 3000 + number))] if number else [], target="output 12345")
        return Node("path", path, -0.1234, -0.01234, (x,), **below)

    tree = node(0, _children=tuple(map(node, range(1, 13))))
    fig = draw.tree_figure(dataclasses.replace(explanation, tree=tree))
    assert_texts_apart(fig)
    said = [t.get_text() for t in fig.axes[0].texts]
    assert sum(text.startswith("c1000,y2000") for text in said) == 12
    assert sum(text.startswith("0.activation") for text in said) == 6


def assert_texts_apart(fig):
    """Every text is on the page, legible, and clear of all others."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    assert fig.get_size_inches()[0] >= 12
    page = fig.bbox
    texts = [t for axes in fig.axes for t in (*axes.texts, axes.title) if t.get_text().strip()] + fig.texts
    boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in texts]
    assert len(boxes) > 20
    for said, box in boxes:
        assert box.x0 >= page.x0, said
        assert box.x1 <= page.x1, said
        assert box.y0 >= page.y0, said
        assert box.y1 <= page.y1, said
    for i, (said, box) in enumerate(boxes):
        for other, another in boxes[:i]:
            assert not box.shrunk(0.98, 0.7).overlaps(another.shrunk(0.98, 0.7)), (said, other)
    sizes = [t.get_fontsize() for t in texts]
    assert min(sizes) >= 7, "legible at a hundred dots an inch"


def test_a_tree_that_was_not_expanded_is_its_root_alone():
    explanation = explained(1, 2)
    model = nn.Sequential(nn.Conv2d(3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(722, 3))
    pixels = torch.tensor(explanation.shown).permute(2, 0, 1)[None]
    alone = relupath.decompose(relupath.freeze(randomise(model, 0), pixels))
    fig = draw.tree_figure(dataclasses.replace(explanation, tree=alone))
    assert not alone.is_expanded
    sums, values = drawn(fig)
    assert len(values) == 1
    assert number(values[0].get_text()) == pytest.approx(alone.value, abs=1e-3)
    assert not sums


def test_no_photo_is_drawn_in_a_bare_tree():
    explanation = explained(1, 2)
    with_photo, bare = (draw.tree_figure(explanation, bare=bare) for bare in (False, True))
    assert len(with_photo.axes) == len(bare.axes) + 1
    shown = [np.asarray(image.get_array()) for axes in bare.axes for image in axes.images]
    assert not any(np.array_equal(image, explanation.shown) for image in shown)
    under = [axes.images[0].get_array() for axes in bare.axes if len(axes.images) == 2]
    assert all((grey == grey.flat[0]).all() for grey in under)


def test_what_cannot_be_drawn_is_refused_in_words():
    explanation = explained(1, 2)
    with pytest.raises(UsageError, match="there is no tree to draw: ask for one with"):
        draw.tree_figure(dataclasses.replace(explanation, tree=None))
    read = Node.from_json(explanation.tree.to_json())
    with pytest.raises(UsageError, match="read from a file has no maps"):
        draw.tree_figure(dataclasses.replace(explanation, tree=read))


def test_a_figure_takes_the_place_of_an_older_one_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "tree.png"
    file.write_text("precious")
    fig = draw.tree_figure(explained(1, 2))

    def breaks(draft, **kind):
        draft.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fig, "savefig", breaks)
        with pytest.raises(InputError, match="No space left on device"):
            draw.save(fig, file)
    assert file.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [file]
    draw.save(fig, file)
    with Image.open(file) as image:
        assert image.size == tuple(round(150 * inches) for inches in fig.get_size_inches())
    with pytest.raises(UsageError, match="must end in"):
        draw.save(fig, tmp_path / "tree.gif")
    with pytest.raises(UsageError, match="is not there: make it first"):
        draw.save(fig, tmp_path / "none" / "tree.png")
    assert list(tmp_path.iterdir()) == [file]


def test_the_left_column_of_the_explanation_is_in_step_with_its_rows():
    explanation = explained(1, 2)
    for bare, some in ((False, slice(0, 3)), (True, slice(0, 3)), (False, slice(0, 1))):
        part = dataclasses.replace(explanation, rows=explanation.rows[some])
        fig = draw.figure(part, bare=bare)
        FigureCanvasAgg(fig).draw()
        left = [axes for axes in fig.axes if axes.get_position().x0 < 0.05 and axes.get_position().height > 0.1]
        maps = [axes for axes in fig.axes if len(axes.images) == 2]
        assert len(left) == min(3 - bare, len(part.rows))
        assert {round(axes.get_position().y0, 6) for axes in left} <= {round(a.get_position().y0, 6) for a in maps}
        said = "\n".join(t.get_text() for axes in left for t in axes.texts)
        assert ("BEST CLASSES" in said) == (len(part.rows) > 1)
        if len(part.rows) > 1:
            assert all(f"{100 * score.probability:.1f} %" in said for score in part.best)


# --- the pictures of the documentation ---

DOCS = Path(__file__).parents[1] / "docs"


def test_every_search_has_a_section_with_a_small_picture_that_the_script_draws():
    script = runpy.run_path(str(DOCS / "pictures.py"))
    page = (DOCS / "searches.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    told = {name: re.findall(r"\(images/search-(.*?)\.png\)", text) for name, text in sections if name in dir(relupath)}
    searches = {name for name in dir(relupath) if isinstance(getattr(relupath, name), type)}
    searches = {name for name in searches if issubclass(getattr(relupath, name), _search.Search)}
    assert set(told) == {*searches, "decompose"}
    assert all(len(pictures) == 1 for pictures in told.values())
    assert {picture for (picture,) in told.values()} == set(script["PLANS"])
    for name, (picture,) in told.items():
        plan = script["PLANS"][picture]
        assert name == ("decompose" if plan.tree else type(plan.search).__name__)
        assert (DOCS / "images" / f"search-{picture}.png").stat().st_size <= 150_000


def test_a_picture_of_the_documentation_keeps_its_colours(tmp_path):
    script = runpy.run_path(str(DOCS / "pictures.py"))
    fig = draw.tree_figure(explained(1, 2))
    script["picture"](fig, tmp_path / "few.png")
    fig.savefig(tmp_path / "all.png", dpi=100)
    few, every = (np.asarray(Image.open(tmp_path / f"{n}.png").convert("RGB")).astype(int) for n in ("few", "all"))
    assert few.shape == every.shape
    assert np.abs(few - every).mean() < 2
    red = every[..., 0] - every[..., 2]
    sides = np.sign(red) == np.sign(few[..., 0] - few[..., 2])
    assert sides[np.abs(red) > 40].mean() > 0.99, "what speaks for stays red, what speaks against blue"
