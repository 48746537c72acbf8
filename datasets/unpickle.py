"""A reader of pickled arrays that cannot run code: it rebuilds numpy arrays, lists and tuples, and nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pointadapterx.datasets.files import impostor
from pointadapterx.errors import DataError


class _Refused(Exception):
    """The pickle asks for something that is not part of an array."""


def _encode(text: str, encoding: str) -> bytes:
    """Bytes of protocols 0 to 2, which write them as text; the codec registry itself stays out of reach."""
    if encoding != "latin1":
        raise _Refused(f"codec '{encoding}'")
    return text.encode("latin1")


def _from_buffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """Arrays of protocol 5."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _empty(cls: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """Arrays of the older protocols: an empty one, whose state follows in the file."""
    return np.ndarray((0,), np.int8)


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty for core in ("core", "_core")},  # numpy 1 and 2
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"persistent object {pid!r}")


def read_pickled_arrays(path: Path) -> Any:
    """Read a pickle of numpy arrays, lists and tuples.

    Raises:
        DataError: if the file asks for anything else (the message names it; nothing of it has run), or is
            truncated or damaged.
    """
    what = impostor(path)
    if what is not None:
        raise DataError(f"{path}: {what}")
    try:
        with path.open("rb") as file:
            return _ArrayUnpickler(file).load()
    except _Refused as refused:
        raise DataError(
            f"{path}: refused, the pickle asks for {refused}, which is no part of an array and could run code; "
            "use the text files or the HDF5 layout instead"
        ) from None
    except Exception as error:  # a damaged pickle raises almost anything: EOFError, IndexError, KeyError, ...
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: the pickle is truncated or damaged ({reason}); obtain it again") from error
