"""Reader of the HDF5 layout that ScanObjectNN, ModelNet40 (PLY) and LDraw-20 share."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from pointadapterx.datasets.checks import checked_labels, checked_points, moved_to_origin
from pointadapterx.datasets.hdf5 import open_h5, read_numbers, read_text, read_text_attribute
from pointadapterx.datasets.layouts import PARTS, part_of
from pointadapterx.errors import DataError

logger = logging.getLogger(__name__)

SUFFIXES = (".h5", ".hdf5")
NAME = re.compile(rf"(?:ply_data_)?({'|'.join(PARTS)})[_-]?(\d*)", re.IGNORECASE)
SHOWN = 5  # files that a message lists
EXPECTED = "train.h5 and test.h5 (or train0.h5, train1.h5, ...), each with data (n, N, 3) and label (n,)"


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


def find_h5(root: Path) -> dict[str, list[Path]]:
    """The files of each part that is there, of ``"train"``, ``"val"`` and ``"test"``, in order.

    Raises:
        DataError: if there are no training files, or it is not clear which are meant.
    """
    if root.is_file() and root.suffix.lower() in SUFFIXES:
        return {"train": [root]}
    if not root.is_dir():
        what = "is no HDF5 file (.h5, .hdf5)" if root.exists() else "does not exist"
        raise DataError(f"{root}: {what}; set data.root to a folder with {EXPECTED}, or to one such file")
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    others = []
    for path in files:
        match = NAME.fullmatch(path.stem)
        part = part_of(match[1]) if match else None
        if match and part:
            found[part][match[2]].append(path)
        else:
            others.append(path.name)
    if "train" not in found:
        listed = ", ".join(path.name for path in files[:SHOWN]) or "no HDF5 file"
        raise DataError(
            f"{root}: nothing to train on in it, only {listed}; expected {EXPECTED}, or one file as data.root"
        )
    if others:
        logger.info("%s: HDF5 files of other names are left out (%s)", root, ", ".join(others[:SHOWN]))
    return {part: _in_order(root, numbered) for part, numbered in found.items()}


def _in_order(root: Path, numbered: Mapping[str, Sequence[Path]]) -> list[Path]:
    """Files of one part by their numbers.

    Raises:
        DataError: if two have the same, one has none, or one is missing.
    """
    names = [path.name for paths in numbered.values() for path in paths]
    if any(len(paths) > 1 for paths in numbered.values()) or ("" in numbered and len(numbered) > 1):
        raise DataError(f"{root}: {' and '.join(names[:SHOWN])} may each be meant; move all but the right ones away")
    if "" in numbered:
        return list(numbered[""])
    order = sorted(numbered, key=int)
    first = min(int(order[0]), 1)
    missing = sorted(set(range(first, int(order[-1]) + 1)) - {int(number) for number in order})
    if missing:
        raise DataError(
            f"{root}: of the files {names[0]} and so on, number {missing[0]} is missing, though "
            f"{numbered[order[-1]][0].name} is there; obtain all of them"
        )
    return [numbered[number][0] for number in order]
