"""Files of points as programs write them, whole and damaged, each made in memory. The fuzzer starts from them too."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Content = bytes | str | Callable[[], bytes]  # a function where it needs a package, or time

POINTS = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.5, 0.25, -3.5]])
TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])


def rows(values: Sequence[Sequence[float]] | np.ndarray, before: str = "", after: str = "") -> str:
    """A line for each row."""
    return "".join(f"{before}{' '.join(f'{value:g}' for value in row)}{after}\n" for row in values)


def pcd(
    fields: str = "x y z", size: str = "4 4 4", kind: str = "F F F", count: str = "1 1 1", points: Any = 4, **more: Any
) -> bytes:
    """The header of a PCD file up to its data; ``data`` names their kind, other keywords replace lines."""
    lines = {"VERSION": "0.7", "FIELDS": fields, "SIZE": size, "TYPE": kind, "COUNT": count, "WIDTH": points}
    lines |= {"HEIGHT": 1, "VIEWPOINT": "9 9 9 0 1 0 0", "POINTS": points, "DATA": "ascii", **more}
    return ("# .PCD\n" + "".join(f"{key} {value}\n" for key, value in lines.items() if value is not None)).encode()


def records(dtype: Any, points: np.ndarray = POINTS) -> bytes:
    """Points in bytes, with x, y and z among the fields of ``dtype``, and sevens in the others."""
    values = np.zeros(len(points), dtype)
    values.view(np.uint8)[:] = 7
    for axis, column in zip("xyz", points.T, strict=True):
        values[axis] = column
    return values.tobytes()


def lzf(data: bytes) -> bytes:
    """Compressed as runs of bytes alone, which is valid."""
    return b"".join(bytes([len(data[i : i + 32]) - 1]) + data[i : i + 32] for i in range(0, len(data), 32))


def compressed(data: bytes, packed: bytes | None = None) -> bytes:
    """With the sizes that PCD has before it."""
    packed = lzf(data) if packed is None else packed
    return struct.pack("<II", len(packed), len(data)) + packed


def ply(body: bytes | str, kind: str = "ascii", points: str = "float x,float y,float z", **elements: Any) -> bytes:
    """A PLY file; ``elements`` are numbers and properties, or numbers alone of those that are known."""
    known = {"vertex": points, "face": "list uchar int vertex_indices"}
    header = f"ply\nformat {kind} 1.0\ncomment made by hand\nobj_info as old scanners do\n"
    for name, value in (elements if "vertex" in elements else {"vertex": 4} | elements).items():
        rows, properties = value if isinstance(value, tuple) else (value, known[name])
        header += f"element {name} {rows}\n" + "".join(f"property {one}\n" for one in properties.split(",") if one)
    return header.encode() + b"end_header\n" + (body.encode() if isinstance(body, str) else body)


def ply_faces(order: str = "<", faces: Sequence[Sequence[int]] | np.ndarray = TETRAHEDRON) -> bytes:
    """Faces of a binary PLY file."""
    return b"".join(struct.pack(f"{order}B{len(face)}i", len(face), *face) for face in faces)


def stl(triangles: np.ndarray = TETRAHEDRON, declared: int | None = None, head: bytes = b"") -> bytes:
    """A binary STL file."""
    corners = np.concatenate([np.zeros((len(triangles), 1, 3)), POINTS[triangles]], axis=1).reshape(-1, 12)
    body = b"".join(row.astype("<f4").tobytes() + b"\0\0" for row in corners)
    return head.ljust(80, b" ") + struct.pack("<I", len(triangles) if declared is None else declared) + body


def stl_text(triangles: np.ndarray = TETRAHEDRON, name: str = "solid vertex") -> str:
    """A solid of an STL file in text."""
    text = f"solid {name}\n"
    for face in POINTS[triangles]:
        text += "facet normal 0 0 1\n outer loop\n" + rows(face, before="  vertex ") + " endloop\nendfacet\n"
    return text + f"endsolid {name}\n"


def las(points: int = 4, *, cut: int = 0, minor: int = 2, kind: int = 0, head: dict[int, bytes] | None = None) -> bytes:
    """A LAS file of ``POINTS`` in thousandths; it declares ``points``, and ``head`` replaces bytes of its header."""
    size = {2: 227, 4: 375}[minor]
    header = bytearray(size)
    header[:4], header[24:26] = b"LASF", bytes([1, minor])
    struct.pack_into("<HIIBHI", header, 94, size, size, 0, kind, 20, points)
    struct.pack_into("<6d", header, 131, *[1e-3] * 3, *[10.0, 0.0, 0.0])
    if minor == 4:
        struct.pack_into("<Q", header, 247, points)
    for place, value in (head or {}).items():
        header[place : place + len(value)] = value
    body = b"".join(struct.pack("<3i8x", *(np.round(row * 1000).astype(int))) for row in POINTS - [10.0, 0.0, 0.0])
    return bytes(header) + body[: len(body) - cut]


def laz(kind: int = 0, count: int = 4) -> bytes:
    """A LAZ file of a format and number of points, ``POINTS`` again and again."""
    import laspy

    scan = laspy.create(point_format=kind)
    scan.header.scales = [1e-3] * 3
    scan.x, scan.y, scan.z = np.resize(POINTS, (count, 3)).T
    file = io.BytesIO()
    scan.write(file, do_compress=True)
    return file.getvalue()


def glb(change: dict[str, Any] | None = None, *, binary: bytes | None = None, length: int | None = None) -> bytes:
    """The tetrahedron as a GLB file; ``change`` replaces keys of its JSON, dots lead to those within."""
    content = POINTS.astype("<f4").tobytes() + TETRAHEDRON.astype("<u2").tobytes()
    scene: dict[str, Any] = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": 4},
            {"bufferView": 1, "componentType": 5123, "type": "SCALAR", "count": 12},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 48},
            {"buffer": 0, "byteOffset": 48, "byteLength": 24},
        ],
        "buffers": [{"byteLength": len(content if binary is None else binary)}],
    }
    for path, value in (change or {}).items():
        *way, last = path.split(".")
        place: Any = scene
        for key in way:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[int(last) if isinstance(place, list) else last] = value
    text = json.dumps(scene).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text
    data = content if binary is None else binary
    body += struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, len(body) + 12 if length is None else length) + body


def npy(values: np.ndarray = POINTS, header: str | None = None) -> bytes:
    """A numpy array, perhaps under another header."""
    file = io.BytesIO()
    np.save(file, values)
    if header is None:
        return file.getvalue()
    text = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + values.tobytes()


def npz(**entries: np.ndarray) -> bytes:
    """Arrays by name, compressed."""
    file = io.BytesIO()
    np.savez_compressed(file, **entries)  # type: ignore[arg-type]
    return file.getvalue()


def h5(cut: int = 0, **options: Any) -> bytes:
    """A data set ``points``; without ``data`` among its options nothing is written in it."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        content.create_dataset("points", **options)
    whole = file.getvalue()
    return whole[: len(whole) - cut]


