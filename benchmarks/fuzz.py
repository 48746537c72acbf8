"""Fuzzing of the readers, guided by coverage: damaged files end in an error of this project, soon and in little memory.

A reader's inputs start from whole files of its format and are kept where they reach new code, in
``<output>/<reader>/corpus``. A file that ends in any exception but those expected, takes more than 10 seconds or more
than 1 GiB (which is a ``MemoryError``), or ends the process, is kept beside it as ``fault-*``. :func:`targets` is where
to add a reader.
"""

from __future__ import annotations

import argparse
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from pointadapterx.errors import ConfigError, PointAdapterXError
from pointadapterx.optional import need

HANG = 10  # seconds
MEMORY = 1 << 30  # bytes beyond those of the process at its start
LONGEST = 1 << 16  # bytes of an input
NUMBERS = (0, 1, 2, 3, 127, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 10**9, 2**63 - 1, 2**64 - 1)


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Args:
        suffix: of its files.
        seeds: makes whole files of it.
        read: takes a file's path, and raises errors of this project or of ``expected`` for a damaged one.
        expected: other exceptions.
        mend: makes lengths and checksums of a changed file right, so that changes reach what they protect.
    """

    suffix: str
    seeds: Callable[[], Iterable[bytes]]
    read: Callable[[Path], object]
    expected: tuple[type[Exception], ...] = ()
    mend: Callable[[bytes], bytes] = bytes


def targets() -> dict[str, Target]:
    """Every target by name. Another reader is one more line at the end."""
    from benchmarks.fuzz_stored import stored_targets
    from pointadapterx.datasets.point_files import READERS, TEXT_SUFFIXES
    from tests.datasets.odd_files import READ, content
    from tests.datasets.test_text_files import READ as TEXTS

    def seeds(suffix: str) -> list[bytes]:
        same = [name for name in READ if READERS[f".{name.split()[0]}"] is READERS[suffix]]
        texts = [text.encode() for text in TEXTS.values() if suffix in TEXT_SUFFIXES]
        return [*(content(READ[name][0]) for name in same), *texts]

    found = {}
    for suffix in READERS:
        mend = mend_glb if suffix == ".glb" else bytes
        found[suffix[1:]] = Target(suffix, lambda of=suffix: seeds(of), read_both(suffix), mend=mend)
    return found | stored_targets(Target)


def read_both(suffix: str) -> Callable[[Path], object]:
    """Calls a format's own reader, whose errors are more precise, and then the code that uses its result."""
    from zipfile import BadZipFile
    from zlib import error as zlib_error

    import numpy as np

    from pointadapterx.datasets.point_files import READERS, read_cloud
    from pointadapterx.errors import DataError

    expected: list[type[Exception]] = [ValueError, UnicodeError]  # read_cloud tells their words
    if suffix == ".npz":
        expected += [BadZipFile, zlib_error, EOFError, NotImplementedError, RuntimeError, OSError, KeyError]
    elif suffix in (".h5", ".hdf5"):
        expected += [OSError, RuntimeError, KeyError, TypeError]

    def read(path: Path) -> None:
        try:
            READERS[suffix](path)
        except (DataError, *expected):
            return
        with suppress(DataError):  # not finite, no area, or empty
            points = read_cloud(path, 16, 0)
            assert points.ndim == 2, points.shape
            assert points.shape[1] == 3, points.shape
            assert np.isfinite(points).all()

    return read


def mend_glb(data: bytes) -> bytes:
    """Lengths of the file and its JSON, which ends where the binary part begins."""
    end = data.find(b"BIN\0", 20) - 4
    if end < 20:
        return data
    return (
        data[:8]
        + struct.pack("<II", len(data), end - 20)
        + data[16:end]
        + struct.pack("<I", len(data) - end - 8)
        + data[end + 4 :]
    )


