"""HDF5 files of unknown origin: what is in the file itself, of the size that it can be, or an error."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from pointadapterx.datasets.files import impostor
from pointadapterx.datasets.formats.tables import EXPANSION, SMALL, NotReadError
from pointadapterx.errors import DataError, reason_of

LINKS = 16  # soft links that one name may lead through
MOST_COMPRESSED = 1032  # bytes that deflate, the densest of the built-in filters, makes of one
TEXT_BLOCK = 2**26  # bytes of text at most that are read at once
STEPS = "steps_per_unit"
"""Attribute of an array of whole numbers that are coordinates in such steps; the least number of its type is -0."""
OWN_ARRAYS = "; write the arrays themselves into the file"
SCENES = frozenset({"xyz_mm", "label", "offset"})
"""What the files of :class:`~pointadapterx.datasets.rooms.Rooms` hold."""


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading.

    Raises:
        DataError: if it is not HDF5, or turns out truncated or damaged while it is read.
        NotReadError: if the caller's code does.
    """
    what = impostor(path)
    if what is not None:
        raise DataError(f"{path}: {what}")
    if not h5py.is_hdf5(path):
        raise DataError(f"{path}: this is not an HDF5 file, or its beginning is damaged; obtain it again")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (DataError, NotReadError):
        raise
    except MemoryError:
        raise DataError(f"{path}: its content is too large for the memory of this machine") from None
    except Exception as error:  # h5py raises many types for damaged files
        raise DataError(f"{path}: the file is truncated or damaged ({reason_of(error)}); obtain it again") from error


def read_numbers(file: h5py.File, key: str, *, columns: int | None = None, rows: slice | None = None) -> np.ndarray:
    """An array of whole or floating-point numbers, of any shape; with an attribute :data:`STEPS`, in units.

    Args:
        file: from :func:`open_h5`.
        key: name of the data set.
        columns: of the last dimension, how many to read; all by default.
        rows: of the first dimension, which to read; all by default.

    Raises:
        DataError: if there is no such data set, it is kept in another file, holds something else than numbers, or is
            not as large as it is said to be.
    """
    entry = find_array(file, key)
    if _type(entry) is None or entry.dtype.kind not in "fiu":
        raise DataError(f"{file.filename}: '{key}' holds {_kind(entry)}, expected numbers")
    if not entry.shape:
        values = np.asarray(entry[()])
    else:
        place = (rows or slice(None), *[slice(None)] * (len(entry.shape) - 1))
        values = np.asarray(entry[place if columns is None else (*place[:-1], slice(columns))])
    return _scaled(entry, values) if STEPS in entry.attrs else values


def _scaled(entry: h5py.Dataset, values: np.ndarray) -> np.ndarray:
    """Coordinates that are kept as whole steps, which compress better: float32.

    Raises:
        DataError: if the steps are not whole, or their number in a unit is not a positive one.
    """
    steps = np.asarray(entry.attrs[STEPS])
    if values.dtype.kind not in "iu" or steps.shape != () or steps.dtype.kind not in "fiu" or not 0 < steps < np.inf:
        what = f"{values.dtype} in {STEPS}={steps.tolist()!r}"
        raise DataError(f"{entry.file.filename}: '{entry.name}' holds {what}; they have to be whole numbers")
    found = values.astype(np.float32) / np.float32(steps)
    if values.dtype.kind == "i":
        found[values == np.iinfo(values.dtype).min] = -0.0
    return found


