"""How much memory products may take at once, and that what they free stays at hand."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

import torch

MOST = 2**29
"""On a processor, more at once is no faster."""


CACHE = 2**24
"""What a processor keeps at hand: cotangents that together take more go down one after the other."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""The numbers of glibc's settings: from how much on what is free is handed back, and what is mapped by itself."""


@functools.cache
def keep_freed() -> None:
    """Let glibc keep what is freed, up to 512 MiB at the end of its heap, unless the environment speaks of malloc.

    By itself it hands large pieces back to the system as soon as they are free, and the next operation has them anew,
    page by page. Threads beside the main one have heaps of their own, to which it does less.
    """
    said = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or said:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**25)  # more is refused by older versions
        mallopt(M_TRIM_THRESHOLD, MOST)


def in_cache(device: torch.device) -> int:
    """The bytes of one tensor with which a device is fastest; on a GPU there is no such bound."""
    return CACHE if device.type == "cpu" else sys.maxsize


def at_once(device: torch.device, max_bytes: int | None = None) -> int:
    """The bytes that products may take at once on a device: what the user says, or a part of what is free."""
    if max_bytes is not None:
        return max_bytes
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 4
    if "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ()):
        return min(MOST, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8)
    return MOST
