"""The Python interface for the first hour: create, train, store, load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pointadapterx as pax
from pointadapterx.datasets import build_dataset
from pointadapterx.errors import CheckpointError, ConfigError, PointAdapterXError
from pointadapterx.files import read_safetensors
from tests.conftest import ROOT

SMALL = {"depth": 2, "num_groups": 8, "group_size": 8}


def small_model(**options: Any) -> pax.PretrainedModel:
    """Random weights of two blocks, which take 64 points."""
    given = {"backbone": SMALL, "data": {"num_points": 64}, "train": {"precision": "fp32"}}
    return pax.create_model("point_mae_tiny", pretrained=False, method="linear", **given, **options)


@pytest.fixture(scope="module")
def arrays() -> tuple[np.ndarray, list[str]]:
    """30 clouds of three shapes."""
    rng = np.random.default_rng(0)
    stretch = np.array([[1, 1, 1], [3, 1, 1], [1, 6, 1]])
    points = rng.normal(size=(30, 96, 3)) * stretch.repeat(10, axis=0)[:, None]
    return points.astype(np.float32), ["ball"] * 10 + ["rod"] * 10 + ["pole"] * 10


@pytest.fixture(scope="module")
def trained(arrays: tuple[np.ndarray, list[str]], tmp_path_factory: pytest.TempPathFactory) -> pax.PretrainedModel:
    model = small_model()
    folder = tmp_path_factory.mktemp("run") / "run"
    found = pax.train(model, arrays, output=folder, epochs=2, warmup_epochs=0, early_stopping=None)
    assert found.folder == folder
    assert found.metrics["test"]["count"] == 6
    return model


def test_a_model_is_made_by_name() -> None:
    model = pax.create_model(method="lora", num_classes=7, rank=2, head={"hidden": []})
    assert model.config.backbone.weights == "point_mae_tiny"
    assert (model.config.method.rank, model.head.num_classes, model.config.head.hidden) == (2, 7, [])
    backbone = model.unload()
    state, _ = read_safetensors(ROOT / "pointadapterx" / "weights" / "point_mae_tiny.safetensors")
    own = backbone.state_dict()
    assert all(torch.equal(own[name], tensor.to(own[name].dtype)) for name, tensor in state.items())
    assert pax.create_model("vit_tiny", num_classes=2)(torch.rand(2, 1, 28, 28)).logits.shape == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "point_mea_tiny"}, "did you mean 'point_mae_tiny'"),
        ({"name": "point_mae"}, "no weights of it are shipped; give pretrained=FILE"),
        ({"method": "dapt_y"}, "method.name: .*dapt_x"),
        ({"method": "lora", "rang": 3}, "method.rang"),
        ({"head": 3}, "head=3: give the keys of the section"),
    ],
)
def test_what_is_not_known_is_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pax.create_model(**arguments)


def test_arrays_train_the_head_of_their_classes(trained: pax.PretrainedModel, tmp_path: Path) -> None:
    assert trained.classes == ["ball", "pole", "rod"]
    assert not trained.training
    points = torch.randn(2, 64, 3)
    trained.save_pretrained(tmp_path / "kept")
    again = pax.from_pretrained(tmp_path / "kept")
    assert again.classes == trained.classes
    assert again.metrics == trained.metrics
    with torch.no_grad():
        assert torch.equal(again(points).logits, trained(points).logits)
    (found,) = pax.Predictor(tmp_path / "kept")(np.random.default_rng(1).normal(size=(96, 3)))
    assert set(found.classes) == set(trained.classes)


def test_a_run_from_arrays_can_be_tested_again(trained: pax.PretrainedModel, tmp_path: Path) -> None:
    root = trained.config.data.root
    folder = Path(root).parent
    from pointadapterx.commands.main import main

    assert main(["test", str(folder), "--output", str(tmp_path / "test")]) == 0
    one, other = ((tmp_path / "test" / "test.json"), (folder / "metrics.json"))
    assert json.loads(one.read_text())["test"] == json.loads(other.read_text())["test"]
    with pytest.raises(CheckpointError, match="holds a run, whose adapter would be overwritten"):
        trained.save_pretrained(folder)


def test_a_head_of_other_classes_is_refused(trained: pax.PretrainedModel, tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(8, 64, 3))
    with pytest.raises(ConfigError, match="the model has 3 classes and the data 2; create it with num_classes=2"):
        pax.train(trained, (points, [0, 1] * 4), output=tmp_path / "run")


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        ((np.zeros((4, 8, 2)), [0] * 4), {}, r"points \(4, 8, 2\) of type float64, expected numbers of shape"),
        ((np.zeros((4, 8, 3)), [0] * 3), {}, r"labels \(3,\) for 4 clouds"),
        ("nowhere", {}, "nowhere: no such file or folder; give a folder"),
        ("nowhere", {"rank": 3}, "rank=3: is no key of train"),
        ("nowhere", {"epoch": 3}, "epoch=3: is no key of train; did you mean 'epochs'?"),
        ("nowhere", {"overrides": ["method.rank=3"]}, "method.rank: is decided when the model is created"),
        ({"test": ()}, {}, "the parts are test; give train"),
    ],
)
def test_wrong_data_and_keys_are_one_line(data: Any, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PointAdapterXError, match=message):
        pax.train(small_model(), data, output=tmp_path / "run", **more)


def test_data_sets_are_trained_on(tmp_path: Path) -> None:
    parts = {split: build_dataset("ldraw20", split).subset(range(0, 60, 2)) for split in ("train", "test")}
    model = small_model(num_classes=20)
    found = pax.train(
        model, parts, output=tmp_path / "run", epochs=1, warmup_epochs=0, early_stopping=None, eval={"protocol": "last"}
    )
    assert found.metrics["test"]["count"] == 30
    assert model.classes == parts["train"].classes


def test_editors_see_every_public_name() -> None:
    assert set(pax.__all__) == set(pax._HOME)
    assert set(pax.__all__) <= set(dir(pax))
    assert (ROOT / "pointadapterx" / "py.typed").is_file()
    source = (
        (ROOT / "pointadapterx" / "__init__.py").read_text().partition("if TYPE_CHECKING:")[2].partition("\n_HOME")[0]
    )
    assert all(name in source for name in pax.__all__)
    done = subprocess.run(
        [sys.executable, "-c", "import sys, pointadapterx as p; dir(p); sys.exit('torch' in sys.modules)"], check=False
    )
    assert done.returncode == 0