def read_text(file: h5py.File, key: str) -> list[str]:
    """Strings ``(n,)`` or ``(n, 1)``; bytes that are no UTF-8 are shown as ``\\xff``.

    Raises:
        DataError: as :func:`read_numbers`, for something else than text.
    """
    entry = find_array(file, key)
    flat = entry.shape[:1] if entry.shape[1:] == (1,) else entry.shape
    text = None if _type(entry) is None else h5py.check_string_dtype(entry.dtype)
    if text is None or len(flat) != 1:
        kind = _kind(entry)
        raise DataError(f"{file.filename}: '{key}' holds {kind} of shape {entry.shape}, expected text of shape (n,)")
    if text.length is not None:
        return _as_text(entry[()])
    # Many entries may point to one long text, so that reading them at once takes any memory. Each has its own in an
    # honest file, uncompressed, and all fit into it.
    size, total, found = os.path.getsize(file.filename), 0, list[str]()
    block = max(1, TEXT_BLOCK // size)
    for start in range(0, flat[0], block):
        found += _as_text(entry[start : start + block])
        total += sum(map(len, found[start:]))
        if total > size:
            raise DataError(f"{file.filename}: the texts of '{key}' are longer than the file; obtain it again")
    return found


def read_text_attribute(file: h5py.File, key: str) -> list[str]:
    """Strings ``(n,)`` of an attribute of the file.

    Raises:
        DataError: if it holds something else.
    """
    values = np.asarray(file.attrs[key])
    if values.ndim != 1 or not all(isinstance(value, str | bytes) for value in values):
        raise DataError(f"{file.filename}: the attribute '{key}' is no list of texts; write it as one")
    return _as_text(values)


def _as_text(values: np.ndarray) -> list[str]:
    return [
        value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
        for value in values.reshape(-1)
    ]


def find_array(file: h5py.File, key: str) -> h5py.Dataset:
    """A data set, before anything of it is read: all of it is in this file, every part that it declares is there, and
    their sizes are such as the file can hold.

    Raises:
        DataError: otherwise, or if there is no data set of this name.
    """
    entry = _follow(file, key)
    if not isinstance(entry, h5py.Dataset):
        raise DataError(f"{file.filename}: no data set '{key}' in it; {held(file)}")
    where = f"{file.filename}: '{key}'"
    if entry.is_virtual:
        names = sorted({source.file_name for source in entry.virtual_sources()})
        raise DataError(f"{where} is a virtual data set, of {', '.join(names[:3])}{OWN_ARRAYS}")
    if entry.external:
        raise DataError(f"{where} is kept in other files, {entry.external[0][0]!r} is the first{OWN_ARRAYS}")
    if entry.shape is None:
        raise DataError(f"{where} is empty; write the array into it")
    _check_filters(entry, where)
    _check_size(entry, where)
    return entry


def held(names: Collection[str]) -> str:
    """What a file holds, and which data set it is of where its entries say it."""
    of = "; these are scenes, which data.name=rooms reads (doctor --name rooms)" if set(names) >= SCENES else ""
    return f"it holds {', '.join(sorted(names)) or 'nothing'}{of}"


def _follow(file: h5py.File, key: str) -> h5py.Dataset | h5py.Group | None:
    """What is called so; links within the file are followed, h5py alone would open other files too."""
    place, names, followed = file, key.split("/"), 0
    while names:
        name = names.pop(0)
        if name in ("", "."):
            continue
        if not isinstance(place, h5py.Group):
            return None
        link = place.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise DataError(f"{file.filename}: '{key}' is a link to another file, {link.filename!r}{OWN_ARRAYS}")
        if isinstance(link, h5py.SoftLink):
            followed += 1
            if followed > LINKS:
                raise DataError(f"{file.filename}: '{key}' leads through more than {LINKS} links{OWN_ARRAYS}")
            place = file if link.path.startswith("/") else place
            names = link.path.split("/") + names
        elif link is None:
            return None
        else:
            place = place[name]
    return place


def _type(entry: h5py.Dataset) -> np.dtype | None:
    """None for a type that numpy does not have."""
    try:
        return entry.dtype
    except (TypeError, ValueError):
        return None


def _kind(entry: h5py.Dataset) -> str:
    dtype = _type(entry)
    if dtype is None:
        return "values of a type that numpy does not have"
    if dtype.fields:
        return f"records of {', '.join(dtype.fields)}"
    if h5py.check_ref_dtype(dtype) is not None:
        return "references"
    return "text" if h5py.check_string_dtype(dtype) is not None else str(dtype)


def _check_filters(entry: h5py.Dataset, where: str) -> None:
    plan = entry.id.get_create_plist()
    for number in range(plan.get_nfilters()):
        code, _, _, name = plan.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            raise DataError(
                f"{where} is compressed by {name.decode(errors='replace') or 'a filter'} (HDF5's number {code}), which "
                "is not installed; write it without, or with gzip"
            )


def _check_size(entry: h5py.Dataset, where: str) -> None:
    """Sizes in an HDF5 file are but said; what was never written is read as zeros, whatever its size."""
    item, declared, stored = entry.id.get_type().get_size(), entry.shape, entry.id.get_storage_size()
    needed = math.prod(declared) * item
    said = f"{where} is said to have the shape {declared}, {needed:,} bytes, but"
    if entry.chunks is not None:
        chunks = math.prod(-(-length // part) for length, part in zip(declared, entry.chunks, strict=True))
        found = entry.id.get_num_chunks()
        if found != chunks:
            raise DataError(f"{said} {found} of its {chunks} chunks are in the file; obtain it again")
        filtered = entry.id.get_create_plist().get_nfilters() > 0
        least = chunks * math.prod(entry.chunks) * item / (MOST_COMPRESSED if filtered else 1)
    else:
        least = needed
    if needed > max(SMALL, EXPANSION * stored):
        raise DataError(f"{said} {stored:,} are stored for it, which no cloud is compressed to; write it uncompressed")
    size = os.path.getsize(entry.file.filename)
    if stored < least or stored > size:
        of = f"of {size:,} in the file " if stored > size else ""
        raise DataError(f"{said} {stored:,} {of}are stored for it; obtain it again")
