"""Files of the Point Cloud Library: pcd."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pointadapterx.optional import need


def read(path: Path) -> np.ndarray:
    """All points."""
    open3d = need("open3d", f"{path}: is read by open3d", "scans")
    with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
        return np.asarray(open3d.io.read_point_cloud(str(path)).points)
