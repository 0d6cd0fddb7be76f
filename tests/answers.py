"""What is asked of a frozen network, and what is answered as numbers by name, so that one law holds for every verb."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from asserts import nodes
from cases import NETWORKS, PARTITIONS, SEARCHES, TARGETS, units_of
from relupath import (
    Frozen,
    Node,
    Path,
    PathModel,
    Step,
    bias_sources,
    channels,
    decompose,
    find_paths,
    linear_model,
    path_mass,
)
from relupath._bias import BiasSources
from relupath._mass import PathMass
from relupath._search import Found
from renamed import Names

VERBS: dict[str, Callable[..., Any]] = {
    **{name: partial(find_paths, search=search) for name, search in SEARCHES.items()},
    "decompose": partial(decompose, width=2),
    "bias sources": bias_sources,
    "linear model": linear_model,
    "path mass": path_mass,
}
OVER_PARTITIONS = (*(name for name in SEARCHES if name != "exact"), "decompose")
OVER_LAYERS = (*SEARCHES, "decompose", "path mass")
OVER_PATHS = ("bias sources", "linear model")


def one_axis_at_a_time(verbs: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """(verb, network, partition, target): from one setting along each axis in turn."""
    first = ("vgg", "neurons", "predicted")
    settings = [
        *((name, *first[1:]) for name in NETWORKS),
        *((first[0], partition, first[2]) for partition in PARTITIONS if partition != first[1]),
        *((*first[:2], target) for target in TARGETS if target != first[2]),
    ]
    return [(v, *s) for v in verbs for s in settings if s[1] == first[1] or v in OVER_PARTITIONS]


# --- answers ---

Answer = dict[Hashable, Tensor]


def answers(verb: str, frozen: Frozen, target: object, names: Names | None = None, **options) -> list[Answer]:
    """Everything that a verb says, sample by sample."""
    names, ask = names or Names(), VERBS[verb]
    if verb == "decompose":
        return [dict(_of_tree(ask(frozen, target, sample=b, **options), names)) for b in range(frozen.batch)]
    said = ask(frozen, target, **options)
    read = {Found: _of_found, BiasSources: _of_bias, PathMass: _of_mass, PathModel: _of_model}[type(said)]
    found = [dict(read(said, b, names)) for b in range(frozen.batch)]
    if verb == "linear model":
        for unit, path in _one_unit_paths(frozen):
            through, name = linear_model(frozen, target, path), ("through", names.step(unit))
            for b, own in enumerate(found):
                own |= {(name, key): value for key, value in _of_model(through, b, names)}
    return found


Entries = Iterator[tuple[Hashable, Tensor]]


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _one_unit_paths(frozen: Frozen) -> Iterator[tuple[Step, Path]]:
    """The path of every channel of the lowest and of the highest layer."""
    for layer in dict.fromkeys((frozen.layers[0], frozen.layers[-1])):
        for units in units_of(frozen, layer.name, channels):
            step = Step(layer.name, units)
            yield step, Path((step,))


def _of_model(model: PathModel, sample: int, names: Names) -> Entries:
    yield "weight", model.weight[sample]
    yield "bias", model.bias[sample]
    yield "value", model.value[sample]
    yield ("label", model.labels[sample]), _number(1)


def _of_found(found: Found, sample: int, names: Names) -> Entries:
    yield from _of_model(found.model, sample, names)
    yield ("stopped", found.stopped[sample]), _number(1)
    yield "held", found.held[sample]
    for rank, (path, value) in enumerate(zip(found.ranked[sample], found.values[sample], strict=True)):
        yield (rank, names.path(path)), _number(value)
    for layer, value in found.importance[sample].items():
        yield ("importance", layer), _number(value)


def _of_tree(tree: Node, names: Names) -> Entries:
    for node in nodes(tree.expand(2)):
        key = (node.kind, names.path(node.path))
        yield key, torch.stack([_number(node.value), _number(node.bias), _number(node.weight_part)])
        yield (*key, "contribution"), node.contribution[0]


def _of_bias(found: BiasSources, sample: int, names: Names) -> Entries:
    yield from _of_model(found.model, sample, names)
    for term in found.terms:
        module = term.name.partition(":")[0].removesuffix(".bias")
        yield (term.name, term.layer), names.along(module, term.units[sample])
        if term.places is not None:
            yield (term.name, "places"), term.places[sample]


def _of_mass(mass: PathMass, sample: int, names: Names) -> Entries:
    for key in ("count_log10", "positive", "negative", "total"):
        yield key, getattr(mass, key)[sample]
    for name, halves in mass.units.items():
        for sign, half in zip("+-", halves, strict=True):
            yield (name, sign), names.along(name, half[sample])
