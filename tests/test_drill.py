"""The drill of CONTRIBUTING.md: a new task is one file and one line, and every ordinary command takes it."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pointadapterx.config import dump_config
from tests.conftest import ROOT, small_config
from tests.synthetic import write_ldraw20

EXAMPLE = next(
    text
    for text in re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    if "@TASKS.register" in text
)

COMMANDS = """
import contextlib, io, json, sys
from pathlib import Path
import numpy as np
from pointadapterx.commands.main import main

folder, config = Path(sys.argv[1]), sys.argv[2]
run, adapter = folder / "run", folder / "run" / "adapter.safetensors"
clouds = folder / "clouds"
clouds.mkdir()
for height in (1, 2):
    points = np.random.default_rng(height).uniform(-1, 1, (300, 3))
    np.savetxt(clouds / f"{height}.txt", points * [1, height, 1])
for command in (
    f"count --config {config}",
    f"train --config {config} --output {run}",
    f"--resume {run}",
    f"vote {run} 2 --output {folder / 'test'}",
    f"predict {adapter} {clouds} --output {folder / 'found.csv'}",
    f"predict {adapter} {clouds} --output {folder / 'found.jsonl'}",
    f"predict {adapter} {clouds}",
    f"report {run} --output {folder / 'report.html'}",
    f"visualize {run} --picture attention --output {folder / 'pictures'}",
    f"export {run} {folder / 'height.pt2'}",
):
    assert main(command.split()) == 0, command
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What all commands left, and what they printed, in a process of its own, where alone the task is known."""
    folder = tmp_path_factory.mktemp("drill")
    write_ldraw20(folder / "data", train_per_class=4, test_per_class=2, num_points=256)
    config = small_config("lora", data={"root": str(folder / "data")}, head={"hidden": [16], "num_classes": None})
    text = (
        dump_config(config)
        .replace("select: overall_accuracy", "select: null")
        .replace("num_classes: 20", "num_classes: null")
    )
    (folder / "height.yaml").write_text(f"task: {{name: height}}\n{text}")
    script = EXAMPLE + COMMANDS
    found = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(folder / "height.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return folder, found.stdout


def test_the_task_is_short() -> None:
    assert len(EXAMPLE.splitlines()) <= 75


def test_training_selects_by_the_tasks_score(done: tuple[Path, str]) -> None:
    folder, _ = done
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    history = json.loads((folder / "run" / "history.json").read_text())
    errors = [record["val_mean_error"] for record in history]
    assert metrics["val_mean_error"] == min(errors)
    assert metrics["best_epoch"] == errors.index(min(errors)) + 1
    assert metrics["test"]["count"] == 40
    vote = json.loads((folder / "test" / "test.json").read_text())["vote"]
    assert vote["mean_error"]["mean"] > 0


def test_answers_are_the_tasks_own(done: tuple[Path, str]) -> None:
    folder, printed = done
    with (folder / "run" / "predictions.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["protocol", "index", "name", "height", "group"]
    with (folder / "found.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "adapter", "height", "warnings", "error"]
    lines = [json.loads(line) for line in (folder / "found.jsonl").read_text().splitlines()]
    assert [float(row["height"]) for row in rows] == pytest.approx(
        [line["values"]["height"] for line in lines], rel=1e-4
    )
    assert f"1.txt: height {float(rows[0]['height']):.4g}" in printed


def test_what_is_made_of_a_run_says_the_score(done: tuple[Path, str]) -> None:
    folder, printed = done
    assert "mean absolute error" in printed
    assert "vote of 2 copies: error" in printed
    assert "mean absolute error" in (folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "height.pt2").is_file()
    assert list((folder / "pictures").glob("*.png"))
