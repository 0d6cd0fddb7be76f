"""Paths are values: equal, hashable, printable, ordered, kept as JSON; what is no path is refused."""

from __future__ import annotations

import inspect
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from asserts import assert_children_sum_to_parent, assert_same_model, assert_zero, typechecks_off
from cases import PARTITIONS
from nets import Lambda, build, example, inputs, randomise
from relupath import (
    Beam,
    Exact,
    Greedy,
    Mass,
    Path,
    PathModel,
    Selective,
    Step,
    ablate,
    bias_sources,
    channels,
    decompose,
    find_paths,
    freeze,
    heads,
    labels,
    linear_model,
    locations,
    logit,
    neurons,
    path_mass,
)
from relupath._partitions import Labels
from relupath.errors import InputError, PathError, RelupathError

LONG = Path.of([("features.3", (17, 4, 9)), ("features.22", [(1, 2, 3), (0, 5, 5)]), ("fc", (7,))], target="logit 936")

coordinates = st.one_of(st.none(), st.integers(0, 3))
units = st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=3, unique=True)
names = st.sampled_from(["features.3", "layer4.1.relu#2", "block:relu", "", "é \"'\\ <- [0]", "x"])
pairs = st.lists(st.tuples(names, units), max_size=4, unique_by=lambda pair: pair[0])


def test_a_path_prints_from_the_input_to_the_target():
    path = Path(LONG.steps, Step("x", ((2, 113, 80),)), LONG.target)
    assert str(path) == (
        "x[2,113,80] <- features.3[c17,y4,x9] <- features.22[c0,y5,x5][c1,y2,x3] <- fc[7] <- logit 936"
    )


def test_units_print_by_what_they_are():
    def text(unit):
        return str(Step("l", (unit,)))

    assert text((17, None, None)) == "l[c17]"
    assert text((None, 4, 9)) == "l[y4,x9]"
    assert text((None, 4, None)) == "l[y4]"
    assert text((3,)) == "l[3]"
    assert text((None, None, None)) == "l[all]"
    assert text((1, 2, 3, 4)) == "l[c1,z2,y3,x4]"
    assert text((2, None)) == "l[2,:]"
    assert str(Path()) == "output"
    assert str(Path(target="logit 3")) == "logit 3"


def test_search_prints_the_input_element():
    from relupath import Greedy, find_paths

    frozen = freeze(build("vgg", 1), inputs("vgg", 1))
    found = find_paths(frozen, 0, Greedy())
    for path in found.paths:
        assert str(path).endswith("<- logit 0")
        assert str(path).startswith("x[") == (path.input is not None)


@given(pairs, names)
def test_json_round_trip(pairs, target):
    path = Path.of(pairs, target=target)
    again = Path.from_json(path.to_json())
    assert again == path
    assert hash(again) == hash(path)
    assert str(again) == str(path)
    assert again.to_dict() == path.to_dict() == json.loads(path.to_json())
    assert pickle.loads(pickle.dumps(path)) == path


def test_json_keeps_the_input_element():
    path = Path(LONG.steps, Step("x", ((2, 113, 80),)), "logit 936")
    assert Path.from_json(path.to_json()) == path
    assert Path.from_json(path.to_json()) != LONG


@given(pairs, st.data())
def test_prefixes_are_thinner_and_nested(pairs, data):
    path = Path.of(pairs, target="logit 1")
    count = data.draw(st.integers(0, len(path)))
    top = path.top(count)
    assert len(top) == count
    assert top.layers == path.layers[len(path) - count :]
    assert top.target == path.target
    assert path.refines(top)
    assert path.refines(path)
    assert count == len(path) or not top.refines(path)
    if count:
        assert top.top(count - 1) == path.top(count - 1)


def test_prefix_lengths_out_of_range_are_refused():
    for count in (-1, 4):
        with pytest.raises(PathError, match=f"top {count} of a path of 3 layers"):
            LONG.top(count)


