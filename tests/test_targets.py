"""Targets are linear functionals of the output; what is not is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from asserts import assert_close, assert_complete
from nets import Lambda, build, example, inputs, randomise
from relupath import contrast, freeze, linear_model, logit
from relupath._targets import Target
from relupath.errors import TargetError


@pytest.fixture(scope="module")
def frozen():
    return freeze(build("mlp"), inputs("mlp", batch=3))


def test_a_logit_is_one_output(frozen):
    for c in range(4):
        for target in (logit(c), c, logit(torch.tensor(c)), logit([c] * 3), logit((c,) * 3), Target(c)):
            functional = frozen.functional(target)
            assert torch.equal(functional.value, frozen.output[:, c])
            assert functional.labels == (f"logit {c}",) * 3
            expected = torch.zeros_like(frozen.output)
            expected[:, c] = 1
            assert torch.equal(functional.gradient, expected)


def test_the_predicted_class_is_each_samples_own():
    frozen = freeze(build("mlp", 3), 3 * inputs("mlp", 3, batch=12))
    best = frozen.output.argmax(1)
    assert len(set(best.tolist())) > 1
    functional = frozen.functional()
    assert torch.equal(functional.value, frozen.output.max(1).values)
    assert functional.labels == tuple(f"logit {c}" for c in best.tolist())


def test_a_class_a_sample(frozen):
    for classes in ([2, 0, 3], (2, 0, 3), torch.tensor([2, 0, 3])):
        functional = frozen.functional(logit(classes))
        assert torch.equal(functional.value, frozen.output[[0, 1, 2], [2, 0, 3]])
        assert functional.labels == ("logit 2", "logit 0", "logit 3")


def test_a_contrast_is_a_difference(frozen):
    functional = frozen.functional(contrast([2, 0, 3], 1))
    assert_close(functional.value, frozen.output[[0, 1, 2], [2, 0, 3]] - frozen.output[:, 1])
    assert functional.labels == ("logit 2 - logit 1", "logit 0 - logit 1", "logit 3 - logit 1")
    assert (frozen.functional(contrast(1, 1)).value == 0).all()
    assert (linear_model(frozen, contrast(1, 1)).weight == 0).all()


def test_none_in_a_contrast_subtracts_nothing(frozen):
    functional = frozen.functional(contrast([2, 0, 3], [None, 1, None]))
    expected = frozen.output[[0, 1, 2], [2, 0, 3]].clone()
    expected[1] -= frozen.output[1, 1]
    assert_close(functional.value, expected)
    assert functional.labels == ("logit 2", "logit 0 - logit 1", "logit 3")
    assert_complete(frozen, contrast([2, 0, 3], [None, 1, None]))


def test_integers_of_numpy_are_classes():
    numpy = pytest.importorskip("numpy")
    frozen = freeze(build("mlp"), inputs("mlp", batch=3))
    for target in (numpy.int64(2), logit(numpy.int64(2)), logit([numpy.int64(2)] * 3)):
        assert torch.equal(frozen.functional(target).value, frozen.output[:, 2])


def test_targets_are_values():
    assert logit([1, 2]) == logit(torch.tensor([1, 2])) == Target((1, 2))
    assert hash(contrast(0, 1)) == hash(contrast(0, 1))
    assert contrast(0, 1) != contrast(1, 0)
    assert logit(0) != logit(1)


def test_a_callable_on_any_output():
    model = randomise(Lambda(lambda m, x: m.fc(x.view(len(x), 3, 2)), fc=nn.Linear(2, 5)), 0)
    frozen = freeze(model, example((6,), 0))

    def third(y):
        return y[:, 2, 4] - 2 * y[:, 0, 1]

    functional = frozen.functional(third)
    assert_close(functional.value, third(frozen.output))
    assert functional.gradient.shape == (2, 3, 5)
    assert functional.labels == ("third", "third")
    assert_complete(frozen, third)
    with pytest.raises(TargetError, match=r"shape \[2, 3, 5\], not \(samples, classes\)"):
        frozen.functional()
    with pytest.raises(TargetError, match=r"\(samples, classes\)"):
        linear_model(frozen, 1)


def test_a_callable_may_weigh_each_sample_by_itself(frozen):
    rows = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    functional = frozen.functional(lambda y: (y * rows).sum(1))
    assert_close(functional.gradient, rows)


@pytest.mark.parametrize(
    "target",
    [
        lambda y: y.softmax(1)[:, 0],
        lambda y: y.log_softmax(1)[:, 0],
        lambda y: y[:, 0] ** 2,
        lambda y: y[:, 0] * y[:, 1],
        lambda y: y.norm(dim=1),
        lambda y: y[:, 0] + 1,
        lambda y: y[:, 0] + 1e-3 * y[:, 1].sin(),
        lambda y: y.logsumexp(1),
        lambda y: y[:, 0].tanh(),
        lambda y: y[:, 0] - y[:, 0].mean(),
        lambda y: y[:, 0].flip(0),
        lambda y: y.sum().expand(3),
        lambda y: y[:, 0].sort().values,
        lambda y: torch.where(y[:, 0] > y[:, 1], y[:, 0], y[:, 1]) * y[:, 2],
    ],
)
def test_what_is_not_linear_sample_by_sample_is_refused(frozen, target):
    with pytest.raises(TargetError, match="not linear"):
        linear_model(frozen, target)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (lambda y: y, r"shape \[3\]; got shape \[3, 4\]"),
        (lambda y: y.sum(), r"got shape \[\]"),
        (lambda y: y[:, :1], r"got shape \[3, 1\]"),
        (lambda y: y[:2, 0], r"got shape \[2\]"),
        (lambda y: 3.0, "got float"),
        (lambda y: None, "got NoneType"),
        (lambda y: y[:, 0].detach(), "differentiable"),
        (lambda y: y.argmax(1), "differentiable"),
    ],
)
def test_what_is_no_number_a_sample_is_refused(frozen, target, sentence):
    with pytest.raises(TargetError, match=sentence):
        linear_model(frozen, target)


@pytest.mark.parametrize("make", [lambda c: c, logit, lambda c: contrast(0, c), lambda c: logit([0, c, 0])])
@pytest.mark.parametrize("c", [4, -1, 1000])
def test_a_class_out_of_range_is_refused(frozen, make, c):
    with pytest.raises(TargetError, match=f"class {c} is out of range: the model has 4 classes, 0 to 3"):
        linear_model(frozen, make(c))


def test_the_number_of_classes_must_fit_the_batch(frozen):
    for classes in ([0, 1], [0] * 4, torch.tensor([1])):
        with pytest.raises(TargetError, match="classes for 3 samples"):
            linear_model(frozen, logit(classes))


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_class_is_refused():
    for c in (True, [True, False], torch.tensor([0.5, 1.0]), torch.tensor([[1]])):
        with pytest.raises(TargetError, match="a class is an int"):
            logit(c)


def test_a_target_on_one_output_cell_works_at_any_scale():
    for scale in (1e-200, 1e200):
        frozen = freeze(build("mlp"), inputs("mlp") * scale)
        assert_complete(frozen, lambda y: y[:, 0] - y[:, 2])


def test_targets_touch_no_random_state(frozen):
    before = torch.get_rng_state()
    linear_model(frozen, lambda y: y[:, 0])
    assert torch.equal(before, torch.get_rng_state())


# --- outputs with places ---


def test_a_target_picks_classes_and_places():
    output = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    assert torch.equal(logit(1, where=(2, 3))(output), output[:, 1, 2, 3])
    mask = torch.rand(3, 4) > 0.5
    assert_close(logit([1, 4], where=mask)(output), torch.stack([output[0, 1][mask].sum(), output[1, 4][mask].sum()]))
    assert_close(
        contrast(0, [None, 2], where=(0, 0))(output), output[:, 0, 0, 0] - output[:, 2, 0, 0] * torch.tensor([0, 1])
    )
    assert logit(1, where=(2, 3)).label(0) == "logit 1 at (2, 3)"
    assert contrast(1, 2, where=mask).label(0) == f"logit 1 - logit 2 at {int(mask.sum())} places"
    assert logit(1, where=mask) == logit(1, where=mask.clone())
    assert logit(1, where=mask) != logit(1, where=~mask)


@pytest.mark.parametrize("where", [(3, 0), (0,), (0, 0, 0), (-1, 0), torch.ones(2, 9, dtype=torch.bool)])
def test_places_outside_the_output_are_refused(where):
    with pytest.raises(TargetError, match=r"is not in the output, whose places are \[3, 4\]"):
        logit(1, where=where)(torch.randn(2, 5, 3, 4))


def test_an_empty_mask_of_places_is_refused():
    with pytest.raises(TargetError, match="empty"):
        logit(1, where=torch.zeros(3, 4, dtype=torch.bool))


def test_an_output_with_places_needs_a_place():
    with pytest.raises(TargetError, match="say where"):
        logit(1)(torch.randn(2, 5, 3, 4))
