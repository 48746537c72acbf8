"""The tasks that label points, each with a small config for any method, for tests that take all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pointadapterx.config import Config
from pointadapterx.datasets.inputs import Batch
from pointadapterx.tasks.base import Task
from tests.parts import parts_config
from tests.rooms import rooms_config

DENSE: dict[str, Callable[..., Config]] = {
    "part_segmentation": parts_config,
    "semantic_segmentation": rooms_config,
}
"""Names of tasks to functions of a method's name and changes of sections by keyword."""


def dense_batch(task: Task, seed: int = 3, clouds: int = 6, points: int = 128) -> Batch:
    """Random clouds with random labels of their points, -1 among them, as the task's model takes them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(clouds, points, 3, generator=generator)
    labels = torch.randint(-1, len(task.point_classes), (clouds, points), generator=generator)
    blank = task.blank_targets(inputs)
    condition = None if blank.condition is None else torch.arange(clouds) % len(task.categories)
    return Batch(inputs, blank._replace(points=labels, condition=condition))
