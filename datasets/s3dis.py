"""S3DIS: scans of 272 rooms in six areas of three buildings, 13 labels of points (Armeni et al., CVPR 2016)."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pointadapterx.datasets.base import DATASETS, Unchecked, check_choice, check_split
from pointadapterx.datasets.cache import cache_path
from pointadapterx.datasets.files import DEMO, impostor
from pointadapterx.datasets.ragged import checked_cloud_points, checked_point_labels, settled
from pointadapterx.datasets.scene_cache import cached_scenes
from pointadapterx.datasets.scenes import Scenes
from pointadapterx.datasets.workers import map_in_order
from pointadapterx.errors import DataError, reason_of
from pointadapterx.hashing import content_hash

logger = logging.getLogger(__name__)

S3DIS_CLASSES = (
    *("ceiling", "floor", "wall", "beam", "column", "window", "door"),
    *("table", "chair", "sofa", "bookcase", "board", "clutter"),
)
ROOMS = {"area_1": 44, "area_2": 40, "area_3": 23, "area_4": 49, "area_5": 68, "area_6": 48}
"""Areas, and how many rooms each has."""
USUAL = "area_5"
RAW, CONVERTED = "Stanford3dDataset_v1.2_Aligned_Version", "stanford_indoor3d"
NAME = re.compile(r"(Area_([1-6]))_(.+)\.npy")
AXES, LABEL_COLUMN = 3, 6
NUMBERS = bytes(range(256)).translate(None, b"0123456789.+-eE \t\r\n")  # what a line of numbers never has
BLOCK = 8  # rooms handed to the processes at a time
OBTAIN = (
    "S3DIS is Stanford's, for non-commercial use under the terms of its form (http://buildingparser.stanford.edu); "
    f"obtain {RAW}, or the .npy files of {CONVERTED} that PointNet's code makes of it, and set data.root to the folder "
    "that holds it."
)


@DATASETS.register("s3dis")
class S3DIS(Scenes):
    """Rooms in metres, turned so that y is up; colours are not read, as backbones take x, y, z.

    ``root`` is, or holds, ``Stanford3dDataset_v1.2_Aligned_Version`` (``Area_k/<room>/Annotations/<class>_<n>.txt``;
    names that are no class are clutter) or ``stanford_indoor3d`` (``Area_k_<room>.npy``, the first of the two that is
    there). All rooms are read once and kept in a cache of 13 bytes a point, 3.6 GB for all of S3DIS, which is mapped
    into memory.

    Args:
        split: ``"test"`` is one area, ``"train"`` the five others.
        root: see above.
        variant: the area to test on, ``"area_1"`` to ``"area_6"``; by default the usual one, 5.
        num_points: of a sample.
        block: side of a block in metres, 1 by default, or ``"whole"``.
        cache_dir: folder for the cache; beside the data by default, or in the user's cache folder where the data is
            read-only.
        workers: processes that read rooms; all CPU cores by default.

    Raises:
        ConfigError: for an unknown split or area.
        DataError: if files are missing or damaged.
    """

    variants = tuple(ROOMS)
    settles = True

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        variant: str | None = None,
        num_points: int = 2048,
        block: float | str | None = None,
        cache_dir: str | Path | None = None,
        workers: int | None = None,
    ) -> None:
        check_split(split)
        area = check_choice(variant or USUAL, tuple(ROOMS), "data.variant")
        rooms, folder = find_rooms(root)
        _say_missing(rooms, folder)
        names = [room.name for room in rooms]
        cache = cache_path(folder, "s3dis_scenes", None if cache_dir is None else Path(cache_dir))
        clouds = cached_scenes(cache, _fingerprint(rooms), names, _contents(rooms, workers))
        chosen = [number for number, room in enumerate(rooms) if (room.area == area) == (split == "test")]
        if not chosen:
            raise DataError(f"{folder}: no room of the {split} split (tested on {area}); {OBTAIN}")
        super().__init__(
            clouds.only(chosen),
            S3DIS_CLASSES,
            split,
            num_points=num_points,
            block=block or self.default_block,
            names=[names[number] for number in chosen],
            source=[rooms[number].path for number in chosen],
        )

    @classmethod
    def point_classes_in(cls, **options: Any) -> list[str]:
        """Of every copy."""
        return list(S3DIS_CLASSES)

    @classmethod
    def each_cloud(cls, split: str, **options: Any) -> Iterator[Unchecked]:
        """The rooms of a split, one after the other; what is wrong with one hides no other."""
        area = check_choice(options.get("variant") or USUAL, tuple(ROOMS), "data.variant")
        rooms, folder = find_rooms(options.get("root"))
        _say_missing(rooms, folder)
        for room in rooms:
            if (room.area == area) != (check_split(split) == "test"):
                continue
            try:
                points, labels = room.arrays()
            except DataError as error:
                yield Unchecked(room.name, str(error))
                continue
            yield Unchecked(room.name, points, point_labels=labels, point_classes=S3DIS_CLASSES, ignored=(-1,))


@dataclass(frozen=True)
class Room:
    """A room's file, or in the raw layout its folder; picklable."""

    path: Path

    @property
    def name(self) -> str:
        """Such as ``Area_5_office_1``."""
        return self.path.stem if self.path.suffix == ".npy" else f"{self.path.parent.name}_{self.path.name}"

    @property
    def area(self) -> str:
        """Such as ``area_5``."""
        return self.name[: len(USUAL)].lower()

    @property
    def files(self) -> list[Path]:
        """That its points come from, in order."""
        return [self.path] if self.path.suffix == ".npy" else sorted((self.path / "Annotations").glob("*.txt"))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (m, 3) with y up, and labels (m,) as the files have them.

        Raises:
            DataError: if a file cannot be read.
        """
        parts = [_read_npy(file) if file.suffix == ".npy" else _read_object(file) for file in self.files]
        if not parts:
            raise DataError(f"{self.path / 'Annotations'}: no .txt file in it; obtain the room again")
        points, labels = map(np.concatenate, zip(*parts, strict=True))
        return points[:, [1, 2, 0]], labels  # a rotation, which mirrors nothing

    def content(self) -> tuple[np.ndarray, np.ndarray] | str:
        """Points (m, 3) float32 with y up and least coordinates 0, labels (m,) int8; or what is wrong."""
        try:
            points, labels = self.arrays()
            checked_cloud_points(points, str(self.path))
            return settled(points), checked_point_labels(labels, len(points), S3DIS_CLASSES, str(self.path))
        except DataError as error:
            return str(error)


def find_rooms(root: str | Path | None) -> tuple[list[Room], Path]:
    """All rooms, by name, and the folder that holds them.

    Raises:
        DataError: if there are none.
    """
    base = Path("data") if root is None else Path(root)
    for folder in (base / CONVERTED, base):
        files = sorted(path for path in folder.glob("*.npy") if NAME.fullmatch(path.name))
        if files:
            return [Room(path) for path in files], folder
    for folder in (base / RAW, base):
        rooms = sorted(path.parent for path in folder.glob("Area_[1-6]/*/Annotations"))
        if rooms:
            return [Room(path) for path in rooms], folder
    expected = f"{base / CONVERTED}/Area_1_office_1.npy or {base / RAW}/Area_1/office_1/Annotations"
    raise DataError(f"S3DIS: files are missing. Expected {expected}, and so on. {OBTAIN} {DEMO}")


def _say_missing(rooms: Sequence[Room], folder: Path) -> None:
    areas = [room.area for room in rooms]
    wrong = [f"{area} {areas.count(area)} of {count}" for area, count in ROOMS.items() if areas.count(area) != count]
    if wrong:
        logger.warning("%s: rooms of %s: results are not comparable with published ones", folder, ", ".join(wrong))


def _contents(rooms: Sequence[Room], workers: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for found in map_in_order(Room.content, rooms, BLOCK, workers):
        if isinstance(found, str):
            raise DataError(found)
        yield found


def _fingerprint(rooms: Sequence[Room]) -> str:
    """Hash of what the cache is made from."""
    stats = [(str(file), file.stat()) for room in rooms for file in room.files]
    return content_hash("\n".join(f"{Path(name).name} {s.st_size} {s.st_mtime_ns}" for name, s in stats))


def _read_npy(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {impostor(path) or f'is no array of numpy ({reason_of(error)})'}") from error
    if rows.ndim != 2 or rows.shape[1] != LABEL_COLUMN + 1 or rows.dtype.kind != "f":
        raise DataError(f"{path}: {rows.dtype} of shape {rows.shape}, expected rows of x y z r g b label")
    return np.asarray(rows[:, :3], dtype=np.float64), np.asarray(rows[:, LABEL_COLUMN])


def _read_object(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """An object's points (m, 3), and its label for each."""
    if (what := impostor(path)) is not None:
        raise DataError(f"{path}: {what}")
    content = path.read_bytes()
    cleaned = content.translate(bytes.maketrans(NUMBERS, b" " * len(NUMBERS)))
    if cleaned != content:
        _check_odd_bytes(content, path)
    try:
        points = np.loadtxt(io.BytesIO(cleaned), usecols=(0, 1, 2), ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: not rows of x y z r g b ({reason_of(error)}); obtain it again") from error
    name = path.stem.rpartition("_")[0].lower()
    number = S3DIS_CLASSES.index(name if name in S3DIS_CLASSES else "clutter")
    return points, np.full(len(points), number, np.int8)


def _check_odd_bytes(content: bytes, path: Path) -> None:
    """Takes bytes that are of no number where they do no harm: in a colour, as in hallway_6 of Area_5.

    Raises:
        DataError: for one in a coordinate.
    """
    odd = re.compile(b"[" + re.escape(NUMBERS) + b"]")
    for number, line in enumerate(content.splitlines(), 1):
        found = odd.search(line)
        if found is not None and len(line[: found.start()].split()) <= AXES:
            raise DataError(f"{path}: line {number} has the byte {found[0]!r} in a coordinate; obtain it again")
        if found is not None:
            logger.warning("%s: line %d has the byte %r in a colour, which is not read", path, number, found[0])
