"""Insertion and deletion on CIFAR-10 with the authors' network, in our order of pixels and in theirs.

    python paper/cifar10.py --images test.zip --weights toycnn_cifar10.safetensors --output paper/expected/cifar10.json

The archive holds ``test/<class>/*.jpg``; of each class the first images by name are taken. Of a ReLU network ``W x`` is
Input x Gradient. ``saliency`` is the gradient as it is, which meets the authors' figures of that name, and
``|gradient|`` its size.
"""

import argparse
import io
import json
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

import relupath
from relupath import metrics
from relupath.bridges import PathAttribution

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ORDERS = {"channels summed": metrics.ranks, "by channel": metrics.channel_ranks}
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


def maps(model: nn.Module, x: Tensor, c: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Every method's maps for the predicted classes."""
    weight = relupath.linear_model(relupath.freeze(model, x), c).weight
    yield "W x", weight * x
    yield "saliency", weight
    yield "|gradient|", weight.abs()
    for width in (1, 16, 64, None):
        name = f"selective, {'unlimited' if width is None else f'width {width}'}"
        yield name, PathAttribution(model, relupath.Selective(width=width)).attribute(x, c)
    for search in (relupath.Greedy(), relupath.Mass(), relupath.Beam()):
        yield type(search).__name__, PathAttribution(model, search).attribute(x, c)
    yield "random", torch.rand(x.shape, generator=torch.Generator().manual_seed(0))


def main() -> None:
    """Measure every method in both orders of pixels, and print the table."""
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
    report = {"images": len(x), "accuracy": float((c == labels).double().mean()), "figures": []}
    print(f"{'method':<22}{'order':<18}" + "".join(f"{name:<24}" for name in MEASURES))
    for method, found in tqdm(maps(model, x, c), total=11, file=sys.stderr):
        for order, ranks in ORDERS.items():
            places = ranks(found, range(len(x)))
            areas = {name: metrics.interval(measure(model, x, c, places).area) for name, measure in MEASURES.items()}
            cells = [f"{i.mean:.3f}  {i.low:.3f} to {i.high:.3f}" for i in areas.values()]
            print(f"{method:<22}{order:<18}" + "".join(f"{cell:<24}" for cell in cells))
            report["figures"].append({"method": method, "order": order, **{k: asdict(i) for k, i in areas.items()}})
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
