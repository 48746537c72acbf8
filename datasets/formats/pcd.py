"""Files of the Point Cloud Library: pcd."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pointadapterx.datasets.formats.label_field import LabelField
from pointadapterx.datasets.formats.tables import NotReadError, table, text_lines

PADDING = "_"  # name of fields that hold nothing
EXPANDS = 88  # LZF: three bytes encode at most 264
KEYS = ("VERSION", "FIELDS", "COLUMNS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS", "DATA")


@dataclass(frozen=True)
class Field:
    """``count`` numbers of one type for each point."""

    name: str
    dtype: np.dtype
    count: int

    @property
    def size(self) -> int:
        """Number of bytes of this field in one row."""
        return self.dtype.itemsize * self.count


def read_with(path: Path, label: LabelField) -> np.ndarray:
    """All points and one more field, ``(n, 4)`` float64; see :func:`read`."""
    return _read(path, label)


def read(path: Path) -> np.ndarray:
    """All points ``(n, 3)``; other fields and the viewpoint are left out, as everywhere in this format.

    Raises:
        NotReadError: if its fields are not x, y and z.
        ValueError: if the header contradicts itself, or the data are more or fewer than it declares.
    """
    return _read(path, None)


def _read(path: Path, label: LabelField | None) -> np.ndarray:
    data = path.read_bytes()
    header, start = _header(data)
    fields, points = _fields(header), _num_points(header)
    names = [field.name.lower() for field in fields]
    for axis in "xyz":
        if names.count(axis) != 1 or fields[names.index(axis)].count != 1:
            listed = " ".join(field.name for field in fields)
            raise NotReadError(f"its fields are {listed}, expected one x, y and z each; name them so")
    axes = [names.index(axis) for axis in "xyz"]
    if label is not None:
        place = label.place([field.name for field in fields])
        if fields[place].count != 1:
            raise NotReadError(f"its field {fields[place].name} has {fields[place].count} numbers, and a label is one")
        axes.append(place)
    kind = " ".join(header["DATA"]).lower()
    if kind == "ascii":
        return _ascii(data[start:], fields, axes, points)
    if kind == "binary":
        return _binary(data, start, fields, axes, points)
    if kind == "binary_compressed":
        return _compressed(data, start, fields, axes, points)
    raise ValueError(f"its DATA are {kind[:40]!r}, expected ascii, binary or binary_compressed")


def _header(data: bytes) -> tuple[dict[str, list[str]], int]:
    """Words behind each key, and where the data begin."""
    header: dict[str, list[str]] = {}
    start = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    while "DATA" not in header:
        end = data.find(b"\n", start)
        if end < 0:
            raise ValueError("its header has no line DATA")
        words = data[start:end].decode("latin-1").split()
        start = end + 1
        if not words or words[0].startswith("#"):
            continue
        if words[0] not in KEYS:
            raise ValueError(f"its header has a line {words[0][:40]!r}, expected one of {' '.join(KEYS)}")
        key = "FIELDS" if words[0] == "COLUMNS" else words[0]
        if key in header:
            raise ValueError(f"its header has two lines {key}")
        header[key] = words[1:]
    return header, start


def _fields(header: dict[str, list[str]]) -> list[Field]:
    names = header.get("FIELDS", [])
    columns = [names]
    for key, default in (("SIZE", "4"), ("TYPE", "F"), ("COUNT", "1")):  # as that library takes them in old files
        columns.append(header.get(key, [default] * len(names)))
        if len(columns[-1]) != len(names):
            raise ValueError(f"its header has {len(names)} FIELDS and {len(columns[-1])} of {key}")
    fields = []
    for name, size, kind, count in zip(*columns, strict=True):
        if f"{kind}{size}" not in ("F4", "F8", "I1", "I2", "I4", "I8", "U1", "U2", "U4", "U8"):
            raise ValueError(f"its field {name} has TYPE {kind} and SIZE {size}, which is no number")
        fields.append(Field(name, np.dtype(f"<{kind.lower()}{size}"), _count(count, f"COUNT of {name}")))
    return fields


def _count(word: str, what: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 19):
        raise ValueError(f"its {what} is {word[:40]!r}, expected a number")
    return int(word)


def _num_points(header: dict[str, list[str]]) -> int:
    counts = {}
    for key in ("WIDTH", "HEIGHT", "POINTS"):
        if key in header:
            counts[key] = _count(" ".join(header[key]), key)
    if "WIDTH" not in counts and "POINTS" not in counts:
        raise ValueError("its header has neither WIDTH nor POINTS")
    size = counts.get("WIDTH", counts.get("POINTS", 0)) * counts.get("HEIGHT", 1)
    if counts.get("POINTS", size) != size:
        declared = " and ".join(f"{key} {value}" for key, value in counts.items())
        raise ValueError(f"its header has {declared}, which contradict each other")
    return size


def _ascii(body: bytes, fields: list[Field], axes: list[int], points: int) -> np.ndarray:
    lines = [line for line in text_lines(body) if line and not line.isspace()]
    if len(lines) != points:
        raise ValueError(f"its header declares {points} points, and {len(lines)} rows follow")
    width = sum(field.count for field in fields)
    if points == 0:
        return np.empty((0, len(axes)))
    rows = table(lines, None, "point")
    if rows.shape[1] != width:
        raise ValueError(f"its header declares {width} numbers for a point, and its rows have {rows.shape[1]}")
    columns = np.cumsum([0, *(field.count for field in fields)])
    return rows[:, columns[axes]]


def _binary(data: bytes, start: int, fields: list[Field], axes: list[int], points: int) -> np.ndarray:
    row = sum(field.size for field in fields)
    _check_size(points, points * row, data[start:])
    if points == 0:
        return np.empty((0, len(axes)))
    offsets = np.cumsum([0, *(field.size for field in fields)])
    kind = np.dtype(
        {
            "names": [f"{place}" for place in axes],
            "formats": [fields[axis].dtype for axis in axes],
            "offsets": [int(offsets[axis]) for axis in axes],
            "itemsize": row,
        }
    )
    rows = np.frombuffer(data, kind, points, start)
    return np.stack([rows[f"{place}"].astype(np.float64) for place in axes], axis=1)


def _check_size(points: int, expected: int, body: bytes) -> None:
    """Zeros may follow: programs that reserve room in advance leave them."""
    if len(body) < expected or body[expected:].strip(b"\0"):
        raise ValueError(f"its header declares {points} points in {expected} bytes, and {len(body)} bytes follow")


def _compressed(data: bytes, start: int, fields: list[Field], axes: list[int], points: int) -> np.ndarray:
    """One field after another, each with all its points."""
    if len(data) < start + 8:
        raise ValueError("its compressed data are cut before their size")
    packed, unpacked = struct.unpack_from("<II", data, start)
    body = data[start + 8 :]
    _check_size(points, packed, body)
    # That library leaves padding out of compressed data; other programs may not.
    layouts = [[field for field in fields if field.name != PADDING], fields]
    sizes = [points * sum(field.size for field in layout) for layout in layouts]
    if unpacked not in sizes:
        raise ValueError(f"its header declares {points} points in {sizes[0]} bytes, and its compressed data {unpacked}")
    values = unpack_lzf(body[:packed], unpacked)
    if points == 0:
        return np.empty((0, len(axes)))
    layout = layouts[sizes.index(unpacked)]
    offsets = np.cumsum([0, *(points * field.size for field in layout)])
    columns = []
    for axis in axes:
        place = int(offsets[layout.index(fields[axis])])
        columns.append(np.frombuffer(values, fields[axis].dtype, points, place).astype(np.float64))
    return np.stack(columns, axis=1)


def unpack_lzf(data: bytes, size: int) -> bytearray:
    """Decompresses LZF.

    Args:
        data: runs of bytes, and references to what came before.
        size: bytes of the result.

    Raises:
        ValueError: if the result is of another size, or the data refer to what is not there.
    """
    if size > EXPANDS * len(data):
        raise ValueError(f"its {len(data)} compressed bytes cannot be the {size} that its header declares")
    out = bytearray()
    place, end = 0, len(data)
    try:
        while place < end and len(out) <= size:
            control = data[place]
            place += 1
            if control < 32:
                if place + control >= end:
                    raise IndexError
                out += data[place : place + control + 1]
                place += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += data[place]
                place += 1
            back = ((control & 31) << 8) + data[place] + 1
            place += 1
            length += 2
            first = len(out) - back
            if first < 0:
                raise IndexError
            piece = out[first : first + length]
            out += piece if len(piece) == length else (piece * (length // back + 1))[:length]  # it repeats itself
    except IndexError:
        raise ValueError(f"its compressed data are damaged at byte {place} of {end}") from None
    if len(out) != size:
        raise ValueError(f"its header declares {size} bytes, and {'more' if len(out) > size else len(out)} are in it")
    return out
