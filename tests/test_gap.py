"""How far Algorithm 1 is from the best path: against every complete path of small networks, listed."""

import math

import pytest
import torch

from cases import Modulo
from nets import build, inputs
from relupath import (
    Beam,
    BestFirst,
    Exact,
    Greedy,
    Mass,
    Path,
    Step,
    channels,
    find_paths,
    freeze,
    linear_model,
    neurons,
)
from relupath.errors import PathError
from test_exact import BRANCHES
from test_exact import FIRE as FIRES

FIRE = FIRES[0]
UNITS = {"neurons": neurons, "channels": channels, "scattered": Modulo(3)}


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("case", ["squeeze over squeezes", "resnet over blocks", "pieces"])
def test_every_search_says_how_far_greedy_is_from_the_best(case, units):
    name, follow = case.split()[0], BRANCHES[case]
    compared = 0
    for seed in range(4):
        frozen = freeze(build(name, seed), inputs(name, seed))
        layers = [layer for layer in frozen.layers if layer.name in follow][-3:]
        over = {"layers": layers, "partition": UNITS[units]}
        found = {search: find_paths(frozen, 2, search, **over) for search in (Greedy(), Beam(3), Exact(2), Mass())}
        gaps = {search: result.gap() for search, result in found.items()}
        for gap in gaps.values():
            torch.testing.assert_close(gap.exact, gaps[Exact(2)].found, equal_nan=True)
            torch.testing.assert_close(gap.greedy, gaps[Greedy()].found, equal_nan=True)
            assert not (gap.share > 1 + 1e-9).any()
        for search, result in found.items():
            for b, paths in enumerate(result.ranked):
                values = [v for path, v in zip(paths, result.values[b], strict=True) if result.problem.completes(path)]
                assert float(gaps[search].found[b]) == pytest.approx(max(values, default=math.nan), nan_ok=True)
        paths, greedy = found[Greedy()].paths, gaps[Greedy()].greedy
        value, there = linear_model(frozen, 2, paths).value, greedy.isfinite()
        torch.testing.assert_close(greedy[there], value[there])
        compared += int(gaps[Mass()].share.isfinite().sum())
    assert compared


@pytest.mark.parametrize("units", UNITS)
def test_only_complete_one_way_paths_are_compared(units):
    frozen = freeze(build("squeeze", 5), inputs("squeeze", 5))
    follow, partition = BRANCHES["squeeze over squeezes"], UNITS[units]
    layers = [name for name in follow if name != "output"]
    problem = find_paths(frozen, 2, Greedy(), layers=layers, partition=partition).problem
    expand, squeeze, lowest = follow["output"][1], *(follow[name][0] for name in (FIRE, follow[FIRE][0]))

    def unit(layer, index=1):
        return layer, partition.units(index, frozen.layer(layer).shape)

    def pairs(*steps):
        return Path.of([(layer, list(neurons_of)) for layer, neurons_of in steps])

    whole = unit(lowest), unit(squeeze), unit(expand)
    assert problem.completes(pairs(*whole))
    assert problem.completes(pairs(unit(lowest, 0), unit(squeeze), unit(FIRE)))
    assert not problem.completes(Path())
    for left_out in range(3):
        assert not problem.completes(pairs(*(step for i, step in enumerate(whole) if i != left_out)))
        two = [(step[0], step[1] + unit(step[0], 0)[1]) if i == left_out else step for i, step in enumerate(whole)]
        assert not problem.completes(pairs(*two))
        rest = [Step(*step, but=i == left_out) for i, step in enumerate(whole)]
        assert not problem.completes(Path(tuple(rest)))
    assert not problem.completes(Path((Step(lowest, (), but=True), *(Step(*step) for step in whole[1:]))))
    beside = Step.over([Step(*unit(expand)), Step(*unit(FIRE))])
    assert not problem.completes(Path((Step(*whole[0]), Step(*whole[1]), beside)))


def test_where_there_is_nothing_to_compare():
    model = build("mlp")
    with torch.no_grad():
        model[2].weight.abs_()
        model[4].weight.abs_().neg_()
    gap = find_paths(freeze(model, inputs("mlp")), 0, Beam(2)).gap()
    for number in (gap.greedy, gap.exact, gap.found, gap.share):
        assert number.isnan().all()
    frozen = freeze(build("resnet"), inputs("resnet"))
    found = find_paths(frozen, 0, BestFirst(3), layers=["relu", "layer1.0.relu#2"])
    with pytest.raises(PathError, match="27 products, more than 26"):
        found.gap(Exact(products=26))
    with pytest.raises(PathError, match="take a result of find_paths"):
        Greedy().search(found.problem).gap()
