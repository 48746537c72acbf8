"""ShapeNetPart: 16,881 shapes of 16 categories with 50 parts, in the text layout or in that of HDF5 files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointadapterx.datasets.base import DATASETS, Unchecked, check_choice, check_split, warn_count
from pointadapterx.datasets.checks import check_classes, checked_labels
from pointadapterx.datasets.files import impostor, require_files
from pointadapterx.datasets.h5 import find_h5
from pointadapterx.datasets.modelnet40_text import read_lines
from pointadapterx.datasets.parts import checked_pid, numbers_of, part_names, read_part_arrays
from pointadapterx.datasets.ragged import Ragged, checked_cloud_points
from pointadapterx.datasets.scenes import WHOLE, Scenes
from pointadapterx.datasets.workers import map_in_order
from pointadapterx.errors import ConfigError, DataError, reason_of

logger = logging.getLogger(__name__)

COUNTS = {
    **{"Airplane": 4, "Bag": 2, "Cap": 2, "Car": 4, "Chair": 4, "Earphone": 3, "Guitar": 3, "Knife": 2, "Lamp": 4},
    **{"Laptop": 2, "Motorbike": 6, "Mug": 2, "Pistol": 3, "Rocket": 3, "Skateboard": 3, "Table": 3},
}
SHAPENETPART = {
    category: [f"{category} {number}" for number in numbers]
    for category, numbers in numbers_of({category: [""] * count for category, count in COUNTS.items()}).items()
}
"""Categories and their parts, which are known by their numbers in the files alone: ``Airplane 0``, …, ``Table 49``."""
PUBLISHED = {"train": 14_007, "test": 2_874}  # train and val together
FOLDERS = {
    "text": ("shapenetcore_partanno_segmentation_benchmark_v0_normal",),
    "h5": ("hdf5_data", "shapenet_part_seg_hdf5_data"),
}
MARKS = {"text": "synsetoffset2category.txt", "h5": "ply_data_train0.h5"}
COLUMNS = 7  # x, y, z, their normal and the label
BLOCK = 256  # files parsed at a time by a process
OBTAIN = (
    "The text layout is shapenetcore_partanno_segmentation_benchmark_v0_normal.zip, that of HDF5 files hdf5_data of "
    "PointNet's authors; see docs/data.md."
)


@DATASETS.register("shapenetpart")
class ShapeNetPart(Scenes):
    """Shapes of 16 categories with a part for each point, y up; training is train and val together.

    ``root`` holds one of two layouts, or a folder with it: text (``synsetoffset2category.txt``,
    ``<offset>/<shape>.txt`` with rows of ``x y z nx ny nz label``, ``train_test_split/shuffled_train_file_list.json``
    and the like for val and test), or HDF5 (``ply_data_train0.h5`` and so on with ``data``, ``label`` and ``pid``).

    A sample of the text layout is ``num_points`` points drawn with replacement, as published: new ones in every epoch,
    always the same in tests. In HDF5 files every shape has 2,048 points, which are drawn without replacement. The
    published val part can be used for validation.

    Args:
        split: ``"train"`` or ``"test"``.
        root: see above.
        variant: ``"text"`` or ``"h5"``, where ``root`` has both layouts.
        num_points: of a sample.
        block: ``"whole"`` alone, as samples are whole shapes.
        normalize: centre each shape at its mean and scale it into the unit sphere.
        workers: processes that parse text; all CPU cores by default.

    Raises:
        ConfigError: for a missing root, an unknown split, variant or block.
        DataError: if files are missing, damaged, or hold labels of other categories.
    """

    default_block = WHOLE
    variants = ("text", "h5")
    num_classes = len(SHAPENETPART)

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        variant: str | None = None,
        num_points: int = 2048,
        block: float | str | None = None,
        normalize: bool = True,
        workers: int | None = None,
    ) -> None:
        if block not in (None, WHOLE):
            raise ConfigError(f"data.block={block}: samples of shapenetpart are whole shapes; remove data.block")
        layout, folder = _find_layout(root, variant, check_split(split))
        found = _read_text(folder, split, workers) if layout == "text" else _read_h5(folder, split)
        super().__init__(
            Ragged.of(zip(found.points, found.labels, strict=True)),
            part_names(SHAPENETPART),
            split,
            num_points=num_points,
            block=WHOLE,
            with_replacement=layout == "text",
            names=found.names,
            normalize=normalize,
            validation=found.validation if bool(found.validation.any()) and not bool(found.validation.all()) else None,
            condition=found.categories,
            classes=list(SHAPENETPART),
            source=found.source,
        )
        warn_count("ShapeNetPart", split, len(found.names), PUBLISHED[split])

    @classmethod
    def has_labels(cls, root: str | Path | None = None) -> bool:
        """Shapes have categories."""
        return True

    @classmethod
    def require_labels(cls, root: str | Path | None) -> None:
        """They are always there."""

    @classmethod
    def parts_in(cls, **options: Any) -> dict[str, list[str]]:
        """See :data:`SHAPENETPART`."""
        return SHAPENETPART

    @classmethod
    def point_classes_in(cls, **options: Any) -> list[str]:
        """Their names."""
        return part_names(SHAPENETPART)

    @classmethod
    def each_cloud(cls, split: str, **options: Any) -> Iterator[Unchecked]:
        """See :class:`~pointadapterx.datasets.base.PointClouds`."""
        layout, folder = _find_layout(options.get("root"), options.get("variant"), check_split(split))
        if layout == "h5":
            for path, validation in _h5_files(folder, split):
                yield from read_part_arrays(path).unchecked(SHAPENETPART, validation=validation)
            return
        own, classes = numbers_of(SHAPENETPART), part_names(SHAPENETPART)
        for shape in _listed(folder, split):
            try:
                rows = parse_shape(shape.path)
            except DataError as error:
                yield Unchecked(shape.name, str(error), shape.category, shape.validation)
                continue
            points = rows[:, :3].astype(np.float64)
            yield Unchecked(
                shape.name, points, shape.category, shape.validation, rows[:, 6], classes, (), own[shape.category]
            )


@dataclass(frozen=True)
class Shape:
    """A file of the text layout: ``name`` is ``<offset>/<shape>``."""

    name: str
    path: Path
    category: str
    validation: bool


@dataclass(frozen=True)
class Content:
    """What a layout holds of a split; points and labels are lists of arrays, one a shape."""

    points: list[np.ndarray]
    labels: list[np.ndarray]
    categories: torch.Tensor
    validation: torch.Tensor
    names: list[str]
    source: list[Path]


def _find_layout(root: str | Path | None, variant: str | None, split: str) -> tuple[str, Path]:
    """Layout and folder of the data."""
    if variant is not None:
        check_choice(variant, tuple(FOLDERS), "data.variant")
    if root is None:
        raise ConfigError(f"data.root is required for shapenetpart, which is not shipped. {OBTAIN}")
    base = Path(root)
    wanted = list(FOLDERS) if variant is None else [variant]
    found = [
        (layout, folder)
        for layout in wanted
        for folder in (base, *(base / name for name in FOLDERS[layout]))
        if (folder / MARKS[layout]).is_file()
    ]
    if not found:
        expected = [base / MARKS[layout] for layout in wanted]
        require_files(f"ShapeNetPart {split}", expected, expected, OBTAIN)
    if len(found) > 1:
        logger.info("ShapeNetPart: several layouts are there, reading %s; data.variant chooses another", found[0][1])
    return found[0]


def _parts_of(split: str) -> tuple[str, ...]:
    return ("train", "val") if split == "train" else ("test",)


# Text.


def _listed(folder: Path, split: str) -> list[Shape]:
    """The shapes of a split.

    Raises:
        DataError: if a list is missing or damaged, or names what is not there.
    """
    categories = _categories(folder / MARKS["text"])
    lists = {part: folder / "train_test_split" / f"shuffled_{part}_file_list.json" for part in ("train", "val", "test")}
    require_files("ShapeNetPart", [lists[part] for part in _parts_of(split)], list(lists.values()), OBTAIN)
    shapes = []
    for part in _parts_of(split):
        for number, entry in enumerate(_entries(lists[part]), 1):
            _, _, name = entry.partition("/")
            offset, _, shape = name.partition("/")
            if offset not in categories or not shape:
                raise DataError(
                    f"{lists[part]}: entry {number} is {entry!r}, expected shape_data/OFFSET/SHAPE with an offset of "
                    f"{MARKS['text']}"
                )
            shapes.append(Shape(name, folder / offset / f"{shape}.txt", categories[offset], part == "val"))
    missing = [shape.path for shape in shapes if not shape.path.is_file()]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of the {len(shapes)} listed files of {split} are missing, the first is "
            f"{missing[0]}; unpack the whole archive"
        )
    return shapes


def _categories(path: Path) -> dict[str, str]:
    """Category by offset."""
    rows = [line.split() for line in read_lines(path)]
    wrong = next((row for row in rows if len(row) != 2 or row[0] not in COUNTS), None)
    if wrong is not None:
        raise DataError(
            f"{path}: has the line '{' '.join(wrong)}', expected NAME OFFSET with one of {', '.join(COUNTS)}"
        )
    return {offset: name for name, offset in rows}


def _entries(path: Path) -> list[str]:
    what = impostor(path)
    if what is not None:
        raise DataError(f"{path}: {what}")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is no JSON ({reason_of(error)}); obtain it again") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{path}: is no list of shapes such as shape_data/02691156/1a04e3eab45ca15dd86060f189eb133")
    return entries


def parse_shape(path: Path) -> np.ndarray:
    """Rows ``x y z nx ny nz label``, (m, 7) float64, m at least 1, as they are.

    Raises:
        DataError: if there is no row, or one has other columns or what is no number.
    """
    what = impostor(path)
    if what is not None:
        raise DataError(f"{path}: {what}")
    try:
        rows = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: rows must be x y z nx ny nz label, but {reason_of(error)}") from None
    if rows.shape[1] != COLUMNS:
        raise DataError(f"{path}: rows have {rows.shape[1]} columns, expected x y z nx ny nz label")
    return rows


def _checked_shape(shape: Shape) -> tuple[np.ndarray, np.ndarray] | str:
    """Points (m, 3) float32 and labels (m,) int8; or what is wrong."""
    try:
        rows = parse_shape(shape.path)
        points = checked_cloud_points(rows[:, :3].astype(np.float32), str(shape.path))
        labels, own = rows[:, 6], numbers_of(SHAPENETPART)[shape.category]
        wrong = np.flatnonzero(~np.isin(labels, own))
        if len(wrong):
            raise DataError(
                f"{shape.path}: row {wrong[0] + 1} has label {labels[wrong[0]]:g}, expected {own[0]} to {own[-1]} of "
                f"{shape.category} ({len(wrong)} of {len(labels)} rows)"
            )
    except DataError as error:
        return str(error)
    return points, labels.astype(np.int8)


def _read_text(folder: Path, split: str, workers: int | None) -> Content:
    shapes = _listed(folder, split)
    points, labels = [], []
    for found in map_in_order(_checked_shape, shapes, BLOCK, workers):
        if isinstance(found, str):
            raise DataError(found)
        points.append(found[0])
        labels.append(found[1])
    return Content(
        points,
        labels,
        torch.tensor([list(SHAPENETPART).index(shape.category) for shape in shapes]),
        torch.tensor([shape.validation for shape in shapes]),
        [shape.name for shape in shapes],
        [folder / "train_test_split" / f"shuffled_{part}_file_list.json" for part in _parts_of(split)],
    )


# HDF5.


def _h5_files(folder: Path, split: str) -> list[tuple[Path, bool]]:
    """The files of a split, and whether each is of the validation part."""
    names = folder / "all_object_categories.txt"
    if names.is_file():
        check_classes([line.split()[0] for line in read_lines(names)], list(COUNTS), str(names))
    there = find_h5(folder)
    files = [(path, part == "val") for part in _parts_of(split) for path in there.get(part, ())]
    for part in _parts_of(split):
        listing = folder / f"{part}_hdf5_file_list.txt"
        for name in read_lines(listing) if listing.is_file() else ():
            if Path(name).name not in {path.name for path, _ in files}:
                raise DataError(f"{listing}: lists {name}, which is missing; unpack the whole archive")
    if not files:
        raise DataError(f"{folder}: no ply_data_{split}0.h5 in it; unpack the whole archive")
    return files


def _read_h5(folder: Path, split: str) -> Content:
    points, labels, categories, validation, names = [], [], [], [], []
    files = _h5_files(folder, split)
    for path, of_validation in files:
        content = read_part_arrays(path)
        category = checked_labels(content.labels, len(content.points), len(SHAPENETPART), str(path))
        pid = checked_pid(content.pid, category, SHAPENETPART, str(path)).numpy().astype(np.int8)
        for number, cloud in enumerate(content.points.astype(np.float32)):
            points.append(checked_cloud_points(cloud, f"{path}: object {number}"))
            names.append(f"{path.stem} {number}")
        labels += list(pid)
        categories.append(category)
        validation += [of_validation] * len(category)
    paths = [path for path, _ in files]
    return Content(points, labels, torch.cat(categories), torch.tensor(validation), names, paths)
