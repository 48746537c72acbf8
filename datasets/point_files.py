"""Readers of single point files and meshes: whatever the format, the coordinates of one cloud."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pointadapterx.datasets.files import impostor
from pointadapterx.datasets.formats import arrays, glb, las, mesh, obj, off, pcd, ply, stl, text
from pointadapterx.datasets.formats.mesh import Mesh, trimesh_version
from pointadapterx.errors import DataError

__all__ = ["KINDS", "MESH_SUFFIXES", "MISSING_TRIMESH", "SURFACE_SUFFIXES", "read_cloud", "trimesh_version"]

READERS: dict[str, Callable[[Path], np.ndarray | Mesh]] = {
    ".csv": text.read,
    ".glb": glb.read,
    ".h5": arrays.read_hdf5,
    ".hdf5": arrays.read_hdf5,
    ".las": las.read,
    ".laz": las.read,
    ".npy": arrays.read_npy,
    ".npz": arrays.read_npz,
    ".obj": obj.read,
    ".off": off.read,
    ".pcd": pcd.read,
    ".ply": ply.read,
    ".pts": text.read,
    ".stl": stl.read,
    ".txt": text.read,
    ".xyz": text.read,
}

KINDS = tuple(suffix[1:] for suffix in READERS)
"""Every kind of file that :func:`read_cloud` reads, by its suffix without the dot."""

MESH_SUFFIXES = (".glb", ".obj", ".off", ".ply", ".stl")
SURFACE_SUFFIXES = (".glb", ".obj", ".off", ".stl")  # a .ply is as often of points, which trimesh is not needed for
MISSING_TRIMESH = f"{mesh.NEEDED}, which is not installed; pip install trimesh"


def read_cloud(path: Path, num_samples: int, seed: int) -> np.ndarray:
    """Coordinates of a file, ``(m, 3)`` float64, in its own units and axes.

    Args:
        path: a mesh or a point file, told by its suffix. Rows or columns of a point file beyond x, y, z
            (normals, colours) are left out.
        num_samples: points to draw from a mesh, uniformly over its surface; a point file gives all of its own.
        seed: of that draw.

    Raises:
        DataError: if the file is damaged, of another kind or empty, or holds coordinates that are not finite.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise DataError(f"{path}: is of no kind that is read ({' '.join(KINDS)})")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        what = impostor(path)
        if what is not None:
            raise DataError(f"{path}: {what}")
        content = READERS[suffix](path)
        points = mesh.sample(path, content, num_samples, seed) if isinstance(content, Mesh) else content
        if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
            raise ValueError(f"it holds {points.dtype} of shape {points.shape}, expected numbers (points, 3 or more)")
    except DataError:
        raise
    except Exception as error:  # numpy, h5py and trimesh raise many types for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: cannot be read as {suffix} ({reason}); obtain it again or remove it") from error
    if len(points) == 0:
        raise DataError(f"{path}: there is no point or face in it; obtain it again or remove it")
    points = points[:, :3].astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise DataError(f"{path}: point {bad[0] + 1} has NaN or infinite coordinates; obtain it again or remove it")
    return points
