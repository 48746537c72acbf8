"""Arrays of numpy and HDF5: npy, npz, h5, hdf5."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from math import prod
from pathlib import Path
from typing import IO
from zipfile import ZipFile

import numpy as np

from pointadapterx.datasets.base import AXES
from pointadapterx.datasets.checks import MOST_COLUMNS
from pointadapterx.datasets.doubts import Cloud
from pointadapterx.datasets.formats.columns import listed
from pointadapterx.datasets.formats.label_field import LabelField
from pointadapterx.datasets.formats.tables import EXPANSION, SMALL, NotReadError
from pointadapterx.datasets.hdf5 import SCENES, find_array, open_h5, read_numbers
from pointadapterx.errors import DataError, reason_of

SURE = ("points", "data")  # names of the entry that holds the points, the first first
LIKELY = ("coord", "coords", "pos", "positions", "vertices", "xyz")  # where one of them is there
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npy(path: Path) -> Cloud:
    """Points ``(n, columns)`` of an array of numbers, or of records with x, y and z; see :func:`_points`.

    Raises:
        NotReadError: if it holds something else.
        ValueError: if it has another size than it declares.
    """
    with path.open("rb") as file:
        return _points(_array(file, os.fstat(file.fileno()).st_size))


def read_npz(path: Path) -> Cloud:
    """As :func:`read_npy`, of the entry that holds the points.

    Raises:
        NotReadError: if there is no such entry.
        ValueError: if it is not what it declares.
    """
    with ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        entry = archive.infolist()[names.index(entry_of(names))]
        if entry.file_size > max(SMALL, EXPANSION * entry.compress_size):
            raise ValueError(f"its {entry.compress_size} compressed bytes are said to be {entry.file_size}")
        with archive.open(entry) as file:
            return _points(_array(file, entry.file_size))


def read_npy_with(path: Path, label: LabelField) -> np.ndarray:
    """Points and a label, ``(n, 4)`` float64, of an array with a further column, or of records with a further field."""
    with path.open("rb") as file:
        return _with_column(_array(file, os.fstat(file.fileno()).st_size), label)


def read_npz_with(path: Path, label: LabelField) -> np.ndarray:
    """The same of the entry that holds the points, or with the labels of another entry, by its name."""
    with ZipFile(path) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}

        def read(name: str) -> np.ndarray:
            entry = entries[name]
            if entry.file_size > max(SMALL, EXPANSION * entry.compress_size):
                raise ValueError(f"its {entry.compress_size} compressed bytes are said to be {entry.file_size}")
            with archive.open(entry) as file:
                return _array(file, entry.file_size)

        return _with_entry(read, list(entries), label)


def read_hdf5_with(path: Path, label: LabelField) -> np.ndarray:
    """The same of a file with one cloud."""
    with open_h5(path) as file:
        return _with_entry(lambda name: read_numbers(file, name), list(file.keys()), label)


def _with_entry(read: Callable[[str], np.ndarray], names: list[str], label: LabelField) -> np.ndarray:
    points = _points_entry(names, label)
    values = read(points)
    others = [name for name in names if name != points]
    if isinstance(label.wanted, int) or (label.wanted is None and values.dtype.names is not None):
        return _with_column(values, label)
    labels = _without_words(read(others[label.place(others)]), label)
    coordinates = _points(values).points
    if labels.shape not in ((len(coordinates),), (len(coordinates), 1)) or labels.dtype.kind not in "iufb":
        raise NotReadError(
            f"{labels.dtype} labels of shape {labels.shape} for {len(coordinates)} points; give each point one number"
        )
    return np.column_stack([coordinates[:, :3].astype(np.float64), labels.ravel().astype(np.float64)])


def _points_entry(names: list[str], label: LabelField) -> str:
    """The entry of the points, where one of the others is that of the labels."""
    without = [name for name in names if not label.may_be(name)]
    return entry_of(without if len(without) == 1 else names)


def _with_column(values: np.ndarray, label: LabelField) -> np.ndarray:
    if values.dtype.names is not None:
        name = values.dtype.names[label.place(values.dtype.names)]
        column = _without_words(values[name], label)
    else:
        values = values[0] if values.ndim == 3 and values.shape[0] == 1 else values
        if values.ndim != 2 or values.dtype.kind not in "fiu":
            raise NotReadError(f"it holds {values.dtype} of shape {values.shape}, not numbers (points, 4 or more)")
        column = values[:, label.place([str(place) for place in range(values.shape[1])], others=(0, 1, 2))]
    points = _points(values).points[:, :3]
    if column.shape != points.shape[:1] or column.dtype.kind not in "fiub":
        raise NotReadError(f"its labels are {column.dtype} of shape {column.shape}; give each point one number")
    return np.column_stack([points.astype(np.float64), column.astype(np.float64)])


def _without_words(labels: np.ndarray, label: LabelField) -> np.ndarray:
    """Labels as numbers, also where they are names of classes."""
    if labels.dtype.kind not in "US":
        return labels
    words, places = np.unique(labels.astype(str), return_inverse=True)
    values = []
    for word in words.tolist():
        try:
            values.append(label.value(word))
        except ValueError:
            raise label.unknown(word) from None
    return np.array(values)[places].reshape(labels.shape)


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """An array of ``size`` bytes with its header; numpy would take memory for whatever the header declares."""
    version = np.lib.format.read_magic(file)
    if version == (3, 0):
        raise NotReadError("names of its fields are not Latin-1; save x, y and z alone")
    if version not in HEADERS:
        raise ValueError(f"its format version is {version}, expected (1, 0) or (2, 0)")
    try:
        shape, fortran, dtype = HEADERS[version](file)
    except Exception as error:  # it is a Python expression, and so are the errors
        raise ValueError(f"its header cannot be read: {reason_of(error)}") from error
    if dtype.hasobject:
        raise NotReadError("it holds Python objects, which are not read; save numbers (points, 3 or more)")
    declared, there = prod(shape) * dtype.itemsize, size - file.tell()
    if declared != there:
        raise ValueError(f"its header declares {dtype} of shape {shape}, {declared} bytes, and {there} follow")
    content = file.read(declared)
    if len(content) != declared:
        raise ValueError(f"its header declares {declared} bytes, and {len(content)} follow")
    values = np.frombuffer(content, dtype) if declared else np.empty(prod(shape), dtype)
    return values.reshape(shape, order="F" if fortran else "C")


def _points(values: np.ndarray) -> Cloud:
    """Numbers ``(n, columns)`` or ``(1, n, columns)`` as they are, and records as their x, y, z."""
    records = values.dtype.names is not None
    if values.ndim == 2 + (not records) and values.shape[0] == 1:
        values = values[0]
    if (records and values.ndim == 2) or (values.ndim == 3 and 3 <= values.shape[2] <= MOST_COLUMNS):
        raise NotReadError(
            f"its shape {values.shape} may be one organised cloud or several clouds; save rows of points, one cloud in "
            "each file"
        )
    if values.dtype.names is None:
        return Cloud(values)
    names = [name.lower() for name in values.dtype.names]
    if any(names.count(axis) != 1 for axis in AXES):
        raise NotReadError(f"its fields are {listed(values.dtype.names)}, expected one x, y and z each; name them so")
    columns = [values[values.dtype.names[names.index(axis)]] for axis in AXES]
    if any(column.ndim != 1 or column.dtype.kind not in "fiu" for column in columns):
        raise NotReadError("its fields x, y and z are no numbers, one each; save them as such")
    return Cloud(np.stack(columns, axis=1).astype(np.float64))


def read_hdf5(path: Path) -> np.ndarray:
    """Points ``(n, columns)`` of the data set that holds them.

    Raises:
        DataError: if the file is damaged, less is stored than it declares, or it holds several clouds.
        NotReadError: if there is no such data set.
    """
    with open_h5(path) as file:
        key = entry_of(file.keys())
        shape = find_array(file, key).shape
        if len(shape) == 3 and shape[0] > 1 and not 3 <= shape[2] <= MOST_COLUMNS:
            raise NotReadError(
                f"'{key}' holds {shape[0]} clouds of shape {shape[1:]}, expected (points, 3 or more); write x, y and z"
            )
        if len(shape) == 3 and shape[0] > 1:
            raise DataError(
                f"{path}: '{key}' holds {shape[0]} clouds, expected one in each file; read them by data.name=h5 "
                "(train, test, doctor, predict)"
            )
        values = read_numbers(file, key)
    return values[0] if len(shape) == 3 and shape[0] == 1 else values


def entry_of(names: Collection[str]) -> str:
    """The name of the entry that holds the points.

    Raises:
        NotReadError: if none does.
    """
    likely = [name for name in names if name.lower() in LIKELY]
    for name in (*SURE, *(names if len(names) == 1 else likely if len(likely) == 1 else ())):
        if name in names:
            return name
    if set(names) >= SCENES:
        raise NotReadError(
            "it holds the scenes of data.name=rooms, and predict takes files of one; save each as one cloud"
        )
    raise NotReadError(f"its entries are {listed(tuple(names)) or 'none'}, expected one called 'points'; name it so")
