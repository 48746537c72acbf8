"""Runs the tests of the compiled ops under AddressSanitizer and UndefinedBehaviorSanitizer: ``python tests/sanitized``.

Needs GCC with its sanitizers' run times, which come with it on most systems. The build goes to ``build/sanitized``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "sanitized"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1"
TESTS = (
    "test_agreement",
    "test_ragged",
    "test_checks",
    "test_chamfer",
    "test_sampling",
    "test_torch_library",
    "test_compat",
)
TESTS_OF_EXPERTS = ("tests/peft/test_low_rank_mixture.py", "tests/peft/test_fused_bottlenecks.py")


def runtime(name: str) -> str | None:
    """Path of a sanitizer's shared library, or ``None``."""
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return found if os.path.isabs(found) else None


def main() -> int:
    """Exit status of the tests; 0 with a message where there is no GCC with sanitizers."""
    runtimes = [runtime(name) for name in ("libasan.so", "libubsan.so")] if shutil.which("gcc") else [None]
    if None in runtimes:
        print("SKIPPED: sanitizers need gcc with libasan and libubsan")
        return 0
    build = [sys.executable, "setup.py", "-q", "build", "--build-base", BUILD / "temp", "--build-lib", BUILD / "lib"]
    # Without nvcc: kernels of a GPU are not what is checked, and take minutes to compile.
    flags = {"CC": "gcc", "CXX": "g++", "CFLAGS": FLAGS, "LDFLAGS": FLAGS, "CUDA_HOME": str(BUILD)}
    subprocess.run(build, cwd=ROOT, env={**os.environ, **flags}, check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(filter(None, runtimes)),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # Python and torch keep memory to the end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",  # idle threads of several processes would spin against each other
        "POINTADAPTERX_REQUIRE": "compiler",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    tests = [*(ROOT / "tests" / "ops" / f"{name}.py" for name in TESTS), *(ROOT / name for name in TESTS_OF_EXPERTS)]
    # From the build's folder, and with this checkout at the end of the path: the package of the build is to be found.
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"]
    command += ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
    command += ["--import-mode", "append", "-p", "sanitized_only", "-m", "not exhaustive", "--rootdir", ROOT, *tests]
    return subprocess.run(command, cwd=BUILD / "lib", env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
