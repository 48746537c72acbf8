"""Any folder of point files and meshes, or one HDF5 file: clouds without labels, for pre-training."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from pointadapterx.datasets.base import DATASETS, PointClouds, check_choice
from pointadapterx.datasets.cache import cache_path, cached_points
from pointadapterx.datasets.checks import moved_to_origin
from pointadapterx.datasets.files import walk_files
from pointadapterx.datasets.h5 import read_unlabelled_h5
from pointadapterx.datasets.hashing import content_hash, derive_seed
from pointadapterx.datasets.point_files import KINDS, MESH_SUFFIXES, MISSING_TRIMESH, read_cloud, trimesh_version
from pointadapterx.datasets.resample import fps
from pointadapterx.datasets.workers import map_in_order
from pointadapterx.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

STORED_POINTS = 2048
DISTINCT = 0.9  # of a cloud's points: scans hold a few points twice, while padding holds one many times
LARGEST = 1e18  # coordinate whose squared distances float32 holds
AXES = ("x", "y", "z")
BLOCK = 64  # files handed to the processes at a time; fewer are read faster than a process starts
SHOWN = 5  # files that a message lists
CACHE_FORMAT = "2"
CACHE_SUFFIX = ".cache"  # of no point file: the cache lies in the folder that is searched

Content = tuple[torch.Tensor, list[str] | None, Path]  # points (n, N, 3) float32, names, where they came from


@DATASETS.register("folder")
class Folder(PointClouds):
    """Unlabelled clouds of the user's own: every label is 0 and the only class is ``unlabelled``.

    A folder is searched with everything below it, through links too, except what begins with a dot. Meshes (glb,
    obj, off, ply, stl) are sampled uniformly over their surface, by a draw that depends on the file's path below
    ``root`` alone; the parts of a scene are merged. Point files (csv, h5, npy, npz, ply, pts, txt, xyz; one cloud
    each) are reduced by FPS. The result is cached. ``names`` are the paths below ``root``, in sorted order.

    Args:
        split: ``"train"``; there is no other.
        root: folder, or HDF5 file with ``data (n, N, 3)`` and perhaps ``name (n,)``; a label in it is ignored.
        variant: there is none; a name here is an error.
        normalize: centre and scale into the unit sphere. Off, clouds keep the units and place of their files.
        cache_dir: folder for the cache; beside the data by default, or in the user's cache folder where the data
            is read-only.
        up: axis of the files that points up, ``"x"``, ``"y"`` or ``"z"``. Clouds are turned so that it becomes y.
        stored_points: points kept of a file of a folder, 2048 by default. An HDF5 file's clouds stay as they are.
        suffixes: kinds of files to read in a folder, for example ``["ply", "off"]``; all of the above by default.
        workers: processes that read files; all CPU cores by default, one for few files.

    Raises:
        ConfigError: for split ``"test"``, a variant, a missing root, or an unknown suffix.
        DataError: if there is no file, or files are damaged or have too few different points; how many is said.
    """

    labelled = False

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        variant: str | None = None,
        normalize: bool = True,
        cache_dir: str | Path | None = None,
        up: str = "y",
        stored_points: int | None = None,
        suffixes: Sequence[str] | None = None,
        workers: int | None = None,
    ) -> None:
        if split != "train":
            raise ConfigError(
                f"data.name=folder has no {split} split and no labels: it is for pre-training; choose another data.name"
            )
        if variant is not None:
            raise ConfigError(f"data.variant '{variant}': folder has no variants; remove data.variant")
        if root is None:
            raise ConfigError("data.root is required for data.name=folder: set it to a folder or an HDF5 file")
        check_choice(up, AXES, "data.up")
        for suffix in suffixes or ():
            check_choice(suffix, KINDS, "data.suffixes")
        base = Path(root)
        if base.is_dir():
            reader = CloudReader(base, stored_points or STORED_POINTS, normalize)
            points, names, source = _read_folder(
                reader, suffixes or KINDS, None if cache_dir is None else Path(cache_dir), workers
            )
        else:
            points, names = _read_file(base, normalize, {"stored_points": stored_points, "suffixes": suffixes})
            source = base
        super().__init__(
            points.roll(1 - AXES.index(up), dims=2),  # cyclic, so it is a rotation and mirrors nothing
            torch.zeros(len(points), dtype=torch.int64),
            ["unlabelled"],
            split,
            names=names,
            source=[source],
            normalize=normalize,
        )


@dataclass(frozen=True)
class CloudReader:
    """Brings a file below ``root`` to at most ``num_points`` points; picklable, for other processes.

    Args:
        root: folder.
        num_points: points of a cloud.
        centre: clouds will be normalised; see :func:`~pointadapterx.datasets.checks.moved_to_origin`.
    """

    root: Path
    num_points: int
    centre: bool

    def __call__(self, name: str) -> np.ndarray | str:
        """``(m, 3)`` float32, or what is wrong with the file; ``m`` is below ``num_points`` where it has too few."""
        path = self.root / name
        try:
            points = read_cloud(path, self.num_points, derive_seed("surface", name))
        except DataError as error:
            return str(error)
        if self.centre:
            points = moved_to_origin(points)
        if not (np.abs(points) < LARGEST).all():
            return f"{path}: coordinates beyond {LARGEST:g}, whose distances float32 cannot hold; scale them"
        cloud = points.astype(np.float32)
        if len(cloud) > self.num_points:
            cloud = fps(torch.from_numpy(cloud)[None], self.num_points)[0].numpy()
        distinct = np.unique(cloud, axis=0)
        return cloud if len(distinct) >= DISTINCT * self.num_points else distinct

    def fingerprint(self, names: Sequence[str]) -> str:
        """Hash of everything that determines the clouds of ``names``."""
        parts = [CACHE_FORMAT, f"{self.num_points} {self.centre} {trimesh_version()}"]
        for name in names:
            stat = (self.root / name).stat()
            parts.append(f"{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")
        return content_hash("\n".join(parts))


def find_clouds(root: Path, suffixes: Collection[str]) -> list[str]:
    """Files of the kinds ``suffixes`` below ``root``, as sorted relative paths with ``/``; others are logged.

    Raises:
        DataError: if there is none, or a folder cannot be listed.
    """
    names, others = [], Counter[str]()
    for path in walk_files(root):
        suffix = path.suffix.lower()
        if suffix[1:] in suffixes:
            names.append(path.relative_to(root).as_posix())
        elif suffix != CACHE_SUFFIX:
            others[suffix or "without suffix"] += 1
    left_out = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
    if not names:
        raise DataError(
            f"{root}: no point file or mesh in it or below ({' '.join(suffixes)}), only {left_out or 'nothing'}; set "
            "data.root to another folder"
        )
    if left_out:
        logger.info("%s: %d files of other kinds are left out (%s)", root, others.total(), left_out)
    return sorted(names)


def _read_file(path: Path, centre: bool, folder_options: Mapping[str, Any]) -> tuple[torch.Tensor, list[str] | None]:
    if not path.is_file():
        raise DataError(f"{path}: does not exist; set data.root to a folder or an HDF5 file")
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise DataError(f"{path}: data.root is a folder or an HDF5 file (.h5, .hdf5); set it to the file's folder")
    for key, value in folder_options.items():
        if value is not None:
            raise ConfigError(f"data.{key}={value} is for folders, and {path} is a file; remove it")
    return read_unlabelled_h5(path, centre)


def _read_folder(
    reader: CloudReader, suffixes: Collection[str], cache_dir: Path | None, workers: int | None
) -> Content:
    names = find_clouds(reader.root, suffixes)
    meshes = [name for name in names if Path(name).suffix.lower() in MESH_SUFFIXES]
    if meshes and trimesh_version() is None:
        raise DataError(f"{reader.root / meshes[0]}: {MISSING_TRIMESH}")
    file_name = f"pointadapterx-{reader.num_points}pts{'-centred' if reader.centre else ''}{CACHE_SUFFIX}"
    cache = cache_path(reader.root, file_name, cache_dir)
    points, is_cached = cached_points(cache, reader.fingerprint(names), lambda: _read_clouds(reader, names, workers))
    return points, names, cache if is_cached else reader.root


def _read_clouds(reader: CloudReader, names: Sequence[str], workers: int | None) -> torch.Tensor:
    points = torch.empty(len(names), reader.num_points, 3)
    problems: dict[str, str] = {}
    short: dict[str, int] = {}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f"Reading {len(names)} files", total=len(names))
        for name, out, cloud in zip(names, points, map_in_order(reader, names, BLOCK, workers), strict=True):
            if isinstance(cloud, str):
                problems[name] = cloud
            elif len(cloud) < reader.num_points:
                short[name] = len(cloud)
            else:
                out.copy_(torch.from_numpy(cloud))
            progress.advance(task)
    if problems:
        first = next(iter(problems.values()))
        raise DataError(
            f"{first} ({len(problems)} of {len(names)} files below {reader.root} cannot be read)"
            f"{_leave_out(names, problems)}"
        )
    if short:
        listed = [f"{name} ({count})" for name, count in short.items()]
        more = [f"and {len(listed) - SHOWN} more"] if len(listed) > SHOWN else []
        raise DataError(
            f"{reader.root}: {len(short)} of {len(names)} files have fewer than {reader.num_points} different points: "
            f"{', '.join(listed[:SHOWN] + more)}; lower data.stored_points (the smallest has {min(short.values())}), "
            f"or remove them{_leave_out(names, short)}"
        )
    return points


def _leave_out(names: Collection[str], bad: Collection[str]) -> str:
    """The way out where the bad files are of kinds of their own; else nothing."""
    kinds = {Path(name).suffix.lower()[1:] for name in names} - {Path(name).suffix.lower()[1:] for name in bad}
    return f"; data.suffixes=[{','.join(sorted(kinds))}] leaves out files of their kind" if kinds else ""
