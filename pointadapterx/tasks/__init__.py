"""What is asked of a model: one task a file, registered by name; see :class:`~pointadapterx.tasks.base.Task`."""

from __future__ import annotations

from pointadapterx.tasks.base import TASKS, Task
from pointadapterx.tasks.classification import Classification
from pointadapterx.tasks.exchange import Facts, Sections
from pointadapterx.tasks.reconstruction import Reconstruction

__all__ = ["TASKS", "Classification", "Facts", "Reconstruction", "Sections", "Task", "build_task"]


def build_task(config: Sections, facts: Facts | None = None) -> Task:
    """The task of a config.

    Args:
        config: complete and checked.
        facts: of an adapter's file, or from :meth:`~pointadapterx.tasks.base.Task.learn`.
    """
    return TASKS[config.task.name](config, facts)
