"""Small data on disk and small runs on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pointadapterx.config import Config, dump_config
from tests.conftest import small_config
from tests.synthetic import write_ldraw20


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LDraw-20-like set: 80 training and 40 test clouds of 256 points."""
    root = tmp_path_factory.mktemp("ldraw20")
    write_ldraw20(root, train_per_class=4, test_per_class=2, num_points=256)
    return root


@pytest.fixture
def run_config(small_data: Path) -> Callable[..., Config]:
    """``run_config(method, section={...})``: a small config on the small data."""

    def make(name: str = "dapt_x", /, **changes: dict[str, Any]) -> dict[str, Any]:
        changes["data"] = {"root": str(small_data), **changes.get("data", {})}
        return small_config(name, **changes)

    return make


@pytest.fixture
def config_file(run_config: Callable[..., Config], tmp_path: Path) -> Callable[..., Path]:
    """Like ``run_config``, written to a file for the command line."""

    def write(name: str = "dapt_x", /, **changes: dict[str, Any]) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump_config(run_config(name, **changes)))
        return path

    return write
