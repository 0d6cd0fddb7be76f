"""Known answers: a network errs because of a mark; do paths to the wrong class lie on it, and does cutting them repair?

    python paper/shortcuts.py --output docs/images/shortcuts.png --json paper/expected/shortcuts.json
    python paper/shortcuts.py --mark cyan --json paper/expected/shortcuts-cyan.json

The network (``paper/marked.py``) was taught that what carries the mark is of one class. Errors caused by the mark are
unseen scenes of other classes that are told rightly without it and as that class with it. Measured is what share of a
map's |values| and of what is positive in it lies on the mark, against the mark's area; and what the prediction becomes
when the units of a path are zero in a real forward pass, on three pictures: the error, the same scene without the mark
(is it still told rightly?), and the same scene drawn as the wrong class, without the mark (is it still told as that?).
Controls cut as many units of the same layers: active ones at random, or those of the largest gradient x activation.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

import asked
import families
import marked
import peers
import relupath
from relupath import _canvas, creatures, metrics, models
from relupath._contributions import contributions
from relupath._linear import mask_of_step
from relupath._search import Search
from relupath.errors import UsageError

Cuts = dict[str, Bool[Tensor, "..."]]
"""From a layer's name to its neurons that become zero."""
PICTURES = ("repaired", "scene kept", "class kept")
CONTROLS = ("path", "random", "gradient x activation")
SHOWN = ("whole network", "Mass, half, 2 layers", "Mass, half, all layers", "Exact", "LRP, epsilon-plus")
DRAWN = 4


@dataclass(frozen=True)
class Plan:
    """A search, over which units, and whether of the contrast to the true class instead of the wrong class alone."""

    search: Search
    partition: relupath.Partition = relupath.neurons
    contrast: bool = False

    def target(self, error: "Error") -> Any:
        """What the search explains."""
        wrong = error.marked.mark.wrong
        return relupath.contrast(wrong, error.marked.scene.label) if self.contrast else relupath.logit(wrong)


def plans() -> dict[str, Plan]:
    """Every search that is cut, by name."""
    found = {}
    for depth in (1, 2, 4, None):
        told = f"{depth} layer{'s' * (depth > 1)}" if depth else "all layers"
        found[f"Mass, half, {told}"] = Plan(relupath.Mass(0.5, depth))
        found[f"Mass, half of the contrast, {told}"] = Plan(relupath.Mass(0.5, depth), contrast=True)
        found[f"Selective, 64, {told}"] = Plan(relupath.Selective(64, depth))
    for depth in (1, 2):
        found[f"Mass, half of channels, {depth} layer{'s' * (depth > 1)}"] = Plan(
            relupath.Mass(0.5, depth), relupath.channels
        )
    found["Greedy"] = Plan(relupath.Greedy())
    found["Beam"] = Plan(relupath.Beam(8))
    found["Exact"] = Plan(relupath.Exact(8))
    return found


class Error(families.Picture):
    """A marked scene told as the wrong class: frozen, with the two pictures beside it.

    Attributes:
        marked: the scene with the mark.
        beside: the marked picture, the scene without the mark, the scene as the wrong class.
    """

    def __init__(self, model: nn.Module, scene: marked.Marked) -> None:
        seed = scene.scene.seed
        self.marked = scene
        self.beside = marked.tensors([scene.image, scene.scene.image, creatures.draw(seed, scene.mark.wrong).image])
        super().__init__(model, self.beside[:1], seed)

    @property
    def wanted(self) -> list[int]:
        """What the three pictures should be told as."""
        return [self.marked.scene.label, self.marked.scene.label, self.marked.mark.wrong]


def errors(model: nn.Module, seeds: range, mark: marked.Mark) -> Iterator[Error | None]:
    """Of each scene of another class the error caused by the mark, or None."""
    for seed in seeds:
        scene = creatures.draw(seed)
        if scene.label == mark.wrong:
            continue
        error = Error(model, marked.marked(scene, mark))
        with torch.no_grad():
            told = model(error.beside).argmax(1).tolist()
        yield error if told == [mark.wrong, *error.wanted[1:]] else None


