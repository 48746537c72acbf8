"""A process on a CPU: how its threads wait, tuning of the C library's allocator, the size of the machine's memory."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Where one of these is set, somebody has decided already."""
WAITING_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SPINS = 10_000
"""Rounds of a loop, a few tenths of a millisecond: longer than between two operations of a step."""
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)


def total_memory() -> int | None:
    """Size of this machine's memory in bytes, or None if it is unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # the first is Windows'
        return None


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for the next step, instead of returning it to the system each time.

    With glibc's defaults every large tensor is taken from the system page by page, and given back. The commands do it
    first of all; a program with steps of its own may. The process may hold somewhat more at its peak.

    Returns:
        Whether it was done: False without glibc, or when the environment already configures it.
    """
    if platform.libc_ver()[0] != "glibc" or any(os.environ.get(name) for name in VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    raised = mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)  # the most that older versions take
    return bool(raised and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def limit_spinning() -> bool:
    """Lets threads of GNU's OpenMP, with which torch computes on Linux, soon sleep while they wait for each other.

    By default they keep their cores busy for seconds. Where another program has work for these cores, too, a thread
    spins while the one that it waits for is not running, and both programs take ten times as long or more. The
    commands do it first of all; a program of your own may, before it imports torch.

    Returns:
        Whether it was done: False if torch is there already, or the environment already says how they wait.
    """
    if "torch" in sys.modules or any(os.environ.get(name) for name in WAITING_VARIABLES):
        return False
    os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    return True
