"""Shared fixtures: small models and configs that train in a second."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.config import Config
from pointadapterx.datasets import DATASETS
from pointadapterx.models.features import FeatureInfo, StageInfo
from pointadapterx.peft import METHODS
from tests.required import pytest_configure, pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent


def load_tool(name: str) -> ModuleType:
    """A script of ``tools/``, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reference_folder() -> Path:
    """Folder of public reference outputs, named by POINTADAPTERX_REFERENCE."""
    folder = os.environ.get("POINTADAPTERX_REFERENCE")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set POINTADAPTERX_REFERENCE to the folder of public reference outputs")
    return Path(folder)


BACKBONES: dict[str, dict[str, Any]] = {
    "point_mae": {"encoder_dim": 48, "num_groups": 16, "group_size": 8},
    "vit": {"patch_size": 4, "image_size": 16},
}
"""Small backbones: what they have besides width 48, 2 blocks of 3 heads, and drop path."""

DATA: dict[str, dict[str, Any]] = {
    "point_mae": {"name": "ldraw20", "num_points": 128, "augment": "rotation"},
    "vit": {"name": "digits", "augment": "shift"},
}
"""Data for each of them, which come with the project."""


def small_config(name: str = "dapt_x", /, kind: str = "point_mae", **changes: dict[str, Any]) -> Config:
    """A complete config of a model with 2 blocks of width 48 on one of :data:`BACKBONES`.

    ``changes`` update its sections.
    """
    options = METHODS[name].Options
    makes_prompts = changes.get("method", {}).get("prompts", options().makes_prompts)
    config: dict[str, Any] = {
        "backbone": {"name": kind, "dim": 48, "depth": 2, "num_heads": 3, **BACKBONES[kind], "drop_path": 0.1},
        "method": {"name": name},
        "head": {
            "pools": ["cls", "prompt_mean", "patch_max"] if makes_prompts else ["cls", "patch_max"],
            "num_classes": DATASETS[DATA[kind]["name"]].count_classes(None),
        },
        "data": dict(DATA[kind]),
        "train": {"epochs": 2, "warmup_epochs": 0, "batch_size": 8, "lr": 1e-3, "precision": "fp32"},
        "eval": {"val_fraction": 0.3, "batch_size": 7},
    }
    if "rank" in options.model_fields:
        config["method"]["rank"] = 4
    if "widths" in options.model_fields:
        config["method"]["widths"] = [1, 3]
    for section, update in changes.items():
        config[section].update(update)
    return Config.of(config, "test")


def small_pretraining(root: Path, /, **changes: dict[str, Any]) -> Config:
    """A complete pre-training config of the same backbone, with the probe on the data set in ``root``."""
    config: dict[str, Any] = {
        "backbone": small_config("linear").backbone.model_dump(),
        "pretrain": {
            "decoder_depth": 1,
            "decoder_heads": 3,
            "draw": 0,
            "probe": {"every": 2, "root": str(root)},
        },
        "data": {"name": "ldraw20", "root": str(root), "num_points": 128, "augment": "scale_translate"},
        "train": {"epochs": 2, "warmup_epochs": 0, "batch_size": 16, "lr": 1e-3, "precision": "fp32"},
        "eval": {"val_fraction": 0.2, "batch_size": 7},
    }
    for section, update in changes.items():
        config[section].update(update)
    return Config.of(config, "test")


def feature_info(width: int, num_patches: int = 6, depth: int = 2) -> FeatureInfo:
    """What a backbone of one stage with a class token tells heads."""
    return FeatureInfo((StageInfo(width, num_patches, range(depth), None),), has_class_token=True, coordinates=3)


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    """No test inherits the precision of another's accelerator."""
    AcceleratorState._reset_state()


@pytest.fixture(autouse=True)
def _fresh_logging() -> Iterator[None]:
    """No test inherits what a command of another has made of the package's logger."""
    logger = logging.getLogger("pointadapterx")
    kept = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = kept


@pytest.fixture(autouse=True, scope="session")
def _heed_signals() -> None:
    """Under ``nohup`` or behind ``&`` the tests start with signals ignored, which those that send some cannot use.

    In a worker of pytest-xdist a signal that comes when nobody waits for it fails the test, where it would end the
    worker without a word (``node down: Not properly terminated``).
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (getattr(signal, "SIGHUP", None), signal.SIGTERM):
        if number is not None and "PYTEST_XDIST_WORKER" in os.environ:
            signal.signal(number, _fail_for_signal)
        elif number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _fail_for_signal(number: int, frame: FrameType | None, worker: int = os.getpid()) -> None:
    if os.getpid() != worker:  # a fork of it, which is to be ended
        os._exit(128 + number)
    pytest.fail(f"{signal.Signals(number).name} came when nobody waited for it")


@pytest.fixture
def make_config() -> Callable[..., Config]:
    return small_config


@pytest.fixture
def points() -> torch.Tensor:
    """(6, 128, 3) clouds."""
    return torch.randn(6, 128, 3, generator=torch.Generator().manual_seed(3))


def randomise(model: AdaptedModel, seed: int = 0) -> AdaptedModel:
    """Moves every trainable parameter away from its (often zero) initial value, keeping scales plausible."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model
