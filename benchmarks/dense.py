"""Cost of training steps of dense tasks: memory and time of methods beside full fine-tuning, by task."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.jobs import MIB, Job, about, peak_bytes, publish, seconds, spread
from pointadapterx import build_model, ops
from pointadapterx.config import Config, read_config
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.inputs import Batch
from pointadapterx.engine.optim import build_optimizer
from pointadapterx.errors import PointAdapterXError
from pointadapterx.peft.parts.mixture import SharedMixture
from pointadapterx.tasks.base import TASKS

NOTE = (
    "Random weights, inputs and labels of the published sizes. A step is forward, backward and AdamW. *step MiB* is "
    "the peak of live tensors beyond what stays between steps. *less* is to the first row of the table. *10⁹* are the "
    "multiply-adds of matrix products and convolutions, forward and backward, a sample. The rows take "
    "turns in one process; times are medians, in brackets the fastest and the slowest. *CPU s* is the process's time "
    "on the processor, which other work on the machine disturbs less; *less time* is the median of its ratios in each "
    "round, in brackets the smallest and the largest. Every method trains the whole head, so a step is backbone, head, "
    "loss and gradients; what the head costs no method saves. *of it* is what a method saves divided by what *linear* "
    "saves, of memory and of time: the share of what can be saved while the backbone runs forward and the head is "
    "trained."
)


class Row(NamedTuple):
    """A model in training.

    Attributes:
        name: in the table.
        make: from a batch size and a device.
    """

    name: str
    make: Callable[[int, torch.device], Job]


TABLES: dict[str, tuple[str, Callable[[], list[Row]]]] = {}
"""Titles and rows by the name of a table; the others are compared with the first row."""
LARGE: set[str] = set()
"""Names of the tables that are measured only where they are asked for, one model in memory at a time."""


def table(
    name: str, title: str, *, large: bool = False
) -> Callable[[Callable[[], list[Row]]], Callable[[], list[Row]]]:
    """Registers a function that lists a table's rows."""

    def register(rows: Callable[[], list[Row]]) -> Callable[[], list[Row]]:
        TABLES[name] = (title, rows)
        LARGE.update([name] if large else [])
        return rows

    return register


def training_job(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Job:
    """A job whose step is a loss, its gradient and the optimiser, which has its state already."""

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    slots = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    static = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers(), *slots))
    return Job(name, sum(p.numel() for p in model.parameters() if p.requires_grad), static, step)


# Point-MAE's segmentation network.

METHODS = {
    "full": "scan_pb_t50_rs_full",
    "linear": "scan_pb_t50_rs_linear",
    "lora": "scan_pb_t50_rs_lora",
    "adapter": "scan_pb_t50_rs_adapter",
    "dapt": "scan_pb_t50_rs_dapt",
    "dapt_x": "scan_pb_t50_rs",
    "e3va": "scan_pb_t50_rs_e3va",
    "e3va_x": "scan_pb_t50_rs_e3va_x",
}


def parts_config(method: str, head: str) -> Config:
    """ShapeNetPart at the published size, by a method with the options that it has on ScanObjectNN."""
    adapted = read_config(METHODS[method])
    sections = read_config("shapenetpart", [f"task.head={head}"]).dump()
    sections |= {name: part for name, part in adapted.dump().items() if name in ("backbone", "method")}
    return Config.of(sections, "benchmarks")


def parts_job(name: str, config: Config, batch_size: int, device: torch.device) -> Job:
    """Steps on random clouds with random labels."""
    torch.manual_seed(0)
    model = build_model(config, restored=True).to(device).train()
    task = TASKS[config.task.name](config, None)
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(batch_size, config.data.num_points, 3, generator=generator)
    points /= points.norm(dim=-1).amax(dim=1)[:, None, None]
    labels = torch.randint(len(task.point_classes), points.shape[:2], generator=generator)
    category = torch.randint(len(task.categories), (batch_size,), generator=generator)
    batch = Batch(points.to(device), Targets(points=labels, condition=category).to(device))

    def loss() -> Tensor:
        return task.loss(model, batch, generator)[0]

    return training_job(name, model, build_optimizer(model, config.train), loss)


def parts_rows(head: str) -> list[Row]:
    """One for each method."""
    return [
        Row(method, lambda size, device, method=method: parts_job(method, parts_config(method, head), size, device))
        for method in METHODS
    ]


table("parts", "Point-MAE, part segmentation, published head")(lambda: parts_rows("published"))
table("parts_light", "Point-MAE, part segmentation, light head")(lambda: parts_rows("light"))


class Seconds(NamedTuple):
    """Duration of a step by the clock, and time on the processor; on a GPU both are the clock's."""

    clock: float
    processor: float


class Measured(NamedTuple):
    """A row's figures.

    Attributes:
        job: without its model.
        count: multiply-adds of a step.
        peak: bytes of a step.
        turns: durations of its steps.
    """

    job: Job
    count: float
    peak: int
    turns: list[Seconds]


