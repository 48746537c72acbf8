"""What is said of the inputs of a prediction beside their points, such as the category of each object."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pointadapterx.errors import ConfigError, DataError, reason_of
from pointadapterx.tasks import Task

Said = str | os.PathLike[str] | Mapping[str, str] | Callable[[str], str | None] | None
"""The condition of all inputs in a word; a table of them as a path, see :func:`read_table`; or by the name of an input:
the path of a file, ``input 0``, ``all.h5#0``."""


def folder_of(name: str) -> str:
    """The name of the folder that a file lies in: ``chair`` of ``scans/chair/1.ply``."""
    return Path(name).absolute().parent.name


def reader_of(said: Said, task: Task) -> Callable[[str], str | None]:
    """What is said of an input by its name; whether the task knows it is only certain where it is one for all.

    Args:
        said: see :data:`Said`.
        task: what the condition is for.

    Raises:
        ConfigError: if the task takes no condition, or does not know it.
        DataError: for a table that cannot be read.
    """
    if said is None:
        return lambda name: None
    if isinstance(said, str):
        task.category(said)  # wrong for all of them: not a failure of each
        return lambda name: said
    if not task.categories:
        raise ConfigError(f"condition: the task {task.config.task.name} takes none; remove it")
    if isinstance(said, Mapping):
        given: Mapping[str, str] = said
        return given.get
    if isinstance(said, os.PathLike):
        table = read_table(Path(said), task)
        return lambda name: table.get(os.path.realpath(name))
    return said


def read_table(path: Path, task: Task) -> dict[str, str]:
    """Conditions by resolved path, of a CSV file with the columns ``file`` and the condition's name, or ``label``.

    Paths are relative to the table's folder, as in a table to train on, which is such a table too.

    Raises:
        DataError: if it cannot be read, or a line lacks a value or has one that is unknown.
    """
    found = dict[str, str]()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            reader.fieldnames = columns = [name.strip().lower() for name in reader.fieldnames or ()]
            column = next((name for name in (task.condition.lower(), "label") if name in columns), None)
            if column is None or "file" not in columns:
                raise DataError(f"{path}: its first line has to name the columns file and {task.condition}")
            for row in reader:
                name, value = ((row.get(key) or "").strip() for key in ("file", column))
                if not name or not value:
                    raise DataError(f"{path}: line {reader.line_num} has no {'file' if not name else column}")
                try:
                    task.category(value)
                except ConfigError as error:
                    raise DataError(f"{path}: line {reader.line_num}: {error}") from None
                place = os.path.realpath(path.parent / name.replace("\\", "/"))
                if found.setdefault(place, value) != value:
                    raise DataError(f"{path}: line {reader.line_num} gives {name} another {column}; remove one")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({reason_of(error)})") from None
    return found
