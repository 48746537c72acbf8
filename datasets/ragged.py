"""Clouds of different numbers of points with a label a point, one after the other in flat arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pointadapterx.datasets.grid import GROUND, Grid
from pointadapterx.errors import DataError
from pointadapterx.hashing import content_hash

IGNORED = -1
"""Label of a point that has none: it counts neither in the loss nor in a metric."""
MOST_CLASSES = 1_000
"""Of points: where there are more, the labels are something else."""
UP = 1  # y
FARTHEST = 1e6  # times the side of a cell that a cloud may measure, so that the numbers of its cells stay exact


@dataclass(frozen=True)
class Ragged:
    """The clouds; the arrays may be mapped from files.

    Attributes:
        points: (n, 3) floating point, or whole numbers in steps of :attr:`step`; y is up.
        labels: (n,) of a signed whole type; :data:`IGNORED` for points without a label.
        starts: (clouds,) int64, the row of each one's first point.
        counts: (clouds,) int64, its number of points.
        floors: (clouds,) float64, its least height in units.
        step: unit of the coordinates.
        grids: of each cloud, whose points then lie cell after cell; empty where no blocks are drawn.
        content: hash of the arrays, where it is known; else it is computed when it is needed.
    """

    points: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    floors: np.ndarray
    step: float = 1.0
    grids: Sequence[Grid] = ()
    content: str | None = None

    @classmethod
    def flat(cls, points: np.ndarray, labels: np.ndarray, counts: np.ndarray, step: float = 1.0) -> Ragged:
        """Clouds that lie one after the other in arrays (n, 3) and (n,), with ``counts`` points each, at least one."""
        counts = counts.astype(np.int64)
        starts = counts.cumsum() - counts
        floors = np.minimum.reduceat(points[:, UP], starts).astype(np.float64) * step
        return cls(points, labels, starts, counts, floors, step)

    @classmethod
    def of(cls, clouds: Iterable[tuple[np.ndarray, np.ndarray]], step: float = 1.0) -> Ragged:
        """Clouds in memory: points (m, 3), and labels (m,) as of :func:`checked_point_labels`; at least one."""
        points, labels = zip(*clouds, strict=True)
        return cls.flat(np.concatenate(points), np.concatenate(labels), np.array([len(p) for p in points]), step)

    def __len__(self) -> int:
        return len(self.counts)

    def rows(self, cloud: int) -> slice:
        """Where a cloud lies."""
        start = int(self.starts[cloud])
        return slice(start, start + int(self.counts[cloud]))

    def cloud(self, number: int) -> np.ndarray:
        """Points of a cloud in units: (m, 3), float32 where they are kept so, else float64."""
        return self.in_units(self.points[self.rows(number)])

    def in_units(self, points: np.ndarray) -> np.ndarray:
        """Stored points (m, 3) in units."""
        return points if points.dtype.kind == "f" and self.step == 1.0 else points * np.float64(self.step)

    def only(self, clouds: Sequence[int]) -> Ragged:
        """Some of the clouds, which share the arrays."""
        grids = [self.grids[number] for number in clouds] if self.grids else ()
        index = np.asarray(clouds, dtype=np.int64)
        parts = {"starts": self.starts[index], "counts": self.counts[index], "floors": self.floors[index]}
        return replace(self, **parts, grids=grids)

    @cached_property
    def digest(self) -> str:
        """Hash of the content."""
        arrays = self.content or content_hash(self.points, self.labels)
        return content_hash(arrays, self.starts, self.counts, f"{self.step!r}")

    def in_cells(self, cell: float, names: Sequence[str]) -> Ragged:
        """Copied so that the points of each cloud lie cell after cell, for blocks to be found quickly.

        Args:
            cell: side of a cell.
            names: of the clouds, for messages.

        Raises:
            DataError: for a cloud that is far too large for such cells: its coordinates are of another unit.
        """
        points, labels, grids = np.empty_like(self.points), np.empty_like(self.labels), []
        for number in range(len(self)):
            rows = self.rows(number)
            grid, order = grid_of(self.cloud(number), cell, names[number])
            points[rows], labels[rows] = self.points[rows][order], self.labels[rows][order]
            grids.append(grid)
        return replace(self, points=points, labels=labels, grids=grids, content=None)

    def label_parts(self, clouds: Iterable[int]) -> Iterator[np.ndarray]:
        """Labels of each of some clouds, (m,)."""
        for number in clouds:
            yield self.labels[self.rows(number)]


def grid_of(points: np.ndarray, cell: float, name: str) -> tuple[Grid, np.ndarray]:
    """The grid of a cloud (m, 3) in units, and the order of its points; see :meth:`Ragged.in_cells`."""
    ground = points[:, GROUND]
    side = float((ground.max(axis=0).astype(np.float64) - ground.min(axis=0)).max())
    if side > FARTHEST * cell:
        raise DataError(
            f"{name}: measures {side:.3g}, {side / cell:.1g} times a block's half; give coordinates in metres, a "
            "larger data.block, or leave its far points out"
        )
    return Grid.over(ground, cell)


def checked_point_labels(labels: np.ndarray, count: int, classes: Sequence[str], where: str) -> np.ndarray:
    """Labels of the points of a cloud, (count,) int8, or int16 where there are many classes.

    Args:
        labels: as they were read; whole numbers, which may be of a floating type.
        count: points of the cloud.
        classes: names of what a point may be.
        where: they are from, for messages.

    Raises:
        DataError: if there is another number of them, or one is neither a class nor :data:`IGNORED`.
    """
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape != (count,):
        shape = f"{len(labels)} labels" if labels.ndim == 1 else f"labels of shape {labels.shape}"
        raise DataError(f"{where}: {shape} for {count} points; give each point one label")
    if labels.dtype.kind not in "iuf":
        raise DataError(f"{where}: labels of type {labels.dtype}; number the classes from 0 to {len(classes) - 1}")
    with np.errstate(invalid="ignore"):
        wrong = ~((labels >= IGNORED) & (labels < len(classes)) & (labels == np.floor(labels)))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{where}: point {first} has label {labels[first]}, expected 0 to {len(classes) - 1} ({wrong.sum()} of "
            f"{count} labels are none of the {len(classes)} classes)"
        )
    return labels.astype(np.int8 if len(classes) <= np.iinfo(np.int8).max else np.int16)


def checked_cloud_points(points: np.ndarray, where: str) -> np.ndarray:
    """Points of a cloud, (m, 3).

    Raises:
        DataError: if the shape is another, there is no point, or a coordinate is not finite.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise DataError(f"{where}: points of shape {points.shape}, expected (points, 3)")
    if len(points) == 0:
        raise DataError(f"{where}: holds no point")
    if points.dtype.kind == "f":
        broken = int((~np.isfinite(points).all(axis=1)).sum())
        if broken:
            raise DataError(f"{where}: {broken} of {len(points)} points have NaN or infinite coordinates; remove them")
    return points


def settled(points: np.ndarray) -> np.ndarray:
    """Points (m, 3) moved so that their least coordinates are 0, as float32: as exact as their extent allows."""
    return (points.astype(np.float64) - points.min(axis=0)).astype(np.float32)