def test_order_of_units_does_not_matter_and_layers_do():
    a, b = Path.of([("l", [(1,), (0,)])]), Path.of([("l", [(0,), (1,)])])
    assert a == b
    assert hash(a) == hash(b)
    assert len({a, b}) == 1
    assert Path.of([("k", (0,)), ("l", (1,))]) != Path.of([("l", (1,)), ("k", (0,))])
    assert Path.of([("l", (0,))], target="logit 1") != Path.of([("l", (0,))], target="logit 2")


def test_lists_are_as_good_as_tuples():
    assert Path.of([("l", [(0, 1), (2, 3)])]) == Path((Step("l", ((2, 3), (0, 1))),))
    with pytest.raises(AttributeError):
        LONG.target = "other"


def test_a_neuron_refines_its_channel_and_not_the_other_way_round():
    neuron, channel = Path.of([("l", (3, 1, 2))]), Path.of([("l", (3, None, None))])
    assert neuron.refines(channel)
    assert not channel.refines(neuron)
    assert not Path.of([("l", (4, 1, 2))]).refines(channel)
    assert Path.of([("k", (0,)), ("l", (3, 1, 2))]).refines(channel)
    assert not Path.of([("k", (0,))]).refines(channel)
    assert not Path.of([("l", [(3, 0, 0), (4, 0, 0)])]).refines(channel)
    assert Path.of([("l", [(3, 0, 0), (4, 0, 0)])]).refines(Path.of([("l", [(3, None, None), (4, None, None)])]))
    assert LONG.refines(Path())
    assert not Path().refines(LONG)
    assert not Path.of([("l", (3,))]).refines(channel)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Path.of([("l", [(1,), (1,)])]), "a unit of layer 'l' is named twice"),
        (lambda: Path.of([("l", [])]), "no unit is chosen on layer 'l'"),
        (lambda: Step("l", ()), "no unit is chosen on layer 'l'"),
        (lambda: Path.of([("l", (1,)), ("l", (2,))]), "one step a layer"),
        (lambda: Path((Step("l", ((1,),)), Step("k", ((0,),)), Step("l", ((2,),)))), "one step a layer"),
    ],
)
def test_what_is_no_path_is_refused(make, sentence):
    with pytest.raises(PathError, match=sentence):
        make()


GOOD = LONG.to_dict()


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "3", '"relupath.path/1"', "{}", json.dumps({**GOOD, "format": "relupath.path/2"}),
        *(json.dumps({k: v for k, v in GOOD.items() if k != key}) for key in GOOD),
        *(json.dumps({**GOOD, "steps": steps}) for steps in (
            None, 3, "ab", [3], [{}], [{"layer": "l"}], [{"layer": 3, "units": [[0]]}], [{"layer": "l", "units": [0]}],
            [{"layer": "l", "units": [["a"]]}], [{"layer": "l", "units": [[0.5]]}], [{"layer": "l", "units": []}],
            [{"layer": "l", "units": [[0], [0]]}], [{"layer": "l", "units": None}],
            [{"layer": "l", "units": [[0]]}, {"layer": "l", "units": [[1]]}],
        )),
        json.dumps({**GOOD, "input": [1, 2]}),
    ],
)  # fmt: skip
def test_what_is_no_json_of_a_path_is_refused(text):
    with pytest.raises(PathError):
        Path.from_json(text)


# --- a path must fit the network ---


@pytest.fixture(scope="module")
def frozen():
    return freeze(build("vgg"), inputs("vgg"))


def test_one_path_or_one_a_sample(frozen):
    path = Path.of([("features.1", (0, None, None))])
    assert_same_model(linear_model(frozen, 0, path), linear_model(frozen, 0, [path, path]))
    assert_same_model(linear_model(frozen, 0, Path()), linear_model(frozen, 0))
    for count in (1, 3):
        with pytest.raises(PathError, match=f"{count} paths for 2 samples"):
            linear_model(frozen, 0, [path] * count)


