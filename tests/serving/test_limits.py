"""What is too much is refused in time, and nothing that was accepted is lost."""

from __future__ import annotations

import asyncio
import errno
import gc
import http.client
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from pickle import loads
from typing import Any, cast

import h5py
import numpy as np
import pytest

from pointadapterx.commands.main import main
from pointadapterx.datasets.cloud_reader import CloudReader
from pointadapterx.files import read_safetensors, write_safetensors
from pointadapterx.serving import catalog, reading, server, service, views
from pointadapterx.serving.limits import MEBI, Limits, RefusedError
from pointadapterx.serving.readers import Readers
from pointadapterx.serving.reading import Allowed, Upload
from pointadapterx.serving.residents import Resident, Residents
from pointadapterx.serving.served import Served
from tests.conftest import ROOT
from tests.processes import start
from tests.serving.running import BEFORE, READY, Held, Running, cloud, eventually, npy

LORA = BEFORE / "lora.safetensors"
QUERY = "adapter=lora&file=a.npy"


@pytest.fixture(scope="module")
def strict() -> Iterator[Running]:
    """A server with little of everything."""
    limits: dict[str, Any] = {"upload": 20_000, "points": 500, "clouds": 2, "queue": 2, "queue_bytes": 50_000}
    with Running({"lora": LORA}, **limits, upload_seconds=0.5, read_seconds=5, timeout=5, wait=0) as found:
        yield found


@pytest.fixture
def body(tmp_path: Path) -> bytes:
    return npy(tmp_path, 0).read_bytes()


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A folder below which the adapters of before find their weights."""
    (tmp_path / "runs" / "pretraining").mkdir(parents=True)
    weights = Path("runs", "pretraining", "weights.safetensors")
    shutil.copy(BEFORE.parent / weights, tmp_path / weights)
    (tmp_path / "adapters").mkdir()
    return tmp_path / "adapters"


def waiting(running: Running) -> float:
    return running.metric("pointadapterx_queue_requests")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_before_it_is_read(strict: Running, chunked: bool) -> None:
    """By its declared length at once, and without one as soon as too much has come."""
    with strict.connection() as connection:
        connection.putrequest("POST", f"/predict?{QUERY}")
        connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(2**31))))
        connection.endheaders()
        if chunked:
            part = b"x" * 5000
            for _ in range(5):
                connection.send(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        response = connection.getresponse()
        assert response.status == 413
        assert "more than the 20,000 bytes" in json.loads(response.read())["error"]
    assert strict.metric("pointadapterx_queue_bytes") == 0
    assert not list(strict.service._storage.glob("bodies/*"))


@pytest.mark.parametrize(
    ("shape", "words"), [((600, 3), "600 points, more than the 500"), ((3, 20, 3), "3 clouds, more than the 2")]
)
def test_points_and_clouds_are_counted(strict: Running, shape: tuple[int, ...], words: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    reply = strict.predict("file=a.h5", (tmp_path / "a.h5").read_bytes())
    assert reply.status == 422
    assert words in reply.error


def test_a_slow_sender_is_dismissed(strict: Running) -> None:
    with strict.connection() as connection:
        connection.putrequest("POST", f"/predict?{QUERY}")
        connection.putheader("Content-Length", "100")
        connection.endheaders()
        connection.send(b"x")
        assert connection.getresponse().status == 408


def test_a_head_that_does_not_come_ends_the_connection(strict: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", strict.port), timeout=10) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(9) == b"HTTP/1.1 "
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost:")
        while connection.recv(4096):
            pass


def test_a_full_queue_refuses_and_goes_on(strict: Running, body: bytes) -> None:
    with ThreadPoolExecutor(2) as pool:
        with Held(strict):
            accepted = [pool.submit(strict.predict, QUERY, body) for _ in range(2)]
            eventually(lambda: waiting(strict) == 2)
            refused = strict.predict(QUERY, body)
            assert refused.status == 429
            assert refused.headers["retry-after"] == "1"
            assert "busy: 2 requests wait" in refused.error
        assert [reply.result().status for reply in accepted] == [200, 200]
    assert strict.predict(QUERY, body).status == 200


def test_bytes_are_bounded_together(strict: Running, body: bytes) -> None:
    held = strict.service.admission
    held.count(45_000)
    try:
        reply = strict.predict(QUERY, body)
    finally:
        held.count(-45_000)
    assert reply.status == 429
    assert "45,000 bytes wait" in reply.error


def test_what_is_read_of_an_upload_counts_until_it_is_answered(strict: Running, body: bytes) -> None:
    admission, few = strict.service.admission, 300 * 3 * 8
    with ThreadPoolExecutor(1) as pool:
        with Held(strict):
            accepted = pool.submit(strict.predict, QUERY, body)
            eventually(lambda: admission._bytes > len(body))
            with admission.contents() as hold, pytest.raises(RefusedError, match="bytes wait"):
                hold(50_000 - len(body))
        assert accepted.result().status == 200
    eventually(lambda: admission._bytes == 0)
    with admission.contents() as hold, pytest.raises(RefusedError, match="takes 50,400 bytes, more than the 50,000"):
        hold(7 * few)


def test_what_was_read_is_counted_before_it_is_taken(
    parts_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole clouds are float64, eight times what a file of bytes takes; the process that read it goes on."""
    taken: list[int] = []
    monkeypatch.setattr("pointadapterx.serving.readers.loads", lambda data: taken.append(len(data)) or loads(data))
    query = "file=a.npy&condition=mug"
    with Running({"parts": parts_adapter}, queue_bytes=60_000, readers=1) as running:
        for count, status in ((3000, 413), (300, 200)):
            np.save(tmp_path / "a.npy", (100 * cloud(1, count)).astype(np.int8))
            reply = running.predict(query, (tmp_path / "a.npy").read_bytes())
            assert reply.status == status, reply.body
            assert status == 200 or "more than the 60,000 of all requests" in reply.error
        (process,) = running.service.readers._all
        assert process.process is not None
        assert [size < 60_000 for size in taken] == [True]
        assert running.metric("pointadapterx_queue_bytes") == 0
        with running.service.admission.contents() as hold:
            pass
        with pytest.raises(RefusedError, match="nobody waits"):  # who hung up while it was read
            hold(1)


