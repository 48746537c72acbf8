"""Reader of the HDF5 layout that ScanObjectNN, ModelNet40 (PLY) and LDraw-20 share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from pointadapterx.datasets.checks import checked_labels, checked_points, moved_to_origin
from pointadapterx.datasets.hdf5 import open_h5, read_numbers, read_text, read_text_attribute
from pointadapterx.errors import DataError


@dataclass(frozen=True)
class H5Clouds:
    """Content of one file: ``points (n, N, 3)`` float32, ``labels (n,)`` int64; ``names``, ``classes`` if there."""

    points: torch.Tensor
    labels: torch.Tensor
    names: list[str] | None
    classes: list[str] | None


def _names(file: h5py.File) -> list[str] | None:
    return read_text(file, "name") if "name" in file else None


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
        data, label, names = read_numbers(file, "data"), read_numbers(file, "label"), _names(file)
        classes = read_text_attribute(file, "classes") if "classes" in file.attrs else None
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
        data, names = read_numbers(file, "data"), _names(file)
    points = own_clouds(data, centre, path)
    _check_names(names, len(points), path)
    return points, names


def own_clouds(data: np.ndarray, centre: bool, path: Path) -> torch.Tensor:
    """``data (n, N, 3)`` of one's own as float32; what is float64 is changed in place.

    Args:
        data: as read.
        centre: see :func:`read_unlabelled_h5`.
        path: the file, for messages.

    Raises:
        DataError: as :func:`~pointadapterx.datasets.checks.checked_points`, or if all points of a cloud are the same.
    """
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
    return points
