"""What is said where there is no cluster, and how work is spread over one; without starting any."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pointadapterx.cluster import connection
from pointadapterx.cluster.place import Place
from pointadapterx.cluster.predicting import Chunks, _has_files, state_of
from pointadapterx.cluster.runs import watch
from pointadapterx.commands.main import main
from pointadapterx.commands.predict import find_files
from pointadapterx.datasets.point_files import KINDS
from pointadapterx.errors import ConfigError
from pointadapterx.locks import holder, try_hold
from pointadapterx.predicting.answering import EachFile
from tests.processes import CONTEXT

PREDICT = ["predict", "scan.ply", "--output", "found.csv"]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("somewhere", "--address somewhere: give HOST:PORT of the cluster's head node, or auto"),
        ("ray://head:10001x", "--address ray://head:10001x: give HOST:PORT"),
        ("127.0.0.1:{closed}", "cannot be reached (Connection refused); 'ray start --head' on the head node prints"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(address: str, says: str) -> None:
    pytest.importorskip("ray")
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = address.format(closed=taken.getsockname()[1])
        with pytest.raises(ConfigError) as refused, connection.connected(address):
            pass
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*PREDICT, "--address", "a:1"], "--address belongs to --engine ray"),
        ([*PREDICT, "--chunk", "4"], "--chunk belongs to --engine ray"),
        ([*PREDICT, "--engine", "ray", "--chunk", "0"], "--chunk 0: at least 1"),
        (["predict", "scan.ply", "--engine", "ray"], "--engine ray: give --output FILE (.csv or .jsonl)"),
        (["compare", "--config", "study/quick", "--address", "a:1"], "--address belongs to --engine ray"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("nodes", "at_a_time", "share"),
    [
        ([{"CPU": 8.0}], 2, (4, 0)),
        ([{"CPU": 8.0}, {"CPU": 2.0}], 2, (4, 0)),  # 4 + 4, as the second node has no room for 5
        ([{}, {"CPU": 2.0}, {"CPU": 2.0}], 2, (2, 0)),
        ([{"CPU": 2.0}], 5, (1, 0)),
        ([{"CPU": 8.0, "GPU": 1.0}] * 2, 2, (8, 1)),
        ([{"CPU": 8.0, "GPU": 1.0}] * 2, 4, (4, 0.5)),
        ([{"CPU": 32.0}, {"CPU": 4.0, "GPU": 1.0}], 2, (2, 0.5)),  # cores of nodes without a GPU do not count
        ([{"CPU": 32.0}, {"CPU": 8.0, "GPU": 1.0}], 1, (8, 1)),
        ([{"CPU": 1.0, "GPU": 4.0}], 4, (1, 1)),
    ],
)
def test_runs_share_a_cluster(
    nodes: list[dict[str, float]], at_a_time: int, share: tuple[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "nodes", lambda: nodes)
    assert tuple(connection.share(at_a_time).values()) == share


def test_a_node_that_does_not_fit_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "install the same" in str(Place(version="0").problem())
    assert f"has no folder {tmp_path}/gone; start the command in a folder" in str(Place(f"{tmp_path}/gone").problem())

    # a run's folder that another machine has locked, but not this one, which has its own of that name
    monkeypatch.setattr("pointadapterx.cluster.runs.APPEAR_SECONDS", 0.1)
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    ended = watch(["-c", "print('trained')"], run / "log.txt", "1", "process 1 on other since now", Place())
    assert "has to be on a file system that every node sees" in str(ended.problem)
    assert not (run / "log.txt").exists()


def test_a_node_runs_a_process_and_says_whether_it_sees_locks(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    hold = try_hold(run / "lock")
    assert hold is not None
    arguments = ["-c", "import os; print('trained', os.environ['OMP_NUM_THREADS']); raise SystemExit(3)"]
    ended = watch(arguments, run / "log.txt", "7", holder(run / "lock"), Place())
    assert (ended.status, ended.problem, ended.doubt) == (3, None, None)
    assert (run / "log.txt").read_text() == "trained 7\n"
    owner = (run / "lock.json").read_text()
    hold.release()
    (run / "lock.json").write_text(owner)  # the file is seen, the lock is not
    ended = watch(arguments, run / "log.txt", "7", holder(run / "lock"), Place())
    assert f"does not see the locks of {run.parent}" in str(ended.doubt)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_run_saves_its_state_when_what_watches_it_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "lock.json").write_text("{}")
    script = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (folder / "saved").touch())
(folder / "started").touch()
limit = time.monotonic() + 30
while not (folder / "saved").exists() and time.monotonic() < limit:
    time.sleep(0.02)
"""
    arguments = ["-c", script, str(run)]
    watching = CONTEXT.Process(target=watch, args=(arguments, run / "log.txt", "1", holder(run / "lock"), Place()))
    watching.start()
    wait_for((run / "started").exists)
    watching.kill()
    watching.join()
    wait_for((run / "saved").exists)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_chunks_of_another_listing_are_not_taken_for_these(tmp_path: Path) -> None:
    chunks = Chunks(tmp_path / "found.csv.chunks", "one")
    assert chunks.read(0) is None
    chunks.write(0, {"text": "ü\r\n\udc80"})
    again = Chunks(tmp_path / "found.csv.chunks", "one")
    assert again.read(0) == {"text": "ü\r\n\udc80"}
    with pytest.raises(ConfigError, match="holds results of another listing, adapter or other options"):
        Chunks(tmp_path / "found.csv.chunks", "two")


def test_results_beside_the_files_are_not_predicted(tmp_path: Path) -> None:
    """Where the output is in the folder that is predicted, so that the next start lists the same files."""
    (tmp_path / "a.npy").touch()
    Chunks(tmp_path / "found.csv.chunks", "one").write(0, {})
    assert find_files([str(tmp_path)], KINDS) == [str(tmp_path / "a.npy")]


def test_a_chunk_is_done_only_with_the_files_of_its_answers(tmp_path: Path) -> None:
    """But for those of inputs that failed, which have none."""
    each = EachFile(
        ".ply", {("a", "x"): tmp_path / "a.ply", ("b", "x"): tmp_path / "b.ply", ("c", "x"): tmp_path / "c.ply"}
    )
    own, found = each.of(["a", "b"]), {"failures": [("b", "broken")]}
    assert set(own.targets) == {("a", "x"), ("b", "x")}
    assert not _has_files(own, found)
    (tmp_path / "a.ply").touch()
    assert _has_files(own, found)
    assert not _has_files(own, {"failures": []})
    assert _has_files(None, {"failures": []})


@pytest.mark.parametrize(("device", "takes"), [(None, True), ("cuda", True), ("cuda:1", True), ("cpu", False)])
def test_only_what_computes_there_takes_a_gpu(device: str | None, takes: bool) -> None:
    assert connection.takes_gpus(device, [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}]) == takes
    assert not connection.takes_gpus(device, [{"CPU": 4.0}])


def test_gpus_of_nodes_without_a_cpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run would wait for such a node for ever."""
    monkeypatch.setattr(connection, "nodes", lambda: [{"CPU": 8.0}, {"GPU": 1.0}])
    with pytest.raises(ConfigError, match="no node of the cluster has both CPUs and GPUs"):
        connection.share(1)


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "scan.xyz"
    missing = state_of([str(path)])
    path.write_text("0 0 0\n")
    before = state_of([str(path)])
    path.write_text("0 0 0\n1 1 1\n")
    assert len({missing, before, state_of([str(path)])}) == 3
