"""The causal check against forward hooks and frozen twins; the plausible class."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from asserts import assert_close, assert_untouched
from cases import NAMES, PARTITIONS, TARGETS, active_path
from nets import CHANGES, Lambda, build, example, inputs, randomise
from relupath import Path, Step, ablate, channels, contrast, freeze, linear_model, logit, plausible
from relupath.errors import ModelError, PathError, TargetError, UnknownLayerError

LAYERED = [name for name in NAMES if name != "linear"]


def zeroed(model, x, path):
    """The output of the model with forward hooks that set the path's units to zero; layers named by modules only."""
    calls, handles = dict.fromkeys([step.layer.partition("#")[0] for step in path.steps], 0), []
    for name in calls:

        def hook(_module, _args, output, name=name):
            calls[name] += 1
            called = name if calls[name] == 1 else f"{name}#{calls[name]}"
            output = output.clone()
            for step in path.steps:
                for unit in step.units if step.layer == called else ():
                    output[(slice(None), *(slice(None) if i is None else i for i in unit))] = 0
            return output

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    with torch.no_grad():
        output = model(x)
    for handle in handles:
        handle.remove()
    return output


def without(frozen, path, target):
    """The target without every route through the units: inclusion and exclusion over the steps of the path."""
    value = frozen.functional(target).value
    for bits in range(1, 2 ** len(path.steps)):
        chosen = [step for i, step in enumerate(path.steps) if bits >> i & 1]
        value = value - (-1) ** (len(chosen) + 1) * linear_model(frozen, target, Path(tuple(chosen))).value
    return value


def modules_of(frozen):
    return [layer.name for layer in frozen.layers if ":" not in layer.name]


@pytest.mark.parametrize(
    ("name", "partition", "target"),
    [
        *((name, "neurons", "logit") for name in LAYERED if name != "dense"),
        *(("vgg", "channels", target) for target in TARGETS),
        ("resnet", "channels", "contrast a sample"),
    ],
)
def test_ablation_is_the_models_output_without_the_units(name, partition, target):
    model, x = build(name, 1), inputs(name, 1, batch=3)
    frozen = freeze(model, x)
    names = modules_of(frozen)
    if not names:
        return
    for layers in (names[:1], names[-1:], names[::2]):
        path = active_path(frozen, layers, PARTITIONS[partition], count=2)
        got = ablate(frozen, path, TARGETS[target](3))
        functional = frozen.functional(TARGETS[target](3))
        expected = (functional.gradient * zeroed(model, x, path)).sum(1)
        size = float(frozen.output.abs().max())
        assert_close(got.value, functional.value)
        assert_close(got.ablated, expected, size)
        assert_close(got.without_path, functional.value - linear_model(frozen, TARGETS[target](3), path).value, size)
        assert_close(got.with_frozen_gates, without(frozen, path, TARGETS[target](3)), 10 * size)
        if len(layers) == 1:
            assert_close(got.with_frozen_gates, got.without_path, size)


def test_without_gates_that_move_the_ablation_is_what_the_path_predicts():
    """On the top layer nothing above bends: the three numbers agree, and differ from the value."""
    frozen = freeze(build("mlp", 2), inputs("mlp", 2, batch=2))
    path = active_path(frozen, [frozen.layers[-1].name], channels)
    got = ablate(frozen, path, 1)
    assert_close(got.ablated, got.without_path)
    assert_close(got.ablated, got.with_frozen_gates)
    assert (got.ablated != got.value).any()


def test_gates_that_move_make_a_difference():
    frozen = freeze(build("vgg", 1), inputs("vgg", 1, batch=3))
    got = ablate(frozen, Path.of([(frozen.layers[0].name, (0, None, None))]), 0)
    assert_close(got.with_frozen_gates, got.without_path)
    assert not torch.allclose(got.ablated, got.without_path)


@pytest.mark.parametrize("act", [torch.relu, torch.relu_, nn.functional.gelu])
def test_layers_that_are_calls_of_functions(act):
    model = randomise(Lambda(lambda m, x: m.b(act(m.a(x) * 1)), a=nn.Linear(5, 6), b=nn.Linear(6, 3)), 1)
    x = example((5,), 1)
    frozen = freeze(model, x)
    got = ablate(frozen, Path.of([(frozen.layers[0].name, [(1,), (3,)])]), 2)
    with torch.no_grad():
        h = act(model.a(x) * 1)
        h[:, [1, 3]] = 0
        assert_close(got.ablated, model.b(h)[:, 2])


