"""Assigns samples to batches and processes, as a function of seed and epoch only."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pointadapterx.errors import ConfigError
from pointadapterx.hashing import derive_seed

__all__ = ["EvalBatches", "balanced_order", "derive_seed", "even_batches"]

MIN_SHARD = 2  # BatchNorm cannot train on one sample


def even_batches(
    num_samples: int,
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    strata: torch.Tensor | None = None,
    repeats: bool = False,
) -> list[list[torch.Tensor]]:
    """Training batches of one epoch that use every sample once.

    A permutation that depends only on ``(seed, epoch)`` is cut into ``ceil(num_samples / batch_size)`` batches
    whose sizes differ by at most one, so there is no small last batch, and a set smaller than a batch is one
    batch. Each batch is cut into ``world_size * accumulate`` shards, again nearly equal: the same optimiser step
    whether they are processes or accumulated. Weigh a micro-batch by its size where exactness matters.

    Args:
        num_samples: size of the training set.
        batch_size: of all processes and accumulation steps together.
        seed: of the run.
        epoch: number of the epoch.
        rank: this process.
        world_size: number of processes.
        accumulate: micro-batches an optimiser step.
        strata: ``(num_samples,)`` int64, for instance class labels. Every one of them is drawn equally often, as in
            :func:`balanced_order`, instead of every sample once.
        repeats: returns, in the place of each sample, how often the epoch has drawn it before.

    Returns:
        One list an optimiser step, holding this rank's ``accumulate`` micro-batches of sample indices (int64).

    Raises:
        ConfigError: if a micro-batch would hold fewer than 2 samples.
    """
    for name, value in (("batch_size", batch_size), ("world_size", world_size), ("accumulate", accumulate)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank={rank} must be from 0 to {world_size - 1} for world_size={world_size}")
    shards = world_size * accumulate
    steps = -(-num_samples // batch_size)
    if num_samples < MIN_SHARD * shards or num_samples // steps < MIN_SHARD * shards:
        raise ConfigError(_too_small(num_samples, batch_size, world_size, accumulate))
    generator = torch.Generator().manual_seed(derive_seed(seed, "batches", epoch))
    if strata is None:
        order = torch.randperm(num_samples, generator=generator)
    else:
        order = balanced_order(strata, generator)
    if repeats:
        order = _times_before(order)
    return [
        list(batch.tensor_split(shards)[rank * accumulate : (rank + 1) * accumulate])
        for batch in order.tensor_split(steps)
    ]


def _times_before(order: torch.Tensor) -> torch.Tensor:
    """How often each number of ``order`` (n,) occurs before its place, (n,) int64."""
    numbers, places = order.sort(stable=True)
    counts = numbers.unique_consecutive(return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    found = torch.empty_like(order)
    found[places] = torch.arange(len(order)) - starts.repeat_interleave(counts)
    return found


def balanced_order(strata: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """As many draws as there are samples, with the same share of every stratum, up to one draw.

    Within a stratum no sample is drawn once more before all others were drawn as often.

    Args:
        strata: ``(n,)`` int64.
        generator: on the CPU.

    Returns:
        ``(n,)`` int64 indices in random order.

    Raises:
        ConfigError: if there is one stratum alone.
    """
    numbers = strata.unique()
    if len(numbers) < 2:
        raise ConfigError("train.sampler=balanced: all training samples are of one class; remove it, or use shuffle")
    share, rest = divmod(len(strata), len(numbers))
    one_more = set(torch.randperm(len(numbers), generator=generator)[:rest].tolist())
    drawn = []
    for place, number in enumerate(numbers.tolist()):
        members = (strata == number).nonzero().flatten()
        wanted = share + (place in one_more)
        rounds = -(-wanted // len(members))
        orders = [members[torch.randperm(len(members), generator=generator)] for _ in range(rounds)]
        drawn.append(torch.cat(orders)[:wanted] if orders else members[:0])
    order = torch.cat(drawn)
    return order[torch.randperm(len(order), generator=generator)]


def _too_small(num_samples: int, batch_size: int, world_size: int, accumulate: int) -> str:
    least = MIN_SHARD * world_size * accumulate
    problem = (
        f"{num_samples} training samples in batches of batch_size={batch_size}, cut for world_size={world_size} "
        f"and accumulate={accumulate}, leave fewer than {MIN_SHARD} samples in a micro-batch, too few for BatchNorm"
    )
    if num_samples < least:
        return f"{problem}; use at least {least} samples, or fewer processes or accumulation steps"
    fits = next(size for size in range(batch_size, num_samples + 1) if num_samples // -(-num_samples // size) >= least)
    return f"{problem}; raise batch_size to {fits}, or use fewer processes or accumulation steps"


class EvalBatches:
    """Evaluation batches in file order, ``[0..B), [B..2B), ...``, of which each rank takes every world_size-th.

    No sample is padded or repeated, so counts may be summed over ranks as they are; a rank may have no batch.

    Args:
        num_samples: size of the set.
        batch_size: of one process.
        rank: this process.
        world_size: number of processes.

    Raises:
        ConfigError: for a batch size below 1 or a rank outside ``[0, world_size)``.
    """

    def __init__(self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1")
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank={rank} must be from 0 to {world_size - 1} for world_size={world_size}")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.starts = range(0, num_samples, batch_size)[rank::world_size]

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Sample indices (int64) of each of this rank's batches."""
        for start in self.starts:
            yield torch.arange(start, min(start + self.batch_size, self.num_samples))
