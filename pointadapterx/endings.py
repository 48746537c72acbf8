"""How a command ends: the one place that turns errors and signals into an exit status and one line."""

from __future__ import annotations

import errno
import functools
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import ParamSpec, TextIO

from pointadapterx.errors import Interrupted, PointAdapterXError
from pointadapterx.text import printable

WRONG = 2
BROKEN_PIPE = 128 + 13  # what a shell reports for a command that SIGPIPE ended

WAYS = {
    errno.ENOSPC: "free space there, or choose another place",
    errno.EDQUOT: "free some of your quota, or choose another place",
    errno.EFBIG: "choose another place, whose file system takes larger files",
    errno.EIO: "the disk or its connection fails",
    errno.EROFS: "it is read-only; choose another place",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "its links lead in a circle",
    errno.ENOENT: "it was removed, or never there",
    errno.ENOTDIR: "a part of the path is a file; choose another",
    errno.EISDIR: "give a file",
    errno.ESTALE: "its file system was taken away",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "free memory, or ask for less",
}
"""What can be done about the errors of a system that are no fault of this program."""
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|failed to allocate", re.IGNORECASE)

Parameters = ParamSpec("Parameters")


def run_to_status(command: Callable[[], int], stopped: str = "stopped") -> int:
    """Runs a command, and turns its errors and the signals that end it into one line and an exit status.

    Wrong input, a full disk, a closed pipe and too little memory are such errors. Any other exception is a fault of
    the program and keeps its traceback.

    Args:
        command: returns its exit status.
        stopped: what is printed after Ctrl-C.

    Returns:
        The command's status; 2 after an error; 128 + n after signal n.
    """
    try:
        status = command()
        sys.stdout.flush()  # here, where a failure can be reported, and not when Python ends
        return status
    except Interrupted as stop:
        return _say(printable(stop), 128 + stop.signal_number)
    except KeyboardInterrupt:
        return _say(stopped, 128 + signal.SIGINT)
    except BrokenPipeError:  # of `| head`, which has seen enough
        leave(sys.stdout)
        return BROKEN_PIPE
    except PointAdapterXError as error:
        return _say(f"error: {error}", WRONG)
    except (OSError, MemoryError, RuntimeError) as error:
        line = explain(error)
        if line is None:
            raise
        if isinstance(error, OSError) and error.filename is None:
            leave(sys.stdout)  # which may be what is full
        return _say(f"error: {line}", WRONG)


def ends_in_one_line(command: Callable[Parameters, int]) -> Callable[Parameters, int]:
    """The decorator form of :func:`run_to_status`, for the ``main`` of a tool."""

    @functools.wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> int:
        return run_to_status(lambda: command(*args, **kwargs))

    return run


def explain(error: Exception) -> str | None:
    """One line for an error of the system; None for a bug of the program."""
    if isinstance(error, OSError):
        way = WAYS.get(error.errno or 0)
        if way is None or (error.errno == errno.ENOENT and error.filename is None):
            return None
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else "the output"
        return f"{_short(where)}: {error.strerror}; {way}"
    text = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        what = f" ({_short(text)})" if text else ""
        return f"not enough memory{what}; lower the batch size, the number of points or samples, or the model's sizes"
    return None


def _short(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # names of files need not be UTF-8
    return text if len(text) <= 300 else f"{text[:100]}…{text[-100:]}"


def _say(text: str, status: int) -> int:
    try:
        print(text, file=sys.stderr)
    except BrokenPipeError:
        leave(sys.stderr)
    return status


def leave(stream: TextIO) -> None:
    """Discards the rest of a stream that nobody reads; Python would complain about it at its end."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):  # a stream without a file, as in a notebook
        pass
