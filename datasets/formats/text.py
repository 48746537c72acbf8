"""Text: csv, pts, txt, xyz."""

from __future__ import annotations

import warnings
from itertools import islice
from pathlib import Path

import numpy as np


def read(path: Path) -> np.ndarray:
    """Rows of numbers between commas, semicolons or spaces, after at most one line of column names or a count."""
    with path.open(encoding="utf-8-sig") as file:
        head = list(islice(file, 2))
    delimiter = next((mark for mark in ",;" if mark in "".join(head)), None)
    columns, header = (0, 1, 2), not _is_row(head[0], delimiter)
    if header:
        names = [name.strip(' \t\n"').lower() for name in head[0].lstrip("/# ").split(delimiter)]
        if {"x", "y", "z"} <= set(names):
            columns = (names.index("x"), names.index("y"), names.index("z"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is no row; too few points are reported later
        rows = np.loadtxt(
            path, delimiter=delimiter, skiprows=int(header), usecols=columns, ndmin=2, encoding="utf-8-sig"
        )
    return rows.reshape(-1, 3)


def _is_row(line: str, delimiter: str | None) -> bool:
    try:
        return len([float(value) for value in line.split(delimiter)[:3]]) == 3
    except ValueError:
        return False
