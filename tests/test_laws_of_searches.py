"""One body of laws over all that is asked of a frozen network: searches, trees, biases, linear models, path mass."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from answers import (
    OVER_LAYERS,
    OVER_PARTITIONS,
    OVER_PATHS,
    VERBS,
    answers,
    one_axis_at_a_time,
)
from asserts import (
    assert_adds_up,
    assert_bias_adds_up,
    assert_close,
    assert_mass_adds_up,
    assert_nodes_are_their_paths,
    assert_same_answer,
    assert_same_model,
    assert_untouched,
)
from cases import NETWORKS, PARTITIONS, SEARCHES, TARGETS, frozen_net, network, units_of
from nets import CHAINS, build, inputs
from relupath import (
    Beam,
    Exact,
    Mass,
    Path,
    Selective,
    contrast,
    decompose,
    find_paths,
    freeze,
    heads,
    labels,
    linear_model,
    logit,
    path_mass,
)
from relupath.errors import PathError, TargetError, UnknownLayerError
from renamed import LAYERED, SYMMETRIES, same_function

SETTING = ("verb", "name", "partition", "target")


def options(verb, partition):
    return {"partition": PARTITIONS[partition]} if verb in OVER_PARTITIONS else {}


def size_of(frozen):
    return float(frozen.output.abs().max())


# --- completeness ---


@pytest.mark.parametrize(SETTING, one_axis_at_a_time(SEARCHES))
def test_every_path_has_the_value_that_is_said(verb, name, partition, target):
    """And the first one's model is a by-product: batches of samples, branches and skips included."""
    frozen, target = frozen_net(name), TARGETS[target](2)
    found = VERBS[verb](frozen, target, **options(verb, partition))
    size, whole = size_of(frozen), frozen.functional(target).value
    assert_same_model(found.model, linear_model(frozen, target, found.paths), size)
    assert found.model.labels == tuple(path.target for path in found.paths)
    assert torch.equal(found.value, whole)
    for b, (paths, values) in enumerate(zip(found.ranked, found.values, strict=True)):
        assert list(values) == sorted(values, reverse=True)
        assert len(set(paths)) == len(paths)
        for path, value in zip(paths[:4], values, strict=False):
            assert_close(linear_model(frozen, target, path).value[b], torch.tensor(value, dtype=torch.float64), size)
    held = torch.tensor([sum(values) for values in found.values], dtype=torch.float64)
    assert_close(found.held * whole, held, size)


@pytest.mark.parametrize(SETTING, one_axis_at_a_time(["decompose"]))
def test_the_leaves_sum_to_the_whole_at_every_depth(verb, name, partition, target):
    frozen, target = frozen_net(name), TARGETS[target](2)
    for depth in (0, 1, 2):
        tree = decompose(frozen, target, width=2, sample=1, **options(verb, partition)).expand(depth)
        assert_adds_up(tree)
        assert tree.value == pytest.approx(float(frozen.functional(target).value[1]), rel=1e-12)
    assert_nodes_are_their_paths(tree, frozen, target, 1)


@pytest.mark.parametrize(SETTING, one_axis_at_a_time(["bias sources"]))
def test_every_view_of_the_bias_adds_up_to_it(verb, name, partition, target):
    frozen = frozen_net(name)
    assert_bias_adds_up(frozen, TARGETS[target](2))


@pytest.mark.parametrize(SETTING, one_axis_at_a_time(["path mass"]))
def test_the_mass_through_the_units_of_a_level_is_all_of_it(verb, name, partition, target):
    frozen = frozen_net(name)
    mass = path_mass(frozen, TARGETS[target](2))
    assert_mass_adds_up(mass, frozen, every_level=name in CHAINS)
    assert (mass.negative < 0).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_much_is_active_where_the_laws_are_tried(name):
    for target in (None, 0, 1, 2):
        mass = path_mass(frozen_net(name), target)
        assert (mass.count_log10 > 1).all()
        assert (mass.mass > 0).all()


# --- units ---


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("verb", [verb for verb in OVER_PARTITIONS if verb != "decompose"])
def test_no_search_knows_the_granularity(verb, partition):
    """On every step there are whole units."""
    frozen = frozen_net("vgg")
    found = VERBS[verb](frozen, contrast(0, 1), partition=PARTITIONS[partition])
    for step in (step for paths in found.ranked for path in paths for step in path.steps):
        chosen = set(step.units)
        units = [set(unit) for unit in units_of(frozen, step.layer, PARTITIONS[partition])]
        assert chosen == set().union(*(unit for unit in units if unit & chosen))
        assert chosen in units or verb.startswith(("selective", "mass")), "this search chooses one unit a layer"


# --- what does not matter ---


