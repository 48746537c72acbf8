"""YAML files of configs: found, read with their ``_base_`` includes, and merged."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pointadapterx.config.merging import merge
from pointadapterx.errors import ConfigError, shown
from pointadapterx.registry import did_you_mean
from pointadapterx.yaml_text import MOST_CHARACTERS, parse_yaml

SHIPPED = Path(str(importlib.resources.files("pointadapterx.cfgs")))
"""Folder of the shipped configs: the checkout's, or an installed package's own copy."""

MOST_FILES = 100
"""Files of a config, of which each may include several."""


class Origins(dict[str, str]):
    """Where each dotted key was set: ``file:line`` or ``override``; and how many files were read."""

    files = 0

    def of(self, key: str) -> str:
        """Origin of the key, or of the nearest section around it.

        Of a key that is set nowhere, a section of an included file is not the origin: what is missing belongs to the
        file that was asked for.
        """
        named = self.get("", "config")
        while key:
            if key in self:
                inner = any(other.startswith(f"{key}.") for other in self)
                return named if inner and self[key].rpartition(":")[0] not in (named, "") else self[key]
            key = key.rpartition(".")[0]
        return named


class Document(NamedTuple):
    """A YAML file of another kind than a run's config: where it lies, its merged content, and who set each key."""

    path: Path
    content: dict[str, Any]
    origin: Callable[[str], str]


def read_document(path: str | Path) -> Document:
    """Reads a YAML file with ``_base_`` includes, found and merged as :func:`load_config` does, but not checked.

    Args:
        path: YAML file, or the name of a shipped one.

    Returns:
        The document; its ``origin`` tells file and line of a dotted key.

    Raises:
        ConfigError: if the file is missing, not YAML, or sets a key twice.
    """
    origins, found = Origins(), find(path)
    return Document(found, read_file(found, origins), origins.of)


def find(path: str | Path) -> Path:
    """The file that is meant, which may be a shipped one.

    Raises:
        ConfigError: if there is no such file.
    """
    path = Path(path)
    for candidate in (path, *_shipped(path)):
        if candidate.is_file():
            return candidate
    known = sorted(p.relative_to(SHIPPED).with_suffix("").as_posix() for p in SHIPPED.rglob("*.yaml"))
    known = [name for name in known if not name.startswith("base/")]  # parts of configs
    name = path.relative_to("cfgs") if path.parts[:1] == ("cfgs",) else path
    near = did_you_mean(name.as_posix().removesuffix(".yaml"), known, path.stem)
    raise ConfigError(f"{path}: no such config{near} Shipped: {', '.join(known)} (in {SHIPPED})")


def _shipped(path: Path) -> tuple[Path, Path]:
    """Where a shipped config of that name would be, with its suffix or without."""
    shipped = SHIPPED / Path(*path.parts[1:] if path.parts[:1] == ("cfgs",) else path.parts)
    return shipped, shipped.parent / f"{shipped.name}.yaml"


def read_file(path: Path, origins: Origins, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The merged content of a YAML file and of those that it includes.

    Args:
        path: the file.
        origins: gets where each key was set.
        chain: the files that led here.

    Raises:
        ConfigError: if a file is missing, not YAML, or sets a key twice.
    """
    path = path.resolve()
    origins.files += 1
    if origins.files > MOST_FILES:
        raise ConfigError(f"{path}: _base_ leads to more than {MOST_FILES} files; include each once")
    if path in chain:
        raise ConfigError(f"{path}: _base_ includes itself: {' -> '.join(p.name for p in (*chain, path))}")
    try:
        parsed = parse_yaml(_text(path))
        content, node = plain(parsed.content), parsed.node
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError) as error:  # PyYAML passes on the ValueError of an impossible date
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({_reason(error)})") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, this is a {type(content).__name__}")

    bases = content.pop("_base_", [])
    if not isinstance(bases, (str, list)) or (isinstance(bases, list) and not all(isinstance(b, str) for b in bases)):
        raise ConfigError(f"{path}: _base_ must be a file name or a list of them, not {shown(bases)}")
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        target = next((one for one in (path.parent / base, *_shipped(Path(base))) if one.is_file()), None)
        if target is None:
            missing = f"{path.parent / base} does not exist, and no shipped config is called that"
            raise ConfigError(f"{path}: _base_ names {base}, but {missing}")
        merge(merged, read_file(target, origins, (*chain, path)))
    if node is not None:
        for key, number in _lines(node, path):
            origins[key] = f"{path}:{number}"
    origins[""] = str(path)
    merge(merged, content)
    return merged


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > 4 * MOST_CHARACTERS:  # bytes of a character
        raise ValueError(f"{size:,} bytes, of at most {4 * MOST_CHARACTERS:,}")
    return path.read_text(encoding="utf-8")


def _lines(node: yaml.Node, path: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(dotted key, line) of every key; a key given twice in one mapping is an error, not silently the last."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = f"{prefix}{key_node.value}"
        if key in seen:
            raise ConfigError(f"{path}:{line}: {key} is set twice, first in line {seen[key]}; remove one")
        seen[key] = line
        yield key, line
        yield from _lines(value_node, path, f"{key}.")


def plain(value: Any) -> Any:
    """Mappings and sequences of any kind as dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value