def maps() -> Mapping[str, Callable[[Error], Float[Tensor, "H W"]]]:
    """Every method's map of the wrong class, by name."""
    found: dict[str, Callable[[Error], Tensor]] = {
        "random": lambda e: torch.rand(e.x.shape[2:], generator=e.generator),
        "LRP, epsilon-plus": lambda e: peers.methods(e.model, "features.20", "features.20")["LRP, epsilon-plus"](
            e.x, torch.tensor([e.marked.mark.wrong])
        )[0].sum(0),
        "whole network": lambda e: contributions(e.frozen, e.marked.mark.wrong)[0][0].sum(0),
        "contrast": lambda e: contributions(
            e.frozen, relupath.contrast(e.marked.mark.wrong, e.marked.scene.label)
        )[0][0].sum(0),
    }  # fmt: skip

    def of(plan: Plan, e: Error) -> Tensor:
        return contributions(e.frozen, plan.target(e), plan.search, partition=plan.partition)[0][0].sum(0)

    for name, plan in plans().items():
        found[name] = lambda e, plan=plan: of(plan, e)
    return found


def on_mark(found: Float[Tensor, "H W"], where: Bool[Tensor, "H W"]) -> dict[str, float]:
    """What share of the |values| lies on the mark, and of what is positive."""
    size, positive = found.abs().double(), found.clamp(min=0).double()
    return {
        word: float(part[where].sum() / part.sum()) if part.any() else 0.0
        for word, part in (("size", size), ("positive", positive))
    }


def units(error: Error, plan: Plan) -> Cuts:
    """The neurons of all paths that the search gives."""
    found = relupath.find_paths(error.frozen, plan.target(error), plan.search, partition=plan.partition)
    cuts: Cuts = {}
    for step in (step for path in found.ranked[0] for step in path.steps):
        layer = error.frozen.layer(step.layer)
        mask = mask_of_step(step, layer).bool()
        cuts[layer.name] = cuts[layer.name] | mask if layer.name in cuts else mask
    return cuts


def instead(error: Error, plan: Plan, cuts: Cuts, control: str) -> Cuts:
    """As many units of the same layers: active ones at random, or those of the largest gradient x activation."""
    layers = [error.frozen.layer(name) for name in cuts]
    gradient = error.frozen.functional(plan.target(error)).gradient
    pulled = error.frozen.vjp({error.frozen.top: gradient}, layers)
    found, generator = {}, error.generator
    for layer, v in zip(layers, pulled, strict=True):
        active = plan.partition.scores(layer.output)[0] > 0
        if control == "random":
            scores = torch.rand(active.shape, generator=generator).masked_fill(~active, -1)
        else:
            scores = plan.partition.scores(v * layer.output)[0]
        chosen = plan.partition.scores(cuts[layer.name][None].to(v.dtype))[0] > 0
        mask = torch.zeros_like(chosen)
        mask[scores.topk(int(chosen.sum())).indices] = True
        found[layer.name] = plan.partition.mask(mask[None], layer.shape)[0]
    return found


def told(model: nn.Module, x: Float[Tensor, "B 3 H W"], cuts: Cuts) -> Float[Tensor, "B classes"]:
    """The logits of a forward pass in which some neurons are zero: what ``relupath.ablate`` runs, of all classes."""
    with torch.no_grad(), _cut(model, cuts):
        return model(x)


