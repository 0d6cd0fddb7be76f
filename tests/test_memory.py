"""How memory is had and kept."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from relupath._memory import keep_freed

PIECES = """
import resource
import torch
import relupath
relupath.freeze(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).eval(), torch.ones(1, 2))
for count in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [torch.ones(2**22) for _ in range(8)]
    del pieces
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 8 * 2**24 // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


@pytest.fixture
def once_more():
    """As in a process in which nothing was recorded yet."""
    keep_freed.cache_clear()
    yield
    keep_freed.cache_clear()


def test_other_c_libraries_are_left_alone(once_more, monkeypatch):
    asked = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(ctypes, "CDLL", asked.append)
    keep_freed()
    assert asked == [None]


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no such setting"
)
@pytest.mark.parametrize(
    "said", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(said):
    others = {name: value for name, value in os.environ.items() if "MALLOC" not in name and name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", PIECES], env=others | said, capture_output=True, text=True, check=True)
    faults = int(done.stdout)
    assert faults > 0.9 * PAGES if said else faults < 0.5 * PAGES
