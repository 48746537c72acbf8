"""Reader of the HDF5 layout that ScanObjectNN, ModelNet40 (PLY) and LDraw-20 share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import h5py
import numpy as np
import torch

from pointadapterx.datasets.checks import checked_labels, checked_points, moved_to_origin
from pointadapterx.datasets.files import impostor
from pointadapterx.datasets.formats.tables import EXPANSION, SMALL
from pointadapterx.errors import DataError


@dataclass(frozen=True)
class H5Clouds:
    """Content of one file: ``points (n, N, 3)`` float32, ``labels (n,)`` int64; ``names``, ``classes`` if there."""

    points: torch.Tensor
    labels: torch.Tensor
    names: list[str] | None
    classes: list[str] | None


def _text(values: np.ndarray) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _array(file: h5py.File, key: str, path: Path) -> np.ndarray:
    entry = file.get(key)
    if not isinstance(entry, h5py.Dataset):
        raise DataError(f"{path}: no data set '{key}' in it; it holds {', '.join(sorted(file)) or 'nothing'}")
    try:
        return stored(entry)
    except ValueError as error:
        raise DataError(f"{path}: '{key}': {error}; obtain it again") from None


def stored(entry: h5py.Dataset) -> np.ndarray:
    """The array of a data set, which HDF5 would fill up where the file has less than the data set declares.

    Raises:
        ValueError: if it has.
    """
    size = entry.id.get_storage_size()
    if entry.chunks is not None:
        declared = prod(-(-length // chunk) for length, chunk in zip(entry.shape, entry.chunks, strict=True))
        there = entry.id.get_num_chunks()
        if there != declared:
            raise ValueError(f"shape {entry.shape} takes {declared} chunks, and {there} are in the file")
        if entry.nbytes > max(SMALL, EXPANSION * size):
            raise ValueError(f"shape {entry.shape} takes {entry.nbytes} bytes, which cannot be in the {size} stored")
    elif entry.shape and size < entry.nbytes and entry.dtype.kind != "O":
        raise ValueError(f"shape {entry.shape} takes {entry.nbytes} bytes, and {size} are in the file")
    return np.asarray(entry[()])


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading.

    Raises:
        DataError: if it is not HDF5, or turns out truncated or damaged while it is read.
    """
    what = impostor(path)
    if what is not None:
        raise DataError(f"{path}: {what}")
    if not h5py.is_hdf5(path):
        raise DataError(f"{path}: this is not an HDF5 file, or its beginning is damaged; obtain it again")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: the file is truncated or damaged ({reason}); obtain it again") from error


def _names(file: h5py.File, path: Path) -> list[str] | None:
    return _text(_array(file, "name", path)) if "name" in file else None


def _check_names(names: list[str] | None, num_clouds: int, path: Path) -> None:
    if names is not None and len(names) != num_clouds:
        raise DataError(f"{path}: {len(names)} entries in 'name' for {num_clouds} clouds")


def read_h5(path: Path, num_classes: int) -> H5Clouds:
    """Read ``data (n, N, 3)``, ``label (n,)`` or ``(n, 1)``, and, if present, ``name (n,)`` and attribute ``classes``.

    Other entries (ScanObjectNN's ``mask``) are ignored.

    Raises:
        DataError: if the file is not HDF5, is truncated or damaged, lacks an entry, or fails a check of
            :mod:`pointadapterx.datasets.checks`.
    """
    with open_h5(path) as file:
        data, label, names = _array(file, "data", path), _array(file, "label", path), _names(file, path)
        classes = _text(np.asarray(file.attrs["classes"])) if "classes" in file.attrs else None
    points = checked_points(data, str(path))
    labels = checked_labels(label, len(points), num_classes, str(path))
    _check_names(names, len(points), path)
    return H5Clouds(points, labels, names, classes)


def read_unlabelled_h5(path: Path, centre: bool) -> tuple[torch.Tensor, list[str] | None]:
    """Read ``data (n, N, 3)`` and, if present, ``name (n,)``; everything else, labels too, is ignored.

    Args:
        path: the file.
        centre: the clouds will be normalised; what is float64 goes through
            :func:`~pointadapterx.datasets.checks.moved_to_origin`.

    Raises:
        DataError: as :func:`read_h5`, or if all points of a cloud are the same.
    """
    with open_h5(path) as file:
        data, names = _array(file, "data", path), _names(file, path)
    if centre and data.dtype.str[1:] == "f8" and data.ndim == 3 and 0 not in data.shape:
        for cloud in data:  # one by one: the temporaries of all would need twice the memory again
            cloud[...] = moved_to_origin(cloud)
    points = checked_points(data, str(path))
    spots = (points.amax(dim=1) == points.amin(dim=1)).all(dim=1).nonzero().flatten()
    if len(spots):
        raise DataError(
            f"{path}: all points of cloud {int(spots[0])} are the same ({len(spots)} of {len(points)} clouds are such "
            "spots); leave them out of the file"
        )
    _check_names(names, len(points), path)
    return points, names
