"""The CSV: what its lines hold, and that reading gives back what was written."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointadapterx.commands.main import main
from pointadapterx.errors import DataError
from pointadapterx.files import write_json
from pointadapterx.study.outcomes import DIVERGED, OUTPUT, collect, describe_result
from pointadapterx.study.packing import pack_correctness, pack_groups
from pointadapterx.study.plan import CellKey, Plan
from pointadapterx.study.records import read_known, read_records, write_records
from tests.study.conftest import make_record, refuse_changed, write_result


def finish_tuning(plan: Plan, runs: Path, correct: tuple[int, ...] = (30, 30, 30)) -> dict[str, float]:
    tuned = plan.cells[CellKey("main", "dapt_x", "rotation")]
    scores = {}
    for score, right, (_, ((_, run),)) in zip((50.0, 70.0, 60.0), correct, plan.tuning_runs(tuned), strict=True):
        write_result(runs, run, val=score, correct=right)
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


def test_fit_and_routing_of_the_last_epoch_are_told(plan: Plan, tmp_path: Path) -> None:
    linear = plan.final_runs(plan.cells[CellKey("main", "linear", "rotation")], {})
    for (_, run), routing in zip(linear, ({"routing_load": [[0.3, 0.7]], "routing_entropy": [0.5]}, {}), strict=True):
        write_result(tmp_path, run, val=40.0)
        last = {"train_accuracy": 80.0, "routing_switched": [], **routing}
        write_json(tmp_path / run.name / OUTPUT / "history.json", [{"train_accuracy": 10.0}, last])
    first, second = collect(plan, tmp_path, {}, {})[:2]
    assert (first.train_accuracy, first.routing_min_load, first.routing_switched) == (80.0, 30.0, None)
    assert first.routing_entropy == pytest.approx(100 * 0.5 / math.log(2))
    assert (second.train_accuracy, second.routing_min_load) == (80.0, None)


@pytest.mark.parametrize("content", [[], {}, ["x"], [{"routing_load": [[1.0]]}]])
def test_a_damaged_history_says_what_to_do(plan: Plan, tmp_path: Path, content: Any) -> None:
    _, run = plan.final_runs(plan.cells[CellKey("main", "linear", "rotation")], {})[0]
    write_result(tmp_path, run, val=40.0)
    write_json(tmp_path / run.name / OUTPUT / "history.json", content)
    with pytest.raises(DataError, match=r"history\.json: damaged .*; delete .* to train the run again"):
        collect(plan, tmp_path, {}, {})


def test_tuning_needs_nothing_of_the_test_set(plan: Plan, tmp_path: Path) -> None:
    scores = finish_tuning(plan, tmp_path)
    before = [r for r in collect(plan, tmp_path, scores, {}) if r.kind == "tune"]
    finish_tuning(plan, tmp_path, correct=(40, 0, 10))
    assert [r for r in collect(plan, tmp_path, scores, {}) if r.kind == "tune"] == before
    assert all((r.overall_accuracy, r.correct, r.test_objects) == (None, None, None) for r in before)


def test_lines_of_an_earlier_csv_stand_in_for_runs_that_are_gone(plan: Plan, tmp_path: Path) -> None:
    scores = finish_tuning(plan, tmp_path / "runs")
    linear = plan.final_runs(plan.cells[CellKey("main", "linear", "rotation")], {})
    write_result(tmp_path / "runs", linear[0][1], val=40.0, correct=10, groups=[7, 5, 7, *range(10, 47)])
    before = collect(plan, tmp_path / "runs", scores, {linear[1][1].name: "no memory"})
    write_records(tmp_path / "a.csv", before)
    known = read_known([tmp_path / "a.csv"])
    after = collect(plan, tmp_path / "gone", scores, {}, known)
    assert [r.status for r in after] == [r.status if r.status == "finished" else "missing" for r in before]
    assert [r for r in after if r.status == "finished"] == [r for r in before if r.status == "finished"]

    write_result(tmp_path / "gone", linear[0][1], val=41.0, correct=20)  # what is in the folder counts
    assert collect(plan, tmp_path / "gone", scores, {}, known)[0].overall_accuracy == 50.0


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
        make_record(
            replicate="1",
            status="missing",
            baseline=None,
            run=None,
            overall_accuracy=None,
            correct=None,
            test_objects=None,
        ),
        make_record(kind="tune", chosen=True, best_val=50.0),
    ]
    write_records(tmp_path / "a.csv", records)
    assert read_records(tmp_path / "a.csv") == records


@pytest.mark.parametrize("count", [1, 8, 13])
def test_bits_are_packed_first_object_highest(count: int) -> None:
    correct = np.arange(count) % 3 == 0
    accuracy = 100.0 * correct.mean()
    record = make_record(correct=pack_correctness(correct), test_objects=count, overall_accuracy=accuracy)
    assert record.correctness.tolist() == correct.tolist()
    assert pack_correctness(np.array([True, False, False, True])) == "90"


@pytest.mark.parametrize("content", ["null", "[]", '{"test": null}', '{"data": []}', "[" * 100_000])
def test_metrics_of_another_kind_are_damaged(content: str, plan: Plan, tmp_path: Path) -> None:
    _, run = plan.final_runs(plan.cells[CellKey("main", "linear", "rotation")], {})[0]
    write_result(tmp_path, run, val=40.0)
    (tmp_path / run.name / OUTPUT / "metrics.json").write_text(content)
    with pytest.raises(DataError, match=r"metrics.json: damaged .* delete .* to train the run again"):
        collect(plan, tmp_path, {}, {})
    with pytest.raises(DataError, match=r"metrics.json: damaged"):
        describe_result(tmp_path / run.name, run, tested=True)


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


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"correct": "zz"}, "correct is not of hexadecimal digits"),
        ({"correct": "e0e0"}, "correct does not hold one bit for each of 4 test objects"),
        ({"correct": "e1"}, "correct does not hold one bit for each of 4 test objects"),
        ({"test_objects": 12}, "correct does not hold one bit for each of 12 test objects"),
        ({"correct": ""}, "a finished final line without correct"),
        ({"overall_accuracy": ""}, "a finished final line without overall_accuracy"),
        ({"overall_accuracy": 50.0}, "overall_accuracy is 50.0, but of the bits in correct 75.0 %"),
        ({"overall_accuracy": "nan"}, "overall_accuracy: Input should be a finite number"),
        ({"kind": "tune", "best_val": ""}, "a finished tune line without best_val"),
        ({"kind": "tune", "best_val": 50.0}, "table 'main' has no final line, but its tested is true"),
        ({"tested": False}, "table 'main' has final lines, but its tested is false"),
        ({"tuned": "{"}, "tuned: '{' is not a JSON object"),
        ({"groups": "0 9"}, "groups is not of the form '0 3; 1 2 4'"),
        ({"groups": "0 x"}, "groups is not of the form '0 3; 1 2 4'"),
        ({"groups": "0 1; 1 2"}, "groups is not of the form '0 3; 1 2 4'"),
    ],
)
def test_a_damaged_csv_is_refused_with_its_line(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    refuse_changed(tmp_path, make_record(), changes, says)


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({}, "repeats line 2"),
        ({"replicate": "1", "test_objects": 3, "overall_accuracy": 100.0}, "test_objects is 3, but 4 in line 2"),
        ({"replicate": "1", "groups": "0 2"}, "groups are others than those of line 2"),
    ],
)
def test_lines_that_contradict_each_other_are_refused(tmp_path: Path, second: dict[str, Any], says: str) -> None:
    write_records(tmp_path / "a.csv", [make_record(groups="0 1"), make_record(**({"groups": "0 1"} | second))])
    with pytest.raises(DataError, match=f"line 3: {says}"):
        read_records(tmp_path / "a.csv")


def test_predictions_that_contradict_the_metrics_are_refused(plan: Plan, tmp_path: Path) -> None:
    linear = plan.final_runs(plan.cells[CellKey("main", "linear", "rotation")], {})
    write_result(tmp_path, linear[0][1], val=40.0)
    path = tmp_path / linear[0][1].name / OUTPUT / "predictions.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:20]))
    with pytest.raises(DataError, match=r"damaged \(overall_accuracy is 75.0, .*\); delete it to train the run again"):
        collect(plan, tmp_path, {}, {})


def test_groups_go_from_the_predictions_to_the_csv_and_back(plan: Plan, tmp_path: Path) -> None:
    linear = plan.final_runs(plan.cells[CellKey("main", "linear", "rotation")], {})
    write_result(tmp_path / "runs", linear[0][1], val=40.0, groups=[7, 5, 7, *range(10, 47)])
    write_records(tmp_path / "a.csv", collect(plan, tmp_path / "runs", {}, {}))
    record = read_records(tmp_path / "a.csv")[0]
    assert record.groups == "0 2"
    assert record.object_groups is not None
    assert record.object_groups.tolist() == [0, 1, 0, *range(3, 40)]
    assert pack_groups(["b", "a", "a", "", "", "b", "c"]) == "0 5; 1 2"
    assert pack_groups(["a", "b"]) is None


def test_the_csv_tells_selection_task_and_divergence(plan: Plan, tmp_path: Path) -> None:
    linear = plan.final_runs(plan.cells[CellKey("main", "linear", "rotation")], {})
    write_result(tmp_path, linear[0][1], val=40.0)
    (tmp_path / linear[1][1].name).mkdir()
    (tmp_path / linear[1][1].name / DIVERGED).write_text("the loss is not finite\n")
    first, second, *_ = collect(plan, tmp_path, {}, {})
    assert first.data == "ldraw20"
    assert first.selection is not None
    assert first.selection.startswith("eval.val_fraction=")
    assert (second.status, second.error) == ("diverged", "the loss is not finite")


def test_no_cell_is_a_formula_and_all_come_back(tmp_path: Path) -> None:
    records = [
        make_record(label="=1+1", study="'=2", replicate="-3", error='a, "b"\n+c'),
        make_record(row="-x", label="@x", replicate="1"),
    ]
    path = tmp_path / "results.csv"
    write_records(path, records)
    with path.open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert (first["label"], first["study"], first["replicate"]) == ("'=1+1", "''=2", "-3")
    assert (second["row"], second["label"], second["overall_accuracy"]) == ("'-x", "'@x", "75.0")
    assert read_records(path) == records


def test_compare_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--report", str(tmp_path / "no.csv")]) == 2
    assert "no.csv: cannot be read (No such file or directory); give the CSV of a study" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path), str(tmp_path)])
    says = "give --config FILE, a study, or --report CSV, its results; of finished runs, 'pointadapterx report"
    assert says in capsys.readouterr().err
