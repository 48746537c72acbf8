"""Triangle meshes, and sampling of points from their surfaces."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from pointadapterx.optional import need

NEEDED = "is a mesh, and its surface is sampled by trimesh (4.6 or newer)"


@dataclass(frozen=True)
class Mesh:
    """Triangles ``faces (f, 3)`` int64, which are indices of ``vertices (v, 3)``."""

    vertices: np.ndarray
    faces: np.ndarray


def trimesh_version() -> str | None:
    """Version of the installed trimesh, which samples surfaces; ``None`` without it."""
    try:
        return version("trimesh")
    except PackageNotFoundError:
        return None


def surface(vertices: np.ndarray, faces: np.ndarray) -> Mesh | np.ndarray:
    """What a file holds: its mesh, or its points if it has no face.

    Raises:
        ValueError: if a face names a vertex that is not there.
    """
    if len(faces) == 0:
        return vertices
    bad = np.flatnonzero((faces < 0) | (faces >= len(vertices)))
    if len(bad):
        raise ValueError(f"a face names vertex {faces.ravel()[bad[0]]}, and its {len(vertices)} vertices count from 0")
    return Mesh(vertices, faces)


def triangulated(counts: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Polygons as triangles ``(f, 3)``: triangles first, then quads, then fans of the others.

    The order is trimesh's own, so that draws from a surface are those of the mesh that trimesh reads.

    Args:
        counts: corners of each polygon ``(p,)``; those of fewer than three have no area and are left out.
        corners: of all polygons, one after another.
    """
    starts = np.cumsum(counts) - counts
    triangles, quads = (
        corners[starts[counts == sides][:, None] + np.arange(sides)].astype(np.int64) for sides in (3, 4)
    )
    sizes = counts[counts > 4] - 2
    first = np.repeat(starts[counts > 4], sizes)
    second = first + 1 + np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    fan = corners[np.stack([first, second, second + 1], axis=1)].astype(np.int64)
    return np.concatenate([triangles, quads[:, [0, 1, 2]], quads[:, [2, 3, 0]], fan])


def sample(path: Path, mesh: Mesh, num_samples: int, seed: int) -> np.ndarray:
    """Points ``(num_samples, 3)`` float64, uniform over the area."""
    trimesh = need("trimesh", f"{path}: {NEEDED}", "mesh")
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    if not 0 < shape.area < np.inf:
        raise ValueError(f"its {len(mesh.faces)} faces have the area {shape.area}")
    return np.asarray(trimesh.sample.sample_surface(shape, num_samples, seed=seed)[0])
