"""Writes a cloud with a label for each point, such as a prediction, as PLY, LAS, LAZ or CSV.

Other programs show the labels without any setting: points are coloured by label, and files hold the classes' names.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from pointadapterx.errors import ConfigError, DataError
from pointadapterx.files import replacing
from pointadapterx.optional import need
from pointadapterx.palette import GREY, label_colours, rgb

FILE_KINDS = (".ply", ".las", ".laz", ".csv")
"""Suffixes of the files that :func:`write_labelled` writes."""

BLOCK = 2**17  # points that are formatted at a time
LONGEST_NAME = 200  # characters of a class in a PLY file's header, whose words other programs cut
LAS_CLASSES = 256  # numbers that the field classification holds
LAS_NAME = 15  # bytes of a class's name in LAS's table of classes
LAS_STEPS = 2**31 - 1
MOST = 2**31 - 1
"""What numbers of classes are below, of either sign."""
LAS_FORMAT = 7  # with a classification of 8 bits and colours


@dataclass(frozen=True)
class Labelled:
    """Points with labels.

    Attributes:
        points: (n, 3) float64, in the units, axes and order of the input's file.
        labels: (n,) int64, indices into ``names``; -1 for a point without a label.
        confidence: (n,) float32 in [0, 1], or None.
        names: of the classes.
        values: (classes,) the numbers that files have for the classes.
    """

    points: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray | None
    names: Sequence[str]
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def numbers(self) -> np.ndarray:
        """(n,) int64, as files have them."""
        return numbers_of(self.labels, self.values)

    def colours(self) -> np.ndarray:
        """(n, 3) uint8."""
        return np.concatenate([label_colours(len(self.names)), rgb(GREY)[None]])[self.labels]

    def blocks(self) -> Iterator[Labelled]:
        """Some points at a time."""
        for start in range(0, len(self), BLOCK):
            part = slice(start, start + BLOCK)
            confidence = None if self.confidence is None else self.confidence[part]
            yield Labelled(self.points[part], self.labels[part], confidence, self.names, self.values)


def numbers_of(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The numbers that files have for labels (n,), int64; -1, or less where a class has it, for points without one.

    Args:
        labels: indices of classes; -1 for a point without a label.
        values: (classes,) int64, the number of each class.
    """
    none = min([0, *values.tolist()]) - 1
    return np.append(values, none)[labels]


def write_labelled(
    path: Path,
    kind: str,
    points: np.ndarray,
    labels: np.ndarray,
    confidence: np.ndarray | None = None,
    names: Sequence[str] = (),
    *,
    values: Sequence[int] | None = None,
    source: Path | None = None,
    replaced: Callable[[str], bool] = lambda name: False,
) -> None:
    """Writes all points of a cloud with their labels, atomically: on failure a previous file is unchanged.

    Coordinates are kept: in PLY as float where that holds them exactly, otherwise as double; in CSV as the shortest
    text that is read as the same number; in LAS in the steps of ``source``, otherwise in the coarsest decimal steps
    that hold them exactly, or the finest that fit.

    Args:
        path: to write; its suffix does not matter.
        kind: one of :data:`FILE_KINDS`. ``.las`` and ``.laz`` need laspy.
        points: (n, 3), in the units, axes and order of the input's file.
        labels: (n,) whole numbers, indices into ``names``; -1 for a point without a label.
        confidence: (n,) in [0, 1], how sure each label is.
        names: of the classes; by default their numbers.
        values: the numbers to write for the classes, by default their indices.
        source: the input's file. A LAS or LAZ file with the same points gives its other fields, steps and records (such
            as the coordinate system) to a LAS or LAZ file.
        replaced: which of these fields hold labels already, by their names: they get the new ones.

    Raises:
        ConfigError: for another kind.
        DataError: if there is not one label for each point, a label has no name, or laspy is missing.
        CheckpointError: if the file cannot be written.
    """
    if kind not in FILE_KINDS:
        raise ConfigError(f"{path}: labelled points are written as {', '.join(FILE_KINDS)}, not as '{kind}'")
    found = _labelled(path, points, labels, confidence, names, values)
    with replacing(path) as temporary:
        if kind in (".las", ".laz"):
            _write_las(temporary, found, source, replaced, compressed=kind == ".laz", where=path)
            return
        with temporary.open("wb") as file:
            (_write_ply if kind == ".ply" else _write_csv)(file, found)


