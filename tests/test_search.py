"""Searches: Algorithm 1 against its literal twin, layers, partitions, batches, branches, ends."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from asserts import assert_close, assert_same_model, flat
from cases import architectures, path_of
from cost import algorithm_1 as algorithm_1_of
from cost import linear_model as whole_model_of
from cost import peak
from nets import Lambda, build, deep, example, inputs, layered, mlp, randomise
from reference import LayeredTwin, algorithm_1, descend_layered
from relupath import (
    Beam,
    Exact,
    Greedy,
    Mass,
    Path,
    Selective,
    channels,
    contrast,
    find_paths,
    freeze,
    linear_model,
    locations,
    logit,
    neurons,
)
from relupath._search import Found
from relupath.errors import PathError

GREEDY = Greedy()


def segments_of_vgg(model):
    """The chain between its recorded layers, written out: each maps one activation to the next."""
    f, c = model.features, model.classifier

    def head(a):
        return c[3](a)

    return [
        lambda x: F.relu(f[0](x[None]))[0],
        lambda a: F.relu(f[2](a[None]))[0],
        lambda a: F.relu(f[5](F.max_pool2d(a[None], 2)))[0],
        lambda a: F.relu(c[1](F.avg_pool2d(a[None], 2).mean((2, 3))))[0],
        head,
    ]


def segments_of_mlp(model):
    return [lambda x: F.relu(model[0](x)), lambda a: F.relu(model[2](a)), model[4]]


def assert_is_algorithm_1(found, b, steps, names):
    """Layer by layer the same unit with the same importance, and the same end."""
    path = found.paths[b]
    units = [step.units[0] for step in reversed(path.steps)] + ([path.input.units[0]] if path.input else [])
    assert units == list(steps.indices)
    assert all(len(step.units) == 1 for step in path.steps)
    assert list(path.layers) == names[len(names) - len(path) :]
    assert (path.input is None) == steps.ended_early
    expected = dict(zip([*reversed(names), "x"], steps.importance, strict=False))
    assert list(found.importance[b]) == list(expected)
    for key, value in expected.items():
        assert_close(torch.tensor(found.importance[b][key]).double(), torch.tensor(value).double(), value)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("name", "segments"), [("mlp", segments_of_mlp), ("vgg", segments_of_vgg)])
def test_greedy_is_algorithm_1(name, segments, seed):
    model, x = build(name, seed), inputs(name, seed, batch=3)
    frozen = freeze(model, x)
    for c in range(4):
        found = find_paths(frozen, c, GREEDY)
        for b in range(3):
            steps = algorithm_1(segments(model), x[b], lambda y, c=c: y[c])
            assert_is_algorithm_1(found, b, steps, [layer.name for layer in frozen.layers])


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Softplus, nn.ReLU6, nn.GELU])
def test_greedy_chooses_on_an_activation_that_is_the_output(activation):
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2), activation()).double().eval()
    frozen = freeze(model, example((3,), 0, 4))
    live = (frozen.output[:, 1] > 0).tolist()
    assert any(live)
    for path, lives in zip(find_paths(frozen, 1, GREEDY).paths, live, strict=True):
        assert [step.units for step in path.steps if step.layer == "3"] == ([((1,),)] if lives else [])


def test_the_twin_sees_both_ends_of_algorithm_1():
    """Among the cases above some end at the input and some early, on some layer between."""
    ends = set()
    for seed in range(8):
        model, x = build("mlp", seed), inputs("mlp", seed, batch=3)
        for c in range(4):
            for b in range(3):
                steps = algorithm_1(segments_of_mlp(model), x[b], lambda y, c=c: y[c])
                ends.add((len(steps.indices), steps.ended_early))
    assert {(3, False), (1, True)} <= ends


@given(architectures(), st.data())
def test_greedy_on_networks_with_skips(architecture, data):
    assume(len(architecture["widths"]) > 2)
    model = layered(**architecture)
    x = example((architecture["widths"][0],), data.draw(st.integers(0, 1000)), 2)
    found = find_paths(freeze(model, x), logit(0), GREEDY)
    names = model.names()
    for b in range(2):
        target = [1.0] + [0.0] * (architecture["widths"][-1] - 1)
        chosen, importance = descend_layered(LayeredTwin(model.matrices, model.offsets, model.slope, x[b], target))
        hidden = {l: {i} for l, i in chosen if l > 0}
        assert found.paths[b].steps == path_of(names, hidden).steps
        end = [i for l, i in chosen if l == 0]
        assert (found.paths[b].input.units if found.paths[b].input else ()) == tuple((i,) for i in end)
        assert list(found.importance[b]) == [names[l - 1] if l else "x" for l, _ in chosen]
        for got, expected in zip(found.importance[b].values(), importance, strict=True):
            assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("partition", [channels, locations], ids=lambda p: p.name)
def test_importance_of_a_unit_is_the_sum_over_its_neurons(partition):
    """On the top layer literally; below, in the order of the contributions to the target through the units above."""
    frozen = freeze(build("vgg"), inputs("vgg", batch=1))
    maps = frozen.layers[:3]
    found = find_paths(frozen, 0, GREEDY, layers=maps, partition=partition)
    above, cotangent = frozen.top, frozen.functional(0).gradient
    for position, step in enumerate(reversed(found.paths[0].steps)):
        layer = frozen.layer(step.layer)
        (pulled,) = frozen.vjp({above: cotangent}, [layer])
        share = pulled * layer.output
        summed = {channels: share.sum((2, 3))[0], locations: share.sum(1)[0].flatten()}[partition]
        best = int(summed.argmax())
        width = layer.shape[-1]
        unit = (best, None, None) if partition is channels else (None, best // width, best % width)
        assert step.units == (unit,)
        if position == 0:
            assert found.importance[0][step.layer] == pytest.approx(float(summed[best]), rel=1e-10)
        mask = torch.zeros_like(pulled)
        mask[(slice(None), *(slice(None) if i is None else i for i in unit))] = 1
        above, cotangent = layer, pulled * mask
    assert len(found.paths[0]) == 3


def test_samples_of_a_batch_may_part_where_a_branch_is_dead():
    """One sample passes over a dead layer while another one chooses a unit on it."""
    parted = 0
    for seed in range(8):
        model = layered(seed, (4, 6, 5, 3), skips=1.0)
        with torch.no_grad():
            model.biases["2"] -= 6.0
        x = example((4,), seed, batch=4)
        parted += len({path.layers for path in find_paths(freeze(model, x), 0, GREEDY).paths}) > 1
        _assert_batch_is_singles(model, x, logit(0), neurons)
    assert parted > 2


def test_a_layer_with_all_neurons_dead_for_every_sample_is_passed_over():
    model = layered(3, (4, 6, 5, 3), skips=1.0)
    with torch.no_grad():
        model.biases["2"] -= 1e3
    model.offsets[2] = model.biases["2"].detach()
    x = example((4,), 3)
    found = find_paths(freeze(model, x), 0, GREEDY)
    for b in range(2):
        chosen, _ = descend_layered(LayeredTwin(model.matrices, model.offsets, 0.0, x[b], [1, 0, 0]))
        assert found.paths[b].layers == tuple(model.names()[l - 1] for l, _ in reversed(chosen) if l)
        assert ":relu#2" not in found.paths[b].layers


# --- where the search ends ---


def test_no_positive_importance_ends_the_path_and_says_so():
    model = mlp(0, (3, 4, 4, 2))
    with torch.no_grad():
        for i in (0, 2, 4):
            model[i].weight.abs_()
        model[2].weight.neg_()
        model[2].bias.fill_(1e3)
    found = find_paths(freeze(model, torch.ones(1, 3).double()), 0, GREEDY)
    assert found.paths[0].layers == ("3",)
    assert found.paths[0].input is None
    assert found.stopped == ("no importance is positive at 1",)
    assert list(found.importance[0]) == ["3"]
    assert str(found.paths[0]).startswith("3[")
    assert_same_model(found.model, linear_model(freeze(model, torch.ones(1, 3).double()), 0, found.paths))


def test_nothing_positive_at_the_top_is_the_empty_path():
    model = mlp(0, (3, 4, 2))
    with torch.no_grad():
        model[2].weight.abs_().neg_()
    frozen = freeze(model, torch.ones(1, 3).double())
    found = find_paths(frozen, 0, GREEDY)
    assert found.paths == (Path(target="logit 0"),)
    assert found.stopped == ("no importance is positive at 1",)
    assert found.importance == ({},)
    assert_same_model(found.model, linear_model(frozen, 0))


@pytest.mark.parametrize("search", [Beam(1), Selective(1), Mass(1e-9)], ids=repr)
def test_single_precision_finds_what_double_precision_does_however_deep(search):
    """The cotangents leave its range after some hundred layers; one unit a layer is Algorithm 1."""
    x = example((32,), 1, 2)
    single = find_paths(freeze(deep(torch.float32), x.float()), 2, search)
    frozen = freeze(deep(torch.float64), x)
    double = find_paths(frozen, 2, search)
    assert [len(path) for path in double.paths] == [130, 130]
    assert single.ranked == double.ranked
    assert [path.steps for path in single.paths] == [path.steps for path in find_paths(frozen, 2, GREEDY).paths]
    for some, same in zip(single.values, double.values, strict=True):
        assert 0 < same[0] < 1e-38
        assert some == pytest.approx(same, rel=1e-4)
    assert single.stopped == ("reached the last level; its value is below the range of torch.float32",) * 2
    assert double.stopped == ("reached the last level",) * 2


def test_classes_are_compared_sample_by_sample():
    """A target that adds more logits than its neighbour's does not change with what the neighbour is compared."""
    model, x = build("mlp", 1), inputs("mlp", 1)
    weights = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0]]).double()
    together = find_paths(freeze(model, x), lambda y: (y * weights).sum(1), Selective(5))
    for b in range(2):
        alone = find_paths(freeze(model, x[b : b + 1]), lambda y, b=b: (y * weights[b]).sum(1), Selective(5))
        assert together.paths[b].steps == alone.paths[0].steps
        assert together.values[b] == pytest.approx(alone.values[0])


