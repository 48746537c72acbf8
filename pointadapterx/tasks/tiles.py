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

    def corners(self, grid: Grid, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """The least corners of all tiles that a cell with points touches, (tiles, 2).

        The tiles lie ``stride`` apart from the least coordinates on; the last ones end at the largest coordinates.

        Args:
            grid: of the points.
            low: (2,), their least coordinates.
            high: (2,), largest.
        """
        last = np.maximum(np.ceil((high - low - self.block) / self.stride), 0).astype(np.int64)  # number of the last
        cells = np.stack([grid.keys // grid.rows, grid.keys % grid.rows], axis=1)
        # The tiles that reach a cell, with one more at either end, as tiles at the end lie closer.
        first = np.floor((cells * grid.cell - self.block) / self.stride).astype(np.int64) - 1
        reach = int(np.ceil((grid.cell + self.block) / self.stride)) + 4
        steps = np.stack(np.meshgrid(np.arange(reach), np.arange(reach), indexing="ij"), axis=-1).reshape(-1, 2)
        numbers = _distinct(np.concatenate([np.clip(first + step, 0, last) for step in steps]), last)
        return np.minimum(low + numbers * self.stride, np.maximum(high - self.block, low))


def _distinct(numbers: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Different rows of numbers (k, 2) from 0 to ``last``, in order."""
    keys = np.unique(numbers[:, 0] * (last[1] + 1) + numbers[:, 1])
    return np.stack([keys // (last[1] + 1), keys % (last[1] + 1)], axis=1)
