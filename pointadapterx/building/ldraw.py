"""The LDraw parts library: triangles of a part, and which kind of surface each of them is."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from pointadapterx.building.deb import read_files
from pointadapterx.datasets.ldraw_parts import KINDS_OF_PARTS
from pointadapterx.errors import DataError

ROOT = "usr/share/ldraw/"
FOLDERS = ("p/", "parts/")  # primitives and parts; of a name in both it is the primitive
LABELS = ("flat", "inclined", "curved", "stud", "tube", "hole", "joint")
FLAT, INCLINED, CURVED, STUD, TUBE, HOLE, JOINT = range(len(LABELS))
UNLABELLED = -1
FEATURES = [
    (TUBE, r"Stud Tube|Stud Duplo Tube|Underside Stud|Anti-?Stud|Stud Underside"),
    (STUD, r"\bStud\b(?! Holder)"),
    (HOLE, r"(Peg|Connector|Beam|Axle|Wheel) ?Hole|Peghole|Axle (Perimeter|Inner|Hole)|Hole End"),
    (
        JOINT,
        r"Technic (Pin|Friction|Axle|Bush)|Friction|Axle|Holding Pin|Handle|Plug Pin|Hinge|Click|Clip|Finger|Steering|"
        r"Tooth|Confric|Arm Knob|Bar\b",
    ),
    (CURVED, r"Cylinder|Cone|Torus|Sphere"),
]
"""What the titles of primitives say; the first that matches."""
INSTEAD = {HOLE: CURVED, TUBE: CURVED, JOINT: CURVED, STUD: CURVED, CURVED: INCLINED, INCLINED: FLAT}
"""Labels to take where a category has too few points of one."""
AXIAL = np.cos(np.radians(8))  # of a normal to an axis, from where on a surface is flat
CACHED = 2**14  # files that several parts use

Surface = tuple[np.ndarray, np.ndarray]


class Library:
    """The files of the library.

    Args:
        package: the ``.deb`` file.

    Raises:
        DataError: if it cannot be read.
    """

    def __init__(self, package: Path) -> None:
        self.package = package
        self.files: dict[str, tuple[bytes, bool]] = {}  # by lower-case name; whether it is a primitive
        for name, content in read_files(package, _is_part_of_it):
            folder, _, rest = name.removeprefix(ROOT).partition("/")
            is_primitive = folder == "p"
            if is_primitive or rest.lower() not in self.files:
                self.files[rest.lower()] = content, is_primitive
        self._cached = lru_cache(CACHED)(self._read)

    def read(self, name: str) -> Surface:
        """Triangles ``(n, 3, 3)`` of a part, y down, and the label ``(n,)`` of the primitive that each is written with.

        Where no primitive says what a triangle is, its label is :data:`UNLABELLED`.

        Raises:
            DataError: if a file is not there or is no part.
        """
        return self._read(name.lower())

    def _read(self, name: str) -> Surface:
        if name not in self.files:
            raise DataError(f"{self.package}: {name} is not in it")
        content, is_primitive = self.files[name]
        lines = content.decode(errors="replace").splitlines()
        own = _label(lines[0][2:].strip()) if is_primitive and lines else UNLABELLED
        triangles, labels = [np.zeros((0, 3, 3))], [np.zeros(0, int)]
        for line in lines:
            words = line.split()
            kind, count = words[0] if words else "", len(words)
            if kind == "3" and count >= 11:
                found = np.array(words[2:11], float).reshape(1, 3, 3)
                label = np.full(1, own)
            elif kind == "4" and count >= 14:
                found = np.array(words[2:14], float).reshape(4, 3)[[[0, 1, 2], [0, 2, 3]]]
                label = np.full(2, own)
            elif kind == "1" and count >= 15:
                used, label = self._cached(" ".join(words[14:]).lower().replace("\\", "/"))
                place = np.array(words[2:14], float)
                found = used @ place[3:].reshape(3, 3).T + place[:3]
                label = label if own in (UNLABELLED, CURVED) else np.full(len(label), own)
            else:
                continue
            triangles.append(found)
            labels.append(label)
        return np.concatenate(triangles), np.concatenate(labels)


def _is_part_of_it(name: str) -> bool:
    return name.startswith(tuple(ROOT + folder for folder in FOLDERS)) and name.lower().endswith(".dat")


def _label(title: str) -> int:
    return next((label for label, pattern in FEATURES if re.search(pattern, title)), UNLABELLED)


def with_normals(triangles: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels ``(n,)`` in which those that no primitive gives are flat or inclined."""
    normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    length = np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
    is_flat = (np.abs(normal) / length[:, None]).max(1) > AXIAL
    return np.where(labels == UNLABELLED, np.where(is_flat, FLAT, INCLINED), labels)


def part_numbers(category: str) -> np.ndarray:
    """For each of :data:`LABELS` the number of a category's part, counted over all categories, as uint8."""
    parts = [(name, kind) for name, kinds in KINDS_OF_PARTS.items() for kind in kinds]
    numbers = []
    for label in range(len(LABELS)):
        while (category, LABELS[label]) not in parts:
            label = INSTEAD[label]
        numbers.append(parts.index((category, LABELS[label])))
    return np.array(numbers, np.uint8)
