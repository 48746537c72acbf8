"""Colours that everyone can distinguish: Okabe and Ito's for kinds, cividis for amounts, blue to orange for signs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pointadapterx import palette

KINDS, GREY = palette.KINDS, palette.GREY
AMOUNTS = "cividis"
HIGHEST = 0.85  # of the colours of amounts, for the top of a cloud: yellow is too light for many points
SIGNED = ("#0072b2", "#c4c4c4", "#d55e00")  # least, zero, most
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")


@contextmanager
def drawing() -> Iterator[None]:
    """Names are text, whatever is in them, and the same picture is the same SVG."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False, "svg.hashsalt": "pointadapterx"}):
        yield


def rgb(colour: str) -> np.ndarray:
    """``#rrggbb`` -> (3,) in [0, 1]."""
    return palette.rgb(colour) / 255


def of_kinds(count: int) -> np.ndarray:
    """(count, 3): Okabe and Ito's, and beyond these steps of the colour map for amounts, which neighbours share."""
    if count <= len(KINDS):
        return np.stack([rgb(colour) for colour in KINDS[:count]])
    return of_amounts(np.linspace(0, 1, count))


def of_labels(count: int) -> np.ndarray:
    """(count, 3) of classes of points, see :func:`~pointadapterx.palette.label_colours`."""
    return palette.label_colours(count) / 255


def of_amounts(values: np.ndarray) -> np.ndarray:
    """(...,) in [0, 1] -> (..., 3)."""
    from matplotlib import colormaps

    return colormaps[AMOUNTS](values)[..., :3]


def of_signed(values: np.ndarray) -> np.ndarray:
    """(...,) in [-1, 1] -> (..., 3): blue below zero, grey at it, orange above."""
    least, zero, most = map(rgb, SIGNED)
    share = np.clip(np.abs(values), 0, 1)[..., None]
    return (1 - share) * zero + share * np.where(values[..., None] < 0, least, most)


def height_colours(points: np.ndarray) -> np.ndarray:
    """(N, 3) points, y up -> (N, 3)."""
    height = points[:, 1] - points[:, 1].min()
    return of_amounts(HIGHEST * height / max(float(height.max()), 1e-12))
