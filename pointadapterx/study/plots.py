"""Plots of a study: scores against what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pointadapterx.errors import PointAdapterXError
from pointadapterx.files import replacing
from pointadapterx.optional import missing
from pointadapterx.study.summary import Column, Summary, Table, plain_name
from pointadapterx.text import printable


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
GAP = 7.0  # typographic points between markers, which are six wide
UNSEEN = 0.5  # typographic points
MOVED = "Where markers would hide one another they are set apart; a thin line leads to the true place."
PANEL_INCHES = (4.6, 3.8)
PANELS_PER_ROW = 5
SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "svg.hashsalt": "pointadapterx",
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
        PointAdapterXError: if matplotlib is not installed or cannot be imported.
    """
    reason = missing("matplotlib.figure", "study")
    if reason is not None:
        raise PointAdapterXError(f"plots need matplotlib, which {reason}; then write the report with --report")
    from matplotlib import style
    from matplotlib.figure import Figure

    written: dict[str, list[str]] = {}
    with style.context(["default", SETTINGS]):
        for table in tables:
            rows = list(dict.fromkeys(summary.row for column in table.columns for summary in column.summaries))
            for cost in COSTS:
                columns = [*table.columns, *([] if (mean := table.pooled_column) is None else [mean])]
                panels = [(column, drawn) for column in columns if (drawn := _drawn(column, cost))]
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
    return [s for s in column.summaries if s.first_score is not None and getattr(s, cost.field) is not None]


def _draw(
    figure: Any, panels: Sequence[tuple[Column, list[Summary]]], cost: Cost, rows: Sequence[str], title: str
) -> None:
    down, across = _grid(len(panels))
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for spare in axes[len(panels) :]:
        spare.set_axis_off()
    legend: dict[str, tuple[Any, str]] = {}
    drawn: list[tuple[Any, list[Any]]] = []
    for axis, (column, summaries) in zip(axes, panels, strict=False):
        points = [_point(axis, s, getattr(s, cost.field), rows.index(s.row)) for s in summaries]
        drawn.append((axis, points))
        for summary, point in zip(summaries, points, strict=True):
            label = _text(summary.label)  # matplotlib leaves labels out that begin with _
            legend.setdefault(summary.row, (point, f" {label}" if label.startswith("_") else label))
        if cost.logarithmic:
            _use_decades(axis, [getattr(summary, cost.field) for summary in summaries])
        axis.set_xlabel(cost.label)
        unit = f" ({column.score.unit})" if column.score.unit else ""
        interval = "" if all(summary.interval is None for summary in summaries) else ", 95 % interval"
        axis.set_ylabel(f"{plain_name(column.score)}{unit}{interval}")
        axis.set_title(_text(column.name))
    above = 0.98 if down == 1 else 1.01  # of a tall figure, 2 % are more than a panel's title
    figure.suptitle(_text(title), y=above)
    figure.tight_layout()
    moved = [_set_apart(axis, points) for axis, points in drawn]
    if any(moved):
        axes[0].annotate(MOVED, (0, 0), (0, 3), xycoords="figure fraction", textcoords="offset points", fontsize=7)
    columns = min(len(legend), 3 * across)
    handles, labels = zip(*legend.values(), strict=True)
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns, frameon=False)


def _text(name: str) -> str:
    """A name of which nothing is a formula."""
    return printable(name).replace("$", r"\$")


def _set_apart(axis: Any, points: Sequence[Any]) -> bool:
    """Moves points sideways that would hide one another; a thin line leads from each to where it belongs.

    Returns:
        Whether any was moved.
    """
    from matplotlib.transforms import ScaledTranslation

    figure = axis.figure
    axis.set(xlim=axis.get_xlim(), ylim=axis.get_ylim())
    centres = [line.get_xydata()[0] for line, _, _ in points]
    seen = 72 / figure.dpi * axis.transData.transform(centres)  # (n, 2), in typographic points
    moves = spread_apart(*seen.T) - seen[:, 0]
    moves[np.abs(moves) < UNSEEN] = 0.0
    for (line, caps, bars), move in zip(points, moves.tolist(), strict=True):
        if not move:
            continue
        moved = axis.transData + ScaledTranslation(move / 72, 0, figure.dpi_scale_trans)
        (x,), (y,) = line.get_data()
        for part in (line, *caps, *bars):
            part.set_transform(moved)
        leader = {"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", (x, y), (move, 0), textcoords="offset points", arrowprops=leader)
    return bool(moves.any())


def spread_apart(places: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Places (n,) on the x axis of markers at ``heights`` (n,): none within :data:`GAP` of another in both directions.

    None is moved further than needed.
    """
    from scipy.sparse.csgraph import connected_components  # slow to import
    from sklearn.isotonic import isotonic_regression

    level = np.abs(heights[:, None] - heights) < GAP
    found, together = places.astype(float), np.eye(len(places), dtype=bool)
    while True:
        close = level & (np.abs(found[:, None] - found) < GAP - 1e-6)
        if not (close & ~np.eye(len(places), dtype=bool)).any():
            return found
        together |= close  # what has met once is moved together, so this comes to an end
        count, parts = connected_components(together)
        for part in range(count):
            (members,) = (parts == part).nonzero()
            order = members[np.argsort(places[members], kind="stable")]
            steps = GAP * np.arange(len(order))
            found[order] = isotonic_regression(places[order] - steps) + steps


def _use_decades(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic x axis of whole decades, with room beside the outermost points."""
    axis.set_xscale("log")
    axis.set_xlim(10 ** math.floor(math.log10(min(values) / 1.2)), 10 ** math.ceil(math.log10(max(values) * 1.2)))


def _point(axis: Any, summary: Summary, cost: float, number: int) -> Any:
    assert summary.first_score is not None
    centre, interval = summary.first_score.mean, summary.interval
    bars = None if interval is None else [[max(0.0, centre - interval.low)], [max(0.0, interval.high - centre)]]
    point = axis.errorbar(
        [cost],
        [centre],
        yerr=bars,
        marker=MARKERS[number % len(MARKERS)],
        color=COLOURS[number % len(COLOURS)],
        linestyle="none",
        capsize=3,
        zorder=2.2,  # of the interval; markers are above all of these
    )
    point[0].set_zorder(2.4)
    return point
