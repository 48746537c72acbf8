"""Reading many files in several processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], block: int, workers: int | None = None
) -> Iterator[Result]:
    """``function(item)`` of every item, in order; at most two blocks of results are in memory.

    Args:
        function: a function of a module, or another object that can be pickled.
        items: what it is called with.
        block: number of items handed to the processes at a time.
        workers: processes; all CPU cores by default, but no more than there are blocks.
    """
    blocks = [items[start : start + block] for start in range(0, len(items), block)]
    if workers is None:
        workers = min(available_cores(), len(blocks))
    if workers <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process in which torch has threads may hang
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        ahead = pool.map(function, blocks[0], chunksize=8)
        for following in [*blocks[1:], []]:
            current, ahead = ahead, pool.map(function, following, chunksize=8)
            yield from current


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