def test_what_nobody_waits_for_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that hangs up while its upload is read: nothing is logged, and the process reads the next."""
    upload, reader = Upload(str(npy(tmp_path, 0)), "0.npy"), CloudReader(Path(), 64, True)

    def refuse(size: int) -> None:
        raise RefusedError(503, "nobody waits")

    async def use() -> None:
        readers = Readers(Limits(read_memory=512 * MEBI, readers=1))
        try:
            left = asyncio.ensure_future(readers.read(upload, reader, refuse))
            await asyncio.sleep(0)
            left.cancel()
            (found,) = await readers.read(upload, reader, lambda size: None)
            assert not isinstance(found.content, str)
        finally:
            readers.stop()

    asyncio.run(use())
    gc.collect()
    assert not caplog.records


def test_the_folder_of_adapters_is_listed_beside_the_loop(
    before: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be large, or far away: other requests go on."""
    shutil.copy(LORA, before / "a.safetensors")
    shutil.copy(LORA, before / "b.safetensors")
    with Running({}, before) as running:
        names, threads = running.service.catalog.names, set[str]()

        def listed() -> list[str]:
            threads.add(threading.current_thread().name)
            return names()

        monkeypatch.setattr(running.service.catalog, "names", listed)
        assert running.predict("file=a.npy", body).status == 400
        assert running.predict("adapter=c&file=a.npy", body).status == 404
        assert running.ask("DELETE", "/adapters/c").status == 404
        assert threads
        assert running._thread.name not in threads


