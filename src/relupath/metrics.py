"""Faithfulness of a map: what the score of a class does as the pixels go, or come, in the order that the map gives.

For insertion higher is better, for deletion lower. These figures know no path: a map from any method will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from ._html import block, number, said, samples
from .errors import InputError, TargetError, TrainingModeError

__all__ = ["Curve", "Interval", "blur", "channel_ranks", "deletion", "insertion", "interval", "ranks"]

WIDTH, SIGMA = 11, 5.0
"""The kernel of the blurred picture from which insertion starts: pixels a side, and standard deviation."""
DRAWS = 2000
AT_ONCE = {"cpu": 2**20}
"""Input numbers in one batch: on a processor more at once is slower, as every step then asks for new memory."""
COARSE, PIECES = 32, 7
"""With a tolerance, at most so many steps at first lie between two points at which the network is run, and so many
pieces at least lie between such points."""

Network = Callable[[Tensor], Tensor]
Classes = int | Sequence[int] | Int[Tensor, " B"]
Maps = Float[Tensor, "B C H W"] | Float[Tensor, "B H W"]


@dataclass(frozen=True, eq=False)
class Curve:
    """The soft-max score of a class for every picture, after each step.

    Attributes:
        scores: before the first step, after the first, ... after the last, (B, points): one more than steps.
        shares: of the pixels that have changed at each of these points, from 0 to 1.
        run: at which points the network was run; with a tolerance, scores between two of them are on a line.
    """

    scores: Float[Tensor, "B points"] = field(repr=False)
    shares: Float[Tensor, " points"] = field(repr=False)
    run: Bool[Tensor, "B points"] = field(repr=False)

    def _repr_html_(self) -> str:
        ends = {"first score": self.scores[:, 0].tolist(), "last score": self.scores[:, -1].tolist()}
        columns = {**ends, "area": self.area.tolist()}
        return block(f"Scores after each of {self.scores.shape[1] - 1} steps", samples(columns))

    @property
    def area(self) -> Float[Tensor, " B"]:
        """The area under the curve, by trapezia over the shares."""
        return torch.trapezoid(self.scores, self.shares, dim=1)


@dataclass(frozen=True)
class Interval:
    """A mean, and the interval in which a share ``level`` of the means of bootstrap samples lie."""

    mean: float
    low: float
    high: float
    level: float = 0.95

    def _repr_html_(self) -> str:
        ends = f"{number(self.low)} to {number(self.high)} at {100 * self.level:g} %"
        return block("A mean and its interval", said(f"{number(self.mean)}, {ends}"))


def ranks(maps: Maps, seed: int | Sequence[int] = 0) -> Int[Tensor, "B pixels"]:
    """The place of every pixel when pixels are sorted by their value, channels summed, the largest first.

    Args:
        maps: one number a pixel, or one for each of its channels; red (positive) comes first.
        seed: decides among equal values, at random; one for all pictures, or one a picture.

    Raises:
        InputError: the maps have another shape, hold NaN, or there is not one seed a picture.
    """
    return _places(_channels(maps).sum(1, keepdim=True), seed)[:, 0]


def channel_ranks(maps: Maps, seed: int | Sequence[int] = 0) -> Int[Tensor, "B pixels"]:
    """The variant of the paper's authors: channels are sorted apart, and a pixel has the best of its channels' places.

    In a step of n pixels the first n of each channel change, in all channels: up to three times as many as in a step of
    ``ranks``, so that areas of the two do not compare. Equal values are at random here too; the authors' code takes
    them as they stand.

    Raises:
        InputError: as ``ranks``.
    """
    return _places(_channels(maps), seed).amin(1)


def deletion(
    model: Network,
    x: Float[Tensor, "B C H W"],
    classes: Classes,
    order: Int[Tensor, "B pixels"],
    batch: int | None = None,
    rows: int = 1,
    tolerance: float | None = None,
) -> Curve:
    """The score as the pixels become zero, one row's worth of them a step, in the order given; lower is better.

    Zero is that of the network's input: of normalised pictures, the mean colour.

    Args:
        model: from pictures to logits, (B, classes).
        x: the pictures.
        classes: whose score, one for all pictures or one a picture.
        order: the place of every pixel, from ``ranks`` or ``channel_ranks``.
        batch: how many pictures are run at a time; None: as many small ones as are fast, few large ones.
        rows: how many rows' worth of pixels change in a step; the last step changes what is left.
        tolerance: None runs the network at every step. Else it is run at every 32nd, in eight places at least, and
            then in the middle of any two such points as long as the area between them may be off by this much or more,
            which is told from how far the score goes there and how it bends at their ends: an estimate, of each piece
            by itself. What a score does between two points that are level, nobody sees.

    Raises:
        InputError: the order does not fit the pictures, a batch or a step is empty, or the tolerance is negative.
        TargetError: a class is out of range, or the model gives no logits.
        TrainingModeError: part of the model is in training mode.

    Source: Petsiuk, Das, Saenko: RISE, BMVC 2018, section 4.2.
    """
    return _curve(model, (x, torch.zeros_like(x)), classes, order, batch, rows, tolerance)


def insertion(
    model: Network,
    x: Float[Tensor, "B C H W"],
    classes: Classes,
    order: Int[Tensor, "B pixels"],
    batch: int | None = None,
    rows: int = 1,
    tolerance: float | None = None,
) -> Curve:
    """The score as the pixels come back into the blurred picture; higher is better.

    Arguments, errors and source as in ``deletion``.
    """
    return _curve(model, (blur(x), x), classes, order, batch, rows, tolerance)


def blur(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Each channel under an 11 x 11 Gaussian of sigma 5; beyond its edge a picture is zero.

    What of the Gaussian falls outside the 11 x 11 pixels is mirrored into them, as in the code of RISE: the kernel
    sums to 1 and is flatter than one that is cut.
    """
    offsets = torch.arange(-4 * int(SIGMA), 4 * int(SIGMA) + 1, device=x.device)
    bell = torch.exp(-(offsets.to(x.dtype) ** 2) / (2 * SIGMA**2))
    place = (offsets + WIDTH // 2) % (2 * WIDTH)
    place = torch.where(place < WIDTH, place, 2 * WIDTH - 1 - place)
    line = bell.new_zeros(WIDTH).index_add(0, place, bell / bell.sum())
    channels = x.shape[1]
    across = conv2d(x, line.expand(channels, 1, 1, WIDTH), padding=(0, WIDTH // 2), groups=channels)
    return conv2d(across, line[:, None].expand(channels, 1, WIDTH, 1), padding=(WIDTH // 2, 0), groups=channels)


def interval(values: Shaped[Tensor, " N"], seed: int = 0, level: float = 0.95, draws: int = DRAWS) -> Interval:
    """The mean of some numbers, and its bootstrap interval by percentiles.

    Args:
        values: one number a picture.
        seed: of the draws with replacement.
        level: the share of the draws' means inside the interval.
        draws: how many.

    Raises:
        InputError: there are less than two numbers, one is NaN, or the level is not between 0 and 1.

    Source: Efron: Bootstrap methods, Annals of Statistics 1979; percentile intervals.
    """
    values = values.detach().double().cpu()
    if values.ndim != 1 or len(values) < 2 or not values.isfinite().all():
        raise InputError(f"an interval needs two or more finite numbers; got {values.tolist()}")
    if not 0 < level < 1 or draws < 1:
        raise InputError(f"an interval needs a level between 0 and 1 and a draw; got {level} and {draws}")
    chosen = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(seed))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = values[chosen].mean(1).quantile(ends).tolist()
    return Interval(float(values.mean()), low, high, level)


def _channels(maps: Tensor) -> Float[Tensor, "B C H W"]:
    """The maps with an axis for channels.

    Raises:
        InputError: they are no maps.
    """
    if maps.ndim not in (3, 4) or not maps.numel():
        raise InputError(f"maps have shape (B, C, H, W) or (B, H, W); got {list(maps.shape)}")
    if maps.isnan().any():
        raise InputError("a map holds NaN, by which no pixel can be sorted")
    return maps.detach() if maps.ndim == 4 else maps.detach()[:, None]


def _places(values: Float[Tensor, "B C H W"], seed: int | Sequence[int]) -> Int[Tensor, "B C pixels"]:
    """The place of every value of a channel, the largest first, equal ones at random."""
    samples, pixels = len(values), values.shape[2] * values.shape[3]
    seeds = [seed] * samples if isinstance(seed, int) else [*seed]
    if len(seeds) != samples:
        raise InputError(f"{len(seeds)} seeds for {samples} pictures: give one, or one a picture")
    mixed = torch.stack([torch.randperm(pixels, generator=torch.Generator().manual_seed(s)) for s in seeds])
    mixed = mixed.to(values.device)[:, None].expand(*values.shape[:2], pixels)
    sorted_ = values.flatten(2).gather(2, mixed).argsort(dim=2, descending=True, stable=True)
    places = torch.arange(pixels, device=values.device).expand_as(mixed)
    return torch.empty_like(mixed).scatter_(2, mixed.gather(2, sorted_), places)


def _curve(
    model: Network,
    ends: tuple[Tensor, Tensor],
    classes: Classes,
    order: Tensor,
    batch: int | None,
    rows: int,
    tolerance: float | None,
) -> Curve:
    """The scores on the way from one picture to the other, some pictures of the way at a time."""
    start, finish = ends
    samples, _, height, width = start.shape
    if order.shape != (samples, height * width):
        raise InputError(f"the order of the pixels has shape {list(order.shape)}, not {[samples, height * width]}")
    if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
        raise TrainingModeError("part of the model is in training mode: call model.eval() first")
    if batch is None:
        batch = max(1, AT_ONCE.get(start.device.type, 2**24) // start[0].numel())
    if batch < 1 or rows < 1:
        raise InputError(f"batch and rows must be at least 1; got {batch} and {rows}")
    if tolerance is not None and not tolerance >= 0:
        raise InputError(f"a tolerance is an area, at least 0, or None to run every step; got {tolerance}")
    wanted = torch.tensor([classes] * samples if isinstance(classes, int) else [*classes], device=start.device)
    if len(wanted) != samples:
        raise TargetError(f"{len(wanted)} classes for {samples} pictures: give one class, or one a picture")
    order = order.to(start.device).view(samples, 1, height, width)
    steps = torch.tensor([*range(0, height, rows), height], device=start.device)

    def scored(sample: Int[Tensor, " N"], point: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        changed = order[sample] < (steps[point] * width).view(-1, 1, 1, 1)
        with torch.no_grad():
            return _scores(model(torch.where(changed, finish[sample], start[sample])), wanted[sample])

    due = torch.zeros(samples, len(steps), dtype=torch.bool, device=start.device)
    stride = 1 if tolerance is None else min(COARSE, max(1, (len(steps) - 1) // PIECES))
    due[:, ::stride] = due[:, -1] = True
    run, scores = torch.zeros_like(due), start.new_zeros(due.shape)
    while True:
        found = torch.cat([scored(*some.unbind(1)) for some in torch.split(due.nonzero(), batch)])
        shares = steps.to(torch.promote_types(found.dtype, torch.float32)) / height
        scores, run = scores.to(found).masked_scatter(due, found), run | due
        if tolerance is None or not (due := _unsure(scores, run, shares, tolerance)).any():
            return Curve(scores if tolerance is None else _between(scores, run, shares), shares, run)


def _scores(logits: Tensor, classes: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The soft-max score of one class a picture.

    Raises:
        TargetError: these are no logits, or a class is out of range.
    """
    if logits.ndim != 2 or len(logits) != len(classes):
        raise TargetError(f"the model must give one logit a class, (samples, classes); got {list(logits.shape)}")
    if classes.min() < 0 or classes.max() >= logits.shape[1]:
        raise TargetError(f"a class is out of range: the model has {logits.shape[1]} classes; got {classes.tolist()}")
    return logits.softmax(1).gather(1, classes[:, None])[:, 0]


def _unsure(
    scores: Float[Tensor, "B points"], run: Bool[Tensor, "B points"], shares: Float[Tensor, " points"], tolerance: float
) -> Bool[Tensor, "B points"]:
    """The middles of the pieces whose area may be off by the tolerance.

    A monotone score that rises by r over a piece of width w encloses an area that is off by r w / 2 at most, one that
    bends there as much as its slope changes by s from piece to piece by about s w^2 / 12; taken are an eighth of both.
    """
    middles = torch.zeros_like(run)
    for sample, points in enumerate(own.nonzero()[:, 0] for own in run):
        width, rise = shares[points].diff(), scores[sample, points].diff()
        turn = (rise / width).diff().abs()
        bend = torch.maximum(pad(turn, (0, 1)), pad(turn, (1, 0)))
        sure = width * (rise.abs() + bend * width) / 8 < tolerance  # not where it is no number
        wide = ~sure & (points.diff() > 1)
        middles[sample, (points[:-1] + points[1:])[wide] // 2] = True
    return middles


def _between(
    scores: Float[Tensor, "B points"], run: Bool[Tensor, "B points"], shares: Float[Tensor, " points"]
) -> Float[Tensor, "B points"]:
    """The scores, on a line wherever the network was not run."""
    places = torch.arange(run.shape[1], device=run.device).expand_as(run)
    left = torch.where(run, places, 0).cummax(1).values
    right = torch.where(run, places, run.shape[1] - 1).flip(1).cummin(1).values.flip(1)
    part = (shares - shares[left]) / (shares[right] - shares[left]).where(~run, 1)
    return torch.where(run, scores, scores.gather(1, left).lerp(scores.gather(1, right), part.to(scores)))
