"""A Ray cluster of two nodes on this machine, one of which can be killed and started again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pointadapterx.cluster.connection import QUIET
from tests.study.conftest import make_study, study_data  # noqa: F401

STORE = 2**27  # bytes
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""A dead node is noticed in seconds, and not in half a minute."""


class TwoNodes:
    """Two nodes of one core each, beside a head node where nothing runs."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        node: dict[str, Any] = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        node["_system_config"] = SOON
        self._cluster = Cluster(initialize_head=True, head_node_args=node)
        self._nodes = [self._added(), self._added()]
        self.address: str = self._cluster.address

    def _added(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=STORE)

    @contextmanager
    def losing_one(self, when: Callable[[], bool]) -> Iterator[None]:
        """Within it, a node is killed as soon as ``when`` holds; behind it, it is there again."""
        leaving = threading.Event()

        def kill() -> None:
            while not when():
                if leaving.wait(0.02):
                    return
            self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            yield
        finally:
            leaving.set()
            thread.join()
        assert len(self._nodes) == 1, "it was over before a node could be killed"
        self._nodes.append(self._added())

    def stop(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    before = dict(os.environ)
    os.environ.update(QUIET | {"OMP_NUM_THREADS": "1"})  # before it is imported
    pytest.importorskip("ray")
    nodes = TwoNodes()
    yield nodes
    nodes.stop()
    os.environ.clear()
    os.environ.update(before)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)
