"""The searches, one file each."""

from ._base import Cost, Found, Problem, Search, find_paths, partitions_of
from .greedy import Greedy
from .mass import Mass
from .selective import Selective

__all__ = ["Cost", "Found", "Greedy", "Mass", "Problem", "Search", "Selective", "find_paths", "partitions_of"]
