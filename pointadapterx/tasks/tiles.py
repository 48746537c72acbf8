"""Cuts scenes of any size into overlapping tiles of as many points as a model takes; every point is in some of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pointadapterx.datasets.grid import GROUND, Grid
from pointadapterx.datasets.ragged import UP
from pointadapterx.tasks.exchange import Cut

PADDING = 1e-3  # units that a tile reaches beyond its sides, so that rounding loses no point between two


@dataclass(frozen=True)
class Tiling:
    """Square columns over the ground, ``stride`` apart; what lies in one goes to the model in sets of ``size`` points.

    The points of a tile are shuffled and cut into sets; the last one is filled with others of the tile, or, where these
    are too few, with repetitions. As in training, x and z are relative to the middle of the tile, and y is the height
    above the lowest point of the scene.

    Attributes:
        block: side of a tile.
        stride: from one tile to the next, at most ``block``.
        size: points of a set.
    """

    block: float
    stride: float
    size: int

    def cuts(self, points: np.ndarray, grid: Grid, order: np.ndarray | None, seed: int) -> Iterator[Cut]:
        """The sets of all tiles.

        Args:
            points: (n, 3) in units, with y up.
            grid: of the points.
            order: in which they lie cell after cell; None: as they come.
            seed: of the shuffles.
        """
        low = points.min(axis=0).astype(np.float64)
        high = points.max(axis=0).astype(np.float64)
        draws, floor = np.random.default_rng(seed), low[UP]
        ground = list(GROUND)
        for begin in self.corners(grid, low[ground], high[ground]):
            edge = begin - PADDING, begin + self.block + PADDING
            spans = [np.arange(span.start, span.stop) for span in grid.spans(*edge)]
            if not spans:
                continue
            near = np.concatenate(spans)
            near = near if order is None else order[near]
            found = points[near]
            inside = ((found[:, ground] >= edge[0]) & (found[:, ground] <= edge[1])).all(axis=1)
            if not inside.any():
                continue
            middle = begin + self.block / 2
            placed = (found[inside] - [middle[0], floor, middle[1]]).astype(np.float32)
            rows = near[inside]
            for chosen in self._sets(len(rows), draws):
                yield Cut(torch.from_numpy(rows[chosen]), torch.from_numpy(placed[chosen]))

    def _sets(self, count: int, draws: np.random.Generator) -> Iterator[np.ndarray]:
        """The rows of a tile, shuffled, in sets of ``size``."""
        missing = -count % self.size
        filling = draws.choice(count, missing, replace=missing > count)
        rows = np.concatenate([np.arange(count), filling])
        draws.shuffle(rows)
        yield from rows.reshape(-1, self.size)

    def corners(self, grid: Grid, low: np.ndarray, high: np.ndarray) -> Iterator[np.ndarray]:
        """The least corners (2,) of all tiles that a cell with points touches, and of some that lie close to one.

        The tiles lie ``stride`` apart from the least coordinates on; the last ones end at the largest coordinates. In
        memory are a few numbers a cell, however many tiles there are.

        Args:
            grid: of the points.
            low: (2,), their least coordinates.
            high: (2,), largest.
        """
        last = np.maximum(np.ceil((high - low - self.block) / self.stride), 0).astype(np.int64)  # number of the last
        columns = grid.keys // grid.rows
        begins = np.flatnonzero(np.diff(columns, prepend=-1))
        ends = np.append(begins[1:], len(columns))
        lowest, highest = self._reached(columns[begins], grid.cell, last[0])
        for number in _ascending(lowest, highest):
            first = np.searchsorted(highest, number)
            beyond = np.searchsorted(lowest, number, side="right")
            rows = np.unique(grid.keys[begins[first] : ends[beyond - 1]] % grid.rows)
            for other in _ascending(*self._reached(rows, grid.cell, last[1])):
                numbers = np.array([number, other])
                yield np.minimum(low + numbers * self.stride, np.maximum(high - self.block, low))

    def _reached(self, cells: np.ndarray, cell: float, last: int) -> tuple[np.ndarray, np.ndarray]:
        """The first and last tile along an axis that reach each of some cells (k,), with one more at either end.

        Tiles at the end lie closer.
        """
        first = np.floor((cells * cell - self.block) / self.stride).astype(np.int64) - 1
        reach = int(np.ceil((cell + self.block) / self.stride)) + 3
        return first.clip(0, last), (first + reach).clip(0, last)


def _ascending(lowest: np.ndarray, highest: np.ndarray) -> Iterator[int]:
    """Each number once that is in one of some ranges, whose ends ascend."""
    beyond = 0
    for first, last in zip(lowest, highest, strict=True):
        yield from range(max(int(first), beyond), int(last) + 1)
        beyond = max(beyond, int(last) + 1)
