"""Meshes in Wavefront's text format: obj."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pointadapterx.datasets.formats.mesh import Mesh, surface, triangulated
from pointadapterx.datasets.formats.tables import NotReadError, number_of, shown, text_lines

FARTHEST = 1 << 62  # vertices that a number can be of
CURVED = (b"surf", b"curv", b"curv2", b"cstype")  # surfaces without a mesh


@dataclass
class Group:
    """Faces of one material: corners of each, and how many words and slashes each line has."""

    counts: list[int] = field(default_factory=list)
    corners: list[int] = field(default_factory=list)
    columns: set[int] = field(default_factory=set)

    def triangles(self) -> np.ndarray:
        """In trimesh's order, which depends on whether all lines are alike; so draws are those of its mesh."""
        counts, corners = np.array(self.counts), np.array(self.corners)
        if len(self.columns) == 1:
            return triangulated(counts, corners)
        return _in_order(counts, corners)


def _in_order(counts: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Polygons of three corners or more as fans ``(f, 3)``, one after another; a quad's second triangle is 2, 3, 0."""
    sizes = counts - 2
    first = np.repeat(np.cumsum(counts) - counts, sizes)
    step = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    triangles = corners[np.stack([first, first + step + 1, first + step + 2], axis=1)]
    turned = (np.repeat(counts, sizes) == 4) & (step == 1)
    triangles[turned] = np.roll(triangles[turned], -1, axis=1)
    return triangles


def read(path: Path) -> Mesh | np.ndarray:
    """All faces of all objects as one mesh, or the vertices if there is no face.

    Raises:
        NotReadError: if it holds curved surfaces.
        ValueError: with the line that is no vertex or face, or names a vertex that is not there.
    """
    data = path.read_bytes().replace(b"\\\r\n", b" ").replace(b"\\\n", b" ")
    vertices: list[tuple[float, float, float]] = []
    groups: dict[bytes, Group] = {}
    group = groups.setdefault(b"", Group())
    for number, line in enumerate(text_lines(data), 1):
        words = line.partition(b"#")[0].split()
        if not words:
            continue
        if words[0] == b"v":
            vertices.append(_vertex(words, number))
        elif words[0] in (b"f", b"fo"):  # fo is the same in old files
            _add_face(group, words[1:], len(vertices), number)
        elif words[0] == b"usemtl":
            group = groups.setdefault(b" ".join(words[1:]), Group())
        elif words[0] in CURVED:
            raise NotReadError(f"line {number} is part of a curved surface ({words[0].decode()}); save it as a mesh")
    faces = [one.triangles() for one in reversed(groups.values()) if one.counts]
    return surface(np.array(vertices).reshape(-1, 3), np.concatenate(faces) if faces else np.empty((0, 3), np.int64))


def _vertex(words: list[bytes], number: int) -> tuple[float, float, float]:
    if len(words) < 4:
        raise ValueError(f"line {number} is a vertex of {len(words) - 1} coordinates")
    where = f"line {number}"
    return number_of(words[1], where), number_of(words[2], where), number_of(words[3], where)


def _add_face(group: Group, words: list[bytes], num_vertices: int, number: int) -> None:
    if len(words) < 3:
        raise ValueError(f"line {number} is a face of {len(words)} corners")
    for word in words:
        try:
            index = int(word.partition(b"/")[0].replace(b"_", b"?"))  # underscores are Python's own
        except ValueError:
            raise ValueError(f"line {number} has {shown(word)} in place of a vertex's number") from None
        corner = index - 1 if index > 0 else num_vertices + index
        if index == 0 or not 0 <= corner < FARTHEST:
            raise ValueError(f"line {number} names vertex {index}, and there are {num_vertices} before it")
        group.corners.append(corner)
    group.counts.append(len(words))
    group.columns.add(sum(word.count(b"/") + 1 for word in words))
