"""The shipped YAML files train, test and vote on files in the exact published layouts."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pointadapterx.checkpoints.adapter_file import read_adapter
from pointadapterx.commands.main import main
from pointadapterx.config import read_config
from pointadapterx.datasets.modelnet40 import MODELNET40_CLASSES
from pointadapterx.datasets.scanobjectnn import SCANOBJECTNN_CLASSES
from tests.synthetic import write_modelnet40_hdf5, write_modelnet40_text, write_scanobjectnn

# Sizes only: points per cloud, head, augmentation and protocol stay as published.
SIZES = {
    "backbone": {"dim": 48, "depth": 2, "num_heads": 3, "encoder_dim": 48, "num_groups": 16, "group_size": 8},
    "method": {"rank": 4},
    "train": {"epochs": 1, "warmup_epochs": 0, "batch_size": 16},
    "eval": {"val_fraction": 0.5, "vote.seeds": [0, 1]},
}
SMALL = [f"{section}.{key}={value}" for section, values in SIZES.items() for key, value in values.items()]

LAYOUTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "scan_obj_bg": ("scan_obj_bg", lambda root: write_scanobjectnn(root, "obj_bg")),
    "scan_obj_only": ("scan_obj_only", lambda root: write_scanobjectnn(root, "obj_only")),
    "scan_pb_t50_rs": ("scan_pb_t50_rs", lambda root: write_scanobjectnn(root, "pb_t50_rs")),
    "modelnet40, hdf5": ("modelnet40", write_modelnet40_hdf5),
    "modelnet40, text": ("modelnet40", lambda root: write_modelnet40_text(root, train_per_class=2, num_points=8192)),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_train_test_and_vote(layout: str, tmp_path: Path) -> None:
    name, write = LAYOUTS[layout]
    write(tmp_path / "data")
    shipped = read_config(name)
    num_points = 1024 if name == "modelnet40" else 2048
    classes = list(MODELNET40_CLASSES if name == "modelnet40" else SCANOBJECTNN_CLASSES)
    regime = {"modelnet40": "scale_translate"}.get(name, "rotation")
    assert shipped.data.num_points == num_points

    root = f"data.root={tmp_path / 'data'}"
    run = tmp_path / "run"
    assert main(["--config", name, "--output", str(run), root, *SMALL]) == 0
    info = read_adapter(run / "adapter.safetensors")
    assert info.classes == classes
    assert info.config.data.num_points == num_points
    assert info.config.head == shipped.head
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["test"]["per_class"]) == classes
    assert metrics["test"]["count"] == len(classes)  # the files hold one test cloud a class
    assert {entry["count"] for entry in metrics["test"]["per_class"].values()} == {1}
    assert metrics["data"]["name"] == shipped.data.name
    assert metrics["data"]["variant"] == shipped.data.variant
    assert metrics["regime"].startswith(regime)
    assert metrics["protocol"].startswith("validation")
    (record,) = json.loads((run / "history.json").read_text())
    assert "val_overall_accuracy" in record

    assert main(["--test", str(run), "--vote", "2", "--output", str(tmp_path / "test")]) == 0
    report = json.loads((tmp_path / "test" / "test.json").read_text())
    assert report["test"] == metrics["test"]
    assert report["data"]["checksum"] == metrics["data"]["checksum"]
    vote = report["vote"]
    assert (vote["copies"], vote["seeds"]) == (2, [0, 1])
    assert len(vote["overall_accuracy"]["votes"]) == 2
    assert vote["overall_accuracy"]["mean"] == pytest.approx(sum(vote["overall_accuracy"]["votes"]) / 2)
    with (tmp_path / "test" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["label"] for row in rows) == sorted(classes)
    correct = sum(int(row["correct"]) for row in rows)
    assert 100 * correct / len(rows) == pytest.approx(report["test"]["overall_accuracy"])


@pytest.mark.parametrize("name", ["scan_obj_bg", "scan_obj_only", "scan_pb_t50_rs", "modelnet40"])
def test_a_missing_data_set_says_where_its_files_belong(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = read_config(name)
    arguments = ["--config", name, "--output", str(tmp_path / "run"), f"data.root={tmp_path / 'none'}", *SMALL]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "none") in error
    assert ("main_split" if config.data.name == "scanobjectnn" else "modelnet40") in error
    assert not (tmp_path / "run").exists()


def test_a_data_set_in_two_layouts_gives_the_same_classes_to_the_same_adapter(tmp_path: Path) -> None:
    """Trained on one layout, tested on the other: class order is the data set's, not the layout's."""
    write_modelnet40_hdf5(tmp_path / "hdf5", train_per_class=2)
    write_modelnet40_text(tmp_path / "text", num_points=8192)
    run = tmp_path / "run"
    assert main(["--config", "modelnet40", "--output", str(run), f"data.root={tmp_path / 'hdf5'}", *SMALL]) == 0
    assert main(["--test", str(run), f"data.root={tmp_path / 'text'}", "--output", str(tmp_path / "test")]) == 0
    report = json.loads((tmp_path / "test" / "test.json").read_text())
    assert list(report["test"]["per_class"]) == list(MODELNET40_CLASSES)
    assert torch.tensor(report["test"]["confusion_matrix"]).sum(dim=1).tolist() == [1] * 40
