"""A small study: two methods on small data, without training."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pointadapterx.config import dump_config
from pointadapterx.errors import DataError
from pointadapterx.files import write_json
from pointadapterx.study.outcomes import OUTPUT
from pointadapterx.study.packing import pack_correctness
from pointadapterx.study.plan import Plan, Run, read_plan
from pointadapterx.study.records import Record, read_records, write_records
from tests.conftest import small_config
from tests.synthetic import write_ldraw20

LINEAR = {"method.name": "linear", "head.pools": ["cls", "patch_max"]}
ROWS: dict[str, dict[str, Any]] = {
    "linear": {"label": "Linear probe", "overrides": LINEAR},
    "dapt_x": {"tune": {"train.lr": [1e-3, 2e-3, 4e-3]}},
}


@pytest.fixture(scope="session")
def study_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 training and 40 test clouds of 256 points."""
    root = tmp_path_factory.mktemp("study")
    write_ldraw20(root, train_per_class=4, test_per_class=2, num_points=256)
    return root


@pytest.fixture
def make_study(study_data: Path, tmp_path: Path) -> Callable[..., Path]:
    """``make_study(key=value)``: the YAML of a study whose keys are replaced."""

    def make(**changes: Any) -> Path:
        config = small_config(data={"root": str(study_data)}, train={"epochs": 1})
        (tmp_path / "base.yaml").write_text(dump_config(config))
        study: dict[str, Any] = {
            "title": "Small",
            "config": "base.yaml",
            "runs": str(tmp_path / "runs"),
            "results": str(tmp_path / "results"),
            "replicate": {"values": [0, 1]},
            "tables": {"main": {"baseline": "linear", "columns": {"rotation": None}, "rows": ROWS}},
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study | changes, sort_keys=False))
        return path

    return make


@pytest.fixture
def plan(make_study: Callable[..., Path]) -> Plan:
    return read_plan(make_study())


def write_result(
    runs: Path, run: Run, *, val: float, correct: int = 30, total: int = 40, groups: Sequence[int] | None = None
) -> None:
    """What a finished run leaves, with ``correct`` of ``total`` test objects right."""
    folder = runs / run.name / OUTPUT
    metrics = {
        "protocol": "validation",
        "regime": "rotation",
        "data": {"checksum": "abc"},
        "parameters": {"trainable": 1000, "trainable_without_head": 400, "percent": 1.5},
        "versions": {"torch": "2"},
        "test": {"overall_accuracy": 100.0 * correct / total, "mean_class_accuracy": 50.0},
        "val_overall_accuracy": val,
        "seconds_per_epoch": 2.0,
        "seconds": 20.0,
        "peak_memory_mib": 300.0,
        "hardware": "test machine",
        "adapter_bytes": 12345,
    }
    write_json(folder / "metrics.json", metrics)
    rows = [f"validation,{i},,a,b,0.5,{int(i < correct)},{groups[i] if groups else ''}" for i in range(total)]
    header = "protocol,index,name,label,prediction,probability,correct,group"
    (folder / "predictions.csv").write_text("\n".join([header, *rows]) + "\n")


def make_record(**changes: Any) -> Record:
    """A finished final line with 3 of 4 test objects right."""
    values: dict[str, Any] = {
        "study": "Small",
        "table": "main",
        "table_title": "Main",
        "baseline": "linear",
        "row": "linear",
        "label": "Linear probe",
        "column": "rotation",
        "kind": "final",
        "replicate_key": "train.seed",
        "replicate": "0",
        "status": "finished",
        "run": "linear-1",
        "data": "ldraw20",
        "regime": "rotation",
        "protocol": "validation",
        "test_checksum": "abc",
        "tuned": "{}",
        "overall_accuracy": 75.0,
        "mean_class_accuracy": 70.0,
        "trainable": 1000,
        "seconds": 10.0,
        "peak_memory_mib": 100.0,
        "test_objects": 4,
        "correct": pack_correctness(np.array([True, True, True, False])),
    }
    return Record(**(values | changes))


def refuse_changed(folder: Path, record: Record, changes: Mapping[str, Any], says: str) -> None:
    """Makes sure that a CSV of a line with other values is refused, and says why."""
    path = folder / "results.csv"
    write_records(path, [record])
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row | changes)
    with pytest.raises(DataError, match=f"results.csv: line 2: {re.escape(says)}.*; give a CSV"):
        read_records(path)
