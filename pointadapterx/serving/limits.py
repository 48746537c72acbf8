"""How much a server takes on, and how it says that something is too much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pointadapterx.errors import PointAdapterXError

MEBI = 2**20


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Attributes:
        upload: bytes of one request's body.
        points: of one cloud, as its file has them.
        clouds: of one request, where a file holds several.
        queue: requests that wait or are computed at a time; one more gets status 429.
        queue_bytes: of their bodies, and of what was read of them, together.
        upload_seconds: in which a body has to arrive.
        read_seconds: in which it has to be read as clouds or a picture.
        read_memory: bytes that this may take.
        timeout: seconds from the arrival of a body to its answer.
        drain: seconds that accepted requests get to be answered when the server is stopped.
        batch: samples of a batch.
        wait: seconds that a sample waits for others to be computed with it.
        memory: bytes of backbones and adapters that are loaded.
        readers: processes that read uploads; of two, one is left where an upload takes long.
    """

    upload: int = 64 * MEBI
    points: int = 2_000_000
    clouds: int = 256
    queue: int = 256
    queue_bytes: int = 512 * MEBI
    upload_seconds: float = 60.0
    read_seconds: float = 20.0
    read_memory: int = 2048 * MEBI
    timeout: float = 60.0
    drain: float = 30.0
    batch: int = 32
    wait: float = 0.002
    memory: int = 4096 * MEBI
    readers: int = 2

    @property
    def points_together(self) -> int:
        """Of the clouds of one request, as a model is given them: as many as of a few large ones."""
        return 4 * self.points


class RefusedError(PointAdapterXError):
    """A request that is not answered.

    Args:
        status: of HTTP.
        reason: in one line.
        headers: of the response.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = dict(headers or {})


def overloaded(what: str) -> RefusedError:
    """The refusal of a request that may be made again in a second."""
    return RefusedError(429, f"the server is busy: {what}; try again in a second", {"Retry-After": "1"})
