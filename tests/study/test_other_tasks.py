"""Lines of tasks that do not classify: what is checked, packed and compared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pointadapterx.errors import ConfigError
from pointadapterx.study.packing import pack_records, pack_scores
from pointadapterx.study.records import Record, read_records, write_records
from pointadapterx.study.report import render_report
from pointadapterx.study.resampling import Records, record_difference, record_intervals
from pointadapterx.study.statistics import score_interval
from pointadapterx.study.summary import summarise
from pointadapterx.tasks import TASKS
from pointadapterx.tasks.exchange import Score
from pointadapterx.tasks.pooled import PooledTask
from tests.dense_task import Layers, random_records
from tests.study.conftest import make_record, refuse_changed


class Depth(PooledTask):
    """Two scores, of which a lower one is the better."""

    scores: ClassVar[Mapping[str, Score]] = {
        "error": Score("error", "mean error", "mm", higher_is_better=False),
        "worst": Score("worst", "largest error", "mm", higher_is_better=False),
    }


@pytest.fixture(autouse=True)
def depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS._entries, "depth", Depth)


def line(samples: list[float] | None, **changes: Any) -> Record:
    """A finished run with errors of its test samples; without them an error of 2."""
    errors = np.array(samples or [2.0])
    values = {"error": float(errors.mean()), "worst": float(errors.max())}
    of_task = {
        "task": "depth",
        "scores": json.dumps(values),
        "sample_scores": None if samples is None else pack_scores(errors),
        "test_objects": len(errors),
        **dict.fromkeys(("overall_accuracy", "mean_class_accuracy", "correct")),
    }
    return make_record(**(of_task | changes))


@pytest.fixture(autouse=True)
def layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS._entries, "layers", Layers)


def line_of_records(seed: int = 0, **changes: Any) -> Record:
    """A finished run of a task whose scores are no mean over its 30 test samples."""
    rows = random_records(np.random.default_rng(seed), 30).numpy()
    values = Records(rows, Layers.scores_of).values
    of_task = {"task": "layers", "scores": json.dumps(values), "sample_records": pack_records(rows), "test_objects": 30}
    return line(None, **({**of_task, "sample_scores": None} | changes))


def test_records_come_back_from_the_csv(tmp_path: Path) -> None:
    records = [line_of_records(), line([2.0], test_checksum="other", column="other")]
    write_records(tmp_path / "results.csv", records)
    assert read_records(tmp_path / "results.csv") == records
    outcomes = records[0].outcomes
    assert isinstance(outcomes, Records)
    assert np.array_equal(outcomes.rows, random_records(np.random.default_rng(0), 30).numpy())
    write_records(tmp_path / "without.csv", [line([2.0])])
    assert "sample_records" not in (tmp_path / "without.csv").read_text()


def test_a_report_has_intervals_of_all_scores_of_records() -> None:
    records = [line_of_records(seed, replicate=str(seed)) for seed in (0, 1)]
    records += [line_of_records(0, row="x", label="X"), line_of_records(2, row="x", label="X", replicate="1")]
    tables = summarise(records)
    theirs, ours = tables[0].columns[0].summaries
    outcomes = [record.outcomes for record in records]
    assert theirs.intervals == record_intervals(outcomes[:2])
    assert ours.difference is not None
    assert (ours.difference.mean, ours.difference.interval) == record_difference(outcomes[2:], outcomes[:2])
    report = render_report(records, tables, {})
    header = "| mIoU [95 %] | IoU of upper [95 %] | Δ mIoU to Linear probe [95 %] |"
    assert header in report
    assert re.search(r"\| X \| 2 \| [\d.]+ ± [\d.]+ \[[\d.]+, [\d.]+\] \| [\d.]+ ± [\d.]+ \[", report)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sample_records": "zz"}, "sample_records does not hold records of 30 test objects"),
        ({"sample_records": pack_records(np.ones((29, 4)))}, "sample_records does not hold records of 30"),
        ({"sample_records": pack_records(np.full((30, 4), np.nan))}, "sample_records does not hold records of 30"),
        ({"scores": '{"iou": 9, "upper": 9}'}, "scores says iou is 9.0, but of sample_records"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    refuse_changed(tmp_path, line_of_records(), changes, says)


def test_lines_come_back_from_the_csv(tmp_path: Path) -> None:
    records = [line([150.0, 0.25, 1.5]), line(None, replicate="1", test_checksum="other")]
    write_records(tmp_path / "results.csv", records)
    assert read_records(tmp_path / "results.csv") == records
    outcomes = records[0].outcomes
    assert outcomes is not None
    assert outcomes.tolist() == [150.0, 0.25, 1.5]
    write_records(tmp_path / "classes.csv", [make_record()])
    assert "sample_scores" not in (tmp_path / "classes.csv").read_text()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "dept"}, "task: unknown name 'dept'; did you mean 'depth'?"),
        ({"scores": ""}, "a finished final line without scores"),
        ({"scores": '{"error": 1.5}'}, "scores is not a JSON object of numbers for error, worst"),
        ({"sample_scores": "zz"}, "sample_scores does not hold one number for each of 2 test objects"),
        ({"test_objects": 3}, "sample_scores does not hold one number for each of 3 test objects"),
        ({"scores": '{"error": 9, "worst": 9}'}, "scores says error is 9.0, but the mean of sample_scores is 1.5"),
    ],
)
def test_damaged_lines_are_refused(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    refuse_changed(tmp_path, line([1.0, 2.0]), changes, says)


def test_a_report_has_the_tasks_scores() -> None:
    rng = np.random.default_rng(0)
    base = [float(np.float32(value)) for value in rng.uniform(1, 3, 40)]
    records = [line(base), line([value - 0.5 for value in base], row="x", label="X")]
    tables = summarise(records)
    (theirs, ours) = tables[0].columns[0].summaries
    assert theirs.interval == pytest.approx(score_interval([np.array(base)]), abs=1e-6)
    assert ours.difference is not None
    assert ours.difference.mean == pytest.approx(-0.5, abs=1e-6)
    assert ours.difference.interval == pytest.approx((-0.5, -0.5), abs=1e-6)
    assert ours.difference.p is None
    report = render_report(records, tables, {})
    assert "error is mean error, worst largest error, in mm, of which the lower is the better: mean ±" in report
    assert "| error [95 %] | worst | Δ error to Linear probe [95 %] |" in report
    without = render_report([line(None)], summarise([line(None)]), {})
    assert "| error | worst |" in without
    assert "| 2.00 | 2.00 |" in without


def test_tasks_do_not_share_a_column() -> None:
    with pytest.raises(ConfigError, match=r"task 'classification' .* and 'depth' .* cannot be compared"):
        summarise([make_record(), line([1.0], row="x", test_checksum="abc")])
