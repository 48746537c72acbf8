"""``section.key=value``: what replaces single values of a config."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pointadapterx.config.files import Origins, plain
from pointadapterx.config.merging import merge
from pointadapterx.config.problems import Problem
from pointadapterx.errors import ConfigError, shown
from pointadapterx.yaml_text import parse_yaml


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str], origins: Origins) -> list[Problem]:
    """Merges overrides into nested mappings; returns what is wrong with them."""
    # A new method replaces the old one's section, so it comes before the keys that belong to it.
    ordered = sorted(overrides, key=lambda text: not text.partition("=")[0].strip().endswith(".name"))
    return [problem for text in ordered if (problem := _override(raw, text, origins)) is not None]


def parse_value(text: str) -> Any:
    """The value of an override, which is YAML.

    Raises:
        ConfigError: if it is not.
    """
    try:
        return plain(parse_yaml(text).content)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"override value {shown(text)} is not valid YAML; quote it") from None


def _override(raw: dict[str, Any], text: str, origins: Origins) -> Problem | None:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        return Problem("", f"override '{text}' is not of the form section.key=value")
    try:
        update = parse_value(value)
    except ConfigError as error:
        return Problem(key, f"{error}")
    conflict = _conflict(raw, key.split("."), update)
    if conflict is not None:
        return conflict
    for part in reversed(key.split(".")):
        update = {part: update}
    merge(raw, update)
    origins[key] = f"override {text}"
    return None


def _conflict(raw: Mapping[str, Any], parts: Sequence[str], value: Any) -> Problem | None:
    """An override that would put one value in place of a section, or a section in place of one value."""
    old: Any = raw
    for depth, part in enumerate(parts):
        if old is None:
            return None
        if not isinstance(old, Mapping):
            key = ".".join(parts[:depth])
            return Problem(
                key, f"is {shown(old)}, which has no keys, but an override sets {'.'.join(parts)}; remove one"
            )
        old = old.get(part)
    nullable = len(parts) > 1  # as data.few_shot
    if isinstance(old, Mapping) and not isinstance(value, Mapping) and not (value is None and nullable):
        key = ".".join(parts)
        example = f", for example {key}.{next(iter(old))}=..." if old else ""
        return Problem(key, f"is a section with keys of its own, not {shown(value)}; set one of them{example}")
    return None