def test_the_input_element_restricts_nothing(frozen):
    path = Path.of([("features.1", (0, None, None))])
    with_end = Path(path.steps, Step("x", ((0, 0, 0),)), "logit 0")
    assert_same_model(linear_model(frozen, 0, with_end), linear_model(frozen, 0, path))


def test_a_path_model_is_a_function_of_inputs_of_that_shape(frozen):
    model = linear_model(frozen, 0)
    assert isinstance(model, PathModel)
    with pytest.raises(InputError, match="takes inputs of shape"):
        model(torch.zeros(2, 2, 6, 5).double())
    with pytest.raises(InputError, match="takes inputs of shape"):
        model(torch.zeros(1, 2, 6, 6).double())
    assert torch.equal(model(torch.zeros(2, 2, 6, 6).double()), model.bias)
    assert model.labels == ("logit 0", "logit 0")


def test_a_layer_without_the_batch_axis_carries_no_path():
    """Its first axis is not the sample, so a mask a sample would mean nothing."""
    from torch import nn

    from nets import Lambda, example, randomise

    model = Lambda(lambda m, x: m.fc(m.inner(x.view(-1, 2)).relu().view(len(x), -1)), inner=nn.Linear(2, 3),
                   fc=nn.Linear(6, 2))  # fmt: skip
    frozen = freeze(randomise(model, 0), example((4,), 0, batch=1))
    with pytest.raises(PathError, match="batch"):
        linear_model(frozen, 0, Path.of([(":relu", (1,))]))


# --- partitions ---


@pytest.mark.parametrize("partition", [*PARTITIONS.values(), heads(1), heads(2, 0)], ids=repr)
@pytest.mark.parametrize("shape", [(4,), (2, 4), (4, 4, 2), (2, 3, 2, 2)])
def test_a_partition_names_every_neuron_once(partition, shape):
    contribution = torch.randn(2, *shape, dtype=torch.float64)
    scores = partition.scores(contribution)
    assert scores.shape[1] == partition.count(shape) == int(partition.labels(shape).max()) + 1
    total = torch.zeros(shape)
    for index in range(scores.shape[1]):
        mask = torch.zeros(shape)
        for unit in partition.units(index, shape):
            mask[tuple(slice(None) if i is None else i for i in unit)] += 1
        total += mask
        assert torch.equal(partition.labels(shape) == index, mask.bool())
        assert torch.equal(partition.members(index, shape), mask.flatten().nonzero()[:, 0])
        chosen = torch.zeros(2, scores.shape[1], dtype=torch.bool)
        chosen[0, index] = True
        assert torch.equal(partition.mask(chosen, shape)[0].float(), mask)
        assert not partition.mask(chosen, shape)[1].any()
        torch.testing.assert_close(scores[:, index], (contribution * mask).flatten(1).sum(1))
    assert (total == 1).all()
    assert torch.equal(partition.mask(torch.ones_like(scores, dtype=torch.bool), shape), torch.ones(2, *shape).bool())


def test_partitions_keep_their_axes():
    assert channels.units(2, (3, 4, 5)) == ((2, None, None),)
    assert locations.units(7, (3, 4, 5)) == ((None, 1, 2),)
    assert neurons.units(27, (3, 4, 5)) == ((1, 1, 2),)
    assert channels.units(2, (3,)) == ((2,),)
    assert locations.units(0, (3,)) == ((None,),)
    assert heads(2).units(1, (7, 6)) == ((None, 3), (None, 4), (None, 5))
    assert heads(2, axis=0).units(0, (4, 9)) == ((0, None), (1, None))


def test_a_labelling_is_repeated_along_axes_of_size_one():
    regions = labels(torch.tensor([[[0, 0], [1, 3]]]), name="regions")
    assert regions.units(0, (5, 2, 2)) == ((None, 0, None),)
    assert regions.units(3, (5, 2, 2)) == ((None, 1, 1),)
    assert regions.units(2, (5, 2, 2)) == ()
    assert regions.count((5, 2, 2)) == 4
    assert str(regions).count("regions") == 1


