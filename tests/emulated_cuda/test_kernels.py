"""Every CUDA kernel, emulated: tens of thousands of random calls equal the plain ops, and planted errors are found."""

from __future__ import annotations

import math
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from pointadapterx.ops import reference
from tests.emulated_cuda import COMPILER, SOURCES, EmulationError, Emulator, Schedule, build

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.compiler,
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} was not found"),
]

Op = tuple[str, tuple[object, ...]]
"""Name of a plain op and its arguments. A name that starts with ``ragged_`` is that of an op of the emulator too."""


def edge(dice: random.Random, *edges: int) -> int:
    """One of them, or one less or more: at least 1."""
    return max(1, dice.choice(edges) + dice.randint(-1, 1))


def cloud(dice: random.Random, *shape: int) -> Tensor:
    """Coordinates of one of the kinds that have found errors before: ties, overflow, underflow, no numbers."""
    generator = torch.Generator().manual_seed(dice.getrandbits(40))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    dtype = dice.choice((torch.float32, torch.float64))
    kind = dice.choice(("random", "lattice", "lattice", "same", "far", "huge", "tiny", "near the origin", "nan"))
    if kind == "lattice":
        values = values.round()
    elif kind == "same":
        values.fill_(0.25)
    elif kind == "far":
        values += 1e6
    elif kind == "huge":  # squares overflow
        values *= 1e25 if dtype == torch.float32 else 1e200
    elif kind == "tiny":  # squares are subnormal
        values *= 1e-22 if dtype == torch.float32 else 1e-160
    elif kind == "near the origin":  # which skip_origin leaves out, within a norm of sqrt(1e-3)
        values *= math.sqrt(1e-3) / values.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    elif kind == "nan":
        values[torch.rand(shape, generator=generator) < 0.15] = dice.choice((math.nan, math.inf, -math.inf))
    return values.to(dtype)


def lengths(dice: random.Random, batch: int, full: int, least: int = 1) -> Tensor:
    chosen = [dice.choice((least, full, dice.randint(least, full))) for _ in range(batch)]
    return torch.tensor(chosen, dtype=torch.int64)


def sampling(dice: random.Random, count: int, most: int) -> Op:
    batch, start = dice.choice((0, 1, 1, 2, 3)), dice.choice((0, count - 1, dice.randrange(count)))
    points, samples, skip = cloud(dice, batch, count, 3), min(count, dice.randint(0, most)), dice.random() < 0.5
    if dice.random() < 0.5:
        return "farthest_point_sample", (points, samples, start, skip)
    return "ragged_farthest_point_sample", (points, lengths(dice, batch, count, start + 1), samples, start, skip)


def small_sampling(dice: random.Random) -> Op:
    return sampling(dice, edge(dice, 1, 2, 16, 32, 64, 128, 160), 12)


def block_sampling(dice: random.Random) -> Op:
    """Clouds of all three numbers of points a thread, around their limits."""
    return sampling(dice, edge(dice, 512, 1024, 4096, 8192, 16384), 4)


def grid_sampling(dice: random.Random) -> Op:
    return sampling(dice, edge(dice, 16386, 17408, 20000), 4)


def search(dice: random.Random) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    batch, queries, dims = (
        dice.choice((0, 1, 1, 2, 3)),
        dice.choice((0, 1, 2, 3, 4, 5, 9)),
        dice.choice((1, 2, 3, 3, 3, 7)),
    )
    count = edge(dice, 1, 4, 32, 64, 96, 130, 160)
    points = cloud(dice, batch, count, dims)
    query = points[:, [dice.randrange(count) for _ in range(queries)]] if dice.random() < 0.5 else points.roll(1, 1)
    query = query[:, :queries].contiguous() + (0.5 if dice.random() < 0.2 else 0)
    return query, points, (lengths(dice, batch, max(1, query.shape[1])), lengths(dice, batch, count))


def neighbours(dice: random.Random) -> Op:
    query, points, both = search(dice)
    k = min(points.shape[1], dice.choice((1, 2, 3, 5, 8, 31, 32, 33, 128, 129, 161)))
    if dice.random() < 0.5 or query.shape[1] == 0:
        return "knn", (query, points, k)
    return "ragged_knn", (query, points, *both, k)


def nearest(dice: random.Random) -> Op:
    return "nearest", search(dice)[:2]


def ball(dice: random.Random) -> Op:
    query, points, both = search(dice)
    radius = dice.choice((1e-3, 0.5, 1.0, math.sqrt(2), 2.0, 1e3, 1e25, 1e300))
    samples = max(1, dice.choice((1, 2, 3, 31, 32, 33, points.shape[1] + dice.randint(-1, 40))))
    if dice.random() < 0.5 or query.shape[1] == 0:
        return "ball_query", (query, points, radius, samples)
    return "ragged_ball_query", (query, points, *both, radius, samples)


