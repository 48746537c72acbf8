"""Inference: throughput of batches and latency of one sample, side by side in one process."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.jobs import VARIANTS, Spec, make_inference, spread, take_turns
from pointadapterx import ops
from pointadapterx.engine.checkpoint import versions
from pointadapterx.engine.trainer import hardware
from pointadapterx.errors import PointAdapterXError
from pointadapterx.files import write_json, write_text

JOBS = [
    "scan_pb_t50_rs_linear+published",
    "scan_pb_t50_rs_linear",
    "scan_pb_t50_rs_linear@bf16",
    "scan_pb_t50_rs_dapt@bf16",
    "scan_pb_t50_rs@bf16",
    "scan_pb_t50_rs_e3va_x@bf16",
]
NOTE = (
    "Random weights and clouds of the configs' sizes, grouping included; `linear` is the plain backbone with a head. "
    "Times are medians of rounds in which the rows take turns; in brackets the fastest and the slowest. *faster* is to "
    "the first row."
)


def measure(specs: Sequence[Spec], overrides: list[str], batch_size: int, rounds: int) -> dict[str, Any]:
    """Durations of a batch, and of one sample."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with ops.unchecked():
        batches = [make_inference(spec, overrides, batch_size, device) for spec in specs]
        singles = [make_inference(spec, overrides, 1, device) for spec in specs]
        of_batches, of_singles = (take_turns(jobs, rounds, device) for jobs in (batches, singles))
    rows = [
        {"name": job.name, "batch_seconds": batch, "single_seconds": single}
        for job, batch, single in zip(batches, of_batches, of_singles, strict=True)
    ]
    return {
        "batch_size": batch_size,
        "overrides": overrides,
        "hardware": hardware(device),
        "versions": versions(),
        "ops": ops.implementation(device),
        "rows": rows,
    }


def markdown(result: Mapping[str, Any], command: str) -> str:
    """The table, compared with its first row."""
    size, first = result["batch_size"], result["rows"][0]
    lines = [
        "# Speed of inference",
        "",
        f"`{command}`",
        "",
        NOTE,
        "",
        f"{result['hardware']}, torch {result['versions']['torch']}, point ops {result['ops']}.",
        "",
        f"| | s, batch {size} | samples/s | faster | s, one sample | faster |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        batch, single = median(row["batch_seconds"]), median(row["single_seconds"])
        lines.append(
            f"| {row['name']} | {spread(row['batch_seconds'])} | {size / batch:.1f} | "
            f"{median(first['batch_seconds']) / batch:.2f} | {spread(row['single_seconds'])} | "
            f"{median(first['single_seconds']) / single:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """The command line."""
    variants = "; ".join(f"{name}: {meaning}" for name, meaning in VARIANTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks infer", description=__doc__, epilog=f"VARIANT is {variants}."
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides of every row")
    parser.add_argument(
        "--jobs", nargs="+", default=JOBS, metavar="CONFIG[@bf16][+VARIANT]", help="first: the baseline"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, metavar="STEM", help="writes STEM.json and STEM.md")
    options = parser.parse_intermixed_args(argv)
    if options.batch_size < 1 or options.rounds < 1:
        parser.error("--batch-size and --rounds are at least 1")
    try:
        specs = [Spec.parse(text) for text in options.jobs]
        result = measure(specs, options.overrides, options.batch_size, options.rounds)
    except PointAdapterXError as error:
        parser.exit(2, f"error: {error}\n")
    text = markdown(result, " ".join(["python -m benchmarks infer", *argv]))
    print(text)
    if options.output is not None:
        write_json(options.output.with_suffix(".json"), result)
        write_text(options.output.with_suffix(".md"), text)
    return 0
