"""The searches beyond Algorithm 1: against twins written from their definitions, and the laws of the whole family."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from asserts import assert_same_model
from cases import SEARCHES
from nets import build, inputs, mlp, randomise
from relupath import (
    Beam,
    BestFirst,
    Greedy,
    Mass,
    Path,
    Selective,
    channels,
    find_paths,
    freeze,
    heads,
    labels,
    linear_model,
    logit,
    neurons,
)
from relupath.errors import PathError

# --- twins, on chains: explicit Jacobians, masks multiplied in ---


def jacobians(frozen):
    """Of the first sample: d a_i / d a_(i-1) from the input up to the output, each a matrix; and the layers' values."""
    places = [*frozen.inputs, *frozen.layers, frozen.top]
    found = []
    for above, below in zip(places[1:], places, strict=False):
        rows = []
        for i in range(above.output[0].numel()):
            cotangent = torch.zeros_like(above.output)
            cotangent[0].view(-1)[i] = 1
            rows.append(frozen.vjp({above: cotangent}, [below])[0][0].flatten())
        found.append(torch.stack(rows))
    return found, [place.output[0].flatten() for place in places]


def selective_twin(frozen, target, width, depth, classes):
    """Contributions of all compared classes through the masks above, soft-max, more than 1 / K, at most ``width``."""
    matrices, values = jacobians(frozen)
    logits = values[-1]
    others = [c for c in logits.argsort(descending=True).tolist() if c != target][: classes - 1]
    v = torch.eye(len(logits), dtype=logits.dtype)[[target, *others]]
    chosen = []
    for i in range(len(frozen.layers), 0, -1)[:depth]:
        v = v @ matrices[i]
        c = v * values[i]
        share = c.exp()[0] / c.exp().sum(0)
        share[(c == 0).all(0)] = 0
        order = sorted(range(len(share)), key=lambda u: -share[u])
        kept = [u for u in order if share[u] > 1 / len(v)][:width] or order[:1]
        mask = torch.zeros_like(share)
        mask[kept] = 1
        v = v * mask
        chosen.append(set(kept))
    return chosen, float((v[0] * values[i]).sum())


def mass_twin(frozen, target, share, depth):
    matrices, values = jacobians(frozen)
    v = torch.eye(len(values[-1]), dtype=values[-1].dtype)[target]
    chosen = []
    for i in range(len(frozen.layers), 0, -1)[:depth]:
        pulled = v @ matrices[i]
        c = pulled * values[i]
        positive = sorted(((float(x), u) for u, x in enumerate(c) if x > 0), reverse=True)
        if not positive:
            break
        total, kept = 0.0, []
        for x, u in positive:
            kept.append(u)
            total += x
            if total >= share * sum(p for p, _ in positive) * (1 - 1e-12):
                break
        v = torch.zeros_like(pulled)
        v[kept] = pulled[kept]
        chosen.append(set(kept))
    return chosen


def flat_units(frozen, path):
    """The chosen neurons of each step from the top down, as positions in the flattened layer."""
    found = []
    for step in reversed(path.steps):
        shape = frozen.layer(step.layer).shape
        found.append({int(torch.arange(torch.Size(shape).numel()).view(shape)[unit]) for unit in step.units})
    return found


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["mlp", "vgg"])
@pytest.mark.parametrize(("width", "depth", "classes"), [(3, None, 4), (1, 2, 2), (50, None, 3), (2, 1, 4)])
def test_selective_is_its_twin(name, seed, width, depth, classes):
    frozen = freeze(build(name, seed), inputs(name, seed, batch=1))
    search = Selective(width, depth, classes)
    for c in range(3):
        found = find_paths(frozen, c, search)
        sets, value = selective_twin(frozen, c, width, depth, classes)
        assert flat_units(frozen, found.paths[0]) == sets
        assert found.values[0][0] == pytest.approx(value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["mlp", "vgg"])
@pytest.mark.parametrize(("share", "depth"), [(0.3, None), (0.9, None), (1.0, 2)])
def test_mass_is_its_twin(name, seed, share, depth):
    frozen = freeze(build(name, seed), inputs(name, seed, batch=1))
    for c in range(3):
        found = find_paths(frozen, c, Mass(share, depth))
        assert flat_units(frozen, found.paths[0]) == mass_twin(frozen, c, share, depth)


