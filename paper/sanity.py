"""Sanity checks of maps by Captum's and Quantus' own implementations: of paths, and of the field's methods.

    python paper/sanity.py --count 12 --batch 6 --json paper/expected/sanity-creatures.json
    python paper/sanity.py --cifar10 test.zip --weights toycnn_cifar10.safetensors --count 100 --json FILE

Captum measures how far a map moves with its input (``sensitivity_max``) and how much of the change of the logit the map
leaves unexplained as squares of the picture go, or as noise comes (``infidelity``). Beside these stands how alike the
map of the same class is at another input. Where Quantus is installed it measures how alike the map stays as layers are
drawn anew, from the top down and one at a time (MPRT), how alike the map of another class is (RandomLogit), and
MaxSensitivity and Infidelity in its own way.

Controls: the input itself as a map, and a random map, new at each call. All maps are of the predicted class.
"""

import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from torch import Tensor, nn
from tqdm import tqdm

import asked
import causal
import peers
import relupath
from relupath import metrics
from relupath._search import Search
from relupath.bridges import PathAttribution, QuantusExplainer

OURS: dict[str, Search | None] = {
    "W x": None,
    "Mass .5, top layer": relupath.Mass(0.5, 1),
    "Mass .5, all layers": relupath.Mass(0.5),
    "Mass .9, all layers": relupath.Mass(0.9),
    "Selective 64, top layer": relupath.Selective(64, 1),
    "Selective 64, all layers": relupath.Selective(64),
    "Greedy, top layer": relupath.Greedy(),
    "Greedy, all layers": relupath.Greedy(),
    "Beam, all layers": relupath.Beam(8),
}
ONE = ("Greedy, top layer",)
"""Searches without a depth, which are given the top layer alone."""
CONTROLS = ("the input itself", "random")
LOCAL = ("Saliency", "Saliency, signed", "SmoothGrad", "Guided Backprop", "Guided Grad-CAM")
"""Maps that speak of a change of the input, not of the input: a change is not divided by the input for them."""
LOGITS = ("W x", "Input x Gradient", "Integrated Gradients")
"""Peers in units of the logit, as all of ours are: Quantus' Infidelity compares no others."""
RADIUS, TIMES, CHANGES = 0.02, 10, 50
"""Of sensitivity: how far an input is moved at most, and how often; of infidelity: how many changes."""
SIDE, NOISE = 4, RADIUS
"""Of a change: the square's side as a part of the picture's, and the noise's standard deviation."""
FIRST = 2
"""So many pictures are written one by one beside the figures, for a test."""
Maps = Callable[[Tensor, Tensor], Tensor]
"""From inputs (B, C, H, W) and classes to maps of the same shape."""


def maps_of(model: nn.Module, x: Tensor, names: Sequence[str] | None = None) -> dict[str, Maps]:
    """Every method's maps for inputs such as these, by its name; those asked for, or all."""
    layers = relupath.freeze(model, x[:1]).layers
    last = next(layer.name for layer in reversed(layers) if len(layer.shape) == 3)
    found: dict[str, Maps] = {name: _spread(method) for name, method in peers.methods(model, last, last).items()}
    for name, search in OURS.items():
        only = [layers[-1].name] if name in ONE else None
        attribution = PathAttribution(model, search, layers=only)
        found[name] = lambda x, c, attribution=attribution: attribution.attribute(x, target=c)
    found["the input itself"] = lambda x, c: x.detach().clone()
    found["random"] = lambda x, c: torch.randn_like(x)
    return {name: found[name] for name in names or found}


def _spread(method: peers.Method) -> Maps:
    """A map of pixels is shared out equally among their channels."""

    def maps(x: Tensor, c: Tensor) -> Tensor:
        with torch.enable_grad():  # Captum's metrics switch it off
            found = method(x, c.expand(len(x)))
        return found if found.ndim == 4 else found[:, None].expand(x.shape) / x.shape[1]

    return maps


