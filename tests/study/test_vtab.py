"""Groups of columns, published rows and tuning under another protocol, as VTAB-1K needs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import yaml

from pointadapterx.build import build_splits
from pointadapterx.commands.main import main
from pointadapterx.config import dump_config, read_config, read_document
from pointadapterx.datasets.vtab import GROUPS, TASKS
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.study import runner
from pointadapterx.study.context import CONTEXT_FILE, read_contexts, write_contexts
from pointadapterx.study.plan import CellKey, Plan, Run, read_plan
from pointadapterx.study.records import read_records
from pointadapterx.study.schema import TableConfig, check_study
from pointadapterx.study.summary import published_means
from tests.conftest import ROOT, small_config
from tests.mechanisms import exhaustive
from tests.study.conftest import LINEAR, make_record, write_result
from tests.synthetic import write_vtab

COLUMNS = ("patch_camelyon", "eurosat", "kitti")
PUBLISHED = {
    "conditions": "They are of another backbone.",
    "rows": {
        "Full": {
            "source": "A paper, Table 1",
            "trainable": 85.84,
            "average": 70.1,
            "values": {"patch_camelyon": 60, "eurosat": 80.0, "kitti": 70.5},
        },
        "Means alone": {"source": "Another paper", "groups": {"specialized": 50.0, "structured": 61.0}},
        "Average alone": {"source": "Another paper", "average": 33.3},
    },
}
MakeStudy = Callable[..., Path]


@pytest.fixture(scope="session")
def vtab_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vtab")
    for task in COLUMNS:
        write_vtab(root, task, TASKS[task])
    return root


@pytest.fixture
def make_study(vtab_root: Path, tmp_path: Path) -> MakeStudy:
    """``make_study(key=value)``: the YAML of a study whose table's keys are replaced."""

    def make(**changes: Any) -> Path:
        config = small_config(
            "linear",
            kind="vit",
            data={"name": "vtab", "root": str(vtab_root), "variant": "kitti", "augment": "none"},
            head={"num_classes": 4},
            train={"epochs": 2},
            eval={"protocol": "last"},
        )
        (tmp_path / "base.yaml").write_text(dump_config(config))
        (tmp_path / "published.yaml").write_text(yaml.safe_dump(PUBLISHED, sort_keys=False))
        table: dict[str, Any] = {
            "columns": {task: {"data.variant": task, "head.num_classes": TASKS[task]} for task in COLUMNS},
            "groups": {"specialized": ["patch_camelyon", "eurosat"], "structured": ["kitti"]},
            "published": "published.yaml",
            "tune": {"train.lr": [1e-3, 2e-3]},
            "tuning": {"eval.protocol": "validation", "eval.every": 2},
            "rows": {"linear": {"overrides": LINEAR}, "bitfit": {"overrides": {"method.name": "bitfit"}}},
        }
        study = {
            "title": "Small",
            "config": "base.yaml",
            "runs": str(tmp_path / "runs"),
            "results": str(tmp_path / "results"),
            "replicate": {"values": [0, 1]},
            "tables": {"vtab": {key: value for key, value in (table | changes).items() if value is not None}},
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        return path

    return make


def runs_of(plan: Plan, row: str, column: str) -> tuple[list[Run], list[Run]]:
    """Tuning and final runs of a cell."""
    cell = plan.cells[CellKey("vtab", row, column)]
    tuning = [run for _, runs in plan.tuning_runs(cell) for _, run in runs]
    return tuning, [run for _, run in plan.final_runs(cell, {"train.lr": 1e-3})]


def test_tuning_takes_the_published_validation_part_and_the_result_all_images(make_study: MakeStudy) -> None:
    tuning, finals = runs_of(read_plan(make_study()), "linear", "kitti")
    assert [len(tuning), len(finals)] == [2, 2]
    for run in tuning:
        splits = build_splits(run.config)
        assert splits.val is not None
        assert {name.split("/")[1] for name in splits.train.names or ()} == {"train800"}
        assert {name.split("/")[1] for name in splits.val.names or ()} == {"val200"}
    for run in finals:
        splits = build_splits(run.config)
        assert splits.val is None
        assert len(splits.train) == 10
    assert {run.config.eval.protocol for run in finals} == {"last"}
    assert {run.config.eval.every for run in finals} == {1}
    assert not {run.name for run in tuning} & {run.name for run in finals}


def test_no_tuning_run_is_counted_as_a_result(make_study: MakeStudy) -> None:
    plan = read_plan(make_study())
    uses, undecided = plan.due({})
    assert (len(uses), undecided) == (2 * 3 * 2, 2 * 3 * 2)
    scores = dict.fromkeys(uses, 50.0)
    uses, undecided = plan.due(scores)
    assert (len(uses), undecided) == (2 * 3 * 4, 0)


def test_what_tuning_overrides_is_no_part_of_other_names(make_study: MakeStudy) -> None:
    with_tuning = runs_of(read_plan(make_study()), "linear", "kitti")[1]
    without = runs_of(read_plan(make_study(tune={}, tuning=None)), "linear", "kitti")[1]
    assert without[0].config.train.lr == 1e-3
    assert [run.name for run in with_tuning] == [run.name for run in without]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"tuning": None},
            "tuning needs a validation part, but eval.protocol=last; set it for these runs .the table's",
        ),
        ({"tuning": {"eval.protocl": "validation"}}, r"eval.protocl: unknown key; did you mean 'protocol'\?"),
        ({"tuning": {"train.lr": 1.0}}, "row 'linear': the table's tuning sets train.lr, which is tuned; remove it"),
        ({"tuning": {"train.seed": 1}}, "row 'linear': the table's tuning sets train.seed, which is repeated"),
        ({"tuning": {"protocol": "last"}}, "tuning.protocol: 'protocol' is not a config key with a dot"),
        ({"tunning": {}}, r"unknown key 'tunning'; did you mean 'tuning'\?"),
        (
            {"groups": {"a": ["kitti", "eurosat"]}, "published": None},
            "groups: column 'patch_camelyon' is in no group; add it to one$",
        ),
        (
            {"groups": {"a": list(COLUMNS), "b": ["kitti"]}, "published": None},
            "1 problem in the study\n.*study.yaml:.*groups: column 'kitti' is in groups a and b; keep one$",
        ),
        (
            {"groups": {"a": [*COLUMNS, "kity"]}, "published": None},
            r"groups.a: there is no column 'kity'; did you mean 'kitti'\? Known: patch_camelyon, eurosat, kitti$",
        ),
        ({"groups": {"a": [*COLUMNS, "kitti"]}, "published": None}, "groups.a: kitti is listed twice"),
        ({"groups": {"a": []}, "published": None}, "groups.a: needs at least 1 item"),
        ({"test": False, "published": None}, "vtab.groups: has no results to compare with, as test is false"),
        (
            {
                "test": False,
                "groups": None,
                "published": {"conditions": "", "rows": {"A": {"source": "", "average": 5}}},
            },
            "1 problem in the study\n.*vtab.published: has no results to compare with, as test is false",
        ),
        (
            {"published": "nowhere.yaml"},
            r"study.yaml:.*vtab.published: .*nowhere.yaml does not exist; name a YAML file",
        ),
        ({"published": 5}, "vtab.published: Input should be a valid dictionary"),
        ({"published": {"rows": {"A": {"source": "x", "average": 5}}}}, "published.conditions: is required"),
    ],
)
def test_mistakes_are_refused_with_the_way_out(make_study: MakeStudy, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        read_plan(make_study(**changes))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"average": 5}, "A.source: is required"),
        ({"source": "x"}, "A.values: are missing, and so are groups and average; give one of them"),
        ({"source": "x", "values": {"kity": 5}}, r"A.values: there is no column 'kity'; did you mean 'kitti'\?"),
        (
            {"source": "x", "values": {"kitti": 101}},
            "A.values.kitti: Input should be less than or equal to 100, not 101",
        ),
        ({"source": "x", "values": {"kitti": "5"}}, "A.values.kitti: Input should be a valid number, not '5'"),
        (
            {"source": "x", "groups": {"struct": 5}},
            r"A.groups: there is no group 'struct'; did you mean 'structured'\?",
        ),
        ({"source": "x", "values": {"kitti": 5}, "groups": {"structured": 5}}, "A.groups.structured: is computed from"),
        ({"source": "x", "mean": 5}, "A: unknown key 'mean'"),
    ],
)
def test_mistakes_of_published_rows_are_told_with_their_file(
    make_study: MakeStudy, tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    study = make_study()
    (tmp_path / "published.yaml").write_text(yaml.safe_dump({"conditions": "None", "rows": {"A": row}}))
    with pytest.raises(ConfigError, match=rf"1 problem in the study\n.*published\.yaml:\d+: .*published\.rows\.{says}"):
        read_plan(study)


# Right ones of 40 test objects, by column, of each seed.
CORRECT = {"patch_camelyon": (20, 24), "eurosat": (10, 10), "kitti": (40, 30)}


@pytest.fixture
def trained(make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The results of a study whose trainings are replaced; the last run of bitfit fails."""

    def train(run: Run, folder: Path) -> list[str]:
        seed = run.config.train.seed
        if (run.config.method.name, run.config.data.variant, seed) == ("bitfit", "kitti", 1):
            return ["-c", "print('error: out of luck'); raise SystemExit(2)"]
        write_result(
            tmp_path / "runs", run, val=1e4 * run.config.train.lr, correct=CORRECT[run.config.data.variant][seed]
        )
        return ["-c", ""]

    monkeypatch.setattr(runner, "training_command", train)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    assert main(["compare", "--config", str(make_study()), "processes=4"]) == 1
    return tmp_path / "results"


OVERVIEW = [
    "| OA % | trainable, M | patch_camelyon | eurosat | kitti | specialized | structured | mean of groups "
    "| printed average |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    # 37.5 and 42.5; 100 and 75; 68.75 and 58.75
    "| linear | 0.00 | 55.00 ± 7.07 | 25.00 ± 0.00 | 87.50 ± 17.68 | 40.00 ± 3.54 | 87.50 ± 17.68 | 63.75 ± 7.07 | – |",
    "| bitfit | 0.00 | 55.00 ± 7.07 | 25.00 ± 0.00 | 100.00 | – | – | – | – |",
    "| Full, published [1] | 85.84 | 60.0 | 80.0 | 70.5 | 70.00 | 70.50 | 70.25 | 70.1 |",
    "| Means alone, published [2] | – | – | – | – | 50.00 | 61.00 | 55.50 | – |",
    "| Average alone, published [2] | – | – | – | – | – | – | – | 33.3 |",
]


def test_the_report_has_means_of_groups_and_published_rows(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (trained / "report.md").read_text(encoding="utf-8")
    assert "\n".join(OVERVIEW) in text
    assert "Groups of columns: specialized of 2, structured of 1. Their means are taken replicate by replicate" in text
    assert "not results of this study.** They are of another backbone. Accuracies" in text
    assert "Source: [1] A paper, Table 1; [2] Another paper." in text
    assert (
        "train.seed=0. Unlike the tested runs, these are of the protocol validation (published validation part" in text
    )
    assert "validation part eval.select=overall_accuracy eval.every=2)." in text
    assert "val_fraction" not in text
    capsys.readouterr()
    assert main(["compare", "--report", str(trained / "results.csv")]) == 0
    printed = capsys.readouterr().out.splitlines()
    start = printed.index("vtab")
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in OVERVIEW if "---" not in line]
    assert [line.split("  ")[0] for line in printed[start + 1 : start + 7]] == [row[0] for row in cells]
    assert [line.split()[-1] for line in printed[start + 1 : start + 7]] == [row[-1].split()[-1] for row in cells]


def test_the_report_is_the_same_from_its_files(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("results.csv", CONTEXT_FILE):
        shutil.copy(trained / name, copy)
    assert main(["compare", "--report", str(copy / "results.csv")]) == 0
    assert (copy / "report.md").read_bytes() == (trained / "report.md").read_bytes()
    (copy / CONTEXT_FILE).unlink()
    assert main(["compare", "--report", str(copy / "results.csv")]) == 0
    text = (copy / "report.md").read_text(encoding="utf-8")
    assert "| OA % | patch_camelyon | eurosat | kitti |\n" in text
    assert "published [" not in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", r"cannot be read \(.*\)"),
        ("[]", "Input should be a valid dictionary"),
        ('{"other": {"groups": {"a": ["kitti"]}}}', "other: is no table with results in the CSV beside it"),
        ('{"vtab": {"groups": {"a": ["kitti"]}}}', "vtab.groups: column 'patch_camelyon' is in no group"),
        ('{"vtab": {"group": {}}}', "vtab: unknown key 'group'"),
    ],
)
def test_a_damaged_file_beside_the_csv_is_one_line(tmp_path: Path, content: str, says: str) -> None:
    records = [make_record(table="vtab", column=column) for column in COLUMNS]
    (tmp_path / CONTEXT_FILE).write_text(content)
    with pytest.raises(DataError, match=rf"tables\.json: {says}.*; write it again with the study, or remove it$"):
        read_contexts(tmp_path, records)


def test_a_study_without_groups_leaves_no_file(make_study: MakeStudy, tmp_path: Path) -> None:
    records = [make_record(table="vtab", column=column) for column in COLUMNS]
    written = write_contexts(tmp_path, check_study(read_document(make_study())))
    assert read_contexts(tmp_path, records) == written
    assert written["vtab"].groups["structured"] == ["kitti"]
    assert write_contexts(tmp_path, check_study(read_document(make_study(groups=None, published=None)))) == {}
    assert not (tmp_path / CONTEXT_FILE).exists()
    assert read_contexts(tmp_path, records) == {}


@pytest.fixture(scope="module")
def shipped() -> TableConfig:
    return check_study(read_document(ROOT / "cfgs" / "study" / "vtab.yaml")).tables["vtab"]


def test_the_shipped_study_has_every_task_in_its_group(shipped: TableConfig) -> None:
    assert list(shipped.columns) == list(TASKS)
    assert shipped.groups == {group: list(tasks) for group, tasks in GROUPS.items()}
    for task, overrides in shipped.columns.items():
        assert overrides == {"data.variant": task}
        assert read_config("vtab/linear", [f"data.variant={task}"]).head.num_classes == TASKS[task]


def test_the_shipped_study_trains_the_shipped_configs(shipped: TableConfig) -> None:
    """Method by method; Adapter of rank 64 has no config of its own."""
    base = ROOT / "cfgs" / "vtab" / "linear.yaml"
    for name, row in shipped.rows.items():
        overrides = [f"{key}={json.dumps(value)}" for key, value in row.overrides.items()]
        expected = read_config(f"vtab/{name.removesuffix('_64')}", ["method.rank=64"] if name == "adapter_64" else [])
        assert read_config(base, overrides) == expected
        assert len((row.tune or shipped.tune or {})["train.lr"]) == 3
    tuning = read_config(base, [f"{key}={value}" for key, value in shipped.tuning.items()])
    assert (tuning.eval.protocol, tuning.eval.every) == ("validation", tuning.train.epochs)
    assert read_config(base).eval.protocol == "last"


def test_printed_averages_are_means_of_groups(shipped: TableConfig) -> None:
    assert shipped.published is not None
    assert len(shipped.published.rows) == 12
    apart = []
    for label, row in shipped.published.rows.items():
        assert list(row.values) == list(TASKS)
        _, overall = published_means(row, shipped.groups)
        assert overall is not None
        assert row.average is not None
        assert overall == pytest.approx(row.average, abs=0.11)
        assert 2.2 < overall - mean(row.values.values()) < 4.71
        if round(overall, 1) != row.average:
            apart.append((label, round(overall, 2)))
    assert apart == [("full fine-tuning", 68.97), ("linear probe", 57.68), ("LoRA", 74.6)]


@exhaustive  # other studies with real runs: tests/study/test_runner.py
def test_a_whole_study_on_small_images(make_study: MakeStudy, tmp_path: Path) -> None:
    rows = {"linear": {"overrides": LINEAR}}
    columns = {"kitti": {"data.variant": "kitti", "head.num_classes": 4}}
    study = make_study(rows=rows, columns=columns, groups={"structured": ["kitti"]}, published=None)
    assert main(["compare", "--config", str(study), "processes=2"]) == 0
    records = read_records(tmp_path / "results" / "results.csv")
    assert [record.kind for record in records] == ["tune", "tune", "final", "final"]
    assert [record.best_val is None for record in records] == [False, False, True, True]
    assert {record.selection for record in records[:2]} == {
        "published validation part eval.select=overall_accuracy eval.every=2"
    }
    metrics = [json.loads((tmp_path / "runs" / str(r.run) / "run" / "metrics.json").read_text()) for r in records]
    assert [m["protocol"].split(":")[0] for m in metrics] == ["validation"] * 2 + ["last"] * 2
