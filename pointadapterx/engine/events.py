"""Events of a run for TensorBoard: an extra, whose failure ends no run."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from pointadapterx.engine.health import routing_scalars
from pointadapterx.text import markdown

log = logging.getLogger(__name__)


@contextmanager
def tensorboard_events(folder: Path, first_epoch: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Writes events into a folder.

    Args:
        folder: of the events.
        first_epoch: events of this epoch and later ones that are there already are hidden.

    Yields:
        A function that writes an epoch's record; where that fails it says so once, and writes no more.
    """
    opened = SummaryWriter(str(folder), purge_step=first_epoch)
    board: SummaryWriter | None = opened

    def write(record: Mapping[str, Any]) -> None:
        nonlocal board
        if board is None:
            return
        try:
            _add(board, record)
        except OSError as error:
            log.warning("%s: no more events for TensorBoard (%s)", folder, error.strerror or error)
            board = None

    hook = threading.excepthook
    # The thread that writes them raises its errors here once more; a traceback of its own would be one too many.
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else hook(args)
    try:
        yield write
    finally:
        with suppress(OSError):
            opened.close()
        threading.excepthook = hook


def _add(board: SummaryWriter, record: Mapping[str, Any]) -> None:
    for key, value in {**record, **routing_scalars(record)}.items():
        if isinstance(value, str):
            board.add_text(key, markdown(value), record["epoch"])
        elif key != "epoch" and isinstance(value, int | float) and math.isfinite(value):
            board.add_scalar(key, value, record["epoch"])
    board.flush()
