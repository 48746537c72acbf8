"""Configs: YAML with ``_base_`` includes and ``a.b=c`` overrides, checked before anything is built.

Every problem of a config is found and reported at once, each with the file and line that set the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from easydict import EasyDict

from pointadapterx.config.files import MOST_FILES, SHIPPED, Document, Origins, find, plain, read_document, read_file
from pointadapterx.config.overrides import Overrides, parse_value
from pointadapterx.config.problems import MOST_LINES
from pointadapterx.config.sections import LOCATIONS, ORDER
from pointadapterx.config.typed import Config, checked

__all__ = [
    "LOCATIONS",
    "MOST_FILES",
    "MOST_LINES",
    "ORDER",
    "SHIPPED",
    "Config",
    "Document",
    "Overrides",
    "dump_config",
    "load_config",
    "parse_value",
    "read_config",
    "read_document",
]


def load_config(path: str | Path, overrides: Overrides = ()) -> EasyDict:
    """Reads, merges, overrides and checks a config.

    Args:
        path: YAML file; ``demo`` or ``cfgs/demo.yaml`` also finds a shipped config. ``_base_: other.yaml``
            (or a list), relative to the file or a shipped name, is read first and overridden by what follows. A
            ``method`` with another ``name`` than its base replaces the base's, whose keys belong to another method,
            and so do the pools of its prompts in ``head.pools``.
        overrides: ``["train.lr=1e-3"]``, whose values are YAML; or ``{"train.lr": 1e-3}``, or
            ``{"train": {"lr": 1e-3}}``.

    Returns:
        The complete config, every default filled in; ``config.train.lr`` and ``config["train"]["lr"]`` are the same.

    Raises:
        ConfigError: listing every problem, each with file, line, key and the way out.
    """
    return EasyDict(read_config(path, overrides).dump())


def read_config(path: str | Path, overrides: Overrides = ()) -> Config:
    """The typed config of a file, see :func:`load_config`.

    Raises:
        ConfigError: listing every problem, each with file, line, key and the way out.
    """
    origins = Origins()
    return checked(read_file(find(path), origins), overrides, origins, str(path))


def dump_config(config: Config | Mapping[str, Any]) -> str:
    """The config as YAML that :func:`load_config` reads back to an equal config."""
    content = config.dump() if isinstance(config, Config) else plain(config)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
