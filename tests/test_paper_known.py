"""Networks whose answer is known: the circuits compute what they say, and the figures are made anew."""

import json
import sys
from pathlib import Path

import pytest
import torch

import circuits
import planted
from asserts import within
from relupath import Greedy, freeze

EXPECTED = Path(__file__).parents[1] / "paper" / "expected"


def expected(name):
    return json.loads((EXPECTED / f"{name}.json").read_text())


def near(numbers, within=0.01):
    return pytest.approx(numbers, abs=within)


@pytest.mark.parametrize("name", planted.CIRCUITS)
def test_a_circuit_by_itself_computes_its_function_exactly(name):
    circuit = planted.CIRCUITS[name]
    net = planted.planted(circuit, "quiet", 32, 3, 0)
    x = torch.randint(circuit.steps + 1, (200, planted.INPUTS)).double() / circuit.steps
    result = net.values(x)[-1]
    assert result.shape == (200, 1)
    assert torch.equal(result[:, 0], circuit.truth(x[:, net.inputs]))


@pytest.mark.parametrize("hiding", planted.HIDINGS)
def test_a_circuit_stays_itself_among_random_units(hiding):
    net = circuits.network("XOR", hiding, 32, 3, 1)
    x = net.draw(50, torch.Generator().manual_seed(0))
    assert net.error(x) < 0.5
    at = x
    for place, value, linear in zip(net.places, net.values(x), net.model[::2], strict=False):
        at = linear(at).relu()
        assert (at[:, place] - value).abs().max() < 0.5
    assert [len(units) for units in net.units(x)[0]] == [1, 1, 1]


def test_the_hidings_do_what_they_say():
    quiet, others, detour, twins = (planted.planted(planted.CIRCUITS["AND"], h, 64, 3, 2) for h in planted.HIDINGS)
    heads = [net.model[-1].weight[1:].abs().mean() for net in (quiet, others)]
    assert heads[1] > 10 * heads[0]
    x = quiet.draw(4, torch.Generator().manual_seed(0))

    def contributions(net):
        frozen = freeze(net.model, x)
        pulled = frozen.vjp({frozen.top: frozen.functional(0).gradient}, frozen.layers)
        others = [[u for u in range(64) if u not in place.tolist()] for place in net.places]
        triples = zip(others, pulled, frozen.layers, strict=True)
        return [(v * layer.output)[:, units] / planted.GAIN for units, v, layer in triples]

    for c in contributions(quiet):
        assert c.abs().max() < 0.2
    low = contributions(detour)[0]
    assert low.topk(2).values.detach() == near(torch.full((4, 2), 1.5), 0.3)
    assert (-low).topk(2).values.detach() == near(torch.full((4, 2), 1.5), 0.3)
    assert contributions(detour)[1].abs().max() < 0.5
    for c in contributions(twins):
        assert c.amax(1).min() > 1.5
        assert c.amin(1).max() < -1.5


def test_a_method_is_right_by_the_units_it_names():
    truth = [{1, 2}, {3}]
    row = circuits.score(circuits.Named([{1, 5}, {3}], [{1}, {3}]), truth)
    assert row == {"precision": 2 / 3, "recall": 2 / 3, "first": 1}
    assert circuits.score(circuits.Named([{5}, {3}], [{5}, {3}]), truth)["first"] == 0
    assert circuits.score(circuits.Named([set(), {3}], [set(), {3}]), truth) == near(
        {"precision": 1, "recall": 1 / 3, "first": 0}
    )
    assert "first" not in circuits.score(circuits.Named([{1}, {3}]), truth)


def test_greedy_names_the_units_of_its_path():
    net = circuits.network("AND", "quiet", 32, 3, 0)
    x = net.draw(2, torch.Generator().manual_seed(0))
    given = circuits.Given(freeze(net.model, x), [[1, 1, 1]] * 2, torch.Generator())
    assert [named.units for named in given.paths(Greedy())] == net.units(x)


@pytest.mark.parametrize("hiding", planted.HIDINGS)
def test_the_first_network_gives_the_numbers_checked_in(hiding, unchecked):
    want = expected("circuits")["hidings"][hiding]
    _, number, net = next(circuits.cases(hiding, 1))
    got = circuits.measured(net, number)
    assert [*got] == [*want["methods"]]
    for name, row in got.items():
        assert row == within("circuits", want["first"][name]), name


def test_the_script_measures_and_draws(tmp_path, monkeypatch, unchecked):
    monkeypatch.setattr(planted, "CIRCUITS", {"AND": planted.CIRCUITS["AND"]})
    monkeypatch.setattr(planted, "HIDINGS", ("twins",))
    monkeypatch.setattr(circuits, "SIZES", ((24, 3),))
    words = ["--seeds", "2", "--json", tmp_path / "found.json", "--output", tmp_path / "found.png"]
    monkeypatch.setattr(sys, "argv", ["circuits", *map(str, words)])
    circuits.main()
    found = json.loads((tmp_path / "found.json").read_text())["hidings"]
    assert {hiding: part["networks"] for hiding, part in found.items()} == {"twins": 2}
    assert (tmp_path / "found.png").is_file()


def test_the_circuits_checked_in_say_where_paths_win_and_lose():
    hidings = expected("circuits")["hidings"]
    assert min(part["networks"] for part in hidings.values()) >= 50

    def recall(hiding, method):
        return hidings[hiding]["methods"][method]["recall"]

    assert recall("detour", "Greedy")["low"] > recall("detour", "gradient x activation")["high"]
    assert recall("quiet", "Exact")["low"] > recall("quiet", "path_mass")["high"]
    assert recall("twins", "Greedy")["high"] < recall("twins", "path_mass")["low"], "paths lose here"
