"""From an upload to its answers: read, prepared, computed with others, and joined."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pointadapterx.engine.input_form import Failure
from pointadapterx.serving import views
from pointadapterx.serving.admission import Admission
from pointadapterx.serving.batcher import Batcher, Finish
from pointadapterx.serving.catalog import Catalog
from pointadapterx.serving.limits import Limits, RefusedError
from pointadapterx.serving.metrics import Metrics
from pointadapterx.serving.readers import Readers
from pointadapterx.serving.reading import Content, Upload
from pointadapterx.serving.residents import Residents
from pointadapterx.serving.served import Answering, Served
from pointadapterx.tasks.exchange import Ready
from pointadapterx.text import json_line

Result = TypeVar("Result")


class Service:
    """All that answers; made and used in one event loop.

    Args:
        sources: adapters by name, files, folders of runs or addresses.
        folder: whose adapters can be asked for, too.
        answering: how all answer.
        limits: of what is taken on.

    Attributes:
        unanswered: requests that were cut off by the server's end.
    """

    def __init__(self, sources: Mapping[str, str], folder: Path | None, answering: Answering, limits: Limits) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.unanswered = 0
        self._storage = Path(tempfile.mkdtemp(prefix="pointadapterx-serve-"))
        residents = Residents(limits.memory, self.metrics)
        self.batcher = Batcher(limits, residents, self.metrics)
        self.readers = Readers(limits)
        bodies, copies = self._storage / "bodies", self._storage / "adapters"
        bodies.mkdir()
        copies.mkdir()
        self.admission = Admission(limits, bodies, self.metrics)
        self.catalog = Catalog(sources, folder, copies, answering, residents, self.batcher)

    async def start(self, names: Sequence[str]) -> None:
        """Loads adapters, and starts the processes that read.

        Raises:
            RefusedError: if one cannot be loaded.
        """
        await self.readers.warm_up()
        for name in names:
            await self.catalog.get(name)

    async def stop(self) -> None:
        """Ends threads and processes, and removes all files."""
        await self.catalog.settle()
        await asyncio.to_thread(self.batcher.stop)
        self.readers.stop()
        shutil.rmtree(self._storage, ignore_errors=True)

    async def answer(self, upload: Upload, adapters: Sequence[Served], said: str | None) -> str:
        """The answers of adapters about an upload, as JSON.

        Args:
            upload: a body that was received.
            adapters: that are asked.
            said: the condition of what is in it.

        Raises:
            RefusedError: if it cannot be read, or none of its inputs can be answered.
        """
        with self.admission.contents() as hold:
            read = await self._read(upload, adapters, hold)
            parts = [self._of_adapter(served, read[served.reader], said) for served in adapters]
            lines = [line for part in await _all_of(parts) for line in part]
        return await asyncio.to_thread(_json, lines)

    async def look(self, upload: Upload, served: Served, said: str | None, saliency: bool) -> str:
        """The answer of an adapter about the first input of an upload, and that input in colours, as JSON.

        Args:
            upload: a body that was received.
            served: the adapter.
            said: the condition of what is in it.
            saliency: whether to show which parts the answer depends on, which takes a pass for each.

        Raises:
            RefusedError: as :meth:`answer`.
        """
        with self.admission.contents() as hold:
            first = (await self._read(upload, [served], hold))[served.reader][:1]
            return await self._seen(served, first, said, saliency)

    async def _seen(self, served: Served, contents: Sequence[Content], said: str | None, saliency: bool) -> str:
        ready, failures = await asyncio.to_thread(_prepared, served, contents, said)
        if not ready:
            raise RefusedError(422, failures[0].reason)
        (finish,) = await self.batcher.compute(served, ready)
        answer = await asyncio.to_thread(finish)
        if isinstance(answer, Failure):
            raise RefusedError(422, answer.reason)
        seen = await self.batcher.call(lambda: views.seen(served, ready, saliency))
        return await asyncio.to_thread(lambda: json_line(views.shown(served, ready, answer, seen)))

    async def _read(
        self, upload: Upload, adapters: Sequence[Served], hold: Callable[[int], None]
    ) -> dict[object, list[Content]]:
        """What an upload holds, once for each way of reading it; what it takes is counted."""
        found: dict[object, list[Content]] = {}
        for served in adapters:
            if served.reader not in found:
                found[served.reader] = await self.readers.read(upload, served.reader, hold)
        return found

    async def _of_adapter(self, served: Served, contents: Sequence[Content], said: str | None) -> list[dict[str, Any]]:
        ready, failures = await asyncio.to_thread(_prepared, served, contents, said)
        finish = await self.batcher.compute(served, ready) if ready else []
        order = {content.name: place for place, content in enumerate(contents)}
        return await asyncio.to_thread(_lines, served, finish, failures, order)


async def _all_of(parts: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What all return; where one fails, nobody waits for the others, which end before their place in the queue does."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _prepared(served: Served, contents: Sequence[Content], said: str | None) -> tuple[list[Ready], list[Failure]]:
    ready: list[Ready] = []
    failures: list[Failure] = []
    for name, content in contents:
        if isinstance(content, str):
            failures.append(Failure(name, content))
            continue
        own: list[Ready] = []
        for item in served.prepare(name, content, said):
            if isinstance(item, Failure):
                failures.append(item)
                own = []
                break
            own.append(item)
        ready += own
    return ready, failures


def _lines(
    served: Served, finish: Sequence[Finish], failures: Sequence[Failure], order: Mapping[str, int]
) -> list[dict[str, Any]]:
    """A line for each input, as ``predict`` writes them, in the order of the inputs."""
    found = [*(one() for one in finish), *failures]
    found.sort(key=lambda one: order[one.name])
    return [
        {"file": one.name, "adapter": served.name, "error": one.reason}
        if isinstance(one, Failure)
        else {"file": one.name, **one.content()}
        for one in found
    ]


def _json(lines: Sequence[Mapping[str, Any]]) -> str:
    failed = [str(line["error"]) for line in lines if "error" in line]
    if len(failed) == len(lines):
        raise RefusedError(422, failed[0])
    return json_line({"answers": lines})
