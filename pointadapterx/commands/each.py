"""``predict --each``: where the file of each answer goes, and that nothing written replaces an input."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pointadapterx.commands.options import UsageError
from pointadapterx.errors import ConfigError
from pointadapterx.predicting.answering import EachFile, file_of
from pointadapterx.tasks import Task


def each_file(
    folder: Path | None, kind: str | None, tasks: Mapping[str, Task], files: Sequence[str], output: Path | None
) -> EachFile | None:
    """A file for each answer in a folder, named like the input, and like the adapter where there are several.

    Inputs of one name from several folders are written into such folders again.

    Raises:
        UsageError: if the task writes no such files, or one would have the name of an input or of the output.
        ConfigError: if two would have one name.
    """
    if folder is None:
        if kind is not None:
            raise UsageError("--kind belongs to --each DIR")
        return None
    task = next(iter(tasks.values()))
    name, kinds = task.config.task.name, task.file_kinds
    suffix = f".{kind.removeprefix('.')}" if kind is not None else next(iter(kinds), "")
    if not kinds:
        raise UsageError(f"--each {folder}: the task {name} has one answer a file; use --output FILE.csv")
    if suffix not in kinds:
        raise UsageError(f"--kind {kind}: the task {name} writes {', '.join(kinds)}")
    names = {file: _stem(file) for file in files}
    if len(set(names.values())) < len(names):
        top = os.path.commonpath([Path(file).absolute().parent for file in files])
        names = {file: os.path.join(os.path.relpath(Path(file).absolute().parent, top), _stem(file)) for file in files}
    first: dict[str, str] = {}
    for file, name in names.items():
        if first.setdefault(name, file) != file:
            raise ConfigError(f"--each {folder}: {first[name]} and {file} have one name; predict them apart")

    def target(name: str, adapter: str) -> Path:
        return folder / f"{names[name]}{f'.{adapter}' if len(tasks) > 1 else ''}{suffix}"

    targets = {(file, adapter): target(file, adapter) for file in files for adapter in tasks}
    require_inputs_kept(list(targets.values()), files, f"--each {folder}")
    if output is not None and output.absolute() in {path.absolute() for path in targets.values()}:
        raise UsageError(f"--each {folder}: {output} is the --output; choose another folder")
    return EachFile(suffix, targets)


def require_inputs_kept(targets: Sequence[Path], files: Sequence[str], option: str) -> None:
    """Refuses to write over what is predicted.

    Raises:
        UsageError: naming the first of ``targets`` that is a file of an input.
    """
    inputs = {_identity(Path(file_of(file)[0])) for file in files} - {None}
    for path in targets:
        if _identity(path) in inputs:
            raise UsageError(f"{option}: {path} is an input, which would be replaced; choose another place")


def _identity(path: Path) -> tuple[int, int] | None:
    """Equal for two names of one file; None where there is no file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _stem(name: str) -> str:
    """The name of an input without its suffix: ``all#3`` of ``scans/all.h5#3``."""
    path, number = file_of(name)
    return f"{Path(path).stem}{number}"
