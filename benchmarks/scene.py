"""Labels of a scene of millions of points: time and memory of the whole command, beside the model's own speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch

from benchmarks.jobs import MIB, about, make_parser, publish
from pointadapterx import Predictor
from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.config import read_config
from pointadapterx.errors import ConfigError, PointAdapterXError
from pointadapterx.tasks import SemanticSegmentation, build_task

JOBS = ["rooms"]
CLASSES = ["floor", "wall", "furniture"]
WARM = 3  # batches before the model alone is timed
TIMED = 30
PER_METRE = 5000  # points over a square metre of the ground, as in rooms that were scanned
NOTE = (
    "`pointadapterx predict` of one file of a synthetic scene, by an adapter of random values: read, cut into tiles, "
    "labelled, written as a file with a label and a confidence for each point. *model alone* is what the same model "
    "would need for the same number of batches, judged by {timed} of them on prepared tiles. *Processor* seconds are "
    "of all cores together, and *of it* is the model's share of them. Memory is the peak of the process; *of the "
    "scene* is what it holds beyond that of a scene of {small:,} points."
)


def make_scene(points: int, seed: int = 0) -> np.ndarray:
    """Floor, walls and boxes of furniture, (points, 3) float32 in metres, y up."""
    draws = np.random.default_rng(seed)
    side = max(2.0, (points / PER_METRE) ** 0.5)
    count = draws.multinomial(points, [0.4, 0.3, 0.3])
    floor = draws.uniform([0, 0, 0], [side, 0.01, side], (count[0], 3))
    walls = draws.uniform([0, 0, 0], [side, 2.6, side], (count[1], 3))
    spacing = 4.0
    walls[:, 0] = np.round(walls[:, 0] / spacing) * spacing
    boxes = draws.uniform(0, [side - 1, 0.5, side - 1], (max(1, int(side * side / 4)), 3)) * [1, 0, 1]
    furniture = boxes[draws.integers(len(boxes), size=count[2])] + draws.uniform(0, [0.8, 0.9, 0.6], (count[2], 3))
    return draws.permutation(np.concatenate([floor, walls, furniture]), axis=0).astype(np.float32)


def measure(name: str, overrides: list[str], batch_size: int, points: int, small: int) -> dict[str, Any]:
    """Seconds and peak bytes of the command for a scene and a small one, and seconds of the model alone."""
    config = read_config(name, [f"task.classes=[{', '.join(CLASSES)}]", *overrides])
    task = build_task(config)
    if not isinstance(task, SemanticSegmentation):
        raise ConfigError(f"{name}: is of another task; choose one of semantic_segmentation")
    runs = {}
    with TemporaryDirectory() as folder:
        adapter = Path(folder, "adapter.safetensors")
        save_adapter(build_model(config), adapter, config=config, facts=task.stores(CLASSES))
        for key, count in (("small", small), ("scene", points)):
            file, scene = Path(folder, f"{key}.npy"), make_scene(count)
            np.save(file, scene)
            sets = sum(1 for _ in task.pieces(torch.from_numpy(scene).double(), "scene"))
            runs[key] = {"points": count, "sets": sets, **_command(adapter, file, batch_size)}
        predictor = Predictor(adapter, batch_size=batch_size)
        alone = _seconds_of_a_batch(predictor, Path(folder, "small.npy"), batch_size)
    kept = {**about(predictor.device, batch_size, overrides), "config": name, "num_points": config.data.num_points}
    return {**kept, "runs": runs, "batch_seconds": alone[0], "batch_processor_seconds": alone[1]}


def _command(adapter: Path, file: Path, batch_size: int) -> dict[str, Any]:
    """Seconds and peak bytes of a prediction in a process of its own."""
    each, told = file.with_suffix(""), file.with_suffix(".json")
    code = (
        "import json, resource, runpy, time\nstarted = time.perf_counter()\n"
        "try:\n    runpy.run_module('pointadapterx', run_name='__main__', alter_sys=True)\n"
        "finally:\n    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    found = [time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]\n"
        f"    json.dump(found, open({str(told)!r}, 'w'))\n"
    )
    arguments = ["predict", str(adapter), str(file), "--each", str(each), "--batch-size", str(batch_size)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise PointAdapterXError(done.stderr.strip()[-500:])
    seconds, processor, peak = json.loads(told.read_text(encoding="ascii"))
    (written,) = each.iterdir()
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "peak_bytes": peak,
        "written": written.suffix,
        "bytes": written.stat().st_size,
    }


def _seconds_of_a_batch(predictor: Predictor, file: Path, batch_size: int) -> tuple[float, float]:
    """Of the clock, and of all cores together."""
    inputs: list[torch.Tensor] = []
    for one in predictor.prepared([str(file)]):
        if torch.is_tensor(one):
            inputs.append(one)
        if len(inputs) == batch_size:
            break
    batch = torch.cat(inputs)
    for _ in range(WARM):
        predictor.logits(batch)
    started = np.array([perf_counter(), process_time()])
    for _ in range(TIMED):
        predictor.logits(batch)
    taken = (np.array([perf_counter(), process_time()]) - started) / TIMED * batch_size / len(batch)
    return float(taken[0]), float(taken[1])


def markdown(result: Mapping[str, Any], command: str) -> str:
    """The measurement as a Markdown table."""
    small, scene = result["runs"]["small"], result["runs"]["scene"]
    lines = [
        "# A scene of millions of points",
        "",
        f"`{command}`",
        "",
        NOTE.format(timed=TIMED, small=small["points"]),
        "",
        f"{result['config']}, sets of {result['num_points']:,} points, batches of {result['batch_size']}. "
        f"{result['hardware']}, torch {result['versions']['torch']}, point ops {result['ops']}.",
        "",
        "| points | sets | s | model alone s | processor s | model alone | of it | peak MiB | of the scene MiB | "
        "bytes a point |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in (small, scene):
        batches = run["sets"] / result["batch_size"]
        alone, processor = batches * result["batch_seconds"], batches * result["batch_processor_seconds"]
        more, points = run["peak_bytes"] - small["peak_bytes"], run["points"] - small["points"]
        own = [f"{more / MIB:.0f}", f"{more / points:.0f}"] if points else ["", ""]
        cells = [f"{run['points']:,}", f"{run['sets']:,}", f"{run['seconds']:.1f}", f"{alone:.1f}"]
        cells += [f"{run['processor_seconds']:.1f}", f"{processor:.1f}"]
        cells.append(f"{100 * processor / run['processor_seconds']:.0f} %")
        cells += [f"{run['peak_bytes'] / MIB:.0f}", *own]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = make_parser("scene", __doc__, JOBS)
    parser.add_argument("--points", type=int, default=5_000_000)
    parser.add_argument("--small", type=int, default=50_000, help="points of the scene that the other is compared with")
    options = parser.parse_intermixed_args(argv)
    if min(options.batch_size, options.small) < 1 or options.points <= options.small or len(options.jobs) != 1:
        parser.error("--points has to be more than --small, and --jobs names one config")
    try:
        result = measure(options.jobs[0], options.overrides, options.batch_size, options.points, options.small)
    except PointAdapterXError as error:
        parser.exit(2, f"error: {error}\n")
    publish(result, markdown(result, " ".join(["python -m benchmarks scene", *argv])), options.output)
    return 0
