"""Which models stay in memory, and what is counted of them."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pointadapterx import build_model
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.engine.precision import multiplies_bf16
from pointadapterx.errors import CheckpointError
from pointadapterx.models import packing
from pointadapterx.models.packing import packed_precisions
from pointadapterx.serving.residents import Resident, Residents
from pointadapterx.serving.served import Served
from tests.conftest import small_config
from tests.serving.running import BEFORE, Held, Running, eventually, npy

HALF, SINGLE = torch.bfloat16, torch.float32
BEHIND = ("lora", "dapt_x", "linear")


@pytest.fixture
def body(tmp_path: Path) -> bytes:
    return npy(tmp_path, 0).read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Adapters on a backbone wide enough to be packed: a, b and d of bf16, c of fp32, and two of full fine-tuning."""
    made = tmp_path / "adapters"
    made.mkdir()
    wide = {"dim": 128, "depth": 2, "num_heads": 2}
    names = {"a": "bf16", "b": "bf16", "c": "fp32", "d": "bf16", "full1": "fp32", "full2": "fp32"}
    for name, precision in names.items():
        method = "full" if name.startswith("full") else "linear"
        config = small_config(method, backbone=wide, train={"precision": precision})
        torch.manual_seed(0)
        model = build_model(config)
        classes = [f"class {number}" for number in range(model.head.num_classes)]
        save_adapter(model, made / f"{name}.safetensors", config=config, classes=classes)
    return made


def size(running: Running) -> int:
    return int(running.metric("pointadapterx_adapters_bytes"))


def loaded(running: Running) -> set[str]:
    return {one.served.name for one in residents_of(running)._residents.values()}


def residents_of(running: Running) -> Residents:
    return running.service.batcher._residents


def packs_of(running: Running) -> int:
    """Bytes of packs as they are counted."""
    residents = residents_of(running)
    return sum(bank.nbytes() - bank.nbytes(packed=False) for bank in residents._banks.values())


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights are packed in both precisions, wherever the tests run."""
    monkeypatch.setattr(packing, "_mkl_is_slow", lambda: True)
    packing._tried_precisions.cache_clear()
    try:
        if not {HALF, SINGLE} <= set(packed_precisions()) or not multiplies_bf16(torch.device("cpu")):
            pytest.skip("this processor or torch has no such packed products")
        yield
    finally:
        packing._tried_precisions.cache_clear()


@pytest.mark.usefixtures("both")
def test_a_precision_that_no_adapter_has_is_not_counted(folder: Path, body: bytes) -> None:
    with Running({"a": folder / "a.safetensors"}, folder) as running:
        alone, packs = size(running), packs_of(running)
        assert packs > 0
        assert running.predict("adapter=a&file=a.npy", body).status == 200
        assert (size(running), packs_of(running)) == (alone, packs)  # what was expected has come
        assert running.predict("adapter=c&file=a.npy", body).status == 200
        assert packs_of(running) == 3 * packs
        assert running.ask("DELETE", "/adapters/c").status == 200
        assert (size(running), packs_of(running)) == (alone, packs)


@pytest.mark.usefixtures("both")
def test_a_refused_adapter_leaves_what_was_there(folder: Path, body: bytes) -> None:
    """It would fit but for the packs of its precision, which are then not counted for the others."""
    with Running({"a": folder / "a.safetensors"}, folder) as running:
        alone = size(running)
        assert running.predict("adapter=b&file=a.npy", body).status == 200
        two, packs = size(running), packs_of(running)
    with Running({"a": folder / "a.safetensors"}, folder, memory=two + (two - alone)) as running:
        for name, status in [("b", 200), ("c", 503), ("b", 200), ("d", 200), ("c", 503), ("a", 200), ("b", 200)]:
            reply = running.predict(f"adapter={name}&file=a.npy", body)
            assert reply.status == status, (name, reply.body)
            assert packs_of(running) == packs
        assert loaded(running) == {"a", "b", "d"}
        assert running.metric("pointadapterx_adapters_loaded") == 3
        assert running.metric("pointadapterx_adapter_evictions_total") == 0


@pytest.mark.usefixtures("both")
def test_precisions_make_room_for_each_other(folder: Path, body: bytes) -> None:
    with Running({"c": folder / "c.safetensors"}, folder) as running:
        bound = size(running)
    with Running({"c": folder / "c.safetensors"}, folder, memory=bound) as running:
        for name in ("a", "c", "a", "a", "c"):
            assert running.predict(f"adapter={name}&file=a.npy", body).status == 200
            assert loaded(running) == {name}
            assert size(running) <= bound


@pytest.mark.skipif(not multiplies_bf16(torch.device("cpu")), reason="this processor computes all in fp32")
def test_precisions_share_no_pass(folder: Path) -> None:
    with Running({name: folder / f"{name}.safetensors" for name in "abc"}) as running:
        shares = {one.served.name: one.served.shares for one in residents_of(running)._residents.values()}
        found = {one.served.name: one.served.precision for one in residents_of(running)._residents.values()}
    assert shares["a"] == shares["b"] != shares["c"]
    assert found == {"a": HALF, "b": HALF, "c": SINGLE}


@pytest.mark.parametrize("kept", [True, False])
def test_models_that_leave_are_freed_at_once(
    folder: Path, body: bytes, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Not at the next collection of garbage: those that made room, and those that were refused."""
    models: list[Any] = []
    load = Residents._loaded

    def seen(self: Residents, served: Served) -> Resident:
        found = load(self, served)
        if served.name.startswith("full"):
            models.append(weakref.ref(found.alone))
        return found

    monkeypatch.setattr(Residents, "_loaded", seen)
    with Running({}, folder) as running:
        assert running.predict("adapter=full1&file=a.npy", body).status == 200
        one = size(running)
        models.clear()
    with Running({}, folder, memory=one if kept else one - 1) as running:
        gc.collect()
        gc.disable()
        try:
            for number in (1, 2, 1, 2):
                assert running.predict(f"adapter=full{number}&file=a.npy", body).status == (200 if kept else 503)
            eventually(lambda: sum(model() is not None for model in models) == int(kept))
        finally:
            gc.enable()
        assert len(models) == 4


