"""``section.key=value``: what replaces single values of a config."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import yaml

from pointadapterx.config.files import Origins, plain
from pointadapterx.config.merging import merge
from pointadapterx.config.problems import Problem
from pointadapterx.errors import ConfigError, shown
from pointadapterx.yaml_text import parse_yaml

Overrides: TypeAlias = Sequence[str] | Mapping[str, Any]
"""``["train.lr=1e-3"]``, ``{"train.lr": 1e-3}`` or ``{"train": {"lr": 1e-3}}``."""


class Change(NamedTuple):
    """A value in place of another.

    Attributes:
        key: dotted.
        value: to set.
        text: as it was given, for messages.
    """

    key: str
    value: Any
    text: str


def apply_overrides(raw: dict[str, Any], overrides: Overrides, origins: Origins) -> list[Problem]:
    """Merges overrides into nested mappings; returns what is wrong with them."""
    found = [_parsed(text) for text in overrides] if not isinstance(overrides, Mapping) else list(_flat(overrides))
    # A new method or model replaces what belongs to the old one, so it comes before the keys that belong to it.
    first = (".name", "backbone.model")
    ordered = sorted(found, key=lambda change: not (isinstance(change, Change) and change.key.endswith(first)))
    problems = (change if isinstance(change, Problem) else _apply(raw, change, origins) for change in ordered)
    return [problem for problem in problems if problem is not None]


def flat(overrides: Overrides) -> dict[str, Any]:
    """Overrides by dotted key.

    Raises:
        ConfigError: for a text that is no override.
    """
    if isinstance(overrides, Mapping):
        return {change.key: change.value for change in _flat(overrides)}
    found = [_parsed(text) for text in overrides]
    problem = next((one for one in found if isinstance(one, Problem)), None)
    if problem is not None:
        raise ConfigError(": ".join(filter(None, problem)))
    return {change.key: change.value for change in found if isinstance(change, Change)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[Change]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}.")
            continue
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif isinstance(value, np.generic):
            value = value.item()
        yield Change(key, plain(value), f"{key}={value}")


def parse_value(text: str) -> Any:
    """The value of an override, which is YAML.

    Raises:
        ConfigError: if it is not.
    """
    try:
        return plain(parse_yaml(text).content)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"override value {shown(text)} is not valid YAML; quote it") from None


def _parsed(text: str) -> Change | Problem:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        return Problem("", f"override '{text}' is not of the form section.key=value")
    try:
        return Change(key, parse_value(value), text)
    except ConfigError as error:
        return Problem(key, f"{error}")


def _apply(raw: dict[str, Any], change: Change, origins: Origins) -> Problem | None:
    parts, update = change.key.split("."), change.value
    conflict = _conflict(raw, parts, update)
    if conflict is not None:
        return conflict
    for part in reversed(parts):
        update = {part: update}
    merge(raw, update)
    origins[change.key] = f"override {change.text}"
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
        way = f"set one of them, for example {key}.{next(iter(old))}=..." if old else "set one of them"
        if "name" in old and isinstance(value, str):
            way = f"write {key}.name={value}"
        return Problem(key, f"is a section with keys of its own, not {shown(value)}; {way}")
    return None
