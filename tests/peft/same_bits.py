"""What compiled mixtures promise: the same bits with any number of threads, and with any instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

SCRIPT = """
import sys, torch
from pointadapterx import ops
from {module} import SIZES, inputs, raw
torch.save((torch.ops.pointadapterx.simd(), [raw(*inputs(sizes)) for sizes in SIZES]), sys.argv[1])
"""


def same_with_any_threads(run: Callable[[], list[Tensor]]) -> None:
    """``run`` gives the same tensors with one, two and three threads."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def same_bits_at(level: str, module: str, run: Callable[[], list[list[Tensor]]], folder: Path) -> None:
    """``run`` gives what a process with other instructions does.

    Args:
        level: of instructions, ``AVX2`` or ``baseline``.
        module: of the test, with ``SIZES``, ``inputs`` and ``raw``.
        run: for each of the sizes, what the kernel gives here.
        folder: for a file.
    """
    environment = {**os.environ, "POINTADAPTERX_SIMD": level.lower(), "PYTHONPATH": os.pathsep.join(sys.path)}
    file = folder / "there.pt"
    subprocess.run([sys.executable, "-c", SCRIPT.format(module=module), str(file)], env=environment, check=True)
    there, others = torch.load(file)
    if there == torch.ops.pointadapterx.simd():
        pytest.skip(f"this processor has no other vectors than {there}'s")
    for found, other in zip(run(), others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))
