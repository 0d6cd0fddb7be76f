"""The paper's table: insertion and deletion of paths beside the field's maps; chosen on one half, told of the other.

    python paper/table.py --network cifar10 --images test.zip --weights toycnn_cifar10.safetensors --records c.jsonl
    python paper/table.py --network squeezenet --images FOLDER --weights squeezenet1_0.safetensors \
        --records paper/expected/records-squeezenet.jsonl --tolerance 0.001 --batch 2

Each image is one line of the records, so that a run that was stopped goes on where it ended; what is known of
SqueezeNet is kept with the figures. Images are taken in an order mixed once. Among our searches the best are chosen on
the images of even number: by insertion, by deletion, by their difference, and by the lesser of the leads over the peer
that inserts best and the one that deletes best; all figures are those of the images of odd number. Every method is
compared, image by image, with the peers that insert and that delete best on these.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

import asked
import authors
import cifar10
import partly
import peers
import relupath
from relupath import files, images, metrics, models
from relupath._contributions import contributions
from relupath._partitions import Partition
from relupath._search import Search
from relupath.errors import UsageError

ORDERS: dict[str, Callable[..., Tensor]] = {"channels summed": metrics.ranks, "by channel": metrics.channel_ranks}
CONTROL = "random"
CHOICES: dict[str, Callable[[float, float], float]] = {
    "insertion": lambda insertion, deletion: insertion,
    "deletion": lambda insertion, deletion: deletion,
    "insertion less deletion": lambda insertion, deletion: insertion + deletion,
    "the lesser lead": min,
}
"""By what a search is chosen: its leads over the best peers, in insertion and in deletion."""
READINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "size": lambda found: found.sum(1).abs(),
    "positive": lambda found: found.clamp(min=0),
}
"""Other readings of ``W x``: the size of a pixel's contribution, or what of its channels is positive."""
OF_SQUEEZENET = (
    "Saliency", "Input x Gradient", "Integrated Gradients", "Integrated Gradients, both starts",
    "Integrated Gradients, both starts, smoothed", "Guided Backprop", "Guided Grad-CAM", "SmoothGrad", "Grad-CAM",
    "LRP, epsilon-plus", "LRP, gamma-box", "Selective, width 1024, all layers", "Selective, width any, 5 layers",
    "Selective, width any, all layers", "Mass, share 0.9, 1 layer", "Mass, share 0.9, all layers",
    "Mass, share 0.9, 5 layers", "Mass, share 0.5, all layers", "Mass channels, share 0.9, all layers",
    "Mass locations, share 0.9, all layers", "Selective channels, width any, all layers", "Greedy", "Beam", "BestFirst",
    "Exact", "W x, partial pictures", "W x, partial pictures, smoothed", CONTROL,
)  # fmt: skip
"""What is measured on SqueezeNet if nothing else is asked for: its pictures are large."""
MASKED = "Selective by masks"
"""As the authors' code does it, see ``authors.py``; for a plain chain of modules, which SqueezeNet is not."""
FIRST = 4
"""So many images are written one by one beside the figures, for a test."""


@dataclass(frozen=True)
class Task:
    """A network, its pictures, and what is measured on them.

    Attributes:
        model: the network.
        names: of the pictures, in the order in which they are measured.
        pictures: from numbers to the network's inputs.
        peers: the field's methods.
        searches: ours, by name.
        scored: the network as it is run for the scores.
        usual: the methods that are measured if no others are asked for.
        orders: the ways to sort the pixels; the variant of the paper's authors is one.
    """

    model: nn.Module
    names: Sequence[str]
    pictures: Callable[[Sequence[int]], Tensor]
    peers: Mapping[str, peers.Method]
    searches: Mapping[str, partly.Ours]
    scored: metrics.Network
    usual: Sequence[str]
    orders: Mapping[str, Callable[..., Tensor]] = field(default_factory=lambda: ORDERS)


def of_cifar10(place: Path, weights: Path) -> Task:
    """The authors' network and the first hundred images of every class."""
    model = cifar10.network()
    model.load_state_dict(load_file(weights))
    each = 100
    x, _ = cifar10.images(place, each)
    order = _mixed(len(x))
    names = [f"{cifar10.CLASSES[n // each]} {n % each}" for n in order]
    usual = peers.methods(model, "features.8", "features.7")
    methods = {**usual, **partly.field(model, usual)}
    found = {**searches((16, 64, 256, None), (1, 2, None), (1, 2, None)), **partly.searches(model)}
    fast = [name for name in (*methods, *found, CONTROL) if not name.startswith(partly.SLOW)]
    found |= as_the_authors(model)
    return Task(model, names, lambda numbers: x[[order[n] for n in numbers]], methods, found, model, fast)


