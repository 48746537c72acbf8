"""Reads and examines every cloud of a data set, and fills the cache from which training reads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import TypeAdapter
from rich.console import Console
from rich.progress import Progress

from pointadapterx.datasets.base import AXES, DATASETS, SPLITS, PointClouds, Unchecked
from pointadapterx.datasets.cache import cached_points, is_fresh
from pointadapterx.datasets.cloud_reader import CloudReader
from pointadapterx.datasets.doubts import FEW, NO_NUMBERS, Doubt, doubts_of, label_doubts
from pointadapterx.datasets.draws import Measured, measured_cloud
from pointadapterx.datasets.files import walk_files
from pointadapterx.datasets.folder import (
    BLOCK,
    STORED_POINTS,
    cache_of,
    doubts_said,
    list_files,
    unlabelled_text,
)
from pointadapterx.datasets.h5 import find_h5
from pointadapterx.datasets.hdf5 import open_h5
from pointadapterx.datasets.layouts import find_layout, parts_of_split
from pointadapterx.datasets.listings import CACHE_SUFFIX, TABLE_SUFFIX
from pointadapterx.datasets.point_files import AS_FILES_SAY, KINDS, MESH_SUFFIXES, Cloud, Reading, load_cloud
from pointadapterx.datasets.workers import map_in_order
from pointadapterx.doctor.examined import Entry, Examined, examine
from pointadapterx.errors import DataError, PointAdapterXError, reason_of
from pointadapterx.files import replacing
from pointadapterx.hashing import content_hash, derive_seed

logger = logging.getLogger(__name__)

FORMAT = "1"  # of what is kept of examined clouds; another one where the same file is now said to be something else


@dataclass(frozen=True)
class Options:
    """How files are read, like the keys of the ``data`` section for training.

    Attributes:
        suffixes: kinds of files; None: all.
        labels: False reads everything below a folder without labels, as pre-training does.
        stored_points: points kept of a file, and drawn from a mesh.
        reading: what the user says of the files.
        cache_dir: folder for caches; None: beside the data.
        workers: processes that read; None: one a core.
    """

    suffixes: tuple[str, ...] | None = None
    labels: bool = True
    stored_points: int = STORED_POINTS
    reading: Reading = AS_FILES_SAY
    cache_dir: Path | None = None
    workers: int | None = None


@dataclass(frozen=True)
class Batch:
    """Files of one folder.

    Attributes:
        reader: by which training reads them.
        names: paths below its root.
        shown: their names in what is printed.
        splits: one a file.
        labels: one a file, None for one in no folder of a class.
        validation: for each file, whether it is of a validation part.
        cache: what the name of their cache begins with; None where training would refuse them.
    """

    reader: CloudReader
    names: list[str]
    shown: list[str]
    splits: list[str]
    labels: list[str | None]
    validation: list[bool]
    cache: str | None


class Plan(NamedTuple):
    """All files to be examined, and what training would say about them.

    Attributes:
        batches: all files.
        said: what training says of them.
        refused: why training would refuse them, or "".
    """

    batches: list[Batch]
    said: list[str]
    refused: str


def plan_reading(path: Path, options: Options) -> Plan:
    """The files that training would read of a folder or a table; all there are where it would refuse them.

    Raises:
        DataError: if there is nothing to examine, or it is not clear what the folders mean.
    """
    is_table = path.is_file() and path.suffix.lower() == TABLE_SUFFIX
    if not is_table and not path.is_dir():
        raise DataError(
            f"{path}: is no folder, no table ({TABLE_SUFFIX}) of files and no HDF5 file (.h5, .hdf5); give one, or "
            "--name for a data set"
        )
    labelled = is_table or (options.labels and find_layout(path).kind != "plain")
    batches, said = [], [unlabelled_text(path)] * (options.labels and not labelled)
    try:
        for split in SPLITS if labelled else SPLITS[:1]:
            listing = list_files(path, split, options.suffixes, labelled)
            assert listing is not None
            below = "" if is_table or listing.root == path else f"{listing.root.relative_to(path).as_posix()}/"
            labels = [listing.classes[label] if labelled else None for label in listing.labels.tolist()]
            shown = [f"{below}{name}" for name in listing.names]
            reader = _reader(listing.root, options)
            validation = [False] * len(labels) if listing.validation is None else listing.validation.tolist()
            splits = [split] * len(labels)
            batches.append(Batch(reader, listing.names, shown, splits, labels, validation, listing.label))
            said += [listing.said] * bool(listing.said)
    except DataError as error:
        if is_table:
            raise
        everything = _everything(path, options)
        if not everything.names:
            raise
        return Plan([everything], [], str(error))
    return Plan(batches, said, "")


def _reader(root: Path, options: Options) -> CloudReader:
    return CloudReader(root, options.stored_points, True, reading=options.reading)


def _everything(path: Path, options: Options) -> Batch:
    """All files in folders of classes and next to them."""
    layout = find_layout(path)
    of_test = parts_of_split("test", layout.parts) if layout.parts else ()
    batch = Batch(_reader(path, options), [], [], [], [], [], None)
    for file in sorted(walk_files(path)):
        name = file.relative_to(path).as_posix()
        place = layout.place(name)
        if place is None or file.suffix.lower()[1:] not in (options.suffixes or KINDS):
            continue
        part, label = place
        batch.names.append(name)
        batch.shown.append(name)
        batch.splits.append("test" if part in of_test else "train")
        batch.labels.append(label)
        batch.validation.append(part == "val" and part not in of_test)
    return batch


@dataclass(frozen=True)
class _Reader:
    """Reads and examines one file, and reduces it to what training keeps; picklable, for other processes.

    Args:
        keep: whether what training keeps is wanted.
    """

    reader: CloudReader
    keep: bool

    def __call__(self, name: str) -> tuple[Examined | str, np.ndarray | None]:
        """What there is to say of a cloud, and ``(stored_points, 3)`` float32 or None."""
        reader, path = self.reader, self.reader.root / name
        mesh = path.suffix.lower() in MESH_SUFFIXES
        try:  # one draw for all meshes, so that copies stay copies
            cloud = load_cloud(path, reader.num_points, derive_seed("surface", ""), reader.reading)
        except DataError as error:
            return str(error), None
        found = examine(cloud, mesh=mesh)
        if not self.keep:
            return found, None
        drawn = mesh and len(cloud.points) == reader.num_points  # training draws by the file's name
        kept = reader(name) if drawn else reader.reduce(cloud, str(path))
        if isinstance(kept, str):
            return kept, None
        return found, kept.points if len(kept.points) == reader.num_points else None


def read_entries(path: Path, options: Options | None = None) -> list[Entry]:
    """Clouds of a folder or of a table of files, examined.

    Raises:
        DataError: see :func:`plan_reading`.
    """
    options = options or Options()
    return examine_files(plan_reading(path, options), options)


def examine_files(plan: Plan, options: Options) -> list[Entry]:
    """Clouds of files, examined.

    What training keeps of them goes into its cache where all of a split are fine, and what is said of them into one
    beside it: the same files are read once, whichever command comes first to need them.
    """
    entries: list[Entry] = []
    screen = Console(stderr=True)
    with Progress(console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("Examining files", total=sum(len(batch.names) for batch in plan.batches))
        for batch in plan.batches:
            examined = []
            for found in _examine(batch, options):
                examined.append(found)
                progress.advance(task)
            for row in zip(batch.shown, batch.splits, batch.labels, examined, batch.validation, strict=True):
                entries.append(Entry(*row))
    return entries


def _examine(batch: Batch, options: Options) -> Iterator[Examined | str]:
    if batch.cache is None:
        for found, _ in map_in_order(_Reader(batch.reader, False), batch.names, BLOCK, options.workers):
            yield found
        return
    cache, made_from = cache_of(batch.reader, batch.names, batch.cache, options.cache_dir)
    beside = cache.with_name(f"{cache.stem}-examined{CACHE_SUFFIX}")
    state = content_hash(FORMAT, *(field.name for field in fields(Examined)), made_from)
    known = _load(beside, state, len(batch.names))
    if known is not None:
        yield from known
        return
    keep = not is_fresh(cache, made_from)
    examined, kept = list[Examined](), list[np.ndarray]()
    for found, points in map_in_order(_Reader(batch.reader, keep), batch.names, BLOCK, options.workers):
        examined += [found] if isinstance(found, Examined) else []
        kept += [points] if points is not None else []
        yield found
    if len(examined) == len(batch.names):
        _save(beside, state, examined)
        if len(kept) == len(batch.names):
            doubts = (
                [doubt for doubt in found.doubts if doubt.kind != FEW] for found in examined
            )  # as training has them
            said = doubts_said(batch.reader.root, zip(batch.names, doubts, strict=True))
            cached_points(cache, made_from, lambda: torch.from_numpy(np.stack(kept)), said)


@dataclass(frozen=True)
class _Kept:
    """The reduced clouds for training's cache, and the hash of what determines them."""

    state: str
    clouds: list[Examined]


