"""The command ``pointadapterx example``: files of three classes, whose parts are in one split each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pointadapterx.commands.example import CLASSES, NEW, TEST, TRAIN
from pointadapterx.commands.main import main
from pointadapterx.config import load_config
from pointadapterx.datasets import build_dataset
from pointadapterx.datasets.point_files import read_cloud


def test_it_writes_the_layout_that_folder_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trimesh")
    folder = tmp_path / "scans"
    assert main(["example", str(folder)]) == 0
    assert f"{3 * (TRAIN + TEST + NEW)} files" in capsys.readouterr().out
    for split, count in (("train", TRAIN), ("test", TEST)):
        data = build_dataset("folder", split, root=folder)
        assert data.classes == sorted(CLASSES)
        assert torch.bincount(data.labels).tolist() == 3 * [count]
        assert data.points.shape == (3 * count, 2048, 3)
    names = [path.stem for path in folder.rglob("*.ply") if path.parent.name != "new"]
    assert len(set(names)) == len(names)
    assert len(list((folder / "new").iterdir())) == 3 * NEW


def test_files_hold_the_embedded_points(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    assert main(["example", str(tmp_path)]) == 0
    data = build_dataset("ldraw20", "train")
    assert data.names is not None
    for path in list((tmp_path / "train").rglob("*.ply"))[:3]:
        points = data.points[data.names.index(f"{path.stem}.dat")].numpy()
        assert np.array_equal(read_cloud(path, 2048, 0).astype(np.float32), points.astype(np.float32))


def test_what_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("1")
    assert main(["example", str(tmp_path)]) == 2
    assert "is not empty; choose a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert main(["example", str(tmp_path / "mine.txt" / "below")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_config_for_own_clouds_lacks_nothing_but_the_folder(tmp_path: Path) -> None:
    assert main(["example", str(tmp_path / "scans")]) == 0
    config = load_config("folder", [f"data.root={tmp_path / 'scans'}"])
    assert (config.head.num_classes, config.method.name, config.backbone.weights) == (3, "dapt_x", "point_mae_tiny")
    assert config.eval.every == config.train.epochs
