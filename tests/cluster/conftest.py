"""A Ray cluster of two nodes on this machine, one of which can be killed and started again."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from benchmarks.cluster import Nodes
from pointadapterx.cluster.connection import QUIET
from tests.study.conftest import make_study, study_data  # noqa: F401

SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""A dead node is noticed in seconds, and not in half a minute."""

os.environ.update(QUIET)  # before anything imports Ray


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Nodes]:
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = "1"
    pytest.importorskip("ray")
    nodes = Nodes(1, _system_config=SOON)
    yield nodes
    nodes.stop()
    os.environ.clear()
    os.environ.update(before)
