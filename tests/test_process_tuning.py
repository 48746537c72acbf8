"""What is freed stays with the process, and its threads soon sleep."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from pointadapterx.process_tuning import SPINS, VARIABLES, WAITING_VARIABLES

SCRIPT = """
import ctypes, resource, sys
from pointadapterx.process_tuning import keep_freed_memory
c, size = ctypes.CDLL(None), ctypes.c_size_t(192 * 2**20)
c.malloc.restype = ctypes.c_void_p
c.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a fault of a huge page would count as one of 512
done = keep_freed_memory() if sys.argv[1] == "keep" else False
before = 0
for repeat in range(12):
    if repeat == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = ctypes.c_void_p(c.malloc(size))
    c.memset(memory, 1, size)
    c.free(memory)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def measure(what: str, **variables: str) -> tuple[str, int]:
    """Whether it was done, and the page faults when 192 MiB are taken and freed nine times more."""
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
    assert faults < 1000
    # glibc's threshold at its start, fixed; left alone it adapts, and may keep the memory by luck
    assert measure("leave", MALLOC_MMAP_THRESHOLD_="131072")[1] > 9 * 40_000  # 192 MiB are 49,152 pages
    for name, value in (("MALLOC_TRIM_THRESHOLD_", "100000"), ("GLIBC_TUNABLES", "glibc.malloc.check=0")):
        assert measure("keep", **{name: value})[0] == "False"


SPINNING = """
import os, sys
if sys.argv[1] == "late":
    import torch
from pointadapterx.process_tuning import limit_spinning
print(limit_spinning(), os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("when", "said", "wanted"),
    [
        ("early", {}, f"True {SPINS}"),
        ("late", {}, "False None"),  # the library has read its variables
        ("early", {"OMP_WAIT_POLICY": "active"}, "False None"),
        ("early", {"GOMP_SPINCOUNT": "0"}, "False 0"),
    ],
)
def test_threads_sleep_unless_someone_has_said_how_they_wait(when: str, said: dict[str, str], wanted: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in WAITING_VARIABLES}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **said}
    command = [sys.executable, "-c", SPINNING, when]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == wanted


def test_commands_say_it_before_torch_is_there() -> None:
    """And what the environment of a command's process has is what the library reads."""
    script = (
        "import os, sys; sys.argv[1:] = ['count', '--config', 'no_such']; "
        "from pointadapterx.commands.main import main; status = main(); "
        "print(status, 'torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in WAITING_VARIABLES}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip().endswith(f"2 True {SPINS}")
