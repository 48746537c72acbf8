"""Report and plots come from the CSV, are the same each time, and refuse what cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pointadapterx.commands.main import main
from pointadapterx.errors import ConfigError
from pointadapterx.study.packing import pack_correctness
from pointadapterx.study.plots import COSTS, GAP, _draw, spread_apart
from pointadapterx.study.records import Record, write_records
from pointadapterx.study.report import render_overview, render_report
from pointadapterx.study.summary import summarise
from pointadapterx.study.tuning_report import edge_warnings
from tests.study.conftest import make_record


def run(row: str, seed: int, correct: int, total: int = 100, **changes: Any) -> Record:
    """A final line of ``row`` whose first ``correct`` of ``total`` objects are right."""
    bits = pack_correctness(np.arange(total) < correct)
    accuracy = 100.0 * correct / total
    values = {"row": row, "label": row.upper(), "replicate": str(seed), "correct": bits, "test_objects": total}
    return make_record(**{**values, "overall_accuracy": accuracy, "mean_class_accuracy": accuracy, **changes})


def tuning(value: float, score: float, chosen: bool) -> Record:
    return make_record(
        kind="tune", row="x", label="X", tuned=f'{{"train.lr": {value}}}', best_val=score, chosen=chosen, correct=None
    )


RECORDS = [
    run("linear", 0, 60),
    run("linear", 1, 64),
    tuning(1e-3, 50.0, False),
    tuning(2e-3, 60.0, True),
    tuning(4e-3, 55.0, False),
    run("x", 0, 70, trainable=50_000, tuned='{"train.lr": 0.002}'),
    run("x", 1, 74, trainable=50_000, tuned='{"train.lr": 0.002}'),
]


def report(records: list[Record]) -> str:
    return render_report(records, summarise(records), {})


def test_a_single_column_is_printed_as_well() -> None:
    """In the report its own table says the same."""
    (table,) = summarise(RECORDS)
    assert render_overview(table) == ["Main", "OA %    rotation", "LINEAR  62.00 ± 2.83", "X       72.00 ± 2.83"]
    assert "| OA % |" not in report(RECORDS)
    assert render_overview(replace(table, columns=())) == []


def test_means_spreads_and_differences(tmp_path: Path) -> None:
    (table,) = summarise(RECORDS)
    linear, x = table.columns[0].summaries
    assert linear.first_score is not None
    assert (linear.first_score.mean, linear.difference) == (62.0, None)
    assert linear.first_score.std == pytest.approx(8**0.5)
    assert x.difference is not None
    assert x.difference.mean == pytest.approx(10.0)
    assert x.difference.p is None
    assert 0 < x.difference.interval.low < 10 < x.difference.interval.high
    text = report(RECORDS)
    assert "| LINEAR | 2 | 62.00 ± 2.83 [" in text
    assert "| baseline |" in text
    assert "| +10.00 [+" in text
    assert "| X | rotation | train.lr=0.002 | 60.00 | chosen |" in text


def test_fit_and_routing_are_told_where_runs_tell_them() -> None:
    fit = {"train_accuracy": 90.0, "best_val": 70.0}
    routing = {"routing_min_load": 12.0, "routing_entropy": 80.0, "routing_switched": 30.0}
    other = {"train_accuracy": 80.0, "best_val": 71.0, "routing_min_load": 8.0}
    records = [
        run("linear", 0, 60, **fit),
        run("x", 0, 70, **fit, **routing),
        run("x", 1, 70, **{**routing, **other}),
        run("y", 0, 70),
    ]
    text = report(records)
    assert "OA in training is the last epoch's" in text
    assert "Routing in the last epoch" in text
    assert "| LINEAR | 90.0 | 70.0 | – | – | – |" in text
    assert "| X | 85.0 | 70.5 | 10.0 | 80.0 | 30.0 |" in text
    assert "| Y | 8" not in text
    without_routing = report(records[:1])
    assert "| method | training OA | validation score |" in without_routing
    assert "Routing in the last epoch" not in without_routing
    without_validation = report([run("x", 0, 70, train_accuracy=90.0)])
    assert "| method | training OA |\n" in without_validation
    assert "validation score" not in without_validation
    assert "training OA" not in report(records[3:])


def test_a_table_without_a_test_tells_its_validation_scores_alone() -> None:
    alone = tuning(1e-3, 50.0, True).model_copy(update={"table": "recipe", "table_title": "Recipes", "tested": False})
    text = report([run("x", 0, 70), alone])
    assert text.count("OA [95 %]") == 1
    assert "## Recipes\n\n### Tuning\n" in text
    assert "| X | rotation | train.lr=0.001 | 50.00 |  |" in text  # a single value was not chosen


def test_one_run_each_has_an_exact_p() -> None:
    records = [run("linear", 0, 60), run("x", 0, 70)]
    (table,) = summarise(records)
    difference = table.columns[0].summaries[1].difference
    assert difference is not None
    assert difference.p == pytest.approx(2 * 0.5**10)
    assert ", p = 0.002 |" in report(records)


def test_objects_in_groups_are_resampled_together_and_have_no_p() -> None:
    groups = "; ".join(f"{i} {i + 1}" for i in range(0, 100, 2))
    records = [run("linear", 0, 60), run("x", 0, 70)]
    grouped = [record.model_copy(update={"groups": groups}) for record in records]
    intervals = []
    for lines in (records, grouped):
        (table,) = summarise(lines)
        x = table.columns[0].summaries[1]
        assert x.interval is not None
        assert x.difference is not None
        assert (x.difference.p is None) is (lines is grouped)
        intervals.append(x.interval.high - x.interval.low)
    assert intervals[1] > 1.2 * intervals[0]  # pairs that agree count once: wider by √2
    assert "- Test objects: 100 in 50 groups" in report(grouped)
    assert "- Test objects: 100\n" in report(records)


def test_folds_are_compared_fold_by_fold() -> None:
    def fold(row: str, number: int, correct: int) -> Record:
        return run(row, number, correct, replicate_key="data.few_shot.fold", test_checksum=f"fold {number}")

    records = [fold("linear", i, 60 + i) for i in range(4)] + [fold("x", i, 65 + i) for i in range(1, 4)]
    (table,) = summarise(records)
    difference = table.columns[0].summaries[1].difference
    assert difference is not None
    assert difference.mean == pytest.approx(5.0)
    assert difference.interval == pytest.approx((5.0, 5.0))


def test_unfinished_and_failed_runs_are_told() -> None:
    missing = make_record(row="x", label="X", replicate="2", status="missing", run=None)
    failed = make_record(row="x", label="X", replicate="3", status="failed", error="no | memory", run="x-1")
    text = report([*RECORDS, missing, failed])
    assert "| X | 2 of 4 |" in text
    assert "| x-1 | X | rotation | final | failed | no &#124; memory |" in text
    assert "| – | – |" in report([missing])


def test_several_columns_have_an_overview() -> None:
    text = report([run("linear", 0, 60), run("linear", 0, 70, column="so3", regime="so3")])
    assert "| OA % | rotation | so3 |\n| --- | --- | --- |\n| LINEAR | 60.00 | 70.00 |" in text


@pytest.mark.parametrize(("scores", "warned"), [((50, 60, 55), False), ((50, 55, 60), True), ((60, 55, 50), True)])
def test_a_choice_at_the_edge_of_the_grid_is_pointed_out(scores: tuple[float, ...], warned: bool) -> None:
    lines = [tuning(lr, score, score == 60) for lr, score in zip((1e-3, 2e-3, 4e-3), scores, strict=True)]
    records = [*lines, run("x", 0, 70)]
    assert bool(edge_warnings(summarise(records))) is warned
    assert ("is at the edge of its grid (0.001, 0.002, 0.004)" in report(records)) is warned


@pytest.mark.parametrize("values", [(False, True), ("low", "high"), (0.0, 0.2)])
def test_booleans_words_and_pairs_have_no_edge(values: tuple[object, object]) -> None:
    lines = [
        tuning(0, 50 + i, i == 1).model_copy(update={"tuned": json.dumps({"method.x": value})})
        for i, value in enumerate(values)
    ]
    assert edge_warnings(summarise([*lines, run("x", 0, 70)])) == []


def test_values_of_another_cell_are_told_as_such() -> None:
    own = run("linear", 0, 60, tuned=json.dumps({"train.lr": 0.1}))
    taken = run("x", 0, 70, tuned=json.dumps({"train.lr": 0.2}), tuned_by="main · x · rotation")
    assert "| train.lr=0.1 |" in report([own, taken])
    assert "| train.lr=0.2 (of main · x · rotation) |" in report([own, taken])


def test_the_tuning_table_holds_means_over_replicates_and_what_diverged() -> None:
    lines = [
        tuning(1e-3, 50.0, True),
        tuning(1e-3, 60.0, True).model_copy(update={"replicate": "1"}),
        tuning(2e-3, 70.0, False),
        tuning(2e-3, 0.0, False).model_copy(update={"replicate": "1", "status": "diverged", "best_val": None}),
    ]
    text = report([*lines, run("x", 0, 70)])
    assert "| X | rotation | train.lr=0.001 | 55.00 ± 7.07 | chosen |" in text
    assert "| X | rotation | train.lr=0.002 | diverged |  |" in text
    assert "train.seed=0, 1; scores are mean ± standard deviation." in text
    assert "## Failed runs" not in text
    final = run("x", 1, 70, status="diverged", run="x-2", error="the loss is not finite")
    assert "| x-2 | X | rotation | final | diverged | the loss is not finite |" in report([run("x", 0, 70), final])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"regime": "scale_translate"}, "regime 'rotation' .row 'linear'. and 'scale_translate' .row 'x'."),
        ({"selection": "eval.every=2"}, "selection 'not told' .row 'linear'. and 'eval.every=2' .row 'x'."),
        ({"data": "ldraw20 5-way 1-shot"}, "test set 'ldraw20 abc' .row 'linear'. and 'ldraw20 5-way 1-shot abc'"),
        ({"protocol": "published"}, "protocol 'validation' .row 'linear'. and 'published' .row 'x'."),
        ({"test_checksum": "other"}, "test set 'ldraw20 abc' .row 'linear'. and 'ldraw20 other' .row 'x'."),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"table 'main', column 'rotation': {says}"):
        summarise([run("linear", 0, 60), run("x", 0, 70, **changes)])
    summarise([run("linear", 0, 60), run("x", 0, 70, column="another", **changes)])


def test_the_same_csv_gives_the_same_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    contents = []
    for name in "ab":
        write_records(tmp_path / name / "results.csv", RECORDS)
        assert main(["compare", "--report", str(tmp_path / name / "results.csv")]) == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    names = {f"main-{cost}.{kind}" for cost in ("parameters", "time", "memory") for kind in ("png", "svg")}
    assert set(contents[0]) == names | {"results.csv", "report.md"}
    assert "![main-parameters.png](main-parameters.png)" in contents[0]["report.md"].decode()


def test_without_matplotlib_the_report_is_written_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    write_records(tmp_path / "results.csv", RECORDS)
    assert main(["compare", "--report", str(tmp_path / "results.csv")]) == 0
    assert "pip install matplotlib" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"results.csv", "report.md"}


def test_wrong_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--config", str(tmp_path / "no.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        main(["compare", "--report", "a.csv", "train.lr=1"])
    assert "--report reads a CSV as it is" in capsys.readouterr().err


def test_markers_that_would_hide_one_another_are_set_apart() -> None:
    places, heights = np.array([100.0, 101.0, 99.0, 100.5, 50.0]), np.array([10.0, 11.0, 9.0, 40.0, 10.0])
    found = spread_apart(places, heights)
    assert found.tolist() == pytest.approx([100, 100 + GAP, 100 - GAP, 100.5, 50])  # the fourth is far above
    rng = np.random.default_rng(0)
    places, heights = rng.uniform(0, 60, 30), rng.uniform(0, 60, 30)
    found = spread_apart(places, heights)
    near = (np.abs(found[:, None] - found) < GAP - 1e-6) & (np.abs(heights[:, None] - heights) < GAP)
    assert np.array_equal(near, np.eye(30, dtype=bool))


def test_plots_hide_no_marker_and_their_names_are_text() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(5, 4))
    same = [run(row, 0, 70, trainable=50_000 + i, label=f"${row}$\x1b") for i, row in enumerate(("linear", "x", "_y"))]
    (table,) = summarise(same)
    summaries = list(table.columns[0].summaries)
    _draw(figure, [(table.columns[0], summaries)], COSTS[0], [summary.row for summary in summaries], "$a_b$")
    figure.canvas.draw()
    centres = [line for line in figure.axes[0].lines if line.get_linestyle() == "None" and line.get_marker() in "os^"]
    seen = [line.get_transform().transform(line.get_xydata()[0])[0] * 72 / figure.dpi for line in centres]
    assert np.diff(sorted(seen)).min() > GAP - 0.01
    assert len(figure.axes[0].texts) == 2 + 1  # lines to the true places of those that were moved, and the remark
    assert figure.legends[0].get_texts()[0].get_text() == r"\$linear\$\x1b"


def test_names_write_nothing_into_the_report() -> None:
    text = report([run("x", 0, 70, label="<b>|[l](u)", column="*y*", table_title="`z`", baseline=None)])
    assert "| \\<b\\>&#124;\\[l\\](u) | 1 |" in text
    assert "### \\*y\\*" in text
    assert "## \\`z\\`" in text
