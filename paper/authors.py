"""What the authors' public code computes where it differs from the definition, to show what that changes.

Written from what that code does, for a plain chain of modules. Each ReLU of a chosen layer gives way to the 0/1 mask of
the chosen units, and the weight is the gradient of that masked network. For the predicted class this differs from the
definition in one way: where the input of a chosen unit turns negative because of the masks below, max-pooling takes
another route. (For a class for which no unit speaks, a unit whose gate is shut may be chosen, and is let through.) And
pixels of equal value, of a narrow path nearly all, stand as a sort that is not stable leaves them: mostly in runs along
the rows of the picture.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def selective(
    model: nn.Module,
    x: Float[Tensor, "B C H W"],
    classes: Int[Tensor, " B"],
    width: int | None,
    depth: int | None = None,
) -> Float[Tensor, "B C H W"]:
    """``W x`` of the network whose ReLUs on the top ``depth`` layers are masks, chosen from the top down.

    Args:
        model: a network whose modules run in the order in which they are found.
        x: the pictures.
        classes: which class is explained, one a picture.
        width: at most so many units a layer; None means no limit.
        depth: on so many layers from the top; None means all.
    """
    steps = [module for module in model.modules() if not [*module.children()]]
    relus = [number for number, module in enumerate(steps) if isinstance(module, nn.ReLU)]
    masks: dict[int, Tensor] = {}
    for level in reversed(relus if depth is None else relus[-depth:]):
        h = _run(steps, masks, x, 0, level + 1)
        share = (_jacobian(steps, masks, h, level + 1) * h).softmax(0)
        own = share.gather(0, classes.view(1, -1, *[1] * (h.ndim - 1)).expand(1, *h.shape))[0]
        masks[level] = _chosen(own.flatten(1), width, 1 / len(share)).view_as(h)
    weight = _jacobian(steps, masks, x, 0)
    return weight[classes, torch.arange(len(x))] * x


def ranks(maps: Float[Tensor, "B C H W"]) -> Int[Tensor, "B pixels"]:
    """The best place of each pixel in its channels' orders, equal values as numpy's sort leaves them, turned round.

    On another processor that sort may leave them otherwise.
    """
    order = np.argsort(maps.detach().flatten(2).numpy(), axis=2)[:, :, ::-1].copy()
    sorted_ = torch.from_numpy(order)
    places = torch.arange(sorted_.shape[2]).expand_as(sorted_)
    return torch.empty_like(sorted_).scatter_(2, sorted_, places).amin(1)


def _run(steps: Sequence[nn.Module], masks: Mapping[int, Tensor], h: Tensor, start: int, stop: int) -> Tensor:
    """The network from one step to another, with masks in place of some ReLUs."""
    for number in range(start, stop):
        h = h * masks[number] if number in masks else steps[number](h)
    return h


def _jacobian(
    steps: Sequence[nn.Module], masks: Mapping[int, Tensor], h: Float[Tensor, "B ..."], start: int
) -> Float[Tensor, "K B ..."]:
    """The derivative of every logit by ``h``, in the masked network."""
    with torch.enable_grad():
        h = h.detach().requires_grad_()
        logits = _run(steps, masks, h, start, len(steps)).sum(0)
        return torch.stack([torch.autograd.grad(logit, h, retain_graph=True)[0] for logit in logits])


def _chosen(share: Float[Tensor, "B units"], width: int | None, chance: float) -> Bool[Tensor, "B units"]:
    """The units of the largest share above chance, at least the best one."""
    best = share.argsort(dim=1, descending=True)[:, :width]
    chosen = torch.zeros_like(share, dtype=torch.bool).scatter_(1, best, share.gather(1, best) > chance)
    return chosen.scatter_(1, best[:, :1], True)
