"""Each run is trained once, whatever fails or is killed. Most tests replace the training by a line of Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from pointadapterx.commands.main import main
from pointadapterx.errors import ConfigError
from pointadapterx.study import processes, runner
from pointadapterx.study.outcomes import OUTPUT, collect
from pointadapterx.study.plan import Plan, Run, read_plan
from pointadapterx.study.runner import Runner, training_command
from tests.conftest import ROOT
from tests.mechanisms import exhaustive
from tests.study.conftest import write_result

MakeStudy = Callable[..., Path]

# Notes its start, then writes the metrics, with a validation score of 1000 × lr.
TRAIN = """
import json, os, pathlib, sys, time, yaml
folder = pathlib.Path(sys.argv[1])
config = yaml.safe_load((folder / "study.yaml").read_text())
(folder / "starts").open("a").write("x")
time.sleep(float(os.environ.get("STUDY_TEST_SECONDS", "0")))
test = {"overall_accuracy": 50.0, "mean_class_accuracy": 50.0}
metrics = {"val_overall_accuracy": 1000 * config["train"]["lr"], "test": test}
(folder / "run").mkdir(exist_ok=True)
(folder / "run" / "metrics.json").write_text(json.dumps(metrics))
"""


def fake(run: Run, folder: Path) -> list[str]:
    return ["-c", TRAIN, str(folder)]


@pytest.fixture(autouse=True)
def _quick_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)


def starts(plan: Plan) -> dict[str, int]:
    """Run name to how often its training was started."""
    return {path.parent.name: len(path.read_text()) for path in Path(plan.study.runs).glob("*/starts")}


def test_every_run_is_trained_once_and_never_again(make_study: MakeStudy) -> None:
    plan = read_plan(make_study(processes=2))
    outcome = Runner(plan, fake).run()
    assert (outcome.failures, outcome.signal) == ({}, 0)
    assert list(starts(plan).values()) == [1] * 6  # 2 linear, 3 of the grid, 1 more with the winner
    assert Runner(plan, fake).run().finished == outcome.finished
    assert list(starts(plan).values()) == [1] * 6


def test_the_winner_of_the_grid_is_trained_with_every_seed(plan: Plan) -> None:
    Runner(plan, fake).run()
    settings = [run.config.train for run in map(_run_of(plan), starts(plan)) if run.config.train.seed == 1]
    assert sum(train.lr == 0.004 for train in settings) == 1


def test_an_open_grid_goes_on_and_continues_where_it_was(make_study: MakeStudy) -> None:
    rows = {"x": {"tune": {"train.lr": {"start": [1e-3, 2e-3], "most": 4}}}}
    tables = {"main": {"columns": {"rotation": None}, "rows": rows}}
    plan = read_plan(make_study(tables=tables, replicate={"values": [0]}))

    def failing(run: Run, folder: Path) -> list[str]:
        return ["-c", "raise SystemExit(1)"] if run.config.train.lr == 4e-3 else fake(run, folder)

    assert len(Runner(plan, failing).run().failures) == 1
    assert len(starts(plan)) == 2
    outcome = Runner(plan, fake).run()  # better with each value, until it has tried as many as it may
    assert list(starts(plan).values()) == [1] * 4
    (cell,) = plan.cells.values()
    ((_, best),) = plan.final_runs(cell, {"train.lr": 8e-3})
    write_result(Path(plan.study.runs), best, val=8.0)  # with its predictions
    records = collect(plan, Path(plan.study.runs), outcome.scores, {})
    tried = [(record.tuned_values["train.lr"], record.chosen, record.most) for record in records]
    assert tried[:-1] == [(1e-3, False, 4), (2e-3, False, 4), (4e-3, False, 4), (8e-3, True, 4)]
    assert (records[-1].kind, records[-1].tuned_values) == ("final", {"train.lr": 8e-3})


def _run_of(plan: Plan) -> Callable[[str], Run]:
    runs = {run.name: run for run in plan._runs.values()}
    return lambda name: runs[name]


def test_a_failed_run_is_recorded_and_tried_again(plan: Plan) -> None:
    def failing(run: Run, folder: Path) -> list[str]:
        if run.config.train.seed == 1 and run.config.method.name == "linear":
            return ["-c", "print('error: out of luck'); print('bye'); raise SystemExit(2)"]
        return fake(run, folder)

    outcome = Runner(plan, failing).run()
    assert list(outcome.failures.values()) == ["out of luck"]
    assert len(outcome.finished) == 5
    again = Runner(plan, fake).run()
    assert (len(again.finished), again.failures) == (6, {})


def test_without_a_message_the_exit_status_is_told(plan: Plan) -> None:
    outcome = Runner(plan, lambda run, folder: ["-c", "raise SystemExit(3)"]).run()
    assert set(outcome.failures.values()) == {"exit status 3"}


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import os; print('epoch 1', flush=True); os.kill(os.getpid(), 9)", "killed by SIGKILL (out of memory?)"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("int('a')", "exit status 1: ValueError: invalid literal for int() with base 10: 'a'"),
    ],
)
def test_a_run_that_ends_without_an_error_line_tells_how_it_ended(plan: Plan, script: str, says: str) -> None:
    outcome = Runner(plan, lambda run, folder: ["-c", script]).run()
    assert set(outcome.failures.values()) == {says}


def diverging(run: Run, folder: Path) -> list[str]:
    if run.config.train.lr == 4e-3:
        return ["-c", "print('error: the loss of epoch 1, step 1 is not finite: samples [0]'); raise SystemExit(2)"]
    return fake(run, folder)


def test_a_candidate_that_diverged_ranks_last_and_is_not_tried_again(plan: Plan) -> None:
    outcome = Runner(plan, diverging).run()
    assert list(outcome.diverged.values()) == ["the loss of epoch 1, step 1 is not finite: samples [0]"]
    assert outcome.failures == {}
    assert len(outcome.finished) == 2 + 2 + 1  # the row went on with lr 0.002
    again = Runner(plan, fake).run()
    assert (again.diverged, again.finished) == (outcome.diverged, outcome.finished)


def test_the_state_of_a_run_that_ended_is_deleted(plan: Plan) -> None:
    def with_state(run: Run, folder: Path) -> list[str]:
        (folder / OUTPUT).mkdir()
        (folder / OUTPUT / "state.safetensors").touch()
        if run.config.train.seed == 1:
            return ["-c", "raise SystemExit(1)"]
        return diverging(run, folder)

    outcome = Runner(plan, with_state).run()
    kept = {path.parents[1].name for path in Path(plan.study.runs).glob("*/run/state.safetensors")}
    assert outcome.finished
    assert outcome.diverged
    assert kept == set(outcome.failures)


def test_a_run_that_was_ended_early_by_hand_is_none_of_the_study(plan: Plan) -> None:
    Runner(plan, fake).run()
    planned = next(Path(plan.study.runs).glob("*/study.yaml"))
    config = yaml.safe_load(planned.read_text())
    config["train"]["epochs"] += 1
    (planned.parent / OUTPUT / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"was resumed with train\.epochs=\d+, .* remove the folder"):
        Runner(plan, fake).run()


def test_what_is_known_is_told_whenever_runs_have_ended(plan: Plan) -> None:
    told: list[int] = []
    outcome = Runner(plan, fake, after_run=lambda known: told.append(len(known.finished))).run()
    assert told == [1, 2, 3, 4, 5, 6]
    assert len(outcome.finished) == 6


def test_the_csv_is_there_as_soon_as_a_run_has_finished(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv_file = tmp_path / "results" / "results.csv"
    lines: list[int] = []

    def train(run: Run, folder: Path) -> list[str]:
        if csv_file.exists():
            lines.append(csv_file.read_text().count(",finished,"))
        write_result(tmp_path / "runs", run, val=50.0)
        return ["-c", ""]

    monkeypatch.setattr(runner, "training_command", train)
    assert main(["compare", "--config", str(make_study())]) == 0
    assert lines[:2] == [1, 2]


def test_a_known_csv_spares_its_runs_and_gives_the_same_results(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    right = {1e-3: 20, 2e-3: 30, 4e-3: 10}

    def train(run: Run, folder: Path) -> list[str]:
        trained.append(run.name)
        if run.config.method.name == "linear" and run.config.train.seed == 1:
            return ["-c", "print('error: the loss is not finite'); raise SystemExit(2)"]
        write_result(folder.parent, run, val=50.0 + right[run.config.train.lr], correct=right[run.config.train.lr])
        return ["-c", ""]

    monkeypatch.setattr(runner, "training_command", train)
    first, again = tmp_path / "results" / "results.csv", tmp_path / "again"
    assert main(["compare", "--config", str(make_study())]) == 1  # one diverged
    assert len(trained) == 6
    moved = [f"runs={tmp_path / 'other'}", f"results={again}"]
    trained.clear()
    assert main(["compare", "--config", str(make_study(known=[str(first)])), *moved]) == 1
    assert trained == []
    assert (again / "results.csv").read_text() == first.read_text()
    assert list((tmp_path / "other").glob("*")) == []

    # a table that only tuned knows nothing of the test set: its winner is trained, what did not win is not
    only_tuned = [line for line in first.read_text().splitlines() if ",final," not in line]
    known = tmp_path / "tuned.csv"
    known.write_text("\n".join(only_tuned).replace(",linear,True,", ",linear,False,") + "\n")
    assert main(["compare", "--config", str(make_study()), f"known=[{known}]", *moved]) == 1
    assert len(trained) == 4  # both seeds of both rows, the winner's tuning run among them
    assert (again / "results.csv").read_text() == first.read_text()


def test_a_known_csv_that_is_missing_is_refused_before_training(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--config", str(make_study(known=["no.csv"]))]) == 2
    assert "no.csv: cannot be read" in capsys.readouterr().err


def test_a_refusal_after_training_tells_where_the_results_are(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(run: Run, folder: Path) -> list[str]:
        write_result(tmp_path / "runs", run, val=50.0)
        path = folder / OUTPUT / "metrics.json"
        path.write_text(path.read_text().replace('"rotation"', f'"{run.config.method.name}"'))
        return ["-c", ""]

    monkeypatch.setattr(runner, "training_command", train)
    assert main(["compare", "--config", str(make_study())]) == 2
    csv_file = tmp_path / "results" / "results.csv"
    assert f"cannot be compared; give each its own column; all results are in {csv_file}" in capsys.readouterr().err
    assert csv_file.is_file()


def test_a_failed_candidate_leaves_its_row_undecided(plan: Plan) -> None:
    def failing(run: Run, folder: Path) -> list[str]:
        return ["-c", "raise SystemExit(1)"] if run.config.train.lr == 4e-3 else fake(run, folder)

    outcome = Runner(plan, failing).run()
    assert len(outcome.finished) == 4
    assert len(outcome.failures) == 1


def test_a_run_that_another_process_is_at_is_waited_for(plan: Plan) -> None:
    (use, *_) = plan.due({})[0].values()
    folder = Path(plan.study.runs) / use.run.name
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(json.dumps(use.run.config.dump()))
    script = "import fcntl, sys; file = open(sys.argv.pop(1) + '/lock', 'a'); fcntl.flock(file, fcntl.LOCK_EX)"
    environment = {**os.environ, "STUDY_TEST_SECONDS": "1"}
    other = subprocess.Popen([sys.executable, "-c", script + "\n" + TRAIN, str(folder), str(folder)], env=environment)
    while not (folder / "starts").exists():
        time.sleep(0.02)
    outcome = Runner(plan, fake).run()
    assert other.wait() == 0
    assert use.run.name in outcome.finished
    assert set(starts(plan).values()) == {1}


# Has the output alone while it trains, as a run's own process does.
ORPHAN = f"""
import pathlib, sys, time
from pointadapterx.locks import alone
output = pathlib.Path(sys.argv[1]) / "run"
output.mkdir(exist_ok=True)
with alone(output / ".lock", output, "wait"):
    print("started", flush=True)
    time.sleep(1)
    exec({TRAIN!r})