def test_all_but_some_units_and_layers_side_by_side():
    model, x = build("squeeze", 1), inputs("squeeze", 1)
    frozen = freeze(model, x)
    level = next(level for level in frozen.levels(frozen.layers) if len(level) > 1)
    a, b = (layer.name for layer in level[:2])
    step = Step(a, ((0, None, None),), (Step(b, ((1, None, None),)),))
    others = Step(a, ((0, None, None),), but=True)
    every = Step(a, tuple((i, None, None) for i in range(1, level[0].shape[0])))
    together = ablate(frozen, Path((step,)), 1)
    apart = ablate(frozen, Path((step.parts[a], step.parts[b])), 1)
    assert_close(together.ablated, apart.ablated)
    assert_close(together.with_frozen_gates, apart.with_frozen_gates)
    assert_close(together.with_frozen_gates, together.without_path, 10.0)
    assert_close(ablate(frozen, Path((others,)), 1).ablated, ablate(frozen, Path((every,)), 1).ablated)


MODULES = [name for name, _ in build("resnet").named_children()][:3]


def test_named_module_outputs_can_be_cut():
    model, x = build("resnet", 1), inputs("resnet", 1)
    frozen = freeze(model, x, layers=MODULES)
    for layer in frozen.layers:
        path = Path.of([(layer.name, (0, None, None))])
        expected = zeroed(model, x, path)[:, 1]
        assert_close(ablate(frozen, path, 1).ablated, expected)


def test_the_model_is_as_before():
    model = build("resnet")
    with assert_untouched(model):
        frozen = freeze(model, inputs("resnet"))
        before = linear_model(frozen, 0)
        ablate(frozen, active_path(frozen, [frozen.layers[0].name], channels), 0)
        assert torch.equal(linear_model(frozen, 0).weight, before.weight)


@pytest.mark.parametrize(("path", "error", "said"), [
    (Path(), PathError, "the path has no unit to set to zero"),
    (Path.of([("nothing", (0,))]), UnknownLayerError, "nothing"),
    (Path.of([("1", (99,))]), PathError, r"unit \[99\] is not in layer '1'"),
])  # fmt: skip
def test_what_cannot_be_cut_is_refused(path, error, said):
    with pytest.raises(error, match=said):
        ablate(freeze(build("mlp"), inputs("mlp")), path, 0)


def test_a_forward_that_then_runs_otherwise_is_refused():
    def forward(m, x):
        h = m.a(x).relu()
        return m.b(h.relu() if h.sum() > 0 else h)

    model = randomise(Lambda(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 3)), 1)
    frozen = freeze(model, example((5,), 1))
    with pytest.raises(ModelError, match="without these units the forward pass runs other layers"):
        ablate(frozen, Path.of([(frozen.layers[0].name, (None,))]), 0)


@pytest.mark.parametrize("how", CHANGES)
def test_a_model_that_was_changed_since_is_refused(how):
    model = build("mlp")
    frozen = freeze(model, inputs("mlp"))
    path = active_path(frozen, [layer.name for layer in frozen.layers], channels)
    CHANGES[how](model)
    with pytest.raises(ModelError, match="freeze again"):
        ablate(frozen, path, 1)


# --- the plausible class ---


def test_the_plausible_class_is_the_runner_up():
    frozen = freeze(build("mlp", 3), inputs("mlp", 3, batch=4))
    order = frozen.output.argsort(1, descending=True)
    assert torch.equal(plausible(frozen), order[:, 1])
    expected = [row[0] if row[0] != 2 else row[1] for row in order.tolist()]
    assert plausible(frozen, 2).tolist() == expected
    assert plausible(frozen, logit(2)).tolist() == expected
    assert plausible(frozen, contrast(2, 0)).tolist() == expected
    against = linear_model(frozen, contrast(order[:, 0], plausible(frozen)))
    assert_close(
        against.value, frozen.output.gather(1, order[:, :1])[:, 0] - frozen.output.gather(1, order[:, 1:2])[:, 0]
    )


def test_there_may_be_no_plausible_class():
    frozen = freeze(build("mlp"), inputs("mlp"))
    with pytest.raises(TargetError, match="no other class is left: the target adds every logit"):
        plausible(frozen, lambda y: y.sum(1))
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), 0)
    with pytest.raises(TargetError, match=r"an output \(samples, classes\); got shape \[1, 2, 2, 2\]"):
        plausible(freeze(model, torch.ones(1, 3, 4, 4).double()), logit(0, where=(0, 0)))
