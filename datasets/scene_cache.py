"""Large scenes, read once and kept in flat files that are mapped into memory: a training touches what it draws."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pointadapterx.datasets.grid import Grid
from pointadapterx.datasets.ragged import UP, Ragged, grid_of
from pointadapterx.errors import DataError, PointAdapterXError, reason_of
from pointadapterx.files import new_folder
from pointadapterx.hashing import new_digest

logger = logging.getLogger(__name__)

POINTS, LABELS, INDEX = "points.f32", "labels.i8", "index.npz"
BYTES = 13  # a point: three float32, one int8
FORMAT = "1"
CELL = 0.5  # metres: blocks of 1 m touch nine cells at most


def cached_scenes(
    folder: Path, made_from: str, names: Sequence[str], scenes: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Ragged:
    """Scenes of the cache, or, where it is missing, stale or damaged, of ``scenes``, which are then written to it.

    It is written whole or not at all. While it is written, one scene is in memory.

    Args:
        folder: of the cache, for nothing else.
        made_from: hash of everything that determines the scenes; another one makes the cache stale.
        names: of the scenes, for messages.
        scenes: reads one after the other: points (m, 3) float32 with y up, labels (m,) int8.

    Raises:
        DataError: if a scene cannot be read, or the cache cannot be written.
    """
    found = _read(folder, made_from)
    if found is not None:
        return found
    logger.info("%s: keeping %d scenes there, once, in a form that is read quickly", folder, len(names))
    try:
        if folder.is_dir() and (folder / INDEX).is_file():
            shutil.rmtree(folder)
        with new_folder(folder) as temporary:
            _write(temporary, made_from, names, scenes)
    except DataError:
        raise
    except (PointAdapterXError, OSError) as error:
        raise DataError(
            f"{folder}: {reason_of(error)}; set data.cache_dir to a folder with room for {BYTES} bytes a point"
        ) from error
    written = _read(folder, made_from)
    if written is None:
        raise DataError(f"{folder}: was changed while it was written; remove it and try again")
    return written


def _write(folder: Path, made_from: str, names: Sequence[str], scenes: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    digest, counts, floors, grids = new_digest(), [], [], []
    with (folder / POINTS).open("wb") as points_file, (folder / LABELS).open("wb") as labels_file:
        for name, (points, labels) in zip(names, scenes, strict=True):
            grid, order = grid_of(points, CELL, name)
            content = points[order].astype("<f4").tobytes(), labels[order].astype("i1").tobytes()
            for part, file in zip(content, (points_file, labels_file), strict=True):
                digest.update(part)
                file.write(part)
            counts.append(len(points))
            floors.append(float(points[:, UP].min()))
            grids.append(grid)
    np.savez(
        folder / INDEX,
        made_from=np.array([FORMAT + made_from]),
        content=np.array([digest.hexdigest()]),
        counts=np.array(counts),
        floors=np.array(floors),
        origins=np.stack([grid.origin for grid in grids]),
        rows=np.array([grid.rows for grid in grids]),
        cells=np.array([len(grid.keys) for grid in grids]),
        keys=np.concatenate([grid.keys for grid in grids]),
        starts=np.concatenate([grid.starts for grid in grids]),
    )


def _read(folder: Path, made_from: str) -> Ragged | None:
    """What is there; None if it is of something else, or not whole."""
    if not (folder / INDEX).is_file():
        return None
    try:
        with np.load(folder / INDEX, allow_pickle=False) as file:
            index = {key: file[key] for key in file.files}
        if index["made_from"][0] != FORMAT + made_from:
            logger.warning("%s: the cache is stale (its files have changed); rebuilding it", folder)
            return None
        counts, cells = index["counts"].astype(np.int64), index["cells"].astype(np.int64)
        total = int(counts.sum())
        sizes = (folder / POINTS).stat().st_size, (folder / LABELS).stat().st_size
        if sizes == (12 * total, total):
            grids, end = [], 0
            for number, count in enumerate(cells.tolist()):
                keys = index["keys"][end : end + count]
                starts = index["starts"][end + number : end + number + count + 1]
                grids.append(Grid(index["origins"][number], CELL, int(index["rows"][number]), keys, starts))
                end += count
            points = np.memmap(folder / POINTS, "<f4", "r", shape=(total, 3))
            labels = np.memmap(folder / LABELS, "i1", "r", shape=(total,))
            starts = counts.cumsum() - counts
            return Ragged(points, labels, starts, counts, index["floors"], 1.0, grids, str(index["content"][0]))
        reason = f"{sizes[0]:,} and {sizes[1]:,} bytes of {total:,} points"
    except (OSError, KeyError, ValueError, IndexError) as error:
        reason = str(error)
    logger.warning("%s: the cache is damaged (%s); rebuilding it", folder, reason)
    return None