def mutated(data: bytes, random: Random, plain: Callable[[bytes, int], bytes]) -> bytes:
    """A neighbour of an input: a number in text or bytes is another, lines are doubled or left out, or bytes change."""
    choice = random.randrange(6)
    if choice == 0 and (found := list(re.finditer(rb"-?\d+", data[:4096]))):
        match = random.choice(found)
        return data[: match.start()] + str(random.choice([*NUMBERS, -1])).encode() + data[match.end() :]
    if choice == 1 and len(data) > 8:
        size = random.choice([1, 2, 4, 8])
        place = random.randrange(min(len(data) - size, 512) + 1)
        value = random.choice(NUMBERS) % 256**size
        return data[:place] + value.to_bytes(size, random.choice(["little", "big"])) + data[place + size :]
    if choice == 2 and (lines := data.split(b"\n")):
        place = random.randrange(len(lines))
        lines[place : place + 1] = random.choice([[], [lines[place]] * 2, [random.choice(lines)]])
        return b"\n".join(lines)
    if choice == 3 and data:
        return data[: random.randrange(len(data))]
    return plain(data, LONGEST)


def fuzz_here(name: str, seconds: int, folder: Path, path: Path) -> None:
    """Fuzzes one target in this process, which it ends: with 0 if nothing went wrong. ``path`` holds the input."""
    import resource

    import atheris

    with atheris.instrument_imports(include=["pointadapterx.datasets", "pointadapterx.engine", "pointadapterx.models"]):
        target = targets()[name]
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed{number}").write_bytes(seed)

    def once(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(PointAdapterXError, *target.expected):
            target.read(path)

    def mutate(data: bytes, _: int, seed: int) -> bytes:
        random = Random(seed)
        result = mutated(data, random, atheris.Mutate)
        return (target.mend(result) if random.random() < 0.8 else result)[:LONGEST]

    for seed in target.seeds():  # imports what is imported late, before memory is bounded
        once(seed)
    flags = [f"-max_total_time={seconds}", f"-timeout={HANG}", "-rss_limit_mb=0", f"-artifact_prefix={folder}/"]
    flags += [f"-max_len={LONGEST}", "-print_final_stats=1", str(corpus)]
    atheris.Setup([sys.argv[0], *flags], once, custom_mutator=mutate)
    room = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    atheris.Fuzz()


def fuzz(name: str, seconds: int, folder: Path) -> bool:
    """Fuzzes one target in another process; what comes of it is printed. False for a fault."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as place, log.open("wb") as file:
        path = Path(place, f"input{targets()[name].suffix}")
        command = [sys.executable, "-m", "benchmarks.fuzz", name, str(seconds), str(folder), str(path)]
        status = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
        last = path.read_bytes() if path.exists() else b""  # whatever ended the process, it was reading this
    runs = re.search(r"number_of_executed_units: *(\d+)", log.read_text(encoding="utf-8", errors="replace"))
    if status == 0 and runs:
        print(f"{name}: {int(runs[1]):,} files in {seconds} s, no fault", flush=True)
        return True
    culprit = folder / f"fault-{sha256(last).hexdigest()[:8]}{path.suffix}"
    culprit.write_bytes(last)
    print(f"{name}: FAULT (exit status {status}) at {culprit}; see {log}", flush=True)
    return False


def main(arguments: list[str]) -> int:
    """Fuzzes readers, one after another; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="benchmarks fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each reader (default: 60)")
    parser.add_argument("--reader", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--output", type=Path, default=Path("build/fuzz"), help="default: build/fuzz")
    options = parser.parse_args(arguments)
    try:
        need("atheris", "fuzzing is done by atheris", "fuzz", ConfigError)
        known = list(targets())
        for name in options.reader or ():
            if name not in known:
                raise ConfigError(f"reader {name!r} is not known; choose from {', '.join(known)}")
    except PointAdapterXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = [name for name in options.reader or known if not fuzz(name, options.seconds, options.output / name)]
    return 1 if failed else 0


if __name__ == "__main__":
    fuzz_here(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
