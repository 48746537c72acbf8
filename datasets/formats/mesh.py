"""Surfaces, and how points are drawn from them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from pointadapterx.optional import need

NEEDED = "is read by trimesh (4.6 or newer)"


@dataclass(frozen=True)
class Mesh:
    """Triangles ``faces (f, 3)``, which are indices of ``vertices (v, 3)`` float64."""

    vertices: np.ndarray
    faces: np.ndarray


def trimesh_version() -> str | None:
    """Version of the installed trimesh, which samples surfaces; ``None`` without it."""
    try:
        return version("trimesh")
    except PackageNotFoundError:
        return None


def read(path: Path) -> Mesh | np.ndarray:
    """All meshes of a file as one; its points if it has no face."""
    trimesh = need("trimesh", f"{path}: {NEEDED}", "mesh")
    scene = trimesh.load_scene(path, process=False, skip_materials=True)
    mesh = scene.to_mesh()
    if len(mesh.faces) == 0:
        return np.concatenate([np.empty((0, 3)), *(part.vertices for part in scene.dump())])
    return Mesh(np.asarray(mesh.vertices), np.asarray(mesh.faces))


def sample(path: Path, mesh: Mesh, num_samples: int, seed: int) -> np.ndarray:
    """Points ``(num_samples, 3)`` float64, uniform over the area."""
    trimesh = need("trimesh", f"{path}: {NEEDED}", "mesh")
    surface = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    if not 0 < surface.area < np.inf:
        raise ValueError(f"its {len(mesh.faces)} faces have the area {surface.area}")
    return np.asarray(trimesh.sample.sample_surface(surface, num_samples, seed=seed)[0])
