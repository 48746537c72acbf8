"""What a run shows: log lines, a progress bar where someone watches, tables. Names in them are always text."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from pointadapterx.endings import leave
from pointadapterx.text import printable


class PlainConsole(Console):
    """A console for which ``[b]`` and ``:smile:`` are text, in tables and titles too, and ANSI escapes are shown.

    Its terminal or file may go away: a run does not end because nobody looks at it any more.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed, or is part of what is printed, comes by here."""
        return super().render_str(printable(text, keep="\n"), **options)

    def on_broken_pipe(self) -> None:
        """Prints nothing from here on; rich's own ends the process."""
        self.quiet = True
        leave(sys.stdout)


console = PlainConsole()


class PlainFormatter(logging.Formatter):
    """Messages in one line each, whatever the names in them hold; only a traceback has more."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        return printable(super().format(record), keep="\n")


def set_up_logging(main_process: bool) -> None:
    """Log lines to the terminal, from the main process only (others: errors)."""
    logger = logging.getLogger("pointadapterx")
    logger.setLevel(logging.INFO if main_process else logging.ERROR)
    logger.propagate = False
    handler = _ConsoleHandler()
    handler.setFormatter(PlainFormatter())
    logger.handlers = [handler]


def log_warnings_to(stream: TextIO) -> None:
    """Warnings alone, where standard output is for what is found."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter())
    logger = logging.getLogger("pointadapterx")
    logger.setLevel(logging.WARNING)
    logger.handlers = [handler]
    logger.propagate = False


def log_to_file(path: Path) -> logging.Handler:
    """Appends log lines, with their time, to a file of the run."""
    handler = _FileHandler(path, encoding="utf-8")
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("pointadapterx")
    if logger.getEffectiveLevel() > logging.INFO:  # called from Python, where nothing was set up
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    return handler


class _FileHandler(logging.FileHandler):
    """Is left out from the first line on that cannot be written; logging's own prints a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Reports a failed write once, instead of a traceback for every record."""
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
        console.print(self.format(record), style=style, soft_wrap=True, highlight=False)


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
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda: progress.advance(task)
