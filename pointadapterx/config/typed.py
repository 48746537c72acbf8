"""The config that everything inside takes: one typed object, a section an attribute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pointadapterx.config.checks import Parts, check
from pointadapterx.config.files import Origins, plain
from pointadapterx.config.merging import merge
from pointadapterx.config.overrides import Overrides, apply_overrides
from pointadapterx.config.problems import error_of, undone
from pointadapterx.config.sections import ORDER, default_task
from pointadapterx.datasets.options import DataConfig
from pointadapterx.errors import ConfigError
from pointadapterx.models.backbone import Backbone
from pointadapterx.peft.base import Method
from pointadapterx.sections import EvalConfig, TrainConfig
from pointadapterx.tasks.exchange import TaskOptions
from pointadapterx.tasks.heads import HeadConfig
from pointadapterx.tasks.reconstruction import PretrainConfig


@dataclass(frozen=True)
class Config:
    """A complete config that was checked as a whole.

    Attributes:
        task: what the features are for.
        backbone: pre-trained network.
        method: how it is adapted; None where it is pre-trained.
        head: on top of it; None where it is pre-trained.
        pretrain: how it is pre-trained; None elsewhere.
        data: what it learns from.
        train: how.
        eval: how that is judged.
    """

    task: TaskOptions
    backbone: Backbone.Options
    method: Method.Options | None
    head: HeadConfig | None
    pretrain: PretrainConfig | None
    data: DataConfig
    train: TrainConfig
    eval: EvalConfig

    @classmethod
    def of(cls, config: Config | Mapping[str, Any], source: str = "config", overrides: Overrides = ()) -> Config:
        """The typed config of a mapping of sections; a Config without overrides is returned as it is.

        Args:
            config: as :func:`~pointadapterx.config.load_config` returned it, or as it was stored.
            source: where it comes from, for messages.
            overrides: as in :func:`~pointadapterx.config.load_config`.

        Raises:
            ConfigError: listing every problem.
        """
        if isinstance(config, Config):
            if not overrides:
                return config
            config = config.dump()
        if not isinstance(config, Mapping):
            raise ConfigError(f"{source}: a config is a mapping of sections, this is a {type(config).__name__}")
        return checked(plain(config), overrides, Origins({"": source}), source)

    def dump(self) -> dict[str, Any]:
        """Plain nested mappings, as they are stored: without a task that the other sections imply."""
        sections = {name: section.model_dump() for name in ORDER if (section := getattr(self, name)) is not None}
        if self.task == default_task(sections).Options():
            del sections["task"]
        return sections

    def replaced(self, **changes: Mapping[str, Any]) -> Config:
        """A copy with other values of some sections' keys, checked as a whole.

        Args:
            changes: section to what is merged into it, as ``train={"precision": "bf16"}``.

        Raises:
            ConfigError: listing every problem.
        """
        sections = self.dump()
        merge(sections, changes)
        return Config.of(sections)


def checked(raw: dict[str, Any], overrides: Overrides, origins: Origins, source: str) -> Config:
    """The config of nested mappings with overrides applied.

    Raises:
        ConfigError: listing every problem.
    """
    problems = apply_overrides(raw, overrides, origins)
    parts, found = check(raw)
    problems += found
    if problems:
        raise error_of([undone(problem, origins, parts) for problem in problems], origins, source)
    return _config(parts)


def _config(parts: Parts) -> Config:
    return Config(**{field.name: getattr(parts, field.name) for field in fields(parts)})
