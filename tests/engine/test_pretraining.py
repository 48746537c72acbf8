"""Pre-training runs: what they leave, that they learn, resume bit for bit, and serve adaptation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.model_selection import GridSearchCV, check_cv

from pointadapterx import jobs as run
from pointadapterx.build import build_backbone, build_probe_data, build_splits, build_trained
from pointadapterx.commands.main import main
from pointadapterx.config import Config, dump_config
from pointadapterx.datasets import PointClouds
from pointadapterx.engine import devices
from pointadapterx.engine.trainer import Interrupted, Trainer
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.files import read_safetensors
from pointadapterx.jobs import linear_probe as probe_module
from pointadapterx.jobs.pretraining import KeepWeights
from pointadapterx.models.grouping import Groups
from pointadapterx.run_folder import BEST_WEIGHTS_FILE, STATE_FILE, WEIGHTS_FILE
from tests.conftest import small_pretraining
from tests.engine.test_distributed import launch
from tests.engine.test_training import assert_identical, train


def test_a_run_leaves_weights_that_an_adaptation_takes(
    small_data: Path, run_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = small_pretraining(small_data, pretrain={"draw": 2})
    state = train(config, tmp_path / "pretraining")
    report = json.loads((tmp_path / "pretraining" / "metrics.json").read_text())
    assert report["epochs"] == 2
    assert 0 <= report["probe_accuracy"] <= 100
    assert report["val_loss"] > 0
    picture = tmp_path / "pretraining" / "reconstructions" / "epoch_0002.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["visualize", str(tmp_path / "pretraining"), "--samples", "2", "--renderer", "matplotlib"]) == 0
    again = tmp_path / "pretraining" / "pictures" / "reconstruction.png"
    assert Image.open(again).size == Image.open(picture).size  # the same clouds, masks and weights
    assert np.array_equal(np.asarray(Image.open(again)), np.asarray(Image.open(picture)))
    weights = tmp_path / "pretraining" / WEIGHTS_FILE
    for name, tensor in load_file(weights).items():
        trained = state[f"model/encoder.{name}"]
        assert torch.equal(tensor, trained.half() if trained.is_floating_point() else trained), name
    adapted = run_config("linear", backbone={"weights": str(weights)}, train={"epochs": 1})
    train(adapted, tmp_path / "adaptation")


def test_it_learns_to_reconstruct(small_data: Path, tmp_path: Path) -> None:
    config = small_pretraining(small_data, pretrain={"probe": {"every": 0}}, train={"epochs": 12})
    train(config, tmp_path / "run")
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    losses = [record["val_loss"] for record in history]
    assert losses[-1] < 0.9 * losses[0]
    assert not any("probe_accuracy" in record for record in history)


def test_an_interrupted_run_resumes_bit_for_bit(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_pretraining(small_data, train={"epochs": 3})
    whole = train(config, tmp_path / "whole")
    step = Trainer._train_step

    def interrupt(self: Trainer, index: int, *rest: Any) -> Any:
        if self.progress.epoch == 1 and index == 2:
            self._save_state()
            raise Interrupted(15, self.folder)
        return step(self, index, *rest)

    monkeypatch.setattr(Trainer, "_train_step", interrupt)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    run.resume(tmp_path / "run", [])
    assert_identical(load_file(tmp_path / "run" / STATE_FILE), whole)
    for file in (WEIGHTS_FILE, BEST_WEIGHTS_FILE):
        assert_identical(*(load_file(tmp_path / name / file) for name in ("whole", "run")))


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrain": {"mask": "block", "chamfer": "l1"}},
        {"train": {"precision": "bf16", "accumulate": 2}},
    ],
)
def test_variants_run(small_data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    changes.setdefault("train", {})["epochs"] = 1
    changes.setdefault("pretrain", {})["probe"] = {"every": 0}
    train(small_pretraining(small_data, **changes), tmp_path / "run")
    assert (tmp_path / "run" / WEIGHTS_FILE).is_file()


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_validate_like_one(small_data: Path, tmp_path: Path) -> None:
    """16 held-out clouds in batches of 3: shares are uneven, and every cloud counts once."""
    config = small_pretraining(small_data, pretrain={"probe": {"every": 0}}, eval={"batch_size": 3})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    script = tmp_path / "validate.py"
    script.write_text(
        f"""
