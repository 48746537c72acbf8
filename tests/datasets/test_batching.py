"""Batches: every sample once, even sizes, the same step however it is cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pointadapterx.datasets import EvalBatches, even_batches
from pointadapterx.errors import ConfigError


@given(
    n=st.integers(1, 300),
    batch_size=st.integers(1, 64),
    world_size=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    epoch=st.integers(0, 5),
)
def test_every_sample_once_in_even_batches(
    n: int, batch_size: int, world_size: int, accumulate: int, epoch: int
) -> None:
    steps = -(-n // batch_size)
    assume(n // steps >= 2 * world_size * accumulate)
    ranks = [
        even_batches(n, batch_size, 0, epoch, rank=rank, world_size=world_size, accumulate=accumulate)
        for rank in range(world_size)
    ]
    assert [len(batches) for batches in ranks] == [steps] * world_size
    batches = [torch.cat([micro for batches in ranks for micro in batches[i]]) for i in range(steps)]
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert torch.cat(batches).sort().values.tolist() == list(range(n))
    for i in range(steps):
        shards = [len(micro) for batches in ranks for micro in batches[i]]
        assert len(shards) == world_size * accumulate
        assert max(shards) - min(shards) <= 1
        assert min(shards) >= 2


def test_a_step_is_the_same_for_processes_and_accumulation() -> None:
    one = [torch.cat(step) for step in even_batches(100, 32, 1, 2)]
    accumulated = even_batches(100, 32, 1, 2, accumulate=4)
    ranks = [even_batches(100, 32, 1, 2, rank=rank, world_size=2, accumulate=2) for rank in range(2)]
    for i, batch in enumerate(one):
        assert torch.equal(torch.cat(accumulated[i]), batch)
        assert torch.equal(torch.cat([*ranks[0][i], *ranks[1][i]]), batch)
        for a, b in zip(accumulated[i], [*ranks[0][i], *ranks[1][i]], strict=True):
            assert torch.equal(a, b)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat([torch.cat(step) for step in even_batches(50, 8, seed, epoch)]).tolist()

    torch.manual_seed(1)
    first = order(3, 4)
    torch.manual_seed(2)
    assert order(3, 4) == first
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_no_batch_of_one_and_a_small_set_trains() -> None:
    assert [len(step[0]) for step in even_batches(33, 32, 0, 0)] == [17, 16]
    assert [len(step[0]) for step in even_batches(5, 32, 0, 0)] == [5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 1, "batch_size": 8}, "use at least 2 samples"),
        ({"num_samples": 0, "batch_size": 8}, "0 training samples"),
        ({"num_samples": 7, "batch_size": 32, "world_size": 2, "accumulate": 2}, "use at least 8 samples"),
        ({"num_samples": 100, "batch_size": 4, "world_size": 4}, "world_size=4 and accumulate=1"),
        ({"num_samples": 100, "batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"num_samples": 100, "batch_size": 8, "accumulate": 0}, "accumulate=0 must be at least 1"),
        ({"num_samples": 100, "batch_size": 8, "rank": 2, "world_size": 2}, "rank=2 must be from 0 to 1"),
    ],
)
def test_impossible_batches(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        even_batches(**arguments, seed=0, epoch=0)
    assert message in str(error.value)


@given(n=st.integers(2, 60), batch_size=st.integers(1, 8), shards=st.integers(1, 4))
def test_the_batch_size_that_the_error_names_works(n: int, batch_size: int, shards: int) -> None:
    try:
        even_batches(n, batch_size, 0, 0, accumulate=shards)
    except ConfigError as error:
        if "raise batch_size to " not in str(error):
            assert n < 2 * shards
            return
        named = int(str(error).split("raise batch_size to ")[1].split(",")[0])
        assert named > batch_size
        assert even_batches(n, named, 0, 0, accumulate=shards)


@given(n=st.integers(0, 200), batch_size=st.integers(1, 40), world_size=st.integers(1, 5))
def test_evaluation_sees_every_sample_once_in_order(n: int, batch_size: int, world_size: int) -> None:
    ranks = [EvalBatches(n, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = {int(batch[0]): batch.tolist() for rank in ranks for batch in rank}
    assert sum(len(rank) for rank in ranks) == len(batches)
    assert [i for start in sorted(batches) for i in batches[start]] == list(range(n))
    assert all(start % batch_size == 0 for start in batches)
    assert max(len(rank) for rank in ranks) - min(len(rank) for rank in ranks) <= 1


def test_evaluation_batches_go_round_the_ranks() -> None:
    assert [batch.tolist() for batch in EvalBatches(10, 3, rank=1, world_size=2)] == [[3, 4, 5], [9]]
    batches = EvalBatches(10, 3)
    assert [len(batch) for batch in batches] == [len(batch) for batch in batches] == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("arguments", "message"), [({"batch_size": 0}, "batch_size=0"), ({"batch_size": 1, "rank": 1}, "rank=1 must be")]
)
def test_impossible_evaluation(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvalBatches(10, **arguments)