def beam_twin(frozen, target, k):
    """Every prefix with every unit of the next layer, the k best positive values; prefixes as (value, units)."""
    matrices, values = jacobians(frozen)
    beam = [(float(values[-1][target]), (), torch.eye(len(values[-1]), dtype=values[-1].dtype)[target])]
    for i in range(len(frozen.layers), 0, -1):
        grown = []
        for _, units, v in beam:
            pulled = v @ matrices[i]
            for u in range(len(pulled)):
                here = torch.zeros_like(pulled)
                here[u] = pulled[u]
                grown.append((float(pulled[u] * values[i][u]), (*units, u), here))
        best = sorted((g for g in grown if g[0] > 0), key=lambda g: -g[0])[:k]
        if not best:
            break
        beam = best
    return [(value, units) for value, units, _ in beam]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["mlp", "vgg"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_beam_is_its_twin(name, seed, k):
    frozen = freeze(build(name, seed), inputs(name, seed, batch=1))
    for c in range(3):
        found, twin = find_paths(frozen, c, Beam(k)), beam_twin(frozen, c, k)
        assert [tuple(u for (u,) in flat_units(frozen, path)) for path in found.ranked[0]] == [u for _, u in twin]
        assert list(found.values[0]) == pytest.approx([value for value, _ in twin], rel=1e-9)


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet", "squeeze"])
def test_a_beam_of_one_is_algorithm_1(name):
    frozen = freeze(build(name, 4), inputs(name, 4, batch=3))
    for c in range(4):
        greedy, beam = find_paths(frozen, c, Greedy()), find_paths(frozen, c, Beam(1))
        assert [path.steps for path in greedy.paths] == [path.steps for path in beam.paths]


def best_first_twin(frozen, target, budget):
    """The tree, grown literally: all leaves in one list."""
    matrices, values = jacobians(frozen)
    top = len(frozen.layers)
    leaves = [(float(values[-1][target]), (), torch.eye(len(values[-1]), dtype=values[-1].dtype)[target])]
    for _ in range(budget):
        open_ = [leaf for leaf in leaves if len(leaf[1]) < top]
        if not open_:
            break
        best = max(open_, key=lambda leaf: abs(leaf[0]))
        i = top - len(best[1])
        pulled = best[2] @ matrices[i]
        leaves.remove(best)
        for u in (pulled * values[i]).nonzero()[:, 0].tolist():
            here = torch.zeros_like(pulled)
            here[u] = pulled[u]
            leaves.append((float(pulled[u] * values[i][u]), (*best[1], u), here))
    best = sorted(leaves, key=lambda leaf: -abs(leaf[0]))[:budget]
    return {(round(value, 9), units) for value, units, _ in best}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("budget", [1, 4, 20])
def test_best_first_is_its_twin(seed, budget):
    frozen = freeze(build("mlp", seed), inputs("mlp", seed, batch=1))
    for c in range(3):
        found = find_paths(frozen, c, BestFirst(budget))
        got = {
            (round(value, 9), tuple(u for (u,) in flat_units(frozen, path)))
            for value, path in zip(found.values[0], found.ranked[0], strict=True)
        }
        assert got == best_first_twin(frozen, c, budget)


def test_best_first_without_end_splits_the_whole_target():
    """With all budget the leaves are all complete paths and the ends of dead ones: they hold all but the biases."""
    frozen = freeze(build("mlp", 1), inputs("mlp", 1, batch=1))
    found = find_paths(frozen, 0, BestFirst(100_000))
    through = linear_model(frozen, 0, Path.of([(layer.name, (None,)) for layer in frozen.layers]))
    assert sum(found.values[0]) == pytest.approx(float(through.value[0]), rel=1e-9)
    assert float(found.held[0]) == pytest.approx(float(through.value[0] / frozen.output[0, 0]), rel=1e-9)


# --- laws of the family ---


def test_the_positive_mass_of_a_share_is_held_by_the_fewest_units():
    frozen = freeze(build("mlp", 9), inputs("mlp", 9, batch=1))
    layer = frozen.layers[-1]
    (pulled,) = frozen.vjp({frozen.top: frozen.functional(1).gradient}, [layer])
    positive = (pulled * layer.output)[0].clamp(min=0).sort(descending=True).values
    count = len(find_paths(frozen, 1, Mass(0.7, depth=1)).paths[0].steps[0].units)
    assert float(positive[:count].sum()) >= 0.7 * float(positive.sum()) > float(positive[: count - 1].sum())


def test_a_partition_may_be_chosen_for_each_layer():
    frozen = freeze(build("vgg", 1), inputs("vgg", 1, batch=2))
    first, last = frozen.layers[0], frozen.layers[-1]
    shape = frozen.layers[1].shape
    regions = labels((torch.arange(shape[1])[:, None] >= 2).long().expand(1, *shape[1:]), name="halves")
    found = find_paths(frozen, 0, Greedy(), partition={first.name: channels, 1: regions, last: heads(2)})
    steps = {step.layer: step.units for step in found.paths[0].steps}
    assert steps[first.name][0][1:] == (None, None)
    assert {unit[0] for unit in steps[frozen.layers[1].name]} == {None}
    assert len(steps[last.name]) == last.shape[0] // 2
    assert all(None not in unit for unit in steps[frozen.layers[2].name])
    assert_same_model(found.model, linear_model(frozen, 0, found.paths), float(frozen.output.abs().max()))


@pytest.mark.parametrize("search", SEARCHES)
def test_where_nothing_speaks_for_the_target_the_search_says_so(search):
    model = mlp(0).eval()
    with torch.no_grad():
        model[4].weight.fill_(-1.0)
    frozen = freeze(model, inputs("mlp", 0, batch=1))
    found = find_paths(frozen, 0, SEARCHES[search])
    one_of_many = search.startswith(("selective", "best", "exact"))  # by share, by size, and by the whole path
    assert (len(found.paths[0]) == 0) != one_of_many
    assert one_of_many or "positive" in found.stopped[0] or "no unit qualifies at" in found.stopped[0]


@pytest.mark.parametrize("search", SEARCHES)
def test_a_dead_network_has_an_empty_path(search):
    model = mlp(0).eval()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.fill_(-1.0)
    found = find_paths(freeze(model, inputs("mlp", 0, batch=2)), 1, SEARCHES[search])
    assert [len(path) for path in found.paths] == [0, 0]
    assert float(found.model.value[0]) == pytest.approx(float(model[4].bias[1].detach()))


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_runs_on_gated_networks(search):
    model = randomise(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 4)), 3)
    frozen = freeze(model, inputs("mlp", 3, batch=2))
    found = find_paths(frozen, logit(1), SEARCHES[search])
    assert_same_model(found.model, linear_model(frozen, logit(1), found.paths), float(frozen.output.abs().max()))


