"""Scenes in HDF5 files of flat arrays, such as the composed rooms of the project's own data."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from pointadapterx.datasets.base import DATASETS, Unchecked, check_split
from pointadapterx.datasets.hdf5 import find_array, open_h5, read_numbers, read_text, read_text_attribute
from pointadapterx.datasets.ragged import MOST_CLASSES, Ragged, checked_cloud_points, checked_point_labels
from pointadapterx.datasets.scenes import Scenes
from pointadapterx.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

EXPECTED = (
    "train.h5 and test.h5, each with xyz_mm (n, 3), label (n,) and offset (rooms + 1,), as pointadapterx data build "
    "rooms makes them"
)
MILLIMETRE = 1e-3
SHOWN = 5


@DATASETS.register("rooms")
class Rooms(Scenes):
    """Rooms in metres with y up: ``train.h5`` and ``test.h5`` of ``xyz_mm (n, 3)``, whole millimetres, ``label (n,)``
    and ``offset (rooms + 1,)``, where the points of each room begin and the last one's end.

    The attribute ``labels`` names what points are; a point without a label has -1. ``kind (rooms,)`` and ``name
    (rooms,)`` name the rooms, and colours and instances may be there: they are not read, as backbones take x, y, z.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder of the two files.
        variant: not supported here; a name is an error.
        num_points: of a sample.
        block: side of a block in metres, 1 by default, or ``"whole"``.
        normalize: centre each room and scale it into the unit sphere; only of whole rooms.

    Raises:
        ConfigError: for a missing root, an unknown split or a variant.
        DataError: if files are missing, damaged, or do not fit together.
    """

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        variant: str | None = None,
        num_points: int = 2048,
        block: float | str | None = None,
        normalize: bool = False,
    ) -> None:
        check_split(split)
        if variant is not None:
            raise ConfigError(f"data.variant '{variant}': rooms has no variants; remove data.variant")
        folder = _folder(root)
        path, classes = folder / f"{split}.h5", label_names(folder)
        content = read_flat(path)
        if (own := content.classes) != classes:
            raise DataError(f"{path}: names {len(own)} labels otherwise than train.h5; write both files alike")
        for number, name in enumerate(content.names):
            checked_point_labels(content.of(content.labels, number), content.count(number), classes, f"{path}: {name}")
        labels = checked_point_labels(content.labels, len(content.labels), classes, str(path))
        super().__init__(
            Ragged.flat(content.points, labels, np.diff(content.offsets), MILLIMETRE),
            classes,
            split,
            num_points=num_points,
            block=block or self.default_block,
            normalize=normalize,
            names=content.names,
            source=[path],
        )

    @classmethod
    def point_classes_in(cls, *, root: str | Path | None = None, **options: Any) -> list[str]:
        """Those that the training file names."""
        return label_names(_folder(root))

    @classmethod
    def each_cloud(cls, split: str, **options: Any) -> Iterator[Unchecked]:
        """The rooms of a split, with labels as the file has them."""
        folder = _folder(options.get("root"))
        content, classes = read_flat(folder / f"{check_split(split)}.h5"), label_names(folder)
        for number, name in enumerate(content.names):
            points = content.of(content.points, number) * MILLIMETRE
            yield Unchecked(
                name, points, point_labels=content.of(content.labels, number), point_classes=classes, ignored=(-1,)
            )


class FlatFile(NamedTuple):
    """Content of one file: points (n, 3), labels (n,), offsets (rooms + 1,), names of the rooms and of the labels."""

    points: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    names: list[str]
    classes: list[str]

    def of(self, values: np.ndarray, room: int) -> np.ndarray:
        """The part of ``points`` or ``labels`` that is of a room."""
        return values[self.offsets[room] : self.offsets[room + 1]]

    def count(self, room: int) -> int:
        """Points of a room."""
        return int(self.offsets[room + 1] - self.offsets[room])


def read_flat(path: Path) -> FlatFile:
    """One file; labels are not compared with the classes.

    Raises:
        DataError: if it is missing or damaged, lacks an array, or its arrays do not fit together.
    """
    if not path.is_file():
        raise DataError(f"{path}: does not exist; expected {EXPECTED} in data.root")
    with open_h5(path) as file:
        points, offsets = read_numbers(file, "xyz_mm"), read_numbers(file, "offset")
        labels, classes = read_numbers(file, "label"), _classes(file, path)
        parts = [read_text(file, key) for key in ("kind", "name") if key in file]
    checked_cloud_points(points, f"{path}: xyz_mm")
    if points.dtype.kind not in "iu":
        raise DataError(f"{path}: 'xyz_mm' holds {points.dtype}, expected whole millimetres")
    if len(labels) != len(points):
        raise DataError(f"{path}: {len(labels)} labels for {len(points)} points; give each point one label")
    fits = offsets.ndim == 1 and len(offsets) > 1 and offsets.dtype.kind in "iu"
    offsets = offsets.astype(np.int64)
    if not fits or offsets[0] != 0 or offsets[-1] != len(points) or (np.diff(offsets) < 1).any():
        raise DataError(
            f"{path}: 'offset' has to rise from 0 to {len(points)}, the number of points, so that each room has one at "
            "least; write the places where the rooms begin, and the end"
        )
    rooms = len(offsets) - 1
    if any(len(part) != rooms for part in parts):
        raise DataError(f"{path}: {[len(part) for part in parts]} names or kinds for {rooms} rooms; give each one")
    names = [" ".join([path.stem, str(number), *said]) for number, said in enumerate(zip(*parts, strict=True))]
    return FlatFile(points, labels, offsets, names or [f"{path.stem} {n}" for n in range(rooms)], classes)


def _classes(file: h5py.File, path: Path) -> list[str]:
    if "labels" not in file.attrs:
        raise DataError(f"{path}: no attribute 'labels' in it, the names of the labels; add it")
    names = read_text_attribute(file, "labels")
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"{path}: 'labels' are {', '.join(names[:SHOWN]) or 'none'}; at least 2 are needed, each once")
    if len(names) > MOST_CLASSES:
        raise DataError(f"{path}: 'labels' are {len(names):,} names; at most {MOST_CLASSES:,} classes can be learnt")
    return names


def label_names(folder: Path) -> list[str]:
    """What the training file of a folder calls its labels.

    Raises:
        DataError: if it is missing or damaged, or does not name them.
    """
    path = folder / "train.h5"
    if not path.is_file():
        raise DataError(f"{path}: does not exist; expected {EXPECTED} in data.root")
    with open_h5(path) as file:
        find_array(file, "label")
        return _classes(file, path)


def _folder(root: str | Path | None) -> Path:
    if root is None:
        raise ConfigError(f"data.root is required for data.name=rooms: a folder with {EXPECTED}")
    return Path(root)
