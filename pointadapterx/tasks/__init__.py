"""What is asked of a model: one task a file, registered by name; see :class:`~pointadapterx.tasks.base.Task`."""

from __future__ import annotations

from typing_extensions import TypeVar

from pointadapterx.tasks.base import TASKS, Task
from pointadapterx.tasks.classification import Classification, Prediction
from pointadapterx.tasks.detection import Detection
from pointadapterx.tasks.exchange import Answer, Facts, Sections
from pointadapterx.tasks.image_segmentation import ImageSegmentation
from pointadapterx.tasks.reconstruction import Reconstruction

__all__ = [
    "TASKS",
    "AnswerT",
    "Classification",
    "Detection",
    "Facts",
    "ImageSegmentation",
    "Reconstruction",
    "Sections",
    "Task",
    "build_task",
]

AnswerT = TypeVar("AnswerT", bound=Answer, default=Prediction, covariant=True)
"""What a predictor's adapters answer, for type checkers: a class, unless it is given as ``Predictor[Answer]``."""


def build_task(config: Sections, facts: Facts | None = None) -> Task:
    """The task of a config.

    Args:
        config: complete and checked.
        facts: of an adapter's file, or from :meth:`~pointadapterx.tasks.base.Task.learn`.
    """
    return TASKS[config.task.name](config, facts)
