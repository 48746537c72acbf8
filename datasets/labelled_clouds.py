"""Reads single files of points with a label for each point."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointadapterx.datasets.doubts import Cloud, Doubt
from pointadapterx.datasets.formats import arrays, cut, las, pcd, ply, text
from pointadapterx.datasets.formats.label_field import LabelField, WordError
from pointadapterx.datasets.point_files import (
    AS_FILES_SAY,
    MAY_BE_TEXT,
    TEXT_SUFFIXES,
    Reading,
    checked_cloud,
    damage_named,
)
from pointadapterx.datasets.ragged import MOST_CLASSES
from pointadapterx.errors import DataError

READERS: dict[str, Callable[[Path, LabelField], np.ndarray]] = {
    ".h5": arrays.read_hdf5_with,
    ".hdf5": arrays.read_hdf5_with,
    ".las": las.read_with,
    ".laz": las.read_with,
    ".npy": arrays.read_npy_with,
    ".npz": arrays.read_npz_with,
    ".pcd": pcd.read_with,
    ".ply": ply.read_with,
}
LABELLED_KINDS = tuple(sorted(suffix[1:] for suffix in (*READERS, *TEXT_SUFFIXES)))
"""Kinds of files whose points can have labels, by suffix without the dot."""
NAMED = re.compile(r"label (-?\d{1,10}) (.*\S)")  # comments of PLY, as pointadapterx.labelled_files writes them
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class LabelledReader:
    """Reads a file below ``root``; picklable, for other processes.

    Attributes:
        root: folder.
        field: which field of a file is the label.
        reading: what the user says of the files.
    """

    root: Path
    field: LabelField
    reading: Reading

    def __call__(self, name: str) -> LabelledCloud | str:
        """What the file holds, or what is wrong with it."""
        try:
            return read_labelled(self.root / name, self.field, self.reading)
        except DataError as error:
            return str(error)


@dataclass(frozen=True)
class LabelledCloud:
    """Content of a file.

    Attributes:
        points: (m, 3) float64, finite, in the file's units, axes and order.
        labels: (m,) int64, as the file has them.
        names: of labels, as far as the file has some.
        doubts: about the points.
    """

    points: np.ndarray
    labels: np.ndarray
    names: dict[int, str]
    doubts: Sequence[Doubt] = ()


def read_labelled(path: Path, field: LabelField, reading: Reading = AS_FILES_SAY) -> LabelledCloud:
    """Points and labels of a file.

    Raises:
        DataError: if the file is missing, damaged or of another kind, does not say which field is the label, or has
            labels that are no whole numbers.
    """
    suffix = path.suffix.lower()
    if suffix[1:] not in LABELLED_KINDS:
        raise DataError(f"{path}: is of no kind that has labels of points ({' '.join(LABELLED_KINDS)})")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    doubts: tuple[Doubt, ...] = ()
    with damage_named(path):
        if suffix in TEXT_SUFFIXES:
            rows, doubts, _ = text.read_with(path, reading.columns, field)
        else:
            rows = READERS[suffix](path, field)
        if suffix in MAY_BE_TEXT and (doubt := cut.ends_in_a_number(path)) is not None:
            doubts = (*doubts, doubt)
    if len(rows) == 0:
        raise DataError(f"{path}: there is no point in it; obtain it again or remove it")
    cloud: Cloud = checked_cloud(rows[:, :3], str(path), reading)
    labels = rows[:, 3] if cloud.kept is None else rows[cloud.kept, 3]
    names = names_in(path)
    return LabelledCloud(cloud.points, _whole(labels, str(path)), names, (*doubts, *cloud.doubts))


def names_in(path: Path) -> dict[int, str]:
    """Names of labels that a PLY file has in its comments, or a scan in its table of classes."""
    match path.suffix.lower():
        case ".ply":
            found = [NAMED.fullmatch(line) for line in ply.comments(path)]
            return {int(one[1]): one[2] for one in found if one}
        case ".las" | ".laz":
            return las.class_names(path)
    return {}


def other_labels(path: Path) -> list[str]:
    """Fields that can hold labels in place of one that every scan has, which may be unused; none of other files."""
    if path.suffix.lower() not in (".las", ".laz"):
        return []
    with damage_named(path):
        return las.other_labels(path, MOST_CLASSES)


def point_labels_of(path: Path) -> bool:
    """Whether a file's points seem to have labels, by a field with a usual name.

    A scan always has one, and so has to have several labels.
    """
    try:
        found = read_labelled(path, LabelField())
    except DataError as error:
        return isinstance(error.__context__, WordError)
    return path.suffix.lower() not in (".las", ".laz") or len(np.unique(found.labels)) > 1


def _whole(labels: np.ndarray, where: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        wrong = ~((np.abs(labels) <= LARGEST) & (labels == np.floor(labels)))
    if wrong.any():
        raise DataError(
            f"{where}: {wrong.sum()} of {len(labels)} labels of points are no whole numbers, such as "
            f"{labels[wrong][0]:g}; choose another data.label_field, or number the classes"
        )
    return labels.astype(np.int64)
