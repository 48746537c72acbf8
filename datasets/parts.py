"""Objects of known categories with a label for each point: the part of its category that the point is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pointadapterx.datasets.base import PointClouds, Targets, Unchecked
from pointadapterx.datasets.checks import checked_labels, checked_points
from pointadapterx.datasets.hdf5 import open_h5, read_numbers, read_text
from pointadapterx.errors import DataError

Parts = Mapping[str, Sequence[str]]
"""Names of the parts of each category, all different; labels number them over all categories, in this order."""


def part_names(parts: Parts) -> list[str]:
    """What the labels mean."""
    return [name for names in parts.values() for name in names]


def numbers_of(parts: Parts) -> dict[str, range]:
    """The labels that each category's points may have."""
    found, start = {}, 0
    for category, names in parts.items():
        found[category] = range(start, start + len(names))
        start += len(names)
    return found


@dataclass(frozen=True)
class PartArrays:
    """Content of an HDF5 file in ShapeNetPart's layout, as it is.

    Attributes:
        path: of the file.
        points: (n, N, 3 or more).
        labels: (n,) or (n, 1), of the objects.
        pid: (n, N), of their points.
        names: (n,), where the file has them.
    """

    path: Path
    points: np.ndarray
    labels: np.ndarray
    pid: np.ndarray
    names: list[str] | None

    def unchecked(self, parts: Parts, *, validation: bool = False) -> Iterator[Unchecked]:
        """Each cloud for the doctor."""
        categories, own = list(parts), numbers_of(parts)
        for number, (points, label, pid) in enumerate(zip(self.points, self.labels.ravel(), self.pid, strict=True)):
            name = f"{self.path.name} {self.names[number] if self.names else number}"
            if not 0 <= label < len(categories):
                what = f"{name}: has label {label}, expected a category from 0 to {len(categories) - 1}"
                yield Unchecked(name, what, validation=validation)
                continue
            category = categories[int(label)]
            numbers = own[category]
            yield Unchecked(
                name, points[:, :3].astype(np.float64), category, validation, pid, part_names(parts), (), numbers
            )


def read_part_arrays(path: Path) -> PartArrays:
    """Reads ``data (n, N, 3)``, ``label (n,)`` or ``(n, 1)``, ``pid (n, N)`` and, if present, ``name (n,)``.

    Raises:
        DataError: if the file is not HDF5, is damaged or lacks an entry, or its entries do not fit together.
    """
    with open_h5(path) as file:
        data, label, pid = (read_numbers(file, key) for key in ("data", "label", "pid"))
        names = read_text(file, "name") if "name" in file else None
    if data.ndim != 3 or data.shape[2] < 3 or 0 in data.shape:
        raise DataError(f"{path}: 'data' has shape {data.shape}, expected (objects, points, 3)")
    if pid.shape != data.shape[:2]:
        raise DataError(
            f"{path}: 'pid' has shape {pid.shape}, expected {data.shape[:2]}: a part for each point of 'data'"
        )
    if label.size != len(data):
        raise DataError(
            f"{path}: 'label' has shape {label.shape}, expected one category for each of {len(data)} objects"
        )
    if names is not None and len(names) != len(data):
        raise DataError(f"{path}: {len(names)} entries in 'name' for {len(data)} objects")
    return PartArrays(path, data[..., :3], label, pid, names)


def checked_pid(pid: np.ndarray, labels: torch.Tensor, parts: Parts, where: str) -> torch.Tensor:
    """Labels of points (n, N) as int64, each one of its object's category.

    Args:
        pid: (n, N) whole numbers.
        labels: (n,) int64, the objects' categories.
        parts: of the categories.
        where: the file, for messages.

    Raises:
        DataError: if a label is not a whole number, or not one of the category's.
    """
    if pid.dtype.kind not in "iu":
        raise DataError(f"{where}: labels of points are {pid.dtype}, expected whole numbers")
    own = list(numbers_of(parts).values())
    low, high = (np.array([numbers[place] for numbers in own])[labels.numpy()][:, None] for place in (0, -1))
    outside = (pid < low) | (pid > high)
    if outside.any():
        cloud, point = (int(place[0]) for place in np.nonzero(outside))
        category, count = list(parts)[int(labels[cloud])], int(outside.any(axis=1).sum())
        raise DataError(
            f"{where}: point {point} of object {cloud} has label {pid[cloud, point]}, expected {low[cloud, 0]} to "
            f"{high[cloud, 0]} of the category {category} ({count} of {len(pid)} objects have such points)"
        )
    return torch.from_numpy(pid.astype(np.int64))


class PartClouds(PointClouds):
    """Objects with labelled points, all with the same number of points.

    Args:
        files: in order.
        parts: of the categories.
        split: ``"train"`` or ``"test"``.
        normalize: centre each cloud and scale it into the unit sphere.
        validation: for each file, whether its clouds are the published validation part.
        groups: (n,) int64; see :class:`~pointadapterx.datasets.base.Samples`.

    Raises:
        DataError: if they hold anything wrong.
    """

    def __init__(
        self,
        files: Sequence[PartArrays],
        parts: Parts,
        split: str,
        *,
        normalize: bool,
        validation: Sequence[bool] = (),
        groups: torch.Tensor | None = None,
    ) -> None:
        self.parts = parts
        points, labels, pids = [], [], []
        for file in files:
            where = str(file.path)
            if file.points.shape[1] != files[0].points.shape[1]:
                raise DataError(
                    f"{where}: {file.points.shape[1]} points an object, but {files[0].path.name} has "
                    f"{files[0].points.shape[1]}"
                )
            points.append(checked_points(file.points, where))
            labels.append(checked_labels(file.labels, len(file.points), len(parts), where))
            pids.append(checked_pid(file.pid, labels[-1], parts, where))
        of_validation = [
            torch.full((len(part),), flag) for part, flag in zip(points, validation, strict=bool(validation))
        ]
        named = all(file.names is not None for file in files)
        label = torch.cat(labels)
        super().__init__(
            torch.cat(points),
            label,
            list(parts),
            split,
            normalize=normalize,
            names=[name for file in files for name in file.names or ()] if named else None,
            groups=groups,
            source=[file.path for file in files],
            targets=Targets(points=torch.cat(pids), condition=label),
            point_classes=part_names(parts),
            validation=torch.cat(of_validation) if any(validation) and not all(validation) else None,
        )
