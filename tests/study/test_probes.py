"""Linear probes of several weights on several data sets by one command."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pointadapterx.build import build_backbone
from pointadapterx.checkpoints.shipped import save_backbone
from pointadapterx.commands.main import main
from pointadapterx.config import dump_config
from pointadapterx.datasets import PointClouds
from pointadapterx.study import probes
from tests.conftest import small_pretraining
from tests.synthetic import write_ldraw20

SIZES = {48: "48/2, 16 groups of 8", 24: "24/2, 16 groups of 8"}


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Two weights of which one has other sizes than the config, and two data sets, one without a name of its own."""
    for name in ("ldraw20", "things"):
        write_ldraw20(tmp_path / name, train_per_class=4, test_per_class=2, num_points=160)
    config = small_pretraining(tmp_path / "ldraw20")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    for name, sizes in (("a", {}), ("b", {"dim": 24})):
        options = config.replaced(backbone=sizes).backbone
        save_backbone(build_backbone(options), tmp_path / f"{name}.safetensors", options, {})
    weights = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    data = [f"--data={name}={tmp_path / name}" for name in ("ldraw20", "things")]
    return ["probe", *weights, "--config", str(tmp_path / "config.yaml"), *data]


def test_weights_and_data_sets_make_one_table(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = []

    def outcomes(backbone: Any, train: PointClouds, val: PointClouds, *_: Any) -> np.ndarray:
        judged.append((backbone.norm.weight.numel(), len(train), len(val)))
        return np.arange(len(val)) % 4 < (3 if backbone.norm.weight.numel() == 48 else 1)

    monkeypatch.setattr(probes, "probe_outcomes", outcomes)
    assert main([*command, "--test", f"--output={tmp_path / 'probes.md'}"]) == 0
    assert [judged.count((dim, 80, 40)) for dim in (48, 24)] == [2 * 7, 2 * 7]  # and random ones, three each
    text = (tmp_path / "probes.md").read_text(encoding="utf-8")
    assert "- things: 80 clouds to learn from, 40 judged\n" in text
    rows = [line.split(" | ") for line in text.splitlines() if re.match(r"\| (/|random)", line)]
    assert [row[1] for row in rows] == [SIZES[dim] for dim in (48, 24, 48, 48, 24, 24)]
    assert rows[0][4].startswith("75.00 [")
    assert rows[1][-1].startswith("-50.00 [-")
    assert rows[0][-1] == "– |"
    assert text.rstrip() in capsys.readouterr().out


def test_every_backbone_has_random_weights_of_its_own(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = small_pretraining(tmp_path / "ldraw20").replaced(backbone={"position": "input"}).backbone
    save_backbone(build_backbone(options), tmp_path / "b.safetensors", options, {})  # of the sizes of a
    monkeypatch.setattr(probes, "probe_outcomes", lambda backbone, train, val, *_: np.arange(len(val)) < 4)
    assert main(command) == 0
    assert capsys.readouterr().out.count("| random | 48/2, 16 groups of 8 |") == 2


def test_few_independent_clouds_have_no_interval() -> None:
    def part(groups: int) -> PointClouds:
        points, labels = torch.rand(8, 16, 3), torch.arange(8) % 2
        return PointClouds(points, labels, ("a", "b"), "test", groups=torch.arange(8) % groups)

    right = {"few": [np.arange(8) < 4], "many": [np.arange(8) < 6]}
    parts = {"few": (part(8), part(4)), "many": (part(8), part(8))}
    rows = [probes.Probed(name, "1/1", right) for name in ("x", "y")]
    lines = probes.render_probes(probes.Probes(rows, parts, test=True))
    assert "- few: 8 clouds to learn from, 8 judged (4 independent test samples are too few for an interval)" in lines
    assert re.fullmatch(
        r"\| y \| 1/1 \| 50\.00 \| 75\.00 \[[\d., ]+\] \| 62\.50 \| \+0\.00 \|",
        next(line for line in lines if "| y" in line),
    )


def test_it_runs_as_a_whole(command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(probes, "PROBE_SEEDS", (0,))
    assert main(["probe", command[1], *command[3:6]]) == 0
    printed = capsys.readouterr().out
    assert "| weights | backbone | ldraw20 | Δ to " in printed
    assert "on a part of the training split." in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a.safetensors"], "give weights and --data NAME"),
        (["--data", "ldraw20"], "give weights and --data NAME"),
        (["a", "a", "--data", "ldraw20"], "a is given twice; remove one"),
        (["a", "--data", "b=x", "--data", "b=y"], "b is given twice; remove one"),
        (["--config", "pretrain/point_mae_tiny", "--test"], "--test, --output and --device belong to WEIGHTS"),
        (["point_mae_tiny", "--data", "house"], "pretrain.probe.name: unknown name 'house'"),
        (["no.safetensors", "--data", "ldraw20"], "no.safetensors: does not exist"),
        (
            ["vit_tiny", "--data", "ldraw20"],
            "error: vit_tiny: weights of a vit, which takes images; a probe needs points",
        ),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    usage = says.startswith(("give", "a is", "b is", "--test"))
    with pytest.raises(SystemExit) if usage else nullcontext():
        assert main(["probe", *arguments]) == 2
    assert says in capsys.readouterr().err
