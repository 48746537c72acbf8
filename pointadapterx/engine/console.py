"""What a run shows: log lines, a progress bar where someone watches, tables."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pointadapterx.endings import leave


class _Console(Console):
    """A terminal or file that may go away: a run does not end because nobody looks at it any more."""

    def on_broken_pipe(self) -> None:
        """Prints nothing from here on; rich's own ends the process."""
        self.quiet = True
        leave(sys.stdout)


console = _Console()


def set_up_logging(main_process: bool) -> None:
    """Log lines to the terminal, from the main process only (others: errors)."""
    logger = logging.getLogger("pointadapterx")
    logger.setLevel(logging.INFO if main_process else logging.ERROR)
    logger.propagate = False
    logger.handlers = [_ConsoleHandler()]


def log_to_file(path: Path) -> logging.Handler:
    """Appends log lines, with their time, to a file of the run."""
    handler = _FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("pointadapterx")
    if logger.getEffectiveLevel() > logging.INFO:  # called from Python, where nothing was set up
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    return handler


class _FileHandler(logging.FileHandler):
    """Is left out from the first line on that cannot be written; logging's own prints a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Says so once."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        logger = logging.getLogger("pointadapterx")
        logger.removeHandler(self)
        logger.warning("%s: cannot be written (%s); the run goes on without it", self.baseFilename, error.strerror)


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar without breaking it, and without wrapping or colouring paths."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno == logging.WARNING else "red" if record.levelno > logging.WARNING else None
        console.print(self.format(record), style=style, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def progress_bar(title: str, total: int, done: int, visible: bool) -> Iterator[Callable[[], None]]:
    """A bar that disappears when its loop ends; nothing where the output is not a terminal.

    Yields:
        A function to call after each step.
    """
    if not (visible and console.is_terminal):
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda: progress.advance(task)
