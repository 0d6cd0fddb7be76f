"""The field's maps for the table: Captum's and zennit's own implementations, at their usual settings."""

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import partial

import captum.attr
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate
from zennit.attribution import Gradient
from zennit.composites import EpsilonGammaBox, EpsilonPlus

Maps = Float[Tensor, "B C H W"] | Float[Tensor, "B H W"]
Method = Callable[[Float[Tensor, "B C H W"], Int[Tensor, " B"]], Maps]
SAMPLES, NOISE = 25, 0.15
"""Of SmoothGrad: how many, and their standard deviation as a share of the input's range."""
AT_ONCE = 5 * 2**19
"""Input numbers in one batch of Integrated Gradients: 17 of the large pictures; less than 16 lack the fast kernels."""


def methods(model: nn.Module, guided: str, cam: str) -> Mapping[str, Method]:
    """Every peer's maps, by its name.

    Args:
        model: the network, in eval mode.
        guided: the layer of Guided Grad-CAM.
        cam: the layer of Grad-CAM.
    """
    net = not_in_place(model)
    saliency = captum.attr.Saliency(net).attribute
    found = {
        "Saliency": saliency,
        "Saliency, signed": partial(saliency, abs=False),
        "Input x Gradient": captum.attr.InputXGradient(net).attribute,
        "Integrated Gradients": partial(in_batches, captum.attr.IntegratedGradients(net).attribute),
        "Guided Backprop": captum.attr.GuidedBackprop(net).attribute,
        "Guided Grad-CAM": captum.attr.GuidedGradCam(net, net.get_submodule(guided)).attribute,
        "SmoothGrad": partial(_smooth, saliency),
        "Grad-CAM": partial(_cam, captum.attr.LayerGradCam(net, net.get_submodule(cam))),
        "LRP, epsilon-plus": lambda x, target: _lrp(net, EpsilonPlus(), x, target),
        "LRP, gamma-box": lambda x, target: _lrp(net, EpsilonGammaBox(float(x.min()), float(x.max())), x, target),
    }
    return {name: plain(attribute) for name, attribute in found.items()}


def plain(attribute: Callable[..., Tensor]) -> Method:
    """Without a method's remarks and derivatives."""

    def maps(x: Tensor, c: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # says that it sets hooks on ReLUs
            return attribute(x.clone().requires_grad_(), target=c).detach().to(x.dtype)

    return maps


def in_batches(method: Callable[..., Tensor], x: Tensor, target: Tensor, **more: object) -> Tensor:
    """Integrated gradients by few of the large pictures at a time."""
    return method(x, target=target, internal_batch_size=max(len(x), AT_ONCE // x[0].numel()), **more)


def _smooth(saliency: Callable[..., Tensor], x: Tensor, target: Tensor) -> Tensor:
    """The mean of the gradients' sizes at noisy inputs."""
    x = x.detach()
    noise = NOISE * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, 1, 1)
    noisy = (saliency((x + noise * torch.randn_like(x)).requires_grad_(), target=target) for _ in range(SAMPLES))
    return torch.stack([*noisy]).mean(0)


def _cam(method: captum.attr.LayerGradCam, x: Tensor, target: Tensor) -> Tensor:
    """Grad-CAM of a layer, brought to the picture's size."""
    found = method.attribute(x, target, relu_attributions=True)
    return interpolate(found, x.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def _lrp(net: nn.Module, composite: EpsilonPlus | EpsilonGammaBox, x: Tensor, c: Tensor) -> Tensor:
    """Relevance at the input, begun with 1 at each picture's class."""
    count = net(x[:1]).shape[1]
    with Gradient(net, composite) as attribution:
        return attribution(x, torch.eye(count)[c].to(x))[1]


def not_in_place(model: nn.Module) -> nn.Module:
    """A copy whose activations leave their inputs as they are, which hooks need."""
    net = copy.deepcopy(model)
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return net
