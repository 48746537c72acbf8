"""Every command on runs of both precisions: what ``train.precision: auto`` chooses depends on the machine."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pointadapterx import jobs as run
from pointadapterx.arrays import as_array
from pointadapterx.commands.main import main
from pointadapterx.config import dump_config
from pointadapterx.engine import devices
from pointadapterx.study.outcomes import OUTPUT
from pointadapterx.study.plan import CellKey, read_plan
from tests.conftest import small_config, small_pretraining
from tests.mechanisms import exhaustive
from tests.synthetic import write_ldraw20

METHODS = ("dapt_x", "lora", "linear", "full", "e3va_x")
PRECISIONS = ("fp32", "bf16")
FOR_ALL = {("dapt_x", "bf16"), ("lora", "fp32")}
"""Runs that stand for all: one with every kind of part, whose values numpy cannot hold, and one that can be merged."""
CLASSES = ["plate", "wheel", "window"]


class Runs:
    """One epoch of every method in both precisions, as the runs of a study, on the clouds of ``example``."""

    def __init__(self, root: Path) -> None:
        self.root, self.data, self.study = root, root / "scans", root / "study.yaml"
        assert main(["example", str(self.data)]) == 0
        config = small_config(
            data={"name": "folder", "root": str(self.data), "stored_points": 256},
            head={"num_classes": len(CLASSES)},
            train={"epochs": 1},
        )
        (root / "base.yaml").write_text(dump_config(config))
        rows = {name: {"overrides": _own(name)} for name in METHODS}
        content = {
            "title": "Every method",
            "config": "base.yaml",
            "runs": str(root / "runs"),
            "results": str(root / "results"),
            "replicate": {"values": [0]},
            "tables": {"main": {"columns": {p: {"train.precision": p} for p in PRECISIONS}, "rows": rows}},
        }
        self.study.write_text(yaml.safe_dump(content, sort_keys=False))
        plan = read_plan(self.study)
        self.folders: dict[tuple[str, str], Path] = {}
        for name in METHODS:
            for precision in PRECISIONS:
                ((_, planned),) = plan.final_runs(plan.cells[CellKey("main", name, precision)], {})
                folder = self.folders[name, precision] = Path(plan.study.runs) / planned.name / OUTPUT
                run.train(planned.config, name, folder, devices.make_accelerator(precision))


def _own(name: str) -> dict[str, Any]:
    """What a method's config has of its own."""
    config = small_config(name)
    assert config.method is not None
    assert config.head is not None
    method = config.method.model_dump()
    return {f"method.{key}": value for key, value in method.items()} | {"head.pools": config.head.pools}