@pytest.mark.parametrize(SETTING, one_axis_at_a_time(VERBS))
def test_a_batch_gives_the_same_as_one_by_one(verb, name, partition, target):
    frozen, how = frozen_net(name), options(verb, partition)
    for b, together in enumerate(answers(verb, frozen, TARGETS[target](2), **how)):
        each = {"a logit a sample": logit(b), "contrast a sample": contrast(b % 2, 3)}.get(target, TARGETS[target](1))
        (alone,) = answers(verb, frozen_net(name, b), each, **how)
        assert_same_answer(together, alone, size_of(frozen))


@pytest.mark.parametrize("name", [*SYMMETRIES, *LAYERED])
@pytest.mark.parametrize("verb", VERBS)
def test_order_and_scale_of_the_units_do_not_matter(verb, name):
    """h -> s h with h' -> h' / s is the same ReLU network: the same answers, under the new names of the units."""
    frozen, other, names = same_function(name)
    for target in (0, 1):
        pairs = zip(answers(verb, frozen, target), answers(verb, other, target, names), strict=True)
        for found, again in pairs:
            if verb in ("greedy", "exact"):  # their importance counts from the unit above, whose scale is another
                found, again = ({k: v for k, v in a.items() if "importance" not in k} for a in (found, again))
            assert_same_answer(again, found, size_of(frozen))


@pytest.mark.parametrize("verb", VERBS)
def test_asking_again_gives_the_same_and_changes_nothing(verb):
    model, x = network("resnet")
    frozen = freeze(model, x)
    outputs = [layer.output.clone() for layer in frozen.layers]
    with assert_untouched(model):
        first = answers(verb, frozen, None)
        with torch.no_grad():
            second = answers(verb, frozen, None)
        with torch.inference_mode():
            third = answers(verb, frozen, None)
        fourth = answers(verb, freeze(model, x), None)
    for again in (second, third, fourth):
        for one, same in zip(first, again, strict=True):
            assert list(one) == list(same)
            assert all(torch.equal(same[key], value) for key, value in one.items())
    assert all(torch.equal(layer.output, kept) for layer, kept in zip(frozen.layers, outputs, strict=True))


@pytest.mark.parametrize("verb", VERBS)
def test_the_memory_format_does_not_matter(verb):
    model, x = network("squeeze")
    plain = answers(verb, frozen_net("squeeze"), None)
    last = freeze(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last))
    maps = [layer.output for layer in last.layers if len(layer.shape) == 3 and min(layer.shape) > 1]
    assert not any(a.is_contiguous() for a in maps)
    for one, same in zip(plain, answers(verb, last, None), strict=True):
        assert_same_answer(same, one, size_of(last))


# --- more is more ---


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "pieces"])
@pytest.mark.parametrize("searches", [
    [Mass(share, depth=1) for share in (0.2, 0.5, 0.8, 1.0)],
    [Selective(width, depth=1) for width in (1, 2, 4, None)],
], ids=["mass", "selective"])  # fmt: skip
def test_a_wider_set_holds_the_narrower_one(name, searches):
    """Not where the top layer speaks for all classes alike."""
    frozen = frozen_net(name)
    for b in range(2):
        sets = [path_units(find_paths(frozen, 2, search).paths[b]) for search in searches]
        assert all(fewer <= more for fewer, more in itertools.pairwise(sets))
        assert len(sets[0]) < len(sets[-1])


def path_units(path):
    return {(name, unit) for step in path.steps for name, part in step.parts.items() for unit in part.units}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("search", [lambda k: Beam(k, depth=1), Exact], ids=["beam", "exact"])
