"""What the project does on a GPU, as one page in less than eight minutes: build, tests of the kernels, speed, memory.

    python tools/gpu_report.py                     # writes docs/results/gpu.md
    python tools/gpu_report.py --wheels wheels     # first installs what is missing from that folder, without a network

Needs Python 3.11 or newer, torch, and for a GPU the CUDA toolkit of torch's version. Stages run one after the other,
each in a process of its own; time that one leaves is the next one's. A stage that fails or is cut is named on the page,
and the others go on. Without a GPU the sizes are small, what needs one is skipped, and a page is written only where
--output says. Wheels for a machine without a network are fetched on one where the project is installed:

    python tools/gpu_report.py --list-wheels > wheels.txt     # --have FILE leaves out what `pip freeze` prints there
    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
        --platform manylinux2014_x86_64 --dest wheels --requirement wheels.txt
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import tomllib

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "gpu.md"
SECONDS = 460.0
GRACE = 15.0  # seconds that an interrupted stage has to write what it knows
TOOLS = [
    "setuptools>=77",
    "wheel",
    "ninja",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
]
BESIDE_TORCH = re.compile(r"torch|triton|nvidia-.*|cuda-.*")  # what a machine with torch has
PROBE = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": torch.cuda.is_available()}
if found["gpu"]:
    of = torch.cuda.get_device_properties(0)
    found |= {"name": of.name, "capability": f"{of.major}.{of.minor}", "processors": of.multi_processor_count}
    found |= {"memory": of.total_memory}
print(json.dumps(found))
"""
OF_A_GPU = ["tests/ops", "tests/engine/test_gpu.py"]
"""Where all tests with the marker cuda are."""
CHECK = "import sys; from pointadapterx import ops; found = ops.implementation(sys.argv[1]); print(found)"


class Machine(NamedTuple):
    """Where the stages run: what torch says of it, and a folder for their pages."""

    facts: dict[str, Any]
    folder: Path
    wheels: Path | None

    @property
    def gpu(self) -> bool:
        """Whether torch sees one."""
        return bool(self.facts["gpu"])


class Stage(NamedTuple):
    """A part of the page.

    Attributes:
        title: its heading.
        seconds: its share of the time.
        command: of a process; or one line that says why there is nothing to do.
        page: of the folder, which the process writes; else the end of its output is shown.
    """

    title: str
    seconds: float
    command: Callable[[Machine, float], list[str] | str]
    page: str | None = None


class Result(NamedTuple):
    """What came of a stage: done, FAILED, cut or skipped; seconds; and its part of the page."""

    state: str
    seconds: float
    text: str


def probe() -> dict[str, Any]:
    """What torch says of itself and of the first GPU.

    Raises:
        SystemExit: without torch.
    """
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: torch cannot be imported: {done.stderr.strip().rpartition(chr(10))[2]}")
    return dict(json.loads(done.stdout))


# ---- Stages


def _requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *TOOLS]


def _install(machine: Machine, seconds: float) -> list[str] | str:
    if machine.wheels is None:
        return "without --wheels nothing is installed"
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(machine.wheels)]
    return [*command, *_requirements()]


