"""A server in a thread of the test, and a client that can be as slow or rude as the test wants."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from pointadapterx.serving.limits import MEBI, Limits
from pointadapterx.serving.served import Answering
from pointadapterx.serving.server import Place, web_server
from pointadapterx.serving.service import Service
from tests.conftest import ROOT

LIMITS = Limits(upload=MEBI, read_memory=512 * MEBI, drain=5)
READY = ROOT / "pointadapterx" / "adapters" / "ldraw20.safetensors"
BEFORE = ROOT / "tests" / "files_of_before" / "adapters"


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        """Of JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """Of a refusal."""
        return self.content["error"]


class Running:
    """Serves until the ``with`` ends."""

    def __init__(
        self, sources: Mapping[str, Path], folder: Path | None = None, token: str | None = None, **limits: Any
    ) -> None:
        self._sources = {name: str(path) for name, path in sources.items()}
        self._folder, self._limits = folder, replace(LIMITS, **limits)
        self._place = Place("127.0.0.1", 0, token)
        self._up = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._up.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.service = Service(self._sources, self._folder, Answering("cpu"), self._limits)
        listening = self._place.listen()
        try:
            await self.service.start(list(self._sources))
            self.port = listening.getsockname()[1]
            self.server = web_server(self.service, self._place)
            serving = asyncio.ensure_future(self.server.serve(sockets=[listening]))
            while not self.server.started:
                await asyncio.sleep(0.001)
            self._up.set()
            await serving
        finally:
            await self.service.stop()
            listening.close()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._up.wait(60)
        if self._error is not None:
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        found = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            yield found
        finally:
            found.close()

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        with self.connection() as connection:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())

    def predict(self, query: str, body: Any) -> Reply:
        return self.ask("POST", f"/predict?{query}", body)

    def metric(self, line: str) -> float:
        """The number behind the beginning of a line."""
        found = self.ask("GET", "/metrics").body.decode().splitlines()
        return float(next(one for one in found if one.startswith(f"{line} ")).rpartition(" ")[2])


def cloud(seed: int, points: int = 300) -> np.ndarray:
    """(points, 3), a box of its own."""
    generator = np.random.default_rng(seed)
    return generator.uniform(-1, 1, size=(points, 3)) * generator.uniform(0.3, 1, size=3)


def npy(folder: Path, seed: int, points: int = 300) -> Path:
    """A file of such a cloud."""
    path = folder / f"{seed}.npy"
    np.save(path, cloud(seed, points))
    return path


class Held:
    """Keeps the thread that computes busy until it is left."""

    def __init__(self, running: Running) -> None:
        self._go, self._running = threading.Event(), running

    def __enter__(self) -> None:
        held = threading.Event()

        def wait() -> None:
            held.set()
            self._go.wait(20)

        asyncio.run_coroutine_threadsafe(self._running.service.batcher.call(wait), self._running.loop)
        assert held.wait(5)

    def __exit__(self, *_: object) -> None:
        self._go.set()


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
