"""HDF5 files that hold several clouds, cloud by cloud: only a part of such a file is in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np

from pointadapterx.datasets.checks import MOST_COLUMNS
from pointadapterx.datasets.formats.arrays import entry_of
from pointadapterx.datasets.formats.tables import NotReadError
from pointadapterx.datasets.h5 import SUFFIXES
from pointadapterx.datasets.hdf5 import find_array, open_h5, read_numbers
from pointadapterx.errors import DataError

BLOCK = 2**24  # bytes that are read at a time, as the clouds of a chunk are decompressed together


@dataclass(frozen=True)
class Entry:
    """One of the clouds of a file.

    Attributes:
        path: of the file.
        key: of the array in it.
        number: of the cloud, from 0.
        block: clouds that are read at a time.
    """

    path: str
    key: str
    number: int
    block: int

    def __str__(self) -> str:
        """``all.h5#3``."""
        return f"{self.path}#{self.number}"

    def read(self) -> np.ndarray:
        """Its points ``(n, columns)``, not to be changed.

        Raises:
            DataError: if they cannot be read any more.
        """
        first = self.number - self.number % self.block
        try:
            stamp = Path(self.path).stat().st_mtime_ns
        except OSError as error:
            raise DataError(f"{self}: the file cannot be read any more ({error.strerror})") from None
        clouds = _read(self.path, self.key, first, self.block, stamp)
        if self.number - first >= len(clouds):
            raise DataError(f"{self}: the file was changed while it was read, and has fewer clouds now")
        return clouds[self.number - first]


def entries_of(path: str) -> list[Entry] | None:
    """The clouds of an HDF5 file that holds several; None for all other files, of which a reader says what is wrong."""
    if not path.lower().endswith(SUFFIXES) or not Path(path).is_file():
        return None
    try:
        with open_h5(Path(path)) as file:
            key = entry_of(file.keys())
            array = find_array(file, key)
            shape, kind, size = array.shape, array.dtype.kind, array.dtype.itemsize
    except (DataError, NotReadError):
        return None
    if len(shape) != 3 or shape[0] < 2 or not 3 <= shape[2] <= MOST_COLUMNS or kind not in "fiu":
        return None
    block = max(1, BLOCK // max(1, prod(shape[1:]) * size))
    return [Entry(path, key, number, block) for number in range(shape[0])]


@lru_cache(maxsize=1)
def _read(path: str, key: str, first: int, count: int, stamp: int) -> np.ndarray:
    """Clouds ``(count, n, columns)``, fewer at the end of the file; ``stamp`` is when it was written."""
    with open_h5(Path(path)) as file:
        return read_numbers(file, key, rows=slice(first, first + count))
