"""Reading files ahead, by a thread or by processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pointadapterx.datasets import workers
from pointadapterx.datasets.workers import map_in_order, read_ahead


def whose(item: int) -> tuple[int, int]:
    """The item, and the process that saw it."""
    return item, os.getpid()


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 200])
@pytest.mark.parametrize("most", [1, 3])
def test_quick_items_stay_in_this_process_in_order(count: int, most: int) -> None:
    found = list(read_ahead(whose, range(count), 8, most))
    assert found == [(number, os.getpid()) for number in range(count)]


@pytest.mark.slow
def test_slow_items_go_to_processes_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.0)
    found = list(read_ahead(whose, range(80), 16, 2))
    assert [item for item, _ in found] == list(range(80))
    here = [item for item, process in found if process == os.getpid()]
    assert workers.TRIED <= len(here) <= workers.TRIED + 16
    assert here == list(range(len(here)))
    assert list(read_ahead(whose, range(80), 16, 1)) == [(number, os.getpid()) for number in range(80)]


def test_it_is_a_bounded_number_ahead_and_stops_when_nobody_listens() -> None:
    seen, enough = [], threading.Event()

    def note(item: int) -> int:
        seen.append(item)
        if item == 20:
            enough.set()
        return item

    reading = read_ahead(note, range(10_000), 8, 1)
    assert [next(reading) for _ in range(40)] == list(range(40))
    assert enough.is_set()
    reading.close()  # type: ignore[attr-defined]
    assert len(seen) <= 40 + 8


def test_what_goes_wrong_is_raised_at_its_place() -> None:
    def read(item: int) -> int:
        return 1 // (item - 3)

    reading = read_ahead(read, range(10), 8, 1)
    assert [next(reading) for _ in range(3)] == [-1, -1, -1]
    with pytest.raises(ZeroDivisionError):
        next(reading)


def test_map_in_order_reads_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.txt" for number in range(3)]
    for path in paths:
        path.write_text(path.stem)
    assert list(map_in_order(Path.read_text, paths, 2, 1)) == ["0", "1", "2"]


@pytest.mark.slow
def test_a_script_without_a_guard_is_not_run_again_by_the_processes(tmp_path: Path) -> None:
    """``pointadapterx.train`` on many files, called as a notebook's cell or a first script would."""
    script = tmp_path / "script.py"
    script.write_text(
        "from os.path import basename\nfrom pointadapterx.datasets.workers import map_in_order\n"
        "print(len(list(map_in_order(basename, [f'a/{i}' for i in range(40)], 16, 2))))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "40\n"), done.stderr
