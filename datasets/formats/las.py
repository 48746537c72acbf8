"""Laser scans, compressed or not: las, laz.

laspy believes a header, so its numbers are compared with the file before. Layout: LAS specification 1.4, R15.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pointadapterx.datasets.formats.label_field import LabelField
from pointadapterx.datasets.formats.tables import EXPANSION, SMALL, NotReadError
from pointadapterx.errors import reason_of
from pointadapterx.optional import need

VLR, EVLR = 54, 60  # bytes before the content of a record of variable length
HEADERS = {(1, minor): size for minor, size in enumerate((227, 227, 227, 235, 375))}
RECORDS = (20, 28, 26, 34, 57, 63, 30, 36, 38, 59, 67)  # smallest point of each format
AT_ONCE = 1_000_000  # points
LAYERS = {10: 9, 11: 1, 12: 2, 13: 1}  # of a point, its colours, those with infrared, its waveform
STANDARD = ("classification",)  # every scan has it, used or not
FREE = ("user_data", "point_source_id")  # of the fields of every scan
BYTES = 14  # further bytes, a layer each
VARIABLE = 0xFFFFFFFF  # size of chunks that says that each has its own


@dataclass(frozen=True)
class Header:
    """What of a header counts or measures, in bytes and points."""

    size: int
    offset: int
    num_vlrs: int
    point_format: int
    compressed: bool
    record: int
    points: int
    end: int


def read_with(path: Path, label: LabelField) -> np.ndarray:
    """All points and one more field, ``(n, 4)`` float64; ``classification`` only where no other has a usual name."""
    return _read(path, label)


def read(path: Path) -> np.ndarray:
    """All points ``(n, 3)`` float64, scaled and moved as the header says.

    Raises:
        DataError: without laspy.
        ValueError: if the file has not what its header declares.
    """
    return _read(path, None)


def _read(path: Path, label: LabelField | None) -> np.ndarray:
    laspy, lazrs = (need(name, f"{path}: is read by {name}", "scans") for name in ("laspy", "lazrs"))
    size = path.stat().st_size
    with path.open("rb") as file:
        header = _header(file.read(max(HEADERS.values())), size)
        file.seek(0)
        laszip = _laszip(file.read(header.offset), header)
        try:
            if header.compressed:
                _check_chunks(lazrs, file, header, laszip, size)
            if header.points == 0:
                return np.empty((0, 3 if label is None else 4))
            with laspy.open(path, read_evlrs=False) as scan:
                if not np.all(scan.header.scales):
                    raise ValueError(f"its scales are {scan.header.scales.tolist()}, which make all points one")
                names = list(scan.header.point_format.dimension_names)
                extra = [] if label is None else [names[label.place(names, STANDARD)]]
                points = np.concatenate([_columns(part, extra) for part in scan.chunk_iterator(AT_ONCE)])
        except (ValueError, MemoryError):
            raise
        except BaseException as error:  # a panic of the decompressor is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"its points are damaged: {reason_of(error)}") from error
    if len(points) != header.points:
        raise ValueError(f"its header declares {header.points} points, and {len(points)} are there")
    return points


def class_names(path: Path) -> dict[int, str]:
    """Names of classes that a scan has in its table of them; none of a damaged file."""
    try:
        laspy = need("laspy", f"{path}: is read by laspy", "scans")
        with laspy.open(path, read_evlrs=False) as scan:
            tables = [vlr.lookups for vlr in scan.header.vlrs if hasattr(vlr, "lookups")]
    except Exception:  # whoever reads its points says what is wrong
        return {}
    return {number: name.strip() for table in tables for number, name in table.items() if name.strip()}


def other_labels(path: Path, most: int) -> list[str]:
    """Fields beside ``classification`` that can hold labels: whole numbers, two to ``most`` different ones.

    Of the fields that every scan has, these are those that are free for any use.
    """
    laspy = need("laspy", f"{path}: is read by laspy", "scans")
    scan = laspy.read(path)
    found = []
    for name in (*scan.point_format.extra_dimension_names, *FREE):
        values = np.asarray(scan[name])
        if values.ndim == 1 and np.all(values == np.floor(values)) and 2 <= len(np.unique(values)) <= most:
            found.append(name)
    return found


def _columns(part: Any, extra: Sequence[str]) -> np.ndarray:
    """Coordinates and further fields, ``(n, 3 or more)``."""
    columns = [np.asarray(part[name], np.float64) for name in ("x", "y", "z", *extra)]
    if any(column.ndim != 1 for column in columns):
        raise ValueError(f"its field {extra[0]} has several numbers for a point, and a label is one")
    return np.stack(columns, axis=1)


def _header(head: bytes, size: int) -> Header:
    if head[:4] != b"LASF":
        raise ValueError("it does not begin with LASF")
    if len(head) < HEADERS[1, 0]:
        raise ValueError(f"its {size} bytes are no whole header")
    version = (head[24], head[25])
    header_size, offset, num_vlrs, kind, record, points = struct.unpack_from("<HIIBHI", head, 94)
    if version not in HEADERS:
        raise ValueError(f"its version is {version[0]}.{version[1]}, expected 1.0 to 1.4")
    if not HEADERS[version] <= header_size <= offset <= size:
        raise ValueError(
            f"its header has {header_size} bytes and its points begin at byte {offset}, expected at least "
            f"{HEADERS[version]} and at most the file's {size}"
        )
    end = size
    if version >= (1, 3):
        (waveforms,) = struct.unpack_from("<Q", head, 227)
        end = min(end, waveforms) if waveforms else end
    if version >= (1, 4):
        evlr, num_evlrs, all_points = struct.unpack_from("<QIQ", head, 235)
        if num_evlrs and evlr + num_evlrs * EVLR > size:
            raise ValueError(f"its header declares {num_evlrs} extended records from byte {evlr}, of {size} bytes")
        if points not in (0, all_points):
            raise ValueError(f"its header declares {all_points} points, and {points} for older programs")
        end, points = min(end, evlr) if num_evlrs else end, all_points
    compressed, kind = kind >= 64, kind & 63  # the highest bits say that the points are compressed
    if kind >= len(RECORDS) or record < RECORDS[kind]:
        raise ValueError(f"its points are of format {kind} in {record} bytes each, which cannot be")
    if not compressed:
        there = max(0, end - offset) // record
        if there != points:
            raise ValueError(f"its header declares {points} points, and {there} are there")
    return Header(header_size, offset, num_vlrs, kind, compressed, record, points, end)


def _laszip(head: bytes, header: Header) -> bytes | None:
    """Walks the records before the points; the content of the one that describes the compression."""
    place, found = header.size, None
    for number in range(header.num_vlrs):
        if place + VLR > header.offset:
            raise ValueError(f"its header declares {header.num_vlrs} records before the points, and {number} are there")
        user, kind, length = struct.unpack_from("<16sHH", head, place + 2)
        place += VLR
        if place + length > header.offset:
            raise ValueError(f"record {number + 1} of {header.num_vlrs} has {length} bytes, beyond the first point")
        if found is None and (user.rstrip(b"\0"), kind) == (b"laszip encoded", 22204):
            found = head[place : place + length]
        place += length
    return found


def _check_chunks(lazrs: Any, file: BinaryIO, header: Header, laszip: bytes | None, size: int) -> None:
    """Checks the declared sizes of the compressed data, since the decompressor allocates memory according to them."""
    if laszip is None or len(laszip) < 34:
        raise ValueError("its points are compressed, and no record says how")
    compressor, chunk, count = struct.unpack_from("<H10xI16xH", laszip)
    if compressor not in (2, 3):
        raise NotReadError(
            f"its points are compressed without chunks (kind {compressor}), not read here; save it as las"
        )
    items = list(struct.iter_unpack("<HHH", laszip[34 : 34 + (len(laszip) - 34) // 6 * 6]))[:count]
    record = sum(width for _, width, _ in items)
    if len(items) != count or record != header.record:
        raise ValueError(f"its points have {header.record} bytes each, and are compressed from {record}")
    packed = header.end - header.offset
    most = max(SMALL, EXPANSION * packed) // header.record
    if header.points > most:
        raise ValueError(f"its header declares {header.points} points, which cannot be in {packed} bytes")
    if most < chunk < VARIABLE:
        raise ValueError(f"its points are in chunks of {chunk}, which cannot be in {packed} bytes")
    if packed < 8:
        raise ValueError(f"its header declares {header.points} points, and {packed} bytes follow")
    file.seek(header.offset)
    (table,) = struct.unpack("<q", file.read(8))
    if table == -1:  # written by a program that could not go back: the place is at the end
        file.seek(size - 8)
        (table,) = struct.unpack("<q", file.read(8))
    if not header.offset + 8 <= table <= size - 8:
        raise ValueError(f"its table of chunks is said to be at byte {table} of {size}; the file is cut")
    file.seek(table)
    _, chunks = struct.unpack("<II", file.read(8))
    fits = chunk == VARIABLE or (chunk > 0 and (header.points + chunk - 1) // chunk == chunks)
    if not fits or chunks > packed // header.record:
        raise ValueError(f"its header declares {header.points} points, and {chunks} chunks of {chunk} are there")
    file.seek(header.offset)
    listed = [(int(points), int(length)) for points, length in lazrs.read_chunk_table(file, lazrs.LazVlr(laszip))]
    sizes = [length for _, length in listed]
    if chunk == VARIABLE and sum(points for points, _ in listed) != header.points:
        raise ValueError(
            f"its header declares {header.points} points, and {sum(points for points, _ in listed)} are listed"
        )
    if sum(sizes) != table - header.offset - 8:
        raise ValueError(
            f"its {chunks} chunks are said to have {sum(sizes)} bytes, and {table - header.offset - 8} are there"
        )
    layers = sum(width if kind == BYTES else LAYERS.get(kind, 0) for kind, width, _ in items)
    if layers:
        _check_layers(file, header, sizes, layers)


def _check_layers(file: BinaryIO, header: Header, sizes: Sequence[int], layers: int) -> None:
    """Of formats 6 and later: a chunk begins with its first point, its number of points and the sizes of its layers."""
    start = header.offset + 8
    for number, size in enumerate(sizes, 1):
        file.seek(start + header.record + 4)
        declared = sum(struct.unpack(f"<{layers}I", file.read(4 * layers).ljust(4 * layers, b"\0")))
        there = size - header.record - 4 - 4 * layers
        if declared != there:
            raise ValueError(f"layers of chunk {number} of {len(sizes)} are said to have {declared} bytes, not {there}")
        start += size
