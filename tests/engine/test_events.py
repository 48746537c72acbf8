"""Events for TensorBoard: what keeps them from being written ends no run."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pointadapterx.engine.events import tensorboard_events

RECORD = {"epoch": 1, "train_loss": 0.5, "protocol": "last: *all* of it"}


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taken").write_text("a file")
    with tensorboard_events(tmp_path / "taken" / "events", 1) as write:
        write(RECORD)
    (message,) = caplog.messages
    assert "no more events for TensorBoard (Not a directory)" in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which is a full disk")
def test_a_disk_that_runs_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once, without the traceback of the thread that writes; that of any other thread is shown."""
    shown: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: shown.append(args.exc_value))

    def other() -> None:
        raise OSError("of another thread")

    with tensorboard_events(tmp_path, 1) as write:
        (events,) = tmp_path.iterdir()
        write(RECORD)
        events.unlink()
        events.symlink_to("/dev/full")
        for _ in range(3):
            write(RECORD)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert sum("no more events for TensorBoard (No space left on device)" in line for line in caplog.messages) == 1
    assert [str(error) for error in shown] == ["of another thread"]
