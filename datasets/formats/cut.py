"""Detects text files that end in the middle of a number: all counts are right, but one value is wrong."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pointadapterx.datasets.doubts import Doubt

TAIL = 2**16  # bytes, whose rows are compared
ENOUGH = 100  # rows, each with more digits than the last one, before that is no chance

_MARKS = re.compile(rb"[\s,;|]+")
_NUMBER = re.compile(rb"[+-]?\d*(?:\.([\d+\-eE]*))?")


def ends_in_a_number(path: Path) -> Doubt | None:
    """A doubt where the last row lacks both its line end and some digits after the point that all rows before it have.

    Many whole files have no line end behind the last row, so that alone says nothing; nor do whole numbers, which may
    be of any length.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        lines = file.read().split(b"\n")[size > TAIL :]  # of which the first may be part of one
    words = _words(lines[-1]) if lines else []
    if not words or not lines[-1].endswith(words[-1]) or (least := _digits(words[-1])) < 0:
        return None
    rows = 0
    for row in map(_words, reversed(lines[:-1])):
        if len(row) != len(words) or (digits := _digits(row[-1])) <= 0:
            break  # the header
        if digits <= least:
            return None
        rows += 1
    if rows < ENOUGH:
        return None
    return Doubt(
        "a last number that may be cut",
        f"its last row has no line end, and its last number, {words[-1].decode()}, fewer digits than all before it",
        "obtain the file again, if it was cut; else add a line end",
        note=True,
    )


def _words(line: bytes) -> list[bytes]:
    return [word for word in _MARKS.split(line) if word]


def _digits(word: bytes) -> int:
    """Characters after the point, an exponent among them; -1 for what is no number."""
    match = _NUMBER.fullmatch(word)
    return -1 if match is None else len(match[1] or b"")