def as_the_authors(model: nn.Module) -> dict[str, partly.Ours]:
    """Selective at the widths and depths of the paper's authors, with gates as defined, and with masks, as theirs."""
    found: dict[str, partly.Ours] = {}
    for width, depth in product((1, 16, 64, None), (1, 2, 3, None)):
        setting = f"width {width or 'any'}"
        found[_name("Selective", setting, depth)] = ours(relupath.Selective(width, depth), relupath.neurons)
        found[_name(MASKED, setting, depth)] = partial(_masked, model, width, depth)
    return found


def _masked(model: nn.Module, width: int | None, depth: int | None, frozen: relupath.Frozen, c: Tensor) -> Tensor:
    return authors.selective(model, frozen.inputs[0].output, c, width, depth)


def of_squeezenet(place: Path, weights: Path, order: str = "channels summed") -> Task:
    """SqueezeNet 1.0 on ImageNet photos, whose pixels are sorted in one way: the pictures are large."""
    classifier = models.load("torchvision/squeezenet1_0", weights)
    known = files.pictures([place])
    photos = [known[n] for n in _mixed(len(known))]

    def pictures(numbers: Sequence[int]) -> Tensor:
        return torch.stack([classifier.prepare(images.read(photos[n]).image) for n in numbers])

    last = copy.deepcopy(classifier.model).to(memory_format=torch.channels_last)  # is faster on a processor
    quick = with_quick_ones(last)

    def scored(z: Tensor) -> Tensor:
        with torch.no_grad():
            return quick(z.contiguous(memory_format=torch.channels_last))

    usual = peers.methods(last, "features.12", "features.12")
    methods = {**usual, **partly.field(last, usual)}
    found = {**searches((64, 1024, 16384, None), (1, 5, 10, None), (1, 5, None)), **partly.searches(last)}
    names = [photo.name for photo in photos]
    return Task(classifier.model, names, pictures, methods, found, scored, OF_SQUEEZENET, {order: ORDERS[order]})


class _One(nn.Module):
    """A convolution of 1 x 1 by oneDNN: for one thread and few pictures torch takes another, slower one."""

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.stride, self.padding = like.weight, like.bias, like.stride, like.padding

    def forward(self, x: Tensor) -> Tensor:
        given = self.weight, self.bias, self.padding, self.stride, (1, 1), 1
        return torch.ops.aten.mkldnn_convolution(x, *given)


def with_quick_ones(model: nn.Module) -> nn.Module:
    """A copy whose convolutions of 1 x 1 are quick on one thread, and equal to round-off."""
    if not torch.backends.mkldnn.is_available():
        return model
    net = copy.deepcopy(model)
    for name, module in [*net.named_modules()]:
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1:
            parent, _, own = name.rpartition(".")
            setattr(net.get_submodule(parent), own, _One(module))
    return net


