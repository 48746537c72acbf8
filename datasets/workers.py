"""Reading many files in several processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from time import perf_counter
from types import ModuleType
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

TRIED = 32  # items after which it is judged how long the others will take
PATIENCE = 20.0  # seconds of reading by one thread


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
        ahead = _submitted(pool, function, blocks[0])
        for following in [*blocks[1:], []]:
            current, ahead = ahead, _submitted(pool, function, following)
            yield from current


def _submitted(
    pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[Result]:
    """Hands items to processes, which start here and import this package alone.

    Else each would run the caller's script again, up to where it calls this, unless the script guards itself by
    ``if __name__ == "__main__":``.
    """
    main = sys.modules["__main__"]
    if function.__module__ != "__main__":
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        return pool.map(function, items, chunksize=8)
    finally:
        sys.modules["__main__"] = main


def read_ahead(
    function: Callable[[Item], Result], items: Sequence[Item], block: int, workers: int | None = None
) -> Iterator[Result]:
    """``function(item)`` of every item, in order, while the caller does something else with those before.

    A thread is at most a block ahead. Where what is left would keep it busy for long, judged by the first items,
    processes take over, which need seconds to start.

    Args:
        function: as in :func:`map_in_order`.
        items: what it is called with.
        block: number of results that may wait.
        workers: processes at most; all CPU cores by default.
    """
    seconds: list[float] = []  # that the thread took for each

    def timed(item: Item) -> Result:
        started = perf_counter()
        try:
            return function(item)
        finally:
            seconds.append(perf_counter() - started)

    most = available_cores() if workers is None else workers
    given, end, judged = 0, len(items), most <= 1
    thread = ThreadPoolExecutor(1)
    waiting: deque[Future[Result]] = deque()
    try:
        while waiting or given < end:
            if not judged and len(seconds) >= TRIED:
                judged = True
                if sum(seconds) / len(seconds) * (end - given) > PATIENCE:
                    end = given
                    continue
            while given < end and len(waiting) < block:
                waiting.append(thread.submit(timed, items[given]))
                given += 1
            yield waiting.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
    if end < len(items):
        yield from map_in_order(function, items[end:], block, workers)


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
