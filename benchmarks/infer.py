"""Inference: throughput of batches and latency of one sample, side by side in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from benchmarks.jobs import Spec, about, make_inference, make_parser, publish, spread, take_turns
from pointadapterx import ops
from pointadapterx.errors import PointAdapterXError

JOBS = [
    "scan_pb_t50_rs_linear+published",
    "scan_pb_t50_rs_linear",
    "scan_pb_t50_rs_linear+compiled",
    "scan_pb_t50_rs_linear+onnx",
    "scan_pb_t50_rs_linear@bf16",
    "scan_pb_t50_rs_linear@bf16+eager",
    "scan_pb_t50_rs_linear@bf16+compiled",
    "scan_pb_t50_rs_dapt@bf16",
    "scan_pb_t50_rs",
    "scan_pb_t50_rs+onnx",
    "scan_pb_t50_rs@bf16",
    "scan_pb_t50_rs_e3va_x@bf16",
]
NOTE = (
    "Random weights and clouds of the configs' sizes, grouping included; `linear` is the plain backbone with a head. "
    "Times are medians of rounds in which the rows take turns; in brackets the fastest and the slowest. *faster* is to "
    "the first row. *eager* is without compiled mixtures and packed weights, *compiled* is torch.compile, *onnx* the "
    "exported model in onnxruntime."
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
    return {**about(device, batch_size, overrides), "rows": rows}


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
    """Runs this module from the command line."""
    parser = make_parser("infer", __doc__, JOBS)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_intermixed_args(argv)
    if options.batch_size < 1 or options.rounds < 1:
        parser.error("--batch-size and --rounds are at least 1")
    try:
        specs = [Spec.parse(text) for text in options.jobs]
        result = measure(specs, options.overrides, options.batch_size, options.rounds)
    except PointAdapterXError as error:
        parser.exit(2, f"error: {error}\n")
    publish(result, markdown(result, " ".join(["python -m benchmarks infer", *argv])), options.output)
    return 0
