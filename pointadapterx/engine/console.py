"""What a run shows: log lines, a progress bar where someone watches, tables."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()


def set_up_logging(main_process: bool) -> None:
    """Log lines to the terminal, from the main process only (others: errors)."""
    logger = logging.getLogger("pointadapterx")
    logger.setLevel(logging.INFO if main_process else logging.ERROR)
    logger.propagate = False
    logger.handlers = [_ConsoleHandler()]


def log_to_file(path: Path) -> logging.Handler:
    """Appends log lines, with their time, to a file of the run."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("pointadapterx")
    if logger.getEffectiveLevel() > logging.INFO:  # called from Python, where nothing was set up
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    return handler


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar without breaking it, and without wrapping or colouring paths."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno == logging.WARNING else "red" if record.levelno > logging.WARNING else None
        console.print(self.format(record), style=style, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """For work whose length nobody knows: a line that changes and disappears, or lines on standard error.

    Yields:
        A function to call with what is done next.
    """
    if not console.is_terminal:
        yield lambda text: print(f"{text} …", file=sys.stderr, flush=True)
        return
    with console.status("") as status:
        yield lambda text: status.update(f"{escape(text)} …")


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
