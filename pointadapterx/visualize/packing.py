"""Clouds as the viewer of web pages reads them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

LARGEST = 32767  # of the 16-bit integers that coordinates become


def packed(points: np.ndarray, patch: np.ndarray, colours: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One cloud.

    Args:
        points: (N, 3).
        patch: (N,), the number of each point's patch.
        colours: by name, (N, 3) of points or (G, 3) of patches, in [0, 1].

    Returns:
        ``points`` (N, 3) int16, of which :data:`LARGEST` is the farthest point's distance; ``patches`` (N,) uint16;
        ``modes``, names to uint8 colours. All base64.
    """
    reach = float(np.linalg.norm(points, axis=1).max(initial=0.0)) or 1.0
    return {
        "points": _text(np.round(points / reach * LARGEST).astype("<i2")),
        "patches": _text(patch.astype("<u2")),
        "modes": {name: _text(np.round(255 * values).astype(np.uint8)) for name, values in colours.items()},
    }


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
