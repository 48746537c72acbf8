"""Objects in pictures: what they are, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pointadapterx.datasets.images import decode
from pointadapterx.datasets.object_images import ObjectImages
from pointadapterx.datasets.outlines import runs_of
from pointadapterx.errors import ConfigError
from pointadapterx.tasks.detection_answers import with_objects
from pointadapterx.tasks.detection_heads import COLUMNS
from pointadapterx.tasks.detection_metrics import found_in
from pointadapterx.visualize.loaded_run import Subject

SURE = 0.5  # score from which on an object is drawn; the surest one always is


class Pair(NamedTuple):
    """One test picture.

    Attributes:
        truth: (H, W, 3) in [0, 1], with its objects.
        found: the same with what was found.
        counts: objects, and how many were drawn as found.
    """

    truth: np.ndarray
    found: np.ndarray
    counts: tuple[int, int]


def finds_objects(subject: Subject) -> bool:
    """Whether there is something to show."""
    return "objects" in subject.task.pictures


def pairs(subject: Subject, indices: Sequence[int]) -> list[Pair]:
    """Test pictures by number, with objects as they are and as they were found.

    Args:
        subject: of a task that finds objects.
        indices: of test samples.

    Raises:
        ConfigError: if its data set has no objects.
        DataError: if a picture cannot be read.
    """
    test = subject.test
    if not isinstance(test, ObjectImages):
        raise ConfigError(f"{subject.path}: data.name={subject.config.data.name} has no boxes of objects to show")
    return [_pair(subject, test, index) for index in indices]


def _pair(subject: Subject, test: ObjectImages, index: int) -> Pair:
    path, objects, names = test.pixels[index], test.objects, subject.info.classes
    assert isinstance(path, Path)
    pixels = decode(path, None, 3).permute(1, 2, 0).numpy()
    width, height = objects.sizes[index].tolist()
    start, end = objects.starts[index : index + 2].tolist()
    labels, outlines = objects.labels[start:end].tolist(), objects.outlines
    has_masks = subject.predictions.rows.shape[2] > COLUMNS and outlines is not None
    masks = None
    if has_masks and outlines is not None:
        masks = [runs_of(outline, width, height, str(path)) for outline in outlines[start:end]]
    truth = with_objects(pixels, objects.boxes[start:end].tolist(), labels, [names[label] for label in labels], masks)
    found = found_in(subject.predictions.rows[index], (width, height), masks=has_masks)
    count = max(int((found.scores >= SURE).sum()), min(1, len(found.scores)))
    numbers = found.labels[:count].tolist()
    texts = [f"{names[label]} {score:.2f}" for label, score in zip(numbers, found.scores[:count].tolist(), strict=True)]
    kept = None if found.masks is None else found.masks[:count]
    shown = with_objects(pixels, found.boxes[:count].tolist(), numbers, texts, kept)
    return Pair(truth / 255.0, shown / 255.0, (len(labels), count))
