"""How far prediction goes: from the measured speed of a machine to cores, GPUs, storage and cost of many scans."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.jobs import publish
from pointadapterx.build import build_model
from pointadapterx.config import read_config
from pointadapterx.counting import count_costs
from pointadapterx.errors import PointAdapterXError

MEASURED = ("docs/results/predicting.json", "docs/results/predicting_published.json")
DAY, HOUR = 86_400, 3_600  # seconds
GB, TERA = 1e9, 1e12
NOTE = (
    "Speed and memory are measured, see the files named below; what follows from them is arithmetic with these "
    "assumptions, each of which is an option of the command. Two threads count as one core. Machines are taken to "
    "be alike, and work to be divided among them without loss: files are independent of each other. **The figures "
    "of GPUs are not measured**: they are the model's floating-point operations over the share of a GPU's peak that "
    "is assumed, and reading the files is left to cores of its machine."
)


class Assumed(NamedTuple):
    """What is not measured.

    Attributes:
        busy: share of a day in which machines compute.
        core_hour: price of a core for an hour, in US dollars.
        gpu_hour: the same of a GPU with its machine.
        gpu_tflops: peak of a GPU in bf16, 10¹² operations a second.
        gpu_share: of the peak, which the model reaches.
        scan_bytes: size of a file.
        answer_bytes: size of an answer.
        kept_days: how long files are kept; answers are kept for a year.
        gb_month: price of a gigabyte of storage for a month, in US dollars.
    """

    busy: float = 0.6
    core_hour: float = 0.04
    gpu_hour: float = 2.5
    gpu_tflops: float = 300.0
    gpu_share: float = 0.2
    scan_bytes: float = 24_600.0
    answer_bytes: float = 200.0
    kept_days: float = 30.0
    gb_month: float = 0.02


class Model(NamedTuple):
    """What was measured of a model.

    Attributes:
        name: of the config, with its width.
        source: the file of the measurement.
        hardware: it was measured on.
        per_core: files a second and core, read from .npy.
        peak_mib: memory of the process, None where it was not recorded.
        flops: of a prediction.
    """

    name: str
    source: Path
    hardware: str
    per_core: float
    peak_mib: float | None
    flops: int


def read_measured(path: Path) -> Model:
    """A result of ``python -m benchmarks predict``.

    Raises:
        OSError: if it cannot be read.
        ValueError, KeyError: if it is another file.
    """
    result: dict[str, Any] = json.loads(path.read_text())
    config = read_config(result["config"], result["overrides"])
    shape = config.backbone.input_shape(config.data.num_points)
    flops = 2 * count_costs(build_model(config), torch.zeros(2, *shape)).forward  # of a multiply-add
    words = result["hardware"].split()
    cores = int(words[words.index("threads") - 1]) / 2  # two threads a core
    seconds = median(result["seconds"]["npy"])
    assert config.method is not None
    name = f"{config.method.name}, {config.backbone.dim} wide, {config.data.num_points} points"
    return Model(name, path, result["hardware"], result["files"] / seconds / cores, result.get("peak_mib"), flops)


def rows_of(model: Model, scans: float, assumed: Assumed) -> list[str]:
    """Cells of a model's row for a number of scans a day."""
    core_seconds = scans / model.per_core
    gpu_rate = assumed.gpu_tflops * TERA * assumed.gpu_share / model.flops
    cores, gpus = (math.ceil(need / DAY / assumed.busy) for need in (core_seconds, scans / gpu_rate))
    million = 1e6 / HOUR / assumed.busy
    stored = scans * (assumed.scan_bytes * assumed.kept_days + assumed.answer_bytes * 365) / GB
    return [
        model.name,
        f"{scans:,.0f}",
        f"{cores:,}",
        f"{million / model.per_core * assumed.core_hour:,.3g}",
        f"{gpus:,}",
        f"{million / gpu_rate * assumed.gpu_hour:,.3g}",
        f"{stored:,.0f}",
        f"{stored * assumed.gb_month * 12 / 365:,.3g}",
    ]


def markdown(models: Sequence[Model], scans: Sequence[float], assumed: Assumed, command: str) -> str:
    """The page."""
    lines = ["# How far it goes", "", f"`{command}`", "", NOTE, "", "| assumed | |", "|---|---:|"]
    words = {
        "busy": "share of a day in which machines compute",
        "core_hour": "US dollars for a core and hour",
        "gpu_hour": "US dollars for a GPU and hour",
        "gpu_tflops": "peak of a GPU in bf16, 10¹² operations a second",
        "gpu_share": "share of it that is reached",
        "scan_bytes": "bytes of a scan (2,048 points of float32)",
        "answer_bytes": "bytes of an answer",
        "kept_days": "days for which scans are kept (answers: a year)",
        "gb_month": "US dollars for a gigabyte and month",
    }
    for key, value in assumed._asdict().items():
        lines.append(f"| {words[key]} (`--{key.replace('_', '-')}`) | {value:,g} |")
    lines += ["", "| measured | files/s and core | MiB of a process | GFLOP a scan | |", "|---|---:|---:|---:|---|"]
    for one in models:
        memory = "–" if one.peak_mib is None else f"{one.peak_mib:,.0f}"
        lines.append(
            f"| {one.name} | {one.per_core:,.1f} | {memory} | {one.flops / 1e9:,.2f} | {one.hardware}, {one.source} |"
        )
    head = ["model", "scans a day", "cores", "$ a million", "GPUs", "$ a million", "GB kept", "$ a day"]
    lines += ["", f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(rows_of(one, count, assumed))} |" for one in models for count in scans]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scale", description=__doc__)
    parser.add_argument("--measured", nargs="+", type=Path, default=[Path(path) for path in MEASURED], metavar="JSON")
    parser.add_argument("--scans", nargs="+", type=float, default=[1e6, 1e9], metavar="N", help="a day")
    for key, value in Assumed()._asdict().items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=float, default=value, metavar="X", help="(%(default)g)")
    parser.add_argument("--output", type=Path, metavar="STEM", help="writes STEM.json and STEM.md")
    options = parser.parse_args(argv)
    assumed = Assumed(*(getattr(options, key) for key in Assumed._fields))
    if min(*options.scans, *assumed) <= 0 or assumed.busy > 1 or assumed.gpu_share > 1:
        parser.error("all numbers are greater than 0, and shares at most 1")
    try:
        models = [read_measured(path) for path in options.measured]
    except (OSError, ValueError, KeyError, PointAdapterXError) as error:
        parser.exit(2, f"error: --measured: {error}; give results of python -m benchmarks predict\n")
    command = " ".join(["python -m benchmarks scale", *argv])
    kept = [{**one._asdict(), "source": str(one.source)} for one in models]
    result = {"assumed": assumed._asdict(), "measured": kept, "scans": options.scans}
    publish(result, markdown(models, options.scans, assumed, command), options.output)
    return 0