def measured(model: nn.Module, x: Tensor, other: Tensor, number: int, names: Sequence[str] | None = None) -> Any:
    """Of one picture (1, C, H, W) and each method: what Captum measures, and how alike the map is at other inputs."""
    with torch.no_grad():
        c = model(x).argmax(1)
    changes: dict[str, Callable[[Tensor], Tensor]] = {"squares": _squares, "noise": _noisy}
    told = {}
    for name, maps in maps_of(model, x, names).items():
        torch.manual_seed(number)
        here = maps(x, c)
        moved = sensitivity_max(
            lambda v, target, maps=maps: (maps(*v, target),),
            x,
            target=c,
            perturb_radius=RADIUS,
            n_perturb_samples=TIMES,
        )
        row = {"sensitivity": float(moved)}
        for word, change in changes.items():
            row[f"infidelity, {word}"] = _unexplained(model, x, c, here, name, change, number)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(number))
        for word, elsewhere in (("another input", other), ("noise", noise)):
            row[word] = alike(here, maps(elsewhere, c))
        told[name] = row
    return told


def _unexplained(
    model: nn.Module, x: Tensor, c: Tensor, map_: Tensor, name: str, change: Callable[[Tensor], Tensor], seed: int
) -> float:
    """Captum's infidelity at the map's best scale, as a share of that of no map at all: 0 explains all, 1 nothing."""
    change = infidelity_perturb_func_decorator(multiply_by_inputs=name not in LOCAL)(change)
    both = []
    for given, scaled in ((map_, True), (torch.zeros_like(map_), False)):
        torch.manual_seed(seed)
        both.append(infidelity(model, change, x, given, target=c, n_perturb_samples=CHANGES, normalize=scaled))
    return float(both[0] / both[1])


