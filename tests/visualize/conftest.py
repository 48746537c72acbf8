"""Adapters of shipped weights on embedded data, with random values instead of trained ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pointadapterx.build import build_model, build_test_split
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.config import Config, read_config
from pointadapterx.datasets import Samples
from pointadapterx.tasks.calibration import Calibration
from pointadapterx.tasks.classification import ClassFacts
from pointadapterx.visualize import loaded_run
from pointadapterx.visualize.loaded_run import Subject
from tests.conftest import ROOT, randomise


def save_random(path: Path, config_name: str, *overrides: str) -> Path:
    """An adapter file of a config's model with random trained parameters."""
    config = read_config(ROOT / "cfgs" / config_name, list(overrides))
    path.parent.mkdir(parents=True, exist_ok=True)
    calibration = Calibration(2.0, 100)
    classes = build_test_split(config).classes
    save_adapter(randomise(build_model(config)), path, config=config, facts=ClassFacts(classes, calibration))
    return path


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test splits of 48 samples, spread over all."""

    def build(config: Config) -> Samples:
        whole = build_test_split(config)
        return whole.subset(torch.linspace(0, len(whole) - 1, 48).long())

    monkeypatch.setattr(loaded_run, "build_test_split", build)


@pytest.fixture(scope="session")
def demo_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DAPT-X on the embedded LDraw-20 clouds."""
    return save_random(tmp_path_factory.mktemp("demo") / "adapter.safetensors", "demo.yaml")


@pytest.fixture(scope="session")
def digits_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapter-X on handwritten digits."""
    return save_random(tmp_path_factory.mktemp("digits") / "adapter.safetensors", "vtab/digits.yaml")


@pytest.fixture
def demo(demo_adapter: Path) -> Subject:
    """The first of them, loaded."""
    return Subject(demo_adapter)


@pytest.fixture
def digits(digits_adapter: Path) -> Subject:
    """The second."""
    return Subject(digits_adapter)
