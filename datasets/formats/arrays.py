"""Arrays of numpy and HDF5: npy, npz, h5, hdf5."""

from __future__ import annotations

import os
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import IO
from zipfile import ZipFile

import numpy as np

from pointadapterx.datasets.formats.tables import EXPANSION, SMALL
from pointadapterx.datasets.hdf5 import open_h5, read_numbers
from pointadapterx.optional import reason_of

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npy(path: Path) -> np.ndarray:
    """The array of a file.

    Raises:
        ValueError: if it is no array of numbers, or has another size than it declares.
    """
    with path.open("rb") as file:
        return _array(file, os.fstat(file.fileno()).st_size)


def read_npz(path: Path) -> np.ndarray:
    """The entry that holds the points.

    Raises:
        ValueError: if there is no such entry, or it is not what it declares.
    """
    with ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        entry = archive.infolist()[names.index(_entry(names))]
        if entry.file_size > max(SMALL, EXPANSION * entry.compress_size):
            raise ValueError(f"its {entry.compress_size} compressed bytes are said to be {entry.file_size}")
        with archive.open(entry) as file:
            return _array(file, entry.file_size)


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """An array of ``size`` bytes with its header; numpy would take memory for whatever the header declares."""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"its format {version} is of structured arrays, expected numbers (points, 3 or more)")
    try:
        shape, fortran, dtype = HEADERS[version](file)
    except Exception as error:  # it is a Python expression, and so are the errors
        raise ValueError(f"its header cannot be read: {reason_of(error)}") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    declared, there = prod(shape) * dtype.itemsize, size - file.tell()
    if declared != there:
        raise ValueError(f"its header declares {dtype} of shape {shape}, {declared} bytes, and {there} follow")
    content = file.read(declared)
    if len(content) != declared:
        raise ValueError(f"its header declares {declared} bytes, and {len(content)} follow")
    values = np.frombuffer(content, dtype) if declared else np.empty(prod(shape), dtype)
    return values.reshape(shape, order="F" if fortran else "C")


def read_hdf5(path: Path) -> np.ndarray:
    """The data set that holds the points.

    Raises:
        DataError: if the file is damaged.
        ValueError: if there is no such data set, or less is stored than it declares.
    """
    with open_h5(path) as file:
        return read_numbers(file, _entry(file.keys()))


def _entry(names: Collection[str]) -> str:
    for name in ("points", "data", *(names if len(names) == 1 else ())):
        if name in names:
            return name
    raise ValueError(f"its entries are {', '.join(names) or 'none'}, expected one called 'points' or 'data'")