def _mixed(count: int) -> list[int]:
    """Numbers in an order mixed once, so that any first images are of all classes, and each half of them too."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()


def searches(
    widths: Sequence[int | None], depths: Sequence[int | None], few: Sequence[int | None]
) -> dict[str, partly.Ours]:
    """Our maps by name: selective at widths and depths, the others at a few depths, and some read in other ways."""
    neurons, channels, places = relupath.neurons, relupath.channels, relupath.locations
    found: dict[str, partly.Ours] = {}
    for depth in depths:
        for width in widths:
            found[_name("Selective", f"width {width or 'any'}", depth)] = ours(
                relupath.Selective(width, depth), neurons
            )
    for depth in few:
        found[_name("Selective channels", "width any", depth)] = ours(relupath.Selective(None, depth), channels)
        for share in (0.5, 0.9):
            found[_name("Mass", f"share {share}", depth)] = ours(relupath.Mass(share, depth), neurons)
        found[_name("Mass channels", "share 0.9", depth)] = ours(relupath.Mass(0.9, depth), channels)
        found[_name("Mass locations", "share 0.9", depth)] = ours(relupath.Mass(0.9, depth), places)
    found["Greedy"] = ours(relupath.Greedy(), neurons)
    found["Beam"] = ours(relupath.Beam(8), neurons)
    found["BestFirst"] = ours(relupath.BestFirst(), neurons)
    found["Exact"] = ours(relupath.Exact(8), neurons)
    sets = {"Selective, width any": relupath.Selective(None), "Mass, share 0.9": relupath.Mass(0.9)}
    for word, reading in READINGS.items():
        found[f"W x, {word}"] = ours(None, neurons, reading)
        for name, search in sets.items():
            found[f"{_name(*name.split(', '), None)}, {word}"] = ours(search, neurons, reading)
    return found


def ours(
    search: Search | None, partition: Partition, reading: Callable[[Tensor], Tensor] = lambda found: found
) -> partly.Ours:
    """``W x`` of what a search finds, or of the whole network, read in some way."""
    return lambda frozen, c: reading(contributions(frozen, c, search, partition=partition)[0])


def _name(search: str, setting: str, depth: int | None) -> str:
    return f"{search}, {setting}, {'all layers' if depth is None else f'{depth} layer' + 's' * (depth > 1)}"


def maps(task: Task, x: Tensor, c: Tensor, numbers: Sequence[int], names: Sequence[str]) -> Iterator[Tensor]:
    """The maps of the named methods for some pictures."""
    frozen = relupath.freeze(task.model, x)
    for name in names:
        if name == CONTROL:
            yield torch.stack([torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(n)) for n in numbers])
        elif name in task.peers:
            torch.manual_seed(numbers[0])
            yield task.peers[name](x, c)
        else:
            yield task.searches[name](frozen, c)


def measured(
    task: Task, numbers: Sequence[int], names: Sequence[str], rows: int = 1, tolerance: float | None = None
) -> list[dict[str, Any]]:
    """One record a picture: for every method the areas of insertion and deletion, by every order of the pixels.

    Args:
        task: the network and its pictures.
        numbers: of the pictures.
        names: of the methods.
        rows: how many rows' worth of pixels a step.
        tolerance: of the areas, as in ``relupath.metrics.deletion``.
    """
    x = task.pictures(numbers)
    with torch.no_grad():
        c = task.model(x).argmax(1)
    areas = []
    for shown in maps(task, x, c, numbers, names):
        orders = [ranks(shown, numbers) for ranks in task.orders.values()]
        both = metrics.insertion, metrics.deletion
        given = {"rows": rows, "tolerance": tolerance}
        curves = [measure(task.scored, x, c, order, **given) for order in orders for measure in both]
        areas.append(torch.stack([curve.area for curve in curves], 1))
    found = torch.stack(areas, 1).tolist()
    return [
        {
            "number": n, "image": task.names[n], "class": k, "rows": rows, "tolerance": tolerance,
            "orders": [*task.orders],
            "areas": dict(zip(names, asked.rounded(row), strict=True)),
        }
        for n, k, row in zip(numbers, c.tolist(), found, strict=True)
    ]  # fmt: skip


def read(path: Path) -> dict[int, dict[str, Any]]:
    """The records by number, each with all that was measured of it; a line that breaks off is passed over."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        found.setdefault(record["number"], record)["areas"].update(record["areas"])
    return found


def filled(
    task: Task, path: Path, count: int, names: Sequence[str], batch: int, rows: int = 1, tolerance: float | None = None
) -> dict[int, dict[str, Any]]:
    """The records of the first images, of which what is missing is measured and written.

    Raises:
        UsageError: the records are of other images, or of other steps.
    """
    wanted = range(min(count, len(task.names)))
    known = read(path)
    for n, record in known.items():
        if n >= len(task.names) or record["image"] != task.names[n]:
            raise UsageError(f"{path} is of other images (number {n} is {record['image']}): give another file")
        if record.get("rows", 1) != rows:
            raise UsageError(f"{path} was measured at {record.get('rows', 1)} rows a step: give another file")
        if record.get("tolerance") != tolerance:
            raise UsageError(f"{path} was measured with a tolerance of {record.get('tolerance')}: give another file")
        if record.get("orders", [*ORDERS][: len(task.orders)]) != [*task.orders] or any(
            len(areas) != 2 * len(task.orders) for areas in record["areas"].values()
        ):
            raise UsageError(f"{path} was measured with other orders of the pixels: give another file")
    missing = {n: [name for name in names if n not in known or name not in known[n]["areas"]] for n in wanted}
    open_ones = [n for n in wanted if missing[n]]
    with path.open("a") as out, tqdm(total=len(open_ones), file=sys.stderr, disable=None) as bar:
        out.write("\n" * bool(open_ones))  # ends a line that broke off
        for start in range(0, len(open_ones), batch):
            some = open_ones[start : start + batch]
            absent = [name for name in names if any(name in missing[n] for n in some)]
            out.writelines(json.dumps(record) + "\n" for record in measured(task, some, absent, rows, tolerance))
            out.flush()
            bar.update(len(some))
    return {n: record for n, record in read(path).items() if n in wanted}


