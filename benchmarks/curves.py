"""Time and memory of a step against one size at a time: what a config will cost."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from benchmarks.jobs import MIB, Job, Spec, make_training, peak_bytes, random_batch, spread, take_turns
from pointadapterx import ops
from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import save_adapter, versions
from pointadapterx.config import read_config
from pointadapterx.engine.bank import AdapterBank
from pointadapterx.engine.devices import hardware
from pointadapterx.errors import PointAdapterXError
from pointadapterx.files import replacing, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_RANGE = 2.5  # of an axis, from its lowest to its highest value
TICKS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)  # times a power of ten: two of them in any such range


class Curve(NamedTuple):
    """One size that varies.

    Attributes:
        title: of the size.
        key: of the config, or None where it is the number of samples or of adapters.
        values: of the size.
        batch_size: of the step.
    """

    title: str
    key: str | None
    values: list[int]
    batch_size: int


CURVES = [
    Curve("samples of a batch", None, [2, 4, 8, 16, 32, 64], 0),
    Curve("points of a cloud", "data.num_points", [1024, 2048, 8192, 32_768, 131_072, 1_000_000], 4),
    Curve("groups", "backbone.num_groups", [32, 64, 128, 256, 512], 8),
    Curve("blocks", "backbone.depth", [3, 6, 12, 24], 8),
    Curve("experts", "method.num_experts", [1, 4, 16, 64], 8),
    Curve("adapters", None, [1, 2, 4, 8, 16], 16),
]


def jobs_of(curve: Curve, config: str, overrides: list[str], device: torch.device) -> list[Job]:
    """The jobs of a curve, one for each value."""
    if curve.title == "adapters":
        return [make_bank(count, config, overrides, curve.batch_size, device) for count in curve.values]
    spec = Spec.parse(config)
    if curve.key is None:
        return [make_training(spec, overrides, size, device) for size in curve.values]
    return [
        make_training(spec, [*overrides, f"{curve.key}={value}"], curve.batch_size, device) for value in curve.values
    ]


def make_bank(count: int, config: str, overrides: list[str], batch_size: int, device: torch.device) -> Job:
    """Inference of a bank of ``count`` adapters on a batch whose samples take turns among them."""
    spec = Spec.parse(config)
    loaded = read_config(spec.config, overrides)
    model = build_model(loaded)
    with TemporaryDirectory() as folder:
        path = Path(folder, "adapter.safetensors")
        save_adapter(model, path, config=loaded, classes=[str(i) for i in range(model.head.num_classes)])
        bank = AdapterBank({str(number): path for number in range(count)}).to(device)
    inputs = random_batch(loaded, batch_size).to(device)
    names = list(islice(cycle(bank.names), batch_size))

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=spec.precision == "bf16"):
            bank(inputs, names)

    step()
    return Job("bank", 0, sum(tensor.nbytes for tensor in (*bank.parameters(), *bank.buffers())), step)


def measure(config: str, overrides: list[str], rounds: int, largest: int, only: list[str]) -> dict[str, Any]:
    """Curves by title, or all; the values of one take turns, so that a slower minute slows them all."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    curves = []
    for curve in CURVES:
        if only and curve.title not in only:
            continue
        curve = curve._replace(values=[value for value in curve.values if value <= largest])
        with ops.unchecked():
            jobs = jobs_of(curve, config, overrides, device)
            peaks = [peak_bytes(job.step, device) for job in jobs]
            times = take_turns(jobs, rounds, device, again=True)
        rows = [
            {"value": value, "mib": peak / MIB, "static_mib": job.static / MIB, "seconds": taken}
            for value, peak, job, taken in zip(curve.values, peaks, jobs, times, strict=True)
        ]
        for row in rows:
            print(curve.title, row["value"], spread(row["seconds"]), f"{row['mib']:.0f} MiB", flush=True)
        curves.append({"title": curve.title, "batch_size": curve.batch_size, "rows": rows})
    return {"config": config, "hardware": hardware(device), "versions": versions(), "curves": curves}


