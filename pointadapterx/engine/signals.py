"""Signals that ask a job to stop: collected, so that it can save what it has first."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator

log = logging.getLogger(__name__)

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""ctrl-C, ``kill``, and a terminal that closes (not on Windows)."""


@contextmanager
def stop_requests(reaction: str) -> Iterator[list[int]]:
    """Collects stop signals instead of ending the process; a second ctrl-C raises :class:`KeyboardInterrupt`.

    A signal that is ignored, as ``nohup`` does with SIGHUP, stays ignored.

    Args:
        reaction: what is done now, for the log.

    Yields:
        Numbers of the signals received, first first.
    """
    received: list[int] = []

    def request(number: int, frame: FrameType | None) -> None:
        if number in received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        log.warning("%s: %s", signal.Signals(number).name, reaction)

    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, request) for number in heeded}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def agreed(requests: list[int], accelerator: Accelerator) -> int:
    """The signal to stop for, the same on every process, or 0; ``requests`` are those of this process."""
    if accelerator.num_processes == 1:
        return max(requests, default=0)
    received = torch.tensor([float(bool(requests))], device=accelerator.device)
    return int(signal.SIGTERM) if float(accelerator.reduce(received)) > 0 else 0