_KEPT = TypeAdapter(_Kept)


def _load(path: Path, state: str, count: int) -> list[Examined] | None:
    try:
        kept = _KEPT.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return kept.clouds if kept.state == state and len(kept.clouds) == count else None


def _save(path: Path, state: str, examined: list[Examined]) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(_KEPT.dump_json(_Kept(state, examined)))
    except (PointAdapterXError, OSError) as error:
        logger.warning(
            "nothing kept of what was examined, the files will be read again next time (%s)", reason_of(error)
        )


def is_h5(path: Path) -> bool:
    """Whether clouds lie in HDF5 files of many each: a file, or a folder of ``train.h5`` and the like alone."""
    try:
        return bool(find_h5(path)) and (path.is_file() or find_layout(path).kind == "plain")
    except DataError:
        return False


class Draws(NamedTuple):
    """How samples are drawn from clouds of any size.

    Attributes:
        block: side of the blocks; None: clouds stay whole.
        up: axis of the files that points up.
    """

    block: float | None = None
    up: str = AXES[1]

    def measured(self, points: np.ndarray, name: str) -> Measured:
        """What samples hold of a cloud (m, 3)."""
        return measured_cloud(np.roll(points, 1 - AXES.index(self.up), axis=1), name, self.block)


def read_set(
    name: str,
    root: Path | None,
    variant: str | None = None,
    *,
    labels: bool = True,
    draws: Draws | None = None,
    **options: Any,
) -> list[Entry]:
    """Clouds of a data set by its name, examined; of ``h5`` also without labels.

    Args:
        name: of the data set.
        root: where it lies.
        variant: of it.
        labels: whether they are read.
        draws: how samples are drawn, where clouds are of any size; None: nothing is said of that.
        options: further keyword arguments of the data set.

    Raises:
        ConfigError: if the set has no such variant, or needs a root.
        DataError: if it cannot be read.
    """
    own = {key: value for key, value in options.items() if value is not None}
    if name == "h5":
        labels = labels and (root is None or _has_labels(root))
        own |= {"normalize": False, "labels": labels}
    entries: list[Entry] = []
    kind = DATASETS[name]
    assert issubclass(kind, PointClouds)
    for split in SPLITS if labels else SPLITS[:1]:
        entries += entries_of(kind.each_cloud(split, root=root, variant=variant, **own), split, draws)
    return entries


