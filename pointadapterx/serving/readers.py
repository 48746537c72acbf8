"""Processes that read uploads, each at most so long and with so much memory: a hostile file costs one of them."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pickle import loads
from types import ModuleType
from typing import Any

from pointadapterx.datasets.cloud_reader import CloudReader
from pointadapterx.engine.input_form import ImageReader
from pointadapterx.serving import reading
from pointadapterx.serving.limits import Limits, RefusedError
from pointadapterx.serving.reading import Allowed, Content, Upload

log = logging.getLogger(__name__)
FORKS = "forkserver" in multiprocessing.get_all_start_methods()


_STARTING = threading.Lock()
"""Of the name ``__main__``, which is the whole program's."""


class _Reader:
    """One process, started at its first upload and again after each that killed it."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.process: BaseProcess | None = None
        self.connection: Connection | None = None

    def start(self) -> Connection:
        if self.connection is not None and self.process is not None and self.process.is_alive():
            return self.connection
        self.stop()  # where it died with nothing to do, as of the system's lack of memory
        context: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")
        if FORKS:
            context.set_forkserver_preload([reading.__name__])
        ours, theirs = context.Pipe()
        arguments = theirs, self.limits.read_memory
        process = context.Process(target=reading.serve, args=arguments, daemon=True, name="reader")
        try:
            with _STARTING:
                main = sys.modules["__main__"]
                sys.modules["__main__"] = ModuleType("__main__")  # else the caller's script would be run again
                try:
                    process.start()
                finally:
                    sys.modules["__main__"] = main
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.process, self.connection = process, ours
        return ours

    def read(self, upload: Upload, reader: CloudReader | ImageReader) -> int | str:
        """Waits until the process has read an upload: bytes of what is in it, or what is wrong with it.

        Raises:
            RefusedError: if no process can be started.
        """
        limits = self.limits
        try:
            connection = self.start()
        except (EOFError, OSError) as error:
            log.error("no process reads uploads", exc_info=error)
            raise RefusedError(503, f"{upload.name}: the process that reads it does not start; try again") from None
        try:
            connection.send((upload, reader, Allowed(limits.points, limits.clouds, limits.points_together)))
            if not connection.poll(limits.read_seconds):
                self.stop()
                return f"{upload.name}: reading it takes more than {limits.read_seconds:g} s; send fewer points"
            size: int = connection.recv()
            return size
        except (EOFError, OSError):  # the process is gone, as the system ends those that take too much memory
            self.stop()
            return reading.too_large(upload.name)

    def give(self, upload: Upload, wanted: bool) -> list[Content]:
        """What was read, or nothing where there is no room for it: then it stays in the process, which forgets it."""
        try:
            assert self.connection is not None
            self.connection.send(wanted)
            found: list[Content] = loads(self.connection.recv_bytes()) if wanted else []
            return found
        except (EOFError, OSError):  # as above
            self.stop()
            return [Content(upload.name, reading.too_large(upload.name))]

    def stop(self) -> None:
        if self.connection is not None:
            self.connection.close()
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process = self.connection = None


class Readers:
    """Reads uploads, some at a time; the others wait."""

    def __init__(self, limits: Limits) -> None:
        self._all = [_Reader(limits) for _ in range(limits.readers)]
        self._threads = ThreadPoolExecutor(limits.readers, "reading")
        self._idle: asyncio.Queue[_Reader] = asyncio.Queue()
        for one in self._all:
            self._idle.put_nowait(one)

    async def warm_up(self) -> None:
        """Starts the processes, which takes seconds."""
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._threads, one.start) for one in self._all))

    async def read(
        self, upload: Upload, reader: CloudReader | ImageReader, hold: Callable[[int], None]
    ) -> list[Content]:
        """What an upload holds.

        Args:
            upload: a body that was received.
            reader: of what is in it.
            hold: is told how many bytes it takes before they are taken, and refuses what is too much.

        Raises:
            RefusedError: if nothing in it can be read, it takes too much, or no process can be started for it.
        """
        chosen = await self._idle.get()
        task = asyncio.ensure_future(self._read(chosen, upload, reader, hold))

        def free(done: asyncio.Task[list[Content]]) -> None:
            self._idle.put_nowait(chosen)
            if not done.cancelled():
                done.exception()  # which is said by nobody else where nobody waits for it any more

        task.add_done_callback(free)
        found = await asyncio.shield(task)
        if all(isinstance(one.content, str) for one in found):
            raise RefusedError(422, str(found[0].content) if found else f"{upload.name}: there is no cloud in it")
        return found

    async def _read(
        self, chosen: _Reader, upload: Upload, reader: CloudReader | ImageReader, hold: Callable[[int], None]
    ) -> list[Content]:
        loop = asyncio.get_running_loop()
        size = await loop.run_in_executor(self._threads, chosen.read, upload, reader)
        if isinstance(size, str):
            return [Content(upload.name, size)]
        try:
            hold(size)
        except RefusedError:
            await loop.run_in_executor(self._threads, chosen.give, upload, False)
            raise
        return await loop.run_in_executor(self._threads, chosen.give, upload, True)

    def stop(self) -> None:
        """Ends the processes."""
        for one in self._all:
            with suppress(Exception):
                one.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
