"""Stereolithography: stl, binary and text."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np

from pointadapterx.datasets.formats.mesh import Mesh, surface
from pointadapterx.datasets.formats.tables import number_of, shown

HEAD, RECORD = 84, np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
# A facet as text, word by word; dots mark numbers.
FACET = b"facet normal . . . outer loop vertex . . . vertex . . . vertex . . . endloop endfacet".split()
KEYWORDS = itemgetter(*(place for place, word in enumerate(FACET) if word != b"."))
CORNERS = itemgetter(8, 9, 10, 12, 13, 14, 16, 17, 18)
EXPECTED = KEYWORDS(FACET)
BLOCK = 10_000  # facets of text at a time


def read(path: Path) -> Mesh | np.ndarray:
    """All triangles of all solids.

    Raises:
        ValueError: if a binary file has another size than its number of triangles asks for, or text is cut or damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
        declared = struct.unpack_from("<I", head, HEAD - 4)[0] if len(head) == HEAD else None
        if declared is not None and size == HEAD + declared * RECORD.itemsize:
            corners = np.frombuffer(file.read(), RECORD, declared)["corners"].reshape(-1, 3)
        elif head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(b"solid") and b"\0" not in head:
            file.seek(0)
            corners = np.concatenate([np.empty((0, 3)), *_text_corners(file)])
        elif declared is None:
            raise ValueError(f"its {size} bytes are neither text nor the {HEAD} that a binary file begins with")
        else:
            expected = HEAD + declared * RECORD.itemsize
            raise ValueError(f"it declares {declared} triangles in {expected} bytes, and has {size} bytes")
    return surface(corners, np.arange(len(corners)).reshape(-1, 3))


def _text_corners(lines: Iterable[bytes]) -> Iterator[np.ndarray]:
    """Corners ``(3 f, 3)`` of some facets at a time."""
    words: list[bytes] = []
    done, inside = 0, False
    for line in lines:
        new = line.removeprefix(b"\xef\xbb\xbf").lower().split()
        if not new:
            continue
        facet = f"facet {done + len(words) // len(FACET) + 1}"
        if new[0] in (b"solid", b"endsolid"):  # a name may follow, of any words
            if len(words) % len(FACET):
                _corners(words[: len(words) // len(FACET) * len(FACET)], done)  # one before may be the wrong one
            if inside != (new[0] == b"endsolid") or len(words) % len(FACET):
                raise ValueError(f"it has '{new[0].decode()}' where its {facet} is cut, or no solid begins or ends")
            inside = not inside
        elif inside:
            words += new
        else:
            raise ValueError(f"it has {shown(line.strip())} outside 'solid' and 'endsolid'")
        if len(words) >= BLOCK * len(FACET):
            whole = len(words) // len(FACET) * len(FACET)
            yield _corners(words[:whole], done)
            done, words = done + whole // len(FACET), words[whole:]
    if inside:
        raise ValueError(f"it ends without 'endsolid', after {done + len(words) // len(FACET)} facets")
    yield _corners(words, done)


def _corners(words: list[bytes], done: int) -> np.ndarray:
    values: list[float] = []
    for start in range(0, len(words), len(FACET)):
        facet = words[start : start + len(FACET)]
        where = f"its facet {done + start // len(FACET) + 1}"
        if KEYWORDS(facet) != EXPECTED:
            raise ValueError(f"{where} begins with {shown(b' '.join(facet))}, expected a normal and three vertices")
        values += [number_of(word, where) for word in CORNERS(facet)]
    return np.array(values).reshape(-1, 3)
