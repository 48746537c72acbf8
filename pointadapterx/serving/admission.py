"""What comes in: counted before it is read, held in files of the server's own naming, and removed whatever happens."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from pointadapterx.errors import reason_of
from pointadapterx.serving.limits import Limits, RefusedError, overloaded
from pointadapterx.serving.metrics import Metrics
from pointadapterx.serving.reading import Upload
from pointadapterx.text import counted

LONGEST_NAME = 255


class Admission:
    """Bounds of what is in the server at a time.

    Args:
        limits: the bounds.
        folder: for bodies.
        metrics: are told of what waits.
    """

    def __init__(self, limits: Limits, folder: Path, metrics: Metrics) -> None:
        self._limits, self._folder, self._metrics = limits, folder, metrics
        self._requests = self._bytes = 0
        self._numbers = count()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue.

        Raises:
            RefusedError: if all are taken.
        """
        self.require_place()
        self._requests += 1
        self._metrics.waiting.set(self._requests)
        try:
            yield
        finally:
            self._requests -= 1
            self._metrics.waiting.set(self._requests)

    def require_place(self) -> None:
        """Refuses a request that would get no place, before its body is read.

        Raises:
            RefusedError: if all are taken.
        """
        if self._requests >= self._limits.queue:
            raise overloaded(f"{counted(self._requests, 'request')} wait")

    @contextmanager
    def upload(self, name: str, suffix: str) -> Iterator[Receiving]:
        """A file for the body of a request."""
        path = self._folder / f"{next(self._numbers)}{suffix}"
        receiving = Receiving(self, Upload(str(path), name))
        try:
            yield receiving
        finally:
            self.count(-receiving.size)
            path.unlink(missing_ok=True)

    @contextmanager
    def contents(self) -> Iterator[Callable[[int], None]]:
        """Counts bytes of what was read, until the request is answered.

        The function that is given raises:
            RefusedError: if they are too many, alone or with those of others, or nobody waits for them any more.
        """
        held, over = 0, False

        def hold(size: int) -> None:
            nonlocal held
            if over:
                raise RefusedError(503, "nobody waits for what was read")
            most = self._limits.queue_bytes
            if held + size > most:
                read = counted(held + size, "byte")
                raise RefusedError(
                    413, f"what was read takes {read}, more than the {most:,} of all requests; send less"
                )
            self.count(size)
            held += size

        try:
            yield hold
        finally:
            over = True
            self.count(-held)

    def count(self, size: int) -> None:
        """Bytes that have come, or are gone.

        Raises:
            RefusedError: if those that have come are too many.
        """
        if size > 0 and self._bytes + size > self._limits.queue_bytes:
            raise overloaded(f"{counted(self._bytes, 'byte')} wait")
        self._bytes += size
        self._metrics.waiting_bytes.set(self._bytes)

    @property
    def limits(self) -> Limits:
        """The bounds."""
        return self._limits


class Receiving:
    """One body on its way.

    Attributes:
        upload: where it is put.
        size: bytes so far.
    """

    def __init__(self, admission: Admission, upload: Upload) -> None:
        self._admission, self.upload, self.size = admission, upload, 0

    async def take(self, chunks: AsyncIterator[bytes], declared: int | None) -> Upload:
        """Writes the body into its file.

        Args:
            chunks: of the body.
            declared: its length as the client says, None where it does not.

        Raises:
            RefusedError: if it is too large, which is known from its declared length or as soon as too much has come,
                or too slow.
        """
        limits = self._admission.limits
        self._require(declared or 0)
        try:
            await asyncio.wait_for(self._write(chunks), limits.upload_seconds)
        except asyncio.TimeoutError:
            raise RefusedError(408, f"the body did not arrive within {limits.upload_seconds:g} s") from None
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOSPC):  # open files, room on the disk
                raise
            raise RefusedError(503, f"the body cannot be kept now ({reason_of(error)}); try again later") from None
        if not self.size:
            raise RefusedError(400, "the request has no body; send a file, or JSON with the key points")
        return self.upload

    async def _write(self, chunks: AsyncIterator[bytes]) -> None:
        with open(self.upload.path, "wb") as file:
            async for chunk in chunks:
                self._require(self.size + len(chunk))
                self._admission.count(len(chunk))
                self.size += len(chunk)
                file.write(chunk)

    def _require(self, size: int) -> None:
        most = self._admission.limits.upload
        if size > most:
            raise RefusedError(413, f"the body has more than the {counted(most, 'byte')} that are taken")
