"""Binary scenes of glTF 2.0: glb."""

from __future__ import annotations

import json
import struct
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pointadapterx.datasets.formats.glb_scene import entry, instances
from pointadapterx.datasets.formats.mesh import NEEDED, Mesh, surface
from pointadapterx.datasets.formats.tables import EXPANSION, SMALL, NotReadError
from pointadapterx.errors import DataError
from pointadapterx.optional import need

TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
SHAPES = {"SCALAR": 1, "VEC3": 3}  # of indices and positions
WIDEST = 252  # bytes from one row to the next, by the specification
POINTS, TRIANGLES, STRIP, FAN = 0, 4, 5, 6
SIDELINES = ("KHR_materials_", "KHR_texture_", "EXT_texture_", "KHR_lights_", "KHR_xmp", "MSFT_texture_")  # no shapes
READ = ("KHR_mesh_quantization",)
COMPRESSION = {
    "KHR_draco_mesh_compression": "Draco",
    "EXT_meshopt_compression": "meshopt",
    "KHR_meshopt_compression": "meshopt",
}


def read(path: Path) -> Mesh | np.ndarray:
    """The meshes of the scene as one, where its nodes put them; its points if there is no face.

    Raises:
        DataError: without trimesh, or for a compression whose decoder is missing here.
        ValueError: if lengths contradict the file, or the scene asks for what is not read.
    """
    data = path.read_bytes()
    scene, binary = _chunks(data)
    try:
        return _read_scene(path, scene, binary, len(data))
    except (AttributeError, KeyError, IndexError, OverflowError, TypeError) as error:
        raise ValueError(f"its JSON lacks or mistakes {error}") from error


def _chunks(data: bytes) -> tuple[dict[str, Any], bytes | None]:
    """The JSON of a file, and its binary data."""
    if len(data) < 20 or data[:4] != b"glTF":
        raise ValueError("it does not begin with glTF")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise NotReadError(f"it is glTF of version {version}; save it as version 2")
    if length != len(data):
        raise ValueError(f"it declares {length} bytes, and has {len(data)}")
    chunks: dict[bytes, bytes] = {}
    place = 12
    while place < length:
        size, kind = struct.unpack_from("<I4s", data, place) if place + 8 <= length else (0, b"")
        if not kind or place + 8 + size > length:
            raise ValueError(f"a part of it declares {size} bytes, and {max(0, length - place - 8)} follow")
        chunks.setdefault(kind, data[place + 8 : place + 8 + size])
        place += 8 + size
    if b"JSON" not in chunks:
        raise ValueError("it has no JSON")
    try:
        scene = json.loads(chunks[b"JSON"])
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(scene, dict):
        raise ValueError("its JSON is no object")
    return scene, chunks.get(b"BIN\0")


def _read_scene(path: Path, scene: Mapping[str, Any], binary: bytes | None, size: int) -> Mesh | np.ndarray:
    for name in scene.get("extensionsRequired", ()):
        if name in COMPRESSION:
            raise DataError(f"{path}: {_compressed(name)}")
        if name not in READ and not name.startswith(SIDELINES):
            raise NotReadError(f"it requires the extension {name[:60]!r}, which is not read; save it without")
    trimesh = need("trimesh", f"{path}: {NEEDED}", "mesh")
    buffers = Buffers(path, scene, binary, max(SMALL, EXPANSION * size))
    meshes: dict[int, list[Mesh | np.ndarray]] = {}
    shapes, points = [], [np.empty((0, 3))]
    for index, matrix in instances(trimesh, scene):
        if index not in meshes:
            meshes[index] = [buffers.primitive(one) for one in entry(scene, "meshes", index)["primitives"]]
        for part in meshes[index]:
            vertices = part.vertices if isinstance(part, Mesh) else part
            buffers.use(24 * len(vertices) + (24 * len(part.faces) if isinstance(part, Mesh) else 0))
            if isinstance(part, Mesh):
                shapes.append(trimesh.Trimesh(vertices, part.faces, process=False).apply_transform(matrix))
            else:
                points.append(trimesh.transform_points(vertices, matrix))
    faces, vertices, start = [np.empty((0, 3), np.int64)], [np.empty((0, 3))], 0
    for shape in shapes:
        faces.append(shape.faces + start)
        vertices.append(shape.vertices)
        start += len(shape.vertices)
    return surface(np.concatenate(vertices if start else points), np.concatenate(faces))


def _compressed(name: str) -> str:
    return (
        f"its meshes are compressed with {COMPRESSION[name]} ({name}), and there is no decoder for it here; save it "
        "without compression"
    )