@pytest.mark.parametrize(("partition", "shape", "said"), [
    (labels(torch.zeros(3, 2, dtype=torch.long)), (3, 3), r"'labels' has labels of shape \[3, 2\].* shape \[3, 3\]"),
    (labels(torch.zeros(3, dtype=torch.long)), (3, 3), r"shape \[3\], the layer has shape \[3, 3\]"),
    (labels(torch.tensor([0, -1])), (2,), "whole numbers from 0 on"),
    (labels(torch.tensor([0.0, 1.0])), (2,), "whole numbers from 0 on as labels; got torch.float32"),
    (heads(5), (3, 12), r"axis -1 of a layer of shape \[3, 12\] cannot be cut into 5 blocks"),
    (heads(3, axis=2), (3, 12), "axis 2 of a layer"),
    (heads(0), (3, 12), "into 0 blocks"),
])  # fmt: skip
def test_a_partition_that_does_not_fit_is_refused(partition, shape, said):
    with pytest.raises(PathError, match=said):
        partition.labels(shape)
    linear = torch.nn.Linear(torch.Size(shape).numel(), 2).double()
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten(), linear).eval()
    frozen = freeze(model, torch.ones(1, *shape).double())
    with pytest.raises(PathError, match=said):
        find_paths(frozen, 0, Greedy(), partition=partition)


# --- layers side by side ---


def test_a_step_over_layers_side_by_side_prints_and_round_trips():
    parts = Step("a", ((2, None),)), Step("b", ((1,), (0,))), Step("c", tuple((i,) for i in range(10)))
    step = Step.over(parts)
    assert step.layers == ("a", "b", "c")
    assert step.parts == {part.layer: part for part in parts}
    assert str(step) == "a[2,:] | b[0][1] | c[0][1][2][3][4][5][6][7][... 2 more]"
    path = Path((step, Step("top", ((0,),))))
    assert path.layers == ("a", "b", "c", "top")
    assert Path.from_json(path.to_json()) == path
    thin = Path((Step("a", ((None, None),), (Step("b", ((1,),)),)),))
    deep = Path((Step("a", ((2, 0),)), Step("top", ((0,),))))
    assert deep.refines(thin)
    assert not thin.refines(deep)
    assert not Path((Step("b", ((0,),)),)).refines(thin)


@pytest.mark.parametrize("beside", [(Step("a", ((1,),)),), (Step("b", ((1,),), (Step("c", ((0,),)),)),)])
def test_layers_side_by_side_are_different_ones(beside):
    with pytest.raises(PathError, match="side by side must be different"):
        Step("a", ((0,),), beside)


def test_routes_pass_one_of_the_layers_side_by_side():
    frozen = freeze(build("squeeze"), inputs("squeeze"))
    level = next(level for level in frozen.levels(frozen.layers) if len(level) > 1)
    whole = {layer.name: [(None,) * len(layer.shape)] for layer in level}
    both = linear_model(frozen, 1, Path((Step.over(Step(name, tuple(units)) for name, units in whole.items()),)))
    each = [linear_model(frozen, 1, Path((Step(name, tuple(units)),))) for name, units in whole.items()]
    assert_children_sum_to_parent(each, both)
    assert all(float(part.value.abs().max()) > 0 for part in each)
    lower = next(layer for layer in frozen.layers if layer in frozen.below([*level, layer])[level[0]])
    dependent = Step(level[0].name, tuple(whole[level[0].name]), (Step(lower.name, ((0, 0, 0),)),))
    with pytest.raises(PathError, match="not side by side: one depends on another"):
        linear_model(frozen, 1, Path((dependent,)))


