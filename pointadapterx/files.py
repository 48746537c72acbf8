"""Files: tensors are read without running code, and everything is written atomically."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pointadapterx.errors import CheckpointError, reason_of
from pointadapterx.inert import NOT_PLAIN, SAFE_GLOBALS

EXPANSION = 256  # bytes of weights for a byte of a file; real ones hardly shrink

READ = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
"""Types of the tensors that safetensors files may hold: not float8, complex or packed ones."""


def read_torch_file(path: Path) -> Any:
    """Reads a ``torch.save`` file holding tensors, containers and plain numbers, never running code.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds other Python objects.
    """
    _require_file(path)
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a damaged file says of itself
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        text = str(error)
        refused = re.search(r"GLOBAL ([\w.]+)", text)
        if refused:
            raise CheckpointError(
                f"{path}: holds the Python object '{refused[1]}', which would run code when loaded, so it is refused; "
                "re-save it as {'base_model': state_dict} with tensors only"
            ) from None
        # torch's own text advises to load the file with code execution allowed, so only its cause is passed on.
        cause = re.search(r"WeightsUnpickler error:\s+(.+)|\A(?!Weights only)(.+?)(?:\. |$)", text, re.MULTILINE)
        reason = cause[1] or cause[2] if cause else "empty, truncated or of another kind"
        if reason.endswith(NOT_PLAIN):
            raise CheckpointError(
                f"{path}: holds {reason}, so it is refused; re-save it as {{'base_model': state_dict}} of tensors"
            ) from None
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason}); download or copy it again") from None


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    _require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({reason_of(error)}); it is truncated or of another kind, copy "
            "it again"
        ) from None
    for name, tensor in tensors.items():
        if tensor.dtype not in READ:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{path}: {name} is of {kind}, which is not computed with; save it as float32, float16 or bfloat16"
            )
    return tensors, metadata


def read_npz(path: Path) -> dict[str, Tensor]:
    """Arrays of a ``numpy.savez`` file, never running code.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds anything but numbers.
    """
    _require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > EXPANSION * path.stat().st_size:
            raise ValueError(f"its {path.stat().st_size} bytes are said to be {unpacked}")
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"{path}: not a readable .npz of arrays ({reason_of(error)}); download or copy it again"
        ) from None


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors atomically: a failure leaves whatever ``path`` held before."""
    require_utf8(path)
    with replacing(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically: on failure the previous file is unchanged."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON atomically: on failure the previous file is unchanged."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder that replaces ``path`` on success.

    The bytes are flushed to disk before the rename, so a full disk or a kill at any moment leaves either
    the old file or the new one, whole.

    Raises:
        CheckpointError: if the file cannot be written (disk full, no permission).
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: could not be written ({reason_of(error)}); the previous file, if any, is unchanged; free space "
            "or choose another place"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside ``path`` that becomes it on success.

    Raises:
        CheckpointError: if something is there already, or it cannot be written.
    """
    temporary = None
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise CheckpointError(f"{path}: is there already; remove it, or choose another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.is_dir():
            path.rmdir()
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path}: could not be written ({reason_of(error)}); free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Makes a rename durable; Windows cannot open folders and does not need it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def require_utf8(path: Path) -> None:
    """Makes sure that the libraries that read and write tensors can open a path.

    Raises:
        CheckpointError: if a byte of its name is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"{path}: the name is not UTF-8, and no file of tensors can be opened there; rename it, or choose another"
        ) from None


def _require_file(path: Path) -> None:
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path}: {kind}; give the path of a checkpoint file")
    require_utf8(path)
