"""How much memory products may take at once."""

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


@functools.cache
def keep_freed() -> None:
    """Let glibc keep as much of what is freed as products may take at once; what the environment says of it stays.

    It hands large pieces back to the system as soon as they are free; to have them anew, page by page, takes about as
    long as one operation on them.
    """
    said = [name for name in os.environ if name.startswith("MALLOC_")] or "malloc" in os.environ.get(_TUNABLES, "")
    if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ()) and not said:
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 2**25)  # the largest that there is
        library.mallopt(_M_TRIM_THRESHOLD, MOST)


_TUNABLES, _M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = "GLIBC_TUNABLES", -1, -3


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