def test_the_least_recently_used_leaves(body: bytes) -> None:
    """Not the one that came first."""
    sources = {name: BEFORE / f"{name}.safetensors" for name in BEHIND}
    with Running(sources) as running:
        full = size(running)
    with Running({name: sources[name] for name in BEHIND[:2]}, BEFORE, memory=full - 1) as running:
        for name in BEHIND[:2]:
            assert running.predict(f"adapter={name}&file=a.npy", body).status == 200
        assert loaded(running) == set(BEHIND[:2])
        assert running.predict(f"adapter={BEHIND[0]}&file=a.npy", body).status == 200
        assert running.predict(f"adapter={BEHIND[2]}&file=a.npy", body).status == 200
        assert loaded(running) == {BEHIND[0], BEHIND[2]}


def hold_loads(monkeypatch: pytest.MonkeyPatch, loads: list[str]) -> threading.Event:
    """What lets them go on."""
    going, load = threading.Event(), Residents._loaded

    def slow(self: Residents, served: Served) -> Resident:
        loads.append(served.name)
        assert going.wait(60)
        return load(self, served)

    monkeypatch.setattr(Residents, "_loaded", slow)
    return going


def take(running: Running, seconds: float) -> None:
    """Time that requests may take from now on."""
    running.service.limits = replace(running.service.limits, timeout=seconds)


