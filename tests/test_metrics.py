"""Insertion, deletion and intervals: against slow twins, against torchcam, and against what is known by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchcam.metrics import DeletionInsertionMetric

from asserts import assert_close
from nets import randomise
from relupath import metrics
from relupath.errors import InputError, TargetError, TrainingModeError

HEIGHT, WIDTH, CLASSES = 6, 5, 4


@pytest.fixture
def network():
    parts = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * (HEIGHT - 2) * (WIDTH - 2), CLASSES)
    return randomise(nn.Sequential(*parts), 1).requires_grad_(False)


@pytest.fixture
def pictures():
    return torch.randn(3, 3, HEIGHT, WIDTH, dtype=torch.float64)


@pytest.fixture
def maps():
    return torch.randn(3, 3, HEIGHT, WIDTH, dtype=torch.float64)


def blurred_twin(x: Tensor) -> Tensor:
    """A unit impulse under a Gaussian, walked cell by cell between the mirrors of 11 cells; then a sum over places."""
    line = np.zeros(11)
    bell = {o: math.exp(-(o**2) / 50) for o in range(-20, 21)}
    for offset, weight in bell.items():
        place, way = 5, 1 if offset > 0 else -1
        for _ in range(abs(offset)):
            if 0 <= place + way <= 10:
                place += way
            else:
                way = -way  # the cell at the mirror is met twice
        line[place] += weight / sum(bell.values())
    out = torch.zeros_like(x)
    height, width = x.shape[2:]
    for i in range(height):
        for j in range(width):
            for a in range(max(0, i - 5), min(height, i + 6)):
                for b in range(max(0, j - 5), min(width, j + 6)):
                    out[:, :, i, j] += line[a - i + 5] * line[b - j + 5] * x[:, :, a, b]
    return out


def curve_twin(model, picture, c, order, inserting):
    """One picture, one step at a time: the next row's worth of pixels is overwritten, then the network is asked."""
    now = blurred_twin(picture[None])[0] if inserting else picture.clone()
    finish = picture if inserting else torch.zeros_like(picture)
    scores = [float(model(now[None]).softmax(1)[0, c])]
    for step in range(HEIGHT):
        for pixel in order[step * WIDTH : (step + 1) * WIDTH]:
            now[:, pixel // WIDTH, pixel % WIDTH] = finish[:, pixel // WIDTH, pixel % WIDTH]
        scores.append(float(model(now[None]).softmax(1)[0, c]))
    area = sum((a + b) / 2 / HEIGHT for a, b in pairwise(scores))
    return scores, area


@pytest.mark.parametrize("batch", [1, 4, None])
@pytest.mark.parametrize("measure", [metrics.insertion, metrics.deletion])
def test_curves_are_those_of_the_slow_twin(network, pictures, maps, measure, batch):
    classes = [2, 0, 3]
    curve = measure(network, pictures, classes, metrics.ranks(maps), batch)
    assert curve.scores.shape == (3, HEIGHT + 1)
    for b, c in enumerate(classes):
        order = maps[b].sum(0).flatten().argsort(descending=True).tolist()
        scores, area = curve_twin(network, pictures[b], c, order, measure is metrics.insertion)
        assert_close(curve.scores[b], torch.tensor(scores, dtype=torch.float64))
        assert float(curve.area[b]) == pytest.approx(area)


@pytest.mark.parametrize("rows", [2, 4, 9])
def test_longer_steps_meet_some_points_of_the_curve(network, pictures, maps, rows):
    order = metrics.ranks(maps)
    one, longer = (metrics.insertion(network, pictures, 1, order, rows=n) for n in (1, rows))
    at = [*range(0, HEIGHT, rows), HEIGHT]
    assert_close(longer.scores, one.scores[:, at])
    between = [(b - a) / HEIGHT * (one.scores[:, a] + one.scores[:, b]) / 2 for a, b in pairwise(at)]
    assert_close(longer.area, sum(between))


def along(score, height=224):
    """A network whose score of class 0 is a function of the share of pixels that are there, a list of the sizes of its
    batches, a column of ones, and the order of its pixels.
    """
    sizes = []

    def model(x):
        sizes.append(len(x))
        p = score(x.mean((1, 2, 3)))
        return torch.stack([p.log(), (1 - p).log()], 1)

    return model, sizes, torch.ones(1, 1, height, 1, dtype=torch.float64), torch.arange(height)[None]


SMOOTH = {
    "sigmoid": lambda t: torch.sigmoid(20 * (t - 0.37)),
    "bell": lambda t: 0.01 + 0.9 * torch.exp(-(((t - 0.6) / 0.1) ** 2)),
    "early": lambda t: 0.01 + 0.98 * t**8,
    "root": lambda t: 0.01 + 0.98 * t.sqrt(),
    "waves": lambda t: 0.5 + 0.2 * torch.sin(9 * t),
}


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3])
@pytest.mark.parametrize("name", SMOOTH)
def test_with_a_tolerance_fewer_points_are_run_and_the_area_is_within_it(name, tolerance):
    model, sizes, x, order = along(SMOOTH[name])
    full = metrics.deletion(model, x, 0, order)
    assert sum(sizes) == 225
    sizes.clear()
    curve = metrics.deletion(model, x, 0, order, tolerance=tolerance)
    assert sum(sizes) == int(curve.run.sum()) < 225 / 2
    assert float((curve.area - full.area).abs()) < tolerance
    assert_close(curve.scores[curve.run], full.scores[curve.run])


