"""Makes packages named in POINTADAPTERX_ABSENT look as if they were not installed; Python imports this by itself."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Any

_ABSENT = frozenset(filter(None, os.environ.get("POINTADAPTERX_ABSENT", "").split(",")))
_from_name = importlib.metadata.Distribution.from_name


class _Absent:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        package = name.partition(".")[0]
        if package in _ABSENT:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def _distribution(name: str) -> importlib.metadata.Distribution:
    if name in _ABSENT:
        raise importlib.metadata.PackageNotFoundError(name)
    return _from_name(name)


if _ABSENT:
    sys.meta_path.insert(0, _Absent)
    importlib.metadata.Distribution.from_name = _distribution  # type: ignore[method-assign, assignment]
