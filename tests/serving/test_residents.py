"""Which models stay in memory, and what is counted of them."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from pointadapterx import build_model
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.errors import CheckpointError
from pointadapterx.models.packing import packed_precisions
from pointadapterx.serving.residents import Resident, Residents
from pointadapterx.serving.served import Served
from tests.conftest import small_config
from tests.serving.running import BEFORE, Running, eventually, npy

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


needs_both = pytest.mark.skipif(
    not {HALF, SINGLE} <= set(packed_precisions()), reason="this processor packs no weights in fp32"
)


@needs_both
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


@needs_both
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


@needs_both
def test_precisions_make_room_for_each_other(folder: Path, body: bytes) -> None:
    with Running({"c": folder / "c.safetensors"}, folder) as running:
        bound = size(running)
    with Running({"c": folder / "c.safetensors"}, folder, memory=bound) as running:
        for name in ("a", "c", "a", "a", "c"):
            assert running.predict(f"adapter={name}&file=a.npy", body).status == 200
            assert loaded(running) == {name}
            assert size(running) <= bound


def test_precisions_share_no_pass(folder: Path) -> None:
    with Running({name: folder / f"{name}.safetensors" for name in "abc"}) as running:
        shares = {one.served.name: one.served.shares for one in residents_of(running)._residents.values()}
        found = {one.served.name: one.served.precision for one in residents_of(running)._residents.values()}
    assert shares["a"] == shares["b"] != shares["c"]
    assert found == {"a": HALF if torch.cpu._is_avx512_bf16_supported() else found["a"], "b": found["a"], "c": SINGLE}


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


def test_an_adapter_is_loaded_once_for_all_who_ask(folder: Path, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have places in the queue, wait no longer than others, and need not wait to the end."""
    going, loads = threading.Event(), []
    load = Residents._loaded

    def slow(self: Residents, served: Served) -> Resident:
        loads.append(served.name)
        assert going.wait(20)
        return load(self, served)

    with Running({"a": folder / "a.safetensors"}, folder, queue=3, timeout=1) as running, ThreadPoolExecutor(8) as pool:
        monkeypatch.setattr(Residents, "_loaded", slow)
        asked = [pool.submit(running.predict, "adapter=b&file=a.npy", body) for _ in range(5)]
        statuses = [one.result().status for one in asked]
        assert sorted(statuses) == [429, 429, 504, 504, 504]
        assert running.ask("GET", "/healthz").status == 200
        going.set()
        eventually(lambda: loaded(running) == {"a", "b"})
        assert running.predict("adapter=b&file=a.npy", body).status == 200
    assert loads == ["b"]


def test_a_load_that_fails_after_all_have_left_says_nothing(
    folder: Path, body: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    going = threading.Event()

    def fails(*_: object) -> None:
        assert going.wait(20)
        raise CheckpointError("is of no use")

    with Running({"a": folder / "a.safetensors"}, folder, timeout=0.5) as running:
        with monkeypatch.context() as patch:
            patch.setattr(Residents, "_loaded", fails)
            assert running.predict("adapter=b&file=a.npy", body).status == 504
            going.set()
            eventually(lambda: not running.service.catalog._coming)
            assert running.predict("adapter=b&file=a.npy", body).error == "adapter b: is of no use"
        assert running.predict("adapter=b&file=a.npy", body).status == 200
    gc.collect()
    assert "never retrieved" not in caplog.text
