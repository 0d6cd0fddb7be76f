"""What a page is told is what the library says, to the digit; what is held is bounded; threads do not mix."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import relupath
from asserts import nodes
from nets import Lambda, build, example, inputs, randomise
from relupath import (
    Greedy,
    Path,
    ablate,
    bias_sources,
    channels,
    contrast,
    decompose,
    explorer,
    find_paths,
    images,
    linear_model,
    locations,
    logit,
    plans,
    server,
)
from relupath._asked import _EXPECTED, FORMAT, MOST, WIDEST, Question
from relupath._shelf import TREES
from relupath.creatures import draw
from relupath.errors import RelupathError
from relupath.explorer import Explorer, Names
from relupath.images import Picture
from relupath.models import Classifier, load
from relupath.runs import layers_asked, shares

CLASSES = ("ant", "bee", "cat", "dog", "elk")
SIZE = 17


def tiny():
    """A classifier of small pictures with a few units a layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 5),
    )  # fmt: skip

    def preprocess(image):
        small = np.asarray(image.resize((SIZE, SIZE)), dtype=np.float64)
        return torch.tensor(small / 127.5 - 1).permute(2, 0, 1)

    return Classifier("tiny", randomise(model, 0), preprocess, CLASSES, dtype=torch.float64)


def photo(seed, name=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Picture(Image.fromarray(pixels), name or f"photo {seed}")


def unpacked(said):
    """The numbers of a map, as a page computes them."""
    whole = np.frombuffer(zlib.decompress(base64.b64decode(said["data"])), dtype=np.int8).reshape(said["shape"])
    return said["scale"] * np.sign(whole) * (whole / 127.0) ** 2


def assert_map(said, contribution, side=256):
    """The map is the contribution summed over channels and neighbours, up to its steps."""
    values = contribution.sum(0).numpy()
    step = -(-max(values.shape) // side)
    padded = np.pad(values, [(0, -size % step) for size in values.shape])
    coarse = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step).sum((1, 3))
    got = unpacked(said)
    assert (got.shape, said["step"]) == (coarse.shape, step)
    half = 0.5 / 127
    assert np.all(
        abs(got - coarse) <= said["scale"] * (half**2 + 2 * half * np.sqrt(abs(coarse) / said["scale"] + 1e-12))
    )
    assert said["scale"] == np.abs(got).max() == pytest.approx(np.abs(coarse).max(), rel=1e-9)


@pytest.fixture
def asked():
    """An explorer, a picture's name in it, and the recorded network."""
    one = Explorer(tiny())
    key = one.add(photo(0))
    return one, key, one.shelf.take(key)[1].frozen


def roles(frozen, target=None):
    order = frozen.output[0].argsort(descending=True).tolist()
    t = order[0] if target is None else target
    p = next(c for c in order if c != t)
    return {"target": logit(t), "against": logit(p), "contrast": contrast(t, p)}


def forked():
    """As ``tiny``, but its last layer has a channel for every class, as SqueezeNet has."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 12, 3, stride=2), nn.ReLU(), nn.Conv2d(12, 5, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return replace(tiny(), model=randomise(model, 0))


# --- answers equal the library's ---


@pytest.mark.parametrize(
    ("on", "partition"),
    [("target", "channels"), ("against", "channels"), ("contrast", "locations"), ("target", "neurons")],
)
def test_a_node_is_the_trees(asked, on, partition):
    one, key, frozen = asked
    tree = decompose(frozen, roles(frozen)[on], partition=getattr(relupath, partition), width=2)
    todo = [((), tree)]
    for path, node in todo:
        said = one.answer(
            {"ask": "node", "picture": key, "on": on, "partition": partition, "width": 2, "path": [*path]}
        )
        assert len(said["children"]) == len(node.children) == len({child["key"] for child in said["children"]})
        for got, expected in zip([said["node"], *said["children"]], [node, *node.children], strict=True):
            numbers = expected.value, expected.weight_part, expected.bias
            assert (got["kind"], got["value"], got["weight_part"], got["bias"]) == (expected.kind, *numbers)
            assert got["path"] == (expected.path.to_dict() if expected.kind in ("path", "rest") else None)
            if expected.kind == "bias":
                assert got["map"] is None
            else:
                assert_map(got["map"], expected.contribution[0])
        for number in ("value", "weight_part", "bias"):
            total = sum(child[number] for child in said["children"])
            assert not said["children"] or total == pytest.approx(said["node"][number], rel=1e-9, abs=1e-9)
        if len(path) < 2:
            below = zip(said["children"], node.children, strict=True)
            todo += [((*path, child["key"]), inner) for child, inner in below]
    assert len(todo) >= 7


@pytest.mark.parametrize("name", ["resnet", "squeeze", "dense"])
def test_a_recorded_network_of_any_form_is_told_with_what_goes_around(name):
    frozen = relupath.freeze(build(name), inputs(name, batch=1))
    one = Explorer(Names())
    key = one.add_recorded(frozen)
    tree = decompose(frozen, roles(frozen)["target"], partition=channels, width=2).expand(2)
    kinds, todo = set(), [((), tree)]
    for path, node in todo:
        said = one.answer({"ask": "node", "picture": key, "layers": "all", "width": 2, "path": [*path]})
        assert [child["value"] for child in said["children"]] == [child.value for child in node.children]
        kinds |= {child["kind"] for child in said["children"]}
        if len(path) < 2:
            todo += [((*path, c["key"]), inner) for c, inner in zip(said["children"], node.children, strict=True)]
    assert kinds == {node.kind for node in nodes(tree)}
    assert kinds >= {"path", "rest", "bias"}


def test_the_picture_opens_with_classes_rows_and_layers(asked):
    one, key, frozen = asked
    said = one.answer({"ask": "open", "picture": key})
    logits = frozen.output[0]
    order = logits.argsort(descending=True).tolist()
    assert [score["index"] for score in said["best"]] == order
    assert [score["logit"] for score in said["best"]] == [float(logits[c]) for c in order]
    assert [score["probability"] for score in said["best"]] == [float(logits.softmax(0)[c]) for c in order]
    assert (said["target"], said["against"]) == tuple(said["best"][:2])
    assert said["layers"] == {layer.name: list(layer.shape) for layer in frozen.layers}
    assert [name for level in said["levels"] for name in level] == [layer.name for layer in reversed(frozen.layers)]
    seen = Image.open(io.BytesIO(base64.b64decode(said["picture"]["image"]["data"])))
    assert np.abs(np.asarray(seen, dtype=int) - np.asarray(photo(0).image, dtype=int)).max() <= 1
    assert_rows(said["rows"], frozen, Path())


def assert_rows(rows, frozen, path, target=None, whole=True):
    """The rows are linear models; to round-off where one comes from the tree, where the rest is a difference."""
    assert [row["role"] for row in rows] == ["target", "against", "contrast"]
    for row, functional in zip(rows, roles(frozen, target).values(), strict=True):
        model = linear_model(frozen, functional, path)
        numbers = [float(getattr(model, name)[0]) for name in ("value", "weight_part", "bias")]
        exactly = {"rel": 0, "abs": 0} if whole and row["role"] != "contrast" else {"rel": 1e-9, "abs": 1e-12}
        got = [row[name] for name in ("value", "weight_part", "bias")]
        assert got == pytest.approx(numbers, **exactly)
        assert_map(row["map"], (model.weight * frozen.inputs[0].output)[0])


@pytest.mark.parametrize("target", [None, 3, "cat", "BEE", "0"])
def test_rows_compare_the_classes_on_a_path(asked, target):
    one, key, frozen = asked
    index = target if target is None else {"3": 3, "cat": 2, "BEE": 1, "0": 0}[str(target)]
    question = {"picture": key, "target": target, "width": 2}
    first = one.answer({**question, "ask": "node"})["children"][0]
    said = one.answer({**question, "ask": "compare", "path": [first["key"]]})
    assert_rows(said["rows"], frozen, Path.from_dict(first["path"]), index)


@pytest.mark.parametrize("on", ["target", "against", "contrast"])
@pytest.mark.parametrize("which", ["path", "rest"])
def test_rows_compare_the_classes_on_a_share_of_any_of_them(asked, on, which):
    one, key, frozen = asked
    question = {"picture": key, "on": on, "width": 2}
    first = next(c for c in one.answer({**question, "ask": "node"})["children"] if c["kind"] == which)
    said = one.answer({**question, "ask": "compare", "path": [first["key"]]})
    assert_rows(said["rows"], frozen, Path.from_dict(first["path"]), whole=False)
    (own,) = [row for row in said["rows"] if row["role"] == on]
    assert own == {"role": on, **{name: first[name] for name in ("value", "weight_part", "bias", "map")}}


@pytest.mark.parametrize("which", [0, "rest"])
def test_a_cut_is_an_ablation_with_all_that_the_network_says_then(asked, which):
    one, key, frozen = asked
    question = {"picture": key, "width": 2, "on": "contrast"}
    children = one.answer({**question, "ask": "node"})["children"]
    (child,) = [c for c in children if c["key"] == which] or children[:1]
    said = one.answer({**question, "ask": "cut", "path": [child["key"]]})
    done = ablate(frozen, Path.from_dict(child["path"]), roles(frozen)["contrast"])
    assert (said["value"], said["ablated"]) == (float(done.value[0]), float(done.ablated[0]))
    assert said["without_path"] == float(done.without_path[0])
    assert said["ablated"] != said["value"]
    assert said["predicted"] == int(done.output[0].argmax())
    for name, logits in (("before", frozen.output[0]), ("after", done.output[0])):
        assert {score["index"] for score in said[name]} == set(range(5))
        for score in said[name]:
            c = score["index"]
            assert score["name"] == CLASSES[c]
            assert (score["logit"], score["probability"]) == (float(logits[c]), float(logits.softmax(0)[c]))


@pytest.mark.parametrize("search", plans.SEARCHES)
def test_paths_are_those_of_the_search(asked, search):
    one, key, frozen = asked
    numbers = {number: {"share": 0.4, "width": 5, "classes": 3, "k": 3, "budget": 4}[number]
               for number in plans.SEARCHES[search][1]}  # fmt: skip
    question = {"picture": key, "search": search, "numbers": numbers, "on": "contrast"}
    said = one.answer({**question, "ask": "paths"})
    found = find_paths(frozen, roles(frozen)["contrast"], plans.search(search, numbers), partition=channels)
    paths = shares(found)[0]
    assert [Path.from_dict(path["path"]) for path in said["paths"]] == paths
    assert len({path["key"] for path in said["paths"]}) == len(paths) > 0
    assert said["held"] == float(found.held[0])
    assert said["several"] == (max(map(len, found.ranked)) > 1)
    assert said["stopped"] == found.stopped[0]
    for number, (got, path) in enumerate(zip(said["paths"], paths, strict=True)):
        model = linear_model(frozen, roles(frozen)["contrast"], path)
        assert (got["value"], got["bias"]) == (float(model.value[0]), float(model.bias[0]))
        assert_map(got["map"], (model.weight * frozen.inputs[0].output)[0])
        node = one.answer({**question, "ask": "node", "root": f"found:{number}"})["node"]
        assert Path.from_dict(node["path"]).steps == path.steps
        assert node["value"] == pytest.approx(got["value"], rel=1e-9)


@pytest.mark.parametrize("root", ["1:c2", "1[c2]", "1:2", "4:c3,y1,x0", "8:7", "8[7]"])
def test_a_tree_begins_at_any_unit(asked, root):
    one, key, frozen = asked
    units = {"1": (2, None, None), "4": (3, 1, 0), "8": (7,)}
    path = Path.of([(root[0], units[root[0]])])
    tree = decompose(frozen, roles(frozen)["target"], partition=locations, path=path, width=6)
    said = one.answer({"ask": "node", "picture": key, "root": root, "partition": "locations"})
    assert said["node"]["value"] == tree.value
    assert [child["value"] for child in said["children"]] == [child.value for child in tree.children]


def test_the_bias_is_told_by_layer_and_by_place(asked):
    one, key, frozen = asked
    said = one.answer({"ask": "bias", "picture": key, "on": "against"})
    sources = bias_sources(frozen, roles(frozen)["against"])
    assert {entry["layer"]: entry["value"] for entry in said["layers"]} == {
        name: float(part[0]) for name, part in sources.by_layer().items()
    }
    assert said["unplaced"] == float(sources.unplaced[0])
    assert_map(said["map"], sources.by_location()[0][None])


def test_completeness_is_checked(asked):
    one, key, frozen = asked
    said = one.answer({"ask": "check", "picture": key})
    account = frozen.check(roles(frozen)["target"])
    assert said == {"format": "relupath.view/1", "ask": "check", "error": float(account.error[0]),
                    "tolerance": account.tolerance}  # fmt: skip


def test_large_inputs_are_sent_as_smaller_maps_that_sum_to_the_same():
    small = Explorer(tiny(), side=5)
    key = small.add(photo(0))
    row = small.answer({"ask": "open", "picture": key})["rows"][0]
    frozen = small.shelf.take(key)[1].frozen
    model = linear_model(frozen, roles(frozen)["target"])
    assert row["map"]["shape"] == [5, 5]
    assert_map(row["map"], (model.weight * frozen.inputs[0].output)[0], side=5)


@pytest.mark.parametrize("keys", [[], [0], [0, 0], ["rest"], [0, "rest"]])
@pytest.mark.parametrize("on", ["target", "contrast"])
def test_the_python_lines_of_an_answer_give_its_numbers(keys, on, creatures_asked):
    one, key = creatures_asked
    question, path = {"ask": "node", "picture": key, "on": on, "width": 3}, []
    for number in keys:
        children = one.answer({**question, "path": path})["children"]
        path.append(number if number == "rest" else children[number]["key"])
    said = one.answer({**question, "path": path})
    names = {}
    exec(said["python"], names)
    assert float(names["model"].value[0]) == pytest.approx(said["node"]["value"], rel=1e-5)
    assert float(names["model"].bias[0]) == pytest.approx(said["node"]["bias"], rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def creatures_asked():
    one = Explorer(load("creatures"))
    return one, one.add(images.scene(1_000_007), "relupath.images.scene(1000007)")


def test_the_python_lines_read_the_photo_and_carry_on_as_the_page_did(tmp_path, asked):
    file = tmp_path / 'it\'s "here".png'
    Image.fromarray(draw(3).image).save(file)
    one = Explorer(load("creatures"))
    said = one.answer({"ask": "node", "picture": one.add(relupath.images.read(file))})
    names = {}
    exec(said["python"], names)
    assert float(names["model"].value[0]) == pytest.approx(said["node"]["value"], rel=1e-5)
    carried = Explorer(Classifier("creatures", load("creatures").model, load("creatures").preprocess, carry="half"))
    said = carried.answer({"ask": "node", "picture": carried.add(photo(1, "a\nb'"), "photo")})
    assert ", carry='half')" in said["python"]
    exec(said["python"], {"photo": photo(1)})


def test_answers_are_plain_json(asked):
    one, key, _ = asked
    for ask in ("hello", "open", "node", "compare", "bias", "check", "paths"):
        said = one.answer({"ask": ask, "picture": key})
        assert json.loads(json.dumps(said, allow_nan=False)) == said
        assert (said["format"], said["ask"]) == ("relupath.view/1", ask)


def test_hello_says_what_can_be_asked(asked):
    one, key, _ = asked
    said = one.answer({"ask": "hello"})
    assert said["pictures"] == [{"id": key, "name": "photo 0"}]
    assert (said["model"], said["classes"]) == ("tiny", list(CLASSES))
    assert (said["adds"], said["draws"]) == (True, False)
    assert said["searches"] == {name: list(numbers) for name, (_, numbers) in plans.SEARCHES.items()}
    assert set(plans.NUMBERS) == set(MOST)
    frozen = relupath.freeze(build("mlp"), inputs("mlp", batch=1))
    bare = Explorer(Names())
    bare.add_recorded(frozen, "a row")
    assert bare.answer({"ask": "hello"})["adds"] is False
    assert bare.answer({"ask": "open", "picture": bare.shelf.names()[0][0]})["picture"]["image"] is None


def test_a_scene_is_drawn(creatures_asked):
    one, key = creatures_asked
    assert one.answer({"ask": "scene", "seed": 1_000_007})["picture"] == key
    assert one.answer({"ask": "scene", "seed": 5})["picture"] != key


def test_units_along_any_axis_where_features_stand_last():
    """As in the blocks of ConvNeXt: rows, columns, features."""
    model = nn.Sequential(Lambda(lambda m, x: x.permute(0, 2, 3, 1)), nn.Linear(3, 5), nn.ReLU(), nn.Flatten())
    model = randomise(nn.Sequential(model, nn.Linear(5 * 6 * 4, 4), nn.ReLU(), nn.Linear(4, 3)), 0)
    frozen = relupath.freeze(model, example((3, 6, 4), 0, 1))
    one = Explorer(Names())
    question = {"ask": "node", "picture": one.add_recorded(frozen), "partition": "axis:3", "layers": "0.2"}
    said = one.answer(question)["children"]
    whole = one.answer(question | {"layers": "2"})["children"]
    assert [share["kind"] for share in whole if share["kind"] == "path"] == ["path"]  # it has no third axis
    units = {share["unit"]: share["value"] for share in said if share["kind"] == "path"}
    assert units == {
        f"x{i}": pytest.approx(linear_model(frozen, None, Path.of([("0.2", (None, None, i))])).value.item())
        for i in range(5)
    }
    assert sum(share["value"] for share in said) == pytest.approx(float(frozen.output[0].max()))


# --- what is held ---


def test_the_picture_not_asked_for_the_longest_goes_first():
    one = Explorer(tiny(), pictures=2)
    a, b = one.add(photo(0)), one.add(photo(1))
    one.answer({"ask": "open", "picture": a})
    c = one.add(photo(2))
    assert [key for key, _ in one.shelf.names()] == [a, c]
    with pytest.raises(LookupError, match="open it again"):
        one.answer({"ask": "open", "picture": b})
    assert one.add(photo(1)) == b


def test_pictures_stand_in_the_order_in_which_they_were_opened():
    one = Explorer(tiny(), pictures=3)
    a, b, c = (one.add(photo(number)) for number in range(3))
    for key in (b, a):
        one.answer({"ask": "open", "picture": key})
    assert one.add(photo(1)) == b
    assert [held["id"] for held in one.answer({"ask": "hello"})["pictures"]] == [a, b, c]
    d = one.add(photo(3))
    assert [key for key, _ in one.shelf.names()] == [a, b, d]


def test_few_pictures_stay_recorded_and_others_are_recorded_anew():
    one = Explorer(tiny(), recordings=2)
    keys = [one.add(photo(number)) for number in range(3)]
    first = [one.answer({"ask": "node", "picture": key}) for key in keys]
    assert len(one.shelf._recorded) == 2
    assert [one.answer({"ask": "node", "picture": key}) for key in keys] == first


def test_large_recordings_are_fewer():
    one = Explorer(tiny())
    keys = [one.add(photo(number)) for number in range(4)]
    _, recording = one.shelf.take(keys[0])
    one.shelf.max_bytes = 2 * sum(layer.output.nbytes for layer in recording.frozen.layers)
    for key in keys:
        one.shelf.take(key)
    assert [*one.shelf._recorded] == keys[2:]
    one.shelf.max_bytes = 1
    one.shelf.take(keys[0])
    assert [*one.shelf._recorded] == keys[:1]


def test_the_trees_fit_into_the_bytes_that_are_allowed(unchecked):
    allowed = 2**19
    one, free = Explorer(tiny(), max_bytes=allowed), Explorer(tiny())
    keys = [one.add(photo(number)) for number in range(2)]
    assert keys == [free.add(photo(number)) for number in range(2)]
    sizes = []
    for key in keys:
        for on in ("target", "contrast"):
            question, path = {"ask": "node", "picture": key, "on": on, "partition": "neurons"}, []
            for _ in range(3):
                said = one.answer({**question, "path": path})
                assert said == free.answer({**question, "path": path})
                path.append(said["children"][0]["key"])
                sizes.append(held(one))
        one.answer({"ask": "paths", "picture": key, "search": "beam"})
        sizes.append(held(one))
    assert allowed / 4 < max(sizes) <= allowed < held(free)


def held(one):
    recorded = one.shelf._recorded.values()
    return sum(tree.nbytes(recording.frozen) for recording in recorded for tree in recording.trees.values())


def test_questions_that_fail_leave_nothing_behind(asked):
    one, key, _ = asked
    for number in range(TREES + 9):
        with pytest.raises(RelupathError):
            one.answer({"ask": "node", "picture": key, "layers": f"no {number}"})
    ((_, recording),) = one.shelf._recorded.items()
    assert len(recording.trees) <= TREES
    assert held(one) == 0


def test_an_input_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(explorer, "NUMBERS", 3 * SIZE * SIZE - 1)
    with pytest.raises(RelupathError, match="give a smaller picture"):
        Explorer(tiny()).add(photo(0))


# --- threads ---


def test_threads_get_the_answers_that_one_gets(unchecked):
    serial, threaded = Explorer(tiny()), Explorer(tiny(), recordings=1)
    keys = [serial.add(photo(number)) for number in range(2)]
    assert keys == [threaded.add(photo(number)) for number in range(2)]
    more = [{"ask": "open"}, {"ask": "bias"}, {"ask": "check"}, {"ask": "paths", "search": "exact"}, {"ask": "compare"}]
    more += [
        {"ask": "node", "on": on, "partition": p} for on in ("target", "contrast") for p in ("channels", "neurons")
    ]
    questions = [{**question, "picture": key} for question in more for key in keys] * 2
    expected = [serial.answer(question) for question in questions]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(threaded.answer, questions)) == expected


def test_a_picture_is_recorded_once_though_several_threads_ask_for_it(monkeypatch):
    one, times, count = Explorer(tiny()), threading.Barrier(4), []
    record = one.shelf.record
    one.shelf.record = lambda x: (count.append(1), record(x))[1]
    key = one.add(photo(0))

    def ask(on):
        times.wait(5)
        return one.answer({"ask": "node", "picture": key, "on": on})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, ["target", "against", "contrast", "target"]))
    assert len(count) == 1


def test_a_slow_search_holds_up_neither_another_picture_nor_another_tree(asked, monkeypatch):
    one, key, _ = asked
    begun, go_on = threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        begun.set()
        assert go_on.wait(20)
        return find_paths(*args, **kwargs)

    monkeypatch.setattr(explorer, "find_paths", slow)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one.answer, {"ask": "paths", "picture": key})
        assert begun.wait(20)
        with ThreadPoolExecutor(1) as other:
            for question in ({"ask": "node"}, {"ask": "open"}, {"ask": "check"}, {"ask": "cut", "root": "4:c1"}):
                assert other.submit(one.answer, {**question, "picture": key}).result(20)
            assert other.submit(one.answer, {"ask": "open", "picture": one.add(photo(1))}).result(20)
        assert not waiting.done()
        go_on.set()
        assert waiting.result(20)["paths"]


# --- questions that make no sense ---

WRONG = [
    None, [], "node", 3, {}, {"ask": 3}, {"ask": None}, {"ask": "nothing"}, {"ask": "__init__"}, {"asked": "node"},
    {"ask": "a" * 3000}, {"ask": "node", "more": 1}, {"ask": "node", "\ud800": 1}, {"ask": "open", "picture": "0" * 12},
    {"ask": "open", "picture": 3}, {"ask": "scene"}, {"ask": "scene", "seed": -1}, {"ask": "scene", "seed": 2**40},
    *({"ask": "open", "target": target} for target in (
        5, -1, "5", "-1", "--5", "9" * 2000, "fox", "", True, 1.0, [], {}, "\ud800", 2**70, float("nan"),
    )),
    *({"ask": "open", "against": against, "target": 2} for against in (2, "cat", 7, [])),
    *({"ask": "node", "on": on} for on in ("nothing", None, [], {}, 1)),
    *({"ask": "node", "partition": partition} for partition in (
        "", "heads", "heads:0", "heads:-1", "heads:7", "heads:99999999999", "heads:²", "channels:2", "__class__", None,
    )),
    *({"ask": "node", "layers": layers} for layers in (
        "", "no", "99", "--3", "1,1", "every:0", "every:-1", "every:x", 3)),
    *({"ask": "node", "width": width} for width in (0, -1, 65, 2**70, 1.0, True, "8", None, float("inf"))),
    *({"ask": "node", "root": root} for root in (
        "no", "1:c6", "1:c0,y15", "1:z0", "1:c0,c1", "1:0,0,0,0", "1:", ":", ":c1", "1[", "1[]", "no:c1", "8:c1",
        "1:-1", "1:9999999999", "found:", "found:-1", "found:x", "found:99", "found:²", "[" * 2000, "a:" * 1000)),
    *({"ask": "node", "path": path} for path in (
        ["no"], ["rest", "no"], [""], "rest", None, [3], [["rest"]], ["a" * 3000], ["rest"] * 2001)),
    *({"ask": ask, "path": ["bias"]} for ask in ("compare", "cut")), {"ask": "cut"},
    *({"ask": "paths", "search": search} for search in ("", "Greedy", "heads", "__class__", None, [])),
    *({"ask": "paths", "search": "beam", "numbers": numbers} for numbers in (
        None, [], {"k": 0}, {"k": -1}, {"k": 1.5}, {"k": True}, {"k": "2"}, {"k": None}, {"k": 65}, {"share": 0.5},
        {"k": float("nan")}, {"k": 1e300}, {"products": 3})),
    {"ask": "paths", "search": "mass", "numbers": {"share": 0}},
    {"ask": "paths", "search": "mass", "numbers": {"share": -0.5}},
    {"ask": "paths", "search": "mass", "numbers": {"share": 1.5}},
    {"ask": "paths", "search": "best-first", "numbers": {"budget": 10**6}},
]  # fmt: skip


@pytest.fixture(scope="module")
def shared():
    one = Explorer(tiny())
    return one, one.add(photo(0))


@pytest.mark.parametrize("question", WRONG, ids=lambda question: ascii(question)[:50])
def test_a_wrong_question_gets_one_sentence(question, shared):
    one, key = shared
    if isinstance(question, dict) and "picture" not in question and question.get("ask") not in ("scene", None):
        question = {"picture": key, **question}
    with pytest.raises(RelupathError) as raised:
        one.answer(question)
    sentence = str(raised.value)
    assert sentence
    assert "\n" not in sentence
    assert len(sentence) < 700


def test_the_line_of_a_question_is_short_and_always_the_same():
    asked = {"ask": "node", "path": ["4[c1]", "rest"], "width": 6, "numbers": {}, "target": "ü"}
    line = '{"ask":"node","path":["4[c1]","rest"],"target":"ü"}'
    assert Question.of(asked).key() == Question.of(dict(reversed(asked.items()))).key() == line
    assert Question.of(json.loads(line)) == Question.of(asked)


@pytest.mark.parametrize("text", ["4:c1,y2", "4[c1,y2]", "4:1,2", "4: c1  y2"])
def test_units_are_named_as_they_are_printed(asked, text):
    _, _, frozen = asked
    unit = Question("node", root=text).unit(frozen)
    assert unit == Path.of([("4", (1, 2, None))])


def test_an_input_of_two_channels_can_be_looked_at_too():
    model = randomise(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)), 0)
    two = Classifier(
        "two", model, lambda image: torch.tensor(np.asarray(image.resize((5, 5)))[..., :2] / 255.0).permute(2, 0, 1),
        dtype=torch.float64,
    )  # fmt: skip
    one = Explorer(two)
    opened = one.answer({"ask": "open", "picture": one.add(photo(0))})
    assert opened["picture"]["image"]["shape"] == [5, 5]


# --- docs/view.md ---

VIEW = (FilePath(__file__).parents[1] / "docs" / "view.md").read_text(encoding="utf-8")
PLAIN = {"text": str, "number": int | float, "whole": int, "truth": bool, "path": dict}


def tables():
    """The fields of every object that the page describes, and what they are."""
    found = {}
    for table in re.findall(r"^\| (\w+) \| is \| what \|\n\|-+\|-+\|-+\|\n((?:\|.*\n)+)", VIEW, re.MULTILINE):
        found[table[0]] = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \| \S", table[1], re.MULTILINE))
    return found


def assert_described(value, kind, described, seen):
    """A value is what the page says of it, field by field."""
    if kind.endswith(" or null"):
        seen.add((kind, value is None))
        kind = kind.removesuffix(" or null")
        if value is None:
            return
    if kind[0] in "[{":
        assert isinstance(value, list if kind[0] == "[" else dict)
        for item in value if kind[0] == "[" else value.values():
            assert_described(item, kind[1:-1], described, seen)
    elif kind in PLAIN:
        assert isinstance(value, PLAIN[kind])
        assert isinstance(value, bool) == (kind == "truth")
    else:
        assert list(value) == list(described[kind]) or set(value) == set(described[kind]), kind
        seen.add(kind)
        for name, inner in value.items():
            assert_described(inner, described[kind][name], described, seen)


def test_the_page_of_the_format_describes_every_answer(asked, creatures_asked):
    one, key, _ = asked
    described, seen = tables(), set()
    questions = [{"ask": "node", "path": [path]} for path in ("rest", "bias")]
    questions += [{"ask": ask} for ask in ("hello", "open", "node", "compare", "bias", "check", "paths")]
    first = one.answer({"ask": "node", "picture": key})["children"][0]["key"]
    for question in [*questions, {"ask": "cut", "path": [first]}]:
        said = one.answer({"picture": key, "width": 2, **question})
        head = {name: said.pop(name) for name in ("format", "ask")}
        assert head == {"format": FORMAT, "ask": question["ask"]}
        assert f"`{FORMAT}`" in VIEW
        assert_described(said, question["ask"], described, seen)
    drawn = creatures_asked[0].answer({"ask": "scene", "seed": 5})
    assert_described({"picture": drawn["picture"]}, "scene", described, seen)
    assert {name for name in seen if isinstance(name, str)} == described.keys() - {"refusal"}
    assert {kind for kind, none in seen - described.keys() if none} >= {"map or null", "path or null", "text or null"}
    assert set(explorer._ANSWERS) <= described.keys()


def test_the_page_of_the_format_describes_every_question():
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`|) \| (.*) \|$", VIEW.partition("## An answer")[0], re.MULTILINE)
    described = {name: default for name, default, _ in rows}
    assert list(described) == [field.name for field in fields(Question)] == list(_EXPECTED)
    script = re.search(
        r"const ASKED = (\{.*?),?\s*\};", (server.WEB / "relupath.js").read_text(encoding="utf-8"), re.DOTALL
    )
    on_the_page = json.loads(re.sub(r"(\w+):", r'"\1":', script[1]) + "}")
    assert on_the_page == {"ask": ""} | {name: json.loads(default) for name, default in described.items() if default}
    del described["ask"]
    usual = json.loads(json.dumps(vars(Question("")) | {"path": [], "numbers": {}}))
    assert {name: json.loads(default) for name, default in described.items()} == {
        name: usual[name] for name in described
    }
    said = {name: what for name, _, what in rows}
    assert all(f"`{name}` up to {most}" in said["numbers"] for name, most in MOST.items())
    assert all(f"`{name}`" in said["search"] for name in plans.SEARCHES)
    assert all(f"`{name}`" in said["partition"] for name in plans.PARTITIONS)
    assert f"1 to {WIDEST}" in said["width"]


# --- layers where the classes meet ---


@pytest.mark.parametrize("partition", ["neurons", "channels"])
@pytest.mark.parametrize("on", ["target", "against", "contrast"])
def test_a_layer_with_units_of_its_own_for_every_class_is_left_out(partition, on):
    explorer = Explorer(forked())
    key = explorer.add(photo(0))
    frozen = explorer.shelf.take(key)[1].frozen
    question = {"picture": key, "on": on, "partition": partition, "width": 3}
    told = explorer.answer({"ask": "node", **question})["children"]
    units = plans.partition(partition)
    tree = decompose(frozen, roles(frozen)[on], layers=["1", "3"], partition=units, width=3)
    assert [child["value"] for child in told] == [child.value for child in tree.children]
    assert {child["layer"] for child in told if child["kind"] == "path"} == {"3"}
    rows = explorer.answer({"ask": "compare", **question, "path": [told[0]["key"]]})["rows"]
    assert all(row["value"] for row in rows)
    found = explorer.answer({"ask": "paths", **question})["paths"][-1]
    expected = find_paths(frozen, roles(frozen)[on], Greedy(), layers=["1", "3"], partition=units)
    assert found["key"] == str(shares(expected)[0][-1])


def test_all_layers_can_be_asked_for_and_those_of_units_in_common_are_kept():
    explorer = Explorer(forked())
    key = explorer.add(photo(0))

    def first(**more):
        told = explorer.answer({"ask": "node", "picture": key, **more})["children"]
        return {child["layer"] for child in told if child["kind"] == "path"}

    assert first(layers="all") == first(layers="5,3") == {"5"}
    assert first(partition="locations") == {"5"}, "a place of the last layer is of all classes"
    assert first() == {"3"}


class Branched(nn.Module):
    """Two branches at the top of one trunk: one with a channel for every class, one that all classes share."""

    def __init__(self, shared=True):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.own = nn.Sequential(nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 5, 1, groups=5), nn.ReLU())
        self.common = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU()) if shared else None
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        h = self.trunk(x)
        logits = self.own(h).mean((2, 3))
        return logits if self.common is None else logits + self.head(self.common(h).mean((2, 3)))


def positive(model):
    """All weights above zero, so that on a picture that is above zero every gate is open."""
    for parameter in model.double().parameters():
        parameter.data.abs_()
    return model.eval()


@pytest.mark.parametrize(
    ("shared", "left"),
    [(True, {"trunk.1", "own.1", "own.3", "common.1"}), (False, {"trunk.1"})],
)
def test_levels_are_kept_from_the_first_that_serves_both_classes_on(shared, left):
    """Of a level in which one layer is shared, none goes; of two that are not, both go."""
    torch.manual_seed(0)
    frozen = relupath.freeze(positive(Branched(shared)), torch.rand(1, 3, 8, 8, dtype=torch.float64))
    found = layers_asked(frozen, None, channels, (logit(1), logit(3)))
    assert {layer.name for layer in found} == left
    assert found == sorted(found, key=frozen.layers.index), "in the order of execution"
    assert layers_asked(frozen, "all", channels, (logit(1), logit(3))) == list(frozen.layers)


def test_all_layers_stay_where_the_classes_meet_in_none():
    """One class is closed at the picture: nothing passes any layer for it."""
    model = positive(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(),
                                   nn.AdaptiveAvgPool2d(1), nn.Flatten()))  # fmt: skip
    model[2].bias.data[3] = -1e6
    frozen = relupath.freeze(model, torch.rand(1, 3, 8, 8, dtype=torch.float64))
    assert layers_asked(frozen, None, channels, (logit(1), logit(3))) == list(frozen.layers)


def test_a_tree_is_that_of_both_classes():
    """Against a class that is closed at the picture the tree of the same target has other layers."""
    model = positive(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(),
                                   nn.AdaptiveAvgPool2d(1), nn.Flatten()))  # fmt: skip
    model[2].bias.data[3] = -1e6
    explorer = Explorer(Names(CLASSES))
    frozen = relupath.freeze(model, torch.rand(1, 3, 8, 8, dtype=torch.float64))
    key = explorer.add_recorded(frozen)
    for against, layer in ((0, "1"), (3, "3"), (0, "1")):
        question = {"picture": key, "target": 1, "against": against}
        answer = explorer.answer({"ask": "node", **question})
        assert {child["layer"] for child in answer["children"] if child["kind"] == "path"} == {layer}
        assert answer["left_out"] == (["3"] if layer == "1" else [])
        steps = explorer.answer({"ask": "paths", **question})["paths"][0]["name"]
        assert steps.startswith(f"{layer}[")
    named = {"ask": "node", "picture": key, "target": 1, "layers": "3"}
    assert explorer.answer({**named, "against": 0}) == explorer.answer({**named, "against": 3})
    assert explorer.answer({**named, "against": 0})["left_out"] == []


def test_a_layer_on_which_no_path_can_stand_is_not_said_to_be_left_out():
    """Its first axis is not the batch: that has nothing to do with the classes."""

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.act, self.bend = nn.Linear(12, 6), nn.Linear(6, 5), nn.ReLU(), nn.ReLU()

        def forward(self, x):
            rows = self.bend(self.one(x.flatten(1)).view(6, 1))
            return self.two(self.act(rows.view(1, 6)))

    explorer = Explorer(Names(CLASSES))
    frozen = relupath.freeze(positive(Rows()), torch.rand(1, 3, 2, 2, dtype=torch.float64))
    assert {layer.name for layer in frozen.layers} == {"act", "bend"}
    answer = explorer.answer({"ask": "node", "picture": explorer.add_recorded(frozen)})
    assert answer["left_out"] == []


def test_a_tree_that_begins_at_a_unit_leaves_nothing_out():
    explorer = Explorer(forked())
    key = explorer.add(photo(0))
    assert explorer.answer({"ask": "node", "picture": key})["left_out"] == ["5"]
    assert explorer.answer({"ask": "node", "picture": key, "root": "3:c1"})["left_out"] == []