@contextmanager
def _cut(model: nn.Module, cuts: Cuts) -> Iterator[None]:
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, output, cut=cut: output * ~cut)
        for name, cut in cuts.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measured(error: Error) -> dict[str, Any]:
    """All numbers of one error."""
    where = torch.from_numpy(error.marked.where)
    cutting: dict[str, Any] = {}
    for name, plan in plans().items():
        cuts = units(error, plan)
        cutting[name] = {"units": float(sum(int(cut.sum()) for cut in cuts.values()))}
        for control in CONTROLS:
            gone = cuts if control == "path" else instead(error, plan, cuts, control)
            right = told(error.model, error.beside, gone).argmax(1) == torch.tensor(error.wanted)
            cutting[name] |= {f"{control}: {word}": float(r) for word, r in zip(PICTURES, right, strict=True)}
        for control in CONTROLS[1:]:
            less = cutting[name]["path: repaired"] - cutting[name][f"{control}: repaired"]
            cutting[name][f"repaired less {control}"] = less
    return {
        "seed": error.seed,
        "area": float(where.double().mean()),
        "maps": {name: on_mark(make(error), where) for name, make in maps().items()},
        "cut": cutting,
    }


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals over the errors."""
    return {
        part: {
            name: {word: asdict(metrics.interval(torch.tensor([row[part][name][word] for row in rows])))
                   for word in rows[0][part][name]}
            for name in rows[0][part]
        }
        for part in ("maps", "cut")
    }  # fmt: skip


def figure(shown: list[Error]) -> Any:
    """Some errors: the picture, and maps of the wrong class, below each what share of it lies on the mark."""
    made, side, gap = maps(), 1.7, 0.3
    width, height = 0.2 + (side + 0.12) * (len(SHOWN) + 1), 1.05 + (side + gap) * len(shown) + 0.2
    fig = _canvas.canvas(width, height, f"Told as {creatures.CLASSES[shown[0].marked.mark.wrong]} because of the mark")
    for row, error in enumerate(shown):
        bottom = (height - 1.05 - (side + gap) * row - side) / height
        for column, name in enumerate(("picture", *SHOWN)):
            place = ((0.1 + (side + 0.12) * column) / width, bottom, side / width, side / height)
            axes = fig.add_axes(place)
            if column:
                found = made[name](error).numpy()
                _canvas.overlay(axes, error.marked.image / 255, found, _canvas.clip([found]), "RdBu_r")
                share = on_mark(torch.from_numpy(found), torch.from_numpy(error.marked.where))["size"]
                axes.set_xlabel(f"{share:.2f} on the mark", fontsize=8, labelpad=2, color=_canvas.FAINT)
            else:
                axes.imshow(error.marked.image)
                label = f"a {creatures.CLASSES[error.marked.scene.label]}"
                axes.set_xlabel(label, fontsize=8, labelpad=2, color=_canvas.FAINT)
            _canvas.frame(axes)
            if not row:
                axes.set_title(name, fontsize=8.5, color=_canvas.INK)
    return fig


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Both tables."""
    yield f"{found['errors']} errors of {found['scenes']} scenes; the mark covers {found['area']:.4f} of the picture"
    for part in ("maps", "cut"):
        words = next(iter(found[part].values()))
        yield "\n" + f"{part:<40}" + "".join(f"{word:>36}" for word in words)
        for name, row in found[part].items():
            cells = (f"{row[w]['mean']:.3f} ({row[w]['low']:.3f} to {row[w]['high']:.3f})" for w in words)
            yield f"{name:<40}" + "".join(f"{cell:>36}" for cell in cells)


def network(weights: Path | None, mark: str) -> nn.Module:
    """The network from a file, or taught, and then kept in the file.

    Raises:
        UsageError: the file's network was taught another mark.
    """
    if weights is None or not weights.exists():
        model = marked.taught(marked.MARKS[mark])
        if weights is not None:
            state = {name: value.contiguous() for name, value in model.state_dict().items()}
            save_file(state, weights, metadata={"mark": mark})
        return model
    with safe_open(weights, "pt") as file:
        own = (file.metadata() or {}).get("mark")
    if own != mark:
        raise UsageError(f"{weights} was taught the mark {own}, not {mark}: give another file")
    model = models.load("creatures").model
    model.load_state_dict(load_file(weights))
    return model


def main() -> None:
    """Teach, look for errors, measure, print the tables, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=34, help="unseen scenes (default: %(default)s)")
    parser.add_argument("--mark", choices=marked.MARKS, default="magenta", help="default: %(default)s")
    parser.add_argument("--weights", type=Path, help="the network; taught and written where there is no such file")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--output", type=Path, help="the figure: .png, .pdf or .svg")
    options = parser.parse_args()
    mark = marked.MARKS[options.mark]
    model = network(options.weights, options.mark)
    seeds = range(asked.FIRST, asked.FIRST + options.count)
    every = list(errors(model, seeds, mark))
    caused = [error for error in every if error is not None]
    if not caused:
        parser.error("the mark caused no error on these scenes: give more of them by --count")
    rows = [measured(error) for error in tqdm(caused, "errors", file=sys.stderr, disable=None)]
    area = mark.side**2 / creatures.SIZE**2
    found = {"mark": options.mark, "scenes": len(every), "errors": len(rows), "area": area, **report(rows)}
    print("\n".join(lines(found)))
    asked.write(options.json, found)
    if options.output:
        asked.picture(options.output, figure(caused[:DRAWN]))


if __name__ == "__main__":
    main()
