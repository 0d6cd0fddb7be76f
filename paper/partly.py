"""Maps averaged over partial pictures: what a pixel adds on the way from nothing to the whole picture.

A partial picture shows each pixel of x with some chance, the same for all of its pixels, and a start x' elsewhere; the
chances run evenly from 0 to 1. From the linear models W(z) of these pictures z, of the network or of paths found at z,
pixel i gets

    the mean over z of W_i(z) (x_i - x'_i)

This is Owen's integral for the Shapley value of the pixel, but that what its coming changes is read off the linear
model. Starts are those of deletion and insertion, zero and the blurred picture; of both, the maps are added.

Source: Owen: Multilinear extensions of games, Management Science 1972. To read linear models of paths there is this
library's.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import islice

import captum.attr
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d

import peers
import relupath
from relupath import metrics
from relupath._search import Search

Ours = Callable[[relupath.Frozen, Tensor], Tensor]
"""From the frozen network and the classes to maps, or to weights."""
Start = Callable[[Tensor], Tensor]
ZERO, BLUR = torch.zeros_like, metrics.blur
PICTURES = 64
"""From each start."""
AT_ONCE = 16
"""Partial pictures in one batch: from this many on, one thread has its fast kernels for convolutions of 1 x 1."""
NARROW, WIDE = 0.7, 1.0
"""Standard deviations of the Gaussian by which our maps and the peers' are smoothed, in 32nds of the height."""
ORDERS = 6
"""In which Shapley sampling lets the pixels come: each is one pass of the network a pixel."""
SLOW = (
    "Shapley sampling", "Occlusion", "LRP, gamma-box, partial pictures", "Mass, share 0.9, 1 layer, partial pictures",
    "Mass for less against, share 0.9, 2 layers", "Mass for less against, share 0.9, all layers", "BestFirst", "Exact",
)  # fmt: skip
"""So begin the names of what is measured only where it is asked for."""
WINDOW = (3, 5, 5)
"""What Occlusion covers at a time."""


def searches(model: nn.Module) -> dict[str, Ours]:
    """Ours over partial pictures, by name: as they are, and smoothed."""
    at_zero, at_blur = (once(partial(averaged, model, whole, start)) for start in (ZERO, BLUR))

    def paths(weigh: Callable[..., Tensor], depth: int | None) -> Ours:
        of_search = partial(weigh, relupath.Mass(0.9, depth))
        return once(lambda frozen, c: sum(averaged(model, of_search, start, frozen, c) for start in (ZERO, BLUR)))

    found: dict[str, Ours] = {
        "W x, partial pictures": lambda frozen, c: at_zero(frozen, c) + at_blur(frozen, c),
        "Mass for less against, share 0.9, 1 layer, partial pictures": paths(for_less_against, 1),
        "Mass for less against, share 0.9, 2 layers, partial pictures": paths(for_less_against, 2),
        "Mass for less against, share 0.9, all layers, partial pictures": paths(for_less_against, None),
        "Mass, share 0.9, 1 layer, partial pictures": paths(of_paths, 1),
    }
    bases = {**found, "W x, partial pictures from blur": at_blur}
    return {**found, **{f"{name}, smoothed": _smooth(maps, NARROW) for name, maps in bases.items()}}


def field(model: nn.Module, usual: Mapping[str, peers.Method]) -> dict[str, peers.Method]:
    """Peers given the same: other starts, partial pictures, and smoothing.

    Args:
        model: the network.
        usual: the peers as they are.
    """
    net = peers.not_in_place(model)

    def from_blur(method: Callable[..., Tensor], **more: object) -> peers.Method:
        return peers.plain(lambda x, target: method(x, baselines=metrics.blur(x.detach()), target=target, **more))

    at_zero = once(usual["Integrated Gradients"])
    at_blur = once(from_blur(partial(peers.in_batches, captum.attr.IntegratedGradients(net).attribute)))
    found: dict[str, peers.Method] = {
        "Integrated Gradients": at_zero,
        "Integrated Gradients, from blur": at_blur,
        "Integrated Gradients, both starts": lambda x, c: at_zero(x, c) + at_blur(x, c),
    }
    again = ("Input x Gradient", "LRP, epsilon-plus", "LRP, gamma-box")
    bases = {**{name: usual[name] for name in again}, **found}
    found |= {f"{name}, smoothed": _smooth(maps, WIDE) for name, maps in bases.items()}
    found |= _shapley(captum.attr.ShapleyValueSampling(net).attribute)
    covered = captum.attr.Occlusion(net).attribute
    found["Occlusion, from blur"] = from_blur(covered, sliding_window_shapes=WINDOW, perturbations_per_eval=8)
    found["LRP, gamma-box, partial pictures"] = partial(_lrp, usual["LRP, gamma-box"])
    return found


