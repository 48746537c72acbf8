"""Points on surfaces: the same for everybody, as only a model's name seeds them."""

from __future__ import annotations

import zlib

import numpy as np

from pointadapterx.errors import DataError

POINTS = 2048  # of a cloud
GRID = 2048  # steps in a unit, as float16 has between 0.5 and 1; finer ones are noise
CURVE_BITS = 10
NEGATIVE_ZERO = np.iinfo(np.int16).min  # as the reader knows it: checksums of the data tell it from 0


def sample(triangles: np.ndarray, model: str, count: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Points ``(count, 3)`` float64, uniform over the area, and the triangle ``(count,)`` that each lies in.

    Args:
        triangles: ``(n, 3, 3)``.
        model: the name that seeds the draws.
        count: number of points.

    Raises:
        DataError: if the triangles have no area.
    """
    edges = triangles[:, 1:] - triangles[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) / 2
    area[~np.isfinite(area)] = 0
    if area.sum() <= 0:
        raise DataError(f"{model}: its {len(triangles)} triangles have no area; the package is not the expected one")
    generator = np.random.default_rng(zlib.crc32(model.encode()))
    chosen = generator.choice(len(triangles), count, p=area / area.sum())
    share = generator.random((count, 2))
    root, second = np.sqrt(share[:, :1]), share[:, 1:]
    corners = triangles[chosen]
    return (1 - root) * corners[:, 0] + root * (1 - second) * corners[:, 1] + root * second * corners[:, 2], chosen


def to_unit_sphere(points: np.ndarray) -> np.ndarray:
    """Points ``(n, 3)`` centred at their mean, the farthest at radius 1, float64."""
    centred = points - points.mean(0)
    return centred / np.linalg.norm(centred, axis=1).max()


def hilbert_order(points: np.ndarray, bits: int = CURVE_BITS) -> np.ndarray:
    """Indices ``(N,)`` that put ``points (N, 3)``, within [-1, 1], along a Hilbert curve.

    Skilling, "Programming the Hilbert curve", AIP Conf. Proc. 707 (2004), for all points at once.
    """
    cells = ((points.astype(np.float64) + 1) / 2 * 2**bits).astype(np.int64).clip(0, 2**bits - 1)
    x = list(cells.T)
    for bit in reversed(range(1, bits)):
        high, low = 1 << bit, (1 << bit) - 1
        for i in range(3):
            swapped = np.where(x[i] & high, 0, (x[0] ^ x[i]) & low)
            x[0] = np.where(x[i] & high, x[0] ^ low, x[0] ^ swapped)
            x[i] = x[i] ^ swapped if i else x[0]
    for i in range(1, 3):
        x[i] = x[i] ^ x[i - 1]
    flip = np.zeros_like(x[0])
    for bit in reversed(range(1, bits)):
        flip = np.where(x[2] & (1 << bit), flip ^ ((1 << bit) - 1), flip)
    key = np.zeros_like(flip)
    for bit in reversed(range(bits)):
        for axis in x:
            key = key << 1 | (axis ^ flip) >> bit & 1
    return np.lexsort((*points.T, key))


def to_steps(grid: np.ndarray) -> np.ndarray:
    """Whole steps, given as floating-point numbers, as int16, in which -0 has a number of its own."""
    return np.where((grid == 0) & np.signbit(grid), NEGATIVE_ZERO, grid).astype(np.int16)
