"""Exact explanations of a neural network's decision by paths of hidden units.

>>> frozen = relupath.freeze(model, x)
>>> found = relupath.find_paths(frozen, relupath.logit(3), relupath.Greedy())
>>> relupath.linear_model(frozen, relupath.logit(3), path=found.paths[0])
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import bridges, creatures, draw, explorer, images, metrics, models, plans, reach, report, runs, server
    from ._ablate import ablate, plausible
    from ._bias import bias_sources
    from ._decompose import decompose
    from ._freeze import freeze, freeze_each
    from ._frozen import Frozen
    from ._linear import PathModel, linear_model
    from ._many import linear_models
    from ._mass import path_mass
    from ._node import Node
    from ._own import freezes
    from ._partitions import Partition, channels, heads, labels, locations, neurons
    from ._paths import Path, Step
    from ._search import Beam, BestFirst, Exact, Greedy, Mass, Selective, find_paths
    from ._targets import contrast, logit
    from .widget import explore

_HOME = {
    "Beam": "_search", "BestFirst": "_search", "Exact": "_search", "Frozen": "_frozen", "Greedy": "_search",
    "Mass": "_search", "Node": "_node", "Partition": "_partitions", "Path": "_paths", "PathModel": "_linear",
    "Selective": "_search", "Step": "_paths", "ablate": "_ablate", "bias_sources": "_bias", "channels": "_partitions",
    "contrast": "_targets", "decompose": "_decompose", "find_paths": "_search", "freeze": "_freeze",
    "freezes": "_own", "heads": "_partitions", "labels": "_partitions", "linear_model": "_linear",
    "linear_models": "_many", "locations": "_partitions", "logit": "_targets", "neurons": "_partitions",
    "path_mass": "_mass", "plausible": "_ablate",
}  # fmt: skip
_MODULES = ("creatures", "draw", "errors", "images", "models", "reach")
_INNER = ("bridges", "explorer", "metrics", "plans", "report", "runs", "server", "widget")
_BESIDE = {"explore": "widget", "freeze_each": "_freeze"}

__version__ = version("relupath")
__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that the command line answers before torch is loaded."""
    home = _HOME.get(name) or _BESIDE.get(name)
    if home:
        return getattr(import_module(f".{home}", __name__), name)
    if name in (*_MODULES, *_INNER):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
