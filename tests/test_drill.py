"""The drill of CONTRIBUTING.md: a new task is one file and one line, and every ordinary command takes it."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pointadapterx.config import dump_config
from tests.conftest import ROOT, small_config
from tests.synthetic import write_ldraw20

EXAMPLE = next(
    text
    for text in re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    if "@TASKS.register" in text
)

COMMANDS = """
import contextlib, io, json, os, signal, sys
from pathlib import Path
import numpy as np
from pointadapterx.commands.main import main
from pointadapterx.engine.trainer import Trainer
from pointadapterx.study import runner

folder, config = Path(sys.argv[1]), sys.argv[2]
run, adapter = folder / "run", folder / "run" / "adapter.safetensors"
clouds = folder / "clouds"
clouds.mkdir()
for height in (1, 2):
    points = np.random.default_rng(height).uniform(-1, 1, (300, 3))
    np.savetxt(clouds / f"{height}.txt", points * [1, height, 1])
for name in ("train", "compare", "predict", "push"):
    with contextlib.suppress(SystemExit):
        main([name, "--help"])
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
    f"push {run} owner/height --folder {folder / 'card'}",
    f"doctor {clouds} --stored-points 256 --all",
    f"doctor {clouds} --stored-points 256 --unlabelled",
):
    assert main(command.split()) == 0, command
try:
    main(["predict", str(adapter), str(clouds), "--each", str(folder / "each")])
except SystemExit as end:
    assert end.code == 2
assert main(["visualize", str(run), "--picture", "confusion"]) == 2

step, stopped = Trainer._train_step, str(folder / "stopped")
def interrupted(self, number, *rest):
    if self.progress.epoch == 1 and number == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, number, *rest)
Trainer._train_step = interrupted
assert main(["train", "--config", config, "--output", stopped]) == 128 + signal.SIGTERM
Trainer._train_step = step
assert main(["resume", stopped]) == 0

runner.training_command = lambda run, at: [
    str(folder / "one.py"), "train", "--config", str(at / "study.yaml"), "--output", str(at / "run")
]
study = str(folder / "study.yaml")
assert main(["compare", "--config", study]) == 0
report = folder / "results" / "report.md"
first = report.read_bytes()
assert main(["compare", "--report", str(folder / "results" / "results.csv")]) == 0
assert report.read_bytes() == first
"""

ALONE = """
import sys
from pointadapterx.commands.main import main
sys.exit(main(sys.argv[1:]))
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
    (folder / "one.py").write_text(EXAMPLE + ALONE)
    rows = {"linear": {"overrides": {"method.name": "linear"}}, "lora": {"tune": {"train.lr": [1e-4, 1e-3]}}}
    table = {"baseline": "linear", "columns": {"all": None}, "rows": rows}
    study = {"title": "Heights", "config": "height.yaml", "replicate": {"values": [0]}, "tables": {"main": table}}
    study |= {"runs": str(folder / "runs"), "results": str(folder / "results"), "overrides": {"train.epochs": 1}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    script = EXAMPLE + COMMANDS
    found = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(folder / "height.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return folder, found.stdout + found.stderr


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
    assert re.search(r"test: mean absolute error of 40 clouds [\d.]+, 95 % interval [\d.]+ to [\d.]+", printed)
    assert f"next: pointadapterx predict {folder / 'run'} FILES, or pointadapterx report" in printed
    assert "mean absolute error" in printed
    assert "vote of 2 copies: error" in printed
    assert "mean absolute error" in (folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "height.pt2").is_file()
    assert list((folder / "pictures").glob("*.png"))
    assert "mean absolute error [95 %]" in (folder / "report.html").read_text(encoding="utf-8")


def test_an_interrupted_run_is_resumed_bit_for_bit(done: tuple[Path, str]) -> None:
    folder, _ = done
    whole, stopped = (load_file(folder / name / "adapter.safetensors") for name in ("run", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_study_compares_by_the_tasks_score(done: tuple[Path, str]) -> None:
    """The lower error is chosen, and has an interval over the errors of the test clouds."""
    folder, _ = done
    with (folder / "results" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tuned = [row for row in rows if row["kind"] == "tune"]
    (chosen,) = (row for row in tuned if row["chosen"] == "True")
    assert float(chosen["best_val"]) == min(float(row["best_val"]) for row in tuned)
    finals = [row for row in rows if row["kind"] == "final"]
    assert [(row["task"], row["status"], row["overall_accuracy"]) for row in finals] == [("height", "finished", "")] * 2
    assert all(json.loads(row["scores"])["mean_error"] > 0 for row in finals)
    report = (folder / "results" / "report.md").read_text(encoding="utf-8")
    assert "error is mean absolute error, of which the lower is the better: mean" in report
    assert re.search(r"\| lora \| 1 \| \d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\] \|", report)
    assert "OA" not in report
    assert "McNemar" not in report


def test_a_card_of_a_task_without_classes(done: tuple[Path, str]) -> None:
    card = (done[0] / "card" / "README.md").read_text(encoding="utf-8")
    assert "`lora` on ldraw20. An adapter" in card
    assert "| mean absolute error | " in card
    assert "print(found.name, found.text())" in card
    assert "- height" in card
    assert not re.search("class(es|ification)", card)


def test_what_the_task_has_not_is_refused_in_one_line(done: tuple[Path, str]) -> None:
    _, printed = done
    assert "the task height has one answer a file; use --output FILE.csv" in printed
    assert "picture confusion: shows nothing of the task height; choose from groups, augmentation, attention" in printed
