"""The CSV: what its lines hold, and that reading gives back what was written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pointadapterx.errors import DataError
from pointadapterx.study.plan import CellKey, Plan
from pointadapterx.study.records import OUTPUT, collect, pack_correctness, read_records, write_records
from tests.study.conftest import make_record, write_result


def finish_tuning(plan: Plan, runs: Path) -> dict[str, float]:
    tuned = plan.cells[CellKey("main", "dapt_x", "rotation")]
    scores = {}
    for score, (_, run) in zip((50.0, 70.0, 60.0), plan.tuning_runs(tuned), strict=True):
        write_result(runs, run, val=score)
        scores[run.name] = score
    return scores


def test_lines_tell_what_is_finished_failed_and_missing(plan: Plan, tmp_path: Path) -> None:
    scores = finish_tuning(plan, tmp_path)
    linear = plan.final_runs(plan.cells[CellKey("main", "linear", "rotation")], {})
    write_result(tmp_path, linear[0][1], val=40.0, correct=10)
    records = collect(plan, tmp_path, scores, {linear[1][1].name: "no memory"})
    told = [(r.row, r.kind, r.replicate, r.status, r.overall_accuracy) for r in records]
    assert told == [
        ("linear", "final", "0", "finished", 25.0),
        ("linear", "final", "1", "failed", None),
        ("dapt_x", "tune", "0", "finished", None),
        ("dapt_x", "tune", "0", "finished", None),
        ("dapt_x", "tune", "0", "finished", None),
        ("dapt_x", "final", "0", "finished", 75.0),
        ("dapt_x", "final", "1", "missing", None),
    ]
    assert records[1].error == "no memory"
    assert [r.chosen for r in records if r.kind == "tune"] == [False, True, False]
    assert records[5].tuned_values == {"train.lr": 2e-3}
    assert records[5].correctness.tolist() == [True] * 30 + [False] * 10
    assert (records[5].hardware, records[5].checkpoint_bytes, records[5].epochs) == ("test machine", 12345, 1)


def test_tuning_needs_nothing_of_the_test_set(plan: Plan, tmp_path: Path) -> None:
    scores = finish_tuning(plan, tmp_path)
    before = [r for r in collect(plan, tmp_path, scores, {}) if r.kind == "tune"]
    for name in scores:
        folder = tmp_path / name / OUTPUT
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["test"]["overall_accuracy"] = 100.0 if scores[name] == 50.0 else 0.0
        (folder / "metrics.json").write_text(json.dumps(metrics))
    assert [r for r in collect(plan, tmp_path, scores, {}) if r.kind == "tune"] == before
    assert all((r.overall_accuracy, r.correct, r.test_objects) == (None, None, None) for r in before)


def test_a_run_that_tells_less_leaves_fields_empty(plan: Plan, tmp_path: Path) -> None:
    linear = plan.final_runs(plan.cells[CellKey("main", "linear", "rotation")], {})
    write_result(tmp_path, linear[0][1], val=40.0)
    path = tmp_path / linear[0][1].name / OUTPUT / "metrics.json"
    metrics = json.loads(path.read_text())
    for key in ("hardware", "seconds", "peak_memory_mib", "versions", "adapter_bytes"):
        del metrics[key]
    path.write_text(json.dumps(metrics))
    record = collect(plan, tmp_path, {}, {})[0]
    assert (record.status, record.hardware, record.seconds, record.torch) == ("finished", None, None, None)


def test_the_csv_gives_back_what_was_written(tmp_path: Path) -> None:
    records = [
        make_record(seconds=1 / 3, label='a, "b"\nc', tuned='{"train.lr": 0.001}'),
        make_record(status="missing", baseline=None, run=None, overall_accuracy=None, correct=None, test_objects=None),
        make_record(kind="tune", chosen=True),
    ]
    write_records(tmp_path / "a.csv", records)
    assert read_records(tmp_path / "a.csv") == records


@pytest.mark.parametrize("count", [1, 8, 13])
def test_bits_are_packed_first_object_highest(count: int) -> None:
    correct = np.arange(count) % 3 == 0
    record = make_record(correct=pack_correctness(correct), test_objects=count)
    assert record.correctness.tolist() == correct.tolist()
    assert pack_correctness(np.array([True, False, False, True])) == "90"


def test_damaged_files_say_what_to_do(plan: Plan, tmp_path: Path) -> None:
    linear = plan.final_runs(plan.cells[CellKey("main", "linear", "rotation")], {})
    write_result(tmp_path, linear[0][1], val=40.0)
    (tmp_path / linear[0][1].name / OUTPUT / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"metrics.json: damaged .* delete .* to train the run again"):
        collect(plan, tmp_path, {}, {})
    with pytest.raises(DataError, match="cannot be read"):
        read_records(tmp_path / "nowhere.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="line 2: study: Field required"):
        read_records(tmp_path / "other.csv")
    (tmp_path / "empty.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="holds no results"):
        read_records(tmp_path / "empty.csv")