def _build(machine: Machine, seconds: float) -> list[str] | str:
    device = "cuda" if machine.gpu else "cpu"
    served = subprocess.run(
        [sys.executable, "-c", CHECK, device], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    if served.startswith("compiled"):
        return f"already built: {served}"
    # Everything comes from this machine: torch, the build tools, and requirements, which are not looked at. A build
    # that fails leaves an installation without compiled ops, which is a failure here.
    install = [sys.executable, "-m", "pip", "install", "-v", "--no-index", "--no-build-isolation", "--no-deps", "-e"]
    check = [sys.executable, "-c", f"{CHECK}; sys.exit(not found.startswith('compiled'))", device]
    return ["sh", "-c", f"{shlex.join([*install, str(ROOT)])} && {shlex.join(check)}"]


def _tests(machine: Machine, seconds: float) -> list[str] | str:
    if not machine.gpu:
        return "tests of a GPU are collected where there is one"
    workers = str(min(8, os.cpu_count() or 1))
    # Idle threads of several processes would spin against each other.
    command = ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return [*command, "-n", workers, "-m", "cuda", *OF_A_GPU]


def _part(name: str, needs_gpu: bool = False) -> Callable[[Machine, float], list[str] | str]:
    def command(machine: Machine, seconds: float) -> list[str] | str:
        if needs_gpu and not machine.gpu:
            return "needs a GPU"
        output = ["--seconds", f"{seconds:.0f}", "--output", str(machine.folder / f"{name}.md")]
        return [sys.executable, "-m", "benchmarks", "gpu", name, *output, *([] if machine.gpu else ["--small"])]

    return command


STAGES = [
    Stage("Packages", 30, _install),
    Stage("Build", 110, _build),
    Stage("Point operations", 50, _part("ops"), "ops.md"),
    Stage("Tests of the CUDA kernels", 100, _tests),
    Stage("Training steps", 50, _part("eager"), "eager.md"),
    Stage("Training steps in CUDA graphs", 30, _part("graphs", needs_gpu=True), "graphs.md"),
    Stage("Many adapters on one backbone", 30, _part("bank"), "bank.md"),
    Stage("Compiled training steps", 60, _part("compiled", needs_gpu=True), "compiled.md"),
]
"""What may take longest comes last; the shares add up to :data:`SECONDS`."""


def run(stage: Stage, machine: Machine, seconds: float) -> Result:
    """Runs a stage, and interrupts it when its time is up."""
    started = time.monotonic()
    command = stage.command(machine, seconds)
    if isinstance(command, str):
        return Result("skipped", time.monotonic() - started, command)
    print(f"\n== {stage.title}, at most {seconds:.0f} s: {' '.join(command)}", flush=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if machine.gpu:
        environment.setdefault("TORCH_CUDA_ARCH_LIST", machine.facts["capability"])
    log = machine.folder / "log"
    with log.open("w+b") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        state = _wait(process, seconds)
    output = log.read_text(encoding="utf-8", errors="replace")
    print(output[-2000:], flush=True)
    page = machine.folder / stage.page if stage.page else None
    if page is not None and page.is_file():
        text = page.read_text(encoding="utf-8").partition("\n")[2].strip()  # its heading is the stage's title
        if state == "FAILED" and "FAILED" not in text:
            text += f"\n\n{_end_of(output)}"
        return Result(state, time.monotonic() - started, text)
    return Result(state, time.monotonic() - started, _end_of(output))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> str:
    """How the process ended. It leads a group, to which its workers belong."""
    try:
        return "done" if process.wait(seconds) == 0 else "FAILED"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return "cut"
    finally:  # also where the report itself is interrupted
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _end_of(output: str) -> str:
    """What a reader needs of a process's output: which tests failed, and the last lines."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR")) or " error: " in line]
    shown = [*failed[:20], *(line for line in lines[-8:] if line not in failed)]
    return "\n".join(["```text", *(line[:300] for line in shown), "```"])


# ---- The page


def page(machine: Machine, results: dict[str, Result], command: str) -> str:
    """The whole as Markdown."""
    facts = machine.facts
    where = (
        f"{facts['name']}, compute capability {facts['capability']}, {facts['processors']} multiprocessors, "
        f"{facts['memory'] / 2**30:.0f} GiB"
        if machine.gpu
        else "No GPU: small sizes on the CPU, which say nothing about one"
    )
    versions = f"Python {sys.version.split()[0]}, torch {facts['torch']}, CUDA {facts['cuda'] or 'none'}"
    lines = ["---", "orphan: true", "---", "", "# On a GPU" if machine.gpu else "# Without a GPU", "", f"`{command}`"]
    lines += ["", f"{where}. {versions}, driver {_driver()}, {_cpu()}, commit {_commit()}.", ""]
    lines += ["| stage | | s |", "|---|---|---:|"]
    lines += [f"| {title} | {result.state} | {result.seconds:.0f} |" for title, result in results.items()]
    for title, result in results.items():
        text = f"Skipped: {result.text}." if result.state == "skipped" else result.text
        lines += [
            "",
            f"## {title}",
            "",
            *(["Its time was up before it ended.", ""] if result.state == "cut" else []),
            text,
        ]
    return "\n".join(lines) + "\n"


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip().partition("\n")[0] or "unknown"


def _driver() -> str:
    return _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _commit() -> str:
    return _said("git", "rev-parse", "--short", "HEAD")


def _cpu() -> str:
    known = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", known.read_text()) if known.exists() else None
    return f"{found[1].strip() if found else 'CPU'}, {os.cpu_count()} threads"


# ---- Wheels


def wheels(have: set[str]) -> list[str]:
    """What is installed here of what the stages need, torch and its own packages aside, as ``name==version``.

    Args:
        have: names, normalised, that are left out.

    Raises:
        SystemExit: if something is not installed here.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    there = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux", "extra": ""}
    found: dict[str, str] = {}
    waiting = [Requirement(text) for text in _requirements()]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found or BESIDE_TORCH.fullmatch(name):
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"error: {name} is not installed here; install the project with its extra dev, and list again")
        found[name] = f"{name}=={installed.version}"
        needs = (Requirement(text) for text in installed.requires or ())
        extras = [{**there, "extra": extra} for extra in ("", *wanted.extras)]
        waiting += [need for need in needs if need.marker is None or any(need.marker.evaluate(of) for of in extras)]
    return sorted(line for name, line in found.items() if name not in have)


def names_of(text: str) -> Iterator[str]:
    """Normalised names of packages, one a line, whatever follows them."""
    for line in text.splitlines():
        if found := re.match(r"[A-Za-z0-9][\w.-]*", line.strip()):
            yield re.sub(r"[-_.]+", "-", found[0]).lower()


def main(argv: list[str] | None = None) -> int:
    """1 if a stage failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="the page; with a GPU docs/results/gpu.md")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all stages together (default: %(default)g)")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="installs what is missing from these wheels")
    parser.add_argument("--list-wheels", action="store_true", help="prints which wheels to carry along, and ends")
    parser.add_argument("--have", type=Path, metavar="FILE", help="packages that --list-wheels leaves out, one a line")
    options = parser.parse_args(argv)
    if options.list_wheels:
        print(*wheels(set(names_of(options.have.read_text()) if options.have else ())), sep="\n")
        return 0
    if options.wheels is not None and not options.wheels.is_dir():
        parser.error(f"--wheels {options.wheels}: is no folder")
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        machine = Machine(probe(), Path(folder), options.wheels and options.wheels.resolve())
        output = options.output or (PAGE if machine.gpu else None)
        command = " ".join(["python tools/gpu_report.py", *(sys.argv[1:] if argv is None else argv)])
        results: dict[str, Result] = {}
        shares = sum(stage.seconds for stage in STAGES)
        due = 0.0
        for stage in STAGES:
            due += stage.seconds / shares * options.seconds
            results[stage.title] = run(stage, machine, max(1.0, due - (time.monotonic() - started)))
            text = page(machine, results, command)
            if output is not None:  # behind every stage, for whoever is stopped himself
                output.parent.mkdir(parents=True, exist_ok=True)
                output.write_text(text, encoding="utf-8")
    print(f"\n{text}" if output is None else f"\nwritten: {output}")
    return 1 if any(result.state == "FAILED" for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
