"""Clients of a server: polite ones, each with one request at a time, and rude ones."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import isclose
from random import Random
from time import perf_counter
from typing import Any, NamedTuple
from urllib.parse import urlencode

NEAR = 1.1e-4  # of probabilities, which batches of other sizes round otherwise; those of points have four digits
BUSY = 429
PATIENCE = 120.0  # seconds until a request counts as lost; more than --timeout of the server
UNREAD = 0.1  # seconds that a server has to take a request off its socket


class Question(NamedTuple):
    """A file, the adapter that is asked about it, and what ``predict`` says.

    Attributes:
        adapter: its name.
        query: of the address.
        body: of the request.
        wanted: the answer.
    """

    adapter: str
    query: str
    body: bytes
    wanted: Mapping[str, Any]

    @classmethod
    def about(cls, adapter: str, file: str, body: bytes, wanted: Mapping[str, Any], condition: str | None) -> Question:
        """A question by its parts."""
        said = {} if condition is None else {"condition": condition}
        return cls(adapter, urlencode({"adapter": adapter, "file": file, **said}), body, wanted)


class Lost(NamedTuple):
    """A request without a response, or with half of one.

    Attributes:
        text: what happened.
        sent: ``perf_counter()`` when it was sent; None if no connection was accepted.
        begun: whether a part of the response came.
    """

    text: str
    sent: float | None
    begun: bool

    def owed(self, signalled: float) -> bool:
        """Whether a server that was told to end at that time had accepted the request, and so owed an answer."""
        return self.begun or (self.sent is not None and self.sent < signalled - UNREAD)


@dataclass
class Tally:
    """What came back.

    Attributes:
        seconds: of each request that was answered.
        statuses: how often each came.
        wrong: answers that are not those of ``predict``.
        lost: requests without a whole response.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Takes in what came back in another time."""
        self.seconds += other.seconds
        self.statuses += other.statuses
        self.wrong += other.wrong
        self.lost += other.lost

    def quantile(self, share: float) -> float:
        """Seconds that this share of the requests did not take longer than."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class Client:
    """One connection that is kept.

    Attributes:
        sent: ``perf_counter()`` when the last request was sent; None if no connection was accepted.
        begun: whether a part of its response came.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.sent: float | None = None
        self.begun = False
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the response.

        Raises:
            OSError, asyncio.IncompleteReadError: if no whole response arrives.
        """
        self.sent, self.begun = None, False
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        try:
            self.sent = perf_counter()
            writer.write(head(method, path, len(body)) + body)
            await writer.drain()
            first = await reader.readexactly(1)
            self.begun = True
            return await response(reader, first)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the connection."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


def head(method: str, path: str, length: int) -> bytes:
    """The lines before a body."""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


async def response(reader: asyncio.StreamReader, first: bytes = b"") -> tuple[int, bytes]:
    """Status and body of a response, of which some bytes may have been read already."""
    lines = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().splitlines()
    length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
    return int(lines[0].split()[1]), await reader.readexactly(length)


async def polite(port: int, questions: Sequence[Question], until: float, seed: int, tally: Tally) -> None:
    """Asks one question after the other, in an order of its own, until the time is over."""
    random, client = Random(seed), Client(port)
    while perf_counter() < until:
        question = random.choice(questions)
        started = perf_counter()
        try:
            asked = client.ask("POST", f"/predict?{question.query}", question.body)
            status, body = await asyncio.wait_for(asked, PATIENCE)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            tally.lost.append(Lost(f"{question.adapter}: {error!r}", client.sent, client.begun))
            continue
        tally.statuses[status] += 1
        if status == 200:
            tally.seconds.append(perf_counter() - started)
            if not agrees(json.loads(body)["answers"][0], question.wanted):
                tally.wrong.append(f"{question.query}: {body[:200]!r}")
        elif status == BUSY:
            await asyncio.sleep(0.1)
    client.close()


def agrees(found: Any, wanted: Any) -> bool:
    """Whether an answer is the one that is wanted, but for rounding."""
    if isinstance(wanted, Mapping):
        return found.keys() == wanted.keys() and all(agrees(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(agrees, found, wanted))
    if isinstance(wanted, float):
        return isclose(found, wanted, rel_tol=0, abs_tol=NEAR)
    return bool(found == wanted)


async def hang_up(port: int, question: Question) -> None:
    """Sends a request and leaves."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("POST", f"/predict?{question.query}", len(question.body)) + question.body)
    await writer.drain()
    writer.close()


async def leave_in_the_middle(port: int, question: Question) -> None:
    """Sends half a body and leaves."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("POST", f"/predict?{question.query}", len(question.body)) + question.body[:100])
    await writer.drain()
    writer.close()


async def send_slowly(port: int, question: Question) -> None:
    """Sends a few bytes at a time."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("POST", f"/predict?{question.query}", len(question.body)))
    for start in range(0, 50):
        writer.write(question.body[start : start + 1])
        await writer.drain()
        await asyncio.sleep(0.1)
    writer.close()


async def send_much(port: int, question: Question) -> int:
    """Declares two gigabytes, and sends what it can; the status that it gets."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("POST", f"/predict?{question.query}", 2**31))
    with suppress(OSError):
        for _ in range(16):
            writer.write(b"x" * 2**20)
            await writer.drain()
    status, _ = await response(reader)
    writer.close()
    return status


async def send_garbage(port: int, question: Question, random: Random) -> int:
    """Sends bytes that are no file; the status that it gets."""
    client = Client(port)
    status, _ = await client.ask("POST", f"/predict?{question.query}", random.randbytes(2000))
    client.close()
    return status