def _labelled(
    path: Path,
    points: np.ndarray,
    labels: np.ndarray,
    confidence: np.ndarray | None,
    names: Sequence[str],
    values: Sequence[int] | None,
) -> Labelled:
    points, labels = np.asarray(points, np.float64), np.asarray(labels)
    if points.ndim != 2 or points.shape[1] != 3:
        raise DataError(f"{path}: points of shape {points.shape}, expected (points, 3)")
    if labels.shape != points.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {labels.dtype} labels of shape {labels.shape} for {len(points)} points, expected a whole number "
            "for each point"
        )
    highest = int(labels.max(initial=-1))
    names = list(names) or [str(number) for number in (values if values is not None else range(highest + 1))]
    if highest >= len(names) or labels.min(initial=0) < -1:
        wrong = highest if highest >= len(names) else int(labels.min())
        raise DataError(f"{path}: a point has label {wrong}, expected 0 to {len(names) - 1}, or -1 for none")
    numbers = np.arange(len(names)) if values is None else np.asarray(values, np.int64)
    if numbers.shape != (len(names),):
        raise DataError(f"{path}: {len(numbers)} numbers for {len(names)} classes, expected one for each")
    if np.abs(numbers).max(initial=0) >= MOST:
        raise DataError(f"{path}: a class has number {np.abs(numbers).max()}, which files of labels do not hold")
    if confidence is not None:
        confidence = np.asarray(confidence, np.float32)
        if confidence.shape != labels.shape:
            raise DataError(f"{path}: confidence of shape {confidence.shape}, expected one for {len(points)} points")
    return Labelled(points, labels.astype(np.int64), confidence, names, numbers)


def _write_ply(file: IO[bytes], found: Labelled) -> None:
    kind = "f4" if _are_float32(found.points) else "f8"
    rows = [*((axis, f"<{kind}") for axis in "xyz"), *((colour, "u1") for colour in ("red", "green", "blue"))]
    rows.append(("label", "<i4"))
    if found.confidence is not None:
        rows.append(("confidence", "<f4"))
    types = {"<f4": "float", "<f8": "double", "u1": "uchar", "<i4": "int"}
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment label {value} {_in_a_line(name)}" for name, value in _classes(found)]
    lines += [f"element vertex {len(found)}", *(f"property {types[kind]} {name}" for name, kind in rows), "end_header"]
    file.write("".join(f"{line}\n" for line in lines).encode())
    for part in found.blocks():
        block = np.empty(len(part), np.dtype(rows))
        for column, axis in enumerate("xyz"):
            block[axis] = part.points[:, column]
        for column, colour in enumerate(("red", "green", "blue")):
            block[colour] = part.colours()[:, column]
        block["label"] = part.numbers()
        if part.confidence is not None:
            block["confidence"] = part.confidence
        file.write(block.tobytes())


def _are_float32(points: np.ndarray) -> bool:
    """Whether float32 holds all coordinates exactly."""
    with np.errstate(over="ignore", invalid="ignore"):
        return all(
            np.array_equal(part.astype(np.float32), part, equal_nan=True)
            for part in np.split(points, range(BLOCK, len(points), BLOCK))
        )


def _classes(found: Labelled) -> list[tuple[str, int]]:
    return list(zip(found.names, found.values.tolist(), strict=True))


def _in_a_line(name: str) -> str:
    """A name without line breaks and other characters that end a header's line, and not too long."""
    return "".join(character if character.isprintable() else "?" for character in name)[:LONGEST_NAME]


def _write_csv(file: IO[bytes], found: Labelled) -> None:
    named = list(found.names) != [str(number) for number in found.values.tolist()]
    header = ["x", "y", "z", "label"] + ["name"] * named + ["confidence"] * (found.confidence is not None)
    file.write((",".join(header) + "\n").encode())
    names = [*(_quoted(_in_a_line(name)) for name in found.names), ""]
    for part in found.blocks():
        columns = [list(map(repr, column)) for column in part.points.T.tolist()]
        columns.append(list(map(str, part.numbers().tolist())))
        if named:
            columns.append([names[label] for label in part.labels.tolist()])
        if part.confidence is not None:
            columns.append(part.confidence.astype(str).tolist())  # the shortest text of a float32
        file.write("".join(",".join(row) + "\n" for row in zip(*columns, strict=True)).encode())


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if {",", '"'} & set(name) or name != name.strip() else name


