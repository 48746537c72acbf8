"""Triangles ``(n, 3, 3)`` float64 of mesh files, in the order of the file, which a seed's draws depend on."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np

NOTHING = np.zeros((0, 3, 3))


def read_obj(content: bytes) -> np.ndarray:
    """A Wavefront file; polygons are fans."""
    return read_painted_obj(content)[0]


def read_painted_obj(content: bytes) -> tuple[np.ndarray, list[str]]:
    """Triangles of a Wavefront file, and the name of each one's material."""
    vertices: list[tuple[float, ...]] = []
    faces: list[tuple[int, int, int]] = []
    materials: list[str] = []
    material = ""
    for line in content.decode(errors="replace").splitlines():
        if line.startswith("v "):
            vertices.append(tuple(map(float, line.split()[1:4])))
        elif line.startswith("f "):
            numbers = [int(word.split("/")[0]) for word in line.split()[1:] if word != "\\"]
            corners = [number - 1 if number > 0 else len(vertices) + number for number in numbers]
            faces += [(corners[0], *pair) for pair in pairwise(corners[1:])]
            materials += [material] * (len(faces) - len(materials))
        elif line.startswith("usemtl"):
            material = line[6:].strip()
    corners_of = np.array(faces, int).reshape(-1, 3)
    there = _there(len(vertices), corners_of)
    chosen = np.array(vertices).reshape(-1, 3)[corners_of[there]]
    return chosen, [materials[number] for number in np.flatnonzero(there)]


def read_diffuse(content: bytes) -> dict[str, tuple[float, ...]]:
    """Diffuse colours, of numbers from 0 to 1, of the materials of a Wavefront library."""
    found: dict[str, tuple[float, ...]] = {}
    material = ""
    for line in content.decode(errors="replace").splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "newmtl":
            material = " ".join(words[1:])
        elif len(words) > 3 and words[0] == "Kd":
            found[material] = tuple(map(float, words[1:4]))
    return found


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
    """Triangles whose corners are there."""
    return vertices[faces[_there(len(vertices), faces)]]


def _there(count: int, faces: np.ndarray) -> np.ndarray:
    """Whether the corners of triangles are among the vertices; a few of the models name others."""
    return np.asarray(((faces >= 0) & (faces < count)).all(1))


def read_catalogue(content: bytes) -> list[dict[str, str]]:
    """Entries of a furniture library of Sweet Home 3D: lines such as ``name#12=Table``, by number."""
    entries: dict[int, dict[str, str]] = {}
    for line in content.decode("latin1").splitlines():
        match = re.match(r"(\w+)#(\d+)=(.*)", line.strip())
        if match:
            entries.setdefault(int(match[2]), {})[match[1]] = match[3]
    return [entry for _, entry in sorted(entries.items())]
