"""The process: its address, its signals, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pointadapterx.errors import ConfigError, PointAdapterXError, reason_of
from pointadapterx.serving.app import build_app
from pointadapterx.serving.guard import LOCAL, is_loopback
from pointadapterx.serving.limits import Limits
from pointadapterx.serving.served import Answering
from pointadapterx.serving.service import Service
from pointadapterx.text import counted

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

HEADER_SECONDS = 20
BACKLOG = 2048  # connections that wait to be accepted
OWN_FILES = 128  # that the process has open besides connections
REFUSAL_SECONDS = 2  # for those who wait to be sent that they wait in vain


@dataclass(frozen=True)
class Place:
    """Where a server listens.

    Attributes:
        host: name or number.
        port: 0 chooses a free one.
        token: that requests have to bear; needed beyond this machine.
    """

    host: str
    port: int
    token: str | None = None

    def check(self) -> None:
        """Refuses what anybody could use.

        Raises:
            ConfigError: for a host beyond this machine without a token.
        """
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host}: others can reach it, so a token is needed; give it with --token-file FILE or in "
                "the environment variable POINTADAPTERX_TOKEN"
            )

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names that clients may use: without a token those of this machine alone."""
        return frozenset({*LOCAL, self.host}) if self.token is None else None

    def listen(self) -> socket.socket:
        """A socket at the place, which nobody else can take; it does not listen yet.

        Raises:
            ConfigError: if that is not possible.
        """
        try:
            family = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0][0]
            found = socket.socket(family, socket.SOCK_STREAM)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((self.host, self.port))
        except (OSError, OverflowError) as error:
            where = f"--host {self.host} --port {self.port}"
            raise ConfigError(f"{where}: cannot be listened at ({reason_of(error)}); choose others") from None
        return found


class _Protocol(H11Protocol):
    """Closes connections on which a request's head does not arrive in time."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
        else:
            self._stop_awaiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_awaiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_awaiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = None


class Server(uvicorn.Server):
    """Drains on a signal and returns, where uvicorn would end the process by that signal."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers what was accepted, at once; what is not in time, or before a second Ctrl-C, is refused."""
        self._service.batcher.hurry()
        await super().shutdown(sockets)
        left = list(self.server_state.tasks)
        if self.force_exit:  # which uvicorn leaves to the end of the loop, and so without an answer
            for task in left:
                task.cancel()
        if left:
            await asyncio.wait(left, timeout=REFUSAL_SECONDS)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In the place of uvicorn's, which raises the signal again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def run(sources: Mapping[str, str], folder: Path | None, answering: Answering, limits: Limits, place: Place) -> None:
    """Serves until SIGTERM or Ctrl-C, then answers what was accepted.

    Args:
        sources: adapters by name.
        folder: whose adapters can be asked for, too.
        answering: how all answer.
        limits: of what is taken on.
        place: where.

    Raises:
        ConfigError: if the place cannot be used.
        CheckpointError: if an adapter cannot be loaded.
    """
    place.check()
    listening = place.listen()
    try:
        asyncio.run(_run(sources, folder, answering, limits, place, listening))
    finally:
        listening.close()


async def _run(
    sources: Mapping[str, str],
    folder: Path | None,
    answering: Answering,
    limits: Limits,
    place: Place,
    listening: socket.socket,
) -> None:
    service = Service(sources, folder, answering, limits)
    try:
        await service.start(list(sources))
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        names = service.catalog.names()
        what = f"{counted(len(names), 'adapter')} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        listening.listen(BACKLOG)  # whoever reads the next line may connect
        print(f"serving {what} at http://{shown}:{port}/; Ctrl-C stops it", flush=True)
        await web_server(service, place).serve(sockets=[listening])
        print(last_words(service.unanswered), flush=True)
    finally:
        await service.stop()


def last_words(unanswered: int) -> str:
    """What a server says at its end."""
    if unanswered:
        return f"stopped without an answer to {counted(unanswered, 'request')}"
    return "stopped: what was accepted is answered"


def web_server(service: Service, place: Place) -> Server:
    """What listens for a service; its method ``serve`` ends after a signal, or once ``should_exit`` is set."""
    config = uvicorn.Config(
        build_app(service, place.token, place.hosts),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        limit_concurrency=most_connections(service.limits.queue),
        timeout_graceful_shutdown=max(1, round(service.limits.drain)),
        http=_Protocol,
        ws="none",
    )
    return Server(config, service)


def most_connections(queue: int) -> int:
    """Connections at a time, beyond which clients get 503: four times the queue, or fewer where files are too few.

    The limit of open files of this process is raised as far as it may be without more rights; a connection takes two.

    Args:
        queue: requests that wait at most.
    """
    if resource is None:
        return 4 * queue
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and soft != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        return 4 * queue
    return max(1, min(4 * queue, (soft - OWN_FILES) // 2))


def token_of(path: Path | None, environment: str | None) -> str | None:
    """The token, of a file or else of the environment.

    Raises:
        PointAdapterXError: if the file cannot be read, or the token is short enough to be guessed.
    """
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PointAdapterXError(f"--token-file {path}: cannot be read ({reason_of(error)})") from None
    elif environment is not None:
        text = environment.strip()
    else:
        return None
    if len(text) < 16 or not text.isascii() or any(letter.isspace() for letter in text):
        where = "POINTADAPTERX_TOKEN" if path is None else f"--token-file {path}"
        raise PointAdapterXError(
            f"{where}: a token has at least 16 letters and no spaces; python -c 'import secrets; "
            "print(secrets.token_urlsafe())' makes one"
        )
    return text
