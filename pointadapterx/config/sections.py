"""Which sections a config has, and what reads each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pointadapterx.datasets.options import DataConfig
from pointadapterx.models import BACKBONES
from pointadapterx.peft import METHODS
from pointadapterx.schema import Section
from pointadapterx.sections import EvalConfig, TrainConfig
from pointadapterx.tasks.heads import HeadConfig
from pointadapterx.tasks.reconstruction import PretrainConfig

ORDER = ("task", "backbone", "method", "head", "pretrain", "data", "train", "eval")
"""Sections in the order of a stored config."""

LOCATIONS = ("data.root", "data.cache_dir", "backbone.weights", "train.cache_folder")
"""Keys that say where files lie: what lies there counts, not where."""

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


class TaskOptions(Section):
    """``task:`` of a config."""

    name: str = ""


class Classification(TaskOptions):
    """``task:`` of classification."""

    name: Literal["classification"] = "classification"


class Reconstruction(TaskOptions):
    """``task:`` of pre-training."""

    name: Literal["reconstruction"] = "reconstruction"


class TaskKind(NamedTuple):
    """What reads the ``task`` section of one task, and the sections it needs besides those of every task."""

    options: type[TaskOptions]
    sections: tuple[str, ...]


TASKS = {
    "classification": TaskKind(Classification, ("method", "head")),
    "reconstruction": TaskKind(Reconstruction, ("pretrain",)),
}

NAMED: dict[str, dict[str, type[Section]]] = {
    "task": {name: kind.options for name, kind in TASKS.items()},
    "backbone": {name: kind.Options for name, kind in BACKBONES.items()},
    "method": {name: kind.Options for name, kind in METHODS.items()},
}
"""What reads a section whose keys depend on its ``name``."""


def default_task(sections: Mapping[str, Any]) -> TaskKind:
    """The task of a config that names none."""
    return TASKS["reconstruction" if "pretrain" in sections else "classification"]
