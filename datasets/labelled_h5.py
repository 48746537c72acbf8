"""Labelled HDF5 files with their own classes, the usual form of data sets in this field."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from pointadapterx.datasets.base import AXES, DATASETS, UNLABELLED, PointClouds, check_choice, check_split
from pointadapterx.datasets.checks import MOST_COLUMNS, check_classes, checked_labels
from pointadapterx.datasets.h5 import EXPECTED, find_h5, own_clouds
from pointadapterx.datasets.hdf5 import find_array, open_h5, read_numbers, read_text, read_text_attribute
from pointadapterx.datasets.layouts import VAL_AS_TEST, held_out_text, hold_out, parts_of_split
from pointadapterx.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

SHOWN = 5  # classes or labels that a message lists


@DATASETS.register("h5")
class LabelledH5(PointClouds):
    """One's own or another's clouds in HDF5: ``data (n, N, 3 or more)``, of which x, y, z are read, ``label (n,)``.

    ``classes``, an attribute or a data set of names, tells the classes; without it they are ``class_0``, ``class_1``
    and so on. ``name (n,)`` and ``group (n,)``, numbers or texts, may be there: clouds of one group stay on one side of
    a validation split, and of a test split that is cut here. Everything else in the files is ignored.

    ``root`` is a folder of ``train.h5`` and ``test.h5``, where each may be several (``train0.h5``, ``train1.h5``, ...,
    also called ``ply_data_train0.h5``), in the order of their numbers. Clouds of a ``val.h5`` are the validation part
    of the training split; without ``test.h5`` they are the test split. Where there is ``train.h5`` alone, or ``root``
    is a single file, 20 % of each class are held out for the test.

    Args:
        split: ``"train"`` or ``"test"``.
        root: see above.
        variant: not supported here; a name is an error.
        normalize: centre and scale into the unit sphere. Off, clouds keep the units and place of their files.
        up: axis of the files that points up, as of :class:`~pointadapterx.datasets.folder.Folder`.
        labels: False reads all clouds of the training files without labels, for pre-training.

    Raises:
        ConfigError: for a missing root, an unknown split or a variant.
        DataError: if files are missing, damaged, or do not fit together.
    """

    labels_optional = True

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        variant: str | None = None,
        normalize: bool = True,
        up: str = "y",
        labels: bool = True,
    ) -> None:
        check_split(split)
        if variant is not None:
            raise ConfigError(f"data.variant '{variant}': h5 has no variants; remove data.variant")
        check_choice(up, AXES, "data.up")
        base = _required(root)
        files = find_h5(base)
        used = (parts_of_split(split, files) or ("train",)) if labels else ("train",)
        paths = [path for part in used for path in files[part]]
        classes = read_classes(files) if labels else UNLABELLED
        content = _joined([_read(path, len(classes) if labels else None, normalize) for path in paths], paths)
        validation = None
        if used == ("val",):
            logger.warning("%s", VAL_AS_TEST.format(root=base))
        if used == ("train", "val"):
            validation = content.file >= len(files["train"])
        chosen = torch.arange(len(content.labels))
        if labels and not parts_of_split("test", files):
            held_out = hold_out(content.labels.tolist(), [str(number) for number in chosen.tolist()], content.groups)
            if split == "test":
                logger.warning("%s", held_out_text(base, held_out))
            chosen = torch.from_numpy(np.flatnonzero(held_out == (split == "test")))
        if labels and split == "train":
            _say_missing(content.labels[chosen], classes, base)
        points = content.points if len(chosen) == len(content.points) else content.points[chosen]
        super().__init__(
            points.roll(1 - AXES.index(up), dims=2),  # cyclic: a rotation that mirrors nothing
            content.labels[chosen],
            classes,
            split,
            names=None if content.names is None else [content.names[number] for number in chosen.tolist()],
            groups=None if content.groups is None else _numbered(content.groups)[chosen],
            source=paths,
            normalize=normalize,
            positions=chosen,
            validation=validation,
        )

    @classmethod
    def classes_in(cls, root: str | Path | None) -> int:
        """Those that the files name, or else those of the labels."""
        return len(read_classes(find_h5(_required(root))))


@dataclass(frozen=True)
class _Content:
    """Clouds of some files.

    Attributes:
        points: (n, N, 3) float32.
        labels: (n,) int64.
        names: n names, or None.
        groups: n groups, or None.
        file: (n,) int64, which of the files each is of.
    """

    points: torch.Tensor
    labels: torch.Tensor
    names: list[str] | None
    groups: list[str] | None
    file: torch.Tensor


def _required(root: str | Path | None) -> Path:
    if root is None:
        raise ConfigError(f"data.root is required for data.name=h5: a folder with {EXPECTED}, or one such file")
    return Path(root)


def read_classes(files: Mapping[str, Sequence[Path]]) -> list[str]:
    """Names of the classes, from the first file that has some; else ``class_0`` and so on for the labels of training.

    Raises:
        DataError: if files name other classes, or labels without names leave some out.
    """
    source, classes = None, list[str]()
    for path in (path for part in files.values() for path in part):
        names = _named_classes(path)
        if names is None:
            continue
        if source is None:
            source, classes = path, names
        check_classes(names, classes, f"{path}: 'classes', as against {source.name}")
    if source is not None:
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise DataError(f"{source}: 'classes' are {', '.join(classes) or 'none'}; at least 2 are needed, each once")
        return classes
    where = files["train"][0]
    labels = np.unique(np.concatenate([_labels(path) for path in files["train"]]))
    if labels[0] != 0 or labels[-1] != len(labels) - 1 or len(labels) < 2:
        listed = ", ".join(map(str, labels[:SHOWN].tolist())) + ", ..." * (len(labels) > SHOWN)
        raise DataError(
            f"{where}: the labels are {listed}, expected at least two, numbered from 0 without a gap; number them so, "
            "or name all classes in the attribute 'classes'"
        )
    return [f"class_{number}" for number in range(len(labels))]


def _named_classes(path: Path) -> list[str] | None:
    with open_h5(path) as file:
        if "classes" in file.attrs:
            return read_text_attribute(file, "classes")
        return read_text(file, "classes") if "classes" in file else None


def _labels(path: Path) -> np.ndarray:
    with open_h5(path) as file:
        labels = read_numbers(file, "label")
    if labels.dtype.kind not in "iu" or labels.size == 0:
        raise DataError(f"{path}: 'label' holds {labels.size} values {labels.dtype}, expected whole numbers")
    return labels.reshape(-1).astype(np.int64)


def _read(path: Path, num_classes: int | None, centre: bool) -> _Content:
    """One file; without a number of classes its labels are not looked at, and every label is 0."""
    with open_h5(path) as file:
        shape = find_array(file, "data").shape
        if len(shape) != 3 or not 3 <= shape[2] <= MOST_COLUMNS:
            raise DataError(
                f"{path}: 'data' has shape {shape}, expected (clouds, points, 3), or up to {MOST_COLUMNS} columns that "
                "begin with x, y, z"
            )
        data = read_numbers(file, "data", columns=3)
        label = None if num_classes is None else read_numbers(file, "label")
        names = read_text(file, "name") if "name" in file else None
        groups = _groups(file)
    if shape[2] > 3:
        logger.info("%s: the first 3 of its %d columns are read, as x, y, z", path, shape[2])
    points = own_clouds(data, centre, path)
    for key, values in (("name", names), ("group", groups)):
        if values is not None and len(values) != len(points):
            raise DataError(f"{path}: {len(values)} entries in '{key}' for {len(points)} clouds")
    labels = torch.zeros(len(points), dtype=torch.int64)
    if label is not None and num_classes is not None:
        labels = checked_labels(label, len(points), num_classes, str(path))
    return _Content(points, labels, names, groups, torch.zeros(len(points), dtype=torch.int64))


def _groups(file: h5py.File) -> list[str] | None:
    """The group of each cloud, or None where the file has none."""
    if "group" not in file:
        return None
    if find_array(file, "group").dtype.kind not in "iu":
        return read_text(file, "group")
    return [str(number) for number in read_numbers(file, "group").reshape(-1).tolist()]


def _joined(parts: Sequence[_Content], paths: Sequence[Path]) -> _Content:
    for path, part in zip(paths, parts, strict=True):
        for what, value, first in (
            ("points a cloud", part.points.shape[1], parts[0].points.shape[1]),
            ("'name'", part.names is not None, parts[0].names is not None),
            ("'group'", part.groups is not None, parts[0].groups is not None),
        ):
            if value != first:
                raise DataError(f"{path}: {what}: {value}, but {paths[0].name} has {first}; write both alike")
    names = [part.names for part in parts if part.names is not None]
    groups = [part.groups for part in parts if part.groups is not None]
    return _Content(
        torch.cat([part.points for part in parts]),
        torch.cat([part.labels for part in parts]),
        [name for part in names for name in part] if names else None,
        list(_own_groups(groups)) if groups else None,
        torch.cat([part.file + number for number, part in enumerate(parts)]),
    )


def _own_groups(groups: Sequence[Sequence[str]]) -> Iterator[str]:
    """An empty text is of no group, so that its cloud is one of its own."""
    for number, group in enumerate(group for part in groups for group in part):
        yield group or f"cloud {number}"


def _numbered(groups: Sequence[str]) -> torch.Tensor:
    """(n,) int64, equal for equal groups."""
    return torch.from_numpy(np.unique(groups, return_inverse=True)[1].astype(np.int64))


def _say_missing(labels: torch.Tensor, classes: Sequence[str], where: Path) -> None:
    there = set(labels.tolist())
    missing = [name for number, name in enumerate(classes) if number not in there]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        logger.warning("%s: no training cloud of %s%s", where, ", ".join(missing[:SHOWN]), more)