def _write_las(
    path: Path,
    found: Labelled,
    source: Path | None,
    replaced: Callable[[str], bool],
    *,
    compressed: bool,
    where: Path,
) -> None:
    laspy = need("laspy", f"{where}: is written by laspy", "scans")
    if compressed:
        need("lazrs", f"{where}: is written by lazrs", "scans")
    las = _copy_of(laspy, source, found.points) or _new_las(laspy, found, where)
    numbers = found.numbers()
    highest = LAS_CLASSES if las.header.point_format.id >= 6 else 32
    old = [name for name in las.point_format.extra_dimension_names if replaced(name)]
    las.remove_extra_dims(old)
    fits = not len(numbers) or (numbers.min() >= 0 and numbers.max() < highest)
    las.classification = numbers.astype(np.uint8) if fits else np.zeros(len(numbers), np.uint8)
    for name in old or ([] if fits else ["label"]):
        _set_field(laspy, las, name, numbers.astype(np.int32))
    _name_classes(laspy, las, found)
    if found.confidence is not None:
        _set_field(laspy, las, "confidence", found.confidence)
    with path.open("wb+") as file:
        las.write(file, do_compress=compressed)


def _copy_of(laspy: Any, source: Path | None, points: np.ndarray) -> Any | None:
    """The source with all its fields, if it is a scan with the same points."""
    if source is None or source.suffix.lower() not in (".las", ".laz") or not source.is_file():
        return None
    las = laspy.read(source)
    same = len(las.points) == len(points) and np.array_equal(np.asarray(las.xyz), points)
    return las if same else None


def _new_las(laspy: Any, found: Labelled, where: Path) -> Any:
    if not np.isfinite(found.points).all():
        raise DataError(f"{where}: LAS holds no NaN or infinite coordinates; write .ply or .csv")
    header = laspy.LasHeader(version="1.4", point_format=LAS_FORMAT)
    header.offsets, header.scales = _steps(found.points)
    las = laspy.LasData(header)
    las.xyz = found.points
    colours = found.colours().astype(np.uint16) * 257  # 16 bits, as LAS says
    las.red, las.green, las.blue = colours.T
    return las


def _steps(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and scales (3,) of LAS: the coarsest decimal steps that hold coordinates exactly, or the finest that fit.

    "Exactly" is up to the last digit of float64, which a sum of offset and steps has not always.
    """
    if not len(points):
        return np.zeros(3), np.full(3, 1e-3)
    low, high = points.min(axis=0), points.max(axis=0)
    scales = np.empty(3)
    offsets = np.where(np.maximum(np.abs(low), np.abs(high)) < 1000, 0.0, np.floor((low + high) / 2))
    for axis, values in enumerate(points.T):
        values = values - offsets[axis]
        largest = float(np.abs(values).max())
        tolerance = 4 * np.spacing(max(abs(low[axis]), abs(high[axis]), largest))
        finest = np.ceil(np.log10(largest / LAS_STEPS)) if largest else -9.0
        digits = np.arange(min(0.0, -finest), -finest + 1)
        scales[axis] = 10.0 ** -digits[-1]
        for scale in 10.0**-digits:
            if np.abs(np.round(values / scale) * scale - values).max() <= tolerance:
                scales[axis] = scale
                break
    return offsets, scales


def _set_field(laspy: Any, las: Any, name: str, values: np.ndarray) -> None:
    if name not in las.point_format.dimension_names:
        las.add_extra_dim(laspy.ExtraBytesParams(name=name, type=values.dtype))
    las[name] = values


def _name_classes(laspy: Any, las: Any, found: Labelled) -> None:
    """LAS's own table of classes, in place of one that is there."""
    las.vlrs[:] = [vlr for vlr in las.vlrs if (vlr.user_id, vlr.record_id) != ("LASF_Spec", 0)]
    entries = [
        struct.pack(f"<B{LAS_NAME}s", value, name.encode("ascii", "replace")[:LAS_NAME])
        for name, value in _classes(found)
        if 0 <= value < LAS_CLASSES
    ]
    las.vlrs.append(laspy.VLR("LASF_Spec", 0, "names of the classes", b"".join(entries)))
