"""Files of the data sets: messages for files that are missing or are not what their names promise."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pointadapterx.errors import DataError

DEMO = (
    "No data yet? `make demo` (or `python tools/main.py --config cfgs/demo.yaml`) runs on the shipped LDraw-20 parts."
)


def require_files(what: str, needed: Sequence[Path], expected: Sequence[Path], obtain: str) -> None:
    """Check that every file of ``needed`` exists.

    Args:
        what: the data set, for the message.
        needed: files without which this split cannot be read.
        expected: every file of the data set, listed in the message with what was found of it.
        obtain: how one gets the data set, in a sentence.

    Raises:
        DataError: one message with each expected path, how to obtain the set, and the demo command.
    """
    if all(path.is_file() for path in needed):
        return
    listed = ", ".join(f"{path} ({'found' if path.is_file() else 'missing'})" for path in expected)
    raise DataError(f"{what}: files are missing. Expected: {listed}. {obtain} {DEMO}")


def state_of(path: Path) -> tuple[int, int]:
    """When a file was written, in nanoseconds, and its bytes: what is kept of it belongs to that state.

    Raises:
        DataError: if it is not there.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return found.st_mtime_ns, found.st_size


def impostor(path: Path) -> str | None:
    """What a file really is when it is empty, a Git LFS pointer or a web page; ``None`` for anything else."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "the file is empty (0 bytes); download it again"
    if head.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the data; run `git lfs pull` where it was cloned"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "this is a web page saved under the data's name (a login or terms page?); download the file itself"
    return None


def walk_files(root: Path) -> Iterator[Path]:
    """Files below ``root`` but those that begin with a dot or lie in such a folder; each folder once despite links."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); make it readable or remove it")

    visited = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        links_last = sorted(folders, key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        folders.clear()
        for name in links_last:
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and real not in visited:
                visited.add(real)
                folders.append(name)
        yield from (path for name in files if not name.startswith(".") and (path := Path(folder, name)).is_file())