def test_more_paths_begin_with_the_fewer_and_hold_more(name, search):
    frozen = frozen_net(name)
    found = [find_paths(frozen, None, search(k)) for k in (1, 2, 3, 5)]
    for fewer, more in itertools.pairwise(found):
        for b in range(2):
            assert more.ranked[b][: len(fewer.ranked[b])] == fewer.ranked[b]
        assert ((more.held - fewer.held) * frozen.output.amax(1) >= 0).all()
    assert any(len(more) > len(fewer) for fewer, more in zip(found[0].ranked, found[-1].ranked, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wider_tree_holds_the_nodes_of_the_narrower_one(name):
    frozen = frozen_net(name)
    trees = [decompose(frozen, None, width=width).children for width in (1, 2, 4)]
    units = [[child.path for child in tree if child.kind == "path"] for tree in trees]
    assert all(more[: len(fewer)] == fewer for fewer, more in itertools.pairwise(units))
    assert len(units[0]) < len(units[-1])
    rests = [sum(abs(child.value) for child in tree if child.kind == "path") for tree in trees]
    assert rests == sorted(rests)


# --- what makes no sense is refused ---

NO_TARGET = {
    "a class out of range": (lambda: 99, "class 99 is out of range"),
    "a soft-max": (lambda: lambda y: y.softmax(1)[:, 0], "not linear"),
    "a square": (lambda: lambda y: y[:, 0] ** 2, "not linear"),
    "a constant": (lambda: lambda y: y[:, 0] + 1, "not linear"),
    "classes of another batch": (lambda: logit([0, 1, 2]), "3 classes for 2 samples"),
}
NO_LAYERS = {
    "none": ([], PathError, "no hidden layer"),
    "one that is not there": (["nothing"], UnknownLayerError, "no hidden layer 'nothing'"),
    "one that is no activation": (["features.2"], UnknownLayerError, r"no hidden layer 'features\.2'"),
    "one named twice": ([0, 0], PathError, "a layer is named twice"),
    "one named in two ways": ([0, "features.1"], PathError, "a layer is named twice"),
}
NO_PARTITION = {
    "labels of another size": (labels(torch.zeros(3, 3, dtype=torch.long)), PathError, "has labels of shape"),
    "blocks that do not fit": (heads(5), PathError, "cannot be cut into 5 blocks"),
    "of a layer that is not there": ({"nothing": heads(1)}, UnknownLayerError, "no hidden layer 'nothing'"),
    "one layer's is of another size": ({1: labels(torch.zeros(7, dtype=torch.long))}, PathError, "has labels of shape"),
}
NO_PATH = {
    "a unit named twice": ([("features.1", [(0, 0, 0)] * 2)], PathError, "a unit of layer 'features.1' is named twice"),
    "units that cross": ([("features.1", [(0, 1, None), (0, None, 1)])], PathError, "overlap"),
    "a unit within another": ([("features.1", [(0, 1, 1), (0, None, None)])], PathError, "overlap"),
    "a unit within the whole layer": ([("features.1", [(None,) * 3, (0, 0, 0)])], PathError, "overlap"),
    "a channel that is not there": (
        [("features.1", (3, 0, 0))], PathError,
        r"unit \[3, 0, 0\] is not in layer 'features.1', whose shape is \[3, 6, 6\]",
    ),
    "a row that is not there": ([("features.1", (0, 6, 0))], PathError, "is not in layer"),
    "a column that is not there": ([("features.1", (0, 0, 6))], PathError, "is not in layer"),
    "a channel from the end": ([("features.1", (-1, 0, 0))], PathError, "is not in layer"),
    "too few coordinates": ([("features.1", (0,))], PathError, "one coordinate an axis"),
    "too many coordinates": ([("classifier.2", (0, 0))], PathError, "one coordinate an axis"),
    "no unit": ([("features.1", [])], PathError, "no unit is chosen"),
    "layers out of order": ([("features.3", (0, 0, 0)), ("features.1", (0, 0, 0))], PathError, "go from the input up"),
    "a layer out of order": (
        [("features.1", (0, 0, 0)), ("classifier.2", (0,)), ("features.3", (0, 0, 0))], PathError, "from the input up",
    ),
    "a layer twice": ([("features.1", (0, 0, 0)), ("features.1", (1, 0, 0))], PathError, "one step a layer"),
    **{f"the layer {name!r}": ([(name, (0, 0, 0))], UnknownLayerError, f"no hidden layer {name!r}")
       for name in ("features.2", "x", "output", "features.1#2", "")},
}  # fmt: skip


@pytest.mark.parametrize("case", NO_TARGET)
@pytest.mark.parametrize("verb", VERBS)
def test_a_target_that_makes_no_sense_is_refused(verb, case):
    target, said = NO_TARGET[case]
    with pytest.raises(TargetError, match=said):
        VERBS[verb](frozen_net("vgg"), target())


@pytest.mark.parametrize("case", NO_LAYERS)
@pytest.mark.parametrize("verb", OVER_LAYERS)
def test_layers_that_make_no_sense_are_refused(verb, case):
    layers, error, said = NO_LAYERS[case]
    with pytest.raises(error, match=said):
        VERBS[verb](frozen_net("vgg"), 0, layers=layers)


@pytest.mark.parametrize("verb", OVER_LAYERS)
def test_a_network_without_hidden_layers_is_refused(verb):
    with pytest.raises(PathError, match="no hidden layer"):
        VERBS[verb](freeze(build("linear"), inputs("linear")), 0)


@pytest.mark.parametrize("case", NO_PARTITION)
@pytest.mark.parametrize("verb", [*OVER_PARTITIONS, "exact"])
def test_a_partition_that_makes_no_sense_is_refused(verb, case):
    partition, error, said = NO_PARTITION[case]
    with pytest.raises(error, match=said):
        VERBS[verb](frozen_net("vgg"), 0, partition=partition)


@pytest.mark.parametrize("case", NO_PATH)
@pytest.mark.parametrize("verb", OVER_PATHS)
def test_a_path_that_makes_no_sense_is_refused(verb, case):
    pairs, error, said = NO_PATH[case]
    with pytest.raises(error, match=said):
        VERBS[verb](frozen_net("vgg"), 0, Path.of(pairs))
    with pytest.raises(error, match=said):
        linear_model(frozen_net("vgg"), 0, [Path(), Path.of(pairs)])


def test_a_strategy_is_a_frozen_value():
    for search in SEARCHES.values():
        assert search == dataclasses.replace(search)
        assert hash(search) == hash(dataclasses.replace(search))
        assert repr(search).startswith(type(search).__name__)
