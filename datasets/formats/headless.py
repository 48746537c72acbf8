"""Text files without column names: decides whether the first three columns can be x, y and z."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pointadapterx.datasets.doubts import Doubt
from pointadapterx.datasets.formats.columns import WAY_OUT
from pointadapterx.errors import DataError

ENOUGH = 10  # rows before their order or their kind of numbers says anything
ALIKE = 0.05  # of the mean step, by which steps differ that were rounded when they were written
SMOOTH = 0.25  # of the distance of any two rows, that those after each other have where a scanner moves on
ROWS = 1000  # rows whose further columns are looked at
LATEST = 1e5  # rows or columns of a scanner, which are fewer; coordinates on a map are more
EPOCH = 1e9  # seconds or parts of them since 1970 or 1980; no coordinate, not even in millimetres on a map
SPAN = 4.0  # of coordinates, where a first column from 0 to 1 looks like an intensity

Sample = Callable[[], np.ndarray]


def check(path: Path, points: np.ndarray, width: int, sample: Sample) -> tuple[Doubt, ...]:
    """What speaks against x, y and z in the first three columns.

    Three columns are x, y and z, whatever their order; so is what unit vectors follow, as normals do.

    Args:
        path: the file, for messages.
        points: ``(n, 3)``, these columns.
        width: number of columns.
        sample: gives ``(m, up to 6)``, the first rows and columns; what is no number is NaN.

    Raises:
        DataError: where they clearly are something else.
    """
    if width <= 3 or len(points) < ENOUGH or not np.isfinite(points).all():
        return ()
    reason, is_clear = _counted(points, sample) or _ordered(points, sample) or _of_another_kind(points, sample)
    if not reason or _normals_follow(sample()):
        return ()
    if is_clear:
        raise DataError(f"{path}: its {reason}, so x, y and z lie elsewhere, and nothing names them; {WAY_OUT}")
    text = f"columns 0, 1, 2 of {width} are read as x, y, z, though nothing names them and the {reason}"
    fix = "if they are not, say which columns are: data.columns=[A,B,C], --columns A,B,C"
    return (Doubt("columns without names that may be others", text, fix, note=True),)


Verdict = tuple[str, bool]  # what the first column does, and whether that is clear enough to refuse the file


def _counted(points: np.ndarray, sample: Sample) -> Verdict | None:
    """Rows and columns of a scanner: two whole numbers before three with fractions."""
    if (points[:, :2] % 1 != 0).any() or points[:, :2].min() < 0 or points[:, :2].max() >= LATEST:
        return None
    if np.ptp(points[:, :2], axis=0).min() == 0 or not (points[:, 2] % 1 != 0).any():
        return None
    after = sample()[:, 3:5]
    if after.shape[1] < 2 or not _have_fractions(after):
        return None
    reason = "first two columns hold whole numbers, as rows and columns of a scanner, and the next three fractions"
    return reason, bool(np.abs(after).max() > 1)  # else they may be colours or parts of normals


def _ordered(points: np.ndarray, sample: Sample) -> Verdict | None:
    """Times and the like: the first column only rises, or only falls. Sorted points do so as well."""
    first = points[:, 0]
    steps = np.diff(first)
    if not ((steps >= 0).all() or (steps <= 0).all()) or 2 * np.count_nonzero(steps) < len(first):
        return None
    if (np.ptp(points[:, 1:], axis=0) == 0).all():  # a line along x
        return None
    mean = float(steps.mean())
    if (np.abs(steps - mean) <= ALIKE * abs(mean)).all():
        if first[0] in (0, 1) and (steps == 1).all():
            return "first column counts the rows", True
        return f"first column changes by about {mean:.3g} from row to row, as a time does", True
    if first.min() >= EPOCH:
        return f"first column rises from {first[0]:.10g} to {first[-1]:.10g}, as a time does", True
    if _moves_on(sample()[:, 1:4]):
        return "first column is in order, and the three after it change little from row to row, as behind a time", True
    return "first column is in order from the first row to the last, as a time is", False


def _moves_on(columns: np.ndarray) -> bool:
    """Whether rows that follow each other are near, in each of three columns; rows sorted by another one are not."""
    if columns.shape[1] < 3 or len(columns) < ENOUGH**2 or not np.isfinite(columns).all():
        return False
    others = np.random.default_rng(0).permutation(columns)
    near = np.median(np.abs(np.diff(columns, axis=0)), axis=0)
    far = np.median(np.abs(columns - others), axis=0)
    return bool(((near < SMOOTH * far) & (far > 0)).all())


def _of_another_kind(points: np.ndarray, sample: Sample) -> Verdict:
    """An intensity, a class or the like: of numbers unlike those of the three columns after it."""
    first = points[:, 0]
    whole, small = bool((first % 1 == 0).all()), bool(first.min() >= 0 and first.max() <= 1)
    if not (whole or small) or not _have_fractions(points[:, 1:]):
        return "", False
    after = sample()[:, 1:4]
    if after.shape[1] < 3 or not _have_fractions(after):
        return "", False
    if whole:
        return "first column holds whole numbers, and the next three fractions", False
    if np.ptp(after, axis=0).min() > SPAN:
        return "first column lies between 0 and 1, and the next three do not", False
    return "", False


def _have_fractions(columns: np.ndarray) -> bool:
    return bool(np.isfinite(columns).all() and (columns % 1 != 0).any(axis=0).all())


def _normals_follow(sample: np.ndarray) -> bool:
    lengths = np.linalg.norm(sample[:, 3:6], axis=1)
    return sample.shape[1] >= 6 and bool((np.abs(lengths - 1) < 0.01).mean() > 0.9)