def _has_labels(root: Path) -> bool:
    with open_h5(find_h5(root)["train"][0]) as file:
        return "label" in file


def entries_of(clouds: Iterable[Unchecked], split: str, draws: Draws | None = None) -> Iterator[Entry]:
    """The entries of a data set's clouds."""
    for cloud in clouds:
        found, measured = _examined(cloud), None
        if draws is not None and isinstance(found, Examined) and not isinstance(cloud.points, str):
            try:
                measured = draws.measured(cloud.points, cloud.name)
            except DataError as error:
                text = str(error).removeprefix(f"{cloud.name}: ")
                doubt = Doubt("blocks too small", text, "give data.block in the unit of the files")
                found = replace(found, doubts=(*found.doubts, doubt))
        yield Entry(cloud.name, split, cloud.label, found, cloud.validation, tuple(cloud.point_classes), measured)


def _examined(cloud: Unchecked) -> Examined | str:
    points = cloud.points
    if isinstance(points, str):
        return points
    if not len(points):
        return "there is no point in it"
    if not np.isfinite(points).all():
        return "holds values that are not finite"
    found = examine(Cloud(points, tuple(cloud.doubts) or doubts_of(points)))
    problems = tuple(label_doubts(cloud))
    names = () if any(problem.kind in NO_NUMBERS for problem in problems) else _names(cloud)
    return replace(found, doubts=(*found.doubts, *problems), point_classes=names)


def _names(cloud: Unchecked) -> tuple[str, ...]:
    """The classes of its points, as far as these have some."""
    if cloud.point_labels is None:
        return ()
    of = dict(zip(cloud.values or range(len(cloud.point_classes)), cloud.point_classes, strict=True))
    numbers = np.unique(cloud.point_labels).tolist()
    return tuple(of[number] for number in numbers if number in of and number not in cloud.ignored)
