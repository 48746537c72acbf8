"""Furniture that rooms are composed of: models at their real sizes, with the colours of their materials.

Coordinates are whole tenths of a millimetre, so that all that is decided on them, such as what is in front of what, is
the same on every machine. Only what a model's own numbers need is computed in floating point, with + - * / and sqrt,
which round alike everywhere.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointadapterx.building.lists import Model
from pointadapterx.building.meshes import read_diffuse, read_painted_obj
from pointadapterx.building.sampling import sample
from pointadapterx.building.sources import Cloud, catalogued, of_model, placed

LABELS = (
    *("ceiling", "floor", "wall", "window", "door", "table", "chair", "sofa", "bed", "cabinet", "shelf", "lamp"),
    *("sanitary", "appliance", "plant", "clutter"),
)
"""What the points and pixels of a room are."""
CEILING, FLOOR, WALL = range(3)
LABEL_OF = {name: name for name in LABELS[WALL + 1 : -1]}
LABEL_OF |= {"stool": "chair", "armchair": "sofa"}
LABEL_OF |= dict.fromkeys(("tableware", "bottle", "electronics", "container", "clothes"), "clutter")
"""Labels of the classes of models; what is not here furnishes no room."""

CENTIMETRE, METRE = 100, 10_000  # in tenths of a millimetre
DENSITY = 1500  # points on a square metre of surface
FEWEST, MOST = 300, 40_000  # points of a model
GREY = (0.63, 0.63, 0.63)  # where a material has no colour
LARGEST = 33 * METRE // 10  # side of a model that fits into a room


@dataclass(frozen=True, kw_only=True)
class Piece(Cloud):
    """A model of furniture, in the middle of where it is, its back to -z, on y = 0.

    ``points`` are ``(m, 3)`` int32 on its surface, in tenths of a millimetre as everything here.

    Attributes:
        colours: of the points, ``(m, 3)`` uint8.
        triangles: ``(n, 3, 3)`` int32.
        paint: colours of the triangles, ``(n, 3)`` uint8.
        size: width, height and depth.
        kind: class of the model.
        elevation: height at which it hangs; 0 stands.
        top: height at which things are put on it; None: nowhere.
    """

    colours: np.ndarray
    triangles: np.ndarray
    paint: np.ndarray
    size: tuple[int, ...]
    kind: str
    elevation: int
    top: int | None

    @property
    def label(self) -> int:
        """Number of what it is, in :data:`LABELS`."""
        return LABELS.index(LABEL_OF[self.kind])


def furniture(package: Path, models: Sequence[Model]) -> Iterator[tuple[str, Cloud]]:
    """Sweet Home 3D's furniture, as :class:`Piece`."""
    kinds = {model.name: model.label for model in models}
    for name, entry, archive, texts in catalogued(package, kinds.keys()):
        with of_model(package, name):
            piece = _piece(name, kinds[name], entry, archive, texts)
        yield name, piece


def _piece(name: str, kind: str, entry: dict[str, str], archive: zipfile.ZipFile, texts: dict[str, str]) -> Piece:
    path = entry["model"].lstrip("/")
    content = archive.read(path)
    triangles, materials = read_painted_obj(content)
    is_finite = np.isfinite(triangles).all((1, 2))
    size = _steps([float(entry[key]) for key in ("width", "height", "depth")])
    corner = np.array([size[0] // 2, 0, size[2] // 2])
    steps = np.floor(placed(triangles[is_finite], entry) * CENTIMETRE + 0.5).astype(np.int64) - corner
    paint = _paint(materials, path, content, archive)[is_finite]
    edges = (steps[:, 1:] - steps[:, :1]) / METRE
    area = np.sqrt((np.cross(edges[:, 0], edges[:, 1]) ** 2).sum(1)).sum() / 2
    count = int(np.clip(area * DENSITY, FEWEST, MOST))
    points, chosen = sample(steps.astype(np.float64), f"sh3d/{name}", count)
    height, top = float(entry.get("elevation", 0)), float(entry.get("dropOnTopElevation", entry["height"]))
    return Piece(
        np.floor(points + 0.5).astype(np.int32),
        texts=texts,
        colours=paint[chosen],
        triangles=steps.astype(np.int32),
        paint=paint,
        size=size,
        kind=kind,
        elevation=_steps([height])[0],
        top=_steps([top])[0] if top >= 0 else None,
    )


def _steps(centimetres: Sequence[float]) -> tuple[int, ...]:
    return tuple(int(np.floor(value * CENTIMETRE + 0.5)) for value in centimetres)


def _paint(materials: Sequence[str], path: str, content: bytes, archive: zipfile.ZipFile) -> np.ndarray:
    """Colours (n, 3) uint8 of triangles, from the library that a model names or that has its name."""
    named = re.search(rb"^mtllib\s+(.+?)\s*$", content, re.MULTILINE)
    places = [posixpath.join(posixpath.dirname(path), named[1].decode(errors="replace"))] if named else []
    there = set(archive.namelist())
    found = next((place for place in [*places, f"{path[:-4]}.mtl"] if place in there), None)
    colours = read_diffuse(archive.read(found)) if found else {}
    names = list(dict.fromkeys(materials))
    numbers = {name: number for number, name in enumerate(names)}
    table = np.array([colours.get(name, GREY) for name in names], float).reshape(-1, 3)
    return np.clip(np.floor(table * 255), 0, 255).astype(np.uint8)[[numbers[name] for name in materials]]
