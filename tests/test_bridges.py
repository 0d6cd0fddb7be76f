"""Bridges to Captum and Quantus, in the real libraries: the same numbers as relupath's own, in their forms."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from torch import nn

import relupath
from asserts import assert_close
from cases import SEARCHES, network
from nets import randomise
from relupath.bridges import PathAttribution, QuantusExplainer
from relupath.errors import InputError, PathError, TargetError, TrainingModeError


@pytest.fixture
def vgg():
    model, x = network("vgg")
    return model.requires_grad_(False), x


# --- Captum ---


def by_captum(model, x, **options):
    """Captum's input times gradient, which of a piecewise-linear network is W * x; it warns of inputs without one."""
    wanting = tuple(v.clone().requires_grad_() for v in x) if isinstance(x, tuple) else x.clone().requires_grad_()
    found = InputXGradient(model).attribute(wanting, **options)
    return tuple(v.detach() for v in found) if isinstance(found, tuple) else found.detach()


def test_of_the_whole_network_it_is_what_captum_finds_too(vgg):
    model, x = vgg
    got = PathAttribution(model).attribute(x, target=[2, 0])
    assert_close(got, by_captum(model, x, target=[2, 0]))
    assert not got.requires_grad
    whole = relupath.linear_model(relupath.freeze(model, x), [2, 0])
    assert_close(got.flatten(1).sum(1), whole.weight_part)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("name", ["vgg", "squeeze"])
def test_of_paths_it_is_the_sum_of_their_models_and_batches_are_one_by_one(name, search):
    model, x = network(name)
    got = PathAttribution(model, search, partition=relupath.channels).attribute(x, target=[2, 1])
    frozen = relupath.freeze(model, x)
    found = relupath.find_paths(frozen, relupath.logit([2, 1]), search, partition=relupath.channels)
    for b, target in enumerate((2, 1)):
        one = relupath.freeze(model, x[b : b + 1])
        models = [relupath.linear_model(one, target, path) for path in found.ranked[b] if path]
        expected = sum((m.weight * x[b : b + 1] for m in models), torch.zeros_like(x[:1]))
        assert_close(got[b : b + 1], expected, float(got.abs().max()))
        alone = PathAttribution(model, search, partition=relupath.channels).attribute(x[b : b + 1], target=target)
        assert_close(got[b : b + 1], alone, float(got.abs().max()))


class Grid(nn.Module):
    """An output (B, 3, 2, 4)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 24))

    def forward(self, x):
        return self.body(x).view(-1, 3, 2, 4)


class Two(nn.Module):
    """Two explained inputs and a factor; one number a sample."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.top = nn.Linear(3, 6), nn.Linear(2, 6), nn.Linear(6, 1)

    def forward(self, x, z, factor=1.0, shift=0.0):
        return self.top(torch.relu(factor * self.a(x) + self.b(z) + shift))[:, 0]


FORMS = {
    "int": ("vgg", 2),
    "last": ("vgg", -1),
    "tensor": ("vgg", torch.tensor(1)),
    "tensor of one": ("vgg", torch.tensor([1])),
    "tensor a sample": ("vgg", torch.tensor([1, 0])),
    "list": ("vgg", [0, 2]),
    "tuple of one": ("vgg", (1,)),
    "tuple": (Grid, (2, 1, 3)),
    "tuples": (Grid, [(2, 1, 3), (0, 0, 1)]),
    "none": (Two, None),
}


@pytest.mark.parametrize("form", FORMS)
def test_targets_mean_what_they_mean_to_captum(form):
    kind, target = FORMS[form]
    if kind == "vgg":
        model, x = network("vgg")
    else:
        model = randomise(kind(), 3)
        x = torch.randn(2, 5).double() if kind is Grid else (torch.randn(2, 3).double(), torch.randn(2, 2).double())
    got = PathAttribution(model).attribute(x, target=target)
    expected = by_captum(model, x, target=target)
    assert isinstance(got, tuple) == isinstance(expected, tuple)
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e)


@pytest.mark.parametrize(
    ("kind", "target", "sentence"),
    [
        (Grid, 1, "leaves several numbers"),
        (Grid, (1, 1), "leaves several numbers"),
        (Grid, (1, 1, 1, 1), "does not fit"),
        (Grid, [(1, 1, 1), (1, 1)], "does not fit"),
        (Grid, (1, 2, 1), "out of range"),
        (Grid, None, "leaves several numbers"),
        (lambda: nn.Linear(5, 3), None, "leaves several numbers"),
        (Grid, [(1, 1, 1)], "1 targets for 2 samples"),
        (Grid, 1.5, "a target is an index"),
        (Grid, torch.tensor([0.5, 1.0]), "a target is an index"),
    ],
)
@pytest.mark.filterwarnings("ignore:Function .* parameter target")
def test_targets_that_name_no_number_are_refused(unchecked, kind, target, sentence):
    with pytest.raises(TargetError, match=sentence):
        PathAttribution(randomise(kind(), 3)).attribute(torch.randn(2, 5).double(), target=target)


