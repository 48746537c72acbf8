"""Triangles ``(n, 3, 3)`` float64 of mesh files, in the order of the file, which a seed's draws depend on."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np

NOTHING = np.zeros((0, 3, 3))


def read_obj(content: bytes) -> np.ndarray:
    """A Wavefront file; polygons are fans."""
    vertices: list[tuple[float, ...]] = []
    faces: list[tuple[int, int, int]] = []
    for line in content.decode(errors="replace").splitlines():
        if line.startswith("v "):
            vertices.append(tuple(map(float, line.split()[1:4])))
        elif line.startswith("f "):
            numbers = [int(word.split("/")[0]) for word in line.split()[1:] if word != "\\"]
            corners = [number - 1 if number > 0 else len(vertices) + number for number in numbers]
            faces += [(corners[0], *pair) for pair in pairwise(corners[1:])]
    return _chosen(np.array(vertices).reshape(-1, 3), np.array(faces, int).reshape(-1, 3))


def read_vrml(content: bytes) -> np.ndarray:
    """The face sets of a VRML 2 file without transforms, as KiCad's models are."""
    found = []
    for body in content.decode(errors="replace").split("IndexedFaceSet")[1:]:
        index, point = body.find("coordIndex"), body.find("point")
        if index < 0 or point < 0:
            continue
        points = np.array(_list_after(body, point), float)
        points = points[: len(points) // 3 * 3].reshape(-1, 3)
        found.append(_chosen(points, _polygons(np.array(_list_after(body, index), int))))
    return np.concatenate([NOTHING, *found])


def _list_after(body: str, place: int) -> list[str]:
    start = body.index("[", place) + 1
    return body[start : body.index("]", start)].replace(",", " ").split()


def _polygons(corners: np.ndarray) -> np.ndarray:
    """Triangles ``(n, 3)`` of polygons that -1 ends, as fans."""
    if len(corners) % 4 == 0 and (corners[3::4] == -1).all() and (corners.reshape(-1, 4)[:, :3] >= 0).all():
        return corners.reshape(-1, 4)[:, :3]
    triangles: list[tuple[int, ...]] = []
    face: list[int] = []
    for corner in corners.tolist():
        if corner >= 0:
            face.append(corner)
        else:
            triangles += [(face[0], *pair) for pair in pairwise(face[1:])]
            face = []
    return np.array(triangles, int).reshape(-1, 3)


def _chosen(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Triangles whose corners are there; a few of the models name others."""
    return vertices[faces[((faces >= 0) & (faces < len(vertices))).all(1)]]


def read_catalogue(content: bytes) -> list[dict[str, str]]:
    """Entries of a furniture library of Sweet Home 3D: lines such as ``name#12=Table``, by number."""
    entries: dict[int, dict[str, str]] = {}
    for line in content.decode("latin1").splitlines():
        match = re.match(r"(\w+)#(\d+)=(.*)", line.strip())
        if match:
            entries.setdefault(int(match[2]), {})[match[1]] = match[3]
    return [entry for _, entry in sorted(entries.items())]
