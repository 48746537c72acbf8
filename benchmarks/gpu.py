"""What a GPU makes of the point ops, of training steps and of a bank of adapters: the parts of tools/gpu_report.py.

Each row by itself: one that fails, or that time does not suffice for, is named below the table, and the others go on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.curves import make_bank
from benchmarks.jobs import MIB, Job, Spec, make_inference, make_training, peak_bytes, seconds
from pointadapterx import ops
from pointadapterx.files import write_text
from pointadapterx.ops import reference

raw = torch.ops.pointadapterx
METHODS = [f"scan_pb_t50_rs{form}" for form in ("_linear", "_full", "_lora", "_dapt", "", "_e3va_x")]
GRAPHED = [f"scan_pb_t50_rs{form}" for form in ("_linear", "_full", "_lora", "_dapt", "_e3va", "_e3va_x")]
NO_GRAPH = " DAPT-X is not among them: the host reads how many sub-tokens go to each expert, which a graph cannot hold."
SMALL = ["backbone.weights=null", "backbone.depth=1", "backbone.encoder_width=8", "data.num_points=256"]
LASTS = 0.1  # seconds in which short calls are repeated


class Sizes(NamedTuple):
    """Of everything that is measured.

    Attributes:
        batch: clouds or samples of a batch.
        points: of a cloud.
        scene: points of a single large cloud.
        channels: that are gathered and interpolated.
        copied: bytes of a copy that shows the bandwidth of the memory.
        banks: adapters of the banks.
        rounds: of each row's steps.
        overrides: of all configs.
    """

    batch: int
    points: int
    scene: int
    channels: int
    copied: int
    banks: tuple[int, ...]
    rounds: int
    overrides: list[str]


WHOLE = Sizes(32, 2048, 100_000, 384, 2**31, (1, 8, 64), 20, ["backbone.weights=null"])
TINY = Sizes(4, 256, 17_000, 16, 2**22, (1, 2), 2, SMALL)

Row = Callable[[], Sequence[object]]
"""Measures a row, and gives its cells but the name."""


class Table(NamedTuple):
    """Rows by their names.

    Attributes:
        title: the heading.
        words: what the columns mean.
        columns: their names but the first.
        rows: measured in this order.
    """

    title: str
    words: str
    columns: Sequence[str]
    rows: Mapping[str, Row]


# ---- Point ops


class Call(NamedTuple):
    """An op at work: ours, the same in plain torch, and the values that must be read and written at least."""

    ours: Callable[[], object]
    plain: Callable[[], object]
    values: Sequence[Tensor]


def calls(sizes: Sizes, device: torch.device) -> dict[str, Callable[[], Call]]:
    """Every op that has a CUDA kernel, by the words of its row; inputs are made when a row's turn comes."""
    batch, points, scene, channels = sizes[:4]
    groups, near = points // 16, min(32, points // 16)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def call(name: str, *arguments: object, also: Sequence[Tensor] = ()) -> Call:
        inputs = [value for value in arguments if isinstance(value, Tensor)]
        return Call(partial(getattr(raw, name), *arguments), partial(getattr(reference, name), *arguments), inputs)

    def indices(*shape: int) -> Tensor:
        return torch.randint(points, shape, generator=generator).to(device)

    def lengths(full: int) -> Tensor:
        return torch.randint(full // 2, full + 1, (batch,), generator=generator).to(device)

    return {
        f"FPS {batch}×{points}→{groups}": lambda: call(
            "farthest_point_sample", random(batch, points, 3), groups, 0, False
        ),
        f"FPS 1×{scene}→{groups}": lambda: call("farthest_point_sample", random(1, scene, 3), groups, 0, False),
        f"FPS ragged {batch}×{points}→{groups}": lambda: call(
            "ragged_farthest_point_sample", random(batch, points, 3), lengths(points), groups, 0, False
        ),
        f"kNN {batch}×({groups}×{points}), k={near}": lambda: call(
            "knn", random(batch, groups, 3), random(batch, points, 3), near
        ),
        f"kNN ragged {batch}×({groups}×{points}), k={near}": lambda: call(
            "ragged_knn", random(batch, groups, 3), random(batch, points, 3), lengths(groups), lengths(points), near
        ),
        f"three nearest {batch}×({points}×{groups})": lambda: call(
            "knn", random(batch, points, 3), random(batch, groups, 3), 3
        ),
        f"nearest {batch}×({points}×{points})": lambda: call(
            "nearest", random(batch, points, 3), random(batch, points, 3)
        ),
        f"ball query {batch}×({groups}×{points}), {near} samples": lambda: call(
            "ball_query", random(batch, groups, 3), random(batch, points, 3), 0.5, near
        ),
        f"ball query ragged {batch}×({groups}×{points}), {near} samples": lambda: call(
            *("ragged_ball_query", random(batch, groups, 3), random(batch, points, 3)),
            *(lengths(groups), lengths(points), 0.5, near),
        ),
        f"gather {batch}×{groups * near} of {points}, {channels} channels": lambda: call(
            "gather_points", random(batch, points, channels), indices(batch, groups * near)
        ),
        f"interpolate {batch}×{points}, {channels} channels": lambda: call(
            "interpolate", random(batch, points, channels), indices(batch, points, 3), random(batch, points, 3)
        ),
    }


def each(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call among many that are enqueued one behind the other."""

    def several(number: int) -> None:
        for _ in range(number):
            call()

    call()
    number, taken = 1, seconds(call, device)
    while taken < LASTS and number < 1000:
        number = min(1000, 2 * number + int(LASTS / max(taken / number, 1e-9)))
        taken = seconds(partial(several, number), device)
    return taken / number


def bandwidth(sizes: Sizes, device: torch.device) -> float:
    """Bytes a second of a large copy, read and written."""
    source = torch.rand(sizes.copied // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / each(lambda: target.copy_(source), device)


def ops_table(sizes: Sizes, device: torch.device) -> Table:
    """Our ops beside plain torch on the same device."""
    reached = bandwidth(sizes, device)

    def row(make: Callable[[], Call]) -> list[object]:
        call = make()
        found, expected = (_tuple(run()) for run in (call.ours, call.plain))
        equal = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        ours, plain = each(call.ours, device), each(call.plain, device)
        moved = sum(value.nbytes for value in (*call.values, *found))
        cells = [f"{1e3 * ours:.4g}", f"{1e3 * plain:.4g}", f"{plain / ours:.1f}", "yes" if equal else "NO"]
        return [*cells, f"{moved / ours / 1e9:.3g}", f"{100 * moved / ours / reached:.1f} %"]

    words = (
        f"Point ops: {ops.implementation(device)}. Times are of one call among many in a row, float32. *plain* is the "
        "plain torch reference on the same device, *equal* says whether all results have the same bits. *GB/s* counts "
        "every input and result once, and *of copy* compares it with a copy of "
        f"{sizes.copied / 2**30:.3g} GiB, which reached {reached / 1e9:.0f} GB/s. Searches compute far more than they "
        "move, so theirs is low."
    )
    columns = ("ms", "plain ms", "faster", "equal", "GB/s", "of copy")
    made = {name: partial(row, make) for name, make in calls(sizes, device).items()}
    return Table("Point operations", words, columns, made)


def _tuple(found: object) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)  # type: ignore[arg-type]


# ---- Steps and banks


def steps_table(form: str, sizes: Sizes, device: torch.device) -> Table:
    """Training steps of six methods, each in the forms of a part."""
    methods = GRAPHED if form == "graphs" else METHODS
    specs = [Spec.parse(f"{config}{suffix}") for suffix in FORMS[form] for config in methods]

    def row(spec: Spec) -> list[object]:
        job = make_training(spec, sizes.overrides, sizes.batch, device)
        peak = peak_bytes(job.step, device)
        taken = [seconds(job.step, device) for _ in range(sizes.rounds)]
        held = ["–", "–"] if spec.variant == "graphed" else [f"{peak / MIB:.1f}", f"{(job.static + peak) / MIB:.1f}"]
        return [f"{job.trainable:,}", *held, _ms(taken), f"{sizes.batch / median(taken):.0f}"]

    words = (
        f"Forward, backward and AdamW, batch {sizes.batch}, random weights and inputs, grouping included. *step "
        "MiB* is the peak of tensors beyond what stays between steps, *in all* adds weights and optimiser state (a "
        "graph keeps its memory to itself). Times are medians, in brackets the fastest and the slowest."
        f"{NO_GRAPH if form == 'graphs' else ''}"
    )
    columns = ("trainable", "step MiB", "in all MiB", "ms/step", "samples/s")
    return Table(f"Training steps, {form}", words, columns, {_name(spec): partial(row, spec) for spec in specs})


def _ms(taken: list[float]) -> str:
    """Median, minimum and maximum in milliseconds."""
    return "{:.4g} [{:.4g}, {:.4g}]".format(*(1e3 * value for value in (median(taken), min(taken), max(taken))))


def _name(spec: Spec) -> str:
    return spec.label(spec.config.removeprefix("scan_pb_t50_rs").lstrip("_") or "dapt_x")


def bank_table(sizes: Sizes, device: torch.device) -> Table:
    """Samples for many adapters in one batch, beside one model."""
    config = "scan_pb_t50_rs@bf16"
    batch = 2 * sizes.batch

    def row(make: Callable[[], Job]) -> list[object]:
        job = make()
        taken = [seconds(job.step, device) for _ in range(sizes.rounds)]
        return [f"{job.static / MIB:.1f}", _ms(taken), f"{batch / median(taken):.0f}"]

    rows: dict[str, Row] = {
        "the model alone": partial(row, lambda: make_inference(Spec.parse(config), sizes.overrides, batch, device))
    }
    for count in sizes.banks:
        make = partial(make_bank, count, config, sizes.overrides, batch, device)
        rows[f"bank of {count}"] = partial(row, make)
    words = (
        f"DAPT-X in bf16, batches of {batch} samples, which take turns among the adapters of a bank; inputs are on the "
        "device. Times are medians, in brackets the fastest and the slowest. *MiB* is what the weights take."
    )
    return Table("Many adapters on one backbone", words, ("MiB", "ms/batch", "samples/s"), rows)


FORMS = {"eager": ["", "@bf16"], "graphs": ["@bf16+graphed", "+graphed"], "compiled": ["@bf16+compiled", "+compiled"]}
PARTS: dict[str, Callable[[Sizes, torch.device], Table]] = {
    "ops": ops_table,
    "eager": partial(steps_table, "eager"),
    "graphs": partial(steps_table, "graphs"),
    "compiled": partial(steps_table, "compiled"),
    "bank": bank_table,
}


def fill(table: Table, budget: float, write: Callable[[str], None] = lambda text: None) -> str:
    """Measures rows until ``budget`` seconds have passed, and gives the table; ``write`` gets it behind every row."""
    end = time.monotonic() + budget
    lines, notes = [], []
    for name, measure in table.rows.items():
        try:
            if time.monotonic() > end:
                raise TimeoutError("there was no time left")
            lines.append(f"| {' | '.join([name, *map(str, measure())])} |")
            print(lines[-1], flush=True)
        except TimeoutError as error:
            notes.append(f"- {name}: cut, {error}")
        except KeyboardInterrupt:
            notes.append(f"- {name}: cut, it took too long")
            end = 0
        except Exception as error:  # of a row, which the others do not share
            reason = str(error).strip().partition("\n")[0]
            notes.append(f"- {name}: FAILED, {type(error).__name__}: {reason}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        write(_markdown(table, lines, notes))
    return _markdown(table, lines, notes)


def _markdown(table: Table, lines: list[str], notes: list[str]) -> str:
    head = [f"# {table.title}", "", table.words]
    if lines:
        head += ["", f"| | {' | '.join(table.columns)} |", "|---|" + "---:|" * len(table.columns), *lines]
    return "\n".join([*head, *(["", *notes] if notes else [])]) + "\n"


def main(argv: list[str]) -> int:
    """Runs this module from the command line; 1 if a row failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=1e9, help="rows that are not begun by then are left out")
    parser.add_argument("--small", action="store_true", help="sizes for a try on a CPU")
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="written behind every row")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with ops.unchecked():
        table = PARTS[options.part](TINY if options.small else WHOLE, device)
        text = fill(table, options.seconds, lambda text: options.output and write_text(options.output, text))
    print(text)
    return 1 if "FAILED" in text or "| NO |" in text else 0