def test_points_of_a_request_are_bounded(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.random.default_rng(0).normal(size=(3, 20, 3)).astype(np.float32)
    upload, reader = Upload(str(tmp_path / "a.h5"), "a.h5"), CloudReader(Path(), 64, True)
    whole = replace(reader, whole=True)
    assert len(reading.contents(upload, whole, Allowed(20, 3, 60))) == 3
    (found,) = reading.contents(upload, whole, Allowed(20, 3, 59))
    assert found.content == "a.h5: its clouds have more than the 59 points that are taken at a time; send them in parts"


def test_late_answers_and_clients_that_hang_up_are_dropped(body: bytes) -> None:
    with Running({"lora": LORA}, timeout=0.4, wait=0) as running:
        done = running.metric("pointadapterx_batch_samples_count")
        with Held(running):
            late = running.predict(QUERY, body)
            assert late.status == 504
            with running.connection() as connection:
                connection.request("POST", f"/predict?{QUERY}", body)
                eventually(lambda: waiting(running) == 1)
            eventually(lambda: running.metric("pointadapterx_dropped_total") == 1)
            assert waiting(running) == 0
        assert running.predict(QUERY, body).status == 200
        assert running.metric("pointadapterx_batch_samples_count") == done + 1  # of the last alone


def test_reading_is_bounded_in_memory_and_time(tmp_path: Path) -> None:
    """Whatever a hostile file does happens in a process of its own, which is replaced."""
    small, kind = npy(tmp_path, 1).read_bytes(), {"Content-Type": "application/json"}
    huge = f'{{"points": [{"[0,0,0]," * 1_000_000}[0,0,0]]}}'
    with Running({"lora": LORA}, upload=9 * MEBI, read_memory=64 * MEBI) as running:
        assert "takes more memory" in running.ask("POST", "/predict", huge, kind).error
        assert running.predict(QUERY, small).status == 200
    with Running({"lora": LORA}, read_seconds=1e-6) as running:
        for _ in range(2):
            reply = running.predict(QUERY, small)
            assert (reply.status, reply.error) == (422, "a.npy: reading it takes more than 1e-06 s; send fewer points")


def test_readers_are_started_together_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that died with nothing to do; what runs keeps its name ``__main__``."""
    main, limits = sys.modules["__main__"], Limits(readers=2, read_memory=512 * MEBI)
    upload, reader = Upload(str(npy(tmp_path, 4)), "a.npy"), CloudReader(Path(), 64, False)

    async def use() -> None:
        readers = Readers(limits)
        try:
            await readers.warm_up()
            assert sys.modules["__main__"] is main
            for one in readers._all:
                assert one.process is not None
                one.process.kill()
                one.process.join()
            (found,) = await readers.read(upload, reader, lambda size: None)
            assert not isinstance(found.content, str)
            monkeypatch.setattr(BaseProcess, "start", lambda self: os.stat(tmp_path / "gone"))
            with pytest.raises(RefusedError, match="the process that reads it does not start") as error:
                await readers.read(upload, reader, lambda size: None)
            assert error.value.status == 503
        finally:
            readers.stop()

    asyncio.run(use())


def test_a_slow_file_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """By default; a process that is stopped stands for one that reads for long."""
    upload, reader = Upload(str(npy(tmp_path, 4)), "a.npy"), CloudReader(Path(), 64, False)

    async def use() -> None:
        readers = Readers(Limits())
        try:
            await readers.warm_up()
            process = readers._all[0].process
            assert process is not None
            os.kill(process.pid or 0, signal.SIGSTOP)
            slow = asyncio.ensure_future(readers.read(upload, reader, lambda size: None))
            await asyncio.sleep(0)
            for _ in range(3):
                (found,) = await readers.read(upload, reader, lambda size: None)
                assert not isinstance(found.content, str)
            assert not slow.done()
            os.kill(process.pid or 0, signal.SIGCONT)
            (found,) = await slow
            assert not isinstance(found.content, str)
        finally:
            readers.stop()

    asyncio.run(use())


def test_an_adapter_that_fails_ends_what_others_do_for_the_request() -> None:
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("slow")

    async def failing() -> None:
        await asyncio.sleep(0)
        raise RefusedError(503, "no room")

    with pytest.raises(RefusedError, match="no room"):
        asyncio.run(service._all_of([slow(), failing()]))
    assert ended == ["slow"]


def test_a_reader_never_opens_what_an_upload_names(tmp_path: Path) -> None:
    secret = npy(tmp_path, 2)
    empty = tmp_path / "0.npy"
    empty.write_bytes(b"")
    (found,) = reading.contents(Upload(str(empty), str(secret)), CloudReader(Path(), 64, True), Allowed(1000, 1, 1000))
    assert found.content == f"{secret}: the file is empty (0 bytes); download it again"


def test_adapters_are_loaded_by_name_replaced_and_unloaded(before: Path, body: bytes) -> None:
    folder = before
    shutil.copy(BEFORE / "lora.safetensors", folder / "a.safetensors")
    shutil.copy(BEFORE / "linear.safetensors", folder.parent / "outside.safetensors")

    def answer() -> Any:
        reply = running.predict("adapter=a&file=a.npy", body)
        return reply.content["answers"] if reply.status == 200 else reply.error

    with Running({}, folder) as running:
        assert running.ask("GET", "/adapters").content == {"adapters": [{"name": "a", "loaded": False}]}
        first = answer()
        shutil.copy(BEFORE / "linear.safetensors", folder / "a.safetensors")
        assert answer() == first  # until it is loaded again
        assert running.ask("POST", "/adapters/a").content == {"name": "a", "loaded": True}
        second = answer()
        assert second != first
        (folder / "a.safetensors").write_bytes(b"broken")
        broken = running.ask("POST", "/adapters/a")
        assert broken.status == 422
        assert "a.safetensors" in broken.error
        assert broken.error.endswith("; the one that was loaded before goes on")
        assert answer() == second
        assert running.ask("DELETE", "/adapters/a").status == 200
        assert "a.safetensors" in answer()  # it is read again, and is still broken
        for name in ("..%2Foutside", "%2e%2e%2foutside", "outside", ".hidden", ""):
            assert running.ask("POST", f"/adapters/{name}").status in (404, 405)
        assert running.ask("POST", "/adapters/a%00").status == 404


def test_another_backbone_is_refused_and_the_rest_goes_on(
    before: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, metadata = read_safetensors(LORA)
    write_safetensors(before / "odd.safetensors", tensors, {**metadata, "backbone_hash": "0" * 64})
    with Running({"lora": LORA}, before) as running:
        reply = running.ask("POST", "/adapters/odd")
        assert reply.status == 422
        assert "belongs to the backbone with hash 0000" in reply.error
        assert running.predict(QUERY, body).status == 200
        with monkeypatch.context() as patch:
            patch.setattr(catalog, "read_adapter", lambda path: os.stat(before / "gone"))
            assert "cannot be read" in running.ask("POST", "/adapters/odd").error
        assert len(list(running.service._storage.glob("adapters/*"))) == 1  # copies of what cannot be loaded are gone


def test_the_least_recently_used_makes_room(before: Path, body: bytes) -> None:
    """Its copy is loaded again when it is asked for, even if its file is gone."""
    names = ("lora", "dapt_x", "linear")
    sources = {name: before / f"{name}.safetensors" for name in names}
    for path in sources.values():
        shutil.copy(BEFORE / path.name, path)
    with Running(sources) as running:
        wanted = {name: running.predict(f"adapter={name}&file=a.npy", body).content for name in names}
        full = running.metric("pointadapterx_adapters_bytes")
    with Running(sources, memory=int(full) - 1) as running:
        for path in sources.values():
            path.unlink()
        for name in (*names, *names):
            assert running.predict(f"adapter={name}&file=a.npy", body).content == wanted[name]
            assert running.metric("pointadapterx_adapters_bytes") < full
        assert running.metric("pointadapterx_adapter_evictions_total") >= 3
        running.service.batcher._residents._bound = 100
        reply = running.predict(QUERY, body)
        assert reply.status == 503
        assert "MiB with its backbone, more than the 0.0 MiB of --memory" in reply.error


def test_an_adapter_that_is_too_large_disturbs_no_other(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is loaded to be measured, while the others stay; here as one that was not asked for yet."""
    loaded: list[str] = []
    load = Residents._loaded

    def counted(self: Residents, served: Served) -> Resident:
        loaded.append(served.name)
        return load(self, served)

    monkeypatch.setattr(Residents, "_loaded", counted)
    with Running({name: BEFORE / f"{name}.safetensors" for name in ("linear", "dapt_x")}) as running:
        residents = running.service.batcher._residents
        residents.drop(next(one.served for one in residents._residents.values() if one.served.name == "dapt_x"))
        residents._bound = residents.total
        running.service.catalog._served.pop("dapt_x")
        loaded.clear()
        for _ in range(2):
            reply = running.predict("adapter=dapt_x&file=a.npy", body)
            assert reply.status == 503
            assert "the adapter dapt_x takes" in reply.error
            assert running.predict("adapter=linear&file=a.npy", body).status == 200
        assert loaded == ["dapt_x"] * 2
        assert running.metric("pointadapterx_adapter_evictions_total") == 0


@pytest.mark.parametrize("evicting", [views.seen, Served.answers])
def test_a_backbone_that_is_loaded_while_another_computes_takes_adapters(
    evicting: Callable[..., Any], body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both compute in inference mode, and what is loaded in it could not be changed any more."""

    def evicted(served: Served, *arguments: Any) -> Any:
        for one in [resident.served for resident in residents._residents.values()]:
            residents.drop(one)
        return evicting(served, *arguments)

    with Running({name: BEFORE / f"{name}.safetensors" for name in ("lora", "dapt_x")}) as running:
        residents = running.service.batcher._residents
        where = views if evicting is views.seen else Served
        with monkeypatch.context() as patch:
            patch.setattr(where, evicting.__name__, evicted)
            assert running.ask("POST", f"/look?{QUERY}", body).status == 200
        for _ in range(2):
            assert running.predict(f"{QUERY}&adapter=dapt_x", body).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
    ],
)
def test_pages_of_other_sites_get_nothing(strict: Running, headers: dict[str, str], status: int) -> None:
    reply = strict.ask("GET", "/adapters", headers=headers)
    assert reply.status == status
    assert reply.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert "access-control-allow-origin" not in reply.headers


def test_a_token_opens_what_is_not_the_page(body: bytes) -> None:
    token = "correct-horse-battery"
    with Running({"lora": LORA}, token=token) as running:
        assert running.ask("GET", "/").status == running.ask("GET", "/healthz").status == 200
        for path in ("/adapters", "/metrics", "/predict", "/docs"):
            for given in ("", "Bearer wrong", token, "Bearer  " + token, "Bearer ü"):
                reply = running.ask("GET", path, headers={"Authorization": given.encode()} if given else {})
                assert reply.status == 401, path
        for scheme in ("Bearer", "bearer"):
            headers = {"Authorization": f"{scheme} {token}", "Host": "a.name.of.its.own"}
            assert running.ask("POST", f"/predict?{QUERY}", body, headers).status == 200


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "expected"),
    [
        (1024, 4096, True, 1024),
        (1024, 1024, True, 448),  # (1024 - 128) / 2
        (1024, 4096, False, 448),
        (10, 10, True, 1),
        (server.resource.RLIM_INFINITY, server.resource.RLIM_INFINITY, True, 1024),
    ],
)
def test_connections_leave_room_for_files(
    soft: int, hard: int, raised: bool, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def set_limit(_: int, wanted: tuple[int, int]) -> None:
        asked.append(wanted)
        if not raised:
            raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(server.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(server.resource, "setrlimit", set_limit)
    assert server.most_connections(256) == expected
    assert asked == ([(hard, hard)] if soft != hard else [])


def test_a_body_that_cannot_be_kept_is_refused_and_the_next_is_taken(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with Running({"lora": LORA}) as running:
        with monkeypatch.context() as patch:
            patch.setattr("pointadapterx.serving.admission.open", full, raising=False)
            reply = running.ask("POST", f"/predict?{QUERY}", body)
            assert reply.status == 503
            assert "cannot be kept now (Too many open files); try again later" in str(reply.body)
        assert running.ask("POST", f"/predict?{QUERY}", body).status == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: others can reach it, so a token is needed"),
        (["--token-file", "missing"], "--token-file missing: cannot be read"),
        (["--token-file", "short"], "a token has at least 16 letters"),
        (["a=b.safetensors", "a=c.safetensors"], "are both named 'a'"),
        (["../x y.safetensors"], "'x y.safetensors' cannot be an adapter's name"),
        (["nothing"], "nothing: no such run or file"),
        (["--host", "no.such.host.invalid", "--token-file", "long"], "cannot be listened at"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("123")
    Path("long").write_text("correct-horse-battery")
    assert main(["serve", "--port", "0", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("signals", [1, 2])
def test_what_is_cut_off_at_the_end_is_refused_and_counted(signals: int, body: bytes) -> None:
    """When the time to drain is over, or at a second Ctrl-C."""
    with Running({"lora": LORA}, wait=0) as running, ThreadPoolExecutor(1) as pool, Held(running):
        reply = pool.submit(running.predict, QUERY, body)
        eventually(lambda: waiting(running) == 1)
        if signals == 1:
            running.server.config.timeout_graceful_shutdown = cast(int, 0.05)
        for _ in range(signals):
            running.server.handle_exit(signal.SIGINT, None)
        assert reply.result().status == 503
        assert reply.result().error == "the server was stopped before it could answer"
        assert running.service.unanswered == 1
    assert server.last_words(1) == "stopped without an answer to 1 request"


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_signal_ends_a_process_once_what_it_accepted_is_answered(tmp_path: Path) -> None:
    body, output = npy(tmp_path, 3, 2000).read_bytes(), tmp_path / "output"
    output.touch()
    options = ["--port", "0", "--wait", "60000", "--batch-size", "64"]  # so that all of them wait
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    process = start(ROOT / "tools" / "main.py", ["serve", str(READY), *options], environment, output)
    try:
        eventually(lambda: "Ctrl-C" in output.read_text(), 60)
        port = int(output.read_text().partition("http://127.0.0.1:")[2].partition("/")[0])

        def ask(method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read().decode()

        with ThreadPoolExecutor(16) as pool:
            replies = [pool.submit(ask, "POST", "/predict?file=a.npy", body) for _ in range(16)]
            waiting = r"^pointadapterx_queue_requests 16\.0$"
            try:
                eventually(lambda: re.search(waiting, ask("GET", "/metrics")[1], re.MULTILINE) is not None, 30)
            except AssertionError:
                early = [reply.result() for reply in replies if reply.done()]
                raise AssertionError(f"{early}\n{ask('GET', '/metrics')[1]}\n{output.read_text()}") from None
            os.kill(process.pid or 0, signal.SIGTERM)
            assert [reply.result()[0] for reply in replies] == [200] * 16
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert output.read_text().endswith("stopped: what was accepted is answered\n")
    assert list(tmp_path.glob("pointadapterx-serve-*")) == []
    with pytest.raises(ConnectionRefusedError):
        ask("GET", "/healthz")


def test_an_array_is_bounded_as_a_file_is(strict: Running) -> None:
    body = json.dumps({"points": cloud(0, 501).round(2).tolist()})
    reply = strict.ask("POST", "/predict", body, {"Content-Type": "application/json"})
    assert "501 points, more than the 500" in reply.error
