"""A plugin of pytest: stops where the tests have imported another build than the sanitized one."""

from __future__ import annotations

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """After the imports of every test."""
    from pointadapterx import extensions, ops

    if "sanitized" not in extensions.__file__ or not ops.implementation("cpu").startswith("compiled"):
        pytest.exit(f"not the sanitized build: {extensions.__file__}, {ops.implementation('cpu')}", returncode=1)