WIDTHS = (
    torch.uint8,
    torch.bool,
    torch.bfloat16,
    torch.int16,
    torch.float32,
    torch.int64,
    torch.complex64,
    torch.complex128,
)


def gathering(dice: random.Random) -> Op:
    batch, count, queries, channels = _sizes(dice)
    points, indices = cloud(dice, batch, count, channels), _indices(dice, batch, queries, count)
    return "gather_points", (points.nan_to_num().clamp(-100, 100).to(dice.choice(WIDTHS)), indices)


def interpolating(dice: random.Random) -> Op:
    batch, count, queries, channels = _sizes(dice)
    points, indices = (
        cloud(dice, batch, count, channels),
        _indices(dice, batch, queries, count, dice.choice((0, 1, 2, 3, 3, 8))),
    )
    return "interpolate", (
        points,
        indices,
        torch.rand(indices.shape, dtype=points.dtype) * dice.choice((0, 1, -1, 1e30)),
    )


def _sizes(dice: random.Random) -> tuple[int, int, int, int]:
    """Clouds, points, queries and channels."""
    return (
        dice.choice((0, 1, 2, 3)),
        edge(dice, 1, 17, 100),
        dice.choice((0, 1, 5, 33, 70)),
        dice.choice((0, 1, 2, 3, 5, 8)),
    )


def _indices(dice: random.Random, batch: int, queries: int, count: int, *k: int) -> Tensor:
    return torch.randint(count, (batch, queries, *k), generator=torch.Generator().manual_seed(dice.getrandbits(40)))


class Cases(NamedTuple):
    """Random calls of one kernel, so many in each of several tests."""

    kernel: str
    make: Callable[[random.Random], Op]
    number: int
    tests: int = 1


CASES = [
    Cases("gather_kernel", gathering, 4000),
    Cases("interpolate_kernel", interpolating, 4000),
    Cases("nearest_kernel", nearest, 4000),
    Cases("ball_query_kernel", ball, 2000, 2),
    Cases("knn_kernel", neighbours, 500, 5),
    Cases("fps_in_registers", small_sampling, 700, 4),
    Cases("fps_in_registers", block_sampling, 100, 2),
    Cases("fps_by_grid", grid_sampling, 20, 2),
]