def test_an_adapter_is_loaded_once_for_all_who_ask(folder: Path, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have places in the queue, wait no longer than others, and need not wait to the end."""
    loads: list[str] = []
    with Running({"a": folder / "a.safetensors"}, folder, queue=3) as running, ThreadPoolExecutor(8) as pool:
        going = hold_loads(monkeypatch, loads)
        take(running, 4)
        asked = [pool.submit(running.predict, "adapter=b&file=a.npy", body) for _ in range(3)]
        eventually(lambda: running.metric("pointadapterx_queue_requests") == 3, 3)
        assert running.predict("adapter=b&file=a.npy", body).status == 429
        assert [one.result().status for one in asked] == [504] * 3
        assert running.ask("GET", "/healthz").status == 200
        take(running, 60)
        going.set()
        eventually(lambda: loaded(running) == {"a", "b"})
        assert running.predict("adapter=b&file=a.npy", body).status == 200
    assert loads == ["b"]


def test_a_load_that_waits_is_given_up_when_nobody_waits_for_it(
    folder: Path, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    with Running({"a": folder / "a.safetensors"}, folder) as running, ThreadPoolExecutor(8) as pool:
        going = hold_loads(monkeypatch, loads)
        take(running, 1)
        asked = [pool.submit(running.predict, f"adapter={name}&file=a.npy", body) for name in ("b", "c", "d")]
        assert [one.result().status for one in asked] == [504] * 3
        take(running, 60)
        going.set()
        eventually(lambda: not running.service.catalog._loads)
        assert running.predict("adapter=full1&file=a.npy", body).status == 200
    assert len(loads) == 2
    assert loads[-1] == "full1"


def test_a_load_that_fails_after_all_have_left_says_nothing(
    folder: Path, body: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    going = threading.Event()

    def fails(*_: object) -> None:
        assert going.wait(60)
        raise CheckpointError("is of no use")

    with Running({"a": folder / "a.safetensors"}, folder) as running:
        take(running, 1)
        with monkeypatch.context() as patch:
            patch.setattr(Residents, "_loaded", fails)
            assert running.predict("adapter=b&file=a.npy", body).status == 504
            going.set()
            eventually(lambda: not running.service.catalog._loads)
            take(running, 60)
            assert running.predict("adapter=b&file=a.npy", body).error == "adapter b: is of no use"
        assert running.predict("adapter=b&file=a.npy", body).status == 200
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_no_body_takes_the_place_of_an_adapter(folder: Path, body: bytes) -> None:
    """Whatever its file is called, and though it is not known yet what its adapter reads."""
    with Running({"a": folder / "a.safetensors"}, folder) as running:
        copies = {path: path.read_bytes() for path in running.service._storage.glob("adapters/*")}
        assert len(copies) == 1
        for name in (*(f"{number}.safetensors" for number in range(9)), "a." + 250 * "%F0%9F%98%80"):
            reply = running.predict(f"adapter=b&file={name}", b"rubbish")
            assert reply.status == 415
            assert "is no kind of file that is read here" in reply.error
        assert "has no suffix that is read" in running.predict("adapter=b&file=a", b"rubbish").error
        assert {path: path.read_bytes() for path in running.service._storage.glob("adapters/*")} == copies
        residents_of(running).drop(running.service.catalog._served["a"])
        assert running.predict("adapter=a&file=a.npy", body).status == 200


def test_what_was_lent_is_given_back_by_whoever_is_cancelled(folder: Path) -> None:
    with Running({name: folder / f"{name}.safetensors" for name in "ab"}) as running:
        catalog, old = running.service.catalog, dict(running.service.catalog._served)

        async def use() -> None:
            async with catalog.lent(["a", "b"]):
                await asyncio.sleep(60)

        def on_loop(work: Coroutine[Any, Any, None]) -> Future[None]:
            return asyncio.run_coroutine_threadsafe(work, running.loop)

        using = on_loop(use())
        eventually(lambda: [one.users for one in old.values()] == [1, 1])
        assert running.ask("POST", "/adapters/a").status == 200
        with Held(running):
            using.cancel()
            eventually(lambda: [one.users for one in old.values()] == [0, 0])
        on_loop(catalog.settle()).result(30)
        assert [old[name].copy.exists() for name in "ab"] == [False, True]
        assert {one.served for one in residents_of(running)._residents.values()} == set(catalog._served.values())