def seen(x: Float[Tensor, "B C H W"], start: Start) -> Iterator[Tensor]:
    """The partial pictures: in pairs that show opposite pixels, the same ones of all pictures."""
    draws, nothing = torch.Generator().manual_seed(0), start(x)
    for pair in range(PICTURES // 2):
        shown = torch.rand(x.shape[2:], generator=draws) < (pair + 0.5) / (PICTURES // 2)
        for some in (shown, ~shown):
            yield torch.where(some.to(x.device), x, nothing)


def averaged(model: nn.Module, weigh: Ours, start: Start, frozen: relupath.Frozen, c: Tensor) -> Tensor:
    """The maps of one kind of linear model, whose weights ``weigh`` gives, from one start."""
    x = frozen.inputs[0].output
    weights, some = torch.zeros_like(x), max(1, AT_ONCE // len(x))
    for group in batched(seen(x, start), some):
        of_all = weigh(relupath.freeze(model, torch.cat(group)), c.repeat(len(group)))
        weights += of_all.view(-1, *x.shape).sum(0)
    return weights / PICTURES * (x - start(x))


def batched(pictures: Iterator[Tensor], count: int) -> Iterator[list[Tensor]]:
    """Some at a time, in their order."""
    while group := [*islice(pictures, count)]:
        yield group


def whole(frozen: relupath.Frozen, c: Tensor) -> Tensor:
    """The weight of the network's linear model."""
    weight = relupath.linear_model(frozen, c).weight
    assert isinstance(weight, Tensor)
    return weight


def of_paths(search: Search, frozen: relupath.Frozen, target: Callable[[Tensor], Tensor] | Tensor) -> Tensor:
    """The weight of the path that a search finds; zero where it finds none."""
    found = relupath.find_paths(frozen, target, search)
    weight = found.model.weight
    assert isinstance(weight, Tensor)
    some = torch.tensor([bool(path) for path in found.paths], device=weight.device)
    return torch.where(some.view(-1, 1, 1, 1), weight, 0)


def for_less_against(search: Search, frozen: relupath.Frozen, c: Tensor) -> Tensor:
    """The weight of the logit in two paths: of what speaks for it, and of what speaks against it."""
    return of_paths(search, frozen, c) - of_paths(search, frozen, lambda output: -relupath.logit(c)(output))


def smoothed(maps: peers.Maps, sigma: float) -> Float[Tensor, "B H W"]:
    """The channels' sum under a Gaussian, zero beyond the edge."""
    total = maps if maps.ndim == 3 else maps.sum(1)
    reach = round(3 * sigma)
    line = torch.exp(-(torch.arange(-reach, reach + 1, device=maps.device).to(maps) ** 2) / (2 * sigma**2))
    across = conv2d(total[:, None], (line / line.sum()).view(1, 1, 1, -1), padding=(0, reach))
    return conv2d(across, (line / line.sum()).view(1, 1, -1, 1), padding=(reach, 0))[:, 0]


def once(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A method that keeps its last maps, for those that read them in another way."""
    return lru_cache(1)(method)


def _shapley(method: Callable[..., Tensor]) -> dict[str, peers.Method]:
    """Captum's Shapley values of the pixels, by the order in which they come; smoothed."""

    def values(start: Start, x: Tensor, c: Tensor) -> Tensor:
        pixels = torch.arange(x[0, 0].numel(), device=x.device).view(1, 1, *x.shape[2:])
        given = {"baselines": start(x), "feature_mask": pixels, "n_samples": ORDERS, "perturbations_per_eval": 8}
        return method(x, target=c, **given).detach()[:, 0]

    at_zero, at_blur = (once(partial(values, start)) for start in (ZERO, BLUR))
    names = "Shapley sampling, from blur, smoothed", "Shapley sampling, both starts, smoothed"
    found = at_blur, lambda x, c: at_zero(x, c) + at_blur(x, c)
    return {name: _smooth(maps, NARROW) for name, maps in zip(names, found, strict=True)}


def _lrp(method: peers.Method, x: Tensor, c: Tensor) -> Tensor:
    """The mean relevance of what each partial picture shows."""
    return sum((method(z, c) * (z == x) for start in (ZERO, BLUR) for z in seen(x, start)), torch.zeros_like(x))


def _smooth(method: Callable[..., Tensor], sigma: float) -> Callable[..., Tensor]:
    def maps(*given: object) -> Tensor:
        found = method(*given)
        return smoothed(found, sigma * found.shape[-2] / 32)

    return maps
