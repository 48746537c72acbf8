"""Finds and loads the compiled point ops; says why when it cannot.

``setup.py`` leaves two files here: the shared library, if it could be built, and ``build_info.json``, which
records what was built, against which torch, and what went wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_PYTHON = "{python}"  # in a recorded command: the one that runs, which need not be the one that built
_REBUILD = f"{_PYTHON} -m pip install --no-build-isolation --no-deps --force-reinstall . (in the source folder)"


def build_info() -> dict[str, Any]:
    """What the last build recorded; empty if there was none.

    Keys: ``torch`` (the version built against), ``cuda_architectures`` (``["sm_80", …]``),
    ``cuda_reason`` (why there are no CUDA kernels, or ``None``), ``reason`` (why there is no library, or
    ``None``), ``source`` (the folder it was built from) and ``rebuild`` (the command to try again).
    """
    try:
        info = json.loads((_FOLDER / "build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return info if isinstance(info, dict) else {}


def rebuild_command() -> str:
    """The shell command that builds the compiled ops for the Python that runs."""
    info = build_info()
    there = Path(str(info.get("source", _FOLDER))).is_dir()  # not where the wheel comes from another machine
    recorded = info.get("rebuild") if there else None
    return str(recorded or _REBUILD).replace(_PYTHON, f'"{sys.executable}"')


def load() -> str | None:
    """Registers the compiled kernels with torch.

    Returns:
        ``None`` on success, otherwise the reason in one line. Never raises: the plain ops serve then.
    """
    import torch

    info = build_info()
    libraries = [path for path in _FOLDER.glob("_C.*") if path.suffix in (".so", ".pyd", ".dylib")]
    if not libraries:
        return str(info.get("reason") or "the compiled ops were not built")
    built, running = str(info.get("torch", "an unknown version")), torch.__version__
    # The C++ interface of torch changes between minor versions; a mismatch may load and then crash.
    if built.split(".")[:2] != running.split(".")[:2]:
        return f"the compiled ops were built for torch {built}, and this is torch {running}"
    try:
        torch.ops.load_library(str(libraries[0]))
    except (OSError, RuntimeError) as error:
        line = str(error).strip().partition("\n")[0]
        return f"the compiled ops (built for torch {built}) do not load into torch {running}: {line}"
    return None
