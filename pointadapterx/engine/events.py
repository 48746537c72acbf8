"""Events of a run for TensorBoard: an extra, whose failure ends no run."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pointadapterx.engine.health import routing_scalars
from pointadapterx.text import markdown

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

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
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    board: SummaryWriter | None = None

    def write(record: Mapping[str, Any]) -> None:
        nonlocal board
        if board is None:
            return
        try:
            _add(board, record)
        except OSError as error:
            _give_up(folder, error)
            board = None

    with ExitStack() as stack:
        stack.enter_context(_quiet_writer())
        try:
            board = opened = SummaryWriter(str(folder), purge_step=first_epoch)
            stack.callback(_close, opened)
        except OSError as error:
            _give_up(folder, error)
        yield write


def _give_up(folder: Path, error: OSError) -> None:
    log.warning("%s: no more events for TensorBoard (%s)", folder, error.strerror or error)


def _close(board: SummaryWriter) -> None:
    with suppress(OSError):
        board.close()


@contextmanager
def _quiet_writer() -> Iterator[None]:
    """Without the traceback of TensorBoard's own thread, whose errors are raised once more where it is written to."""
    hook = threading.excepthook

    def quiet(args: threading.ExceptHookArgs) -> None:
        of_writer = type(args.thread).__module__.startswith("tensorboard.")
        if not (of_writer and isinstance(args.exc_value, OSError)):
            hook(args)

    threading.excepthook = quiet
    try:
        yield
    finally:
        threading.excepthook = hook


def _add(board: SummaryWriter, record: Mapping[str, Any]) -> None:
    for key, value in {**record, **routing_scalars(record)}.items():
        if isinstance(value, str):
            board.add_text(key, markdown(value), record["epoch"])
        elif key != "epoch" and isinstance(value, int | float) and math.isfinite(value):
            board.add_scalar(key, value, record["epoch"])
    board.flush()
