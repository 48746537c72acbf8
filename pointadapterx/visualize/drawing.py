"""Sheets of clouds and images in rows, put on paper by matplotlib; Open3D draws the clouds where it can."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pointadapterx.files import replacing
from pointadapterx.visualize.colours import AMOUNTS, GREY, KINDS, SIGNED, drawing, rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AZIMUTH, ELEVATION = 35.0, 20.0  # degrees, of the eye about the up axis and above the ground
SIDE = 2.0  # inches of a view
LETTER, BEFORE = 0.065, 0.5  # inches of a legend's letter, and of what is before a label
ROW_LETTERS = 30  # of the name of a row, which fit beside a view
MARK = rgb(KINDS[5])


class View(NamedTuple):
    """One cloud, or one image.

    Attributes:
        title: above it.
        points: (N, 3), y up, or None.
        colours: (N, 3) in [0, 1], of the points.
        image: (H, W, 3) in [0, 1], or None.
        marked: (M, 3) points that are drawn larger, in :data:`MARK`.
        box: (2, 3) lowest and highest corner of a box that is drawn dashed about a cloud, or None.
    """

    title: str
    points: np.ndarray | None = None
    colours: np.ndarray | None = None
    image: np.ndarray | None = None
    marked: np.ndarray | None = None
    box: np.ndarray | None = None


# a view of points, radius that it shows -> an image (H, W, 3) in [0, 1]
DrawCloud = Callable[[View, float], np.ndarray]


class Scale(NamedTuple):
    """What the colours of amounts mean, the same in every view.

    Attributes:
        label: of the colour bar.
        low: amount of the first colour.
        high: amount of the last.
        signed: whether the colours are those of signs, about 0.
    """

    label: str
    low: float
    high: float
    signed: bool = False


@dataclass
class Sheet:
    """Views in rows.

    Attributes:
        title: of all.
        rows: of views; all as long as the first.
        names: of the rows, or none.
        legend: meanings of colours, each with its (3,) colour.
        scale: where colours are amounts.
        axes: length of axes that are drawn from the origin of clouds, 0 for none.
    """

    title: str
    rows: list[list[View]]
    names: list[str] = field(default_factory=list)
    legend: list[tuple[str, np.ndarray]] = field(default_factory=list)
    scale: Scale | None = None
    axes: float = 0.0


def projected(points: np.ndarray, azimuth: float = AZIMUTH, elevation: float = ELEVATION) -> np.ndarray:
    """Points (N, 3), y up, in the coordinates of the viewer: (N, 3) to the right, upwards, towards the eye."""
    turn, lift = np.radians(azimuth), np.radians(elevation)
    x, y, z = points.T
    right, depth = x * np.cos(turn) - z * np.sin(turn), x * np.sin(turn) + z * np.cos(turn)
    return np.stack([right, y * np.cos(lift) - depth * np.sin(lift), y * np.sin(lift) + depth * np.cos(lift)], axis=1)


def shaded(points: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colours (N, 3), paler with increasing distance from the eye, which makes the shape visible."""
    depth = projected(points)[:, 2]
    near = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-12)
    return 1 - (1 - colours) * (0.45 + 0.55 * near[:, None])


@drawing()
def paint(sheet: Sheet, draw: DrawCloud | None = None) -> Figure:
    """The sheet as a figure.

    Args:
        sheet: at least one row.
        draw: how a cloud becomes an image; None: matplotlib's points.
    """
    from matplotlib.figure import Figure

    columns = len(sheet.rows[0])
    below = 0.5 if sheet.legend or sheet.scale else 0.0
    size = (max(SIDE * columns, 3.2), SIDE * 1.12 * len(sheet.rows) + 0.4 + below)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(sheet.title, fontsize=10)
    grid = figure.subplots(len(sheet.rows), columns, squeeze=False)
    reach = 1.04 * max(reach_of([view for row in sheet.rows for view in row]), sheet.axes)
    same = all([view.title for view in row] == [view.title for view in sheet.rows[0]] for row in sheet.rows)
    for number, (axes, views) in enumerate(zip(grid, sheet.rows, strict=True)):
        for place, view in zip(axes, views, strict=True):
            _paint_view(place, view._replace(title="") if same and number else view, reach, draw)
            if view.points is not None:
                _paint_lines(place, view, sheet.axes)
        if sheet.names:
            axes[0].text(-0.04, 0.5, _wrapped(sheet.names[number]), rotation=90, ha="right", va="center", fontsize=8,
                         transform=axes[0].transAxes)  # fmt: skip
    _explain(figure, sheet, grid.ravel().tolist())
    return figure