def test_further_arguments_are_held_constant_and_tuples_stay_tuples():
    model = randomise(Two(), 1)
    x, z = torch.randn(2, 3).double(), torch.randn(2, 2).double()
    factor, shift = torch.tensor([[0.5], [2.0]]).double(), torch.randn(2, 6).double()
    for more in ((factor, shift), factor, (0.7,)):
        got = PathAttribution(model).attribute((x, z), additional_forward_args=more)
        expected = by_captum(model, (x, z), additional_forward_args=more)
        for g, e in zip(got, expected, strict=True):
            assert_close(g, e)
    chain, x = network("vgg")
    (got,) = PathAttribution(chain).attribute((x,), target=1)
    assert_close(got, PathAttribution(chain).attribute(x, target=1))


def test_it_opens_its_own_grad_mode_and_leaves_the_input(vgg):
    model, x = vgg
    expected = PathAttribution(model, relupath.Mass()).attribute(x, target=1)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_close(PathAttribution(model, relupath.Mass()).attribute(x, target=1), expected)
    wanting = x.clone().requires_grad_()
    assert_close(PathAttribution(model, relupath.Mass()).attribute(wanting, target=1), expected)
    assert wanting.grad is None


@pytest.mark.parametrize("search", [None, relupath.Greedy()], ids=["whole", "greedy"])
def test_a_noise_tunnel_averages_it(vgg, search):
    """Against the mean over the same noise, drawn by hand; targets are repeated along."""
    model, x = vgg
    options = {"nt_samples": 5, "stdevs": 0.1, "nt_type": "smoothgrad"}
    torch.manual_seed(4)
    got = NoiseTunnel(PathAttribution(model, search)).attribute(x, target=[2, 0], nt_samples_batch_size=5, **options)
    torch.manual_seed(4)
    noisy = x.repeat_interleave(5, 0) + torch.normal(0, torch.full((10, *x.shape[1:]), 0.1))
    each = PathAttribution(model, search).attribute(noisy, target=[2] * 5 + [0] * 5)
    assert_close(got, each.view(2, 5, *x.shape[1:]).mean(1))


def test_captums_metrics_run_on_it():
    """Of a linear network W * x is faithful and even: no infidelity; the sensitivity is that of the input alone."""
    model = randomise(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), 2).requires_grad_(False)
    x = torch.randn(2, 3, 2, 2).double()
    attribution = PathAttribution(model)

    def noise(inputs):
        change = 0.1 * torch.randn_like(inputs)
        return change, inputs - change

    def scaled(inputs):
        """``change * x / x`` is the change: what Captum multiplies the attribution by, where that is W * x."""
        change, changed = noise(inputs)
        return change / inputs, changed

    found = attribution.attribute(x, target=[1, 3])
    assert float(infidelity(model, scaled, x, found, target=[1, 3], n_perturb_samples=7).max()) < 1e-20
    wrong = infidelity(model, scaled, x, found.flip(1), target=[1, 3], n_perturb_samples=7)
    assert float(wrong.min()) > 1e-4
    got = sensitivity_max(attribution.attribute, x, target=[1, 3], perturb_radius=0.02, n_perturb_samples=9)
    assert ((got > 0) & (got < 0.1)).all()
    lively, x = network("vgg")
    still = sensitivity_max(
        PathAttribution(lively, relupath.Greedy()).attribute, x, target=1, perturb_radius=0.0, n_perturb_samples=2
    )
    assert float(still.max()) < 1e-10


def test_captums_metrics_run_on_inputs_of_any_memory_format(vgg):
    model, x = vgg
    for search in (None, relupath.Mass(), relupath.Beam(2)):
        attribute, given = PathAttribution(model, search).attribute, {"target": 1, "n_perturb_samples": 2}
        got = sensitivity_max(attribute, x.contiguous(memory_format=torch.channels_last), **given)
        assert got.shape == (len(x),)
        assert (got > 0).all()


