"""Caches of clouds that take long to read: complete and made from these very files, or rebuilt."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import torch

from pointadapterx.datasets.hdf5 import read_numbers, read_text
from pointadapterx.errors import DataError, PointAdapterXError, reason_of
from pointadapterx.files import replacing
from pointadapterx.hashing import content_hash

logger = logging.getLogger(__name__)


def cache_path(folder: Path, name: str, cache_dir: Path | None) -> Path:
    """Where the cache of ``folder`` lies.

    Args:
        folder: of the data.
        name: of the cache beside the data; elsewhere a hash of the folder is added, so that copies do not mix.
        cache_dir: the user's choice. ``None``: beside the data, or in the user's cache if that is read-only.

    Raises:
        DataError: if the user has no home folder, as in some containers.
    """
    if cache_dir is None:
        beside = folder / name
        if beside.exists() or os.access(folder, os.W_OK):
            return beside
        try:
            cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pointadapterx"
        except RuntimeError as error:
            raise DataError(f"{folder}: cannot be written, and {reason_of(error)} Choose data.cache_dir") from None
    stem, suffix = os.path.splitext(name)
    return cache_dir / f"{stem}-{content_hash(str(folder.resolve()))[:12]}{suffix}"


def cached_points(
    cache: Path, made_from: str, make: Callable[[], torch.Tensor], said: list[str] | None = None
) -> tuple[torch.Tensor, bool]:
    """Points of the cache, or, where it is missing, stale or damaged, of ``make``, which are then written to it.

    It is written atomically, so several processes may do so at once. If it cannot be written, that is a warning.

    Args:
        cache: the file, HDF5.
        made_from: hash of everything that determines the points; another one makes the cache stale.
        make: reads the points, ``(n, N, 3)`` float32.
        said: where ``make`` puts what the user has to know of the points, which is kept in the cache, and comes from
            there the next time.

    Returns:
        The points, and whether they are in the cache now.
    """
    said = [] if said is None else said
    points = _read(cache, made_from, said)
    if points is not None:
        return points, True
    points = make()
    try:
        with replacing(cache) as temporary:
            _write(temporary, points, made_from, said)
    except (PointAdapterXError, OSError) as error:
        logger.warning("no cache written, the files will be read again next time (%s)", reason_of(error))
        return points, False
    return points, True


def is_fresh(cache: Path, made_from: str) -> bool:
    """Whether :func:`cached_points` would find points in it; what it holds is not looked at."""
    try:
        with h5py.File(cache, "r") as file:
            return bool(file.attrs["made_from"] == made_from)
    except (OSError, KeyError, RuntimeError, TypeError):
        return False


def _read(cache: Path, made_from: str, said: list[str]) -> torch.Tensor | None:
    if not cache.is_file():
        return None
    try:
        with h5py.File(cache, "r") as file:
            if file.attrs["made_from"] != made_from:
                logger.warning("%s: the cache is stale (its files have changed); rebuilding it", cache)
                return None
            points = torch.from_numpy(read_numbers(file, "points"))
            if content_hash(points) == file.attrs["content"]:
                said += json.loads(read_text(file, "said")[0]) if "said" in file else []
                return points
            reason = "its content does not match its checksum"
    except (DataError, OSError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = reason_of(error)
    logger.warning("%s: the cache is damaged (%s); rebuilding it", cache, reason)
    return None


def _write(path: Path, points: torch.Tensor, made_from: str, said: list[str]) -> None:
    with h5py.File(path, "w") as file:
        file["points"] = points.numpy()
        if said:  # as JSON, which has no trouble with names that are not UTF-8
            file["said"] = [json.dumps(said)]
        file.attrs["made_from"] = made_from
        file.attrs["content"] = content_hash(points)