def markdown(result: Mapping[str, Any], command: str, picture: str) -> str:
    """The measurement as Markdown, one table per curve."""
    lines = [
        "# What a step costs against its sizes",
        "",
        f"`{command}`",
        "",
        f"{result['config']}, one size varied at a time: forward, backward and AdamW on random clouds; *adapters* is "
        "inference with as many in a bank, whose samples take turns among them. The values of a table take turns too, "
        "each with a step before the one that is timed. Seconds are medians, in brackets the fastest and the slowest; "
        "*MiB* are tensors beyond what stays between steps, *stay* is what stays.",
        "",
        f"{result['hardware']}, torch {result['versions']['torch']}.",
        "",
        f"![Time and memory against each size]({picture})",
    ]
    for curve in result["curves"]:
        batch = f", batch {curve['batch_size']}" if curve["batch_size"] else ""
        lines += ["", f"| {curve['title']}{batch} | s | MiB | stay |", "|---:|---:|---:|---:|"]
        for row in curve["rows"]:
            lines.append(
                f"| {row['value']:,} | {spread(row['seconds'])} | {row['mib']:.0f} | {row['static_mib']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def draw(result: Mapping[str, Any]) -> Figure:
    """One panel a curve, time on the left axis and memory on the right."""
    from matplotlib.figure import Figure

    curves = result["curves"]
    wide = (len(curves) + 1) // 2
    figure = Figure(figsize=(4 * wide, 7 if len(curves) > 1 else 3.5), layout="constrained")
    for number, curve in enumerate(curves):
        left = figure.add_subplot(min(2, len(curves)), wide, number + 1)
        right = left.twinx()
        values = [row["value"] for row in curve["rows"]]
        left.plot(values, [median(row["seconds"]) for row in curve["rows"]], "o-", color="#0072B2", label="time")
        right.plot(values, [row["mib"] for row in curve["rows"]], "s--", color="#D55E00", label="memory")
        left.set(xscale="log", xlabel=curve["title"])
        left.set_ylabel("s", color="#0072B2")
        right.set_ylabel("MiB", color="#D55E00")
        left.set_xticks(values, [f"{value:,}" for value in values], rotation=30)
        left.minorticks_off()
        for axis in (left, right):
            _use_log(axis)
    return figure


def _use_log(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers, of a range that has some of them: a hair's breadth is no slope."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    room = max(1.0, (LEAST_RANGE * low / high) ** 0.5)
    axes.set_ylim(low / room, high * room)
    axes.yaxis.set_major_locator(LogLocator(subs=TICKS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs=()))


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks curves", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides")
    parser.add_argument("--config", default="scan_pb_t50_rs@bf16", metavar="CONFIG[@bf16]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--largest", type=int, default=10**9, metavar="N", help="leave out larger values of any size")
    titles = [curve.title for curve in CURVES]
    parser.add_argument("--only", nargs="+", choices=titles, default=[], metavar="SIZE", help=", ".join(titles))
    parser.add_argument("--output", type=Path, metavar="STEM", help="writes STEM.json, STEM.md and STEM.png")
    options = parser.parse_intermixed_args(argv)
    try:
        result = measure(options.config, options.overrides, options.rounds, options.largest, options.only)
    except PointAdapterXError as error:
        parser.exit(2, f"error: {error}\n")
    stem = options.output
    picture = "curves.png" if stem is None else stem.with_suffix(".png").name
    text = markdown(result, " ".join(["python -m benchmarks curves", *argv]), picture)
    print(text)
    if stem is not None:
        write_json(stem.with_suffix(".json"), result)
        with replacing(stem.with_suffix(".png")) as file:
            draw(result).savefig(file, format="png", dpi=100, metadata={"Software": None})
        write_text(stem.with_suffix(".md"), text)
    return 0
