"""Runs of a study as processes of a cluster's nodes, each started and watched by a Ray task.

The files are as they always are, so the folder of the runs has to be on a file system that every node sees, locks
included. The node's process is one of its own and not the task: see :mod:`pointadapterx.study.processes`.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from pointadapterx.cluster.connection import ray, share
from pointadapterx.cluster.place import Place, node
from pointadapterx.errors import ConfigError
from pointadapterx.locks import holder, is_held
from pointadapterx.study.outcomes import OUTPUT
from pointadapterx.study.processes import LOST
from pointadapterx.study.runner import LOCK

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.2
APPEAR_SECONDS = 10.0  # in which a file of one machine is there for another
PR_SET_PDEATHSIG = 1
WRONG = 2


class Ended(NamedTuple):
    """How a run ended on its node.

    Attributes:
        status: of its process.
        problem: why there was none.
        doubt: what may be wrong with the node.
    """

    status: int
    problem: str | None = None
    doubt: str | None = None


class RayProcesses:
    """Starts the runs of a study on a cluster; see :class:`~pointadapterx.study.processes.Processes`.

    Args:
        at_a_time: how many share the cluster.
    """

    def __init__(self, at_a_time: int) -> None:
        resources = share(at_a_time)
        self._watch = ray().remote(max_retries=0, **resources)(watch)
        self._threads = os.environ.get("OMP_NUM_THREADS", str(resources["num_cpus"]))
        self._place = Place()

    def start(self, arguments: Sequence[str], log: Path, slot: int) -> RayProcess:
        """See there; it starts once a node has room for it."""
        holds = holder(log.parent / LOCK)
        found = self._watch.remote(list(arguments), log.absolute(), self._threads, holds, self._place)
        return RayProcess(found, log.parent)


class RayProcess:
    """A run on a node, or on its way there.

    Args:
        found: what the task returns.
        folder: of the run.
    """

    def __init__(self, found: Any, folder: Path) -> None:
        self._found, self._folder = found, folder

    def poll(self) -> int | None:
        """The exit status once it has ended, :data:`LOST` if its node or the task that watches it is gone.

        Raises:
            ConfigError: if the node cannot train it, as it does not see the same files.
        """
        if not ray().wait([self._found], timeout=0)[0]:
            return None
        ended = self._ended()
        if ended.problem is not None:
            raise ConfigError(ended.problem)
        if ended.doubt is not None:
            log.warning("%s", ended.doubt)
        return ended.status

    def terminate(self) -> None:
        """Asks it to save its state; a run that waits for its place does not start."""
        ray().cancel(self._found)

    def wait(self) -> int:
        """Waits for its end, and returns the exit status."""
        return self._ended().status

    def _ended(self) -> Ended:
        errors = ray().exceptions
        try:
            ended: Ended = ray().get(self._found)
        except errors.TaskCancelledError:
            return Ended(-signal.SIGTERM)
        except errors.RayTaskError:  # an exception of the task, which has none that is expected
            raise
        except errors.RayError:
            return Ended(LOST)
        for folder in (self._folder, self._folder / OUTPUT):
            with suppress(OSError), TemporaryFile(dir=folder):  # a change, after which NFS reads the folder again
                pass
        return ended


def watch(arguments: Sequence[str], log: Path, threads: str, holds: str, place: Place) -> Ended:
    """On a node: trains a run in a process of its own; a cancelled task lets it save its state.

    Args:
        arguments: what follows ``python``.
        log: file in the run's folder, at whose end goes what it prints.
        threads: of the process.
        holds: who has locked the run's folder, as the study's machine sees it.
        place: of the command.
    """
    problem = place.problem() or _problem_of(log.parent, holds)
    if problem is not None:
        return Ended(WRONG, problem)
    locked = is_held(log.parent / LOCK)
    process = None
    try:
        with log.open("ab") as text:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=text,
                stderr=subprocess.STDOUT,
                cwd=place.folder,
                env={**os.environ, "OMP_NUM_THREADS": threads},
                start_new_session=True,
                preexec_fn=_end_with_this if sys.platform == "linux" else None,
            )
        while process.poll() is None:  # a call that blocks could not be interrupted
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:  # how Ray cancels a task
        if process is None:
            return Ended(-signal.SIGTERM)
        process.terminate()
        process.wait()
    doubt = (
        None if locked else f"{node()}: does not see the locks of {log.parent.parent}; run one study there at a time"
    )
    return Ended(process.returncode, doubt=doubt)


def _problem_of(folder: Path, holds: str) -> str | None:
    """Whether this node sees the folder as the study's machine does."""
    limit = time.monotonic() + APPEAR_SECONDS
    while holder(folder / LOCK) != holds:
        if time.monotonic() > limit:
            return (
                f"{node()}: does not see what is in {folder} now; the folder of the runs has to be on a file system "
                "that every node sees, at the same path"
            )
        time.sleep(WATCH_SECONDS)
    return None


def _end_with_this() -> None:
    """In a new process: it gets SIGTERM, and saves its state, when the one that started it is killed."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if sys.platform == "linux":
    import ctypes

    _LIBC = ctypes.CDLL(None)
