"""A Ray cluster: the one at an address, or one of this machine that lasts as long as the command."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

from pointadapterx.datasets.workers import available_cores
from pointadapterx.errors import ConfigError, reason_of
from pointadapterx.optional import need
from pointadapterx.text import counted

log = logging.getLogger(__name__)

MOST_LOST = 10  # times that a task is started again because its node died
PATIENCE = 5  # seconds in which an address has to take a connection; Ray itself would try for five minutes
STORE = 2**28  # bytes of a local cluster's object store, which holds the adapters
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # a cluster of ours reports nothing to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or Ray warns that it will be
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # pages of Ray's own log on standard output, when a node dies
    "RAY_task_oom_retries": str(MOST_LOST),  # Ray would try for ever what is too large for its node
}
"""Variables of Ray, unless the environment has them."""


def ray() -> Any:
    """Ray, which takes half a second to import, and whose types depend on its version.

    Raises:
        ConfigError: if it is not installed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    return need("ray", "--engine ray needs ray", "ray", ConfigError)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Context manager: within it, tasks go to a cluster.

    Args:
        address: ``host:port`` of its head node, or ``auto`` for the one that runs on this machine; None: what the
            environment variable ``RAY_ADDRESS`` says, or else a cluster of this machine alone, which is started and
            stopped.

    Raises:
        ConfigError: if Ray is not installed, or there is no such cluster.
    """
    ray()
    logging.getLogger("ray").setLevel(logging.ERROR)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address == "local":
            ray().init("local", num_cpus=available_cores(), include_dashboard=False, object_store_memory=STORE, **quiet)
        else:
            if address != "auto":
                _require_reachable(address)
            ray().init(address, **quiet)
    except Exception as error:  # Ray raises many types, the bare one among them
        ray().shutdown()
        raise ConfigError(f"--address {address}: no cluster to work with ({reason_of(error)})") from None
    try:
        found = nodes()
        cores = sum(int(node.get("CPU", 0)) for node in found)
        if not cores:
            raise ConfigError(f"--address {address}: no node of the cluster has CPUs; add one with 'ray start'")
        log.info("a cluster of %s with %s", counted(len(found), "node"), counted(cores, "CPU"))
        yield
    finally:
        ray().shutdown()


def _require_reachable(address: str) -> None:
    """Refuses an address where nothing listens.

    Raises:
        ConfigError: naming it.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--address {address}: give HOST:PORT of the cluster's head node, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--address {address}: cannot be reached ({reason_of(error)}); 'ray start --head' on the head node prints "
            "the address"
        ) from None


def nodes() -> list[dict[str, float]]:
    """What each node that is alive offers, for example ``{"CPU": 8.0, "GPU": 1.0}``."""
    return [node["Resources"] for node in ray().nodes() if node["Alive"]]


def share(at_a_time: int) -> dict[str, float]:
    """What each of several tasks at a time may take, as arguments of ``ray.remote``.

    That is as many CPUs as leave a place for all of them, at least one, and of the GPUs, if there are some, a whole
    one, or the same part of one.

    Raises:
        ConfigError: if no node has both.
    """
    found = nodes()
    gpus = sum(node.get("GPU", 0) for node in found)
    part = 1 / ceil(at_a_time / gpus) if gpus else 0
    # Cores, and tasks for which there are GPUs, of each node that can have some.
    room = [(int(node.get("CPU", 0)), round(node.get("GPU", 0) / part) if part else at_a_time) for node in found]
    room = [(cores, tasks) for cores, tasks in room if cores and tasks]
    if not room:
        raise ConfigError("--engine ray: no node of the cluster has both CPUs and GPUs; add one, or hide the GPUs")
    most = max(cores for cores, _ in room)
    wanted = min(at_a_time, sum(min(cores, tasks) for cores, tasks in room))
    fits = (n for n in range(most, 1, -1) if sum(min(cores // n, tasks) for cores, tasks in room) >= wanted)
    return {"num_cpus": next(fits, 1), "num_gpus": part}


def takes_gpus(device: Any, found: Sequence[Mapping[str, float]]) -> bool:
    """Whether each process that predicts takes a GPU of these nodes, where it may have a certain ``--device``."""
    return (device is None or "cuda" in str(device)) and any(node.get("GPU") for node in found)
