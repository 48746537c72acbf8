"""Reads clouds from files of any kind, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pointadapterx.datasets.checks import moved_to_origin
from pointadapterx.datasets.entries import Entry
from pointadapterx.datasets.point_files import (
    AS_FILES_SAY,
    Cloud,
    Reading,
    checked_cloud,
    load_cloud,
    trimesh_version,
)
from pointadapterx.errors import DataError
from pointadapterx.hashing import content_hash, derive_seed
from pointadapterx.ops import farthest_point_sample

DISTINCT = 0.9  # of a cloud's points: scans hold a few points twice, while padding holds one many times
LARGEST = 1e18  # coordinate whose squared distances float32 holds
CACHE_FORMAT = "3"


@dataclass(frozen=True)
class CloudReader:
    """Brings a file below ``root`` to at most ``num_points`` points; picklable, for other processes.

    Args:
        root: folder.
        num_points: points of a cloud.
        centre: clouds will be normalised; see :func:`~pointadapterx.datasets.checks.moved_to_origin`.
        by_name: the draw of a mesh's points depends on its name; False: it is the same for every mesh.
        reading: what the user says of the files.
        whole: all points are wanted as the file has them, for a task that answers for every point.
    """

    root: Path
    num_points: int
    centre: bool
    by_name: bool = True
    reading: Reading = AS_FILES_SAY
    whole: bool = False

    def __call__(self, name: str | Entry) -> Cloud | str:
        """``(m, 3)`` float32, or what is wrong with the file; ``m`` is below ``num_points`` where it has too few.

        Where the :attr:`whole` cloud is wanted, it is ``(n, 3)`` float64.
        """
        try:
            if isinstance(name, Entry):
                where, cloud = str(name), checked_cloud(name.read(), str(name), self.reading)
            else:
                seed = derive_seed("surface", name if self.by_name else "")
                where = str(self.root / name)
                cloud = load_cloud(self.root / name, self.num_points, seed, self.reading)
            return self.reduce(cloud, where)
        except DataError as error:
            return str(error)

    def reduce(self, cloud: Cloud, where: str) -> Cloud | str:
        """Finite coordinates ``(n, 3)`` float64 -> as :meth:`__call__`; ``where`` they are from, for the message."""
        if self.whole:
            return cloud
        found = self.reduced(cloud.points, where)
        return found if isinstance(found, str) else Cloud(found[0], cloud.doubts)

    def reduced(self, points: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray | None] | str:
        """Finite coordinates brought to at most ``num_points``.

        Args:
            points: ``(n, 3)`` float64.
            where: they are from, for the message.

        Returns:
            ``(m, 3)`` float32, and which of the points these are, ``(m,)`` int64, None for all of them; or what is
            wrong.
        """
        if self.centre:
            points = moved_to_origin(points)
        if not (np.abs(points) < LARGEST).all():
            return f"{where}: coordinates beyond {LARGEST:g}, whose distances float32 cannot hold; scale them"
        cloud, index = points.astype(np.float32), None
        if len(cloud) > self.num_points:
            index = farthest_point_sample(torch.from_numpy(cloud)[None], self.num_points)[0].numpy()
            cloud = cloud[index]
        wanted = DISTINCT * self.num_points
        if any(len(np.unique(axis)) >= wanted for axis in cloud.T):  # far quicker, and enough for most clouds
            return cloud, index
        distinct, first = np.unique(cloud, axis=0, return_index=True)
        if len(distinct) >= wanted:
            return cloud, index
        return distinct, first if index is None else index[first]

    def fingerprint(self, names: Sequence[str]) -> str:
        """Hash of everything that determines the clouds of ``names``."""
        parts = [CACHE_FORMAT, f"{self.num_points} {self.centre} {trimesh_version()} {self.reading}"]
        for name in names:
            stat = (self.root / name).stat()
            parts.append(f"{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")
        return content_hash("\n".join(parts))
