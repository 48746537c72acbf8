"""The exceptions a user can meet. Every message names what is wrong, where, and the way out."""

from __future__ import annotations

import signal
from pathlib import Path
from reprlib import Repr

from pointadapterx.text import printable

_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 4, 100, 100, 40


def shown(value: object) -> str:
    """A value for a message: its ``repr``, shortened if it is long."""
    return _SHORT.repr(value)


def reason_of(error: BaseException) -> str:
    """What an error says, in a line: of the system's without number and path, which the message around it names."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next(iter(text.splitlines()), "").strip() or type(error).__name__


class PointAdapterXError(Exception):
    """Base class: the command line prints it as one ``error:`` line, without a traceback.

    File and class names in it are escaped, so that they cannot affect the terminal.
    """

    LINES = ""

    def __str__(self) -> str:
        """The message, escaped by :func:`~pointadapterx.text.printable`, so that no name in it acts on a terminal."""
        return printable(super().__str__(), keep=self.LINES)


class ConfigError(PointAdapterXError, ValueError):
    """A configuration file or override is wrong; the message lists every problem found, each in a line."""

    LINES = "\n"


class DataError(PointAdapterXError, ValueError):
    """A data set is missing, damaged or inconsistent; the message names file and index."""


class CheckpointError(PointAdapterXError, ValueError):
    """A checkpoint is missing, damaged, incomplete, or belongs to another backbone."""


class TrainingError(PointAdapterXError, RuntimeError):
    """Training cannot go on, for example after a non-finite loss."""


class MergeError(PointAdapterXError, ValueError):
    """An adapted model cannot be turned into a plain one."""


class ExportError(PointAdapterXError, RuntimeError):
    """A model cannot be written as a file that computes the same."""


class HubError(CheckpointError):
    """The Hugging Face hub cannot be reached, does not have what was requested, or refuses it."""


class InUseError(PointAdapterXError, RuntimeError):
    """Another process is writing there; the message names it."""


class Interrupted(Exception):
    """A run was asked to stop (ctrl-C or SIGTERM) and has saved its state.

    Args:
        signal_number: the signal that asked.
        folder: the run's folder.
    """

    def __init__(self, signal_number: int, folder: Path) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}: the state is saved; continue with --resume {folder}")
        self.signal_number = signal_number
