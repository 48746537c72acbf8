"""Two processes at one place: the second is refused with the name of the first, and a killed one locks nothing."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest

from pointadapterx import jobs as run
from pointadapterx.commands import predict
from pointadapterx.commands.main import main
from pointadapterx.config import dump_config
from pointadapterx.engine import devices
from pointadapterx.errors import InUseError, PointAdapterXError
from pointadapterx.jobs import noah_search as search
from pointadapterx.jobs import testing, training
from pointadapterx.locks import alone, holder, in_turn, is_held
from pointadapterx.run_folder import LOCK_FILE
from tests.conftest import small_config
from tests.synthetic import write_ldraw20

HOLD = """
import sys, time, pathlib
from pointadapterx.locks import alone
with alone(pathlib.Path(sys.argv[1]), "it", "wait"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """The lock is another process's."""
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    try:
        yield other
    finally:
        other.kill()
        other.communicate()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of NOAH's supernet, which can be searched as well."""
    root = tmp_path_factory.mktemp("locks")
    write_ldraw20(root / "data", train_per_class=3, test_per_class=1, num_points=160)
    config = small_config(
        "noah", data={"root": str(root / "data")}, train={"epochs": 1}, method={"search": {"budget": 10**6}}
    )
    (root / "config.yaml").write_text(dump_config(config))
    run.train(config, "test", root / "run", devices.make_accelerator("fp32"))
    return root / "run"


def test_the_second_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_elsewhere(path) as other:
        assert is_held(path)
        for _ in range(2):  # being refused changes nothing
            with pytest.raises(InUseError) as error, alone(path, "runs/a", "choose another --output"):
                pass
            since = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d; choose another --output"
            assert re.fullmatch(rf"runs/a: is in use by process {other.pid} on \S+ {since}", str(error.value))
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert not is_held(path)  # though its file is still there
        with alone(path, "runs/a", "wait"):
            assert f"process {os.getpid()} on " in holder(path)
            with pytest.raises(InUseError, match=f"process {os.getpid()} "), alone(path, "runs/a", "wait"):
                pass
    assert list(tmp_path.iterdir()) == []


def test_waiting_says_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lock"
    caplog.set_level("INFO", "pointadapterx")
    with held_elsewhere(path) as other:
        signal.signal(signal.SIGALRM, lambda *_: other.kill())
        signal.setitimer(signal.ITIMER_REAL, 0.6)
        with in_turn(path, "features"):
            assert other.wait() == -signal.SIGKILL
    assert f"features: waiting for process {other.pid} on " in caplog.text
    assert path.exists()


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(errno.ENOLCK, "No locks available")], ids=repr)
def test_a_file_system_without_locks_is_told(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acquire(self: filelock.FileLock, **options: Any) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with alone(tmp_path / "lock", "it", "wait"):
        assert not is_held(tmp_path / "lock")
    assert "the file system has no locks" in caplog.text


def test_a_lock_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "lock"
    with pytest.raises(PointAdapterXError, match=r"it: cannot be written \(.+\); wait"), alone(path, "it", "wait"):
        pass


def _train(folder: Path, to: Path) -> int:
    return main(["train", "--config", str(folder.parent / "config.yaml"), "--output", str(to)])


COMMANDS: dict[str, Callable[[Path, Path], int]] = {
    "train": _train,
    "resume": lambda folder, to: main(["--resume", str(folder)]),
    "search": lambda folder, to: main(["search", str(folder)]),
    "test": lambda folder, to: main(["test", str(folder), "--output", str(to)]),
    "predict": lambda folder, to: main(["predict", str(folder), str(to / "a.npy"), "--output", str(to / "found.csv")]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_writes_where_another_does(
    name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(200, 3)))
    path = {"resume": trained / LOCK_FILE, "search": trained / LOCK_FILE, "predict": tmp_path / ".found.csv.lock"}.get(
        name, tmp_path / LOCK_FILE
    )
    (tmp_path / "found.csv.part").write_text("of the other")
    with held_elsewhere(path) as other:
        assert COMMANDS[name](trained, tmp_path) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f": is in use by process {other.pid} on " in line
    assert (tmp_path / "found.csv.part").read_text() == "of the other"
    assert not (tmp_path / "config.yaml").exists()
    assert not (tmp_path / "test.json").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_holds_its_place_while_it_writes(
    name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one that starts in the middle of the first is refused, and nothing is left when the first has ended."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(200, 3)))
    place = trained if name in ("resume", "search") else tmp_path
    seen: list[int] = []
    module, function = {
        "train": (training, "_fit"),
        "resume": (training, "_continue"),
        "search": (search, "_search"),
        "test": (testing, "evaluate_and_write"),
        "predict": (predict, "sink"),
    }[name]
    original = getattr(module, function)

    def twice(*arguments: Any, **options: Any) -> Any:
        if not seen:
            seen.append(0)
            seen[0] = COMMANDS[name](trained, tmp_path)
        return original(*arguments, **options)

    monkeypatch.setattr(module, function, twice)
    if name == "search":
        monkeypatch.setattr(search, "evolve", lambda *arguments: iter([[search.Candidate({}, 1, 2.0)]]))
        monkeypatch.setattr(search, "_as_config", lambda *arguments: "")
    assert COMMANDS[name](trained, tmp_path) == 0
    assert seen == [2]
    assert not [path for path in place.iterdir() if path.name.endswith((".lock", ".lock.json"))]


def test_a_run_that_holds_its_folder_is_not_called_resumable(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training into the folder of a run in progress says that it is one, not to resume it."""
    (tmp_path / "config.yaml").write_text("")
    with held_elsewhere(tmp_path / LOCK_FILE):
        started = time.monotonic()
        assert _train(trained, tmp_path) == 2
        assert time.monotonic() - started < 30
    assert "--resume" not in capsys.readouterr().err
