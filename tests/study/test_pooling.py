"""Means over the columns of a table: what counts alike, intervals, and what the report says of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointadapterx.commands.main import main
from pointadapterx.errors import ConfigError
from pointadapterx.study.context import write_contexts
from pointadapterx.study.packing import pack_correctness
from pointadapterx.study.plan import read_plan
from pointadapterx.study.pooling import PooledRow, pool
from pointadapterx.study.records import Record, read_records, write_records
from pointadapterx.study.report import render_report
from pointadapterx.study.summary import summarise
from tests.study.conftest import LINEAR, make_record, refuse_changed

POOLED = '{"label": "all", "by": "columns"}'
SIZES = {"home": 100, "parts": 300}


def run(row: str, column: str, seed: int, right: np.ndarray, **changes: Any) -> Record:
    accuracy = 100.0 * float(right.mean())
    values = {
        **{"row": row, "label": row.upper(), "column": column, "replicate": str(seed), "pooled": POOLED},
        **{"test_objects": len(right), "correct": pack_correctness(right), "test_checksum": column},
        **{"overall_accuracy": accuracy, "mean_class_accuracy": accuracy},
    }
    return make_record(**{**values, **changes})


def first(count: int, total: int) -> np.ndarray:
    return np.arange(total) < count


def study(pooled: str = POOLED, **changes: Any) -> list[Record]:
    """The baseline is right in 50 of 100 and 240 of 300, x in 60 and 246, of which all but y's have two seeds."""
    right = {"linear": (50, 240), "x": (60, 246)}
    return [
        run(row, column, seed, first(count, SIZES[column]), pooled=pooled, **changes)
        for row, counts in right.items()
        for column, count in zip(SIZES, counts, strict=True)
        for seed in (0, 1)
    ]


def row_of(records: list[Record], row: str = "x", groups: dict[str, list[str]] | None = None) -> PooledRow:
    pooled = pool(records, groups or {})
    assert pooled is not None
    return next(found for found in pooled.rows if found.row == row)


def test_columns_groups_and_objects_count_alike() -> None:
    estimates = row_of(study()).estimates
    assert list(estimates) == ["columns", "objects"]
    assert estimates["columns"].score == pytest.approx((71.0, 0.0))  # of 60 and 82
    assert estimates["objects"].score.mean == pytest.approx(76.5)
    found = {name: estimate.difference for name, estimate in estimates.items()}
    assert found["columns"] is not None
    assert found["objects"] is not None
    assert found["columns"].mean == pytest.approx((10 + 2) / 2)
    assert found["objects"].mean == pytest.approx(16 / 4)
    by_groups = study('{"label": "all", "by": "groups"}')
    assert pool(by_groups, {}) is None  # without its file there are no groups
    assert next(iter(row_of(by_groups, groups={"a": ["home"], "b": ["parts"]}).estimates)) == "groups"
    assert pool([record.model_copy(update={"pooled": None}) for record in study()], {}) is None


@pytest.mark.parametrize("alike", [1, 2])
def test_the_interval_is_that_of_independent_columns(alike: int) -> None:
    """Against the formula of a weighted sum; with groups of two that agree, it is wider by √2."""
    rng = np.random.default_rng(0)
    records, variances = [], []
    for column, size in SIZES.items():
        ours, theirs = (np.repeat(rng.random(size) < p, alike) for p in (0.8, 0.7))
        groups = "; ".join(f"{i} {i + 1}" for i in range(0, size * alike, 2)) if alike == 2 else None
        records += [run("linear", column, 0, theirs, groups=groups), run("x", column, 0, ours, groups=groups)]
        variances.append(float(np.var(100.0 * (ours.astype(float) - theirs)[::alike])) / size)
    for by, shares in (("columns", (0.5, 0.5)), ("objects", (0.25, 0.75))):
        difference = row_of(records).estimates[by].difference
        assert difference is not None
        assert difference.interval is not None
        half = 1.96 * math.sqrt(sum(w * w * v for w, v in zip(shares, variances, strict=True)))
        assert (difference.interval.high - difference.interval.low) / 2 == pytest.approx(half, rel=0.05)