@pytest.mark.parametrize("search", [Greedy(), Beam(2), Exact(2), Mass(), Exact(1)], ids=repr)
def test_where_nothing_is_found_nothing_is_held(search):
    """Beside a sample of which something is found; of a value of 0 no share is a number."""
    model = mlp(0, (3, 4, 3))
    with torch.no_grad():
        model[0].weight.abs_()
        model[2].weight[0] = -model[2].weight[1].abs_()
    frozen = freeze(model, torch.ones(2, 3).double())
    found = find_paths(frozen, [0, 1], search)
    assert found.paths[0] == Path(target="logit 0")
    assert found.held[0] == 0 < found.held[1]
    assert find_paths(frozen, contrast(1, 1), search).held.isnan().all()


def test_no_positive_importance_at_the_input_alone():
    model = mlp(0, (3, 4, 2))
    with torch.no_grad():
        model[0].weight.abs_().neg_()
        model[0].bias.fill_(1e2)
        model[2].weight.abs_()
    found = find_paths(freeze(model, torch.ones(1, 3).double()), 0, GREEDY)
    assert found.paths[0].layers == ("1",)
    assert found.paths[0].input is None
    assert found.stopped == ("no importance is positive at the input",)


def test_a_zero_input_ends_before_the_input_element():
    model = build("mlp", 1)
    found = find_paths(freeze(model, torch.zeros(1, 6).double()), None, GREEDY)
    assert found.paths[0].input is None
    assert found.stopped[0].startswith("no importance is positive at")


