"""Plots of a study: accuracy against what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pointadapterx.errors import PointAdapterXError
from pointadapterx.files import replacing
from pointadapterx.study.summary import Column, Summary, Table


class Cost(NamedTuple):
    """One kind of plot: the summary's field on the x axis."""

    name: str
    field: str
    label: str
    logarithmic: bool


COSTS = (
    Cost("parameters", "trainable", "trainable parameters, head included", True),
    Cost("time", "seconds", "training time (s)", False),
    Cost("memory", "peak_memory_mib", "peak memory, of the process on a CPU (MiB)", False),
)
# Okabe and Ito, "Color universal design" (2008), without its yellow, which is too light for points on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
PANEL_INCHES = (4.6, 3.8)
PANELS_PER_ROW = 5
SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "svg.hashsalt": "pointadapterx",
    "text.parse_math": False,  # names are text
    "axes.grid": True,
    "grid.alpha": 0.3,
}
# Nothing that differs between two drawings of one CSV.
METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def draw_plots(tables: Sequence[Table], folder: Path) -> dict[str, list[str]]:
    """Draws each table's plots as PNG and SVG, one panel a column.

    Args:
        tables: summarised.
        folder: to write to.

    Returns:
        Table name to the PNG files' names.

    Raises:
        PointAdapterXError: if matplotlib is not installed.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        raise PointAdapterXError(
            "plots need matplotlib: pip install 'pointadapterx[study]'; then write the report with --report"
        ) from None
    written: dict[str, list[str]] = {}
    with style.context(["default", SETTINGS]):
        for table in tables:
            rows = list(dict.fromkeys(summary.row for column in table.columns for summary in column.summaries))
            for cost in COSTS:
                panels = [(column, drawn) for column in table.columns if (drawn := _drawn(column, cost))]
                if not panels:
                    continue
                down, across = _grid(len(panels))
                size = (PANEL_INCHES[0] * across, PANEL_INCHES[1] * down + 0.2 * len(rows))
                figure = Figure(figsize=size)
                _draw(figure, panels, cost, rows, table.title)
                for kind, metadata in METADATA.items():
                    with replacing(folder / f"{table.name}-{cost.name}.{kind}") as temporary:
                        figure.savefig(temporary, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)
                written.setdefault(table.name, []).append(f"{table.name}-{cost.name}.png")
    return written


def _grid(panels: int) -> tuple[int, int]:
    """Rows and panels a row."""
    return math.ceil(panels / PANELS_PER_ROW), min(panels, PANELS_PER_ROW)


def _drawn(column: Column, cost: Cost) -> list[Summary]:
    return [s for s in column.summaries if s.overall is not None and getattr(s, cost.field) is not None]


def _draw(
    figure: Any, panels: Sequence[tuple[Column, list[Summary]]], cost: Cost, rows: Sequence[str], title: str
) -> None:
    down, across = _grid(len(panels))
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for spare in axes[len(panels) :]:
        spare.set_axis_off()
    legend: dict[str, tuple[Any, str]] = {}
    for axis, (column, summaries) in zip(axes, panels, strict=False):
        for summary in summaries:
            number = rows.index(summary.row)
            point = _point(axis, summary, getattr(summary, cost.field), number)
            legend.setdefault(summary.row, (point, summary.label))
        if cost.logarithmic:
            _use_decades(axis, [getattr(summary, cost.field) for summary in summaries])
        axis.set_xlabel(cost.label)
        axis.set_ylabel("overall accuracy (%), 95 % interval")
        axis.set_title(column.name)
    figure.suptitle(title, y=0.98 if down == 1 else 1.01)  # of a tall figure, 2 % are more than a panel's title
    figure.tight_layout()
    columns = min(len(legend), 3 * across)
    points, labels = zip(*legend.values(), strict=True)
    figure.legend(points, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns, frameon=False)


def _use_decades(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic x axis of whole decades, with room beside the outermost points."""
    axis.set_xscale("log")
    axis.set_xlim(10 ** math.floor(math.log10(min(values) / 1.2)), 10 ** math.ceil(math.log10(max(values) * 1.2)))


def _point(axis: Any, summary: Summary, cost: float, number: int) -> Any:
    assert summary.overall is not None
    assert summary.interval is not None
    centre = summary.overall.mean
    return axis.errorbar(
        [cost],
        [centre],
        yerr=[[max(0.0, centre - summary.interval.low)], [max(0.0, summary.interval.high - centre)]],
        marker=MARKERS[number % len(MARKERS)],
        color=COLOURS[number % len(COLOURS)],
        linestyle="none",
        capsize=3,
    )
