"""Point operations compared with those of other packages, on the same clouds, taking turns in one process."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.peers import FPS_PEERS, KNN_PEERS, PACKAGES
from pointadapterx import ops
from pointadapterx.checkpoints.adapter_file import versions
from pointadapterx.engine.devices import hardware
from pointadapterx.files import write_json, write_text
from pointadapterx.ops import reference

OURS = "pointadapterx"
NOTE = (
    "Medians of rounds in which the packages take turns, in brackets our fastest and slowest; float32, and all inputs "
    "in the form that a package takes. Clouds that a package takes one at a time are given to as many threads. Ours "
    "are compared with the plain torch reference before they are timed. *ratio* is the fastest other package's time "
    "over ours. Points lie on the surfaces of three spheres."
)


class Case(NamedTuple):
    """Work to be timed: FPS of clouds of ``points`` points to ``number``, or kNN of ``number`` queries (``k`` > 0)."""

    batch: int
    points: int
    number: int
    k: int = 0

    def __str__(self) -> str:
        if self.k:
            return f"kNN {self.batch}×({self.number} queries × {self.points}), k={self.k}"
        return f"FPS {self.batch}×{self.points}→{self.number}"


CASES = [
    *(Case(32, count, number) for count, number in ((1024, 64), (2048, 128), (8192, 1024), (8192, 2048))),
    *(Case(1, count, number) for count, number in ((100_000, 4096), (1_000_000, 16_384))),
    *(Case(32, count, number, 32) for count, number in ((1024, 64), (2048, 128))),
    Case(1, 1_000_000, 16_384, 32),
]


def clouds(case: Case) -> Tensor:
    """Points on the surfaces of three spheres with a little noise, (B, N, 3): as scans are, no solid block."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(case.batch, case.points, 3, generator=generator), dim=-1)
    radius = torch.randint(1, 4, (case.batch, case.points, 1), generator=generator) / 3
    return directions * radius + 0.01 * torch.randn(case.batch, case.points, 3, generator=generator)