def test_ends_are_each_samples_own():
    frozen = freeze(build("mlp", 1), torch.cat([torch.zeros(1, 6).double(), inputs("mlp", 1, batch=6)]))
    found = find_paths(frozen, 1, GREEDY)
    for path, stopped, importance in zip(found.paths, found.stopped, found.importance, strict=True):
        assert (path.input is not None) == (stopped == "reached the input") == ("x" in importance)
    assert {path.input is None for path in found.paths} == {True, False}
    assert all(value > 0 for importance in found.importance for value in importance.values())


def test_a_dead_network_has_an_empty_path():
    model = build("mlp")
    with torch.no_grad():
        model[2].bias.fill_(-1e3)
    frozen = freeze(model, inputs("mlp"))
    found = find_paths(frozen, 0, GREEDY)
    assert [len(path) for path in found.paths] == [0, 0]
    assert all(path.input is None for path in found.paths)
    assert all("no importance is positive" in sentence for sentence in found.stopped)


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-4), (torch.float64, 1e-30)], ids=str)
def test_a_product_of_derivatives_too_small_for_the_number_format_still_reaches_the_input(dtype, tiny):
    """Algorithm 1 starts every layer from derivative one, so depth alone must not end a path."""
    model = randomise(nn.Sequential(*[part for _ in range(14) for part in (nn.Linear(1, 1), nn.ReLU())]), 0, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.ndim == 1 else tiny)
    x = torch.ones(1, 1, dtype=dtype)
    found = find_paths(freeze(model, x), 0, GREEDY)
    assert found.stopped == (f"reached the input; its value is below the range of {dtype}",)
    assert found.importance[0]["x"] == pytest.approx(tiny, rel=1e-4)
    assert torch.isfinite(found.model.weight).all()


