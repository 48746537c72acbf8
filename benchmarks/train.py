"""Step time and peak memory of training, methods side by side in one process."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from pointadapterx import build, build_model, load_config, ops
from pointadapterx.engine.checkpoint import versions
from pointadapterx.engine.optim import build_optimizer
from pointadapterx.engine.trainer import hardware
from pointadapterx.errors import PointAdapterXError
from pointadapterx.files import write_json, write_text
from pointadapterx.models.adapted import count_parameters

CONFIGS = [
    "scan_pb_t50_rs_full",
    "scan_pb_t50_rs_linear",
    "scan_pb_t50_rs_lora",
    "scan_pb_t50_rs_dapt",
    "scan_pb_t50_rs",
    "scan_pb_t50_rs_e3va",
    "scan_pb_t50_rs_e3va_x",
]
MIB = 2**20


class Job(NamedTuple):
    """A model in training; ``step`` is one whole optimiser step on the same batch."""

    method: str
    trainable: int
    static: int
    step: Callable[[], None]


def make_job(config: Mapping[str, Any], batch_size: int, device: torch.device) -> Job:
    """Model, optimiser with its state, and a random batch; ``static`` bytes are those that stay between steps."""
    model = build_model(config).to(device).train()
    optimizer = build_optimizer(model, config["train"])
    generator = torch.Generator().manual_seed(0)
    if model.backbone.modality == "points":
        shape: tuple[int, ...] = (batch_size, config["data"]["num_points"], 3)
    else:
        side = config["backbone"]["image_size"]
        shape = (batch_size, config["backbone"]["channels"], side, side)
    inputs = torch.randn(shape, generator=generator).to(device)
    labels = torch.randint(config["head"]["num_classes"], (batch_size,), generator=generator).to(device)
    bf16 = config["train"]["precision"] == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits, auxiliary = model(inputs)
        loss = F.cross_entropy(logits.float(), labels)
        (loss if auxiliary is None else loss + auxiliary).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # which creates the optimiser's state
    kept = [*model.parameters(), *model.buffers()]
    kept += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    static = sum(tensor.nbytes for tensor in kept)
    return Job(config["method"]["name"], count_parameters(model).trainable, static, step)


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Bytes of tensors that one step holds at most, beyond those that were there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    recorded = profiler.profiler.kineto_results.events()  # every allocation and release of the CPU allocator
    held = peak = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in recorded if event.name() == "[memory]"):
        held += size
        peak = max(peak, held)
    return peak


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Duration of a step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(configs: Sequence[str], overrides: list[str], batch_size: int, rounds: int) -> dict[str, Any]:
    """Peak memory and step times; the methods take turns, so that a slower minute slows them all."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    with ops.unchecked():
        build.log.disabled = True  # random weights are meant
        try:
            jobs = [make_job(load_config(name, overrides), batch_size, device) for name in configs]
        finally:
            build.log.disabled = False
        peaks = [peak_bytes(job.step, device) for job in jobs]
        times: list[list[float]] = [[] for _ in jobs]
        for _ in range(rounds):
            for taken, job in zip(times, jobs, strict=True):
                taken.append(seconds(job.step, device))
    for job, peak, taken in zip(jobs, peaks, times, strict=True):
        rows.append(
            {
                "method": job.method,
                "trainable": job.trainable,
                "step_mib": peak / MIB,
                "total_mib": (job.static + peak) / MIB,
                "seconds": median(taken),
                "seconds_all": taken,
            }
        )
    return {
        "batch_size": batch_size,
        "overrides": overrides,
        "hardware": hardware(device),
        "versions": versions(),
        "ops": ops.implementation(device),
        "rows": rows,
    }


def markdown(results: Sequence[Mapping[str, Any]], command: str) -> str:
    """The tables of several measurements, compared with the first row of each."""
    lines = [
        "# Cost of a training step",
        "",
        f"`{command}`",
        "",
        "Random weights and inputs of the published size: Point-MAE of 22 M parameters, 2,048 points in 128 groups. "
        "A step is forward, backward and AdamW. Memory is that of tensors: *step* is the peak beyond what stays "
        "between steps, *in all* adds weights and optimiser state. Times are medians of rounds in which the methods "
        "take turns; in brackets the fastest and the slowest. Ratios are to the first row.",
    ]
    for result in results:
        first = result["rows"][0]
        lines += [
            "",
            f"## {' '.join(result['overrides']) or 'as configured'}, batch {result['batch_size']}",
            "",
            f"{result['hardware']}, torch {result['versions']['torch']}, point ops {result['ops']}.",
            "",
            "| method | trainable | step MiB | ratio | in all MiB | ratio | s/step | ratio |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in result["rows"]:
            taken = f"{row['seconds']:.3f} [{min(row['seconds_all']):.3f}, {max(row['seconds_all']):.3f}]"
            ratios = [f"{row[key] / first[key]:.2f}" for key in ("step_mib", "total_mib", "seconds")]
            lines.append(
                f"| {row['method']} | {row['trainable']:,} | {row['step_mib']:.1f} | {ratios[0]} | "
                f"{row['total_mib']:.1f} | {ratios[1]} | {taken} | {ratios[2]} |"
            )
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks train", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides of every method")
    parser.add_argument("--configs", nargs="+", default=CONFIGS, metavar="NAME", help="the first is compared with")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--output", type=Path, metavar="STEM", help="writes STEM.json and STEM.md")
    options = parser.parse_intermixed_args(argv)
    if options.batch_size < 2 or options.rounds < 1:
        parser.error("--batch-size is at least 2 (BatchNorm), --rounds at least 1")
    try:
        results = [
            measure(
                options.configs, [*options.overrides, f"train.precision={name}"], options.batch_size, options.rounds
            )
            for name in options.precision
        ]
    except PointAdapterXError as error:
        parser.exit(2, f"error: {error}\n")
    text = markdown(results, " ".join(["python -m benchmarks train", *argv]))
    print(text)
    if options.output is not None:
        write_json(options.output.with_suffix(".json"), results)
        write_text(options.output.with_suffix(".md"), text)
    return 0
