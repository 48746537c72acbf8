"""The files of ``predict --output``."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, TextIO

from pointadapterx.endings import explain
from pointadapterx.engine.input_form import Failure
from pointadapterx.errors import PointAdapterXError
from pointadapterx.locks import alone
from pointadapterx.tasks.exchange import Answer
from pointadapterx.text import cell, json_line

CSV = ".csv"
FORMATS = (CSV, ".jsonl")


class Sink(Protocol):
    """Receives predictions and failures one after the other."""

    def __call__(self, found: Answer | Failure) -> None:
        """Writes the line of one prediction or failure."""


def sink(file: TextIO, suffix: str, columns: Sequence[str], top: int) -> Sink:
    """What writes lines into a file of one of :data:`FORMATS`, without its heading.

    Args:
        file: open to write text, which keeps the ends of lines.
        suffix: of its name.
        columns: of an answer.
        top: classes that an answer lists.
    """
    return _csv_sink(file, len(columns), top) if suffix.lower() == CSV else _json_sink(file)


def write_heading(file: TextIO, suffix: str, columns: Sequence[str]) -> None:
    """The first line of a CSV file; other formats have none.

    Args:
        file: as for :func:`sink`.
        suffix: likewise.
        columns: likewise.
    """
    if suffix.lower() == CSV:
        csv.writer(file).writerow(["file", "adapter", *columns, "warnings", "error"])


def _csv_sink(file: TextIO, columns: int, top: int) -> Sink:
    writer = csv.writer(file)

    def write(found: Answer | Failure) -> None:
        if isinstance(found, Failure):
            writer.writerow([cell(found.name), "", *[""] * columns, "", cell(found.reason)])
            return
        notes = cell("; ".join(found.warnings))
        writer.writerow([cell(found.name), cell(found.adapter), *found.cells(top), notes, ""])

    return write


def _json_sink(file: TextIO) -> Sink:
    def write(found: Answer | Failure) -> None:
        said = {"error": found.reason} if isinstance(found, Failure) else found.content()
        file.write(json_line({"file": found.name, **said}) + "\n")

    return write


@contextmanager
def whole(output: Path) -> Iterator[TextIO]:
    """Writes to ``NAME.part``, which is renamed when it is complete; one process at a time.

    Raises:
        PointAdapterXError: if it cannot be written, or another process does.
    """
    part = output.with_name(f"{output.name}.part")
    with ExitStack() as stack:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            lock = output.with_name(f".{output.name}.lock")
            stack.enter_context(alone(lock, output, "wait for it, or choose another --output"))
            file = part.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise PointAdapterXError(
                f"{output}: cannot be written ({error.strerror}); choose another --output"
            ) from None
        try:
            with file:
                yield file
            part.replace(output)
        except OSError as error:
            if explain(error) is None:
                raise
            raise PointAdapterXError(
                f"{output}: cannot be written ({error.strerror}); what was found is in {part}"
            ) from None
