"""Which sections a config has, and what reads each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pointadapterx.datasets.options import DataConfig
from pointadapterx.models import BACKBONES
from pointadapterx.peft import METHODS
from pointadapterx.registry import Registry
from pointadapterx.schema import Section
from pointadapterx.sections import EvalConfig, TrainConfig
from pointadapterx.tasks import TASKS, Task
from pointadapterx.tasks.heads import HeadConfig
from pointadapterx.tasks.reconstruction import PretrainConfig

ORDER = ("task", "backbone", "method", "head", "pretrain", "data", "train", "eval")
"""Sections in the order of a stored config."""

LOCATIONS = ("data.root", "data.cache_dir", "backbone.weights", "train.cache_folder", "train.device")
"""Keys that belong to one machine: where files lie, and what computes; results do not depend on them."""

COMMON = ("backbone", "data", "train", "eval")
"""Sections of every task."""

OPTIONAL = ("task", "train", "eval")
"""Sections whose keys all have defaults."""

MODELS: dict[str, type[Section]] = {
    "head": HeadConfig,
    "pretrain": PretrainConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
}
"""What reads a section of fixed keys."""


NAMED: dict[str, Registry[Any]] = {"task": TASKS, "backbone": BACKBONES, "method": METHODS}
"""Registries of what reads a section whose keys depend on its ``name``, by its class ``Options``."""


def default_task(sections: Mapping[str, Any]) -> type[Task]:
    """The task of a config that names none."""
    return TASKS["reconstruction" if "pretrain" in sections else "classification"]
