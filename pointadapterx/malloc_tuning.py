"""Memory on a CPU: how the C library hands it out for tensors, and how much there is."""

from __future__ import annotations

import ctypes
import os
import platform

VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Where one of these is set, somebody has decided already."""
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def total_memory() -> int | None:
    """Bytes of this machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # the first is Windows'
        return None


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, for the next step, instead of giving it to the system and taking it again.

    With glibc's defaults every large tensor is taken from the system page by page, and given back. The commands do it
    first of all; a program with steps of its own may. The process may hold somewhat more at its peak.

    Returns:
        Whether it was done: not without glibc, nor where the environment has settings for it.
    """
    if platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    raised = mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)  # the most that older versions take
    return bool(raised and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
