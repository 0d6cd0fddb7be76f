"""The searches, one file each."""

from ._base import Cost, Found, Problem, Search, find_paths
from .greedy import Greedy

__all__ = ["Cost", "Found", "Greedy", "Problem", "Search", "find_paths"]
