"""Replacements for foreign objects in a ``torch.save`` file: plain values, and nothing that can run code.

Checkpoints carry more than tensors: metrics as numpy scalars, the arguments of the training as an
``argparse.Namespace`` or a config. PyTorch's restricted reader refuses these classes, and allowing numpy's own would
let a file set the flags of a dtype, by which raw bytes become pointers. So the names lead here.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import PurePath
from pickle import UnpicklingError
from typing import Any

import numpy as np

from pointadapterx.errors import shown

NOT_PLAIN = "which is not a plain number"
"""How the reasons end for which values of numpy are refused."""

MOST_AXES = 64  # of a numpy array
_PLAIN = re.compile(r"[?bhilqpBHILQPefdFD]|[biufc]\d{1,2}|[US]\d{1,4}")  # numbers, and short texts


class _Dtype:
    """``numpy.dtype``, of plain numbers and texts alone."""

    def __init__(self, name: object, align: object = False, copy: object = True) -> None:
        if not isinstance(name, str) or _PLAIN.fullmatch(name) is None:
            raise UnpicklingError(f"a numpy value of type {shown(name)}, {NOT_PLAIN}")
        try:
            self.dtype = np.dtype(name)
        except TypeError:
            raise UnpicklingError(f"a numpy value of type {shown(name)}, {NOT_PLAIN}") from None

    def __setstate__(self, state: object) -> None:
        """Takes the byte order alone; of plain types there is nothing else to set."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
            raise UnpicklingError("a damaged numpy type")
        if state[2:5] != (None, None, None):
            raise UnpicklingError(f"a numpy value of several fields, {NOT_PLAIN}")
        self.dtype = self.dtype.newbyteorder(state[1])


def _scalar(dtype: object, raw: object) -> Any:
    """Stands in for ``numpy.core.multiarray.scalar``: a numpy scalar as a plain Python value."""
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes) or len(raw) != dtype.dtype.itemsize or not raw:
        raise UnpicklingError("a damaged numpy scalar")
    return np.frombuffer(raw, dtype.dtype, 1)[0]


class Array:
    """``numpy.ndarray``: read over, and not kept."""

    def __setstate__(self, state: object) -> None:
        """Checks that it is one of plain numbers."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnpicklingError("a damaged numpy array")
        _, shape, dtype, _, raw = state
        plain = isinstance(dtype, _Dtype) and isinstance(raw, bytes) and isinstance(shape, tuple)
        plain = plain and all(type(length) is int and 0 <= length < 2**63 for length in shape)
        if not plain or len(shape) > MOST_AXES or math.prod(shape) * dtype.dtype.itemsize != len(raw):
            raise UnpicklingError("a damaged numpy array")


def _array(*_: object) -> Array:
    """Stands in for ``numpy.core.multiarray._reconstruct``: an array whose content is ignored."""
    return Array()


def _no_bytes() -> bytes:
    """``bytes``, which empty arrays call."""
    return b""


class Namespace:
    """``argparse.Namespace`` and its like: read over, and not kept."""

    def __setstate__(self, state: object) -> None:
        """Discards the array's state, since only tensors are used."""


class _Mapping:
    """A subclass of dict, such as EasyDict: becomes a mapping that the reader fills."""

    def __new__(cls, *_: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def _path(*parts: object) -> str:
    """Stands in for ``pathlib.Path``: the path as text."""
    for part in parts:  # the text of anything else may be without end: lists may name one list twice each
        if not isinstance(part, str):
            raise UnpicklingError(f"a path of {type(part).__name__}")
    return str(PurePath(*map(str, parts)))


SAFE_GLOBALS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Dtype, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    # numpy 2 moved its constructors, so files name either place.
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_no_bytes, f"{module}.bytes") for module in ("builtins", "__builtin__")),
    *((Namespace, name) for name in ("argparse.Namespace", "types.SimpleNamespace")),
    *(
        (_Mapping, name)
        for name in (
            "easydict.EasyDict",
            "yacs.config.CfgNode",
            "fvcore.common.config.CfgNode",
            "addict.addict.Dict",
            "mmengine.config.config.ConfigDict",
        )
    ),
    *((_path, f"pathlib.{name}") for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath")),
    *((_path, f"pathlib._local.{name}") for name in ("Path", "PosixPath", "WindowsPath")),
]
"""For :func:`torch.serialization.safe_globals`: what the names of a file lead to."""
