"""Checks that every reader runs on what it has read, before any training starts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pointadapterx.errors import DataError

MOST_COLUMNS = 16  # x, y, z, and normals, colours and the like; more are points in the place of columns


def moved_to_origin(points: np.ndarray) -> np.ndarray:
    """Float64 ``points (..., N, 3)`` of clouds that will be normalised, ready to be rounded to float32.

    Each mean moves to the origin, as float32's 7 digits would else go to the place alone, and the largest coordinate
    to [0.5, 1) by a power of two, which changes no digit.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite stays so, for the caller to report
        centred = points - points.mean(axis=-2, keepdims=True)
    largest = np.abs(centred).max(axis=(-2, -1), keepdims=True)
    return np.ldexp(centred, -np.frexp(largest)[1])


def checked_points(data: np.ndarray, where: str) -> torch.Tensor:
    """``data`` as a contiguous float32 tensor ``(n, N, 3)``.

    Args:
        data: array of any floating type.
        where: the file, for messages.

    Raises:
        DataError: if the shape or type is another, nothing is in it, or a coordinate is not finite.
    """
    if data.ndim != 3 or data.shape[2] != 3:
        raise DataError(f"{where}: 'data' has shape {data.shape}, expected (clouds, points, 3)")
    if data.dtype.kind != "f":
        raise DataError(f"{where}: 'data' holds {data.dtype}, expected floating-point coordinates")
    if 0 in data.shape:
        raise DataError(f"{where}: 'data' has shape {data.shape}: there is no cloud or no point in it")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is reported just below
        points = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    finite = torch.cat([part.isfinite().flatten(1).all(1) for part in points.split(256)])  # 256 bound the mask
    if not finite.all():
        bad = (~finite).nonzero().flatten()
        raise DataError(
            f"{where}: cloud {int(bad[0])} holds NaN or infinite coordinates ({len(bad)} of {len(points)} clouds do); "
            "the file is damaged, obtain it again"
        )
    return points


def checked_labels(labels: np.ndarray, num_clouds: int, num_classes: int, where: str) -> torch.Tensor:
    """``labels`` of shape ``(n,)`` or ``(n, 1)`` as an int64 tensor ``(n,)``.

    Raises:
        DataError: if they are not whole numbers, not one a cloud, or not in ``[0, num_classes)``.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != num_clouds:
        raise DataError(
            f"{where}: 'label' has shape {labels.shape}, expected one label for each of {num_clouds} clouds"
        )
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: 'label' holds {labels.dtype}, expected whole numbers")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise DataError(
            f"{where}: cloud {wrong[0]} has label {labels[wrong[0]]}, expected 0 to {num_classes - 1} "
            f"({len(wrong)} of {num_clouds} labels are out of range)"
        )
    return torch.from_numpy(labels.astype(np.int64))


def check_classes(found: Sequence[str], expected: Sequence[str], where: str) -> None:
    """Compare class names, in order: a label is an index into them.

    Raises:
        DataError: naming the first position that differs.
    """
    if list(found) == list(expected):
        return
    if len(found) != len(expected):
        raise DataError(f"{where}: {len(found)} class names, expected {len(expected)}")
    i = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
    raise DataError(f"{where}: class {i} is '{found[i]}', expected '{expected[i]}'; labels would change their meaning")