@pytest.mark.parametrize(("height", "rows"), [(32, 1), (224, 8), (9, 1)])
def test_of_few_steps_enough_are_run_to_see_what_rises_and_falls(height, rows):
    for score in (SMOOTH["bell"], lambda t: 0.1 + 0.8 * torch.sin(torch.pi * t) ** 2):  # both ends are level
        model, _, x, order = along(score, height)
        full = metrics.deletion(model, x, 0, order, rows=rows)
        curve = metrics.deletion(model, x, 0, order, rows=rows, tolerance=1e-3)
        assert float((curve.area - full.area).abs()) < 2e-3


def test_scores_that_are_no_numbers_are_run_one_by_one():
    model, _, x, order = along(lambda t: torch.where(t > 0.5, t, torch.nan), 40)
    curve = metrics.deletion(model, x, 0, order, tolerance=1e-3)
    assert curve.scores[0].isnan().tolist() == (curve.shares >= 0.5).tolist()


def test_a_finer_tolerance_runs_more_points_and_more_of_them_where_the_score_moves():
    model, _, x, order = along(SMOOTH["sigmoid"])
    coarse, fine = (metrics.deletion(model, x, 0, order, tolerance=t).run[0] for t in (1e-3, 1e-5))
    assert (coarse <= fine).all()
    assert coarse.sum() < fine.sum()
    moving, level = slice(100, 180), slice(0, 80)  # of the pixels .37 are left at point 141
    assert fine[moving].sum() > 2 * fine[level].sum()
    assert int(coarse[level].sum()) == 3, "every 32nd, where nothing moves"


def test_between_the_points_that_were_run_scores_are_on_a_line():
    model, _, x, order = along(SMOOTH["bell"])
    curve = metrics.deletion(model, x, 0, order, tolerance=1e-3)
    at = curve.run[0].nonzero()[:, 0]
    line = np.interp(np.arange(225), at.numpy(), curve.scores[0, at].numpy())
    assert_close(curve.scores[0], torch.from_numpy(line))
    assert_close(curve.area[0], torch.trapezoid(curve.scores[0, at], at.double() / 224))


@pytest.mark.parametrize("measure", [metrics.insertion, metrics.deletion])
def test_with_no_tolerance_left_every_point_is_run(measure):
    x, m = torch.randn(2, 2, 3, 40, 5, dtype=torch.float64)
    net = randomise(nn.Sequential(nn.Flatten(), nn.Linear(600, 9), nn.ReLU(), nn.Linear(9, 3)), 2)
    order = metrics.ranks(m)
    full = measure(net, x, [1, 2], order, rows=1)
    assert full.run.all()
    none, tiny = (measure(net, x, [1, 2], order, 7, tolerance=tolerance) for tolerance in (0, 1e-12))
    for curve in (none, tiny):
        assert curve.run.all()
        assert_close(curve.scores, full.scores)