"""


@pytest.mark.parametrize("late", [False, True])
def test_a_run_of_a_killed_study_is_waited_for(plan: Plan, late: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Also where it takes the lock so late that a second process has been started, which is refused."""
    caplog.set_level("INFO", "pointadapterx")
    (use, *_) = plan.due({})[0].values()
    folder = Path(plan.study.runs) / use.run.name
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(json.dumps(use.run.config.dump()))
    orphans = []

    def start_orphan() -> None:
        orphans.append(subprocess.Popen([sys.executable, "-c", ORPHAN, str(folder)], stdout=subprocess.PIPE))
        assert orphans[0].stdout is not None
        assert orphans[0].stdout.readline() == b"started\n"

    def command(run: Run, folder: Path) -> list[str]:
        if run.name == use.run.name and not orphans:
            start_orphan()
            return ["-c", "print('error: is in use by process 1'); raise SystemExit(2)"]
        return fake(run, folder)

    if not late:
        start_orphan()
    outcome = Runner(plan, command).run()
    orphans[0].communicate()
    assert orphans[0].returncode == 0
    assert outcome.failures == {}
    assert use.run.name in outcome.finished
    assert set(starts(plan).values()) == {1}
    assert f"process {orphans[0].pid} on " in caplog.text
    assert "is still at it, waiting for it" in caplog.text