def test_a_layer_side_by_side_may_stay_while_the_others_descend():
    """The routes through a short branch pass its units at both steps."""
    parts = {name: torch.nn.Linear(4, 4) for name in ("short", "low", "high")}
    model = randomise(Lambda(_two_branches, **parts, tail=torch.nn.Linear(8, 3)), 3)
    frozen = freeze(model, example((4,), 2), layers=[":relu", ":relu#2", ":relu#3"])
    short, low, high = (layer.name for layer in frozen.layers)
    upper = Step(short, ((0,), (2,)), (Step(high, ((None,),)),))
    lower = Step(short, ((None,),), (Step(low, ((1,), (2,))),))
    both = linear_model(frozen, 0, Path((lower, upper)))
    each = [Path.of([(short, [(0,), (2,)])]), Path.of([(low, [(1,), (2,)]), (high, (None,))])]
    assert_children_sum_to_parent([linear_model(frozen, 0, path) for path in each], both)
    assert (both.value != 0).all()


def test_all_but_some_units():
    frozen = freeze(build("vgg"), inputs("vgg"))
    layer = frozen.layers[1]
    some = ((0, None, None), (2, 1, 1))
    rest = Path((Step(layer.name, some, but=True),))
    parts = [linear_model(frozen, 0, path) for path in (rest, Path((Step(layer.name, some),)))]
    everything, every_unit = Path((Step(layer.name, (), but=True),)), Path.of([(layer.name, (None,) * 3)])
    assert_children_sum_to_parent(parts, linear_model(frozen, 0, everything))
    assert_same_model(linear_model(frozen, 0, everything), linear_model(frozen, 0, every_unit))
    assert Path.from_json(rest.to_json()) == rest
    assert str(rest).startswith(f"{layer.name} but [c0][c2,y1,x1] <- ") or str(rest).startswith(
        f"{layer.name} but [c0]"
    )
    assert str(everything).startswith(f"{layer.name}[all]")


@pytest.mark.parametrize(("fine", "coarse", "expected"), [
    (Step("a", ((1, 2),)), Step("a", ((0, None),), but=True), True),
    (Step("a", ((1, 2),)), Step("a", ((1, None),), but=True), False),
    (Step("a", ((None, 2),)), Step("a", ((1, None),), but=True), False),
    (Step("a", ((1, None),), but=True), Step("a", ((1, 2),), but=True), True),
    (Step("a", ((1, 2),), but=True), Step("a", ((1, None),), but=True), False),
    (Step("a", ((1, 2),), but=True), Step("a", ((None, None),)), True),
    (Step("a", ((1, 2),), but=True), Step("a", ((0, 1),)), False),
    (Step("a", ((1, 2),)), Step("b", ((1, 2),)), False),
])  # fmt: skip
def test_a_step_lies_within_another(fine, coarse, expected):
    assert fine.lies_within(coarse) is expected


def _two_branches(m, x):
    return m.tail(torch.cat([m.short(x).relu(), m.high(m.low(x).relu()).relu()], 1))


def test_a_dead_unit_is_a_valid_path(frozen):
    layer = frozen.layer("classifier.2")
    dead = [i for i in range(6) if (layer.output[:, i] == 0).all()]
    assert dead
    assert_zero(linear_model(frozen, logit(0), Path.of([("classifier.2", (dead[0],))])))


def test_all_refusals_are_of_one_family():
    assert issubclass(PathError, RelupathError)
    assert issubclass(PathError, ValueError)


@pytest.mark.parametrize("path", ["a", 5, ["a", "b"], [("1", (0,))] * 2])
def test_what_is_given_as_a_path_must_be_one(path):
    frozen = freeze(build("mlp"), inputs("mlp"))
    with pytest.raises(PathError, match=r"a path is a relupath.Path, such as Path.of"):
        inspect.unwrap(linear_model)(frozen, 0, path)  # without the tests' type checker


@pytest.mark.parametrize("unit", [np.int64(2), torch.tensor(2)], ids=["numpy", "torch"])
def test_what_argmax_gives_is_a_coordinate(unit):
    assert Path.of([("1", (unit,))]) == Path.of([("1", [(unit,)])]) == Path.of([("1", (2,))])


