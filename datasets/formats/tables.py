"""Rows of numbers in text, and how far data may expand: what several formats share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

EXPANSION = 256  # bytes of memory for a byte of a compressed file; real clouds expand less than fifty times
SMALL = 1 << 24  # bytes that any file may expand to


class NotReadError(ValueError):
    """A file may be whole, but what it holds is not read; the message says what to do about it."""


def text_lines(data: bytes) -> list[bytes]:
    """Lines without their ends.

    Raises:
        NotReadError: for UTF-16, whose bytes look like binary data.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise NotReadError("it is UTF-16 text; save it as UTF-8")
    return data.removeprefix(b"\xef\xbb\xbf").splitlines()


def table(lines: Sequence[bytes], columns: Sequence[int] | None, what: str) -> np.ndarray:
    """Rows of numbers between spaces -> ``(rows, columns)`` float64.

    Args:
        lines: none of them blank.
        columns: to keep; None keeps all, and then every row has as many.
        what: a row is, for the message.

    Raises:
        ValueError: if a row has other columns than the first, too few, or what is no number.
    """
    if not lines:
        return np.empty((0, 0 if columns is None else len(columns)))
    try:
        return np.loadtxt(lines, comments=None, usecols=columns, ndmin=2, encoding="latin-1")
    except (ValueError, IndexError):
        pass
    expected = len(lines[0].split()) if columns is None else max(columns) + 1
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if len(words) != expected and (columns is None or len(words) < expected):
            raise ValueError(f"{what} {number} of {len(lines)} has {len(words)} numbers, expected {expected}")
        wanted = words if columns is None else [words[column] for column in columns]
        rows.append([number_of(word, f"{what} {number} of {len(lines)}") for word in wanted])
    return np.array(rows, np.float64).reshape(len(lines), -1)


def is_nan_of_windows(word: str) -> bool:
    """Whether a word is what programs of Windows write for NaN: ``nan(ind)``, ``-nan(ind)`` or ``nan(snan)``."""
    return word.lower().lstrip("+-") in ("nan(ind)", "nan(snan)")


def number_of(word: bytes, where: str) -> float:
    """A number as a file has it; Python's own underscores are none.

    Raises:
        ValueError: with the word and ``where`` it is.
    """
    try:
        if b"_" not in word:
            return float(word)
    except ValueError:
        if is_nan_of_windows(word.decode("latin-1")):
            return float("nan")
    raise ValueError(f"{where} has {shown(word)} in place of a number")


def shown(text: bytes) -> str:
    """What a file has, short and harmless enough for a message."""
    return repr(text[:40].decode("latin-1"))


def whole(values: np.ndarray, what: str) -> np.ndarray:
    """Numbers of text that have to be whole, as int64.

    Raises:
        ValueError: if one is not.
    """
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        result = values.astype(np.int64)
    bad = np.flatnonzero((result != values) | (np.abs(values) > 2**53))
    if len(bad):
        raise ValueError(f"{what} {values.ravel()[bad[0]]:g} is no whole number")
    return result
