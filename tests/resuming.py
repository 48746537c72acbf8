"""A run that is stopped in the middle of an epoch and resumed ends as one that was not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pointadapterx import jobs
from pointadapterx.config import Config
from pointadapterx.engine import devices
from pointadapterx.engine.trainer import Interrupted, Trainer
from pointadapterx.run_folder import STATE_FILE


def assert_resumes_bit_identical(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains into ``folder/whole``, and into ``folder/stopped`` with a stop in the third step of the second epoch."""
    jobs.train(config, "test", folder / "whole", devices.make_accelerator("fp32"))
    train_until_stopped(config, folder / "stopped", monkeypatch, epoch=1, step=2)
    jobs.resume(folder / "stopped", [])
    assert_same_tensors(folder / "whole" / STATE_FILE, folder / "stopped" / STATE_FILE)


def train_until_stopped(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch, *, epoch: int, step: int
) -> None:
    """Trains until a signal in a step of an epoch, both from 0, asks to stop."""
    train_step = Trainer._train_step

    def interrupt(self: Trainer, index: int, *rest: Any) -> Any:
        if self.progress.epoch == epoch and index == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupt)
        with pytest.raises(Interrupted):
            jobs.train(config, "test", folder, devices.make_accelerator("fp32"))


def assert_same_tensors(first: Path, second: Path) -> None:
    """Two safetensors files hold the same, bit for bit."""
    wanted, found = load_file(first), load_file(second)
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.equal(value, found[key]), key
