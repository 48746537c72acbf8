"""All hashes: of data, files, weights and descriptions, and of the parts that name one random draw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """One seed for one purpose: a stable hash of ``parts``, in ``[0, 2**63)``.

    Every random draw of a run is a function of, for example, ``(seed, "augment", epoch, step)``, so a resumed
    run draws what an uninterrupted one would have drawn. Python's own ``hash`` differs between processes.

    Args:
        parts: whole numbers of any size and strings; ``1`` and ``"1"`` are different parts.

    Raises:
        TypeError: if a part is neither an ``int`` nor a ``str``.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if not isinstance(part, int | str):
            raise TypeError(f"derive_seed takes whole numbers and strings, not {part!r} ({type(part).__name__})")
        text = (f"i{int(part)}" if isinstance(part, int) else f"s{part}").encode(errors="surrogatepass")
        digest.update(len(text).to_bytes(8, "little") + text)  # the length keeps ("ab", "c") and ("a", "bc") apart
    return int.from_bytes(digest.digest(), "little") >> 1


def content_hash(*parts: torch.Tensor | np.ndarray | str) -> str:
    """Hexadecimal BLAKE2b (128 bits) of arrays (values, dtype and shape) and strings, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, str):
            header, body = b"str", memoryview(part.encode(errors="surrogatepass"))
        else:
            array = np.ascontiguousarray(part.numpy() if isinstance(part, torch.Tensor) else part)
            header, body = f"{array.dtype.str}{array.shape}".encode(), array.reshape(-1).view(np.uint8).data
        digest.update(len(header).to_bytes(8, "little") + header + body.nbytes.to_bytes(8, "little"))
        digest.update(body)
    return digest.hexdigest()


def new_digest() -> hashlib.blake2b:
    """BLAKE2b (128 bits) of what is passed to its ``update``, for content that never is in memory as a whole."""
    return hashlib.blake2b(digest_size=16)


def hash_bytes(content: bytes) -> str:
    """Hexadecimal BLAKE2b (128 bits)."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def hash_file(*paths: Path) -> str:
    """SHA-256 of a file, or of several as if they were one.

    Raises:
        OSError: if one cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


def hash_json(content: Any) -> str:
    """SHA-256 of JSON with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_tensors(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over sorted names, shapes and values (as float32 on the CPU) of ``state``.

    Tensors on the meta device, of a model that is only counted, have no values.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name}{tuple(state[name].shape)}".encode())
        if not state[name].is_meta:
            digest.update(state[name].detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
