"""What is known of single test objects as text for one field of a CSV, and back."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np

LARGEST_FIELD = 2**30  # characters; Python's own limit is 16,000 scores


def pack_correctness(correct: np.ndarray) -> str:
    """(n,) bool as bits in hexadecimal digits, the first in the highest bit."""
    return np.packbits(correct).tobytes().hex()


def unpack_correctness(text: str, count: int) -> np.ndarray:
    """The inverse of :func:`pack_correctness` for ``count`` test objects.

    Raises:
        ValueError: for other characters.
    """
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:count].astype(bool)


def pack_scores(scores: np.ndarray) -> str:
    """(n,) numbers as float32 in hexadecimal digits."""
    return scores.astype(">f4").tobytes().hex()


def unpack_scores(text: str) -> np.ndarray:
    """The inverse of :func:`pack_scores`, float64.

    Raises:
        ValueError: for anything else.
    """
    return np.frombuffer(bytes.fromhex(text), dtype=">f4").astype(np.float64)


def pack_records(rows: np.ndarray) -> str:
    """(n, K) numbers, float64, compressed by zlib, in base64."""
    return base64.b64encode(zlib.compress(rows.astype("<f8").tobytes())).decode()


def unpack_records(text: str, count: int) -> np.ndarray:
    """The inverse of :func:`pack_records` for ``count`` test objects.

    Raises:
        ValueError, zlib.error: for anything else, and for more than a field may hold.
    """
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(base64.b64decode(text, validate=True), LARGEST_FIELD)
    if not unpacking.eof or not content:
        raise ValueError("cut, or too long")
    return np.frombuffer(content, dtype="<f8").reshape(count, -1)


def pack_groups(groups: Sequence[str]) -> str | None:
    """Which of n objects belong together: ``"0 3; 1 2 4"`` are two groups; independent objects are left out.

    Args:
        groups: n names, empty where they are not known.

    Returns:
        The groups in the order of their first object; None if all objects are on their own.
    """
    members: dict[str, list[str]] = {}
    for position, group in enumerate(groups):
        if group:
            members.setdefault(group, []).append(str(position))
    return "; ".join(" ".join(positions) for positions in members.values() if len(positions) > 1) or None


def unpack_groups(text: str, count: int) -> np.ndarray:
    """(count,) int64, equal for the members of a group of :func:`pack_groups`.

    Raises:
        ValueError, IndexError: for anything else.
    """
    numbers = np.arange(count)
    for group in text.split(";"):
        members = [int(position) for position in group.split()]
        numbers[members] = members[0]
    return numbers