class Buffers:
    """Arrays that accessors of a file describe.

    Args:
        path: the file, for messages.
        scene: its JSON.
        binary: its binary data.
        room: bytes that its arrays may take: nodes may show one mesh, and primitives one array, any number of times.
    """

    def __init__(self, path: Path, scene: Mapping[str, Any], binary: bytes | None, room: int) -> None:
        self.path, self.scene, self.room = path, scene, room
        self.contents = [self._content(number, one, binary) for number, one in enumerate(scene.get("buffers", ()))]

    def _content(self, number: int, buffer: Mapping[str, Any], binary: bytes | None) -> bytes | None:
        uri = buffer.get("uri")
        if uri is None:
            content = binary if number == 0 else None
        elif uri.startswith("data:"):
            content = b64decode(uri.partition(",")[2])
        else:
            raise NotReadError(f"its data are in another file ({uri[:60]!r}); save it as one file")
        if content is not None and len(content) < buffer["byteLength"]:
            raise ValueError(f"its buffer {number} declares {buffer['byteLength']} bytes, and {len(content)} are there")
        return content

    def use(self, size: int) -> None:
        """Takes ``size`` bytes of the room.

        Raises:
            ValueError: if there are no more.
        """
        self.room -= size
        if self.room < 0:
            raise ValueError(f"it shows its arrays so often that they take {EXPANSION} times as many bytes as the file")

    def primitive(self, primitive: Mapping[str, Any]) -> Mesh | np.ndarray:
        """Its mesh, or its vertices if it is of points or lines."""
        for name in COMPRESSION.keys() & primitive.get("extensions", {}).keys():
            if "bufferView" not in entry(self.scene, "accessors", primitive["attributes"]["POSITION"]):
                raise DataError(f"{self.path}: {_compressed(name)}")
        vertices = self.array(primitive["attributes"]["POSITION"], "VEC3")
        mode = primitive.get("mode", TRIANGLES)
        if mode not in (TRIANGLES, STRIP, FAN):
            return vertices
        if "indices" in primitive:
            corners = self.array(primitive["indices"], "SCALAR").ravel()
            if corners.dtype.kind != "u":
                raise ValueError(f"accessor {primitive['indices']} holds indices as {corners.dtype}")
            corners = corners.astype(np.int64)
        else:
            corners = np.arange(len(vertices))
        if mode == TRIANGLES:
            if len(corners) % 3:
                raise ValueError(f"it has {len(corners)} corners of triangles, which are no multiple of 3")
            faces = corners.reshape(-1, 3)
        elif mode == STRIP:
            faces = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1) if len(corners) > 2 else corners[:0]
            faces = faces.reshape(-1, 3)
            faces[1::2] = faces[1::2, ::-1].copy()
        else:
            last = np.arange(2, len(corners))
            faces = np.stack([corners[last * 0], corners[last - 1], corners[last]], axis=1)
        checked = surface(vertices, faces)
        return checked if isinstance(checked, Mesh) else Mesh(vertices, faces)

    def array(self, index: int, kind: str) -> np.ndarray:
        """Numbers ``(count, 1 or 3)`` of an accessor; normalised whole numbers become fractions."""
        accessor = entry(self.scene, "accessors", index)
        dtype, columns = np.dtype(TYPES[accessor["componentType"]]), SHAPES[accessor["type"]]
        if accessor["type"] != kind:
            raise ValueError(f"accessor {index} is {accessor['type']}, expected {kind}")
        count = accessor["count"]
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"accessor {index} has the count {count!r}")
        self.use(count * columns * 8)
        sparse = accessor.get("sparse")
        if "bufferView" in accessor:
            values = self._view(accessor["bufferView"], accessor.get("byteOffset", 0), count, dtype, columns, index)
        elif sparse is not None:
            values = np.zeros((count, columns), dtype)
        else:
            raise ValueError(f"accessor {index} declares {count} entries, and has no data")
        if sparse is not None:
            values = self._replaced(values, sparse, index)
        if accessor.get("normalized") and dtype.kind != "f":
            values = np.maximum(values.astype(np.float64) / np.iinfo(dtype).max, -1.0)
        return values

    def _replaced(self, values: np.ndarray, sparse: Mapping[str, Any], index: int) -> np.ndarray:
        """Sparse accessors: some entries are others than the buffer's."""
        count, where, what = sparse["count"], sparse["indices"], sparse["values"]
        kind = np.dtype(TYPES[where["componentType"]])
        rows = self._view(where["bufferView"], where.get("byteOffset", 0), count, kind, 1, index).ravel()
        new = self._view(what["bufferView"], what.get("byteOffset", 0), count, values.dtype, values.shape[1], index)
        if kind.kind != "u" or (rows >= len(values)).any():
            raise ValueError(f"accessor {index} replaces entries that it does not have")
        values = values.copy()
        values[rows] = new
        return values

    def _view(self, view: int, offset: int, count: int, dtype: np.dtype, columns: int, index: int) -> np.ndarray:
        """``(count, columns)`` numbers from byte ``offset`` of a buffer view."""
        described = entry(self.scene, "bufferViews", view)
        content = entry({"buffers": self.contents}, "buffers", described["buffer"])
        if content is None:
            for name in COMPRESSION.keys() & described.get("extensions", {}).keys():
                raise DataError(f"{self.path}: {_compressed(name)}")
            raise ValueError(f"its buffer {described['buffer']} has no data")
        start, length = described.get("byteOffset", 0), described["byteLength"]
        row = columns * dtype.itemsize
        stride = described.get("byteStride", row)
        if not row <= stride <= WIDEST:
            raise ValueError(f"buffer view {view} has rows of {row} bytes at every {stride}, expected at most {WIDEST}")
        needed = offset + (count - 1) * stride + row if count else 0
        if min(start, length, offset, count) < 0 or start + length > len(content) or needed > length:
            raise ValueError(
                f"accessor {index} declares {count} entries in {needed} bytes of buffer view {view}, which declares "
                f"{length} from byte {start} of {len(content)}"
            )
        return np.ndarray((count, columns), dtype, content, start + offset, (stride, dtype.itemsize))
