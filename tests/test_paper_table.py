"""The paper's table: peers against what is known of them, runs that go on, halves kept apart, figures made anew."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

import asked
import cifar10
import partly
import peers
import steps
import table
from asserts import within
from nets import randomise
from relupath import Mass, Selective, channels, freeze, metrics, neurons
from relupath._contributions import contributions
from relupath.errors import UsageError
from relupath.metrics import interval

SUMMED = {"channels summed": metrics.ranks}
EXPECTED = Path(__file__).parents[1] / "paper" / "expected" / "table-cifar10.json"


@pytest.fixture
def model():
    parts = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)
    return randomise(nn.Sequential(*parts), 0).eval()


@pytest.fixture
def task(model):
    x = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    searches = {"mass": table.ours(Mass(), neurons), "selective": table.ours(Selective(2), channels)}
    found = peers.methods(model, "3", "3")
    few = {name: found[name] for name in ("Saliency", "SmoothGrad")}
    return table.Task(
        model, [f"image {n}" for n in range(9)], lambda numbers: x[[*numbers]], few, searches, model, NAMES
    )


NAMES = ["Saliency", "SmoothGrad", "mass", "selective", "random"]


def test_peers_are_what_their_names_say(model):
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    c = torch.tensor([0, 3, 1])
    found = {name: method(x, c) for name, method in peers.methods(model, "3", "3").items()}
    whole = contributions(freeze(model, x), c)[0]
    assert torch.allclose(found["Input x Gradient"], whole)
    assert torch.allclose(found["Saliency, signed"] * x, whole)
    assert torch.equal(found["Saliency"], found["Saliency, signed"].abs())
    assert (found["SmoothGrad"] >= 0).all()
    assert not torch.allclose(found["SmoothGrad"], found["Saliency"], rtol=0.01)
    gained = (model(x) - model(0 * x)).gather(1, c[:, None])[:, 0]
    assert torch.allclose(
        found["Integrated Gradients"].flatten(1).sum(1), gained, atol=0.02 * float(gained.abs().max())
    )
    cam = LayerGradCam(model, model[3]).attribute(x, c).relu()
    assert found["Grad-CAM"].shape == (3, 8, 8)
    assert torch.equal(found["Grad-CAM"].flatten(1).amax(1) > 0, cam.flatten(1).amax(1) > 0)
    for name in ("LRP, epsilon-plus", "LRP, gamma-box", "Guided Backprop", "Guided Grad-CAM"):
        assert found[name].shape == x.shape
        assert found[name].isfinite().all()
    assert model[1].inplace, "the model itself stays as it is"


def test_relevance_is_kept_down_to_the_input_where_there_is_no_bias(model):
    for module in (model[0], model[2], model[5]):
        nn.init.zeros_(module.bias)
    relevance = peers.methods(model, "3", "3")["LRP, epsilon-plus"]
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(relevance(x, model(x).argmax(1)).flatten(1).sum(1), torch.ones(()).double(), atol=1e-3)


def test_a_run_that_was_stopped_goes_on_and_gives_the_same(task, tmp_path):
    whole = table.filled(task, tmp_path / "whole.jsonl", 9, NAMES, 1)
    path = tmp_path / "stopped.jsonl"
    table.filled(task, path, 5, NAMES, 1)
    path.write_text(path.read_text()[:-40])
    asked = []
    given = task.pictures
    counted = replace(task, pictures=lambda numbers: (asked.extend(numbers), given(numbers))[1])
    assert table.filled(counted, path, 9, NAMES, 1) == whole
    assert asked == [4, 5, 6, 7, 8]
    assert table.filled(counted, path, 9, NAMES, 1) == whole
    assert len(asked) == 5, "nothing was left to do"
    assert [*table.filled(counted, path, 3, NAMES, 1)] == [0, 1, 2]


def test_records_of_other_steps_are_refused(task, tmp_path):
    path = tmp_path / "steps.jsonl"
    table.filled(task, path, 2, NAMES, 1, rows=4)
    with pytest.raises(UsageError, match="4 rows a step"):
        table.filled(task, path, 2, NAMES, 1)
    with pytest.raises(UsageError, match="other orders"):
        table.filled(replace(task, orders=SUMMED), path, 2, NAMES, 1, rows=4)
    apart, alone = replace(task, orders={"by channel": metrics.channel_ranks}), tmp_path / "alone.jsonl"
    table.filled(apart, alone, 2, NAMES, 1)
    with pytest.raises(UsageError, match="other orders"):
        table.filled(replace(task, orders=SUMMED), alone, 2, NAMES, 1)
    with pytest.raises(UsageError, match="a tolerance of None"):
        table.filled(task, path, 2, NAMES, 1, rows=4, tolerance=0.001)


def test_longer_steps_and_one_order_are_as_they_say(task):
    one, longer = (table.measured(replace(task, orders=SUMMED), [3], NAMES, rows=rows)[0] for rows in (1, 4))
    x = task.pictures([3])
    found = task.peers["Saliency"](x, torch.tensor([one["class"]]))
    order = metrics.ranks(found, [3])
    for record, rows in ((one, 1), (longer, 4)):
        areas = [
            measure(task.model, x, record["class"], order, rows=rows).area
            for measure in (metrics.insertion, metrics.deletion)
        ]
        assert record["areas"]["Saliency"] == pytest.approx([float(area) for area in areas], rel=1e-5)
        assert {len(areas) for areas in record["areas"].values()} == {2}


def test_a_tolerance_is_passed_on_and_written_down(task, tmp_path, monkeypatch):
    given = []
    for name in ("insertion", "deletion"):
        measure = getattr(metrics, name)
        monkeypatch.setattr(
            metrics, name, lambda *a, m=measure, **more: (given.append(more["tolerance"]), m(*a, **more))[1]
        )
    (record,) = table.filled(task, tmp_path / "some.jsonl", 1, ["mass"], 1, tolerance=0.25).values()
    assert record["tolerance"] == 0.25
    assert given == [0.25] * 4


def test_partial_pictures_are_run_together_as_apart(model, monkeypatch):
    x, c = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 3, 1])
    frozen = freeze(model, x)
    together = partly.averaged(model, partly.whole, partly.BLUR, frozen, c)
    apart = sum(partly.whole(freeze(model, z), c) for z in partly.seen(x, partly.BLUR)) / partly.PICTURES
    assert torch.allclose(together, apart * (x - metrics.blur(x)))


def test_quick_convolutions_are_equal_to_round_off():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1, stride=2), nn.Flatten()).eval()
    x = torch.randn(2, 3, 9, 9)
    quick = table.with_quick_ones(net)
    assert not isinstance(quick[2], nn.Conv2d)
    assert isinstance(net[2], nn.Conv2d), "the network itself stays as it is"
    with torch.no_grad():
        assert torch.allclose(quick(x), net(x), atol=1e-5)


def test_what_a_tolerance_costs_is_told_of_each_measure(task):
    none = steps.compared(task, [3, 4], NAMES, 0.0)
    assert none.shape == (2, len(NAMES), 2, 2)
    assert not none[0].any()
    assert (none[1] == 9).all(), "every point of eight rows is run"
    less, run = torch.tensor([[[[0.1, -0.3]], [[0.2, 0.1]]], [[[4, 6]], [[5, 5]]]], dtype=torch.float64)
    found = steps.summary(torch.stack([less, run]).repeat(1, 1, 2, 1))
    assert found["insertion"] == found["deletion"]
    assert found["insertion"] == {
        "mean_size_of_difference": pytest.approx(0.175),
        "largest_difference": pytest.approx(0.3),
        "mean_difference": pytest.approx(0.025),
        "largest_of_a_methods_mean": pytest.approx(0.15),
        "points_run": 5,
        "most_points_run": 6,
    }


def test_records_of_other_images_are_refused(task, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"number": 3, "image": "dog 3", "areas": {}}\n')
    with pytest.raises(UsageError, match=r"of other images \(number 3 is dog 3\)"):
        table.filled(task, path, 2, ["mass"], 2)


def test_a_new_method_is_measured_beside_those_already_there(task, tmp_path):
    path = tmp_path / "some.jsonl"
    table.filled(task, path, 2, ["mass"], 2)
    assert {*table.filled(task, path, 2, ["mass", "random"], 2)[1]["areas"]} == {"mass", "random"}
    written = [json.loads(line) for line in path.read_text().splitlines() if line]
    assert [[*record["areas"]] for record in written] == [["mass"], ["mass"], ["random"], ["random"]]


def test_maps_are_read_by_size_and_by_what_is_positive(model):
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    frozen, c = freeze(model, x), torch.tensor([0, 1])
    whole = contributions(frozen, c)[0]
    found = table.searches((1,), (1,), (1,))
    assert torch.equal(found["W x, size"](frozen, c), whole.sum(1).abs())
    assert torch.equal(found["W x, positive"](frozen, c), whole.relu())


def test_pictures_measured_together_are_measured_as_apart(task):
    names = ["Saliency", "mass", "selective", "random"]
    together = table.measured(task, [2, 5, 7], names)
    for n, record in zip((2, 5, 7), together, strict=True):
        (alone,) = table.measured(task, [n], names)
        assert {k: alone[k] for k in ("number", "image", "class")} == {
            k: record[k] for k in ("number", "image", "class")
        }
        for name in names:
            assert alone["areas"][name] == pytest.approx(record["areas"][name], abs=1e-6)


def test_searches_are_chosen_on_one_half_and_told_of_the_other(task):
    even = {"Saliency": [0.5, 0.5], "SmoothGrad": [0.4, 0.2], "mass": [0.9, 0.6], "selective": [0.7, 0.1]}
    odd = {"Saliency": [0.6, 0.3], "SmoothGrad": [0.5, 0.1], "mass": [0.1, 0.1], "selective": [0.8, 0.2]}
    records = {}
    for n in range(8):
        half = odd if n % 2 else even
        nudge = 0.01 * (n // 2)
        records[n] = {"number": n, "areas": {k: [a + nudge, b, b, a] for k, (a, b) in half.items()}}
    found = table.report(task, records, [*even])
    assert (found["chosen_on"], found["reported_on"]) == (4, 4)
    summed, apart = found["orders"]["channels summed"], found["orders"]["by channel"]
    lesser = {"the lesser lead": "selective"}
    assert summed["chosen"] == {
        "insertion": "mass", "deletion": "selective", "insertion less deletion": "selective", **lesser
    }  # fmt: skip
    assert apart["chosen"] == {
        "insertion": "mass", "deletion": "selective", "insertion less deletion": "mass", **lesser
    }  # fmt: skip
    assert summed["best_peer"] == {"insertion": "Saliency", "deletion": "SmoothGrad"}
    row = summed["methods"]["selective"]
    assert row["insertion"]["mean"] == pytest.approx(0.815)
    assert row["insertion_less_best_peer"]["mean"] == pytest.approx(0.2)
    assert row["insertion_less_best_peer"]["low"] == pytest.approx(0.2), "each picture against itself"
    assert row["deletion_less_best_peer"]["mean"] == pytest.approx(0.1)
    own = interval(torch.tensor([0.8, 0.81, 0.82, 0.83]))
    assert row["insertion"]["low"] == pytest.approx(own.low)
    text = table.table(task, {**found}, "channels summed")
    assert "| selective (best by deletion and insertion less deletion and the lesser lead) | 0.815" in text
    assert "| mass (best by insertion) | 0.115" in text


def test_the_first_images_give_the_areas_checked_in(data, unchecked):
    want = json.loads(EXPECTED.read_text())
    task = table.of_cifar10(data / "cifar10" / "test.zip", data / "toycnn_cifar10.safetensors")
    names = [
        "Input x Gradient",
        "LRP, epsilon-plus",
        "Selective, width 64, all layers",
        "Mass, share 0.9, 2 layers",
        "Integrated Gradients, from blur, smoothed",
        "W x, partial pictures, smoothed",
        "Mass for less against, share 0.9, 1 layer, partial pictures, smoothed",
        "random",
    ]
    found = table.measured(task, [record["number"] for record in want["first"]], names)
    for record, like in zip(found, want["first"], strict=True):
        assert (record["image"], record["class"]) == (like["image"], like["class"])
        for name in names:
            assert record["areas"][name] == within("areas", like["areas"][name])


def test_over_partial_pictures_both_measures_are_better_than_every_peers():
    part = json.loads(EXPECTED.read_text())["orders"]["channels summed"]
    assert part["chosen"]["the lesser lead"] == "W x, partial pictures, smoothed"
    for name in (
        "W x, partial pictures, smoothed",
        "Mass for less against, share 0.9, 1 layer, partial pictures, smoothed",
    ):
        assert part["methods"][name]["insertion_less_best_peer"]["low"] > 0
        assert part["methods"][name]["deletion_less_best_peer"]["high"] < 0


def test_slow_peers_come_near_in_deletion_only():
    found = json.loads((EXPECTED.parent / "table-cifar10-slow.json").read_text())
    part, name = found["orders"]["channels summed"], "W x, partial pictures, smoothed"
    assert part["best_peer"]["deletion"] == "Shapley sampling, both starts, smoothed"
    less = part["methods"][name]["deletion_less_best_peer"]
    assert less["low"] < 0 < less["high"]
    assert part["methods"][name]["insertion_less_best_peer"]["low"] > 0
    whole = json.loads(EXPECTED.read_text())["first"][0]["areas"][name]
    assert found["first"][0]["areas"][name] == whole


def test_paths_of_every_search_are_in_a_table_and_the_exact_ones_insert_no_better_than_a_beams():
    found = json.loads((EXPECTED.parent / "table-cifar10-paths.json").read_text())
    whole, part = (one["orders"]["channels summed"]["methods"] for one in (json.loads(EXPECTED.read_text()), found))
    assert (found["chosen_on"], found["reported_on"]) == (500, 500)
    assert all(part[name]["insertion"] == whole[name]["insertion"] for name in part.keys() & whole.keys())
    assert part["Exact"]["insertion"]["low"] < part["Beam"]["insertion"]["mean"] < part["Exact"]["insertion"]["high"]
    assert part["BestFirst"]["deletion"]["high"] < part["Exact"]["deletion"]["low"]


def test_slow_paths_are_still_those_of_the_table(data, unchecked):
    want = json.loads((EXPECTED.parent / "table-cifar10-paths.json").read_text())["first"][0]
    task = table.of_cifar10(data / "cifar10" / "test.zip", data / "toycnn_cifar10.safetensors")
    (found,) = table.measured(task, [want["number"]], ["BestFirst", "Exact"])
    for name in ("BestFirst", "Exact"):
        assert found["areas"][name] == within("areas", want["areas"][name])


def test_the_table_was_made_of_all_methods_on_two_halves():
    want = json.loads(EXPECTED.read_text())
    assert (want["chosen_on"], want["reported_on"]) == (500, 500)
    for part in want["orders"].values():
        rows = part["methods"]
        best = max((rows[name]["insertion"]["mean"], name) for name in part["best_peer"].values())
        assert best[1] == part["best_peer"]["insertion"]
        assert rows[part["best_peer"]["deletion"]]["deletion_less_best_peer"]["mean"] == 0


def test_masks_are_the_definition_where_no_pooling_takes_another_route():
    torch.manual_seed(0)
    net = cifar10.network()
    found, x = table.as_the_authors(net), torch.randn(3, 3, 32, 32)
    assert len(found) == 2 * 4 * 4
    frozen, c = freeze(net, x), net(x).argmax(1)
    for width, depth in (("1", "all layers"), ("16", "1 layer"), ("any", "2 layers")):
        defined, masked = (found[f"{name}, width {width}, {depth}"](frozen, c) for name in ("Selective", table.MASKED))
        wide = Selective(None if width == "any" else int(width), {"1": 1, "2": 2}.get(depth[0]))
        torch.testing.assert_close(defined, contributions(frozen, c, wide)[0])
        if depth != "2 layers":
            torch.testing.assert_close(masked, defined, atol=1e-5, rtol=1e-3)
        else:
            assert 0 < (masked - defined).abs().sum() < 0.5 * defined.abs().sum()


def test_masks_and_gates_as_defined_give_the_same_figures():
    found, like = (json.loads((EXPECTED.parent / f"table-cifar10{name}.json").read_text()) for name in ("-authors", ""))
    assert (found["chosen_on"], found["reported_on"]) == (500, 500)
    for order, part in found["orders"].items():
        rows = part["methods"]
        pairs = [
            (name, name.replace("Selective,", f"{table.MASKED},")) for name in rows if name.startswith("Selective,")
        ]
        assert len(pairs) == 16
        for measure in ("insertion", "deletion"):
            for name, masked in pairs:
                assert abs(rows[name][measure]["mean"] - rows[masked][measure]["mean"]) < 0.0035, (order, name)
            for name in {*rows} & {*like["orders"][order]["methods"]}:
                known = like["orders"][order]["methods"][name][measure]["mean"]
                assert rows[name][measure]["mean"] == within("areas", known), (order, name)


def test_what_is_measured_unasked_are_methods_of_the_task(data):
    squeezenet = table.of_squeezenet(data / "imagenet", data / "squeezenet1_0_imagenet.safetensors")
    authors = table.of_cifar10(data / "cifar10" / "test.zip", data / "toycnn_cifar10.safetensors")
    for task in (squeezenet, authors):
        assert {*task.usual} <= {*task.peers, *task.searches, table.CONTROL}
    assert not any(name.startswith(partly.SLOW) for name in authors.usual)
    assert [*table.measured(authors, [0], ["random"])[0]["areas"]] == ["random"]


def test_a_photo_gives_the_areas_in_the_records(data, unchecked):
    want = table.read(EXPECTED.parent / "records-squeezenet.jsonl")[1]
    task = table.of_squeezenet(data / "imagenet", data / "squeezenet1_0_imagenet.safetensors")
    names = ["Input x Gradient", "Mass, share 0.9, all layers"]
    (found,) = table.measured(task, [1], names, want["rows"], want.get("tolerance"))
    assert (found["image"], found["class"]) == (want["image"], want["class"])
    for name in names:
        assert found["areas"][name] == within("areas", want["areas"][name])


def test_the_table_on_squeezenet_is_made_of_its_records(data):
    want = json.loads((EXPECTED.parent / "table-squeezenet.json").read_text())
    task = table.of_squeezenet(data / "imagenet", data / "squeezenet1_0_imagenet.safetensors")
    records = table.read(EXPECTED.parent / "records-squeezenet.jsonl")
    setting = {"network": "squeezenet", "rows_a_step": 1, "tolerance": 0.001}
    assert all(record["tolerance"] == 0.001 for record in records.values())
    assert asked.rounded({**setting, **table.report(task, records, task.usual)}) == want


def test_the_table_by_channel_is_made_of_its_records(data):
    want = json.loads((EXPECTED.parent / "table-squeezenet-channels.json").read_text())
    place = data / "imagenet", data / "squeezenet1_0_imagenet.safetensors"
    task, records = (
        table.of_squeezenet(*place, "by channel"),
        table.read(EXPECTED.parent / "records-squeezenet-channels.jsonl"),
    )
    assert all(record["orders"] == ["by channel"] and len(record["areas"]) == 3 for record in records.values())
    part = table.report(task, records, [*want["orders"]["by channel"]["methods"]])
    assert (part["chosen_on"], part["reported_on"]) == (250, 250)
    assert asked.rounded(part) == {word: want[word] for word in part}
    (found,) = table.measured(task, [0], ["random"], 1, 0.001)
    assert found["areas"]["random"] == within("areas", records[0]["areas"]["random"])


def test_a_tolerance_moves_means_less_than_a_fifth_of_the_narrowest_interval():
    found = json.loads((EXPECTED.parent / "steps-squeezenet.json").read_text())
    rows = json.loads((EXPECTED.parent / "table-squeezenet.json").read_text())["orders"]["channels summed"]["methods"]
    for measure, less in found["measures"].items():
        widths = [row[measure]["high"] - row[measure]["low"] for row in rows.values()]
        assert abs(less["mean_difference"]) < min(widths) / 5
        assert less["mean_size_of_difference"] < 0.0025
        assert less["points_run"] < 30


def test_on_photos_partial_pictures_win_both_against_every_peer():
    want = json.loads((EXPECTED.parent / "table-squeezenet.json").read_text())
    part, name = want["orders"]["channels summed"], "W x, partial pictures"
    assert {*part["chosen"].values()} == {name}
    records = table.read(EXPECTED.parent / "records-squeezenet.jsonl")
    told = {k: torch.tensor([r["areas"][k] for n, r in records.items() if n % 2]) for k in part["methods"]}
    assert len(told[name]) == want["reported_on"]
    for other in {*told} - {name}:
        inserted, deleted = (interval(less) for less in (told[name] - told[other]).unbind(1))
        assert inserted.low > 0 > deleted.high, other
