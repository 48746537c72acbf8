"""Runs the tests that need an optional package or program on a machine that lacks it: ``python tests/absent``.

Each of :data:`CASES` is hidden in turn, from the tests and from what they start; then all of them at once. A test may
skip then, and say why; none may fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILES = ("tests/datasets/test_odd_files.py",)
PICTURES = ("tests/visualize/test_pictures.py", "tests/test_report.py")
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "open3d": (("open3d",), (), (*FILES, PICTURES[0])),
    "matplotlib": (("matplotlib",), (), (*PICTURES, "tests/study/test_report.py")),
    "laspy": (("laspy", "lazrs"), (), FILES),
    "trimesh": (("trimesh",), (), (*FILES, "tests/test_example.py", "tests/datasets/test_folder.py")),
    "compiler": ((), ("c++", "g++", "clang++", "cc", "gcc", "clang", "nvcc", "ninja"), ("tests/ops/test_build.py",)),
    "starlette": (("starlette", "uvicorn", "prometheus_client"), (), ("tests/serving", "tests/test_optional.py")),
    "ray": (("ray",), (), ("tests/cluster", "tests/test_optional.py")),
    "browser": (
        ("playwright",),
        ("chromium", "chromium-browser", "google-chrome", "chrome"),
        (PICTURES[1], "tests/serving/test_page.py"),
    ),
}
"""What is hidden by name: packages of Python, programs, and the tests that are run without them."""


def programs_but(hidden: Iterable[str], folder: Path) -> str:
    """A PATH of links, in ``folder``, to every program of today's but ``hidden``, whatever version a name carries."""
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).glob("*") if Path(place).is_dir() else ():
            plain = program.name.rstrip("0123456789.").rstrip("-").split("-linux-gnu-")[-1]
            if plain not in hidden and not (folder / program.name).exists():
                (folder / program.name).symlink_to(program)
    return str(folder)


def run(packages: Iterable[str], programs: Iterable[str], tests: Iterable[str]) -> tuple[int, str]:
    """Exit status of pytest without them, and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).rstrip(
                os.pathsep
            ),
            "POINTADAPTERX_ABSENT": ",".join(packages),
            "POINTADAPTERX_REQUIRE": "",  # what is hidden cannot be required
            "PATH": programs_but(set(programs), Path(folder)),
            "OMP_NUM_THREADS": "1",  # several run at a time
        }
        if programs:
            environment |= {"CXX": "no-compiler-here", "CUDA_HOME": folder}
        options = ["-q", "-p", "no:cacheprovider", "-m", "not exhaustive"]
        command = [sys.executable, "-m", "pytest", *options, *dict.fromkeys(tests)]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False, **streams)
        return done.returncode, done.stdout


def main() -> int:
    """Exit status: 0 if every run passed."""
    names = sys.argv[1:] or [*CASES, "everything"]
    parts = {}
    for name in names:
        chosen = list(CASES.values()) if name == "everything" else [CASES[name]]
        parts[name] = [sum((case[part] for case in chosen), ()) for part in range(3)]
    failed = []
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        runs = {name: pool.submit(run, *parts[name]) for name in names}
        for name in names:
            status, printed = runs[name].result()
            print(f"== without {name}\n{printed}", flush=True)
            if status:
                failed.append(name)
    print(f"failed without: {', '.join(failed)}" if failed else "passed without each of them")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
