"""The searches, one file each."""

from ._base import Cost, Found, Gap, Problem, Search
from ._find import find_paths
from .beam import Beam
from .best_first import BestFirst
from .exact import Exact
from .greedy import Greedy
from .mass import Mass
from .selective import Selective

__all__ = [
    "Beam", "BestFirst", "Cost", "Exact", "Found", "Gap", "Greedy", "Mass", "Problem", "Search", "Selective",
    "find_paths",
]  # fmt: skip