# --- layers ---


def test_layers_can_be_named_counted_or_given_as_modules():
    model, x = build("resnet"), inputs("resnet")
    frozen = freeze(model, x)
    relu = model.layer1[1].relu
    ways = [
        ["layer1.1.relu#2", "relu", "layer1.1.relu"],
        [4, 0, 3],
        [-1, 0, -2],
        [(relu, 2), model.relu, relu],
        [frozen.layers[4], frozen.layers[0], frozen.layer((relu, 1))],
    ]
    found = [find_paths(frozen, 1, GREEDY, layers=way) for way in ways]
    assert len({f.paths for f in found}) == 1
    assert set(found[0].paths[0].layers) <= {"relu", "layer1.1.relu", "layer1.1.relu#2"}


@pytest.mark.parametrize("k", [2, 3])
def test_every_kth_layer(k):
    model, x = build("vgg", 2), inputs("vgg", 2, batch=1)
    frozen = freeze(model, x)
    segments = segments_of_vgg(model)
    kept = list(range(4))[::k]
    merged = []
    for lower, upper in zip([-1, *kept], [*kept, 4], strict=True):
        merged.append(_chain(segments[lower + 1 : upper + 1]))
    found = find_paths(frozen, 2, GREEDY, layers=frozen.layers[::k])
    names = [frozen.layers[i].name for i in kept]
    assert_is_algorithm_1(found, 0, algorithm_1(merged, x[0], lambda y: y[2]), names)


def test_subset_of_layers_gives_the_model_of_its_path():
    frozen = freeze(build("squeeze", 4), inputs("squeeze", 4))
    found = find_paths(frozen, None, GREEDY, layers=[1, 4, -1])
    assert_same_model(found.model, linear_model(frozen, None, found.paths), _size(found))
    assert all(set(p.layers) <= {frozen.layers[i].name for i in (1, 4, -1)} for p in found.paths)


def test_a_layer_without_the_batch_axis_is_left_out_and_refused_by_name():
    model = Lambda(lambda m, x: m.fc(F.relu(m.mid(F.relu(m.inner(x.view(-1, 2))).view(len(x), -1)))),
                   inner=nn.Linear(2, 3), mid=nn.Linear(6, 5), fc=nn.Linear(5, 2))  # fmt: skip
    frozen = freeze(randomise(model, 0), example((4,), 0))
    assert [len(layer.output) for layer in frozen.layers] == [4, 2]
    with pytest.raises(PathError, match="not the batch"):
        find_paths(frozen, 0, GREEDY, layers=[0])
    assert all(path.layers in ((), (frozen.layers[1].name,)) for path in find_paths(frozen, 0, GREEDY).paths)


# --- branches, several inputs ---


def test_of_branches_side_by_side_one_is_chosen():
    """The best unit of both; the branch it is not on is left out, and the path goes on below."""
    sides = set()
    for seed in range(6):
        model, x = build("squeeze", seed), inputs("squeeze", seed, batch=4)
        frozen = freeze(model, x)
        found = find_paths(frozen, weighted_positive, GREEDY)
        for b, path in enumerate(found.paths):
            branches = [name for name in path.layers if name.startswith("features.4.expand")]
            if "classifier.2" not in path.layers:
                continue
            top = path.top(1)
            (cotangent,) = frozen.vjp({frozen.top: frozen.functional(weighted_positive).gradient}, [frozen.layer(-1)])
            mask = torch.zeros_like(cotangent)
            mask[(b, *top.steps[0].units[0])] = 1
            pair = [frozen.layer(f"features.4.expand{k}_activation") for k in ("1x1", "3x3")]
            scores = [v * l.output for v, l in zip(frozen.vjp({frozen.layer(-1): mask}, pair), pair, strict=True)]
            best = [float(s[b].max()) for s in scores]
            if max(best) > 0:
                winner = max((0, 1), key=lambda i: best[i])
                assert branches == [pair[winner].name]
                index = tuple(int(i) for i in (scores[winner][b] == best[winner]).nonzero()[0])
                assert path.steps[path.layers.index(branches[0])].units == (index,)
                sides.add(branches[0])
    assert len(sides) == 2


