"""Readers of single point files and meshes: whatever the format, the coordinates of one cloud."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointadapterx.datasets.base import check_choice
from pointadapterx.datasets.checks import MOST_COLUMNS
from pointadapterx.datasets.doubts import Cloud, Doubt, doubts_of, not_finite
from pointadapterx.datasets.files import impostor
from pointadapterx.datasets.formats import arrays, cut, glb, las, mesh, obj, off, pcd, ply, stl, text
from pointadapterx.datasets.formats.mesh import Mesh, trimesh_version
from pointadapterx.datasets.formats.tables import NotReadError
from pointadapterx.errors import ConfigError, DataError, reason_of

__all__ = [
    "AS_FILES_SAY",
    "KINDS",
    "MESH_SUFFIXES",
    "MISSING_TRIMESH",
    "SURFACE_SUFFIXES",
    "Cloud",
    "Reading",
    "checked_cloud",
    "load_cloud",
    "problem_of_columns",
    "read_cloud",
    "trimesh_version",
]

TEXT_SUFFIXES = (".asc", ".csv", ".pts", ".txt", ".xyz")
MAY_BE_TEXT = (*TEXT_SUFFIXES, ".obj", ".off", ".pcd", ".ply")  # where nothing marks the end

READERS: dict[str, Callable[[Path], np.ndarray | Mesh | Cloud]] = {
    ".asc": text.read,
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


@dataclass(frozen=True)
class Reading:
    """How the user wants files to be read: keys of the ``data`` section.

    Attributes:
        columns: of text files, those of x, y and z, by name or by number from 0; None: as the files name them.
        nan: whether points with NaN or infinite coordinates are dropped or an error.
    """

    columns: tuple[str | int, ...] | None = None
    nan: str = "drop"

    @classmethod
    def of(cls, columns: Sequence[str | int] | None, nan: str | None) -> Reading:
        """From the keys of a config or a command; None is the default of each.

        Raises:
            ConfigError: if there are not three different columns, or ``nan`` is another word.
        """
        check_choice(nan or "drop", ("drop", "error"), "data.nan")
        if columns is not None:
            problem = problem_of_columns(columns)
            if problem is not None:
                raise ConfigError(f"data.columns={list(columns)}: {problem}")
        return cls(None if columns is None else tuple(columns), nan or "drop")


AS_FILES_SAY = Reading()


def problem_of_columns(columns: Sequence[str | int]) -> str | None:
    """What is wrong with ``data.columns``, if anything is."""
    if len(columns) != 3 or len(set(columns)) != 3:
        return "x, y and z need three different columns, by name or by number from 0"
    if any(isinstance(column, int) and column < 0 for column in columns):
        return "columns are counted from 0"
    return None


def problem_of_array(points: np.ndarray) -> str | None:
    """Why an array cannot be the points of one cloud, ``(n, 3 or more)``: its type and shape and what is expected."""
    given = f"{points.dtype} of shape {points.shape}"
    if points.ndim == 2 and 3 <= points.shape[0] <= MOST_COLUMNS < points.shape[1]:
        return f"{given}, as if transposed; give a row to each point"
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        return f"{given}, not numbers (points, 3 or more)"
    return None


def read_cloud(path: Path, num_samples: int, seed: int) -> np.ndarray:
    """The points of :func:`load_cloud`, ``(m, 3)`` float64, where one that is not finite is an error."""
    return load_cloud(path, num_samples, seed, Reading(nan="error")).points


def load_cloud(path: Path, num_samples: int, seed: int, reading: Reading = AS_FILES_SAY) -> Cloud:
    """Coordinates of a file, ``(m, 3)`` float64, in its own units and axes.

    Args:
        path: a mesh or a point file, recognised by its suffix. Rows or columns of a point file beyond x, y, z
            (normals, colours) are left out.
        num_samples: points to draw from a mesh, uniformly over its surface; a point file gives all of its own.
        seed: of that draw.
        reading: what the user says of the files.

    Raises:
        DataError: if the file is damaged, of another kind or empty, holds something else than a cloud, no coordinate is
            finite, or one is not and ``reading.nan`` makes that an error.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise DataError(f"{path}: is of no kind that is read ({' '.join(KINDS)})")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    stored, doubts = None, tuple[Doubt, ...]()
    with damage_named(path):
        content = text.read(path, reading.columns) if suffix in TEXT_SUFFIXES else READERS[suffix](path)
        if isinstance(content, Mesh):
            stored, points = content.vertices, mesh.sample(path, content, num_samples, seed)
        else:
            points, doubts, _ = content if isinstance(content, Cloud) else Cloud(content)
        if suffix in MAY_BE_TEXT and (doubt := cut.ends_in_a_number(path)) is not None:
            doubts = (*doubts, doubt)
        if (problem := problem_of_array(points)) is not None:
            raise NotReadError(f"it holds {problem}")
    if len(points) == 0:
        raise DataError(f"{path}: there is no point or face in it; obtain it again or remove it")
    cloud = checked_cloud(points, str(path), reading, stored)
    return cloud._replace(doubts=(*doubts, *cloud.doubts))


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Whatever a reader raises for a file becomes one message with its name.

    Raises:
        DataError: such a message.
    """
    try:
        what = impostor(path)
        if what is not None:
            raise DataError(f"{path}: {what}")
        yield
    except DataError:
        raise
    except NotReadError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # numpy, h5py and trimesh raise many types for damaged files
        raise DataError(
            f"{path}: cannot be read as {path.suffix.lower()} ({reason_of(error)}); obtain it again or remove it"
        ) from error


def checked_cloud(points: np.ndarray, where: str, reading: Reading, stored: np.ndarray | None = None) -> Cloud:
    """The finite points of ``(n, 3 or more)``, n at least 1, as float64, and doubts about them.

    Args:
        points: numbers.
        where: they are from, for messages.
        reading: whether points that are not finite are dropped.
        stored: coordinates of the file, where ``points`` were drawn from a surface between them.

    Raises:
        DataError: if no point is finite, or one is not and that is an error.
    """
    points = points[:, :3].astype(np.float64)
    finite = np.isfinite(points)
    if finite.all():
        return Cloud(points, doubts_of(points, stored))
    kept = finite.all(axis=1)
    bad = np.flatnonzero(~kept)
    if len(bad) == len(points):
        raise DataError(
            f"{where}: all {len(points)} points have NaN or infinite coordinates; obtain it again or remove it"
        )
    if reading.nan == "error":
        raise DataError(
            f"{where}: point {bad[0] + 1} has NaN or infinite coordinates, as {len(bad)} of {len(points)} have; "
            "obtain it again or remove it, or let such points be dropped (data.nan=drop, --nan drop)"
        )
    points = points[kept]
    return Cloud(points, (not_finite(len(bad), len(kept)), *doubts_of(points, stored)), kept)
