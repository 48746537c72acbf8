"""Arrays of numpy and HDF5: npy, npz, h5, hdf5."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from pointadapterx.datasets.hdf5 import open_h5, read_numbers


def read_npy(path: Path) -> np.ndarray:
    """The array of a file."""
    return np.load(path, allow_pickle=False)


def read_npz(path: Path) -> np.ndarray:
    """The entry that holds the points."""
    with np.load(path, allow_pickle=False) as file:
        return file[_entry(file.files)]


def read_hdf5(path: Path) -> np.ndarray:
    """The data set that holds the points."""
    with open_h5(path) as file:
        return read_numbers(file, _entry(file.keys()))


def _entry(names: Collection[str]) -> str:
    for name in ("points", "data", *(names if len(names) == 1 else ())):
        if name in names:
            return name
    raise ValueError(f"its entries are {', '.join(names) or 'none'}, expected one called 'points' or 'data'")
