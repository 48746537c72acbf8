"""What a predictor is given: files, folders, arrays, or lists of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from pointadapterx.datasets.entries import Entry, entries_of
from pointadapterx.datasets.files import walk_files
from pointadapterx.datasets.folder import CloudReader
from pointadapterx.datasets.point_files import Cloud, checked_cloud, problem_of_array
from pointadapterx.errors import DataError

File = str | Path
Item: TypeAlias = str | Entry | np.ndarray | Tensor
"""One input: a file's path, a cloud of a file with several, or the points of a cloud (N, 3 or more)."""
Given: TypeAlias = File | np.ndarray | Tensor | Iterable[File | Entry | np.ndarray | Tensor]
"""One file, folder, cloud (N, 3 or more) or batch of clouds (B, N, 3 or more), or several of these."""

EXPECTED = "give a file, a folder, points (N, 3) as an array or tensor, or a list of these"


def listed(given: Given, suffixes: Sequence[str], *, clouds: bool = True) -> list[Item]:
    """The single inputs of what was given, in order; folders by their files, batches and HDF5 files by their clouds.

    Args:
        given: see :data:`Given`.
        suffixes: kinds of files that are taken from a folder, without the dot.
        clouds: whether files are of clouds, so that one may hold several.

    Raises:
        DataError: for a folder without such a file.
        TypeError: for anything else, naming its type and place.
    """
    if isinstance(given, str | os.PathLike | np.ndarray | Tensor):
        return _expanded(given, suffixes, clouds)
    if not isinstance(given, Iterable) or isinstance(given, bytes | bytearray | Mapping | AbstractSet):
        raise TypeError(f"inputs of type {type(given).__name__}: {EXPECTED}")
    found: list[Item] = []
    for place, one in enumerate(given):
        if isinstance(one, Entry):
            found.append(one)
        elif isinstance(one, str | os.PathLike | np.ndarray | Tensor):
            found += _expanded(one, suffixes, clouds)
        else:
            raise TypeError(f"inputs[{place}] of type {type(one).__name__}: {EXPECTED}")
    return found


def _expanded(one: str | os.PathLike[str] | np.ndarray | Tensor, suffixes: Sequence[str], clouds: bool) -> list[Item]:
    if isinstance(one, np.ndarray | Tensor):
        return list(one) if one.ndim == 3 else [one]
    found: list[Item] = []
    for file in files_of(Path(one), suffixes) if os.path.isdir(one) else [os.fspath(one)]:
        found += (entries_of(file) if clouds else None) or [file]
    return found


def files_of(folder: Path, suffixes: Sequence[str], *, leave_out: Path | None = None) -> list[str]:
    """Files of the kinds ``suffixes`` in a folder and below, sorted, but the file ``leave_out``.

    Raises:
        DataError: if there are no such files.
    """
    own = None if leave_out is None else leave_out.resolve()
    files = (path for path in walk_files(folder) if path.suffix.lower()[1:] in suffixes and path.resolve() != own)
    found = sorted(map(str, files))
    if not found:
        raise DataError(f"{folder}: no file that is read in it ({' '.join(suffixes)}); choose another folder")
    return found


def points_of(values: np.ndarray | Tensor, where: str, reader: CloudReader) -> Cloud | str:
    """Points of an array as a reader has those of a file; or what is wrong with it."""
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    points = np.asarray(values)
    if (problem := problem_of_array(points)) is not None:
        return f"{where} is {problem}"
    if len(points) == 0:
        return f"{where} holds no point"
    try:
        return reader.reduce(checked_cloud(points, where, reader.reading), where)
    except DataError as error:
        return str(error)
