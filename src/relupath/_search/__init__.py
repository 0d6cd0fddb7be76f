"""The searches, one file each."""

from ._base import Cost, Found, Problem, Search, find_paths
from .beam import Beam
from .best_first import BestFirst
from .greedy import Greedy
from .mass import Mass
from .selective import Selective

__all__ = [
    "Beam", "BestFirst", "Cost", "Found", "Greedy", "Mass", "Problem", "Search", "Selective", "find_paths",
]  # fmt: skip
