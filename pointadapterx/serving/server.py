"""The process: its address, its signals, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from pointadapterx.errors import ConfigError, PointAdapterXError, reason_of
from pointadapterx.serving.app import build_app
from pointadapterx.serving.guard import LOCAL, is_loopback
from pointadapterx.serving.limits import Limits
from pointadapterx.serving.served import Answering
from pointadapterx.serving.service import Service

log = logging.getLogger(__name__)


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
        """A socket that listens.

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


class _Server(uvicorn.Server):
    """Drains on a signal and returns, where uvicorn would end the process by that signal."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def run(
    sources: Mapping[str, str], folder: Path | None, answering: Answering, limits: Limits, place: Place
) -> None:
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
        app = build_app(service, [], place.token, place.hosts)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            limit_concurrency=4 * limits.queue,
            timeout_graceful_shutdown=max(1, round(limits.drain)),
            http="h11",
            ws="none",
        )
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        names = service.catalog.names()
        what = f"{len(names)} adapter{'' if len(names) == 1 else 's'} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        print(f"serving {what} at http://{shown}:{port}/; Ctrl-C stops it", flush=True)
        await _Server(config).serve(sockets=[listening])
        print("stopped: what was accepted is answered", flush=True)
    finally:
        await service.stop()


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