def test_there_are_enough_cases_of_every_kernel() -> None:
    source = "".join(path.read_text() for path in SOURCES.glob("*.cu"))
    kernels = re.findall(r"__global__ void\s+(?:__launch_bounds__\(\w+\)\s*)?(\w+)\(", source)
    assert len(kernels) == source.count("__global__")
    assert {case.kernel for case in CASES} == set(kernels)
    assert sum(case.number * case.tests for case in CASES) >= 20_000


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    """Built once for all processes of pytest."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "emulated_cuda"
    with FileLock(f"{folder}.lock"):
        library = folder / "kernels.so"
        return Emulator(library if library.exists() else build(folder))


def check(emulator: Emulator, cases: Cases, seed: object, number: int | None = None) -> None:
    """Raises an AssertionError that says how to make the call again."""
    dice = random.Random(f"{cases.make.__name__} {seed}")
    for case in range(number or cases.number):
        name, arguments = cases.make(dice)
        emulator.schedule = Schedule(
            seed=dice.getrandbits(40),
            shuffled=dice.random() < 0.7,
            processors=dice.choice((1, 1, 2, 2, 3, 3, 5, 20)),
            most_blocks=dice.choice((0, 0, 1, 3)),
        )
        expected = getattr(reference, name)(*arguments)
        try:
            _same(_emulated(emulator, name, arguments), expected)
        except AssertionError as error:
            shapes = [tuple(of.shape) if isinstance(of, Tensor) else of for of in arguments]
            raise AssertionError(f"case {case} of {cases.make.__name__} {seed}: {name}{shapes}: {error}") from None


def _emulated(emulator: Emulator, name: str, arguments: tuple[object, ...]) -> object:
    if not name.startswith("ragged_"):
        return getattr(emulator, name)(*arguments)
    of = [value for value in arguments if not (isinstance(value, Tensor) and value.dim() == 1)]
    lengths = [value for value in arguments if isinstance(value, Tensor) and value.dim() == 1]
    return getattr(emulator, name.removeprefix("ragged_"))(*of, *lengths)


def _same(found: object, expected: object) -> None:
    for a, b in zip(*((x,) if isinstance(x, Tensor) else x for x in (found, expected)), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert bool(((a == b) | (a != a) & (b != b)).all()), f"{a.tolist()} is not {b.tolist()}"


@pytest.mark.parametrize(
    ("cases", "seed"),
    [
        pytest.param(cases, seed, id=f"{cases.make.__name__}-{seed}")
        for cases in reversed(CASES)  # the longest first, for another process to do the rest meanwhile
        for seed in range(cases.tests)
    ],
)
def test_kernels_equal_the_plain_ops(emulator: Emulator, cases: Cases, seed: int) -> None:
    before = emulator.accesses
    check(emulator, cases, seed)
    assert emulator.accesses - before > 100 * cases.number


ASSERTED = {
    "an index behind the cloud": ("gather_points", (torch.rand(2, 9, 2), torch.tensor([[0, 9], [0, 1]]))),
    "an index below zero": ("interpolate", (torch.rand(1, 9, 2), torch.tensor([[[-1]]]), torch.ones(1, 1, 1))),
    "a length of zero": (
        "ragged_knn",
        (torch.rand(1, 4, 3), torch.rand(1, 9, 3), torch.tensor([4]), torch.tensor([0]), 2),
    ),
    "a length above all": ("ragged_farthest_point_sample", (torch.rand(1, 9, 3), torch.tensor([10]), 2, 0, False)),
    "a start behind the length": (
        "ragged_farthest_point_sample",
        (torch.rand(1, 9, 3), torch.tensor([4]), 2, 4, False),
    ),
    "a start behind the length of a large cloud": (
        "ragged_farthest_point_sample",
        (torch.rand(1, 16385, 3), torch.tensor([4]), 2, 4, False),
    ),
}


@pytest.mark.parametrize("call", ASSERTED.values(), ids=list(ASSERTED))
def test_kernels_stop_at_what_cannot_be(emulator: Emulator, call: Op) -> None:
    emulator.schedule = Schedule()
    with pytest.raises(EmulationError, match="assertion in line"):
        _emulated(emulator, *call)


class Planted(NamedTuple):
    """An error in a source: what of it, what takes its place, whose cases find it and in which words."""

    file: str
    old: str
    new: str
    make: Callable[[random.Random], Op]
    words: str


PLANTED = {
    "one thread too many at the tail": Planted(
        "gather.cu",
        "i < total; i += element_stride()) {\n    const int64_t row = i / channels;\n    const int64_t index",
        "i <= total; i += element_stride()) {\n    const int64_t row = i / channels;\n    const int64_t index",
        gathering,
        "out of bounds",
    ),
    "a tail that is not masked": Planted(
        "neighbours.cu", "valid = mine < count;", "valid = mine <= count;", neighbours, "out of bounds: read|is not"
    ),
    "no barrier of the block": Planted(
        "fps.cu", "per_warp[warp] = mine;\n  __syncthreads();", "per_warp[warp] = mine;", small_sampling, "race"
    ),
    "no barrier of the warp": Planted(
        "neighbours.cu",
        "        __syncwarp();  // every lane has read the list before it changes\n",
        "",
        neighbours,
        "race",
    ),
    "no barrier of the grid": Planted(
        "fps.cu",
        "of_blocks[blockIdx.x] = mine;\n      grid.sync();",
        "of_blocks[blockIdx.x] = mine;",
        grid_sampling,
        "race|uninitialised",
    ),
    "a barrier that some threads pass by": Planted(
        "fps.cu",
        "= mine;\n  __syncthreads();",
        "= mine;\n  if (warp == 0) __syncthreads();",
        small_sampling,
        "deadlock|race",
    ),
    "a vote that some lanes pass by": Planted(
        "neighbours.cu",
        "const unsigned hits =",
        "if (mine >= count) break;\n      const unsigned hits =",
        ball,
        "deadlock|divergence",
    ),
    "the higher index of equals": Planted(
        "fps.cu", "b.index < a.index);", "b.index > a.index);", small_sampling, "is not"
    ),
    "the later of equally near": Planted(
        "neighbours.cu", "other_index < index", "other_index > index", nearest, "is not"
    ),
    "points that are not real": Planted(
        "neighbours.cu", "length_of(search.lengths, b, search.count) : 0", "search.count : 0", ball, "is not"
    ),
    "memory that nothing has written": Planted(
        "neighbours.cu", "best_index[j] = length > 0 ? best_index[0] : 0;", "", neighbours, "uninitialised"
    ),
    "loads wider than their alignment": Planted(
        "gather.cu", "case 4: return gather<uint32_t>", "case 4: return gather<uint64_t>", gathering, "misaligned"
    ),
    "too much shared memory": Planted(
        "neighbours.cu", "kSharedRanking = 128;", "kSharedRanking = 1100;", neighbours, "more than 48 KiB"
    ),
    "too many threads of a block": Planted(
        "gather.cu", "kThreads = 256;", "kThreads = 2048;", interpolating, "error 9"
    ),
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=list(PLANTED))
def test_planted_errors_are_found(emulator: Emulator, planted: Planted, tmp_path: Path) -> None:
    broken = Emulator(build(tmp_path, planted[:3], emulator.folder))
    with pytest.raises(AssertionError, match=planted.words):
        check(broken, Cases("", planted.make, 300), "planted")