def test_with_a_tolerance_pictures_together_are_as_apart():
    x, m = torch.randn(2, 3, 1, 100, 4, dtype=torch.float64)
    net = randomise(nn.Sequential(nn.Flatten(), nn.Linear(400, 9), nn.ReLU(), nn.Linear(9, 3)), 2)
    order = metrics.ranks(m)
    together = metrics.insertion(net, x, 1, order, batch=4, tolerance=1e-3)
    assert len({*together.run.sum(1).tolist()}) > 1, "each picture has its own points"
    for b in range(3):
        alone = metrics.insertion(net, x[b : b + 1], 1, order[b : b + 1], tolerance=1e-3)
        assert torch.equal(alone.run[0], together.run[b])
        assert_close(alone.scores[0], together.scores[b])


def test_the_authors_order_is_the_union_of_the_channels(maps):
    """After step s the pixels that changed are those among the first s * width of any channel."""
    order = metrics.channel_ranks(maps)
    for b in range(3):
        for step in range(HEIGHT + 1):
            union = set()
            for channel in maps[b]:
                union |= set(channel.flatten().argsort(descending=True)[: step * WIDTH].tolist())
            assert set((order[b] < step * WIDTH).nonzero()[:, 0].tolist()) == union


class Map:
    """What torchcam measures: a network and one map for each picture."""

    def __init__(self, model, maps):
        self.model, self.maps = model, maps

    def __call__(self, class_idx, scores):
        return [self.maps]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return torch.no_grad()


def test_areas_are_those_of_torchcam(network, pictures, maps):
    """With its steps of one row, its baseline zero or blurred, and no equal values."""
    classes, values = [1, 3, 0], maps.sum(1)
    for measure, baseline, name in (
        (metrics.deletion, None, "deletion_auc"),
        (metrics.insertion, metrics.blur, "insertion_auc"),
    ):
        peer = DeletionInsertionMetric(
            Map(network, values), lambda logits: logits.softmax(1), steps=HEIGHT, baseline=baseline
        )
        peer.update(pictures, classes)
        area = measure(network, pictures, classes, metrics.ranks(maps)).area
        assert float(area.mean()) == pytest.approx(peer.summary()[name], abs=1e-6)  # it divides in single precision


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (1, 1, 12, 30)])
def test_the_blur_is_that_of_the_slow_twin(shape):
    x = torch.randn(*shape, dtype=torch.float64)
    assert_close(metrics.blur(x), blurred_twin(x))


def test_the_blur_keeps_the_mean_away_from_the_edges():
    x = torch.zeros(1, 1, 40, 40, dtype=torch.float64)
    x[0, 0, 20, 20] = 1
    assert float(metrics.blur(x).sum()) == pytest.approx(1)
    assert int((metrics.blur(x) > 0).sum()) == 121


def test_ranks_sort_pixels_by_their_channels_sum(maps):
    order = metrics.ranks(maps)
    for b, values in enumerate(maps.sum(1).flatten(1)):
        by_rank = values[order[b].argsort()]
        assert (by_rank[:-1] >= by_rank[1:]).all()
        assert sorted(order[b].tolist()) == list(range(HEIGHT * WIDTH))
    assert torch.equal(order, metrics.ranks(maps.sum(1)))


def test_equal_values_are_at_random_by_the_seed():
    flat = torch.zeros(2, 1, 20, 20)
    flat[:, :, :10] = 1
    first, again, other = metrics.ranks(flat, 1), metrics.ranks(flat, 1), metrics.ranks(flat, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.view(2, 20, 20)[:, :10] < 200).all()
    upper = first.view(2, 20, 20)[:, :10].double()
    assert abs(float(upper[:, :5].mean() - upper[:, 5:].mean())) < 25  # in array order it would be 100
    apart = metrics.ranks(flat, [1, 2])
    assert torch.equal(apart[0], first[0])
    assert torch.equal(apart[1], other[1])


def test_batches_are_one_by_one(network, pictures, maps):
    classes = torch.tensor([2, 0, 3])
    for measure in (metrics.insertion, metrics.deletion):
        together = measure(network, pictures, classes, metrics.ranks(maps, [7, 8, 9]))
        for b in range(3):
            order = metrics.ranks(maps[b : b + 1], 7 + b)
            alone = measure(network, pictures[b : b + 1], int(classes[b]), order)
            assert_close(alone.scores[0], together.scores[b])


