"""What it costs to carry the values of a few points to all points, alone and as a share of the work around it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.dense import parts_config, parts_job
from benchmarks.jobs import about, peak_bytes, publish, seconds, spread
from pointadapterx import build_model, ops
from pointadapterx.tasks.base import TASKS
from pointadapterx.tasks.propagation import EPSILON, carry, neighbours

CENTERS, POINTS, VALUES = 128, 2048, 1536  # of the published head, whose first layer reads 1,536 values a point
SCENE, BLOCK = 1_000_000, 2**16  # points that get labels; those that plain torch compares at a time
NOTE = (
    "Medians of rounds in which the rows take turns, in brackets the fastest and the slowest. *plain torch* is "
    "`cdist`, `topk` and a weighted sum of gathered values; for a scene it is timed once, 65,536 points at a time. "
    "Its values differ where points lie at a centre, since it expands |a - b|². A training step is that of full "
    "fine-tuning with the published head on random clouds; its share is that of search, interpolation and their "
    "gradient. A prediction is the model's on 2,048 points of a scene and the values of all other points from the "
    "three nearest of those."
)


def plain(values: Tensor, known: Tensor, points: Tensor) -> Tensor:
    """Values of known points (B, G, C) at other points (B, N, 3), without operations of this project."""
    squared, index = torch.cdist(points, known).square().topk(3, largest=False)
    weights = 1 / (squared + EPSILON)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    gathered = values.gather(1, index.flatten(1).unsqueeze(-1).expand(-1, -1, values.shape[-1]))
    return (gathered.unflatten(1, index.shape[1:]) * weights.unsqueeze(-1)).sum(dim=2)


def ours(values: Tensor, known: Tensor, points: Tensor) -> Tensor:
    """The same as segmentation heads do it."""
    return neighbours(points, known).interpolate(values)


def training(batch_size: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Forward and backward of both, and the whole step."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(batch_size, POINTS, 3, generator=generator).to(device)
    known = points[:, :CENTERS].contiguous()
    values = torch.randn(batch_size, CENTERS, VALUES, generator=generator).to(device).requires_grad_()
    gradient = torch.ones(batch_size, POINTS, VALUES, device=device)

    def both(propagate: Callable[..., Tensor]) -> Callable[[], None]:
        return lambda: torch.autograd.backward(propagate(values, known, points), gradient)

    step = parts_job("full", parts_config("full", "published"), batch_size, device).step
    jobs = {"ours": both(ours), "plain torch": both(plain), "training step": step}
    difference = (ours(values, known, points) - plain(values, known, points)).abs().max().item()
    jobs["search alone"] = lambda: void(neighbours(points, known))
    return {
        "seconds": turns(jobs, rounds, device),
        "bytes": {name: peak_bytes(jobs[name], device) for name in ("ours", "plain torch")},
        "difference": difference,
    }


def prediction(rounds: int, device: torch.device) -> dict[str, Any]:
    """Labels of a scene from one piece of the published size: the model, and the way back to all points."""
    config = parts_config("full", "published")
    task = TASKS[config.task.name](config, None)
    model = build_model(config, restored=True).to(device).eval()
    generator = torch.Generator().manual_seed(0)
    scene = torch.rand(SCENE, 3, generator=generator)
    piece = scene[:POINTS].to(device)
    logits = torch.randn(POINTS, len(task.point_classes), generator=generator)
    category = torch.zeros(1, dtype=torch.int64, device=device)

    def forward() -> None:
        with torch.inference_mode():
            model(piece[None], category)

    def back() -> None:
        carry(logits, scene[:POINTS].double(), scene.double())

    found = turns({"model": forward, "ours": back}, rounds, device)
    whole = lambda: [plain(logits[None], scene[None, :POINTS], part[None]) for part in scene.split(BLOCK)]  # noqa: E731
    found["plain torch"] = [seconds(lambda: void(whole()), torch.device("cpu"))]
    return {"seconds": found}


def void(_: object) -> None:
    """Forgets a result."""


def turns(jobs: Mapping[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Durations of each job after a first time that does not count."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            taken = seconds(job, device)
            if number > 0:
                times[name].append(taken)
    return times


def markdown(result: Mapping[str, Any], command: str) -> str:
    """Two tables."""
    lines = ["# Cost of propagation", "", f"`{command}`", "", NOTE, ""]
    lines += [f"{result['hardware']}, torch {result['versions']['torch']}, point ops {result['ops']}."]
    train, predict = result["training"], result["prediction"]["seconds"]
    times = train["seconds"]
    mib = {name: f"{size / 2**20:.1f}" for name, size in train["bytes"].items()}
    lines += ["", f"## A training step, batch {result['batch_size']}", ""]
    lines += [f"Values of {CENTERS} tokens, {VALUES:,} each, carried to {POINTS:,} points."]
    lines += ["", "| | s | share of the step | MiB |", "|---|---:|---:|---:|"]
    lines += [_line(name, times[name], times["training step"], mib.get(name, "")) for name in times]
    lines += ["", f"Largest difference of their values: {train['difference']:.1e}."]
    lines += ["", f"## Values of {SCENE:,} points from {POINTS:,}", "", "| | s | beside the model |", "|---|---:|---:|"]
    model = median(predict["model"])
    lines += [f"| {name} | {spread(taken)} | {median(taken) / model:.2f} |" for name, taken in predict.items()]
    return "\n".join(lines) + "\n"


def _line(name: str, taken: list[float], whole: list[float], mib: str) -> str:
    share = median(mine / all_ for mine, all_ in zip(taken, whole, strict=True))
    return f"| {name} | {spread(taken)} | {100 * share:.1f} % | {mib} |"


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks propagation", description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, metavar="STEM", help="writes STEM.json and STEM.md")
    options = parser.parse_args(argv)
    if options.batch_size < 2 or options.rounds < 1:
        parser.error("--batch-size is at least 2 (BatchNorm), --rounds at least 1")
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with ops.unchecked():
        parts = {
            "training": training(options.batch_size, options.rounds, device),
            "prediction": prediction(options.rounds, device),
        }
    result = {**about(device, options.batch_size, []), **parts}
    publish(result, markdown(result, " ".join(["python -m benchmarks propagation", *argv])), options.output)
    return 0
