"""Cells of the ground that points lie in, so that what is near a place is found without a look at all points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

GROUND = (0, 2)  # coordinates in the plane, where y is up


@dataclass(frozen=True)
class Grid:
    """Square cells; the points of a cloud lie cell after cell once they are in the order that :meth:`over` gives.

    Only cells with points take memory, so a lone far point costs nothing.

    Attributes:
        origin: (2,) float64, the least coordinates.
        cell: side of a cell.
        rows: cells along the second axis.
        keys: (k,) int64, the cells that hold points: number along the first axis · rows + number along the second.
        starts: (k + 1,) int64, of the points of each.
    """

    origin: np.ndarray
    cell: float
    rows: int
    keys: np.ndarray
    starts: np.ndarray

    @classmethod
    def over(cls, ground: np.ndarray, cell: float) -> tuple[Grid, np.ndarray]:
        """The grid of some points, and the order in which they lie cell after cell.

        Args:
            ground: (n, 2), at least one point.
            cell: side of a cell.
        """
        origin = ground.min(axis=0).astype(np.float64)
        numbers = _cells(ground, origin, cell)
        rows = int(numbers[:, 1].max()) + 1
        keys = numbers[:, 0] * rows + numbers[:, 1]
        order = np.argsort(keys, kind="stable")
        found, counts = np.unique(keys, return_counts=True)
        return cls(origin, cell, rows, found, np.concatenate([[0], counts.cumsum()])), order

    def spans(self, low: np.ndarray, high: np.ndarray) -> Iterator[slice]:
        """Where the points of the cells lie that a rectangle touches; some of them are outside of it.

        Args:
            low: (2,) float64, least coordinates of the rectangle.
            high: (2,) float64, largest.
        """
        first, last = _cells(np.stack([low, high]), self.origin, self.cell)
        bottom, top = max(0, int(first[1])), min(self.rows - 1, int(last[1]))
        if bottom > top:
            return
        columns = np.arange(max(0, int(first[0])), int(last[0]) + 1) * self.rows
        begins = self.starts[np.searchsorted(self.keys, columns + bottom)]
        ends = self.starts[np.searchsorted(self.keys, columns + top, side="right")]
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            if begin < end:
                yield slice(begin, end)


def _cells(ground: np.ndarray, origin: np.ndarray, cell: float) -> np.ndarray:
    """The cell of each point (n, 2) int64; monotonous, so that no rectangle misses a point that is in it."""
    return np.floor((ground.astype(np.float64) - origin) / cell).astype(np.int64)
