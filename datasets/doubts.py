"""Finds suspicious coordinates in clouds that can be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pointadapterx.datasets.base import AXES, Unchecked

SHOWN = 8  # labels that a message lists
NO_NUMBERS = ("no labels of points", "another number of labels", "labels that are no whole numbers")
"""Kinds of doubts about labels that say nothing of classes."""
FEW = "few different values"
NO_DATA = frozenset(
    float(np.float32(value))
    for value in (
        *(-9999, 9999, -99999, 99999, -999999, -32768, 32767, 65535),  # ESRI, SRTM, sensors of 16 bits
        *(-(2**31), 2**31 - 1, -2147483.648, 2147483.647, -21474836.48, 21474836.47),  # int32, as LAS scales it
        *(1e10, -1e10, 1e20, -1e20, 1e30, -1e30, 1.70141e38, -3.4028234663852886e38, 3.4028234663852886e38),  # GDAL
    )
)
ZEROS = 3  # points at the origin before they are no chance
PADDING = 0.01  # share of all points, more of which are no chance even within the cloud
NEAR = 0.01  # of the largest distance from the origin: nearer than that, other points surround it
SHARE = 0.99  # of the points, by which the size of the body is measured
FAR = 5.0  # times that size
ENOUGH = 100  # points before a share of them says anything
STEPS = 256  # over the largest side: with fewer, rounding changes the shape
FEW_VALUES = 64  # of a coordinate, in a cloud of many points
MANY = 1024


class Doubt(NamedTuple):
    """Something that may be wrong.

    Attributes:
        kind: the same words for all clouds.
        text: with the figures of this one.
        fix: what to do.
        note: whether nothing has to be done if it is meant.
    """

    kind: str
    text: str
    fix: str
    note: bool = False


class Cloud(NamedTuple):
    """Points of a file or an array, and what looks wrong with them.

    Attributes:
        points: ``(m, 3)``.
        doubts: about them.
        kept: ``(rows,)`` bool, which rows of the file the points are, in order; None: all of them. The others have NaN
            or infinite coordinates.
    """

    points: np.ndarray
    doubts: tuple[Doubt, ...] = ()
    kept: np.ndarray | None = None


def label_doubts(found: Unchecked) -> Iterator[Doubt]:
    """What is wrong with the labels of a cloud's points, where they should have some."""
    labels, count = found.point_labels, len(found.points)
    if not found.point_classes:
        return
    if labels is None:
        yield Doubt(NO_NUMBERS[0], "its points have no labels", "add one for each point, or remove the file")
        return
    if labels.shape not in ((count,), (count, 1)):
        shape = f"{len(labels)} labels" if labels.ndim == 1 else f"labels of shape {labels.shape}"
        yield Doubt(NO_NUMBERS[1], f"{shape} for {count} points", "give each point one label")
        return
    labels = labels.ravel()
    whole = labels.dtype.kind in "iufb" and np.isfinite(labels.astype(np.float64)) & (labels == np.floor(labels))
    if not np.all(whole):
        odd = labels[~np.asarray(whole)] if labels.dtype.kind in "fb" else labels
        text = f"{len(odd)} of {count} labels of points are no whole numbers, such as {odd[0]}"
        yield Doubt(NO_NUMBERS[2], text, f"number the classes from {_expected(found)}")
        return
    known = np.isin(labels, found.values) if found.values else (labels >= 0) & (labels < len(found.point_classes))
    ignored = np.isin(labels, found.ignored)
    outside_classes = labels[~known & ~ignored]
    if len(outside_classes):
        text = f"{len(outside_classes)} of {count} labels of points are none of the classes, such as"
        text += f" {outside_classes[0]:g}; expected {_expected(found)}"
        yield Doubt("labels of points that are none of the classes", text, "mend the labels, or the list of classes")
        return
    foreign = labels[~np.isin(labels, (*found.own, *found.ignored))] if found.own else labels[:0]
    if len(foreign):
        example = found.point_classes[int(foreign[0])]
        text = f"{len(foreign)} of {count} labels of points are parts of another category than {found.label}, such as"
        text += f" {foreign[0]:g} ({example})"
        yield Doubt("parts of another category", text, "mend the labels, or the category")
    elif ignored.all():
        yield Doubt("points without labels", f"none of its {count} points has a label", "label some, or remove it")


def _expected(found: Unchecked) -> str:
    if not found.values:
        return f"0 to {len(found.point_classes) - 1}"
    more = f" and {len(found.values) - SHOWN} more" if len(found.values) > SHOWN else ""
    return ", ".join(str(value) for value in found.values[:SHOWN]) + more


def not_finite(bad: int, total: int) -> Doubt:
    """Of points that were dropped."""
    text = f"{bad} of {total} points have NaN or infinite coordinates and are left out"
    return Doubt("NaN or infinite coordinates", text, "nothing, unless they should be there", note=True)