def test_leftovers_without_a_state_are_cleared(plan: Plan) -> None:
    (use, *_) = plan.due({})[0].values()
    output = Path(plan.study.runs) / use.run.name / OUTPUT
    output.mkdir(parents=True)
    (output / "config.yaml").write_text("{}")
    seen = []

    def command(run: Run, folder: Path) -> list[str]:
        seen.append((folder / OUTPUT).exists())
        return fake(run, folder)

    Runner(plan, command).run()
    assert not any(seen)


def test_a_run_with_a_state_is_resumed_where_its_files_lie_now(plan: Plan, tmp_path: Path) -> None:
    (use, *_) = plan.due({})[0].values()
    assert training_command(use.run, tmp_path)[2:5] == ["train", "--config", str(tmp_path / "study.yaml")]
    (tmp_path / OUTPUT).mkdir()
    for name in ("state.safetensors", "config.yaml"):
        (tmp_path / OUTPUT / name).touch()
    arguments = training_command(use.run, tmp_path)
    assert arguments[2:4] == ["resume", str(tmp_path / OUTPUT)]
    assert f'data.root="{use.run.config.data.root}"' in arguments
    assert "backbone.weights=null" in arguments


def test_cores_are_shared_and_gpus_are_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(processes, "available_cores", lambda: 8)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = [processes.environment(slot, 3) for slot in range(3)]
    assert [variables["CUDA_VISIBLE_DEVICES"] for variables in found] == ["4", "6", "4"]
    assert found[0]["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert processes.environment(0, 3)["OMP_NUM_THREADS"] == "1"


def compare(study: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "tools/compare.py", "--config", str(study), *more],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGTERM, marks=exhaustive), signal.SIGKILL],
    ids=lambda number: number.name,
)
def test_real_runs_survive_the_study_being_stopped(make_study: MakeStudy, tmp_path: Path, number: int) -> None:
    rows = {"dapt_x": None}
    columns = {"rotation": {"train.epochs": 6, "train.batch_size": 4}}
    study = make_study(tables={"main": {"columns": columns, "rows": rows}})
    runs = tmp_path / "runs"
    first = compare(study)
    wait_for(lambda: bool(list(runs.glob("*/run/metrics.json"))))
    (done,) = runs.glob("*/run/metrics.json")
    bytes_before, time_before = done.read_bytes(), done.stat().st_mtime_ns
    wait_for(lambda: len(list(runs.glob("*/run/history.json"))) == 2)  # the second run has saved a state
    (training,) = psutil.Process(first.pid).children()
    if number == signal.SIGKILL:
        training.suspend()  # so that it is still at it when the next study starts
    first.send_signal(number)
    first.communicate()
    assert first.returncode == (128 + number if number == signal.SIGTERM else -number)

    second = compare(study)
    assert second.stdout is not None
    if number == signal.SIGKILL:
        while "waiting for it" not in (line := second.stdout.readline()):
            assert line
        training.resume()
    output, _ = second.communicate()
    assert second.returncode == 0, output
    assert (done.read_bytes(), done.stat().st_mtime_ns) == (bytes_before, time_before)
    logs = "".join(path.read_text() for path in runs.glob("*/log.txt"))
    assert logs.count("pointadapterx train --config ") == 2  # each run was started once,
    assert logs.count("pointadapterx resume ") == (number == signal.SIGTERM)  # and the stopped one continued
    assert len((tmp_path / "results" / "results.csv").read_text().splitlines()) == 3
    assert (tmp_path / "results" / "report.md").is_file()