def test_what_is_not_exact_is_refused_through_the_bridge(vgg):
    model, x = vgg
    with pytest.raises(TrainingModeError):
        PathAttribution(nn.Sequential(nn.Linear(3, 3), nn.Dropout())).attribute(torch.ones(1, 3), target=0)
    with pytest.raises(PathError, match="give a search too"):
        PathAttribution(model, partition=relupath.channels).attribute(x, target=0)


def test_without_a_path_all_is_zero():
    """Every path to the class is negative; only the other sample has one."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval().requires_grad_(False)
    model[0].weight.copy_(torch.eye(2))
    model[2].weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()
    for search in (relupath.Greedy(), relupath.Mass(), relupath.Beam(2), relupath.Exact(2)):
        got = PathAttribution(model, search).attribute(x, target=[0, 1])
        assert not got[0].any()
        assert got[1].any()


def test_without_captum_there_is_a_hint_and_quantus_goes_on():
    code = """
import sys
sys.modules["captum"] = None
import torch, relupath
model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
relupath.bridges.QuantusExplainer()(model, torch.ones(2, 2).numpy(), [0, 1])
try:
    relupath.bridges.PathAttribution(model)
except relupath.errors.MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'relupath[captum]'" in done.stdout


# --- Quantus ---


@pytest.mark.parametrize("search", [None, relupath.Mass(), relupath.Beam(2)], ids=["whole", "mass", "beam"])
def test_numbers_for_quantus_are_those_of_captum(vgg, search):
    model, x = vgg
    classes = np.array([2, 1])
    single = x.float().numpy()
    got = QuantusExplainer(search, summed=False)(model=model, inputs=single, targets=classes, device="cpu")
    assert got.shape == single.shape
    assert got.dtype == single.dtype
    expected = PathAttribution(model, search).attribute(torch.tensor(single).double(), target=[2, 1])
    assert_close(torch.tensor(got), expected.float())
    summed = QuantusExplainer(search)(model, single, classes)
    assert summed.shape == (2, 1, *single.shape[2:])
    assert_close(torch.tensor(summed), torch.tensor(got).sum(1, keepdim=True))
    for b in range(2):
        alone = QuantusExplainer(search)(model, single[b : b + 1], classes[b : b + 1])
        assert_close(torch.tensor(alone), torch.tensor(summed[b : b + 1]))


def test_a_model_that_changed_in_place_is_explained_as_it_is(vgg):
    model, x = vgg
    explain, images = QuantusExplainer(), x.numpy()
    before = explain(model, images, [1, 1])
    with torch.no_grad():
        list(model.parameters())[-2].mul_(2)
    assert_close(torch.tensor(explain(model, images, [1, 1])), torch.tensor(2 * before))


def test_quantus_needs_channels(vgg):
    with pytest.raises(InputError, match="expected inputs"):
        QuantusExplainer()(vgg[0], np.zeros(3), [0])


def test_whole_numbers_are_refused_that_would_cut_a_map_off(unchecked, vgg):
    model, x = vgg
    with pytest.raises(InputError, match=r"got uint8: give inputs.astype\(np.float32\)"):
        QuantusExplainer()(model, np.ones(x.shape, dtype=np.uint8), [1, 1])


@pytest.mark.parametrize("explain", [QuantusExplainer(), QuantusExplainer(relupath.Mass(0.9), summed=False)])
@pytest.mark.filterwarnings("ignore")
def test_metrics_of_quantus_run_on_it(explain):
    import quantus

    parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    model = randomise(nn.Sequential(*parts), 2, torch.float32).requires_grad_(False)
    x, classes = torch.randn(4, 3, 8, 8).numpy(), np.array([1, 0, 3, 4])
    run = {"model": model, "x_batch": x, "y_batch": classes, "a_batch": None, "explain_func": explain}
    quiet = {"disable_warnings": True, "display_progressbar": False}
    maps = explain(model, x, classes)
    flipping = quantus.PixelFlipping(features_in_step=8, perturb_baseline="black", **quiet)
    given = quantus.PixelFlipping(features_in_step=8, perturb_baseline="black", **quiet)
    assert np.allclose(flipping(**run, batch_size=3), given(**{**run, "a_batch": maps}, batch_size=3))
    steady = quantus.MaxSensitivity(nr_samples=3, lower_bound=1e-3, **quiet)(**run, batch_size=2)
    assert all(0 < s < 0.5 for s in steady)
    randomised = quantus.MPRT(similarity_func=quantus.similarity_func.correlation_spearman, **quiet)(**run)
    values = {layer: np.mean(scores) for layer, scores in randomised.items()}
    assert values.pop("original", 1.0) == pytest.approx(1)
    assert values
    assert all(value < 0.9 for value in values.values()), "a map that was kept by the model's identity would stay at 1"
