"""The measurements behind the documentation's figures run, and measure what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import exactness, ops, train
from benchmarks.train import peak_bytes
from pointadapterx.ops import reference
from tests.conftest import ROOT

SMALL = ["backbone.weights=null", "data.num_points=256", "backbone.encoder_width=8"]


def test_peak_of_a_known_step() -> None:
    weight = torch.randn(500, 500, requires_grad=True)
    inputs = torch.randn(500, 500)

    def step() -> None:
        ((inputs @ weight).relu() @ weight).sum().backward()
        weight.grad = None

    assert 3 <= peak_bytes(step, torch.device("cpu")) / inputs.nbytes <= 7


def test_methods_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stem = tmp_path / "cost"
    arguments = ["--configs", "demo", "demo_linear", "--rounds", "2", "--batch-size", "4", "--precision", "fp32"]
    assert train.main([*arguments, "--output", str(stem), *SMALL]) == 0
    (result,) = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    assert [row["method"] for row in result["rows"]] == ["dapt_x", "linear"]
    mixture, linear = result["rows"]
    assert mixture["step_mib"] > linear["step_mib"] > 0
    assert mixture["total_mib"] > mixture["step_mib"]
    assert all(len(row["seconds_all"]) == 2 for row in result["rows"])
    text = stem.with_suffix(".md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "| linear |" in text


def test_the_command_names_its_kinds() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: python -m benchmarks {exactness,ops,train}" in done.stderr


def test_point_operations_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ops, "CASES", [ops.Case(2, 300, 20), ops.Case(2, 300, 20, 5)])
    stem = tmp_path / "ops"
    assert ops.main(["--rounds", "2", "--threads", str(torch.get_num_threads()), "--output", str(stem)]) == 0
    (result,) = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    fps, knn = result["rows"]
    assert fps["exact"]
    assert knn["exact"]
    assert {"pointadapterx", "torch loop"} <= set(fps["seconds"])
    assert {"pointadapterx", "torch cdist + topk", "scipy"} <= set(knn["seconds"])
    text = stem.with_suffix(".md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "| FPS 2×300→20 |" in text


def test_an_inexact_operation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference.farthest_point_sample
    case = ops.Case(1, 100, 10)
    monkeypatch.setattr(reference, "farthest_point_sample", lambda *arguments: right(*arguments).roll(1, dims=1))
    assert not ops.is_exact(case, ops.clouds(case))


def test_a_wrong_override_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main(["backbone.dept=1", "--configs", "demo"])
    assert stop.value.code == 2
    assert "backbone.dept: unknown key; did you mean" in capsys.readouterr().err


def test_exactness_is_counted_and_differences_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not exactness.ops.implementation("cpu").startswith("compiled"):
        pytest.skip(exactness.ops.implementation("cpu"))
    assert exactness.main(["--cases", "20000"]) == 0
    assert "farthest_point_sample, small clouds" in capsys.readouterr().out
    monkeypatch.setattr(exactness.reference, "nearest", lambda query, points: (query[..., 0], points[..., 0].long()))
    assert exactness.main(["--cases", "20000"]) == 1
    assert "IN CALLS THAT DIFFER" in capsys.readouterr().out
