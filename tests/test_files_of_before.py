"""Adapters, runs, weights and a study of version 0.1.0 (tests/files_of_before) do what they did, in the commands."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pointadapterx.commands.main import main
from tests.conftest import ROOT

BEFORE = ROOT / "tests" / "files_of_before"
ON_CLOUDS = sorted(path.stem for path in (BEFORE / "adapters").glob("*.csv"))
ON_IMAGES = sorted(path.stem for path in (BEFORE / "adapters").glob("*.json"))
WRITTEN_BY_COMMANDS = {"log.txt", ".lock", ".lock.json"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files; their paths are relative to it."""
    shutil.copytree(BEFORE, tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")
    return tmp_path / "before"


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file of a folder, except for logs and locks."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: path.read_bytes() for path in files if path.name not in WRITTEN_BY_COMMANDS}


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


def assert_same_course(found: Path, expected: Path, stopped: int) -> None:
    """Two histories; after ``stopped`` epochs not to the last bit, as another processor may round differently."""
    now, before = ([_figures(record) for record in read_json(path)] for path in (found, expected))
    assert now[:stopped] == before[:stopped]
    assert [record["lr"] for record in now] == [record["lr"] for record in before]
    key = "val_loss" if "val_loss" in before[0] else "train_loss"
    assert now[stopped][key] == pytest.approx(before[stopped][key], rel=0.02)


def _figures(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key in ("epoch", "lr", "train_loss", "val_loss")}


@pytest.mark.parametrize("name", ON_CLOUDS)
def test_adapters_predict_what_they_did(name: str) -> None:
    assert main(["predict", f"adapters/{name}.safetensors", "new", "--workers", "1", "--output", "now.csv"]) == 0
    with open(f"adapters/{name}.csv", newline="") as before, open("now.csv", newline="") as now:
        rows = list(zip(csv.DictReader(before), csv.DictReader(now), strict=True))
    assert len(rows) == 3
    for old, new in rows:
        for key in old.keys() - {"adapter"}:
            if key.startswith(("probability", "novelty")):
                assert float(new[key]) == pytest.approx(float(old[key]), abs=1e-4), key
            else:
                assert new[key] == old[key], key


@pytest.mark.parametrize("name", ON_IMAGES)
def test_adapters_on_images_are_tested_with_the_same_result(name: str) -> None:
    assert main(["--test", f"adapters/{name}.safetensors", "--output", "now"]) == 0
    now, before = read_json("now/test.json")["test"], read_json(f"adapters/{name}.json")["test"]
    assert now["count"] == before["count"] == 797
    assert now["overall_accuracy"] == pytest.approx(before["overall_accuracy"], abs=0.3)


def test_a_finished_run_is_left_alone_tested_and_reported() -> None:
    run = Path("runs/finished")
    before = contents(run)
    assert main(["--resume", str(run)]) == 0
    assert main(["--test", str(run), "--output", "now"]) == 0
    assert main(["report", str(run), "--output", "report.html"]) == 0
    assert contents(run) == before
    assert read_json("now/test.json")["test"] == read_json(run / "metrics.json")["test"]
    assert "dapt_x" in Path("report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["stopped", "pretraining_stopped"])
def test_a_stopped_run_is_resumed(name: str) -> None:
    done = len(read_json(f"runs/{name}/history.json"))
    assert main(["--resume", f"runs/{name}"]) == 0
    assert_same_course(Path(f"runs/{name}/history.json"), Path(f"runs/{name}_when_resumed.json"), done)
    assert Path("runs", name, "metrics.json").exists()


def test_a_finished_search_is_not_made_again() -> None:
    run = Path("runs/supernet")
    before = contents(run)
    assert main(["--search", str(run)]) == 0
    assert contents(run) == before


def test_a_finished_study_is_compared_without_training() -> None:
    before = contents(Path("study/runs"))
    table = Path("study/results/results.csv").read_text()
    assert main(["compare", "--config", "study.yaml"]) == 0
    assert contents(Path("study/runs")) == before
    assert Path("study/results/results.csv").read_text() == table
