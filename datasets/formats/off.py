"""Object File Format of Geomview: off."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pointadapterx.datasets.formats.mesh import Mesh, surface, triangulated
from pointadapterx.datasets.formats.tables import NotReadError, number_of, shown, table, text_lines, whole

# Prefixes say that texture coordinates, colours or normals follow a vertex. ModelNet's counts may touch the word.
HEAD = re.compile(rb"(ST)?C?N?(4?n?)OFF(?![A-Za-z])[ \t]*(.*)", re.DOTALL)


def read(path: Path) -> Mesh | np.ndarray:
    """The mesh, or the vertices if it has no face; normals and colours are left out.

    Raises:
        NotReadError: if it is binary, or its points have other coordinates than x, y and z.
        ValueError: if rows are more or fewer than the header declares, or a row is no vertex or face.
    """
    lines = [line for raw in text_lines(path.read_bytes()) if (line := raw.partition(b"#")[0].strip())]
    head = HEAD.fullmatch(lines[0]) if lines else None
    if head is None:
        raise ValueError("its first line is not OFF")
    if head[2]:
        raise NotReadError("its points have four or more coordinates (4OFF, nOFF); write x, y and z alone")
    if head[3].upper().startswith(b"BINARY"):
        raise NotReadError("it is binary OFF, which is not read; save it as text")
    rest = [head[3], *lines[1:]] if head[3] else lines[1:]
    if not rest:
        raise ValueError("it ends before its numbers of vertices and faces")
    num_vertices, num_faces = _counts(rest[0])
    rows = len(rest) - 1
    if rows != num_vertices + num_faces:
        raise ValueError(f"it declares {num_vertices} vertices and {num_faces} faces, and {rows} rows follow")
    vertices = table(rest[1 : num_vertices + 1], (0, 1, 2), "vertex")
    return surface(vertices, triangulated(*polygons(rest[num_vertices + 1 :])))


def _counts(line: bytes) -> tuple[int, int]:
    words = line.split()
    if not (2 <= len(words) <= 3 and all(word.isdigit() for word in words)):
        raise ValueError(f"it has {shown(line)} in place of its numbers of vertices, faces and edges")
    return int(words[0]), int(words[1])


def polygons(lines: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a number of corners and the corners, perhaps with a colour -> counts ``(f,)`` and all corners, int64.

    Raises:
        ValueError: if a row has fewer corners than it says.
    """
    if not lines:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    sides, *words = lines[0].split()
    alike = all(line.split(None, 1)[0] == sides for line in lines)
    if alike and sides.isdigit() and int(sides) <= len(words):  # as in most files, and far quicker
        corners = table(lines, range(1, int(sides) + 1), "face") if int(sides) else np.empty((len(lines), 0))
        return np.full(len(lines), int(sides)), whole(corners.ravel(), "a face's vertex")
    counts, corners_of_all = [], []
    for number, line in enumerate(lines, 1):
        count, *words = line.split()
        if not count.isdigit() or int(count) > len(words):
            raise ValueError(f"face {number} of {len(lines)} has {len(words)} numbers behind {shown(count)}")
        counts.append(int(count))
        corners_of_all += [number_of(word, f"face {number} of {len(lines)}") for word in words[: int(count)]]
    return np.array(counts), whole(np.array(corners_of_all), "a face's vertex")
