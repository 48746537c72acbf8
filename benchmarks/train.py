"""Step time and peak memory of training, side by side in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch

from benchmarks.floor import product_floor
from benchmarks.jobs import MIB, Spec, about, make_parser, make_training, peak_bytes, publish, spread, take_turns
from pointadapterx import ops
from pointadapterx.errors import PointAdapterXError

JOBS = [
    "scan_pb_t50_rs_dapt+published",
    "scan_pb_t50_rs_dapt",
    "scan_pb_t50_rs_dapt@bf16",
    "scan_pb_t50_rs",
    "scan_pb_t50_rs@bf16+eager",
    "scan_pb_t50_rs@bf16",
    "scan_pb_t50_rs_e3va@bf16",
    "scan_pb_t50_rs_e3va_x@bf16+eager",
    "scan_pb_t50_rs_e3va_x@bf16",
    "scan_pb_t50_rs_e3va_x@bf16+cached",
]
NOTE = (
    "Random weights and inputs of the configs' sizes. A step is forward, backward and AdamW. Memory is that of "
    "tensors: *step* is the peak beyond what stays between steps, *in all* adds weights and optimiser state. Times are "
    "medians of rounds in which the rows take turns; in brackets the fastest and the slowest. *faster* and *smaller* "
    "are to the first row; *products* is the time of the step's matrix products alone, each timed on warm operands, "
    "without those inside compiled mixtures. *eager* is without compiled mixtures and packed weights."
)


def measure(
    specs: Sequence[Spec], overrides: list[str], batch_size: int, rounds: int, *, floor: bool = False
) -> dict[str, Any]:
    """Peak memory and step times of training."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with ops.unchecked():
        jobs = [make_training(spec, overrides, batch_size, device) for spec in specs]
        peaks = [peak_bytes(job.step, device) for job in jobs]
        floors = [product_floor(job.step, device) if floor else None for job in jobs]
        times = take_turns(jobs, rounds, device)
    rows = [
        {
            "name": job.name,
            "trainable": job.trainable,
            "step_mib": peak / MIB,
            "total_mib": (job.static + peak) / MIB,
            "seconds": median(taken),
            "seconds_all": taken,
            "products": least,
        }
        for job, peak, taken, least in zip(jobs, peaks, times, floors, strict=True)
    ]
    return {**about(device, batch_size, overrides), "rows": rows}


def markdown(result: Mapping[str, Any], command: str) -> str:
    """The table, compared with its first row."""
    first, with_floor = result["rows"][0], result["rows"][0]["products"] is not None
    lines = [
        "# Cost of a training step",
        "",
        f"`{command}`",
        "",
        NOTE,
        "",
        f"Batch {result['batch_size']}; {result['hardware']}, torch {result['versions']['torch']}, point ops "
        f"{result['ops']}.",
        "",
        f"| | trainable | step MiB | smaller | in all MiB | s/step | faster |{' products s |' if with_floor else ''}",
        f"|---|---:|---:|---:|---:|---:|---:|{'---:|' if with_floor else ''}",
    ]
    for row in result["rows"]:
        cells = [
            row["name"],
            f"{row['trainable']:,}",
            f"{row['step_mib']:.1f}",
            f"{first['step_mib'] / row['step_mib']:.2f}",
            f"{row['total_mib']:.1f}",
            spread(row["seconds_all"]),
            f"{first['seconds'] / row['seconds']:.2f}",
            *([f"{row['products']:.3f}"] if with_floor else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = make_parser("train", __doc__, JOBS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--floor", action="store_true", help="also time the matrix products alone")
    parser.add_argument(
        "--system-allocator", action="store_true", help="give freed memory back, as programs of one's own do by default"
    )
    options = parser.parse_intermixed_args(argv)
    if options.batch_size < 2 or options.rounds < 1:
        parser.error("--batch-size is at least 2 (BatchNorm), --rounds at least 1")
    if options.floor and torch.cuda.is_available():
        parser.error("--floor knows the products of fused attention on a CPU alone; leave it out")
    try:
        specs = [Spec.parse(text) for text in options.jobs]
        result = measure(specs, options.overrides, options.batch_size, options.rounds, floor=options.floor)
    except PointAdapterXError as error:
        parser.exit(2, f"error: {error}\n")
    publish(result, markdown(result, " ".join(["python -m benchmarks train", *argv])), options.output)
    return 0
