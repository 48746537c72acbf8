"""Compiled point operations against the plain torch reference on random clouds: every bit, ties included."""

from __future__ import annotations

import argparse
import random
from collections import Counter

import torch
from torch import Tensor

from pointadapterx import ops
from pointadapterx.ops import reference

raw = torch.ops.pointadapterx
SMALL, LARGE = (1, 200), (4096, 10_000)
"""Points of a cloud: below and above where trees take over, for as many queries as MANY."""
MANY = 512


def draw_cloud(draw: random.Random, batch: int, count: int) -> Tensor:
    """(batch, count, 3) of one of several kinds; all but the first have ties."""
    generator = torch.Generator().manual_seed(draw.getrandbits(62))
    points = torch.randn(batch, count, 3, generator=generator, dtype=torch.float64)
    kind = draw.choice(["random", "lattice", "copies", "line", "far"])
    if kind == "lattice":
        points = (points * 2).round()
    elif kind == "copies":
        points = points[:, torch.randint(max(1, count // 4), (count,), generator=generator)]
    elif kind == "line":
        points = points[..., :1].round(decimals=2) * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    elif kind == "far":
        points = points + 1e4
    return points.to(draw.choice([torch.float32, torch.float32, torch.float64]))


def compare(draw: random.Random, batch: int, sizes: tuple[int, int], device: str) -> tuple[str, int, bool]:
    """One random comparison: the operation, how many clouds or queries it was about, and whether all bits agree."""
    count = draw.randint(*sizes)
    name = draw.choice(["farthest_point_sample", "knn", "nearest", "ball_query"])
    ragged = name != "nearest" and draw.random() < 0.3
    batch = min(batch, 32) if ragged else batch  # the reference takes one cloud after the other
    points = draw_cloud(draw, batch, count)
    arguments: list[int | float]
    if name == "farthest_point_sample":
        number = draw.randint(1, min(count, 64 if sizes == SMALL else 256))
        start = 0 if ragged else draw.randrange(count)
        arguments, inputs, cases = [number, start, draw.random() < 0.3], [points], batch
    else:
        queries = draw.randint(1, 16) if sizes == SMALL else MANY
        some = torch.randint(count, (queries,), generator=torch.Generator().manual_seed(draw.getrandbits(62)))
        inputs, cases = [points[:, some] + draw.choice([0.0, 0.01, 0.5]), points], batch * queries
        arguments = []
        if name == "knn":
            arguments = [draw.randint(1, min(count, 48))]
        elif name == "ball_query":
            arguments = [draw.choice([0.05, 0.5, 2.0]), draw.randint(1, 40)]
    if ragged:
        name = f"ragged_{name}"
        inputs += [torch.tensor([draw.randint(1, part.shape[1]) for _ in range(batch)]) for part in inputs]
    found = getattr(raw, name)(*(part.to(device) for part in inputs), *arguments)
    expected = getattr(reference, name)(*inputs, *arguments)
    pairs = [(found, expected)] if isinstance(found, Tensor) else list(zip(found, expected, strict=True))
    return name, cases, all(torch.equal(a.cpu(), e) for a, e in pairs)


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks exactness", description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000, help="clouds sampled and queries answered, in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    if not ops.implementation(options.device).startswith("compiled"):
        parser.exit(2, f"error: nothing to compare: {ops.implementation(options.device)}\n")
    draw = random.Random(options.seed)
    done: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    while sum(done.values()) < options.cases:
        sizes, batch = (LARGE, 1) if draw.random() < 0.2 else (SMALL, 256)
        name, cases, agrees = compare(draw, batch, sizes, options.device)
        key = f"{name}, {'large' if sizes == LARGE else 'small'} clouds"
        done[key] += cases
        wrong[key] += 0 if agrees else cases
    for key in sorted(done):
        print(
            f"{key}: {done[key]:,} cases, {'all equal' if not wrong[key] else f'{wrong[key]:,} IN CALLS THAT DIFFER'}"
        )
    print(f"{ops.implementation(options.device)}: {sum(done.values()):,} cases, seed {options.seed}")
    return 1 if wrong.total() else 0