in_both = pytest.mark.parametrize("precision", [pytest.param("fp32", marks=exhaustive), "bf16"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("every"))


@pytest.fixture(
    params=[
        pytest.param((name, kind), marks=[exhaustive] * ((name, kind) not in FOR_ALL), id=f"{name}-{kind}")
        for name in METHODS
        for kind in PRECISIONS
    ]
)
def trained(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A method and a precision."""
    return request.param


@pytest.fixture
def folder(trained: tuple[str, str], runs: Runs) -> Path:
    """Of a finished run."""
    return runs.folders[trained]


def test_training_and_resuming(folder: Path, trained: tuple[str, str]) -> None:
    assert f"precision: {trained[1]}" in (folder / "config.yaml").read_text()
    finished = (folder / "metrics.json").read_bytes()
    assert main(["--resume", str(folder)]) == 0
    assert (folder / "metrics.json").read_bytes() == finished


def test_testing_and_voting(folder: Path, tmp_path: Path) -> None:
    assert main(["vote", str(folder), "2", "eval.vote.seeds=[0]", "--output", str(tmp_path)]) == 0
    tested = json.loads((tmp_path / "test.json").read_text())
    trained = json.loads((folder / "metrics.json").read_text())
    assert tested["test"] == trained["test"]  # in the precision that it was trained in
    assert tested["vote"]["copies"] == 2


def test_predicting(folder: Path, runs: Runs, tmp_path: Path) -> None:
    output = tmp_path / "found.csv"
    assert main(["predict", str(folder), str(runs.data / "new"), "--output", str(output), "--workers", "1"]) == 0
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert all(row["class_1"] in CLASSES and 1 / 3 - 1e-6 <= float(row["probability_1"]) <= 1 for row in rows)
    assert all(0 <= float(row["novelty"]) <= 1 for row in rows)


def test_reporting(folder: Path, tmp_path: Path) -> None:
    assert main(["report", str(folder), "--output", str(tmp_path / "report.html")]) == 0
    assert "Attention" in (tmp_path / "report.html").read_text()


def test_visualizing(folder: Path, tmp_path: Path) -> None:
    assert main(["visualize", str(folder), "--renderer", "matplotlib", "--dpi", "30", "--output", str(tmp_path)]) == 0
    drawn = {path.stem for path in tmp_path.iterdir()}
    assert {"groups", "augmentation", "attention", "saliency", "tsne", "confusion"} <= drawn
    assert ({"routing", "experts"} <= drawn) == ("_x" in (folder / "config.yaml").read_text())


def test_exporting(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(folder), str(tmp_path / "model.pt2"), "--batch-size", "1"]) == 0
    assert (tmp_path / "model.pt2").stat().st_size > 0
    told = ("building the model", "tracing the model", "writing model.pt2", "checking model.pt2")
    lines = capsys.readouterr().err.splitlines()[-4:]
    assert all(line.startswith(start) for line, start in zip(lines, told, strict=True)), lines


def test_sharing(folder: Path, trained: tuple[str, str], tmp_path: Path) -> None:
    assert main(["push", str(folder), "owner/name", "--folder", str(tmp_path / "card")]) == 0
    assert trained[1] in (tmp_path / "card" / "README.md").read_text()


def test_comparing(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--config", str(runs.study)]) == 0  # every run is there: nothing is trained
    report = (runs.root / "results" / "report.md").read_text()
    assert all(f"| {name} | " in report for name in METHODS)
    assert "–" not in report.split("\n## ")[1].split("###")[0]


def test_looking_at_the_data(runs: Runs) -> None:
    assert main(["doctor", str(runs.data), "--workers", "1"]) == 0


@in_both
def test_searching(runs: Runs, precision: str, tmp_path: Path) -> None:
    config = small_config(
        "noah",
        data={"name": "folder", "root": str(runs.data), "stored_points": 256},
        head={"num_classes": len(CLASSES)},
        train={"epochs": 1, "precision": precision},
        method={"search": {"population": 4, "parents": 2, "generations": 1, "budget": 10**6}},
    )
    (tmp_path / "noah.yaml").write_text(dump_config(config))
    assert main(["train", "--config", str(tmp_path / "noah.yaml"), "--output", str(tmp_path / "run")]) == 0
    assert main(["search", str(tmp_path / "run")]) == 0


@in_both
def test_pre_training(precision: str, tmp_path: Path) -> None:
    """With its pictures, and the probe, which is a command as well."""
    write_ldraw20(tmp_path / "data", train_per_class=4, test_per_class=2, num_points=160)
    probe = {"every": 1, "root": str(tmp_path / "data")}
    config = small_pretraining(
        tmp_path / "data", pretrain={"draw": 1, "probe": probe}, train={"epochs": 1, "precision": precision}
    )
    (tmp_path / "pretraining.yaml").write_text(dump_config(config))
    output = tmp_path / "run"
    assert main(["train", "--config", str(tmp_path / "pretraining.yaml"), "--output", str(output)]) == 0
    assert main(["visualize", str(output), "--renderer", "matplotlib", "--dpi", "30"]) == 0
    weights = f"backbone.weights={output / 'weights.safetensors'}"
    assert main(["probe", "--config", str(tmp_path / "pretraining.yaml"), weights]) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64])
def test_arrays(dtype: torch.dtype) -> None:
    values = torch.tensor([1, 2, 3]).to(dtype).requires_grad_(dtype.is_floating_point)
    assert as_array(values).tolist() == [1, 2, 3]