def test_rows_may_have_different_replicates() -> None:
    """All of both enter: seeds of two methods have nothing in common, only test objects have."""
    more = [run("x", column, 2, first(SIZES[column] // 2, SIZES[column])) for column in SIZES]
    row = row_of([*study(), *more])
    assert row.replicates == {column: ["0", "1", "2"] for column in SIZES}
    assert row.estimates["columns"].score.mean == pytest.approx((2 * 71 + 50) / 3)
    assert row.estimates["columns"].score.std is not None
    uneven = row_of([*study(), *more[:1]]).estimates["columns"]
    assert uneven.score == pytest.approx(((170 / 3 + 82) / 2, None))
    assert uneven.interval is not None


def test_a_study_that_goes_on_says_what_is_finished() -> None:
    tuning = {"kind": "tune", "row": "x", "label": "X", "column": "home", "pooled": POOLED}
    candidates = [make_record(**tuning, tuned=f'{{"train.lr": {lr}}}', best_val=50.0) for lr in (1, 2, 4)]
    candidates[2] = candidates[2].model_copy(update={"status": "missing", "best_val": None})
    records = study()
    ahead = records[-1]
    assert (ahead.row, ahead.column, ahead.replicate) == ("x", "parts", "1")
    records = [*records[:-1], ahead.model_copy(update={"status": "missing"}), *candidates]
    text = render_report(records, summarise(records), {})
    assert "- Replicates: train.seed=0, 1 (LINEAR); home: 0, 1, parts: 0 (X). A difference" in text
    assert "- Candidates tried in tuning, a column: X 2\n" in text


def test_a_row_that_lacks_a_column_is_left_out_and_named() -> None:
    alone = run("y", "home", 0, first(5, 100))
    missing = run("y", "parts", 0, first(5, 300)).model_copy(update={"status": "missing"})
    records = [*study(), alone, missing]
    pooled = pool(records, {})
    assert pooled is not None
    assert [row.row for row in pooled.rows] == ["linear", "x"]
    text = render_report(records, summarise(records), {})
    assert "- Left out, as not every column has a finished run: Y\n" in text
    assert "| Y | 5.00 | – | – | – |" in text


def test_scores_that_are_no_means_over_objects_are_pooled_by_columns() -> None:
    named = {"task": "image_segmentation", "overall_accuracy": None, "mean_class_accuracy": None, "correct": None}
    scores = '{"miou": 50.0, "macc": 60.0, "aacc": 55.0}'
    found = make_record(**named, scores=scores)
    records = [
        found.model_copy(update={"row": row, "label": row, "column": column, "pooled": POOLED})
        for row in ("linear", "x")
        for column in ("a", "b")
    ]
    row = row_of(records)
    assert list(row.estimates) == ["columns"]
    assert (row.estimates["columns"].score.mean, row.estimates["columns"].interval) == (50.0, None)
    other = [record.model_copy(update={"task": None}) if record.column == "b" else record for record in records]
    assert pool(other, {}) is None


def test_the_report_is_rebuilt_from_the_csv_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuning = {"kind": "tune", "row": "x", "label": "X", "column": "home", "most": 5, "pooled": POOLED}
    candidates = [
        make_record(**tuning, tuned=f'{{"train.lr": {lr}}}', chosen=lr == 4, best_val=50.0 + lr) for lr in (1, 2, 4)
    ]
    path = tmp_path / "results.csv"
    write_records(path, [*study(), *candidates])
    assert read_records(path)[0].pooling is not None
    assert main(["compare", "--report", str(path)]) == 0
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for part in (
        "| OA % | home | parts | all | Δ to LINEAR [95 %] |\n",
        "\n### all\n\n- Columns, and their test objects: home (100), parts (300); 400 in all\n",
        "- What decides is the first mean (mean of columns), as the study's file says: each column counts once",
        "- Beside it, all test objects: each test object counts once",
        "- Regime: rotation (all columns)\n- Protocol: validation (all columns)\n",
        "- Replicates: train.seed=0, 1\n",
        "- Candidates tried in tuning, a column: X 3\n- Not tuned here: LINEAR\n",
        "- Choices at the edge of their grids: 1, listed under tuning\n",
        "Grids are open: where the best value was the lowest or the highest, the next one was tried as well",
        "| method | runs a column | OA, mean of columns [95 %] | Δ OA to LINEAR [95 %] | OA, all test objects [95 %] |",
        "| LINEAR | 2 | 65.00 ± 0.00 [",
        "| X | 2 | 71.00 ± 0.00 [",
    ):
        assert part in text, part
    printed = capsys.readouterr().out
    assert "71.00 ± 0.00  +6.00 [+" in printed
    (table,) = summarise(read_records(path))
    column = table.pooled_column  # which is drawn
    assert column is not None
    assert [summary.label for summary in column.summaries] == ["LINEAR", "X"]
    assert column.summaries[1].difference == table.pooled.rows[1].estimates["columns"].difference


def test_a_csv_without_pooled_columns_has_no_such_field(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_records(path, [make_record()])
    assert path.read_text().splitlines()[0].endswith(",correct")
    damaged = make_record(pooled=POOLED)
    refuse_changed(tmp_path, damaged, {"pooled": '{"by": "rows"}'}, 'pooled: \'{"by": "rows"}\' is not what')


TWO = {"rotation": None, "so3": {"data.augment": "so3"}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"columns": {"rotation": None}}, "main.pooled: has one column to take the mean of; add another"),
        ({"pooled": "so3"}, "main.pooled.label: is the name of a column, 'so3'; choose another"),
        ({"pooled": {"label": "all", "by": "groups"}}, "main.pooled.by: the table has no groups; add them"),
        ({"pooled": {"label": "all", "by": "rows"}}, "pooled.by: Input should be 'columns', 'groups' or 'objects'"),
        ({"test": False, "tune": {"train.lr": [1e-3]}}, "main.pooled: has no results to compare with"),
        (
            {"replicate": {"key": "data.few_shot.fold", "values": [0, 1]}},
            "main.pooled: replicates by data.few_shot.fold have test objects of their own",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_pooled_is_refused(make_study: Callable[..., Path], changes: dict[str, Any], says: str) -> None:
    table = {"columns": TWO, "rows": {"linear": {"overrides": LINEAR}}, "pooled": "all", **changes}
    with pytest.raises(ConfigError, match=says):
        read_plan(make_study(tables={"main": table}))


def test_the_label_alone_means_columns(make_study: Callable[..., Path], tmp_path: Path) -> None:
    table = {"columns": TWO, "rows": {"linear": {"overrides": LINEAR}}, "pooled": "all"}
    plan = read_plan(make_study(tables={"main": table}))
    pooled = plan.study.tables["main"].pooled
    assert pooled is not None
    assert (pooled.label, pooled.by) == ("all", "columns")
    assert write_contexts(tmp_path, plan.study) == {}  # it is in the CSV
