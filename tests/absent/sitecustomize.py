"""Makes packages named in POINTADAPTERX_ABSENT look as if they were not installed; Python imports this by itself."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import MethodType
from typing import Any

_ABSENT = frozenset(filter(None, os.environ.get("POINTADAPTERX_ABSENT", "").split(",")))
_found = PathFinder.find_spec
_from_name = importlib.metadata.Distribution.from_name


def _find_spec(
    _: type[PathFinder], name: str, path: Sequence[str] | None = None, target: Any = None
) -> ModuleSpec | None:
    return None if name.partition(".")[0] in _ABSENT else _found(name, path, target)


def _distribution(name: str) -> importlib.metadata.Distribution:
    if name in _ABSENT:
        raise importlib.metadata.PackageNotFoundError(name)
    return _from_name(name)


if _ABSENT:
    PathFinder.find_spec = MethodType(_find_spec, PathFinder)  # type: ignore[method-assign, assignment]
    importlib.metadata.Distribution.from_name = _distribution  # type: ignore[method-assign, assignment]
