"""One thread that computes, and the queue before it: samples of several requests and adapters become one batch."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar

from pointadapterx.endings import explain
from pointadapterx.engine.input_form import Failure
from pointadapterx.engine.predictor import with_piece
from pointadapterx.serving.computing import Found, answers_of
from pointadapterx.serving.limits import Limits, RefusedError
from pointadapterx.serving.metrics import Metrics
from pointadapterx.serving.residents import Residents
from pointadapterx.serving.served import Served
from pointadapterx.tasks.exchange import Answer, Joining, Ready

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Finish = Callable[[], Answer | Failure]
"""Gives an answer; for a whole cloud that takes long, and is done elsewhere."""


class Work:
    """What one request asks of one adapter.

    Args:
        served: the adapter.
        ready: prepared inputs, or pieces of them, in order; those of an input are together.

    Attributes:
        dropped: whether nobody waits for it any more; what is not computed yet is left out then.
    """

    def __init__(self, served: Served, ready: Sequence[Ready]) -> None:
        self.served, self.waiting = served, deque(ready)
        self.done: asyncio.Future[list[Finish]] = asyncio.get_running_loop().create_future()
        self.since = monotonic()
        self.dropped = False
        self._left = len(ready)
        self._found: list[Finish] = []
        self._begun: Joining | Failure | None = None

    def take(self, item: Ready, answer: Answer | Failure) -> None:
        """The answer about the next of what was waiting."""
        self._left -= 1
        if item.piece is None:
            self._found.append(lambda: answer)
        else:
            begun = self._begun or self.served.task.joining(item.piece.cloud)
            self._begun = begun = with_piece(begun, answer)
            if item.piece.last:
                self._begun = None
                self._found.append((lambda: begun) if isinstance(begun, Failure) else begun.joined)
        if not self._left:
            self.end(self._found)

    def fail(self, error: Exception) -> None:
        """Ends it, whatever is left of it."""
        self.dropped = True
        self.end(_said(error, self.served))

    def end(self, result: list[Finish] | Exception) -> None:
        """Gives the result to whoever waits for it."""
        _give(self.done, result)


class _Call:
    """A function that is to run between two batches."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.dropped = False

    def run(self) -> None:
        try:
            _give(self.done, self.function())
        except Exception as error:  # whatever it is belongs to whoever asked
            _give(self.done, error)


class Batcher:
    """Computes what it is given, oldest first, but a piece of each request in turn.

    Adapters on one backbone share passes, see :mod:`~pointadapterx.serving.computing`.

    Args:
        limits: of batches.
        residents: the models.
        metrics: are told of batches.
    """

    def __init__(self, limits: Limits, residents: Residents, metrics: Metrics) -> None:
        self._limits, self._residents, self._metrics = limits, residents, metrics
        self._queue = deque[Work | _Call]()
        self._changed = threading.Condition()
        self._hurried = self._stopping = False
        self._thread = threading.Thread(target=self._run, name="computing", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread computes."""
        return self._thread.is_alive()

    async def compute(self, served: Served, ready: Sequence[Ready]) -> list[Finish]:
        """The answers to prepared inputs, at least one."""
        work = Work(served, ready)
        self._put(work)
        try:
            return await work.done
        finally:
            work.dropped = True

    async def call(self, function: Callable[[], Result]) -> Result:
        """What a function returns that is run by the thread that computes."""
        call = _Call(function)
        self._put(call)
        try:
            result: Result = await call.done
            return result
        finally:
            call.dropped = True

    def hurry(self) -> None:
        """Waits for no more samples from now on: none will come."""
        with self._changed:
            self._hurried = True
            self._changed.notify()

    def stop(self) -> None:
        """Ends the thread once the queue is empty."""
        with self._changed:
            self._hurried = self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=self._limits.drain)

    def _put(self, item: Work | _Call) -> None:
        with self._changed:
            self._queue.append(item)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                if not self._queue:
                    return
                self._wait_for_more()
                taken = self._take()
            if isinstance(taken, _Call):
                taken.run()
            elif taken:
                self._compute(taken)

    def _wait_for_more(self) -> None:
        """Lets others come, for a moment."""
        first = self._queue[0]
        if isinstance(first, _Call):
            return
        until = first.since + self._limits.wait
        while not self._hurried and len(self._queue) < self._limits.batch and (left := until - monotonic()) > 0:
            self._changed.wait(left)

    def _take(self) -> list[tuple[Work, Ready]] | _Call:
        """The oldest, and up to a batch of what can share its pass: one large pass is cheaper than several small ones.

        Whatever is left out stays as old as it is, and so is taken next, or soon.
        """
        taken: list[tuple[Work, Ready]] = []
        others, again = list[Work | _Call](), deque[Work | _Call]()
        while len(taken) < self._limits.batch and (self._queue or again):
            if not self._queue:
                self._queue, again = again, self._queue
            item = self._queue.popleft()
            if item.dropped:
                continue
            if isinstance(item, _Call):
                if not taken:
                    self._queue.extend(again)
                    return item
                self._queue.appendleft(item)
                break
            if taken and item.served.shares != taken[0][0].served.shares:
                others.append(item)
                continue
            taken.append((item, item.waiting.popleft()))
            if item.waiting:
                again.append(item)
        self._queue.extendleft(reversed(others))
        self._queue.extend(again)
        return taken

    def _compute(self, taken: list[tuple[Work, Ready]]) -> None:
        of_adapter: dict[Served, list[tuple[Work, Ready]]] = {}
        for work, item in taken:
            of_adapter.setdefault(work.served, []).append((work, item))
        self._metrics.batches.observe(len(taken))
        self._metrics.mixed.observe(len(of_adapter))
        asked = {served: [item for _, item in own] for served, own in of_adapter.items()}
        try:
            for served, found in answers_of(asked, self._residents):
                _hand_out(of_adapter.pop(served), found)
        except Exception as error:  # the thread goes on: it is the only one that computes
            for own in of_adapter.values():
                _hand_out(own, error)


def _hand_out(own: Sequence[tuple[Work, Ready]], found: Found) -> None:
    """Gives an adapter's answers to the works that asked for them, or the error that it ended with."""
    if isinstance(found, Exception):  # of this adapter; the others go on
        for work in dict.fromkeys(work for work, _ in own):
            work.fail(found)
        return
    for (work, item), answer in zip(own, found, strict=True):
        if work.dropped:
            continue
        try:
            work.take(item, answer)
        except Exception as error:  # of this work
            work.fail(error)


def _said(error: Exception, served: Served) -> Exception:
    """What the client is told of an error."""
    if isinstance(error, RefusedError):
        return error
    line = explain(error)
    if line is None:
        log.error("the adapter %s failed", served.name, exc_info=error)
        return RefusedError(500, f"the adapter {served.name} failed; the server's log says how")
    return RefusedError(503, f"the adapter {served.name}: {line}")


def _give(done: asyncio.Future[Any], result: Any) -> None:
    """A result, or an error, to a future of the loop's thread."""

    def set_it() -> None:
        if done.done():
            return
        if isinstance(result, Exception):
            done.set_exception(result)
        else:
            done.set_result(result)

    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        done.get_loop().call_soon_threadsafe(set_it)