@pytest.mark.parametrize("pair", [("1", 3), ("1", (1.5,)), (nn.ReLU(), (1,)), ("1", ("a",))], ids=str)
def test_what_is_no_unit_of_a_named_layer_is_refused(pair):
    with pytest.raises(PathError, match="a path takes pairs of a layer's name and a unit"):
        inspect.unwrap(Path.of.__func__)(Path, [pair])


def test_a_truth_value_is_no_coordinate():
    text = Path.of([("1", (1,))]).to_json()
    assert Path.from_json(text)
    with pytest.raises(PathError, match="units of integer coordinates"):
        Path.from_json(text.replace("[[1]]", "[[true]]"))


NOT_THESE = {
    "partition text": (lambda f: find_paths(f, 1, Greedy(), partition="channels"), "a partition is one such as"),
    "partition none": (lambda f: find_paths(f, 1, Greedy(), partition=None), "a partition is one such as"),
    "partition text of a layer": (lambda f: decompose(f, 1, partition={"1": "channels"}), "a partition is one such as"),
    "partition elsewhere": (
        lambda f: find_paths(f, 1, Greedy(), layers=["3"], partition={"1": channels}),
        "'1', which is not among the layers chosen",
    ),
    "heads": (lambda f: find_paths(f, 1, Greedy(), partition=_forced(heads(2), blocks=2.0)), "into 2.0 blocks"),
    "labels": (lambda f: find_paths(f, 1, Greedy(), partition=_forced(Labels(None), given=[0])), "a tensor of labels"),
    "layers": (lambda f: find_paths(f, 1, Greedy(), layers=1), "layers takes a list"),
    "layers of masses": (lambda f: path_mass(f, 1, "1"), "layers takes a list"),
    "layer twice": (lambda f: path_mass(f, 1, ["1", "1"]), "a layer is named twice"),
    "sample": (lambda f: path_mass(f, 1).sample(3, of=2), "sample 2 is not in the batch of 2"),
    "last sample": (lambda f: path_mass(f, 1).sample(3, of=-1), "sample -1 is not in the batch of 2"),
    "beam": (lambda f: find_paths(f, 1, _forced(Beam(), k=2.5)), "k must be a whole number; got 2.5"),
    "beam of none": (lambda f: find_paths(f, 1, _forced(Beam(), k=None)), "k must be a whole number; got None"),
    "exact": (lambda f: find_paths(f, 1, _forced(Exact(), k=2.5)), "k must be a whole number; got 2.5"),
    "mass": (lambda f: find_paths(f, 1, _forced(Mass(), share="a")), "share must be above 0 and at most 1; got 'a'"),
    "selective": (lambda f: find_paths(f, 1, _forced(Selective(), width=2.5)), "width must be a whole number; got 2.5"),
    "depth": (lambda f: find_paths(f, 1, _forced(Selective(), depth=2.0)), "depth must be a whole number; got 2.0"),
    "width": (lambda f: decompose(f, 1, width=2.5), "width must be a whole number of at least 1; got 2.5"),
    "ablated": (lambda f: ablate(f, find_paths(f, 1, Greedy())), "a path is a relupath.Path"),
    "ablated list": (lambda f: ablate(f, [Path.of([("1", (1,))])]), "a path is a relupath.Path"),
    "bias": (lambda f: bias_sources(f, 1, "abc"), "a path is a relupath.Path"),
    "bias list": (lambda f: bias_sources(f, 1, [Path.of([("1", (1,))])] * 2), "a path is a relupath.Path"),
}


def _forced(thing, **fields):
    """A frozen value with fields that the tests' type checker would not let in."""
    for name, value in fields.items():
        object.__setattr__(thing, name, value)
    return thing


@pytest.mark.parametrize("case", NOT_THESE)
def test_what_does_not_fit_is_one_sentence(case):
    """Without the tests' type checker, as a user calls it."""
    ask, said = NOT_THESE[case]
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    frozen = freeze(model, torch.ones(2, 5))
    with pytest.raises(PathError, match=said), typechecks_off():
        ask(frozen)
