"""The queue before the model: who is computed with whom, and when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.inputs import Batch
from pointadapterx.engine.input_form import Failure
from pointadapterx.serving import batcher
from pointadapterx.serving.batcher import Batcher
from pointadapterx.serving.limits import Limits, RefusedError
from pointadapterx.serving.metrics import Metrics
from pointadapterx.serving.residents import Residents
from pointadapterx.tasks.exchange import Piece, Ready


class Fake:
    """Answers with the names of what it is given, and keeps its batches; its model shares nothing."""

    bank = None

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name = self.key = self.shares = name
        self.error = error
        self.batches: list[list[str]] = []

    def batch(self, ready: Sequence[Ready]) -> Batch:
        return Batch(torch.stack([item.values for item in ready]), Targets())

    def answers(self, ready: Sequence[Ready], batch: Batch) -> list[list[Failure]]:
        assert len(batch.inputs) == len(ready)
        self.batches.append([item.name for item in ready])
        if self.error is not None:
            raise self.error
        return [[Failure(item.name, self.name)] for item in ready]


class Kin(Fake):
    """Of a kind that could share a pass, if it were in a bank."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        super().__init__(name, error)
        self.shares = "kin"


class Fakes:
    """In the place of residents; its memory ends at the given call."""

    def __init__(self, short: int = 0) -> None:
        self.short, self.calls = short, 0

    def resident(self, served: Fake) -> Fake:
        self.calls += 1
        if self.calls == self.short:
            raise MemoryError
        return served


def inputs(name: str, count: int) -> list[Ready]:
    return [Ready(f"{name}{number}", torch.zeros(1, 3), []) for number in range(count)]


def run(*asked: tuple[Any, list[Ready]], batch: int = 4, short: int = 0) -> list[Any]:
    """What becomes of works that are all there when the thread begins."""

    async def main() -> list[Any]:
        queue = Batcher(Limits(batch=batch, wait=0), cast(Residents, Fakes(short)), Metrics())
        go = threading.Event()
        blocked = asyncio.ensure_future(queue.call(go.wait))
        works = [asyncio.ensure_future(queue.compute(served, ready)) for served, ready in asked]
        await asyncio.sleep(0.01)
        go.set()
        found = await asyncio.gather(*works, return_exceptions=True)
        await blocked
        await asyncio.to_thread(queue.stop)
        assert not queue.alive
        return found

    return asyncio.run(main())


def test_a_large_request_does_not_keep_the_others_waiting() -> None:
    adapter = Fake("a")
    found = run((adapter, inputs("many", 7)), (adapter, inputs("one", 1)), (adapter, inputs("two", 2)))
    assert adapter.batches == [
        ["many0", "one0", "two0", "many1"],
        ["two1", "many2", "many3", "many4"],
        ["many5", "many6"],
    ]
    assert [[one().name for one in finish] for finish in found] == [
        [f"many{number}" for number in range(7)],
        ["one0"],
        ["two0", "two1"],
    ]


def test_a_batch_is_of_what_can_share_a_pass_and_the_oldest_is_in_the_next() -> None:
    """Requests of one kind do not wait for ever behind those of another."""
    one, two, other = Kin("one"), Kin("two"), Fake("other")
    asked = (one, inputs("a", 1)), (other, inputs("b", 5)), (two, inputs("c", 1)), (one, inputs("d", 4))
    run(*asked, (other, inputs("e", 1)))
    assert (one.batches, two.batches) == ([["a0", "d0", "d1"], ["d2", "d3"]], [["c0"]])
    assert other.batches == [["b0", "e0", "b1", "b2"], ["b3", "b4"]]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (RuntimeError("a fault"), 500, "the server's log says how"),
        (MemoryError(), 503, "not enough memory"),
        (RefusedError(507, "no room"), 507, "no room"),
    ],
)
def test_an_adapter_that_fails_does_not_take_others_along(error: Exception, status: int, words: str) -> None:
    good, bad = Fake("good"), Fake("bad", error)
    failed, fine, *_ = run((bad, inputs("a", 5)), (good, inputs("b", 2)), (bad, inputs("c", 1)))
    assert isinstance(failed, RefusedError)
    assert failed.status == status
    assert words in str(failed)
    assert [one().name for one in fine] == ["b0", "b1"]
    assert good.batches == [["b0", "b1"]]
    assert bad.batches == [["a0", "c0", "a1", "a2"]]  # the rest of a request that failed is left out


@pytest.mark.parametrize("short", [1, 2, 3, 4])
def test_the_thread_outlives_memory_that_ends_between_passes(short: int) -> None:
    """Whenever an adapter is looked up: adapters of one kind are, again, before they share a pass."""
    good, other = Kin("good"), Kin("other")
    found = run((good, inputs("a", 1)), (other, inputs("b", 1)), (good, inputs("c", 4)), short=short)
    refused = [one for one in found if isinstance(one, RefusedError)]
    assert [one.status for one in refused] == ([503] if short == 2 else [503, 503] if short == 1 else [])
    assert all(len(one) for one in found if one not in refused)


def test_the_thread_outlives_answers_that_cannot_be_joined() -> None:
    """Each of them ends the request that it is of."""
    cut, good = Fake("cut"), Fake("good")
    pieces = [replace(item, piece=cast(Piece, object())) for item in inputs("a", 2)]
    failed, *fine = run((cut, pieces), (good, inputs("b", 1)), (good, inputs("c", 1)), batch=3)
    assert failed.status == 500
    assert [[one().name for one in finish] for finish in fine] == [["b0"], ["c0"]]


def test_the_thread_outlives_a_fault_between_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "answers_of", lambda asked, residents: asked[None])
    found = run((Fake("a"), inputs("a", 2)), (Fake("b"), inputs("b", 1)), batch=2)
    assert [one.status for one in found] == [500, 500]
