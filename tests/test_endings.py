"""How commands end when the machine fails them: one line, an exit status, and no traceback."""

from __future__ import annotations

import ast
import contextlib
import errno
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pointadapterx.commands import main as cli
from pointadapterx.commands.options import UsageError
from pointadapterx.endings import BROKEN_PIPE, ends_in_one_line, explain
from pointadapterx.engine.console import console, log_to_file
from pointadapterx.errors import DataError, Interrupted, reason_of
from tests.conftest import ROOT

FULL = Path("/dev/full")
GIVEN = {"compare": ["--config", "x"], "data": ["build", "x", "y"], "doctor": ["x"], "example": ["x"]}
"""Arguments of the commands that do not take two."""


def failing(error: BaseException) -> int:
    @ends_in_one_line
    def command() -> int:
        raise error

    return command()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out.csv"), "out.csv: No space left on device; free space"),
        (OSError(errno.ENOSPC, "No space left on device"), "the output: No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", Path("cache")), "cache: Read-only file system; it is read-only"),
        (PermissionError(errno.EACCES, "Permission denied", b"a\xff"), "Permission denied; change its permissions"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), "…"),
        (FileNotFoundError(errno.ENOENT, "No such file", "run/log.txt"), "run/log.txt: No such file; it was removed"),
        (
            MemoryError("Unable to allocate 7.28 TiB"),
            "not enough memory (Unable to allocate 7.28 TiB); lower the batch",
        ),
        (MemoryError(), "not enough memory; lower the batch size"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "not enough memory (CUDA out of memory",
        ),
        (DataError("x.ply: is damaged; copy it again"), "x.ply: is damaged"),
    ],
)
def test_what_the_machine_cannot_do_is_one_line(
    error: Exception, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointadapterx.endings.leave", lambda stream: None)  # pytest's own output
    assert failing(error) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert len(printed) < 600
    assert says in printed


def test_memory_that_torch_cannot_give(capsys: pytest.CaptureFixture[str]) -> None:
    @ends_in_one_line
    def command() -> int:
        torch.empty(2**50)
        return 0

    assert command() == 2
    assert "not enough memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("x"), KeyError("x"), OSError("x"), FileNotFoundError(2, "x")]
)
def test_faults_of_the_program_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        failing(error)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_ends_so(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(error: BaseException) -> tuple[int, str]:
        def run(options: object) -> int:
            raise error

        monkeypatch.setattr(f"pointadapterx.commands.{command}.run", run)
        status = cli.main([command, *GIVEN.get(command, ["x", "y"])])
        return status, capsys.readouterr().err

    assert end(DataError("x.ply: damaged")) == (2, "error: x.ply: damaged\n")
    assert end(KeyboardInterrupt()) == (130, f"{cli.COMMANDS[command].stopped}\n")
    assert end(Interrupted(15, Path("r")))[0] == 143
    with pytest.raises(SystemExit) as stop:
        end(UsageError("--top 0: at least 1"))
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(f"pointadapterx {command}: error: --top 0: at least 1\n")


SCRIPT = """
import sys
from pointadapterx.endings import ends_in_one_line
@ends_in_one_line
def command():
    for number in range({lines}):
        print("line", number)
    return 0
sys.exit(command())
"""


def test_a_closed_pipe_ends_in_silence() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(lines=100_000)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == BROKEN_PIPE


@pytest.mark.skipif(not FULL.exists(), reason="a system without /dev/full")
@pytest.mark.parametrize("lines", [1, 100_000])  # fails when the command ends, and when it prints
def test_a_full_disk_behind_the_output(lines: int) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(lines=lines)], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "error: the output: No space left on device; free space there, or choose another place\n"
    )


def test_nobody_looking_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[object] = []
    monkeypatch.setattr("pointadapterx.engine.console.leave", left.append)
    monkeypatch.setattr(console, "quiet", False)
    console.on_broken_pipe()  # rich's own ends the process
    assert console.quiet
    assert left == [sys.stdout]


@pytest.mark.skipif(not FULL.exists(), reason="a system without /dev/full")
def test_a_log_that_cannot_be_written_is_told_once(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pointadapterx"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("pointadapterx"), "handlers", [])  # those of earlier tests would say it too
    handler, log = log_to_file(FULL), logging.getLogger("pointadapterx.test")
    try:
        for number in range(3):
            log.warning("line %d", number)
    finally:
        logging.getLogger("pointadapterx").removeHandler(handler)
        with contextlib.suppress(OSError):  # its buffer
            handler.close()
    assert [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()] == [
        "/dev/full: cannot be written (No space left on device); the run goes on without it"
    ]
    assert "Traceback" not in capsys.readouterr().err


def test_a_path_that_is_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config", "x" * 5000]) == 2
    assert "File name too long; give a shorter path" in capsys.readouterr().err


def test_explain_leaves_bugs() -> None:
    assert explain(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_the_reason_is_words_without_number_and_path() -> None:
    assert (
        reason_of(FileNotFoundError(errno.ENOENT, "No such file or directory", "a.ply")) == "No such file or directory"
    )
    assert reason_of(OSError("truncated header\nat byte 8")) == "truncated header"
    assert reason_of(EOFError()) == "EOFError"


def test_no_message_quotes_an_error_of_the_system_as_it_is() -> None:
    """It would read ``[Errno 2] No such file or directory: 'a.ply'``; see :func:`pointadapterx.errors.reason_of`."""
    quoting = []
    for path in (path for folder in ("pointadapterx", "datasets") for path in (ROOT / folder).rglob("*.py")):
        for handler in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(handler, ast.ExceptHandler) or handler.type is None or handler.name is None:
                continue
            if "OSError" not in {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}:
                continue
            for node in ast.walk(handler):
                plain = isinstance(node, ast.FormattedValue) and node.conversion == -1 and ast.unparse(node.value)
                logged = isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("log.", "logger."))
                if plain == handler.name or (logged and ast.unparse(node.args[-1]) == handler.name):
                    quoting.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert quoting == []
