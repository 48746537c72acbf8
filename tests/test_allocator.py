"""What is freed stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from pointadapterx.malloc_tuning import VARIABLES

SCRIPT = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a fault of a huge page would count as one of 512
import torch
from pointadapterx.malloc_tuning import keep_freed_memory
torch.set_num_threads(1)
done = keep_freed_memory() if sys.argv[1] == "keep" else False
inputs, faults = torch.randn(2048, 512, requires_grad=True), []
for _ in range(12):
    faults.append(-resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    values = inputs
    for _ in range(8):
        values = torch.nn.functional.gelu(values * 0.5) + values
    values.sum().backward()
    inputs.grad = None
    faults[-1] += resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(done, sum(faults[3:]))
"""


def measure(what: str, **variables: str) -> tuple[str, int]:
    """Whether it was done, and the page faults of some training steps."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **variables}
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, what], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    return found[0], int(found[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again() -> None:
    kept, faults = measure("keep")
    assert kept == "True"
    assert faults < measure("leave")[1] / 2
    for name, value in (("MALLOC_TRIM_THRESHOLD_", "100000"), ("GLIBC_TUNABLES", "glibc.malloc.check=0")):
        assert measure("keep", **{name: value})[0] == "False"
