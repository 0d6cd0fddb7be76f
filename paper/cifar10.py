"""Insertion and deletion on CIFAR-10 with the authors' network: the definition and the authors' code, side by side.

    python paper/cifar10.py --images test.zip --weights toycnn_cifar10.safetensors --output paper/expected/cifar10.json

The archive holds ``test/<class>/*.jpg``; of each class the first images by name are taken. Of a ReLU network ``W x`` is
Input x Gradient. ``saliency`` is the gradient as it is, which meets the authors' figures of that name, and
``|gradient|`` its size. ``masked`` is selective as ``authors.py`` does it.
"""

import argparse
import io
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

import authors
import relupath
from relupath import metrics
from relupath._search import Search
from relupath.bridges import PathAttribution

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ORDERS = {
    "channels summed": lambda maps: metrics.ranks(maps, range(len(maps))),
    "by channel": lambda maps: metrics.channel_ranks(maps, range(len(maps))),
    "by channel, unmixed": authors.ranks,
}
"""How pixels are ranked: equal values at random, but in the last, the order of the authors' code."""
Method = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""From network, pictures and classes to maps."""
MEASURES = {"insertion": metrics.insertion, "deletion": metrics.deletion}


def network() -> nn.Module:
    """The authors' network: three convolutions and two linear layers."""
    features: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        features += [nn.Conv2d(before, after, kernel_size=3), nn.ReLU(), nn.MaxPool2d(2)]
    top = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))
    parts = OrderedDict(features=nn.Sequential(*features), flatten=nn.Flatten(), classifier=top)
    return nn.Sequential(parts).eval().requires_grad_(False)


def images(archive: Path, each: int) -> tuple[Tensor, Tensor]:
    """The first images of each class by name, normalised, and their classes."""
    pictures, labels = [], []
    with ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
        for label, word in enumerate(CLASSES):
            for name in [name for name in names if name.split("/")[-2] == word][:each]:
                with Image.open(io.BytesIO(file.read(name))) as image:
                    pictures.append(torch.tensor(np.asarray(image.convert("RGB"), dtype=np.float32) / 255))
                labels.append(label)
    x = torch.stack(pictures).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    return (x - mean) / std, torch.tensor(labels)


def paths(search: Search | None) -> Method:
    """``W x`` of the network, or of what a search finds."""
    return lambda model, x, c: PathAttribution(model, search).attribute(x, c)


def gradient(model: nn.Module, x: Tensor, c: Tensor) -> Tensor:
    """The gradient of the logit: of a ReLU network the weight of its linear model."""
    weight = relupath.linear_model(relupath.freeze(model, x), c).weight
    assert isinstance(weight, Tensor)
    return weight


def masked(width: int | None) -> Method:
    """Selective as the authors' code does it."""
    return lambda model, x, c: authors.selective(model, x, c, width)


def methods() -> dict[str, Method]:
    """Every method by its name."""
    found: dict[str, Method] = {
        "W x": paths(None),
        "saliency": gradient,
        "|gradient|": lambda model, x, c: gradient(model, x, c).abs(),
    }
    for width in (1, 16, 64, None):
        name = "unlimited" if width is None else f"width {width}"
        found[f"selective, {name}"] = paths(relupath.Selective(width=width))
        found[f"masked, {name}"] = masked(width)
    for search in (relupath.Greedy(), relupath.Mass(), relupath.Beam()):
        found[type(search).__name__] = paths(search)
    found["random"] = lambda model, x, c: torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    found["zeros"] = lambda model, x, c: torch.zeros_like(x)
    return found


def figures(model: nn.Module, x: Tensor, c: Tensor, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """For some methods, by name, and each order of the pixels: the mean areas with their intervals."""
    known = methods()
    for name in names:
        found = known[name](model, x, c)
        for order, ranks in ORDERS.items():
            places = ranks(found)
            areas = {word: metrics.interval(measure(model, x, c, places).area) for word, measure in MEASURES.items()}
            yield {"method": name, "order": order, **{word: asdict(area) for word, area in areas.items()}}


def main() -> None:
    """Measure every method in every order of pixels, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="test.zip of CIFAR-10 as JPEG")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--each", type=int, default=20, help="images of each class (default: %(default)s)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model = network()
    model.load_state_dict(load_file(options.weights))
    x, labels = images(options.images, options.each)
    c = model(x).argmax(1)
    report: dict[str, Any] = {"images": len(x), "accuracy": float((c == labels).double().mean()), "figures": []}
    print(f"{'method':<22}{'order':<22}" + "".join(f"{name:<24}" for name in MEASURES))
    for row in tqdm(figures(model, x, c, methods()), total=len(methods()) * len(ORDERS), file=sys.stderr):
        areas = [row[name] for name in MEASURES]
        cells = "".join(f"{a['mean']:.3f}  {a['low']:.3f} to {a['high']:.3f}".ljust(24) for a in areas)
        print(f"{row['method']:<22}{row['order']:<22}{cells}", flush=True)
        report["figures"].append(row)
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