def measure(
    rows: Sequence[Row], batch_size: int, rounds: int, device: torch.device, *, apart: bool = False
) -> list[dict[str, Any]]:
    """Peak memory and step times of the rows of one table.

    Args:
        rows: of the table.
        batch_size: of a step.
        rounds: steps of each row that are timed.
        device: where.
        apart: whether each model is made again for every turn, so that memory holds one at a time.
    """
    with ops.unchecked():
        kept = None if apart else [row.make(batch_size, device) for row in rows]
        found: list[Measured] = []
        for turn in range(rounds + (not apart)):
            for place, row in enumerate(rows):
                job = row.make(batch_size, device) if kept is None else kept[place]
                if turn == 0:
                    counted, peak = _multiply_adds(job), peak_bytes(job.step, device)
                    found.append(Measured(job._replace(step=_nothing), counted, peak, []))
                if turn > 0 or apart:
                    found[place].turns.append(_timed(job, device))
                del job
                gc.collect()
    return [
        {
            "name": job.name,
            "trainable": job.trainable,
            "step_mib": peak / MIB,
            "total_mib": (job.static + peak) / MIB,
            "multiply_adds": count / batch_size,
            "seconds": [turn.clock for turn in turns],
            "cpu_seconds": [turn.processor for turn in turns],
            "shares": [turn.processor / first.processor for turn, first in zip(turns, found[0].turns, strict=True)],
        }
        for job, count, peak, turns in found
    ]


def _nothing() -> None:
    """In place of a step whose model is no longer needed."""


def _multiply_adds(job: Job) -> float:
    """Those of a step of a job, whose mixtures torch computes meanwhile: nobody counts inside a compiled one."""
    before, SharedMixture.compiled = SharedMixture.compiled, False
    try:
        with FlopCounterMode(display=False) as counter:
            job.step()
    finally:
        SharedMixture.compiled = before
    return counter.get_total_flops() / 2


def _timed(job: Job, device: torch.device) -> Seconds:
    started = process_time()
    clock = seconds(job.step, device)
    return Seconds(clock, process_time() - started if device.type == "cpu" else clock)


def markdown(result: Mapping[str, Any], command: str) -> str:
    """A section for each table."""
    lines = ["# Cost of training steps of dense tasks", "", f"`{command}`", "", NOTE, ""]
    lines += [f"{result['hardware']}, torch {result['versions']['torch']}, point ops {result['ops']}."]
    for title, rows in result["tables"].items():
        lines += [
            "",
            f"## {title}, batch {result['batch_size']}",
            "",
            "| | trained | step MiB | less | of it | in all MiB | less | 10⁹ | less | s/step | CPU s/step | less time "
            "| of it |",
        ]
        least = next((row for row in rows if row["name"] == "linear"), None)
        lines += [f"|---|{'---:|' * 12}", *(_line(row, rows[0], least) for row in rows)]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any], first: Mapping[str, Any], least: Mapping[str, Any] | None) -> str:
    saved = sorted(100 * (1 - share) for share in row["shares"])
    cells = [
        row["name"],
        f"{row['trainable']:,}",
        f"{row['step_mib']:.1f}",
        f"{100 * (1 - row['step_mib'] / first['step_mib']):.1f} %",
        _of_it(*(None if one is None else first["step_mib"] - one["step_mib"] for one in (row, least))),
        f"{row['total_mib']:.1f}",
        f"{100 * (1 - row['total_mib'] / first['total_mib']):.1f} %",
        f"{row['multiply_adds'] / 1e9:.2f}",
        f"{100 * (1 - row['multiply_adds'] / first['multiply_adds']):.1f} %",
        spread(row["seconds"]),
        spread(row["cpu_seconds"]),
        f"{median(saved):.1f} % [{saved[0]:.1f}, {saved[-1]:.1f}]",
        _of_it(*(None if one is None else 1 - median(one["shares"]) for one in (row, least))),
    ]
    return f"| {' | '.join(cells)} |"


def _of_it(saved: float | None, most: float | None) -> str:
    """The share of what can be saved, in %."""
    return "" if saved is None or most is None or most <= 0 else f"{100 * saved / most:.0f} %"


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks dense", description=__doc__)
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; by default all but large ones"
    )
    parser.add_argument("--methods", nargs="+", help="rows to measure; the others are compared with the first")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, metavar="STEM", help="writes STEM.json and STEM.md")
    parser.add_argument(
        "--large",
        action="store_true",
        help="also the tables of the published size, Swin-L; 6 GiB with batches of 2, one model at a time",
    )
    options = parser.parse_args(argv)
    if options.batch_size < 2 or options.rounds < 1:
        parser.error("--batch-size is at least 2 (BatchNorm), --rounds at least 1")
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, tables = {}, {}
    for name in options.tables or [one for one in TABLES if options.large or one not in LARGE]:
        rows[name] = {row.name: row for row in TABLES[name][1]()}
        if unknown := set(options.methods or ()) - set(rows[name]):
            parser.error(f"{name} has no row {', '.join(sorted(unknown))}; it has {', '.join(rows[name])}")
    for name, there in rows.items():
        wanted = [there[method] for method in options.methods or there]
        try:
            tables[TABLES[name][0]] = measure(wanted, options.batch_size, options.rounds, device, apart=name in LARGE)
        except PointAdapterXError as error:
            parser.error(f"{name}: {error}")
    result = {**about(device, options.batch_size, []), "tables": tables}
    publish(result, markdown(result, " ".join(["python -m benchmarks dense", *argv])), options.output)
    return 0
