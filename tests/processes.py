"""Processes for tests that start in milliseconds: forked from one that has imported torch and done nothing else."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

PRELOADED = ["pointadapterx.commands.main", "pointadapterx.jobs", "torchmetrics", "sklearn.model_selection"]
"""What all of them use; a name that is not there would be passed over in silence."""
CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    CONTEXT.set_forkserver_preload(PRELOADED)


def _run(script: str, arguments: Sequence[str], environment: Mapping[str, str], output: str) -> None:
    """In the new process: the script as ``__main__``, with what it prints in a file."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    with open(output, "ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def start(script: Path, arguments: Sequence[str], environment: Mapping[str, str], output: Path) -> BaseProcess:
    """A process that runs the script; both its streams go to the end of ``output``."""
    process = CONTEXT.Process(target=_run, args=(str(script), arguments, dict(environment), str(output)))
    process.start()
    return process


def run_together(
    script: Path, arguments: Sequence[str], environments: Sequence[Mapping[str, str]], seconds: float = 120
) -> str:
    """One process for each environment; what they printed once all have ended well.

    Raises:
        AssertionError: if one of them fails, or takes longer; the others are killed then.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        processes = [start(script, arguments, environment, output) for environment in environments]
        deadline = time.monotonic() + seconds
        try:
            while any(process.exitcode is None for process in processes):
                assert not any(process.exitcode for process in processes), output.read_text()
                assert time.monotonic() < deadline, output.read_text()
                time.sleep(0.02)
        finally:
            for process in processes:
                process.kill()
                process.join()
        text = output.read_text()
        assert not any(process.exitcode for process in processes), text
        return text