def is_exact(case: Case, points: Tensor) -> bool:
    """Whether our op equals the plain reference, as far as that can be computed in reasonable time."""
    if case.k:
        query = points[:, : min(case.number, 2**26 // (case.batch * case.points))]
        squared, indices = torch.ops.pointadapterx.knn(points[:, : case.number], points, case.k)
        expected = reference.knn(query, points, case.k)
        return all(torch.equal(a[:, : query.shape[1]], e) for a, e in zip((squared, indices), expected, strict=True))
    number = min(case.number, max(16, 2**31 // (case.batch * case.points)))
    chosen = torch.ops.pointadapterx.farthest_point_sample(points, case.number, 0, False)
    return torch.equal(chosen[:, :number], reference.farthest_point_sample(points, number, 0, False))


def competitors(case: Case, points: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names and what they do with the case; packages that are not installed are left out."""
    if case.k:
        query = points[:, : case.number].contiguous()
        yield OURS, lambda: ops.knn(query, points, case.k)
        yield from ((name, run) for name, make in KNN_PEERS.items() if (run := _made(make, query, points, case.k)))
    else:
        yield OURS, lambda: ops.farthest_point_sample(points, case.number)
        yield from ((name, run) for name, make in FPS_PEERS.items() if (run := _made(make, points, case.number)))


def _made(make: Callable[..., Callable[[], object] | None], *arguments: Any) -> Callable[[], object] | None:
    try:
        return make(*arguments)
    except ImportError:
        return None


def measure(case: Case, rounds: int, budget: float) -> dict[str, Any]:
    """Times of all competitors in rounds; one that takes longer than ``budget`` seconds is timed once."""
    points = clouds(case)
    exact = is_exact(case, points)
    running = dict(competitors(case, points))
    times: dict[str, list[float]] = {name: [] for name in running}
    with ops.unchecked():
        for name, run in running.items():  # warm, and know who is slow
            run()
            times[name].append(_seconds(run))
        for _ in range(rounds - 1):
            for name, run in running.items():
                if times[name][0] < budget:
                    times[name].append(_seconds(run))
    return {"case": str(case), **case._asdict(), "exact": exact, "seconds": times}


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def markdown(result: dict[str, Any]) -> list[str]:
    """Tables of cases × competitors, in milliseconds."""
    packages = ", ".join(f"{name} {number}" for name, number in result["packages"].items())
    lines = [
        f"## {result['ops']}, {result['threads']} threads",
        "",
        f"{result['hardware']}, torch {result['versions']['torch']}; {packages or 'no other package'}.",
    ]
    for searches in (False, True):
        rows = [row for row in result["rows"] if (row["k"] > 0) == searches]
        peers = list(dict.fromkeys(name for row in rows for name in row["seconds"] if name != OURS))
        if rows:
            lines += ["", f"| ms | {OURS} | {' | '.join(peers)} | ratio |", "|---|" + "---:|" * (len(peers) + 2)]
            lines += [_row(row, peers) for row in rows]
    return lines


def _row(row: dict[str, Any], peers: list[str]) -> str:
    medians = {name: median(taken) for name, taken in row["seconds"].items()}
    mine = row["seconds"][OURS]
    best = min((value for name, value in medians.items() if name != OURS), default=None)
    cells = [
        f"{row['case']}{'' if row['exact'] else ' NOT EXACT'}",
        f"{_ms(medians[OURS])} [{_ms(min(mine))}, {_ms(max(mine))}]",
        *(_ms(medians[name]) if name in medians else "" for name in peers),
        "" if best is None else f"{best / medians[OURS]:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def about(threads: int) -> dict[str, Any]:
    """What the times depend on."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "ops": ops.implementation("cpu"),
        "threads": threads,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "packages": packages,
    }


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ops", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=["fps", "knn"], help="one kind of operation")
    parser.add_argument("--largest", type=int, default=10**9, metavar="N", help="leave out clouds of more points")
    parser.add_argument("--budget", type=float, default=5.0, help="seconds above which a package is timed once")
    parser.add_argument(
        "--simd",
        nargs="+",
        choices=["avx512", "avx2", "baseline"],
        help="instruction sets, each in a process of its own",
    )
    parser.add_argument("--output", type=Path, metavar="STEM", help="writes STEM.json and STEM.md")
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads are at least 1")
    if options.simd:
        results = [_with_simd(level, options) for level in options.simd]
    else:
        results = [_measure_all(options)]
    command = " ".join(["python -m benchmarks ops", *argv])
    tables = [line for result in results for line in ["", *markdown(result)]]
    text = "\n".join(["# Speed of the point operations", "", f"`{command}`", "", NOTE, *tables, ""])
    print(text)
    if options.output is not None:
        write_json(options.output.with_suffix(".json"), results)
        write_text(options.output.with_suffix(".md"), text)
    return 0 if all(row["exact"] for result in results for row in result["rows"]) else 1


def _measure_all(options: argparse.Namespace) -> dict[str, Any]:
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of packages that are imported from here on
    torch.set_num_threads(options.threads)
    wanted = {"fps": [False], "knn": [True], None: [False, True]}[options.only]
    result = {**about(options.threads), "rows": []}
    for case in CASES:
        if case.points <= options.largest and (case.k > 0) in wanted:
            result["rows"].append(measure(case, options.rounds, options.budget))
            print(_row(result["rows"][-1], list(result["rows"][-1]["seconds"])[1:]), flush=True)
    return result


def _with_simd(level: str, options: argparse.Namespace) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        arguments = ["--rounds", options.rounds, "--threads", options.threads, "--largest", options.largest]
        arguments += ["--budget", options.budget, "--output", Path(folder, "part")]
        arguments += ["--only", options.only] if options.only else []
        environment = {**os.environ, "POINTADAPTERX_SIMD": level}
        subprocess.run([sys.executable, "-m", "benchmarks", "ops", *map(str, arguments)], env=environment, check=False)
        return json.loads(Path(folder, "part.json").read_text(encoding="utf-8"))[0]
