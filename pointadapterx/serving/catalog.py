"""Adapters by name: those that the server was given, and those of its folder, which are loaded when asked for."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pointadapterx.checkpoints.adapter_file import find_adapter, read_adapter
from pointadapterx.errors import CheckpointError, PointAdapterXError, reason_of
from pointadapterx.registry import did_you_mean
from pointadapterx.run_folder import ADAPTER_FILE
from pointadapterx.serving.batcher import Batcher
from pointadapterx.serving.limits import RefusedError
from pointadapterx.serving.residents import Residents
from pointadapterx.serving.served import Answering, Served

SUFFIX = ".safetensors"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
"""What an adapter can be called: nothing that leads out of a folder."""


def named(adapters: Sequence[str]) -> dict[str, str]:
    """``NAME=FILE``, or a file, a run's folder or an address alone, by name.

    An adapter is named like its file, and one in the folder of a run like that folder.

    Raises:
        CheckpointError: for a name that cannot be in an address, or that two have.
    """
    found: dict[str, str] = {}
    for text in adapters:
        name, mark, source = text.partition("=")
        if not mark:
            source, path = text, Path(text)
            name = (
                path.resolve().parent.name if path.name == ADAPTER_FILE else path.stem if path.is_file() else path.name
            )
        if not NAME.fullmatch(name):
            raise CheckpointError(f"{text}: '{name}' cannot be an adapter's name; give it one: NAME={source}")
        if name in found:
            raise CheckpointError(f"{text} and {found[name]} are both named '{name}'; give them names: NAME={source}")
        found[name] = source
    return found


@dataclass
class _Load:
    """A load, and how many wait for it."""

    task: asyncio.Task[Served]
    waiting: int = 0


class Catalog:
    """What is served, by name.

    A file is copied when it is loaded: whatever becomes of it, answers stay those of the copy until it is loaded again.

    Args:
        sources: names to files, folders of runs or addresses.
        folder: whose files can be loaded by their names, too.
        storage: folder for the copies.
        answering: how all answer.
        residents: the models.
        batcher: runs what concerns them.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        folder: Path | None,
        storage: Path,
        answering: Answering,
        residents: Residents,
        batcher: Batcher,
    ) -> None:
        self._sources, self._folder, self._storage = dict(sources), folder, storage
        self._answering, self._residents, self._batcher = answering, residents, batcher
        self._served: dict[str, Served] = {}
        self._versions = count(1)
        self._loading = asyncio.Lock()
        self._loads: dict[str, _Load] = {}  # for all who asked
        self._forgetting = set[asyncio.Task[None]]()

    def names(self) -> list[str]:
        """All that can be asked for; it looks into the folder, which may take long."""
        found = {} if self._folder is None else {path.stem for path in self._folder.glob(f"*{SUFFIX}")}
        return sorted({*self._sources, *(name for name in found if NAME.fullmatch(name))})

    def loaded(self, name: str) -> Served | None:
        """An adapter that was loaded and not unloaded, whether or not it is in memory."""
        return self._served.get(name)

    async def get(self, name: str) -> Served:
        """An adapter, loaded where it is not yet: once for all who ask meanwhile.

        A load that has begun ends, whoever leaves; one that waits for its turn is given up when nobody waits for it.

        Raises:
            RefusedError: if no adapter has the name, or it cannot be loaded.
        """
        while (found := self._served.get(name)) is None:
            load = self._loads.get(name) or self._begin(name)
            load.waiting += 1
            try:
                await asyncio.wait([load.task])
            finally:
                load.waiting -= 1
            found = load.task.result()
            if not found.retired:  # by whoever came between
                return found
        return found

    def _begin(self, name: str) -> _Load:
        load = self._loads[name] = _Load(asyncio.ensure_future(self._load_once(name)))
        load.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # else asyncio warns of it
        return load

    async def _load_once(self, name: str) -> Served:
        try:
            async with self._loading:
                if not self._loads[name].waiting:
                    raise RefusedError(503, "nobody waits for it any more")
                return self._served.get(name) or await self._load(name)
        finally:
            del self._loads[name]

    async def require(self, names: Sequence[str]) -> None:
        """Looks whether there are such adapters, without loading one.

        Raises:
            RefusedError: if there is none of a name.
        """
        for name in names:
            if name not in self._served:
                await asyncio.to_thread(self._source, name)

    async def load(self, name: str) -> Served:
        """Loads an adapter as its file is now; if that fails, what was loaded before goes on.

        Raises:
            RefusedError: as :meth:`get`.
        """
        async with self._loading:
            return await self._load(name)

    async def unload(self, name: str) -> None:
        """Forgets an adapter until it is asked for again.

        Raises:
            RefusedError: if no adapter has the name.
        """
        await asyncio.to_thread(self._source, name)
        async with self._loading:
            await self._retire(self._served.pop(name, None))

    async def _load(self, name: str) -> Served:
        source, before = await asyncio.to_thread(self._source, name), self._served.get(name)
        try:
            new = await asyncio.to_thread(self._read, name, source)
            try:
                await self._batcher.call(lambda: self._residents.model(new))
            except BaseException:
                new.copy.unlink(missing_ok=True)
                raise
        except PointAdapterXError as error:
            kept = "" if before is None else "; the one that was loaded before goes on"
            status = error.status if isinstance(error, RefusedError) else 422
            raise RefusedError(status, f"adapter {name}: {error}{kept}") from None
        self._served[name] = new
        await self._retire(before)
        return new

    @asynccontextmanager
    async def lent(self, names: Sequence[str]) -> AsyncIterator[list[Served]]:
        """Adapters as :meth:`get` has them, which stay as they are in the meantime.

        Raises:
            RefusedError: as :meth:`get`.
        """
        lent: list[Served] = []
        try:
            for name in names:
                lent.append(served := await self.get(name))
                served.users += 1
            yield lent
        finally:
            for served in lent:
                served.users -= 1
            for served in lent:  # beside whoever asked, who may have been cancelled
                task = asyncio.ensure_future(self._forget(served))
                self._forgetting.add(task)
                task.add_done_callback(self._forgetting.discard)

    async def settle(self) -> None:
        """Waits for what has begun, before all ends."""
        while pending := [*(load.task for load in self._loads.values()), *self._forgetting]:
            await asyncio.gather(*pending, return_exceptions=True)

    async def _retire(self, old: Served | None) -> None:
        if old is not None:
            old.retired = True
            await self._forget(old)

    async def _forget(self, old: Served) -> None:
        """Frees what belongs to a version that nobody can ask for any more."""
        if old.retired and not old.users:
            await self._batcher.call(lambda: self._residents.drop(old))
            old.copy.unlink(missing_ok=True)

    def _source(self, name: str) -> str:
        if name in self._sources:
            return self._sources[name]
        if self._folder is not None and NAME.fullmatch(name) and (path := self._folder / f"{name}{SUFFIX}").is_file():
            return str(path)
        known = self.names()
        raise RefusedError(404, f"no adapter '{name}'{did_you_mean(name, known)}")

    def _read(self, name: str, source: str) -> Served:
        version = next(self._versions)
        path, copy = find_adapter(source), self._storage / f"{version}{SUFFIX}"
        try:
            shutil.copyfile(path, copy)
            info = read_adapter(copy)._replace(path=path)
            return Served(name, version, info, copy, self._answering, self._residents.model)
        except BaseException as error:
            copy.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})") from None
            if isinstance(error, CheckpointError):
                raise CheckpointError(str(error).replace(str(copy), str(path))) from None
            raise

    def described(self) -> list[dict[str, Any]]:
        """All that can be asked for, as JSON."""
        sizes = self._residents.sizes
        found = []
        for name in self.names():
            served = self._served.get(name)
            entry: dict[str, Any] = {"name": name, "loaded": served is not None}
            if served is not None:
                entry |= {
                    "in_memory": served.key in sizes,
                    "bytes": sizes.get(served.key),
                    "task": served.info.config.task.name,
                    "method": served.info.method.name,
                    "classes": served.info.classes,
                    "inputs": "clouds" if served.takes_points else "pictures",
                    "kinds": list(served.kinds),
                    "condition": served.task.condition if served.task.categories else None,
                    "conditions": list(served.task.categories),
                }
            found.append(entry)
        return found
