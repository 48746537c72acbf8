"""Peak memory of training, each row in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.jobs import MIB, Spec, about, make_parser, make_training, publish
from pointadapterx import ops
from pointadapterx.errors import PointAdapterXError

JOBS = [
    "scan_pb_t50_rs_dapt",
    "scan_pb_t50_rs_dapt@bf16",
    "scan_pb_t50_rs_dapt+checkpointed",
    "scan_pb_t50_rs_full",
    "scan_pb_t50_rs_full+checkpointed",
    "scan_pb_t50_rs@bf16",
    "scan_pb_t50_rs_e3va@bf16",
    "scan_pb_t50_rs_e3va_x",
    "scan_pb_t50_rs_e3va_x@bf16",
]
STEPS = 3


def peak(spec: Spec, overrides: list[str], batch_size: int) -> int:
    """Bytes that the process, or its GPU allocator, holds at most in some steps beyond what it held with the model."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with ops.unchecked():
        job = make_training(spec, overrides, batch_size, device, warm=False)
        if device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            before = _resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak
        for _ in range(STEPS):
            job.step()
        return (torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident("VmHWM")) - before


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def measure(jobs: Sequence[str], overrides: list[str], batch_size: int) -> dict[str, Any]:
    """Peaks of all rows, one process after the other."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for text in jobs:
        command = [sys.executable, "-m", "benchmarks", "memory", *overrides, "--child", "--jobs", text]
        command += ["--batch-size", str(batch_size)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PointAdapterXError(done.stderr.strip().rpartition("\n")[2].removeprefix("error: "))
        rows.append({"job": text, "peak_mib": json.loads(done.stdout) / MIB})
        print(_row(rows[-1], rows[0]), flush=True)
    return {**about(device, batch_size, overrides), "rows": rows}


def markdown(result: Mapping[str, Any], command: str) -> str:
    """The table, compared with its first row."""
    lines = [
        "# Memory of training",
        "",
        f"`{command}`",
        "",
        f"Peak of {STEPS} steps (forward, backward, AdamW) above what the process held with the model and a batch of "
        f"{result['batch_size']}; on a CPU resident memory, so what the allocator keeps counts. Each row is a "
        "process of its own.",
        "",
        f"{result['hardware']}, torch {result['versions']['torch']}.",
        "",
        "| | MiB | smaller |",
        "|---|---:|---:|",
        *(_row(row, result["rows"][0]) for row in result["rows"]),
    ]
    return "\n".join(lines) + "\n"


def _row(row: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    return f"| {row['job']} | {row['peak_mib']:.0f} | {first['peak_mib'] / row['peak_mib']:.2f} |"


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = make_parser("memory", __doc__, JOBS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args(argv)
    if not torch.cuda.is_available() and not Path("/proc/self/clear_refs").exists():
        parser.error("memory is measured on Linux, or with a CUDA device")
    try:
        if options.child:
            print(peak(Spec.parse(options.jobs[0]), options.overrides, options.batch_size))
            return 0
        result = measure(options.jobs, options.overrides, options.batch_size)
    except PointAdapterXError as error:
        parser.exit(2, f"error: {error}\n")
    publish(result, markdown(result, " ".join(["python -m benchmarks memory", *argv])), options.output)
    return 0