def weighted_positive(output):
    return output @ torch.tensor([1.0, 0.9, 0.8, 0.7], dtype=output.dtype)


def test_samples_of_a_batch_may_take_different_branches():
    for seed in range(2):
        model, x = build("squeeze", seed), inputs("squeeze", seed, batch=4)
        _assert_batch_is_singles(model, x, weighted_positive, neurons)


def test_several_inputs_end_at_the_best_element_of_all():
    ends = set()
    for seed in range(8):
        model = Lambda(lambda m, u, v: m.fc(F.relu(m.a(u) + m.b(v))), a=nn.Linear(3, 4), b=nn.Linear(2, 4),
                       fc=nn.Linear(4, 2))  # fmt: skip
        randomise(model, seed)
        u, v = example((3,), seed, 1), example((2,), seed + 50, 1)
        frozen = freeze(model, (u, v))
        found = find_paths(frozen, 0, GREEDY)
        assert_same_model(found.model, linear_model(frozen, 0, found.paths))
        path = found.paths[0]
        if path.steps and path.input:
            (j,) = path.steps[0].units[0]
            shares = torch.cat([model.a.weight[j] * u[0], model.b.weight[j] * v[0]]).detach()
            best = int(shares.argmax())
            name, index = ("x0", best) if best < 3 else ("x1", best - 3)
            assert (path.input.layer, path.input.units) == (name, ((index,),))
            assert found.importance[0][name] == pytest.approx(float(shares[best]), rel=1e-10)
            ends.add(name)
    assert ends == {"x0", "x1"}


# --- strategies ---


def test_the_result_says_what_it_cost():
    found = find_paths(freeze(build("vgg"), inputs("vgg")), 0, GREEDY)
    assert isinstance(found, Found)
    assert 0 < found.cost.products <= 5
    assert found.cost.seconds > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_search_runs_in_any_precision(dtype):
    model, x = build("mlp", 1), inputs("mlp", 1)
    expected = find_paths(freeze(model, x), 0, GREEDY)
    found = find_paths(freeze(model.to(dtype), x.to(dtype)), 0, GREEDY)
    assert found.model.weight.dtype == dtype
    if dtype == torch.float32:
        assert found.paths == expected.paths


def test_algorithm_1_needs_no_more_memory_than_the_linear_model():
    """At its peak, in a wide lower layer, one product runs and nothing is held besides."""
    convolutions = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    model = randomise(nn.Sequential(*convolutions, nn.AvgPool2d(16), nn.Flatten(), nn.Linear(256, 3)), 0, torch.float32)
    x, classes = example((3, 64, 64), 0, 1, torch.float32), torch.tensor([1])
    gc.collect()
    held = peak(algorithm_1_of, model, x, classes) - peak(whole_model_of, model, x, classes)
    assert held < (16 * 64 * 64 * 4) // 2, "less than half of a layer"


def _chain(functions):
    def run(h):
        for function in functions:
            h = function(h)
        return h

    return run


def _size(found):
    return max(float(found.model.value.abs().max()), float(flat(found.model).abs().max()))


def _assert_batch_is_singles(model, x, target, partition):
    together = find_paths(freeze(model, x), target, GREEDY, partition=partition)
    for b in range(len(x)):
        each = logit(target.plus[b]) if isinstance(getattr(target, "plus", None), tuple) else target
        alone = find_paths(freeze(model, x[b : b + 1]), each, GREEDY, partition=partition)
        assert alone.paths[0] == together.paths[b]
        assert alone.stopped[0] == together.stopped[b]
        for name, value in alone.importance[0].items():
            assert together.importance[b][name] == pytest.approx(value, rel=1e-9)
        scale = max(_size(alone), 1e-30)
        assert_close(flat(together.model)[b : b + 1], flat(alone.model), scale)
