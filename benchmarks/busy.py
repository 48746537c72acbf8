"""A training step while another process trains on the same cores, with and without a limit to how threads spin."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

from benchmarks.jobs import Spec, about, make_parser, make_training, publish, spread, take_turns
from pointadapterx import ops
from pointadapterx.errors import PointAdapterXError
from pointadapterx.process_tuning import SPINS, WAITING_VARIABLES

JOBS = ["scan_pb_t50_rs_e3va_x@bf16", "scan_pb_t50_rs@bf16"]
DEFAULT = 300_000
"""GNU's, as ``OMP_DISPLAY_ENV=verbose`` prints it."""
FORMS = {"the system's": DEFAULT, "ours": SPINS}
NOTE = (
    "Seconds of a training step (forward, backward, AdamW) of a process that has all cores, and of two at once that do "
    "the same. *the system's* is how GNU's OpenMP lets threads wait for each other by default, *ours* the limit that "
    "our commands set. Medians; in brackets the fastest and the slowest."
)
STATES = ("alone", "two at once")
TRAINING = "training"  # what the other process says when it does


@contextmanager
def another(spec: str, overrides: list[str], batch_size: int) -> Iterator[None]:
    """A process of its own that trains until the end."""
    command = [sys.executable, "-m", "benchmarks", "busy", *overrides, "--other", "--jobs", spec]
    command += ["--batch-size", str(batch_size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            if not any(line.strip() == TRAINING for line in process.stdout):
                raise PointAdapterXError(f"{spec}: the other process has stopped")
            yield
        finally:
            process.kill()


def train_on(spec: str, overrides: list[str], batch_size: int) -> None:
    """As long as the process that asked for it runs."""
    parent = os.getppid()
    with ops.unchecked():
        job = make_training(Spec.parse(spec), overrides, batch_size, torch.device("cpu"))
        print(TRAINING, flush=True)
        while os.getppid() == parent:
            job.step()


def steps(spec: str, overrides: list[str], batch_size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of steps of this process, alone and with another."""
    device = torch.device("cpu")
    with ops.unchecked():
        job = make_training(Spec.parse(spec), overrides, batch_size, device)
        (alone,) = take_turns([job], rounds, device)
        with another(spec, overrides, batch_size):
            (busy,) = take_turns([job], rounds, device)
    return dict(zip(STATES, (alone, busy), strict=True))


def measure(jobs: Sequence[str], overrides: list[str], batch_size: int, rounds: int) -> dict[str, Any]:
    """All jobs, each in two processes one after the other."""
    rows = []
    for text in jobs:
        row: dict[str, Any] = {"job": text}
        for form, spins in FORMS.items():
            command = [sys.executable, "-m", "benchmarks", "busy", *overrides, "--child", "--jobs", text]
            command += ["--batch-size", str(batch_size), "--rounds", str(rounds)]
            inherited = {name: value for name, value in os.environ.items() if name not in WAITING_VARIABLES}
            environment = {**inherited, "GOMP_SPINCOUNT": str(spins)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PointAdapterXError(done.stderr.strip().rpartition("\n")[2].removeprefix("error: "))
            row[form] = json.loads(done.stdout.strip().rpartition("\n")[2])
        rows.append(row)
        print(_row(row), flush=True)
    return {**about(torch.device("cpu"), batch_size, overrides), "rows": rows}


def markdown(result: Mapping[str, Any], command: str) -> str:
    """The table."""
    lines = [
        "# Training beside another training",
        "",
        f"`{command}`",
        "",
        NOTE,
        "",
        f"Batch {result['batch_size']}; {result['hardware']}, torch {result['versions']['torch']}.",
        "",
        f"| | {' | '.join(f'{form}, {state}' for state in STATES for form in FORMS)} | faster |",
        "|---|---:|---:|---:|---:|---:|",
        *map(_row, result["rows"]),
    ]
    return "\n".join(lines) + "\n"


def _row(row: Mapping[str, Any]) -> str:
    cells = [spread(row[form][state]) for state in STATES for form in FORMS]
    theirs, ours = (median(row[form]["two at once"]) for form in FORMS)
    return f"| {row['job']} | {' | '.join(cells)} | {theirs / ours:.1f} |"


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = make_parser("busy", __doc__, JOBS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--other", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args(argv)
    if options.batch_size < 2 or options.rounds < 1:
        parser.error("--batch-size is at least 2 (BatchNorm), --rounds at least 1")
    try:
        if options.child:
            taken = steps(options.jobs[0], options.overrides, options.batch_size, options.rounds)
            print(json.dumps(taken))
            return 0
        if options.other:
            train_on(options.jobs[0], options.overrides, options.batch_size)
            return 0
        result = measure(options.jobs, options.overrides, options.batch_size, options.rounds)
    except PointAdapterXError as error:
        parser.exit(2, f"error: {error}\n")
    publish(result, markdown(result, " ".join(["python -m benchmarks busy", *argv])), options.output)
    return 0