XYZ = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
WIDE = [("x", "<f8"), ("y", "<f8"), ("z", "<f8")]
MIXED = [("n", "<u2", 3), ("z", "<f8"), ("pad", "u1", 5), ("x", "<f4"), ("y", "<i8")]
INTEGERS = np.array([[1, 2, 3], [-4, 5, 6]])
SOA = POINTS.astype("<f4").T.tobytes()  # as compressed PCD has it: all x, all y, all z
FACES = rows(np.insert(TETRAHEDRON, 0, 3, axis=1))
CORNERS = POINTS[TETRAHEDRON]
OFF = f"OFF\n4 4 6\n{rows(POINTS)}{FACES}"
OBJ = rows(POINTS, "v ") + rows(TETRAHEDRON + 1, "f ")
LISTED = b"".join(struct.pack("<3fBB", *point, 1, 9) for point in POINTS)  # with a list of one number behind each
RAGGED = b"".join(struct.pack(f">3fB{n}Hd", *point, n, *[7] * n, 0.5) for n, point in enumerate(POINTS))
MATERIALS = rows(POINTS, "v ")
MATERIALS += "".join(f"usemtl {n % 2}\n{rows([face], 'f ')}" for n, face in enumerate(TETRAHEDRON + 1))
MATERIALS += "f 1 2 3 4\nusemtl 2\nf 1 2 4 3\nf 4 3 2 1\n"

