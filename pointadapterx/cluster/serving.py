"""Adapters over HTTP by Ray Serve: replicas on a cluster's nodes, each of them all of :mod:`pointadapterx.serving`.

Any replica answers for any adapter, and loads it then. A request whose header :data:`MODEL_HEADER` names the adapter
goes to a replica that has it already, where there is one (model multiplexing).
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from pointadapterx.checkpoints.adapter_file import read_adapter
from pointadapterx.cluster.connection import connected, nodes, ray, takes_gpus
from pointadapterx.cluster.place import Place as Shared
from pointadapterx.engine.signals import stop_requests
from pointadapterx.errors import ConfigError, reason_of
from pointadapterx.serving.app import build_app
from pointadapterx.serving.limits import Limits
from pointadapterx.serving.served import Answering
from pointadapterx.serving.server import Place
from pointadapterx.serving.service import Service
from pointadapterx.text import counted

MODEL_HEADER = "serve_multiplexed_model_id"
"""Ray Serve's header with the name of an adapter."""
NAME, PREDICT = "pointadapterx", "/predict"
WAIT_SECONDS = 0.2


def ray_serve() -> Any:
    """Ray Serve.

    Raises:
        ConfigError: if it, or a package that it needs, is not installed.
    """
    ray()
    try:
        return importlib.import_module("ray.serve")
    except ImportError as error:
        raise ConfigError(
            f"serve --engine ray needs Ray Serve, which cannot be imported ({reason_of(error)}); pip install "
            "'ray[serve]' (the extra ray_serve)"
        ) from None


class Replica:
    """An ASGI app with a service, which is made with the first request, in the loop of the replica.

    Args:
        sources: adapters by name.
        folder: whose adapters can be asked for, too.
        answering: how all answer.
        limits: of what one replica takes on.
        place: whose token and names hold.
    """

    def __init__(
        self, sources: Mapping[str, str], folder: Path | None, answering: Answering, limits: Limits, place: Place
    ) -> None:
        self._service_of = lambda: Service(sources, folder, answering, limits)
        self._place = place
        self._app: ASGIApp | None = None
        self._starting = asyncio.Lock()
        self._named = ray_serve().get_multiplexed_model_id

        @ray_serve().multiplexed(max_num_models_per_replica=-1)  # the service bounds their memory, and knows all names
        async def loaded(name: str) -> str:
            return name

        self._loaded = loaded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        async with self._starting:
            if self._app is None:
                service = self._service_of()
                await service.start([])
                guard = build_app(service, self._place.token, self._place.hosts)
                self._app = replace(guard, app=self._having_loaded(service, guard.app))
        await self._app(scope, receive, send)

    def _having_loaded(self, service: Service, app: ASGIApp) -> ASGIApp:
        """Tells Ray which adapters are here, as requests that may be answered ask for them."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            name = self._named() if scope["type"] == "http" and scope["path"] == PREDICT else ""
            await app(scope, receive, send)
            if name and service.catalog.loaded(name) is not None:
                await self._loaded(name)

        return answer


@contextmanager
def served(
    sources: Mapping[str, str],
    folder: Path | None,
    answering: Answering,
    limits: Limits,
    place: Place,
    replicas: int,
    requests: Sequence[int] = (),
) -> Iterator[None]:
    """Within it, a cluster that the process is connected to answers.

    Args:
        sources: adapters by name.
        folder: whose adapters can be asked for, too.
        answering: how all answer.
        limits: of what one replica takes on.
        place: where every node listens.
        replicas: how many there are.
        requests: signals; one ends the start.

    Raises:
        ConfigError: if Ray Serve is not installed or runs already, the place cannot be used, the cluster has no room,
            or the replicas do not start.
        CheckpointError: if an adapter cannot be read.
    """
    serve = ray_serve()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    place.check()
    if place.port == 0:
        raise ConfigError("--port 0: every node listens at one port; choose it")
    for source in sources.values():
        read_adapter(source)
    shared = Shared()

    def build() -> ASGIApp:
        problem = shared.problem()
        if problem is not None:
            raise RuntimeError(problem)
        os.chdir(shared.folder)
        return Replica(sources, folder, answering, limits, place)

    found = nodes()
    gpus = int(takes_gpus(answering.device, found))
    room = sum(int(min(node.get("CPU", 0), node.get("GPU", 0) if gpus else math.inf)) for node in found)
    if room < replicas:
        what = "a CPU and a GPU" if gpus else "a CPU"
        raise ConfigError(f"--replicas {replicas}: each takes {what}, and the cluster has {room}; take fewer")
    if (there := serve.status()).proxies or there.applications:
        raise ConfigError(
            f"--engine ray: Ray Serve runs on this cluster ({counted(len(there.applications), 'application')}); "
            "end it with 'serve shutdown', or take another cluster"
        )
    deployment = serve.deployment(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=4 * limits.queue,
        graceful_shutdown_timeout_s=limits.drain,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
    )(serve.ingress(build)())
    problems: list[Exception] = []

    def deploy() -> None:
        try:
            serve.start(http_options={"host": place.host, "port": place.port, "location": "EveryNode"})
            serve.run(deployment.bind(), name=NAME, route_prefix="/")
        except Exception as error:  # Ray's, with the traceback of the node
            problems.append(error)

    starting = threading.Thread(target=deploy, daemon=True)  # it waits without end, and takes no signal
    starting.start()
    try:
        while starting.is_alive() and not requests:
            starting.join(WAIT_SECONDS)
        if problems:
            lines = [line.strip() for line in str(problems[0]).splitlines() if line.strip()]
            raise ConfigError(
                f"--engine ray: the replicas did not start ({(lines or [type(problems[0]).__name__])[-1]})"
            )
        yield
    finally:
        serve.shutdown()


def run(
    sources: Mapping[str, str],
    folder: Path | None,
    answering: Answering,
    limits: Limits,
    place: Place,
    replicas: int,
    address: str | None,
) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers what was accepted; see :func:`served`.

    Args:
        sources: see there.
        folder: likewise.
        answering: likewise.
        limits: likewise.
        place: likewise.
        replicas: likewise.
        address: of the cluster, see :func:`~pointadapterx.cluster.connection.connected`.
    """
    with (
        connected(address),
        stop_requests("what was accepted is answered") as requests,
        served(sources, folder, answering, limits, place, replicas, requests),
    ):
        named = [counted(len(sources), "adapter")] if sources else []
        of_folder = [] if folder is None else [f"the adapters of {folder}"]
        what = f"{' and '.join([*named, *of_folder])} by {counted(replicas, 'replica')}"
        if not requests:  # or it was stopped while it started
            print(f"serving {what} at http://{place.host}:{place.port}/; Ctrl-C stops it", flush=True)
        while not requests:
            time.sleep(WAIT_SECONDS)
    print("stopped: what was accepted is answered", flush=True)