def report(task: Task, records: Mapping[int, dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """What the images of odd number say, of all methods and of the searches chosen on the others."""
    numbers = sorted(records)
    areas = torch.tensor([[records[n]["areas"][name] for name in names] for n in numbers], dtype=torch.float64)
    odd = torch.tensor(numbers) % 2 == 1
    ours, others = ([k for k, name in enumerate(names) if name in own] for own in (task.searches, task.peers))
    orders = {}
    for place, order in enumerate(task.orders):
        pair, chosen = areas[:, :, 2 * place : 2 * place + 2], {}
        better = pair[~odd].mean(0) * torch.tensor([1, -1])
        leads = better - better[others].amax(0) if others else better
        for choice, score in CHOICES.items():
            scores = {k: score(*leads[k].tolist()) for k in ours}
            chosen[choice] = names[max(scores, key=scores.__getitem__)] if scores else None
        rivals = [max(others, key=lambda k, m=m, sign=sign: sign * float(pair[odd, k, m].mean()))
                  for m, sign in ((0, 1), (1, -1))] if others else []  # fmt: skip
        rows = {name: _row(pair[odd, k], [pair[odd, rival] for rival in rivals]) for k, name in enumerate(names)}
        best = dict(zip(("insertion", "deletion"), (names[rival] for rival in rivals), strict=False))
        orders[order] = {"best_peer": best, "chosen": chosen, "methods": rows}
    first_ones = [records[n] for n in numbers[:FIRST]]
    return {"chosen_on": int((~odd).sum()), "reported_on": int(odd.sum()), "orders": orders, "first": first_ones}


def _row(own: Tensor, rivals: Sequence[Tensor]) -> dict[str, Any]:
    """Means with intervals, and the differences to the best peer, image by image."""
    row: dict[str, Any] = {}
    for m, measure in enumerate(("insertion", "deletion")):
        row[measure] = asdict(metrics.interval(own[:, m]))
        if rivals:
            row[f"{measure}_less_best_peer"] = asdict(metrics.interval(own[:, m] - rivals[m][:, m]))
    return asked.rounded(row)


def table(task: Task, found: Mapping[str, Any], order: str) -> str:
    """Peers, the chosen searches and the control, one line each, in Markdown."""
    part = found["orders"][order]
    chosen: dict[str, list[str]] = {}
    for choice, name in part["chosen"].items():
        chosen.setdefault(name, []).append(choice)
    lines = [f"{order}, {found['reported_on']} images", "", "| method | insertion | deletion | less best peer |"]
    lines.append("|---|---|---|---|")
    for name, row in part["methods"].items():
        if name in task.searches and name not in chosen:
            continue
        cells = [_cell(row[measure]) for measure in ("insertion", "deletion")]
        less = [_cell(row[f"{m}_less_best_peer"]) for m in ("insertion", "deletion") if f"{m}_less_best_peer" in row]
        word = f" (best by {' and '.join(chosen[name])})" if name in chosen else ""
        lines.append(f"| {name}{word} | {' | '.join(cells)} | {'; '.join(less)} |")
    return "\n".join(lines)


def _cell(interval: Mapping[str, float]) -> str:
    return f"{interval['mean']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def main() -> None:
    """Measure what is not in the records yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=("cifar10", "squeezenet"), default="cifar10")
    parser.add_argument("--images", type=Path, required=True, help="test.zip of CIFAR-10, or a folder of photos")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--records", type=Path, required=True, help="JSON lines, one an image; they are added to")
    parser.add_argument("--count", type=int, default=500, help="so many images (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=20, help="images at a time (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1, help="rows' worth of pixels a step (default: %(default)s)")
    parser.add_argument("--tolerance", type=float, help="leave out steps that move an area by less, by estimate")
    parser.add_argument("--order", choices=ORDERS, default="channels summed", help="of SqueezeNet; others have both")
    parser.add_argument("--methods", nargs="+", help="only these; on CIFAR-10 all but the slow if not given")
    parser.add_argument("--output", type=Path, help="write the figures here, as JSON")
    options = parser.parse_args()
    given = options.images, options.weights
    task = of_cifar10(*given) if options.network == "cifar10" else of_squeezenet(*given, options.order)
    known = [*task.peers, *task.searches, CONTROL]
    names = options.methods or task.usual
    if unknown := {*names} - {*known}:
        parser.error(f"no method is named {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    records = filled(task, options.records, options.count, names, options.batch, options.rows, options.tolerance)
    setting = {"network": options.network, "rows_a_step": options.rows, "tolerance": options.tolerance}
    found = {**setting, **report(task, records, names)}
    for order in found["orders"]:
        print(table(task, found, order), end="\n\n")
    asked.write(options.output, found)


if __name__ == "__main__":
    main()
