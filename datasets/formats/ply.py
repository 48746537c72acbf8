"""Polygon files of Stanford: ply, text and binary."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pointadapterx.datasets.formats.label_field import LabelField
from pointadapterx.datasets.formats.mesh import Mesh, surface, triangulated
from pointadapterx.datasets.formats.ply_body import Element, Lists, Property, read_binary, read_text
from pointadapterx.datasets.formats.tables import NotReadError, whole

TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    "int64": "i8",
    "uint64": "u8",
    "float16": "f2",
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
MOST_LINES, LONGEST_LINE = 10_000, 4096  # of a header, that are looked at for comments
CORNERS = ("vertex_indices", "vertex_index")  # both are common names of a face's list


def read(path: Path) -> Mesh | np.ndarray:
    """The mesh of the elements vertex and face, or the vertices if it has no face; other elements are left out.

    Raises:
        NotReadError: if no element is called vertex, or its properties not x, y and z.
        ValueError: if the header is damaged, or rows are more or fewer than it declares.
    """
    data = path.read_bytes()
    kind, elements, start = _header(data)
    wanted = {element.name: _wanted(element) for element in elements}
    if "vertex" not in wanted:
        raise NotReadError(f"its elements are {', '.join(wanted) or 'none'}, expected vertex; name that of points so")
    read_body = read_text if kind == "ascii" else read_binary
    columns = read_body(data[start:], elements, wanted)
    named = {name.lower(): values for name, values in columns["vertex"].items()}
    vertices = np.stack([_coordinates(named[axis]) for axis in "xyz"], axis=1)
    faces = [np.empty((0, 3), np.int64)]
    for name, to_triangles in (("face", triangulated), ("tristrips", _strips)):
        for lists in columns.get(name, {}).values():
            assert isinstance(lists, Lists)
            faces.append(to_triangles(lists.counts, whole(lists.values, "a face's vertex")))
    return surface(vertices, np.concatenate(faces))


def read_with(path: Path, field: LabelField) -> np.ndarray:
    """Vertices and one more of their properties, (n, 4) float64; faces are left out.

    Raises:
        NotReadError: if no element is called vertex, its properties not x, y and z, or it has no such property.
        ValueError: as :func:`read`.
    """
    data = path.read_bytes()
    kind, elements, start = _header(data)
    wanted = {element.name: list[int]() for element in elements}
    vertex = next((element for element in elements if element.name == "vertex"), None)
    if vertex is None:
        raise NotReadError(f"its elements are {', '.join(wanted) or 'none'}, expected vertex; name that of points so")
    place = field.place([one.name for one in vertex.properties])
    if vertex.properties[place].count is not None:
        raise NotReadError(f"its property {vertex.properties[place].name} is a list, and a label is one number")
    axes = _wanted(vertex)
    wanted["vertex"] = [*axes, place]
    columns = (read_text if kind == "ascii" else read_binary)(data[start:], elements, wanted)["vertex"]
    names = [vertex.properties[one].name for one in (*axes, place)]
    return np.stack([_coordinates(columns[name]) for name in names], axis=1)


def comments(path: Path) -> list[str]:
    """Comments of the header, without the word; those of a damaged header too."""
    found = []
    with path.open("rb") as file:
        for _ in range(MOST_LINES):
            line = file.readline(LONGEST_LINE)
            if not line or line.strip() == b"end_header":
                break
            if line.startswith(b"comment "):
                found.append(line[len(b"comment ") :].decode(errors="replace").strip())
    return found


def _header(data: bytes) -> tuple[str, list[Element], int]:
    """Kind of data, elements, and where the data begin."""
    start = data.find(b"\n") + 1
    if data[:start].strip().lower() != b"ply":
        raise ValueError("its first line is not ply")
    kind, elements = "", list[Element]()
    while True:
        end = data.find(b"\n", start)
        if end < 0:
            raise ValueError("its header has no line end_header")
        line = data[start:end].decode("latin-1")
        start = end + 1
        match line.split():
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", name, _] if name in ORDERS and not kind:
                kind = name
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) < 19:
                if any(element.name == name for element in elements):
                    raise ValueError(f"its header has two elements {name}")
                elements.append(Element(name, int(count), []))
            case ["property", "list", count, value, name] if elements and {count, value} <= TYPES.keys():
                if TYPES[count][0] == "f":
                    raise ValueError(f"its list {name} is counted by {count}, which is no whole number")
                elements[-1].properties.append(Property(name, _dtype(kind, value), _dtype(kind, count)))
            case ["property", value, name] if elements and value in TYPES:
                elements[-1].properties.append(Property(name, _dtype(kind, value), None))
            case ["end_header"]:
                break
            case _:
                raise ValueError(f"its header has the line {line.strip()[:60]!r}")
    if not kind:
        raise ValueError("its header has no line format")
    return kind, elements, start


def _dtype(kind: str, name: str) -> np.dtype:
    if not kind:
        raise ValueError("its header names properties before the format")
    return np.dtype(ORDERS[kind] + TYPES[name])


def _wanted(element: Element) -> list[int]:
    """Places of the properties to read of an element."""
    names = [one.name for one in element.properties]
    if element.name == "vertex":
        plain = [name.lower() for name in names]
        if any(plain.count(axis) != 1 or element.properties[plain.index(axis)].count is not None for axis in "xyz"):
            raise NotReadError(
                f"its vertices have the properties {', '.join(names) or 'none'}, expected one x, y and z each; name "
                "them so"
            )
        return [plain.index(axis) for axis in "xyz"]
    if element.name in ("face", "tristrips") and element.rows:
        lists = [place for place, one in enumerate(element.properties) if one.count is not None]
        named = [place for place in lists if names[place] in CORNERS] or (lists if len(lists) == 1 else [])
        if len(named) != 1:
            raise ValueError(f"its element {element.name} has the properties {', '.join(names)}, and no {CORNERS[0]}")
        return named
    return []


def _coordinates(values: np.ndarray | Lists) -> np.ndarray:
    assert isinstance(values, np.ndarray)
    return values.astype(np.float64)


def _strips(counts: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Strips of triangles, of which -1 begins a new one, as triangles ``(f, 3)``."""
    breaks = np.concatenate([np.cumsum(counts)[:-1], np.flatnonzero(corners == -1)])
    triangles = [np.empty((0, 3), np.int64)]
    for strip in np.split(corners, np.unique(breaks)):
        strip = strip[strip != -1]
        part = np.stack([strip[:-2], strip[1:-1], strip[2:]], axis=1) if len(strip) > 2 else triangles[0]
        part[1::2] = part[1::2, ::-1].copy()
        triangles.append(part)
    return np.concatenate(triangles)
