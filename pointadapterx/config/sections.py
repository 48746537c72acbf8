"""Which sections a config has, and what reads each of them."""

from __future__ import annotations

from collections.abc import Mapping

from pointadapterx.adapting import hf_backbone, timm_backbone  # noqa: F401 - they register themselves
from pointadapterx.datasets.options import DataConfig
from pointadapterx.models import BACKBONES, Backbone
from pointadapterx.peft import METHODS, Method
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

Named = type[Task] | type[Backbone] | type[Method]

NAMED: dict[str, Mapping[str, Named]] = {"task": TASKS, "backbone": BACKBONES, "method": METHODS}
"""Registries of what reads a section whose keys depend on its ``name``, by its class ``Options``."""

USUAL_TASK = TASKS["classification"]
"""The task of a config that neither names one nor has a section that belongs to another."""


def own_sections(task: type[Task]) -> list[str]:
    """Sections that tell a task from the usual one."""
    return [section for section in task.sections if section not in USUAL_TASK.sections]


def default_task(sections: Mapping[str, object]) -> type[Task]:
    """The task of a config that names none."""
    return next((kind for kind in TASKS.values() if any(s in sections for s in own_sections(kind))), USUAL_TASK)
