"""Reads and examines every cloud of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointadapterx.datasets.base import SPLITS, PointClouds
from pointadapterx.datasets.doubts import doubts_of
from pointadapterx.datasets.files import walk_files
from pointadapterx.datasets.folder import BLOCK, STORED_POINTS
from pointadapterx.datasets.hashing import derive_seed
from pointadapterx.datasets.listings import TABLE_SUFFIX, list_table
from pointadapterx.datasets.point_files import AS_FILES_SAY, KINDS, MESH_SUFFIXES, Cloud, Reading, load_cloud
from pointadapterx.datasets.workers import map_in_order
from pointadapterx.doctor.examined import Entry, Examined, examine
from pointadapterx.errors import DataError


@dataclass(frozen=True)
class _Reader:
    """Examines the file of a name; picklable, for other processes."""

    root: Path
    reading: Reading

    def __call__(self, name: str) -> Examined | str:
        path = self.root / name
        mesh = path.suffix.lower() in MESH_SUFFIXES
        try:  # one draw for all meshes, so that copies stay copies
            return examine(load_cloud(path, STORED_POINTS, derive_seed("surface", ""), self.reading), mesh=mesh)
        except DataError as error:
            return str(error)


def read_entries(path: Path, workers: int | None = None, reading: Reading = AS_FILES_SAY) -> Iterator[Entry]:
    """Clouds of a folder (with folders of classes for each split, or without labels) or of a table of files.

    Args:
        path: of the folder or table.
        workers: processes that read; None: one a core.
        reading: what the user says of the files.

    Raises:
        DataError: if there is nothing to examine.
    """
    listed = list(_list(path))
    if not listed:
        raise DataError(f"{path}: no file that is read in it ({' '.join(KINDS)})")
    root = path if path.is_dir() else path.parent
    names = [name for name, _, _ in listed]
    for (name, split, label), found in zip(
        listed, map_in_order(_Reader(root, reading), names, BLOCK, workers), strict=True
    ):
        yield Entry(name, split, label, found)


def _list(path: Path) -> Iterator[tuple[str, str, str | None]]:
    if path.is_file() and path.suffix.lower() == TABLE_SUFFIX:
        for split in SPLITS:
            listing = list_table(path, split)
            for name, label in zip(listing.names, listing.labels.tolist(), strict=True):
                yield name, split, listing.classes[label]
        return
    if not path.is_dir():
        raise DataError(
            f"{path}: is no folder and no table ({TABLE_SUFFIX}) of files; give one, or --name for a data set"
        )
    splits = all((path / split).is_dir() for split in SPLITS)
    for file in sorted(walk_files(path)):
        if file.suffix.lower()[1:] not in KINDS:
            continue
        name = file.relative_to(path).as_posix()
        parts = name.split("/")
        if not splits:
            yield name, "train", None
        elif parts[0] in SPLITS:
            yield name, parts[0], parts[1] if len(parts) > 2 else None


def entries_of(data: PointClouds) -> Iterator[Entry]:
    """Clouds of a data set that was read."""
    for number, (points, label) in enumerate(zip(data.points, data.labels.tolist(), strict=True)):
        name = data.names[number] if data.names is not None else f"{data.split} {number}"
        cloud = points.double().numpy()
        bad = not bool(np.isfinite(cloud).all())
        yield Entry(
            name,
            data.split,
            data.classes[label],
            "holds values that are not finite" if bad else examine(Cloud(cloud, doubts_of(cloud))),
        )
