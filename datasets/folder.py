"""The user's own point files and meshes: clouds with classes, or without labels for pre-training."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from pointadapterx.datasets.base import AXES, DATASETS, UNLABELLED, PointClouds, check_choice, check_split
from pointadapterx.datasets.cache import cache_path, cached_points
from pointadapterx.datasets.cloud_reader import CloudReader
from pointadapterx.datasets.doubts import Doubt
from pointadapterx.datasets.files import walk_files
from pointadapterx.datasets.h5 import find_h5, read_unlabelled_h5
from pointadapterx.datasets.labelled_clouds import LABELLED_KINDS, point_labels_of
from pointadapterx.datasets.layouts import find_layout, holds_clouds
from pointadapterx.datasets.listings import (
    CACHE_SUFFIX,
    TABLE_SUFFIX,
    Listing,
    count_table_classes,
    find_clouds,
    list_layout,
    list_table,
    nothing_text,
)
from pointadapterx.datasets.point_files import (
    KINDS,
    MISSING_TRIMESH,
    SURFACE_SUFFIXES,
    Reading,
    trimesh_version,
)
from pointadapterx.datasets.workers import map_in_order
from pointadapterx.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

STORED_POINTS = 2048
BLOCK = 64  # files handed to the processes at a time; fewer are read faster than a process starts
SHOWN = 5  # files that a message lists
MISSING = "does not exist; set data.root to a folder, a CSV or an HDF5 file"
LABELLED = (
    "put files into {base}/{{train,test}}/<class>/ or {base}/<class>/, or list them in a CSV file with the columns "
    "file,label,split"
)


@DATASETS.register("folder")
class Folder(PointClouds):
    """Clouds of the user's own. What ``root`` is decides whether they have labels:

    - a folder of folders for classes, which are sorted: ``train/<class>/...`` and ``test/<class>/...``, or
      ``<class>/train/...`` and ``<class>/test/...``, or ``<class>/...`` alone, of which 20 % of each class are then
      held out for the test. Clouds of ``val`` are the validation part of the training split; without ``test`` they are
      the test split. ``training``, ``Test`` and ``valid`` are such names too (see
      :func:`~pointadapterx.datasets.layouts.find_layout`);
    - a CSV file, see :func:`~pointadapterx.datasets.listings.list_table`;
    - any other folder, or an HDF5 file: no labels, for pre-training. Every label is 0, the only class ``unlabelled``.

    A folder is searched with everything below it, through links too, except what begins with a dot. Meshes (glb,
    obj, off, ply, stl) are sampled uniformly over their surface, by a draw that depends on the file's path below
    ``root`` alone; the parts of a scene are merged. Point files (asc, csv, h5, las, laz, npy, npz, pcd, ply, pts,
    txt, xyz; one cloud each) are reduced by FPS. The result is cached. ``names`` are the paths below ``root``, in
    sorted order.

    Args:
        split: ``"train"`` or ``"test"``, the latter where there are labels.
        root: folder, CSV file, or HDF5 file with ``data (n, N, 3)`` and perhaps ``name (n,)``; labels in it are
            ignored.
        variant: not supported here; a name is an error.
        normalize: centre and scale into the unit sphere. Off, clouds keep the units and place of their files.
        cache_dir: folder for the cache; beside the data by default, or in the user's cache folder where the data
            is read-only.
        up: axis of the files that points up, ``"x"``, ``"y"`` or ``"z"``. Clouds are turned so that it becomes y.
        stored_points: points kept of a file of a folder, 2048 by default. An HDF5 file's clouds stay as they are.
        suffixes: kinds of files to read in a folder, for example ``["ply", "off"]``; all of the above by default.
        columns: of x, y and z in text files, by name or by number from 0; by default as the files name them.
        nan: ``"error"`` refuses files with NaN or infinite coordinates. By default such points are dropped, with a
            warning that counts them.
        labels: False reads everything below a folder without labels, those of folders of classes too.
        workers: processes that read files; all CPU cores by default, one for few files.

    Raises:
        ConfigError: for split ``"test"`` without labels, a variant, a missing root, or an unknown suffix.
        DataError: if there is no file, if it is not clear what the folders mean, or if files are damaged or have too
            few different points; how many is said.
    """

    labels_optional = True

    @classmethod
    def has_labels(cls, root: str | Path | None = None) -> bool:
        """Of a table, or folders of classes; a root that is not there, or not clear, is not known to have none."""
        if root is None or not Path(root).exists():
            return root is not None
        try:
            return _is_table(Path(root)) or (Path(root).is_dir() and find_layout(Path(root)).kind != "plain")
        except DataError:
            return True

    @classmethod
    def require_labels(cls, root: str | Path | None) -> None:
        """See :class:`~pointadapterx.datasets.base.Samples`."""
        base = _required(root)
        if not cls.has_labels(base):
            raise ConfigError(unlabelled_text(base))

    @classmethod
    def classes_in(cls, root: str | Path | None) -> int:
        """Number of classes of the training part."""
        base = _required(root)
        if not base.exists():
            raise DataError(f"{base}: {MISSING}")
        cls.require_labels(base)
        return count_table_classes(base) if _is_table(base) else len(find_layout(base).classes)

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
        columns: Sequence[str | int] | None = None,
        nan: str | None = None,
        labels: bool = True,
        workers: int | None = None,
    ) -> None:
        check_split(split)
        if variant is not None:
            raise ConfigError(f"data.variant '{variant}': folder has no variants; remove data.variant")
        base = _required(root)
        if split != "train" and not self.has_labels(base):
            raise ConfigError(f"{base}: has no {split} split and no labels; {LABELLED.format(base=base)}")
        check_choice(up, AXES, "data.up")
        for suffix in suffixes or ():
            check_choice(suffix, KINDS, "data.suffixes")
        listing = list_files(base, split, suffixes, labels)
        if listing is None:
            for_folders = {"stored_points": stored_points, "suffixes": suffixes, "columns": columns, "nan": nan}
            points, names = _read_file(base, normalize, for_folders)
            listing, source = _unlabelled(base, names, len(points)), base
        else:
            if listing.said:
                logger.warning("%s", listing.said)
            reading = Reading.of(columns, nan)
            reader = CloudReader(listing.root, stored_points or STORED_POINTS, normalize, reading=reading)
            names, cache = listing.names, None if cache_dir is None else Path(cache_dir)
            points, source = _read_files(reader, names, listing.label, cache, workers)
        super().__init__(
            points.roll(1 - AXES.index(up), dims=2),  # cyclic, so it is a rotation and mirrors nothing
            listing.labels,
            listing.classes,
            split,
            names=names,
            groups=listing.groups,
            source=[source],
            normalize=normalize,
            validation=listing.validation,
        )


def _required(root: str | Path | None) -> Path:
    if root is None:
        raise ConfigError("data.root is required for data.name=folder: set it to a folder, a CSV or an HDF5 file")
    return Path(root)


def _is_table(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == TABLE_SUFFIX


def unlabelled_text(base: Path) -> str:
    """Explains why a root has no labels, and how to add them; or that it holds nothing that could have one."""
    why = find_layout(base).why if base.is_dir() else "it is a single file"
    try:
        find_h5(base)
        why = "the labels of HDF5 files are read by data.name=h5"
    except DataError:
        if base.is_dir() and not holds_clouds(base):
            return nothing_text(base, KINDS)
        if base.is_dir() and (name := _with_point_labels(base)) is not None:
            return (
                f"{base}: its clouds have no labels, but the points in them have some ({name}); look at these with "
                f"doctor {base} --name labelled_folder, and learn them with train --config labelled_folder "
                f"data.root={base}"
            )
    return f"{base}: has no labels, so it is for pre-training; {LABELLED.format(base=base)} ({why})"


def _with_point_labels(base: Path) -> str | None:
    """One of the first files below a folder whose points have labels."""
    paths = sorted(path for path in walk_files(base) if path.suffix.lower()[1:] in LABELLED_KINDS)
    return next((path.relative_to(base).as_posix() for path in paths[:SHOWN] if point_labels_of(path)), None)


def list_files(base: Path, split: str, suffixes: Sequence[str] | None, labels: bool) -> Listing | None:
    """The files to read and their labels; None for an HDF5 file.

    Raises:
        DataError: see :func:`~pointadapterx.datasets.listings.list_table` and
            :func:`~pointadapterx.datasets.listings.list_layout`.
    """
    kinds = suffixes or KINDS
    if _is_table(base):
        listing = list_table(base, split)
        unknown = [name for name in listing.names if Path(name).suffix.lower()[1:] not in kinds]
        if unknown:
            raise DataError(f"{base}: {unknown[0]} is of no kind that is read ({' '.join(kinds)})")
        return listing
    if not base.is_dir():
        return None
    layout = find_layout(base) if labels else None
    if layout is not None and layout.kind != "plain":
        return list_layout(layout, split, kinds)
    names = find_clouds(base, kinds)
    if not labels and Folder.has_labels(base):
        logger.info("%s: its clouds of all splits and classes are read, without labels", base)
    return _unlabelled(base, names, len(names))


def _unlabelled(base: Path, names: list[str] | None, count: int) -> Listing:
    return Listing(base, names or [], torch.zeros(count, dtype=torch.int64), UNLABELLED, None)


def _read_file(path: Path, centre: bool, folder_options: Mapping[str, Any]) -> tuple[torch.Tensor, list[str] | None]:
    if not path.is_file():
        raise DataError(f"{path}: {MISSING}")
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise DataError(
            f"{path}: data.root is a folder, a CSV or an HDF5 file (.h5, .hdf5); set it to the file's folder"
        )
    for key, value in folder_options.items():
        if value is not None:
            raise ConfigError(f"data.{key}={value} is for folders, and {path} is a file; remove it")
    return read_unlabelled_h5(path, centre)


def _read_files(
    reader: CloudReader, names: Sequence[str], label: str, cache_dir: Path | None, workers: int | None
) -> tuple[torch.Tensor, Path]:
    """Clouds of files, and their source: the folder, or the cache, whose name contains ``label``."""
    meshes = [name for name in names if Path(name).suffix.lower() in SURFACE_SUFFIXES]
    if meshes and trimesh_version() is None:
        raise DataError(f"{reader.root / meshes[0]}: {MISSING_TRIMESH}")
    cache, made_from = cache_of(reader, names, label, cache_dir)
    said: list[str] = []
    points, is_cached = cached_points(cache, made_from, lambda: _read_clouds(reader, names, workers, said), said)
    for text in said:
        logger.warning("%s", text)
    return points, cache if is_cached else reader.root


def cache_of(reader: CloudReader, names: Sequence[str], label: str, cache_dir: Path | None) -> tuple[Path, str]:
    """Path of the cache for these files, which contains ``label``, and the hash of what determines the clouds."""
    name = f"pointadapterx-{label}{reader.num_points}pts{'-centred' if reader.centre else ''}{CACHE_SUFFIX}"
    return cache_path(reader.root, name, cache_dir), reader.fingerprint(names)


def doubts_said(root: Path, doubts: Iterable[tuple[str, Sequence[Doubt]]]) -> list[str]:
    """A line for each kind of doubt about files below ``root``, of the first such file."""
    by_kind: dict[str, list[tuple[str, Doubt]]] = defaultdict(list)
    for name, found in doubts:
        for doubt in found:
            by_kind[doubt.kind].append((name, doubt))
    lines = []
    for kind, (first, *more) in by_kind.items():
        name, doubt = first
        others = f", and so {len(more)} more" if more else ""
        lines.append(f"{root / name}: {doubt.text} ({kind}{others}); `pointadapterx doctor` lists them")
    return lines


def _read_clouds(reader: CloudReader, names: Sequence[str], workers: int | None, said: list[str]) -> torch.Tensor:
    points = torch.empty(len(names), reader.num_points, 3)
    problems: dict[str, str] = {}
    short: dict[str, int] = {}
    doubts: list[tuple[str, Sequence[Doubt]]] = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f"Reading {len(names)} files", total=len(names))
        for name, out, cloud in zip(names, points, map_in_order(reader, names, BLOCK, workers), strict=True):
            progress.advance(task)
            if isinstance(cloud, str):
                problems[name] = cloud
                continue
            doubts.append((name, cloud.doubts))
            if len(cloud.points) < reader.num_points:
                short[name] = len(cloud.points)
            else:
                out.copy_(torch.from_numpy(cloud.points))
    said += doubts_said(reader.root, doubts)
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
