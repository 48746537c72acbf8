"""Readers of single point files and meshes: whatever the format, the coordinates of one cloud."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pointadapterx.datasets.files import impostor
from pointadapterx.datasets.hdf5 import open_h5, read_numbers
from pointadapterx.errors import DataError

MESH_SUFFIXES = (".glb", ".obj", ".off", ".ply", ".stl")  # a .ply may hold points instead
MISSING_TRIMESH = "is read by trimesh (4.6 or newer), which is not installed; pip install 'pointadapterx[mesh]'"


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
    if suffix[1:] not in KINDS:
        raise DataError(f"{path}: is of no kind that is read ({' '.join(KINDS)})")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        what = impostor(path)
        if what is not None:
            raise DataError(f"{path}: {what}")
        points = _sample_mesh(path, num_samples, seed) if suffix in MESH_SUFFIXES else _READERS[suffix](path)
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


def trimesh_version() -> str | None:
    """Version of the installed trimesh, which reads meshes and ``.ply`` files; ``None`` without it."""
    try:
        return version("trimesh")
    except PackageNotFoundError:
        return None


def _optional(package: str, path: Path, missing: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise DataError(f"{path}: {missing}") from None


def _sample_mesh(path: Path, num_samples: int, seed: int) -> np.ndarray:
    """Surface samples, uniform over the area, of all meshes of a file; its points if it has no face."""
    trimesh = _optional("trimesh", path, MISSING_TRIMESH)
    scene = trimesh.load_scene(path, process=False, skip_materials=True)
    mesh = scene.to_mesh()
    if len(mesh.faces) == 0:
        return np.concatenate([np.empty((0, 3)), *(part.vertices for part in scene.dump())])
    if not 0 < mesh.area < np.inf:
        raise ValueError(f"its {len(mesh.faces)} faces have the area {mesh.area}")
    return np.asarray(trimesh.sample.sample_surface(mesh, num_samples, seed=seed)[0])


def _read_text(path: Path) -> np.ndarray:
    """Rows of numbers between commas, semicolons or spaces, after at most one line of column names or a count."""
    with path.open(encoding="utf-8-sig") as file:
        head = list(islice(file, 2))
    delimiter = next((mark for mark in ",;" if mark in "".join(head)), None)
    columns, header = (0, 1, 2), not _is_row(head[0], delimiter)
    if header:
        names = [name.strip(' \t\n"').lower() for name in head[0].lstrip("/# ").split(delimiter)]
        if {"x", "y", "z"} <= set(names):
            columns = (names.index("x"), names.index("y"), names.index("z"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is no row; too few points are reported later
        rows = np.loadtxt(
            path, delimiter=delimiter, skiprows=int(header), usecols=columns, ndmin=2, encoding="utf-8-sig"
        )
    return rows.reshape(-1, 3)


def _is_row(line: str, delimiter: str | None) -> bool:
    try:
        return len([float(value) for value in line.split(delimiter)[:3]]) == 3
    except ValueError:
        return False


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _read_npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        return file[_entry(file.files)]


def _read_hdf5(path: Path) -> np.ndarray:
    with open_h5(path) as file:
        return read_numbers(file, _entry(file.keys()))


def _read_las(path: Path) -> np.ndarray:
    """Laser scans, compressed or not."""
    laspy = _optional("laspy", path, "is read by laspy, which is not installed; pip install 'pointadapterx[scans]'")
    return np.asarray(laspy.read(path).xyz)


def _read_pcd(path: Path) -> np.ndarray:
    """Point Cloud Library files."""
    open3d = _optional("open3d", path, "is read by open3d, which is not installed; pip install 'pointadapterx[scans]'")
    with open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
        return np.asarray(open3d.io.read_point_cloud(str(path)).points)


def _entry(names: Collection[str]) -> str:
    for name in ("points", "data", *(names if len(names) == 1 else ())):
        if name in names:
            return name
    raise ValueError(f"its entries are {', '.join(names) or 'none'}, expected one called 'points' or 'data'")


_READERS = {
    **dict.fromkeys((".csv", ".pts", ".txt", ".xyz"), _read_text),
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    **dict.fromkeys((".las", ".laz"), _read_las),
    ".pcd": _read_pcd,
}

KINDS = tuple(sorted(suffix[1:] for suffix in (*MESH_SUFFIXES, *_READERS)))
"""Every kind of file that :func:`read_cloud` reads, by its suffix without the dot."""