def _wrapped(name: str) -> str:
    """A row's name in lines that are no longer than the row is high; matplotlib would shrink all views to fit it in."""
    return "\n".join(textwrap.fill(line, ROW_LETTERS) for line in name.split("\n"))


def _paint_view(axes: Axes, view: View, reach: float, draw: DrawCloud | None) -> None:
    axes.set_title(view.title, fontsize=8)
    axes.set_axis_off()
    if view.image is not None:
        axes.imshow(view.image, interpolation="nearest")
    elif view.points is not None and view.colours is not None:
        if draw is not None:
            axes.imshow(draw(view, reach), extent=(-reach, reach, -reach, reach))
            return
        seen = projected(view.points)
        order = seen[:, 2].argsort()  # the nearest last, above the others
        x, y, _ = seen[order].T
        size = 5 * min((2048 / len(view.points)) ** 0.5, 2.0)
        axes.scatter(x, y, s=size, c=shaded(view.points, view.colours)[order], linewidths=0, rasterized=True)
        if view.marked is not None:
            x, y, _ = projected(view.marked).T
            axes.scatter(x, y, s=4 * size, color=tuple(MARK), linewidths=0, rasterized=True)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")


def _paint_lines(axes: Axes, view: View, length: float) -> None:
    """The view's box, and axes from the origin."""
    if view.box is not None:
        for edge in box_edges(view.box):
            x, y, _ = projected(edge).T
            axes.plot(x, y, color=GREY, linewidth=0.7, linestyle=(0, (4, 3)))
    for name, tip in zip("xyz", length * np.eye(3), strict=True) if length else ():
        x, y, _ = projected(np.stack([np.zeros(3), tip])).T
        axes.plot(x, y, color="black", linewidth=0.7)
        axes.text(1.1 * x[1], 1.1 * y[1], name, fontsize=6, ha="center", va="center")


def box_edges(box: np.ndarray) -> np.ndarray:
    """The 12 edges (12, 2, 3) of a box, given as two corners (2, 3)."""
    corners = list(product((0, 1), repeat=3))
    edges = [
        (one, other)
        for one, other in combinations(corners, 2)
        if sum(a != b for a, b in zip(one, other, strict=True)) == 1
    ]
    return np.array([[[box[end[axis], axis] for axis in range(3)] for end in edge] for edge in edges])


def reach_of(views: Sequence[View]) -> float:
    """The largest coordinate of clouds as the eye sees them, which a view must show; 1 without clouds."""
    shown = [view.points for view in views if view.points is not None]
    shown += [box_edges(view.box).reshape(-1, 3) for view in views if view.box is not None]
    return max((float(np.abs(projected(points)[:, :2]).max()) for points in shown), default=1.0)


def columns_of(labels: Sequence[str], width: float) -> int:
    """As many columns of a legend as a figure is wide enough for, in inches; each is filled from above."""
    for columns in range(len(labels), 1, -1):
        rows = -(-len(labels) // columns)
        longest = [max(map(len, labels[start : start + rows])) for start in range(0, len(labels), rows)]
        if sum(LETTER * length + BEFORE for length in longest) <= width:
            return len(longest)
    return 1


def _explain(figure: Figure, sheet: Sheet, axes: Sequence[Axes]) -> None:
    if sheet.legend:
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], marker="o", linestyle="", color=tuple(colour), label=label) for label, colour in sheet.legend
        ]
        columns = columns_of([label for label, _ in sheet.legend], figure.get_size_inches()[0])
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    if sheet.scale is not None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LinearSegmentedColormap, Normalize

        colours = LinearSegmentedColormap.from_list("signed", SIGNED) if sheet.scale.signed else AMOUNTS
        mapped = ScalarMappable(Normalize(sheet.scale.low, sheet.scale.high), colours)
        shrink = min(1.0, 3 / len(sheet.rows[0]))
        bar = figure.colorbar(mapped, ax=list(axes), location="bottom", shrink=shrink, aspect=40, pad=0.02)
        bar.ax.tick_params(labelsize=8)
        bar.set_label(sheet.scale.label, fontsize=8)


@drawing()
def save(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Writes a figure atomically; the same picture always gives the same bytes."""
    kind = path.suffix[1:]
    with replacing(path) as temporary:
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(temporary, format=kind, dpi=dpi, metadata=metadata)
