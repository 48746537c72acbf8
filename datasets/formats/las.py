"""Laser scans, compressed or not: las, laz."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pointadapterx.optional import need


def read(path: Path) -> np.ndarray:
    """All points, scaled and moved as the header says."""
    laspy = need("laspy", f"{path}: is read by laspy", "scans")
    return np.asarray(laspy.read(path).xyz)
