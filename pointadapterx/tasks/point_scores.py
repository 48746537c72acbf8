"""Predicted labels of points beside those that their files carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pointadapterx.datasets.formats.label_field import LabelField
from pointadapterx.datasets.labelled_clouds import LabelledCloud, read_labelled
from pointadapterx.datasets.point_files import Reading
from pointadapterx.datasets.ragged import IGNORED
from pointadapterx.errors import DataError
from pointadapterx.tasks.point_labels import PointLabels

if TYPE_CHECKING:
    from pointadapterx.tasks.point_segmentation import PointSegmentation

NO_LABEL = (-1,)  # of data.ignored_labels, where it is null


@dataclass(frozen=True)
class Measured:
    """How far labels agree.

    Attributes:
        points: with a label in the file.
        miou: mean of TP / (TP + FP + FN) over the classes that are there or were found, in %.
        accuracy: share of the points that are right, in %.
        classes: IoU of each of these classes in %.
    """

    points: int
    miou: float
    accuracy: float
    classes: Mapping[str, float]

    def text(self) -> str:
        """In a line."""
        return f"mIoU {self.miou:.1f} %, {self.accuracy:.1f} % of {self.points:,} labelled points are right"

    def cells(self) -> list[str]:
        """Under :attr:`Scored.columns`."""
        return [str(self.points), f"{self.miou:.4f}", f"{self.accuracy:.4f}"]


@dataclass(frozen=True)
class Scored:
    """An answer with what the labels of its file say of it.

    Attributes:
        answer: of the task.
        measured: beside the labels of the file; None where these cannot be compared.
    """

    answer: PointLabels
    measured: Measured | None
    columns = ("labelled_points", "miou_on_labels", "accuracy_on_labels")

    @property
    def name(self) -> str:
        """Of the input."""
        return self.answer.name

    @property
    def adapter(self) -> str:
        """Its name."""
        return self.answer.adapter

    @property
    def warnings(self) -> list[str]:
        """Those of the answer."""
        return self.answer.warnings

    def text(self) -> str:
        """The answer, and how far it is right."""
        said = "" if self.measured is None else f"; on labels in the file: {self.measured.text()}"
        return f"{self.answer.text()}{said}"

    def cells(self, top: int) -> list[str]:
        """Of the answer, then :attr:`columns`."""
        return [
            *self.answer.cells(top),
            *([""] * len(self.columns) if self.measured is None else self.measured.cells()),
        ]

    def content(self) -> dict[str, Any]:
        """Of the answer, with ``on_labels``."""
        found = self.measured
        said = None if found is None else {"points": found.points, "miou": found.miou, "accuracy": found.accuracy}
        return self.answer.content() | {"on_labels": said}


class FileScores:
    """Compares answers with the labels in their files, and counts them all together.

    A label is a class by its name where the file has names, and otherwise by its number, which is that of the training
    files. ``data.ignored_labels`` of the adapter mean that a point has no class.

    Args:
        task: of an adapter.
        field: name or number of the field with the labels; None: as the adapter's training files had it.
        reading: how the files are read for predictions.
    """

    def __init__(self, task: PointSegmentation, field: str | int | None, reading: Reading) -> None:
        data = task.config.data
        self.task, self.reading = task, reading
        values = task.facts.values or range(len(task.point_classes))
        words = tuple(zip(task.point_classes, values, strict=True))
        self.field = LabelField(data.label_field if field is None else field, words, "the adapter")
        self.ignored = NO_LABEL if data.ignored_labels is None else tuple(data.ignored_labels)
        self._sums = torch.zeros(3 * len(task.point_classes), dtype=torch.float64)
        self._files = 0

    def scored(self, answer: PointLabels) -> Scored:
        """The answer with its scores.

        Raises:
            DataError: if the file has no labels, or some that the adapter does not know.
        """
        path = Path(answer.name)
        if "#" in answer.name and not path.exists():
            raise DataError(f"{answer.name}: clouds of a file of several cannot be scored; write one cloud to a file")
        cloud = read_labelled(path, self.field, self.reading)
        has_point = answer.labels != IGNORED
        if not np.array_equal(cloud.points, answer.points[has_point]):
            raise DataError(f"{answer.name}: its labels are not those of the points that were predicted")
        truth = torch.from_numpy(self._classes_of(cloud, answer.name))
        if not bool((truth != IGNORED).any()):
            raise DataError(f"{answer.name}: none of its points has a label to compare with")
        found = torch.from_numpy(answer.labels[has_point])
        row = self.task.counts(found[None], truth[None])[0]
        self._sums += row
        self._files += 1
        return Scored(answer, self._measured(row))

    def counts(self) -> list[float]:
        """What all files so far add up to, for :meth:`add` of another."""
        return [self._files, *self._sums.tolist()]

    def add(self, counts: Sequence[float]) -> None:
        """Counts the files of another, as its :meth:`counts` gives them."""
        files, *sums = counts
        self._files += int(files)
        self._sums += torch.tensor(sums, dtype=torch.float64)

    def _classes_of(self, cloud: LabelledCloud, name: str) -> np.ndarray:
        """(m,) int64, the class of each label of a file."""
        classes, values = self.task.point_classes, self.task.facts.values
        by_name = {text: number for number, text in enumerate(classes)}
        by_value = {value: number for number, value in enumerate(values or range(len(classes)))}
        own, places = np.unique(cloud.labels, return_inverse=True)
        known = np.full(len(own), IGNORED, dtype=np.int64)
        for place, value in enumerate(own.tolist()):
            if value in self.ignored:
                continue
            text = cloud.names.get(value)
            number = by_value.get(value) if text is None else by_name.get(text)
            if number is None:
                said = value if text is None else f"{value} ({text})"
                raise DataError(
                    f"{name}: has the label {said}, which is no class of the adapter ({_listed(classes)}); choose "
                    "another --label-field, or correct the labels"
                )
            known[place] = number
        return known[places.reshape(-1)]

    def _measured(self, row: Tensor) -> Measured:
        both, either, truth = row.chunk(3)
        iou = 100.0 * both / either.clamp_min(1)
        there = (either > 0).nonzero().flatten().tolist()
        classes = {self.task.point_classes[k]: float(iou[k]) for k in there}
        points = int(truth.sum())
        return Measured(points, sum(classes.values()) / max(1, len(there)), 100.0 * float(both.sum()) / points, classes)

    def lines(self) -> list[str]:
        """Of all files together, whose points are counted as one cloud; empty before any was scored."""
        if not self._files:
            return []
        found = self._measured(self._sums)
        files = "1 file" if self._files == 1 else f"{self._files:,} files"
        return [
            f"on labels in {files}: {found.text()}",
            f"IoU % by class: {', '.join(f'{name} {value:.1f}' for name, value in found.classes.items())}",
        ]


def _listed(classes: Sequence[str]) -> str:
    return f"{', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