def test_of_large_pictures_few_are_run_at_a_time():
    sizes = []

    def model(x):
        sizes.append(len(x))
        return x.flatten(1)[:, :3]

    for side in (10, 300):
        metrics.deletion(model, torch.zeros(1, 3, side, side), 0, torch.arange(side**2)[None])
    assert sizes[0] == 11
    assert set(sizes[1:-1]) == {2**20 // (3 * 300**2)}


def test_the_network_is_as_it_was(network, pictures, maps):
    network[0].weight.requires_grad_()
    curve = metrics.deletion(network, pictures, 1, metrics.ranks(maps))
    assert not curve.scores.requires_grad
    assert network[0].weight.grad is None


def test_a_faithful_map_inserts_higher_and_deletes_lower():
    """A network that sums a known half of the pixels: the map of them against a random one and the opposite."""

    def model(x):
        score = x[:, :, :4].sum((1, 2, 3))
        return torch.stack([score / 20, torch.zeros_like(score)], 1)

    x = torch.ones(1, 3, 8, 8)
    right = torch.zeros(1, 8, 8)
    right[:, :4] = 1
    named = {"right": right, "random": torch.rand(1, 8, 8), "wrong": -right}
    found = {name: metrics.ranks(m) for name, m in named.items()}
    inserted, deleted = (
        [float(measure(model, x, 0, order).area) for order in found.values()]
        for measure in (metrics.insertion, metrics.deletion)
    )
    assert inserted == sorted(inserted, reverse=True)
    assert deleted == sorted(deleted)


def test_intervals_are_percentiles_of_means_of_draws():
    values = torch.randn(40, dtype=torch.float64) + 2
    got = metrics.interval(values, seed=3, level=0.9)
    generator = np.random.default_rng(0)
    means = sorted(values.numpy()[generator.integers(0, 40, 40)].mean() for _ in range(20_000))
    assert got.mean == pytest.approx(float(values.mean()))
    assert got.low == pytest.approx(means[1000], abs=0.02)
    assert got.high == pytest.approx(means[19_000], abs=0.02)
    assert got.level == 0.9
    assert got == metrics.interval(values, seed=3, level=0.9)
    assert got != metrics.interval(values, seed=4, level=0.9)


def test_intervals_hold_the_true_mean_about_as_often_as_they_say():
    generator = torch.Generator().manual_seed(0)
    found = [metrics.interval(torch.rand(50, generator=generator), draws=400) for _ in range(200)]
    assert 0.88 <= sum(i.low <= 0.5 <= i.high for i in found) / 200 <= 0.99


FLAT = torch.zeros(1, 30, dtype=torch.long)


def within(tolerance):
    return metrics.insertion(nn.Flatten().eval(), torch.zeros(1, 1, 6, 5), 0, FLAT, tolerance=tolerance)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: metrics.ranks(torch.zeros(1, 3, 2, 2), [0, 1]), InputError, "2 seeds for 1 pictures"),
        (lambda: metrics.ranks(torch.full((1, 2, 2), float("nan"))), InputError, "NaN"),
        (lambda: metrics.ranks(torch.zeros(0, 2, 2)), InputError, "maps have shape"),
        (lambda: metrics.deletion(nn.Flatten().eval(), torch.zeros(1, 1, 6, 5), 0, FLAT[:, :4]), InputError, "order"),
        (lambda: metrics.deletion(nn.Flatten().eval(), torch.zeros(1, 1, 6, 5), 0, FLAT, 0), InputError, "batch"),
        (lambda: within(-0.1), InputError, "a tolerance is an area, at least 0.*got -0.1"),
        (lambda: within(float("nan")), InputError, "a tolerance is an area, at least 0.*got nan"),
        (lambda: metrics.deletion(nn.Flatten().eval(), torch.zeros(1, 1, 6, 5), 30, FLAT), TargetError, "30 classes"),
        (
            lambda: metrics.deletion(nn.Flatten().eval(), torch.zeros(1, 1, 6, 5), [1, 2], FLAT),
            TargetError,
            "2 classes",
        ),
        (lambda: metrics.deletion(nn.Identity().eval(), torch.zeros(1, 1, 6, 5), 0, FLAT), TargetError, "logit"),
        (lambda: metrics.deletion(nn.Dropout(), torch.zeros(1, 1, 6, 5), 0, FLAT), TrainingModeError, "eval"),
        (lambda: metrics.interval(torch.ones(1)), InputError, "two or more"),
        (lambda: metrics.interval(torch.tensor([1, float("nan")])), InputError, "two or more"),
        (lambda: metrics.interval(torch.ones(3), level=1.0), InputError, "level"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
