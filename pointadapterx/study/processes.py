"""Where the runs of a study are started; here as processes of this machine.

Each run is a process of its own, wherever that is: it has a log, its share of the cores and a GPU of its own, a signal
makes it save its state, and whatever kills it, no other run and not the study is affected. Pools of workers that call
functions (of ``concurrent.futures``, or of a cluster) have none of these.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from pointadapterx.datasets.workers import available_cores

LOST = 256
"""The status of a run whose machine is gone; no process ends with it."""


class Process(Protocol):
    """A run in progress, such as a :class:`subprocess.Popen`."""

    def poll(self) -> int | None:
        """The exit status, once it has ended: negative for a signal, or :data:`LOST`."""

    def terminate(self) -> None:
        """Asks it to save its state and to end."""

    def wait(self) -> int:
        """Waits for its end, and returns the exit status."""


class Processes(Protocol):
    """Starts runs, of which a study has a certain number at a time."""

    def start(self, arguments: Sequence[str], log: Path, slot: int) -> Process:
        """Starts a run.

        Args:
            arguments: what follows ``python``.
            log: file in the run's folder, at whose end goes what it prints.
            slot: number of its place among those at a time.
        """


class LocalProcesses:
    """Runs as processes of this machine.

    Args:
        at_a_time: how many share it.
    """

    def __init__(self, at_a_time: int) -> None:
        self.at_a_time = at_a_time

    def start(self, arguments: Sequence[str], log: Path, slot: int) -> Process:
        """See :class:`Processes`."""
        with log.open("ab") as text:
            return subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=text,
                stderr=subprocess.STDOUT,
                env=environment(slot, self.at_a_time),
                start_new_session=True,  # ctrl-C reaches it once, from the study
            )


def environment(slot: int, processes: int) -> dict[str, str]:
    """Variables of one of several processes at a time: its share of the cores, and its GPU where there are some."""
    variables = dict(os.environ)
    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        variables["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    variables.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    return variables
