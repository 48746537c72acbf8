"""From YAML to runs: inheritance, tuning, identity, and what is refused before anything is trained."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pointadapterx.building.lists import parts_of, read_list
from pointadapterx.config import read_config, read_document
from pointadapterx.errors import ConfigError
from pointadapterx.sections import TrainConfig
from pointadapterx.study.grids import OpenValues, most_candidates, next_candidate, reach, starts
from pointadapterx.study.identity import run_name
from pointadapterx.study.plan import CellKey, Plan, read_plan
from pointadapterx.study.schema import Grid, check_study
from tests.conftest import ROOT, small_config
from tests.study.conftest import LINEAR
from tests.synthetic import write_ldraw20

MakeStudy = Callable[..., Path]


def table(rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"main": {"columns": {"rotation": None}, "rows": rows, **changes}}


def cell(plan: Plan, row: str, column: str = "rotation", table: str = "main") -> Any:
    return plan.cells[CellKey(table, row, column)]


def tuning_names(plan: Plan, cell: Any) -> list[str]:
    return [run.name for _, runs in plan.tuning_runs(cell) for _, run in runs]


def test_final_runs_wait_for_the_grid_and_reuse_its_winner(plan: Plan) -> None:
    tuned = cell(plan, "dapt_x")
    names = tuning_names(plan, tuned)
    assert plan.due({})[1] == 1  # of two final runs one will be the winner itself
    assert plan.chosen(tuned, dict.fromkeys(names[:2], 50.0)) is None
    scores = dict(zip(names, (50.0, 70.0, 60.0), strict=True))
    assert plan.chosen(tuned, scores) == {"train.lr": 2e-3}
    finals = plan.final_runs(tuned, {"train.lr": 2e-3})
    assert finals[0][1].name == names[1]
    uses, undecided = plan.due(scores)
    assert undecided == 0
    assert len(uses) == 2 + 3 + 1


def test_tables_come_one_by_one_and_the_first_replicate_of_every_row_before_any_second(make_study: MakeStudy) -> None:
    rows = {"a": {"overrides": LINEAR}, "b": {"overrides": LINEAR, "tune": {"train.lr": [1e-4, 2e-4]}}}
    changed = {row: {**content, "overrides": {**LINEAR, "train.epochs": 2}} for row, content in rows.items()}
    plan = read_plan(make_study(tables={**table(rows), "second": table(changed)["main"]}))
    scores = {name: 50.0 for key in plan.cells for name in tuning_names(plan, plan.cells[key])}
    uses, _ = plan.due(scores)
    order = [(use.cell.key.table, use.cell.key.row, use.final, use.values["train.seed"]) for use in uses.values()]
    expected = [("b", True, 0), ("b", False, 0), ("a", True, 0), ("a", True, 1), ("b", True, 1)]
    assert order == [(name, *run) for name in ("main", "second") for run in expected]


def test_a_table_without_a_test_only_tunes(make_study: MakeStudy) -> None:
    rows = {"a": {"overrides": LINEAR, "tune": {"train.lr": [1e-4, 2e-4]}}}
    plan = read_plan(make_study(tables=table(rows, test=False)))
    scores = dict.fromkeys(tuning_names(plan, cell(plan, "a")), 50.0)
    for known in ({}, scores):
        uses, undecided = plan.due(known)
        assert [use.final for use in uses.values()] == [False, False]
        assert undecided == 0
    with pytest.raises(ConfigError, match="row 'a': nothing is left to do, as test is false and nothing is tuned"):
        read_plan(make_study(tables=table({"a": {"overrides": LINEAR}}, test=False)))


def test_auto_is_the_same_precision_on_every_machine(make_study: MakeStudy) -> None:
    plans = [read_plan(make_study(overrides={"train.precision": name})) for name in ("auto", "fp32", "bf16")]
    auto, fp32, bf16 = ({use.run.name for use in plan.due({})[0].values()} for plan in plans)
    assert auto == fp32
    assert not auto & bf16


def test_equal_scores_choose_the_first_of_the_grid(plan: Plan) -> None:
    tuned = cell(plan, "dapt_x")
    scores = dict.fromkeys(tuning_names(plan, tuned), 50.0)
    assert plan.chosen(tuned, scores) == {"train.lr": 1e-3}


def test_the_documented_example_and_the_shipped_studies_are_studies(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "studies.md").read_text(), re.DOTALL)
    (tmp_path / "documented.yaml").write_text(block)
    shipped = [path for path in (ROOT / "cfgs" / "study").glob("*.yaml") if not path.stem.endswith("_published")]
    for path in (tmp_path / "documented.yaml", *shipped):
        assert check_study(read_document(path)).tables


@pytest.mark.parametrize("name", ["published_size", "claim2d"])
def test_studies_of_a_claim_say_before_any_result_what_decides(name: str) -> None:
    """A pooled mean, equal budgets for all rows, and as many seeds of the baseline as of what it is compared with."""
    study = check_study(read_document(ROOT / "cfgs" / "study" / f"{name}.yaml"))
    table = next(table for table in study.tables.values() if table.test)
    assert table.pooled is not None
    tuned_in = {id(row): table for row in table.rows.values()}
    rows = list(table.rows.values())
    for place, row in enumerate(rows):
        if row.like is not None:  # has the values of another table's row
            other = study.tables[row.like.table or ""]
            rows[place] = other.rows[row.like.row]
            tuned_in[id(rows[place])] = other
    grids = [row.tune or tuned_in[id(row)].tune or study.tune for row in rows]
    values = [tried for grid in grids for tried in grid.values()]
    assert all(isinstance(tried, OpenValues) for tried in values)
    assert len({(len(tried.start), tried.most) for tried in values if isinstance(tried, OpenValues)}) == 1
    ours = "dapt_x" if name == "published_size" else "adaptformer_x"
    assert table.rows[ours].replicates == table.rows["full"].replicates is not None


def test_home_of_a_study_is_the_one_that_can_be_had() -> None:
    study = check_study(read_document(ROOT / "cfgs" / "study" / "published_size.yaml"))
    parts = {name: parts_of(read_list(name)) for name in ("ldraw20", "home", "electronics")}
    assert sum(len(part["test"]) for part in parts.values()) == 1589
    for column, overrides in study.tables["methods"].columns.items():
        labels = overrides.get("data.train_size", len(parts[column]["train"]))
        steps = 0.8 * labels * overrides.get("train.epochs", study.overrides["train.epochs"]) / 32
        assert steps == pytest.approx({"ldraw20": 830, "home": 360, "electronics": 400}[column], rel=0.05), column
    assert "data.root" not in study.tables["methods"].columns["home"]


def test_several_keys_make_a_grid(make_study: MakeStudy) -> None:
    plan = read_plan(make_study(tables=table({"x": {"tune": {"train.lr": [1e-3, 2e-3], "method.rank": [2, 4]}}})))
    assert len(cell(plan, "x").candidates) == 4
    assert cell(plan, "x").candidates[1] == {"train.lr": 1e-3, "method.rank": 4}


def tune_all(plan: Plan, score: Callable[[Any], float]) -> tuple[list[dict[str, Any]], Any]:
    """What row x tries where each run has the score of its config, and what is chosen."""
    scores: dict[str, float] = {}
    while new := [use for name, use in plan.due(scores)[0].items() if name not in scores]:
        assert all(plan.chosen(use.cell, scores) is None for use in new if not use.final)
        scores |= {use.run.name: score(use.run.config) for use in new}
    return [candidate for candidate, _ in plan.tuning_runs(cell(plan, "x"), scores)], plan.chosen(
        cell(plan, "x"), scores
    )


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1.5e-3, [1e-3, 2e-3, 4e-3]),  # within
        (8e-3, [1e-3, 2e-3, 4e-3, 8e-3, 0.016]),
        (3e-4, [1e-3, 2e-3, 4e-3, 5e-4, 2.5e-4, 1.25e-4]),
        (1.0, [1e-3, 2e-3, 4e-3, 8e-3, 0.016, 0.032]),  # as many as may be
    ],
)
def test_an_open_grid_goes_on_where_the_best_value_is_its_edge(
    make_study: MakeStudy, best: float, tried: list[float]
) -> None:
    rows = {"x": {"tune": {"train.lr": {"start": [1e-3, 2e-3, 4e-3], "most": 6}}}}
    plan = read_plan(make_study(tables=table(rows), replicate={"values": [0]}))
    found, chosen = tune_all(plan, lambda config: -abs(math.log(config.train.lr / best)))
    assert [candidate["train.lr"] for candidate in found] == tried
    assert chosen == {"train.lr": min(tried, key=lambda lr: abs(math.log(lr / best)))}
    assert tune_all(plan, lambda config: -math.inf) == (cell(plan, "x").candidates, None)  # all of them diverged


def test_of_several_keys_the_best_candidate_goes_on_along_the_open_one() -> None:
    grid: Grid = {"a.rank": OpenValues(start=[2, 4], most=4), "a.scale": [0.1, 1.0]}
    tried = starts(grid)
    assert most_candidates(grid) == 4 + 2
    tried.append(next_candidate(grid, tried, tried[3]))
    assert tried[-1] == {"a.rank": 8, "a.scale": 1.0}
    assert next_candidate(grid, tried, tried[2]) is None  # rank 4 is within now
    assert next_candidate(grid, tried, tried[0]) == {"a.rank": 1, "a.scale": 0.1}
    assert [candidate["a.rank"] for candidate in reach(grid)] == [8, 16, 1]  # half of a rank is none


def test_a_row_that_is_like_another_takes_its_overrides_and_tuned_values(make_study: MakeStudy) -> None:
    rows = {
        "x": {"overrides": {"method.rank": 2}},
        "ablation": {"like": "x", "overrides": {"method.prompts": False, "head.pools": ["cls"]}},
        "untuned": {"tune": {}},
    }
    plan = read_plan(make_study(tables=table(rows, tune={"train.lr": [1e-3, 2e-3]})))
    ablation = cell(plan, "ablation")
    assert ablation.tuned_by == CellKey("main", "x", "rotation")
    assert ablation.candidates == []
    ((_, run), _) = plan.final_runs(ablation, {"train.lr": 2e-3})
    assert (run.config.method.rank, run.config.method.prompts, run.config.train.lr) == (2, False, 2e-3)
    assert cell(plan, "untuned").tuned_by is None


def test_a_row_may_be_like_one_of_another_table_and_column(make_study: MakeStudy) -> None:
    tables = table({"x": {"tune": {"train.lr": [1e-3, 2e-3]}}})
    tables["other"] = {
        "columns": {"so3": {"data.augment": "so3"}},
        "rows": {"x": {"like": {"table": "main", "row": "x", "column": "rotation"}}},
        "replicate": {"key": "eval.split_seed", "values": [5]},
    }
    other = cell(read_plan(make_study(tables=tables)), "x", "so3", "other")
    assert other.tuned_by == CellKey("main", "x", "rotation")
    assert list(other.values) == [5]


def test_the_same_run_in_two_tables_is_one(make_study: MakeStudy) -> None:
    rows = {"linear": {"overrides": LINEAR}}
    tables = table(rows) | {"again": table(rows)["main"]}
    uses, _ = read_plan(make_study(tables=tables)).due({})
    assert len(uses) == 2


@pytest.mark.parametrize(("config", "name"), [("demo", "dapt_x-90c5545fa53f"), ("demo_linear", "linear-485cf37d4b6e")])
def test_runs_of_earlier_versions_keep_their_names(config: str, name: str) -> None:
    assert run_name(read_config(config)) == name


def test_identity_is_of_content_not_of_location(tmp_path: Path) -> None:
    for name, per_class in (("a", 3), ("b", 3), ("c", 4)):
        write_ldraw20(tmp_path / name, train_per_class=per_class, test_per_class=1, num_points=160)
    names = {name: run_name(small_config(data={"root": str(tmp_path / name)})) for name in "abc"}
    assert names["a"] == names["b"] != names["c"]
    config = small_config(data={"root": str(tmp_path / "a")}, train={"seed": 1})
    assert run_name(config) not in names.values()


def test_identity_ignores_optional_keys_that_are_not_set(study_data: Path) -> None:
    config = small_config(data={"root": str(study_data)})
    name = run_name(config)

    class Later(TrainConfig):
        a_key_of_a_later_version: int | None = None

    assert run_name(replace(config, train=Later.model_validate(config.train.model_dump()))) == name


def test_identity_follows_the_weights_content(study_data: Path, tmp_path: Path) -> None:
    names = []
    for path, content in (("a.pth", b"1"), ("b.pth", b"1"), ("c.pth", b"2")):
        (tmp_path / path).write_bytes(content)
        config = small_config(data={"root": str(study_data)}, backbone={"weights": str(tmp_path / path)})
        names.append(run_name(config))
    assert names[0] == names[1] != names[2]


def test_overrides_of_the_command_line(make_study: MakeStudy) -> None:
    plan = read_plan(make_study(), ["train.batch_size=4", "processes=3"])
    assert plan.study.processes == 3
    assert cell(plan, "linear").overrides["train.batch_size"] == 4
    with pytest.raises(ConfigError, match="did you mean 'processes'"):
        read_plan(make_study(), ["proceses=3"])
    with pytest.raises(ConfigError, match="override 'train=5' is not of the form"):
        read_plan(make_study(), ["train=5"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"titel": 1}, r"study.yaml.*study: unknown key 'titel'; did you mean 'title'\?"),
        ({"title": "red \x1b[31m"}, r"title: 'red \\x1b\[31m' holds a control character; remove it"),
        ({"tables": table({"x\u202e": None})}, r"tables.main.rows: 'x\\u202e' holds a control character"),
        ({"processes": "2"}, "processes: Input should be a valid integer, not '2'"),
        ({"processes": 0}, "processes: Input should be greater than or equal to 1"),
        ({"tables": table({"x": {"overide": {}}})}, r"tables.main.rows.x: .*did you mean 'overrides'\?"),
        ({"tables": table({"x": None}, baseline="y")}, r"tables.main.baseline: there is no row 'y'"),
        ({"tables": table({"x": {"like": "y"}})}, r"rows.x.like: there is no row 'y'"),
        ({"tables": table({"x": {"like": {"row": "x", "table": "man"}}})}, r"no table 'man'; did you mean 'main'\?"),
        ({"tables": table({"x": {"like": "y"}, "y": {"like": "x"}})}, "like each other: x -> y -> x"),
        ({"tables": table({"x": {"tune": {"train.lr": []}}})}, r"tune.train.lr: needs at least 1 item"),
        (
            {"tables": table({"x": {"overrides": {"train.lr": 1e-3}, "tune": {"train.lr": [1e-3]}}})},
            "overrides set train.lr, which is tuned",
        ),
        ({"tables": table({"x": {"overrides": {"train.seed": 1}}})}, "train.seed, which is repeated"),
        (
            {"tables": table({"x": {"overrides": {"train.lrr": 1}}})},
            r"table 'main', row 'x', column 'rotation': .*\n.*train.lrr: unknown key; did you mean 'lr'\?",
        ),
        (
            {"tables": table({"x": {"tune": {"train.lr": [1e-3]}}}), "overrides": {"eval.protocol": "published"}},
            "tuning needs a validation part, but eval.protocol=published",
        ),
        ({"config": "nowhere.yaml"}, "nowhere.yaml: no such config"),
        (
            {"tables": table({"x": None, "y": {"label": "x"}})},
            "tables.main.rows: rows 'x' and 'y' are both called 'x'; change one label",
        ),
        ({"replicate": {"values": [0, 1, 0]}}, "replicate.values: 0 is listed twice"),
        ({"tables": table({"x": {"replicates": [2, 2]}})}, "rows.x.replicates: 2 is listed twice"),
        ({"tables": table({"x": {"tune": {"train.lr": [1e-3, 1e-3]}}})}, "tune.train.lr: 0.001 is listed twice"),
        (
            {"tables": table({"x": {"tune": {"train.lr": {"start": [2e-3, 1e-3], "most": 4}}}})},
            r"tune.train.lr.start: \[0.002, 0.001\] are not ascending numbers above 0",
        ),
        (
            {"tables": table({"x": {"tune": {"train.lr": {"start": [1e-3, 2e-3], "most": 1}}}})},
            "tune.train.lr: most: 1 is less than the 2 values of start",
        ),
        ({"tables": table({"x": {"tune": {"train.lr": {"start": [1e-3], "most": 4}}}})}, "at least 2 items"),
        (
            {"tables": table({"x": {"tune": {"method.dropout": {"start": [0.4, 0.8], "most": 3}}}})},
            "table 'main', row 'x', column 'rotation': .*\n.*method.dropout",  # 1.6 would come next
        ),
        ({"overrides": {"train": 5}}, "overrides.train: 'train' is not a config key with a dot"),
        ({"tune": {"lr": [1]}}, "tune.lr: 'lr' is not a config key with a dot"),
        ({"overrides": {"eval.val_fraction": 0.01}}, r"table 'main', row 'linear', column 'rotation': .*fraction=0.01"),
        (
            {"overrides": {"data.few_shot": {"ways": 5, "shots": 5}, "head.num_classes": 5, "eval.protocol": "last"}},
            "only 0 of 20 classes have 5 training samples",
        ),
    ],
)
def test_mistakes_are_refused_with_the_way_out(make_study: MakeStudy, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_plan(make_study(**changes))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ({"data.augment": "so3"}, "regime 'rotation' .row 'x'. and 'so3' .row 'y'. cannot be compared"),
        ({"eval.protocol": "published"}, "protocol 'validation' .row 'x'. and 'published'"),
        ({"eval.val_fraction": 0.4}, "selection 'eval.val_fraction=.*' .row 'x'. and 'eval.val_fraction=0.4 "),
        ({"eval.split_seed": 3}, "selection '.*eval.split_seed=3"),
        ({"eval.select": "mean_class_accuracy"}, "selection '.*eval.select=mean_class_accuracy"),
        ({"eval.every": 2}, "selection '.*eval.every=2"),
        ({"data.root": None}, "test set 'ldraw20 .*' .row 'x'. and 'ldraw20 .*' .row 'y'."),
    ],
)
def test_a_column_that_mixes_conditions_is_refused_before_training(
    make_study: MakeStudy, override: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        read_plan(make_study(tables=table({"x": None, "y": {"overrides": override}})))


FEW_SHOT = {"eval.protocol": "last", "data.few_shot": {"ways": 5, "shots": 2}, "head.num_classes": 5}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            {"data.few_shot": {"ways": 4, "shots": 2}, "head.num_classes": 4},
            "5-way 2-shot .* and 'ldraw20 4-way 2-shot",
        ),
        ({"data.few_shot": {"ways": 5, "shots": 1}}, "5-way 2-shot .* and 'ldraw20 5-way 1-shot"),
        ({"data.few_shot": {"ways": 5, "shots": 2, "queries": 1}}, "5-way 2-shot 1 queries"),
        ({"data.few_shot": {"ways": 5, "shots": 2, "fold": 3}}, "fold 0 .* and .* fold 3 "),
    ],
)
def test_a_column_holds_one_few_shot_task(make_study: MakeStudy, override: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_plan(make_study(overrides=FEW_SHOT, tables=table({"x": None, "y": {"overrides": override}})))


def test_folds_of_one_task_stand_in_one_column(make_study: MakeStudy) -> None:
    replicate = {"key": "data.few_shot.fold", "values": [0, 1]}
    plan = read_plan(make_study(overrides=FEW_SHOT, tables=table({"x": None}, replicate=replicate)))
    assert [run.config.data.few_shot.fold for _, run in plan.final_runs(cell(plan, "x"), {})] == [0, 1]


def test_what_is_repeated_may_belong_to_the_selection(make_study: MakeStudy) -> None:
    replicate = {"key": "eval.split_seed", "values": [0, 1]}
    assert read_plan(make_study(tables=table({"x": None}, replicate=replicate))).cells


def test_scores_are_means_over_the_tuning_replicates(make_study: MakeStudy) -> None:
    tables = table({"x": {"tune": {"train.lr": [1e-3, 2e-3]}}})
    plan = read_plan(make_study(tables=tables, replicate={"values": [0, 1, 2], "tuning": [0, 7]}))
    names = tuning_names(plan, cell(plan, "x"))
    assert len(names) == 4
    assert plan.due({})[1] == 2  # of three final runs one will be the winner's with seed 0
    scores = dict(zip(names, (90.0, 50.0, 75.0, 75.0), strict=True))
    assert plan.chosen(cell(plan, "x"), {name: scores[name] for name in names[:3]}) is None
    assert plan.chosen(cell(plan, "x"), scores) == {"train.lr": 2e-3}


def test_a_candidate_that_diverged_ranks_last(plan: Plan) -> None:
    tuned = cell(plan, "dapt_x")
    names = tuning_names(plan, tuned)
    scores = dict(zip(names, (0.0, -math.inf, 10.0), strict=True))
    assert plan.chosen(tuned, scores) == {"train.lr": 4e-3}
    assert plan.chosen(tuned, dict.fromkeys(names, -math.inf)) is None