def doubts_of(points: np.ndarray, stored: np.ndarray | None = None) -> tuple[Doubt, ...]:
    """All doubts of this module that apply to a cloud.

    Args:
        points: ``(n, 3)`` float64, finite, n at least 1.
        stored: coordinates of the file, where ``points`` were drawn from a surface between them.
    """
    with np.errstate(over="ignore"):
        empty, doubts = _no_data(points)
        body = points if not empty.any() or empty.all() else points[~empty]
        far = far_points(body)
        if far.any():
            text = f"{far.sum()} of {len(points)} points lie {FAR:g} times farther out than {100 * SHARE:g} % of them"
            doubts.append(Doubt("lone far points", text, "remove them, if they do not belong to the object"))
        return (*doubts, *_rounded(points if stored is None else stored))


def outside(points: np.ndarray) -> np.ndarray:
    """Which points ``(n, 3)`` mean "no data" or lie far from the others: ``(n,)`` bool, never all of them."""
    with np.errstate(over="ignore"):
        left_out, _ = _no_data(points)
        if left_out.all():
            return np.zeros_like(left_out)
        left_out[~left_out] = far_points(points[~left_out])
    return left_out


def far_points(points: np.ndarray) -> np.ndarray:
    """Whether each point ``(n, 3)`` is a lone one, at most 1 % of all, far outside of the others: ``(n,)`` bool."""
    if len(points) < ENOUGH:
        return np.zeros(len(points), dtype=bool)
    columns = np.ascontiguousarray(points.T)
    offsets = columns - np.median(columns, axis=1)[:, None]
    distance = np.sqrt((offsets * offsets).sum(axis=0))
    body = np.quantile(distance, SHARE, method="lower")
    return distance > FAR * body if body > 0 else np.zeros(len(points), dtype=bool)


def few_values(points: np.ndarray) -> Doubt | None:
    """Coordinates on a few planes, as of a coarse grid, in a cloud ``(n, 3)`` of many points that is not flat."""
    if len(points) < MANY:
        return None
    for axis, values in zip(AXES, points.T, strict=True):
        distinct = len(np.unique(values))
        if 1 < distinct <= FEW_VALUES:
            text = f"{distinct} different values of {axis} among {len(points)} points"
            return Doubt(FEW, text, "nothing, if it is a grid; else they were rounded", note=True)
    return None


def _no_data(points: np.ndarray) -> tuple[np.ndarray, list[Doubt]]:
    """Which points mean "no data", ``(n,)`` bool, and the text that says so."""
    fix = "remove these points: they decide where the cloud's middle is and how large it is"
    empty, doubts = np.zeros(len(points), dtype=bool), []
    columns = np.ascontiguousarray(points.T)  # rows of memory, over which numpy is several times faster
    for axis, values in zip(AXES, columns, strict=True):
        for extreme in (values.min(), values.max()):
            if float(np.float32(extreme)) not in NO_DATA:
                continue
            mask = values == extreme
            if _is_outside(extreme, values[~mask]):
                text = f"{mask.sum()} of {len(points)} points have {axis} = {extreme:.9g}, which stands for no data"
                if not (mask & ~empty).any():
                    continue
                doubts.append(Doubt("values for no data", text, fix))
                empty |= mask
    zeros = (columns[0] == 0) & (columns[1] == 0) & (columns[2] == 0)
    if zeros.sum() >= ZEROS and len(others := points[~zeros & ~empty]):
        distance = np.linalg.norm(others, axis=1)
        if zeros.sum() > PADDING * len(points) or distance.min() > NEAR * distance.max():
            text = f"{zeros.sum()} of {len(points)} points are exactly (0, 0, 0), as for no data or padding"
            doubts.append(Doubt("values for no data", text, fix))
            empty |= zeros
    return empty, doubts


def _is_outside(value: float, others: np.ndarray) -> bool:
    """Whether a value is farther from all others than these are from each other."""
    if len(others) == 0:
        return False
    low, high = others.min(), others.max()
    return bool(max(low - value, value - high) > high - low)


def _rounded(points: np.ndarray) -> Iterator[Doubt]:
    """Coordinates so far from the origin that float32 has left a few steps of them.

    The steps have to be float32's own at that distance: grids of whole numbers are none of that.
    """
    if len(points) < ENOUGH:
        return
    columns = np.ascontiguousarray(points.T)
    size = float((columns.max(axis=1) - columns.min(axis=1)).max())
    worst: tuple[float, str] | None = None
    for axis, values in zip(AXES, columns, strict=True):
        largest = np.float32(np.abs(values).max())
        step = float(np.spacing(largest)) if np.isfinite(largest) else 0.0
        if step * STEPS <= size or (values.astype(np.float32) != values).any():
            continue
        distinct = np.unique(values)
        if len(distinct) > 1 and step / 2 <= np.diff(distinct).min() <= step and (worst is None or step > worst[0]):
            text = (
                f"{len(distinct)} different values of {axis} among {len(points)} points: float32, with steps of "
                f"{step:g} at {float(largest):.9g}, has spoilt the coordinates"
            )
            worst = step, text
    if worst is not None:
        fix = "export them again in double precision, or with the object moved to the origin"
        yield Doubt("coordinates spoilt by float32", worst[1], fix)