def _squares(x: Tensor, *_: Any) -> Tensor:
    """Each input with one square, somewhere, at zero: the mean colour."""
    changed = x.clone()
    height, width = x.shape[2:]
    for picture in changed:
        top, left = (int(torch.randint(size - size // SIDE + 1, ())) for size in (height, width))
        picture[:, top : top + height // SIDE, left : left + width // SIDE] = 0
    return changed


def _noisy(x: Tensor, *_: Any) -> Tensor:
    return x + NOISE * torch.randn_like(x)


def alike(one: Tensor, other: Tensor) -> float | None:
    """Spearman's correlation of the sizes of two maps, channels summed; None where one is the same everywhere."""
    sizes = [causal.ranked(map_.detach().sum(1).abs().flatten().double().numpy()) for map_ in (one, other)]
    found = causal.pearson(*sizes)
    return found if np.isfinite(found) else None


def by_quantus(model: nn.Module, x: Tensor, batch: int, names: Sequence[str] | None = None) -> dict[str, Any]:
    """What Quantus measures on all pictures (N, C, H, W): for each test and method, one number a picture."""
    import quantus

    with torch.no_grad():
        c = model(x).argmax(1).numpy()
    quiet = {"disable_warnings": True, "display_progressbar": False}
    spearman = quantus.similarity_func.correlation_spearman
    tests = {
        "top down": quantus.MPRT(similarity_func=spearman, layer_order="top_down", **quiet),
        "top down, signed": quantus.MPRT(similarity_func=spearman, layer_order="top_down", abs=False, **quiet),
        "independent": quantus.MPRT(similarity_func=spearman, layer_order="independent", **quiet),
        "another class": quantus.RandomLogit(
            similarity_func=spearman, num_classes=int(model(x[:1]).shape[1]), abs=True, **quiet
        ),
        "MaxSensitivity": quantus.MaxSensitivity(nr_samples=TIMES, lower_bound=RADIUS, **quiet),
        "Infidelity": quantus.Infidelity(perturb_patch_sizes=[x.shape[2] // SIDE], n_perturb_samples=1, **quiet),
    }
    told: dict[str, Any] = {test: {} for test in tests}
    known = [name for name in maps_of(model, x) if names is None or name in names]
    for name in tqdm(known, file=sys.stderr, desc="Quantus"):
        for test, metric in tests.items():
            if test == "Infidelity" and not (name in OURS or name in LOGITS):
                continue
            np.random.seed(0)
            torch.manual_seed(0)
            explain = _explainer(name, local=test == "Infidelity")
            given = {"model": model, "x_batch": x.numpy(), "y_batch": c, "a_batch": None, "batch_size": batch}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of maps that are the same everywhere, which are counted below
                scores = metric(**given, explain_func=explain, channel_first=True, softmax=False)
            told[test][name] = scores
    return told


def _explainer(name: str, local: bool) -> Callable[..., np.ndarray]:
    """A method as Quantus calls it; ``local``: of each channel and divided by the input, as its Infidelity asks."""

    def explain(model: nn.Module, inputs: np.ndarray, targets: Any, **_: Any) -> np.ndarray:
        x, c = torch.as_tensor(inputs).float(), torch.as_tensor(np.asarray(targets))
        if name in OURS and name not in ONE:
            found = QuantusExplainer(OURS[name], summed=False)(model, x.numpy(), c.numpy())
        else:
            found = maps_of(model, x, [name])[name](x, c).numpy()
        return (
            np.divide(found, inputs, out=np.zeros_like(found), where=inputs != 0)
            if local
            else found.sum(1, keepdims=True)
        )

    return explain


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each measure and method the mean with its interval; None where a map is the same everywhere too often."""
    names, words = [*records[0]], [*next(iter(records[0].values()))]
    return {word: {name: _mean([row[name][word] for row in records]) for name in names} for word in words}


def summary_of_quantus(told: Mapping[str, Any]) -> dict[str, Any]:
    """The same for each test; of the randomisations one a layer."""
    found: dict[str, Any] = {}
    for test, methods in told.items():
        found[test] = {
            name: {layer: _mean(some) for layer, some in scores.items() if layer != "original"}
            if isinstance(scores, Mapping)
            else _mean([*scores])
            for name, scores in methods.items()
        }
    return found


def _mean(numbers: Sequence[float | None]) -> dict[str, Any] | None:
    """The mean of what is defined, with its interval and how many were not."""
    some = torch.tensor([float(n) for n in numbers if n is not None and np.isfinite(n)], dtype=torch.float64)
    if len(some) < 2:
        return None
    told = asdict(metrics.interval(some))
    del told["level"]
    return told | ({"undefined": len(numbers) - len(some)} if len(some) < len(numbers) else {})


def table(found: Mapping[str, Any]) -> str:
    """One line a method, in Markdown."""
    columns: dict[str, Callable[[str], Any]] = {}
    for word, methods in found["captum"].items():
        columns[word] = methods.get
    for test, methods in found.get("quantus", {}).items():
        if isinstance(first := next(iter(methods.values())), Mapping) and "mean" not in first:
            for layer in (next(iter(first)), next(reversed(first))):
                columns[f"{test}, {layer}"] = lambda name, m=methods, layer=layer: m[name][layer]
        else:
            columns[test] = methods.get
    lines = [f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in next(iter(found["captum"].values())):
        cells = [cell(get(name)) for get in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(interval: Mapping[str, float] | None) -> str:
    """A mean with its interval."""
    return "-" if interval is None else f"{interval['mean']:.3g} ({interval['low']:.3g} to {interval['high']:.3g})"


def main() -> None:
    """Measure all methods, print the table, and write the numbers."""
    parser = asked.parser(__doc__, 32)
    asked.add_cifar10(parser)
    parser.add_argument("--batch", type=int, default=20, help="pictures at a time in Quantus (default: %(default)s)")
    options = parser.parse_args()
    task = asked.task(options)
    model = task.model.requires_grad_(False)
    x = torch.stack([task.x(n) for n in range(len(task.names))])
    others = x.roll(1, 0)
    count = tqdm(range(len(x)), file=sys.stderr, desc="Captum")
    records = [measured(model, x[n : n + 1], others[n : n + 1], n) for n in count]
    found: dict[str, Any] = {"model": task.name, "pictures": len(x), "captum": summary(records)}
    known = ("torch", "captum", "zennit")
    if importlib.util.find_spec("quantus"):
        found["quantus"] = summary_of_quantus(by_quantus(model, x, options.batch))
        known = (*known, "quantus")
    else:
        print("Quantus is not installed: its half is left out (pip install 'relupath[quantus]')", file=sys.stderr)
    found |= {"versions": {name: version(name) for name in known}, "first": records[:FIRST]}
    print(table(found))
    asked.write(options.json, found)


if __name__ == "__main__":
    main()