# Name: the file, and its points, or its triangles (f, 3, 3). The suffix is the name's first word.
READ: dict[str, tuple[Content, np.ndarray]] = {
    "pcd text": (pcd() + rows(POINTS).encode(), POINTS),
    "pcd old, without SIZE, COUNT and HEIGHT": (
        b"COLUMNS x y z\nPOINTS 4\nDATA ascii\n" + rows(POINTS).encode(),
        POINTS,
    ),
    "pcd X Y Z, Windows lines, blank lines": (
        (pcd(fields="X Y Z") + rows(POINTS).encode()).replace(b"\n", b"\r\n") + b"\r\n\r\n",
        POINTS,
    ),
    "pcd organised": (pcd(WIDTH=2, HEIGHT=2) + rows(POINTS).encode(), POINTS),
    "pcd binary": (pcd(DATA="binary") + records(XYZ), POINTS),
    "pcd binary of doubles": (pcd(size="8 8 8", DATA="binary") + records(WIDE), POINTS),
    "pcd binary of mixed types, another order, padding": (
        pcd("n z _ x y", "2 8 1 4 8", "U F U F I", "3 1 5 1 1", 2, DATA="binary") + records(MIXED, INTEGERS),
        INTEGERS,
    ),
    "pcd binary with reserved room behind": (pcd(DATA="binary") + records(XYZ) + bytes(4096), POINTS),
    "pcd compressed": (pcd(DATA="binary_compressed") + compressed(SOA), POINTS),
    "pcd compressed, padding left out": (
        pcd("x _ y z", "4 1 4 4", "F U F F", "1 4 1 1", DATA="binary_compressed") + compressed(SOA),
        POINTS,
    ),
    "pcd compressed, padding kept": (
        pcd("x _ y z", "4 1 4 4", "F U F F", "1 4 1 1", DATA="binary_compressed")
        + compressed(SOA[:16] + bytes(16) + SOA[16:]),
        POINTS,
    ),
    "pcd compressed by repeating": (
        pcd(DATA="binary_compressed", points=100)
        + compressed(bytes(1200), b"\0\0" + b"\xe0\xff\x00" * 4 + b"\xe0\x86\0"),
        np.zeros((100, 3)),
    ),
    "ply text": (ply(rows(POINTS) + FACES, face=4), CORNERS),
    "ply points": (ply(rows(POINTS)), POINTS),
    "ply text of polygons": (
        ply(rows(POINTS) + "5 0 1 2 3 1\n2 0 1\n4 0 1 2 3\n3 1 2 3\n", face=4),
        POINTS[[[1, 2, 3], [0, 1, 2], [2, 3, 0], [0, 1, 2], [0, 2, 3], [0, 3, 1]]],
    ),
    "ply text, properties in another order": (
        ply(rows(POINTS[:, [2, 0, 1]], "9 ", " 8"), points="uchar red,double z,double x,double y,int16 s"),
        POINTS,
    ),
    "ply text, X Y Z, and two properties of one name": (
        ply(rows(POINTS, after=" 7 7"), points="float X,float Y,float Z,float scalar,float scalar"),
        POINTS,
    ),
    "ply text, a list in its vertices": (
        ply(
            "".join(f"{n} {'5 ' * n}{row}" for n, row in enumerate(rows(POINTS).splitlines(True))),
            points="list uint8 int near,float x,float y,float z",
        ),
        POINTS,
    ),
    "ply binary": (ply(records(XYZ) + ply_faces(), "binary_little_endian", face=4), CORNERS),
    "ply binary, big endian": (
        ply(
            POINTS.astype(">f8").tobytes() + ply_faces(">"), "binary_big_endian", "double x,float64 y,double z", face=4
        ),
        CORNERS,
    ),
    "ply binary, a list in its vertices": (
        ply(LISTED, "binary_little_endian", "float x,float y,float z,list uchar uchar near"),
        POINTS,
    ),
    "ply binary, lists of several lengths in its vertices": (
        ply(RAGGED, "binary_big_endian", "float x,float y,float z,list uchar ushort near,double w"),
        POINTS,
    ),
    "ply binary, triangles and a quad": (
        ply(records(XYZ) + ply_faces("<", [[0, 1, 2], [0, 1, 2, 3]]), "binary_little_endian", face=2),
        POINTS[[[0, 1, 2], [0, 1, 2], [2, 3, 0]]],
    ),
    "ply binary, other elements before and between": (
        ply(
            b"\1\2\3" + records(XYZ) + struct.pack("<B2h", 2, 5, 6) + ply_faces(),
            "binary_little_endian",
            camera=(3, "uchar on"),
            **{"vertex": 4, "edge": (1, "list uchar short of"), "face": 4},
        ),
        CORNERS,
    ),
    "ply binary, faces with more than corners": (
        ply(
            records(XYZ) + b"".join(struct.pack("<fB3IB", 1.5, 3, *face, 255) for face in TETRAHEDRON),
            "binary_little_endian",
            face=(4, "float quality,list uchar uint vertex_index,uchar flags"),
        ),
        CORNERS,
    ),
    "ply strips": (
        ply(rows(POINTS) + "7 0 1 2 3 -1 1 2\n", tristrips=(1, "list int int vertex_indices")),
        POINTS[[[0, 1, 2], [3, 2, 1]]],
    ),
    "off": (OFF, CORNERS),
    "off counts on its first line, comments, blank lines": (
        "# from a set of shapes\nOFF4 4 6\n\n" + rows(POINTS, after=" # a vertex") + "\n" + FACES,
        CORNERS,
    ),
    "off normals and colours": ("CNOFF\n4 4 6\n" + rows(POINTS, after=" 0 0 1 255 0 0 255") + FACES, CORNERS),
    "off colours of faces, polygons": (
        "OFF\n4 3 0\n" + rows(POINTS) + "4 0 1 2 3 0.5 0.5 0.5\n3 1 2 3\n2 0 1\n",
        POINTS[[[1, 2, 3], [0, 1, 2], [2, 3, 0]]],
    ),
    "off points": ("OFF\n4 0 0\n" + rows(POINTS), POINTS),
    "obj": (OBJ, CORNERS),
    "obj with tabs": (OBJ.replace(" ", "\t"), CORNERS),
    "obj relative, vertices and faces in turn": (
        "".join(f"o part{n}\n{rows(POINTS[face], 'v ')}f -3 -2 -1\n" for n, face in enumerate(TETRAHEDRON)),
        CORNERS,
    ),
    "obj absolute, vertices and faces in turn": (
        "".join(
            f"{rows(POINTS[face], 'v ')}f {3 * n + 1}//1 {3 * n + 2}//1 {3 * n + 3}//1\n"
            for n, face in enumerate(TETRAHEDRON)
        ),
        CORNERS,
    ),
    "obj polygons, colours, texture, lines that go on": (
        rows(POINTS, "v ", " 0.5 0.5 0.5")
        + "vt 0 0\nvn 0 0 1\ns off\ng a b\nf 1/1/1 2/1/1 \\\n3/1/1 4/1/1 2/1/1\nl 1 2\n",
        POINTS[[[0, 1, 2], [0, 2, 3], [0, 3, 1]]],
    ),
    "obj points, with exponents": ("v 1e0 -2E-1 +3\nv .5 0 0\n", np.array([[1, -0.2, 3], [0.5, 0, 0]])),
    "stl": (stl(), CORNERS),
    "stl binary that begins with solid": (stl(head=b"solid part\n facet"), CORNERS),
    "stl text": (stl_text(), CORNERS),
    "stl text of two solids, capitals": (
        stl_text(TETRAHEDRON[:1]).upper() + "\n" + stl_text(TETRAHEDRON[1:]).replace("\n", "\r\n"),
        CORNERS,
    ),
    "glb": (glb(), CORNERS),
    "glb moved and scaled, twice": (
        glb(
            {
                "scenes.0.nodes": [0, 1],
                "nodes": [{"mesh": 0, "translation": [1, 2, 3]}, {"mesh": 0, "scale": [2, 2, 2]}],
            }
        ),
        np.concatenate([CORNERS * 2, CORNERS + np.array([1, 2, 3])]),
    ),
    "glb strip": (glb({"meshes.0.primitives.0.mode": 5, "accessors.1.count": 3}), POINTS[[[0, 2, 1]]]),
    "glb fan": (
        glb({"meshes.0.primitives.0.mode": 6, "accessors.1.count": 4}),
        POINTS[[[0, 2, 1], [0, 1, 0]]],
    ),
    "glb without indices": (
        glb({"meshes.0.primitives": [{"attributes": {"POSITION": 0}}], "accessors.0.count": 3}),
        POINTS[None, :3],
    ),
    "glb points": (glb({"meshes.0.primitives": [{"attributes": {"POSITION": 0}, "mode": 0}]}), POINTS),
    "glb quantised": (
        glb(
            {
                "extensionsRequired": ["KHR_mesh_quantization"],
                "accessors.0": {"bufferView": 0, "componentType": 5120, "normalized": True, "type": "VEC3", "count": 3},
                "bufferViews.0": {"buffer": 0, "byteLength": 12, "byteStride": 4},
                "meshes.0.primitives": [{"attributes": {"POSITION": 0}}],
            },
            binary=bytes([0, 0, 0, 9, 127, 0, 0, 9, 0, 129, 0, 9]) + bytes(60),
        ),
        np.array([[[0, 0, 0], [1, 0, 0], [0, -1, 0]]]),
    ),
    "glb sparse": (
        glb(
            {
                "accessors.0.sparse": {
                    "count": 1,
                    "indices": {"bufferView": 2, "componentType": 5121},
                    "values": {"bufferView": 0, "byteOffset": 12},
                },
                "bufferViews": [
                    {"buffer": 0, "byteLength": 48},
                    {"buffer": 0, "byteOffset": 48, "byteLength": 24},
                    {"buffer": 0, "byteOffset": 58, "byteLength": 1},  # 3, of an index of the last triangles
                ],
            }
        ),
        np.array([POINTS[0], POINTS[1], POINTS[2], POINTS[1]])[TETRAHEDRON],
    ),
    "las": (las(), POINTS),
    "las 1.4": (las(minor=4), POINTS),
    "laz": (laz, POINTS),
    "laz in layers": (lambda: laz(7), POINTS),
    "npy": (npy(), POINTS),
    "npy in columns, big endian": (npy(np.asfortranarray(POINTS.astype(">f4"))), POINTS),
    "npy of records": (npy(np.rec.fromarrays([POINTS[:, 2], [7] * 4, *POINTS.T[:2]], names="Z,i,X,Y")), POINTS),
    "npy in a row of one": (npy(POINTS[None]), POINTS),
    "npz": (npz(points=POINTS, normals=POINTS), POINTS),
    "npz called otherwise": (npz(xyz=POINTS, rgb=POINTS), POINTS),
    "h5": (h5(data=POINTS), POINTS),
    "h5 in a row of one": (h5(data=POINTS[None]), POINTS),
    "h5 compressed": (h5(data=POINTS, chunks=(2, 3), compression="gzip"), POINTS),
    "csv with names": ("id,x,y,z\n" + rows(POINTS, "7 ").replace(" ", ","), POINTS),
    "txt with tabs": (rows(POINTS).replace(" ", "\t"), POINTS),
    "xyz with colours": (rows(POINTS, after=" 255 0 0"), POINTS),
    "pts with its count": ("4\n" + rows(POINTS), POINTS),
}


def content(value: Content) -> bytes:
    """The bytes of a file."""
    if callable(value):
        return value()
    return value.encode() if isinstance(value, str) else value
