"""Locks between processes: only one process at a time writes to a place.

A lock is the operating system's, on a file of its own, so that a process that is killed leaves nothing locked. A
second file beside it says who holds it; where that file is of a killed process, nobody reads it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pointadapterx.errors import InUseError, PointAdapterXError

log = logging.getLogger(__name__)

PATIENCE = 0.3  # seconds: another process may be looking whether the lock is held
WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}  # of file systems that have none


class Hold:
    """A lock that this process holds until :meth:`release` or its end.

    Args:
        path: of the lock's file.
        lock: the lock; None where the file system has none.
    """

    def __init__(self, path: Path, lock: FileLock | None) -> None:
        self._path, self._lock = path, lock
        owner = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with suppress(OSError):  # it is for a message alone
            _owner_file(path).write_text(json.dumps(owner), encoding="utf-8")

    def release(self, *, remove: bool = True) -> None:
        """Releases the lock for the next process.

        Args:
            remove: the file as well; not where others wait for it, who have it open.
        """
        with suppress(OSError):
            _owner_file(self._path).unlink(missing_ok=True)
            if remove and os.name == "posix":
                self._path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()


def try_hold(path: Path) -> Hold | None:
    """Takes a lock, or None where another process, or another part of this one, has it.

    Raises:
        OSError: if the lock's file cannot be written.
    """
    lock = FileLock(path)
    try:
        return Hold(path, lock) if _acquire(lock) else None
    except _NoLocksError:
        log.warning("%s: the file system has no locks; make sure that no other process writes there", path.parent)
        return Hold(path, None)


def is_held(path: Path) -> bool:
    """Whether a process has the lock now; False where that cannot be found out."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        free = _acquire(lock)
    except (OSError, _NoLocksError):
        return False
    lock.release()
    return not free


class _NoLocksError(Exception):
    """The file system has no locks."""


def _acquire(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        return False
    except NotImplementedError:
        raise _NoLocksError from None
    except OSError as error:
        if error.errno in WITHOUT_LOCKS:
            raise _NoLocksError from None
        raise
    return True


def holder(path: Path) -> str:
    """Describes the holder of a lock as far as it is known: ``process 123 on HOST since …``."""
    try:
        owner = json.loads(_owner_file(path).read_text(encoding="utf-8"))
        return f"process {int(owner['process'])} on {owner['host']!s} since {owner['since']!s}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


@contextmanager
def alone(path: Path, what: object, way_out: str) -> Iterator[None]:
    """Context manager that holds a lock, or raises if another process has it.

    Args:
        path: of the lock's file, in a folder that exists.
        what: what is locked, for the message.
        way_out: what to do otherwise.

    Raises:
        InUseError: if another process has it.
        PointAdapterXError: if the lock's file cannot be written.
    """
    try:
        hold = try_hold(path)
    except OSError as error:
        raise PointAdapterXError(f"{what}: cannot be written ({error.strerror}); {way_out}") from None
    if hold is None:
        raise InUseError(f"{what}: is in use by {holder(path)}; {way_out}")
    try:
        yield
    finally:
        hold.release()


@contextmanager
def in_turn(path: Path, what: object) -> Iterator[None]:
    """Context manager that waits for a lock and holds it; the lock's file is kept.

    Args:
        path: of the lock's file, in a folder that exists.
        what: what is waited for, for the log.
    """
    hold = try_hold(path)
    if hold is None:
        log.info("%s: waiting for %s", what, holder(path))
        lock = FileLock(path)
        lock.acquire()
        hold = Hold(path, lock)
    try:
        yield
    finally:
        hold.release(remove=False)


def _owner_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