@pytest.mark.parametrize(("search", "said"), [
    (Selective(width=0), "width must be at least 1; got 0"),
    (Selective(depth=0), "depth must be at least 1; got 0"),
    (Selective(classes=1), "classes must be at least 2; got 1"),
    (Mass(0.0), "share must be above 0 and at most 1; got 0.0"),
    (Mass(1.5), "share must be above 0"),
    (Mass(float("nan")), "share must be above 0"),
    (Mass(depth=-1), "depth must be at least 1"),
    (Beam(0), "k must be at least 1; got 0"),
    (Beam(depth=0), "depth must be at least 1"),
    (BestFirst(0), "budget must be at least 1; got 0"),
    (BestFirst(depth=0), "depth must be at least 1"),
])  # fmt: skip
def test_a_search_out_of_range_is_refused(search, said):
    with pytest.raises(PathError, match=said):
        find_paths(freeze(build("mlp"), inputs("mlp")), 0, search)


def test_classes_cannot_be_compared_where_there_are_none():
    frozen = freeze(build("mlp"), inputs("mlp"))
    with pytest.raises(PathError, match="no class to compare with: the target adds every logit"):
        find_paths(frozen, lambda y: y.sum(1), Selective())
    maps = freeze(
        randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), 0), torch.ones(1, 3, 4, 4).double()
    )
    with pytest.raises(PathError, match=r"in an output \(samples, classes\); got shape \[1, 2, 2, 2\]"):
        find_paths(maps, logit(0, where=(0, 0)), Selective())


@pytest.mark.parametrize("search", [Greedy, "greedy", None])
def test_what_is_no_strategy_is_refused(search):
    with pytest.raises(PathError, match=r"a search is a strategy such as Greedy\(\)"):
        inspect.unwrap(find_paths)(freeze(build("mlp"), inputs("mlp")), 0, search)  # without the tests' type checker


def test_neurons_are_the_default():
    frozen = freeze(build("vgg"), inputs("vgg", batch=1))
    assert find_paths(frozen, 0, Beam(2)).ranked == find_paths(frozen, 0, Beam(2), partition=neurons).ranked