from pathlib import Path
from pointadapterx.config import read_config
from pointadapterx.engine import devices
from pointadapterx.jobs import training
def validate():
    accelerator = devices.make_accelerator("fp32")
    config = read_config({str(tmp_path / "config.yaml")!r})
    trainer = training._trainer(config, Path({str(tmp_path / "run")!r}), accelerator)
    loss = trainer.task.metrics(trainer._predict(trainer.selection))["loss"]
    if accelerator.is_main_process:
        Path({str(tmp_path)!r}, str(accelerator.num_processes)).write_text(repr(loss))
validate()
devices.leave_process_group()
"""
    )
    for processes in (1, 2):
        launch(processes, script=script)
    one, two = (float((tmp_path / name).read_text()) for name in ("1", "2"))
    assert two == pytest.approx(one, rel=1e-6)


def test_hidden_groups_take_no_part_in_the_embedding() -> None:
    """In eval mode, where BatchNorm looks at no batch, embedding the visible groups alone changes nothing."""
    config = small_pretraining(Path())
    model = build_trained(config).eval()
    generator = torch.Generator().manual_seed(0)
    groups = Groups(torch.randn(3, 16, 8, 3, generator=generator) * 0.1, torch.randn(3, 16, 3, generator=generator))
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, ::2] = True
    encoded = model.encode(groups, mask)
    tokens, position = model.encoder.patch_tokens(groups)
    tokens, position = tokens[:, 1::2], position[:, 1::2]
    for block in model.encoder.blocks:
        tokens, _ = block(tokens + position)
    torch.testing.assert_close(encoded, model.encoder.norm(tokens))
    changed = groups.neighborhood.clone()
    changed[:, ::2] += 1.0
    assert torch.equal(model.encode(Groups(changed, groups.centers), mask), encoded)


def test_the_best_weights_are_kept(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([30.0, 40.0, 35.0])
    monkeypatch.setattr(KeepWeights, "probe_accuracy", lambda *_: next(scores))
    probe = {"every": 1, "root": str(small_data)}
    train(small_pretraining(small_data, pretrain={"probe": probe}, train={"epochs": 3}), tmp_path / "run")
    for file, score in ((WEIGHTS_FILE, 35.0), (BEST_WEIGHTS_FILE, 40.0)):
        story = json.loads(read_safetensors(tmp_path / "run" / file)[1]["story"])
        assert story["record"]["probe_accuracy"] == score
        assert str(small_data) not in json.dumps(story)


def test_held_out_clouds_are_not_trained_on(small_data: Path) -> None:
    config = small_pretraining(small_data)
    data, probe = build_splits(config), build_probe_data(config)
    positions = [*data.train.positions.tolist(), *data.val.positions.tolist()]
    assert sorted(positions) == list(range(80))
    assert len(data.val) == 16
    assert not set(probe[0].positions.tolist()) & set(probe[1].positions.tolist())


def test_variants_of_one_object_are_held_out_together(small_data: Path) -> None:
    for fraction in (0.01, 0.2, 0.5):
        data = build_splits(small_pretraining(small_data, eval={"val_fraction": fraction}))
        assert data.train.groups is not None
        assert data.val.groups is not None
        assert not set(data.train.groups.tolist()) & set(data.val.groups.tolist())
        assert len(data.val) == max(2, 80 * fraction)


def test_held_out_clouds_without_groups_stay_those_of_the_first_version(tmp_path: Path) -> None:
    """Another split would end the runs that began with it."""
    with h5py.File(tmp_path / "clouds.h5", "w") as file:
        file["data"] = torch.randn(20, 128, 3, generator=torch.Generator().manual_seed(0)).numpy()
    data = {"name": "folder", "root": str(tmp_path / "clouds.h5")}
    config = small_pretraining(tmp_path, data=data, pretrain={"probe": {"every": 0}})
    assert build_splits(config).val.positions.tolist() == [6, 9, 14, 18]
    with pytest.raises(DataError, match=r"eval\.val_fraction=0\.99 of 20 clouds holds all of them out; use more"):
        build_splits(config.replaced(eval={"val_fraction": 0.99}))


def test_the_probe_chooses_its_cost_without_seeing_variants(small_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_pretraining(small_data)
    parts = build_probe_data(config)
    folds = []

    class Search(GridSearchCV):
        def fit(self, features: Any, labels: Any, groups: Any = None) -> Any:
            folds.extend(check_cv(self.cv, labels, classifier=True).split(features, labels, groups))
            return super().fit(features, labels, groups=groups)

    monkeypatch.setattr("sklearn.model_selection.GridSearchCV", Search)
    for part, together in ((parts[0], True), (without_groups(parts[0]), False)):
        folds.clear()
        accuracy = probe_module.probe_accuracy(
            build_backbone(config.backbone), part, parts[1], config, devices.make_accelerator("fp32")
        )
        assert 0 <= accuracy <= 100
        groups = parts[0].groups
        assert groups is not None
        assert len(folds) == 3
        assert together == all(not set(groups[a].tolist()) & set(groups[b].tolist()) for a, b in folds)


def without_groups(data: PointClouds) -> PointClouds:
    part = data.subset(range(len(data)))
    part.groups = None
    return part


def test_the_probe_command_prints_both_accuracies(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_pretraining(small_data, train={"epochs": 1})
    train(config, tmp_path / "run")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    weights = tmp_path / "run" / WEIGHTS_FILE
    capsys.readouterr()
    assert main(["probe", "--config", str(tmp_path / "config.yaml"), f"backbone.weights={weights}"]) == 0
    printed = capsys.readouterr().out
    assert "random, BatchNorm calibrated" in printed
    assert "accuracy %" in printed
    found = run.probe(config.replaced(backbone={"weights": str(weights)}), devices.make_accelerator("fp32"))
    assert f"{found[str(weights)]:.2f}" in printed


def test_the_standard_error_of_a_probe_counts_variants_of_a_part_as_one() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.7
    binomial = 100 * float(np.sqrt(right.mean() * (1 - right.mean()) / 400))
    assert probe_module.standard_error([right], None) == pytest.approx(binomial, rel=0.01)
    twice, groups = right.repeat(2), torch.arange(400).repeat_interleave(2)
    assert probe_module.standard_error([twice], groups) == pytest.approx(binomial, rel=0.01)
    assert probe_module.standard_error([right, ~right], None) == 0  # of the mean over initialisations


def test_a_probe_needs_weights(small_data: Path) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.weights is not set; add"):
        run.probe(small_pretraining(small_data), devices.make_accelerator("fp32"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain": {"decoder_heads": 5}}, r"pretrain\.decoder_heads: 5 heads do not divide backbone\.dim=48"),
        ({"pretrain": {"mask_ratio": 0.01}}, r"pretrain\.mask_ratio: 0\.01 of backbone\.num_groups=16 hides no group"),
        ({"pretrain": {"mask": "all"}}, r"pretrain\.mask: .*'random' or 'block'"),
        ({"pretrain": {"probe": {"evry": 1}}}, r"pretrain\.probe\.evry: unknown key; did you mean 'every'"),
        ({"pretrain": {"probe": {"name": "ldraw"}}}, r"pretrain\.probe\.name: unknown name 'ldraw'"),
    ],
)
def test_wrong_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_pretraining(Path(), **changes)


def test_weights_start_the_autoencoder(small_data: Path, tmp_path: Path) -> None:
    config = small_pretraining(small_data, train={"epochs": 1}, pretrain={"probe": {"every": 0}})
    train(config, tmp_path / "run")
    weights = {"weights": str(tmp_path / "run" / WEIGHTS_FILE)}
    continued = build_trained(config.replaced(backbone=weights)).encoder
    assert torch.equal(continued.norm.weight, build_backbone(config.replaced(backbone=weights).backbone).norm.weight)
    assert not torch.equal(continued.norm.weight, build_backbone(config.backbone).norm.weight)
