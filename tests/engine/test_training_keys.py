"""Class weights, the balanced sampler, early stopping and the device."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from pointadapterx import jobs
from pointadapterx.commands.main import main
from pointadapterx.config import Config, read_config
from pointadapterx.datasets import build_dataset, even_batches
from pointadapterx.datasets.inputs import Batches
from pointadapterx.engine import devices
from pointadapterx.engine.state import Progress
from pointadapterx.engine.trainer import Interrupted, Trainer
from pointadapterx.errors import ConfigError
from pointadapterx.run_folder import STATE_FILE
from pointadapterx.tasks import build_task
from pointadapterx.tasks.weighting import class_weights
from tests.conftest import small_config, small_pretraining

MakeConfig = Callable[..., Config]
LABELS = torch.tensor([0] * 12 + [1] * 3 + [3])
CLASSES = ["a", "b", "c", "d"]


def test_keys_that_are_null_change_nothing_that_is_stored() -> None:
    from pointadapterx.study.identity import _without_null

    stored = small_config("linear").dump()["train"]
    keys = ("class_weights", "sampler", "early_stopping", "cosine_epochs", "cooldown_epochs", "device")
    assert [stored[key] for key in keys] == [None] * len(keys)
    assert not set(keys) & set(_without_null({"train": stored})["train"])


def test_balanced_weights_make_every_class_count_alike() -> None:
    weights = class_weights("balanced", LABELS, CLASSES)
    assert weights is not None
    sums = torch.zeros(4).index_add(0, LABELS, weights[LABELS])
    assert sums[[0, 1, 3]].tolist() == pytest.approx([16 / 3] * 3)
    assert weights[LABELS].mean() == pytest.approx(1)
    assert weights[2] == 1  # a class without labels, which label smoothing reaches
    assert class_weights(None, LABELS, CLASSES) is None
    with pytest.raises(ConfigError, match=r"train.class_weights: 2 numbers for 4 classes; .* order a, b, c, d"):
        class_weights([1.0, 2.0], LABELS, CLASSES)


def test_weighted_losses_of_parts_add_up() -> None:
    config = small_config("linear", train={"class_weights": "balanced", "label_smoothing": 0.1})
    task = build_task(config)
    data = build_dataset("ldraw20", "train")
    task.learn(data)
    logits, labels = torch.randn(8, 20), data.labels[:8]
    parts = sum(task.criterion(logits[part], labels[part]) * 4 for part in (slice(4), slice(4, 8)))
    assert task.criterion(logits, labels) == pytest.approx(float(parts) / 8)
    plain = build_task(small_config("linear"))
    plain.learn(data)
    assert torch.equal(plain.criterion(logits, labels), F.cross_entropy(logits, labels))
    assert plain.criterion(logits, labels) != task.criterion(logits, labels)


def test_a_balanced_sampler_draws_every_class_equally_often() -> None:
    def drawn(epoch: int) -> torch.Tensor:
        return torch.cat([part for step in even_batches(16, 5, 0, epoch, strata=LABELS) for part in step])

    order = drawn(0)
    assert sorted(LABELS[order].bincount().tolist()) == [0, 5, 5, 6]
    assert order[LABELS[order] == 1].bincount(minlength=16).max() == 2  # of 3 samples none comes three times
    assert torch.equal(order, drawn(0))
    assert not torch.equal(order, drawn(1))
    cut = {"strata": LABELS, "world_size": 2, "accumulate": 2, "repeats": True}
    ranks = [even_batches(16, 8, 0, 0, rank=rank, **cut) for rank in range(2)]  # type: ignore[arg-type]
    before = torch.cat([part for step in zip(*ranks, strict=True) for parts in step for part in parts]).tolist()
    order = torch.cat([part for step in even_batches(16, 8, 0, 0, strata=LABELS) for part in step])
    assert before == [order[:place].eq(sample).sum() for place, sample in enumerate(order)]
    assert max(before) == 5


def test_a_run_stops_early_and_resumes_to_the_same(
    run_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(
        "linear", train={"epochs": 30, "early_stopping": 2, "sampler": "balanced", "class_weights": "balanced"}
    )
    jobs.train(config, "test", tmp_path / "whole", devices.make_accelerator("fp32"))
    report = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert report["stopped_early"]
    assert report["epochs"] == report["best_epoch"] + 2 < 30
    step = Trainer._train_step

    def interrupt(self: Trainer, index: int, *rest: Any) -> Any:
        if self.progress.epoch == report["best_epoch"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, index, *rest)

    training, repeats = Batches.training, []

    def prepare(self: Batches, indices: torch.Tensor, generator: torch.Generator, before: torch.Tensor) -> Any:
        repeats.append(before)
        return training(self, indices, generator, before)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupt)
        patch.setattr(Batches, "training", prepare)
        with pytest.raises(Interrupted):
            jobs.train(config, "test", tmp_path / "stopped", devices.make_accelerator("fp32"))
    assert torch.cat(repeats).any()  # which scenes draw other points for
    jobs.resume(tmp_path / "stopped", [])
    one, other = (load_file(tmp_path / name / STATE_FILE) for name in ("whole", "stopped"))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert json.loads((tmp_path / "stopped" / "metrics.json").read_text())["epochs"] == report["epochs"]
    before = (tmp_path / "whole" / "metrics.json").stat().st_mtime_ns
    jobs.resume(tmp_path / "whole", [])  # finished, though epochs are left
    assert (tmp_path / "whole" / "metrics.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("start", "overrides", "kept"),
    [
        ("demo", [], 2),
        ("demo", ["eval.ties=last"], 3),
        ("demo", ["train.early_stopping=2"], 3),
        ("demo", ["train.early_stopping=2", "eval.ties=first"], 2),
        ("own", ["data.name=ldraw20", "train.early_stopping=null"], 3),  # as with few epochs
    ],
)
def test_which_of_equally_good_epochs_is_kept(start: str, overrides: list[str], kept: int) -> None:
    config, chosen = read_config(start, overrides), list[int]()
    task, progress = build_task(config), Progress(identity={})
    trainer: Any = SimpleNamespace(
        config=config, task=task, progress=progress, selection_name="val", _keep=lambda _: chosen.append(progress.epoch)
    )
    for progress.epoch, score in enumerate((50.0, 60.0, 100.0, 100.0, 90.0)):
        Trainer._select(trainer, {}, dict.fromkeys((*task.scores, *task.recorded), score))
    assert chosen[-1] == kept


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.early_stopping=3", "eval.protocol=last"], "eval.protocol=last scores no epoch"),
        (["train.early_stopping=20"], "20 evaluations, one every 1 epochs, never pass within train.epochs=20"),
        (["train.device=gpu"], "'gpu' is none of auto, cpu, cuda and cuda:N"),
        (["train.class_weights=[1, 0]"], "class_weights"),
        (["train.sampler=sorted"], "sampler"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        read_config("demo", overrides)


def test_pretraining_has_nothing_to_weigh(small_data: Path) -> None:
    with pytest.raises(ConfigError) as error:
        small_pretraining(small_data, train={"class_weights": "balanced", "sampler": "balanced", "early_stopping": 1})
    assert all(
        f"train.{key}: the task reconstruction has no" in str(error.value) for key in ("sampler", "early_stopping")
    )


def test_a_device_that_is_not_here_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert devices.make_accelerator("fp32", "cpu").device.type == "cpu"
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main(["train", "--config", "demo", "train.device=cuda:1", "--output", str(tmp_path / "run")]) == 2
    assert "train.device=cuda:1: there is no CUDA device here; use cpu, or auto" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("overrides", [{"train.lr": 1e-3}, {"train": {"lr": 1e-3}}, ["train.lr=1e-3"]])
def test_overrides_are_texts_or_mappings(overrides: Any) -> None:
    from pointadapterx import load_config

    assert load_config("demo", overrides).train.lr == 1e-3
    with pytest.raises(ConfigError, match=r"override train.lr=-1: train.lr"):
        load_config("demo", {"train": {"lr": -1}})
