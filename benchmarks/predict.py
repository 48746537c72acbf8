"""Prediction of many files: how much of the model's own speed is left when clouds are read from the disk."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.jobs import about, make_parser, publish, spread
from pointadapterx import Predictor
from pointadapterx.build import build_model, build_test_split
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.config import read_config
from pointadapterx.datasets import PointClouds
from pointadapterx.errors import ConfigError, PointAdapterXError

JOBS = ["demo"]
FORMATS = ("npy", "ply", "txt")
NOTE = (
    "Files of embedded clouds, each with noise of its own, predicted by an adapter of random values. *model alone* is "
    "the same model on clouds prepared in memory; *of it* is the share of its speed that is left when they are "
    "read, normalised and resampled, processes included that have to start. Medians; in brackets the fastest and the "
    "slowest."
)


def write_files(folder: Path, clouds: np.ndarray, count: int, suffix: str) -> list[Path]:
    """``count`` files of clouds (n, N, 3), which differ by some noise."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        points = clouds[number % len(clouds)] + rng.normal(scale=1e-3, size=clouds.shape[1:]).astype(np.float32)
        path = folder / f"{number:05}.{suffix}"
        if suffix == "npy":
            np.save(path, points)
        elif suffix == "txt":
            np.savetxt(path, points, fmt="%.6f")
        else:
            header = "ply\nformat binary_little_endian 1.0\n" + f"element vertex {len(points)}\n"
            header += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
            path.write_bytes(header.encode() + points.astype("<f4").tobytes())
        paths.append(path)
    return paths


def measure(name: str, overrides: list[str], batch_size: int, count: int, rounds: int) -> dict[str, Any]:
    """Seconds of the model alone, and of files of every format."""
    config = read_config(name, overrides)
    dataset = build_test_split(config)
    if not isinstance(dataset, PointClouds):
        raise ConfigError(f"{name}: is not of point clouds; choose a config that is")
    with TemporaryDirectory() as folder:
        adapter = Path(folder, "adapter.safetensors")
        save_adapter(build_model(config), adapter, config=config, classes=dataset.classes)
        predictor = Predictor(adapter, batch_size=batch_size, workers=None)
        clouds = dataset.points.numpy()
        files = {}
        for suffix in FORMATS:
            Path(folder, suffix).mkdir()
            files[suffix] = write_files(Path(folder, suffix), clouds, count, suffix)
        inputs = torch.cat([one for one in predictor.prepared(files["npy"]) if torch.is_tensor(one)])
        times: dict[str, list[float]] = {"model": [], **{suffix: [] for suffix in FORMATS}}
        for _ in range(rounds):
            times["model"].append(_seconds_alone(predictor, inputs, batch_size))
            for suffix in FORMATS:
                started = perf_counter()
                found = predictor(files[suffix])
                times[suffix].append(perf_counter() - started)
                assert len(found) == count
    kept = {**about(predictor.device, batch_size, overrides), "config": name, "files": count}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of which Linux counts KiB
    return {**kept, "points": clouds.shape[1], "seconds": times, "peak_mib": peak}


def _seconds_alone(predictor: Predictor, inputs: torch.Tensor, batch_size: int) -> float:
    """Of all inputs, (n, N, 3)."""
    batches = inputs.split(batch_size)
    predictor.logits(batches[0])
    started = perf_counter()
    for batch in batches:
        predictor.logits(batch)
    return perf_counter() - started


def markdown(result: Mapping[str, Any], command: str) -> str:
    """The measurement as a Markdown table."""
    times, count = result["seconds"], result["files"]
    changed = " with other sizes, see the command" if result["overrides"] else ""
    alone = median(times["model"])
    lines = [
        "# Speed of prediction from files",
        "",
        f"`{command}`",
        "",
        NOTE,
        "",
        f"{result['config']}{changed}, {count:,} files of {result['points']:,} points, batches of "
        f"{result['batch_size']}. "
        f"{result['hardware']}, torch {result['versions']['torch']}, point ops {result['ops']}. "
        f"Peak memory of the process {result['peak_mib']:,.0f} MiB.",
        "",
        "| | s | files/s | of it |",
        "|---|---:|---:|---:|",
        f"| model alone | {spread(times['model'])} | {count / alone:.0f} | |",
    ]
    for suffix in FORMATS:
        taken = median(times[suffix])
        lines.append(f"| {suffix} | {spread(times[suffix])} | {count / taken:.0f} | {100 * alone / taken:.0f} % |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = make_parser("predict", __doc__, JOBS)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_intermixed_args(argv)
    if min(options.batch_size, options.files, options.rounds) < 1 or len(options.jobs) != 1:
        parser.error("--batch-size, --files and --rounds are at least 1, and --jobs names one config")
    try:
        result = measure(options.jobs[0], options.overrides, options.batch_size, options.files, options.rounds)
    except PointAdapterXError as error:
        parser.exit(2, f"error: {error}\n")
    publish(result, markdown(result, " ".join(["python -m benchmarks predict", *argv])), options.output)
    return 0
