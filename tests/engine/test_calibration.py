"""Confidence that is calibrated, and samples that are unlike the training data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pointadapterx.build import build_model
from pointadapterx.engine import run
from pointadapterx.engine.adaptation import ADAPTER_FILE
from pointadapterx.engine.calibration import (
    Calibration,
    Novelty,
    calibration_error,
    fit_temperature,
    summary,
)
from pointadapterx.engine.checkpoint import load_adapter, read_adapter, save_adapter

Config = Callable[..., dict[str, Any]]


def draws(temperature: float, count: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(count, 6, generator=generator)
    return logits, torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator).flatten()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_and_lowers_the_calibration_error(temperature: float) -> None:
    logits, labels = draws(temperature)
    found = fit_temperature(logits, labels)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.samples == 4000
    told = summary(found, logits, labels)
    assert told["calibration_error"] < 3.0
    if temperature != 1.0:
        assert told["calibration_error"] < 0.3 * told["calibration_error_before"]


@pytest.mark.parametrize("count", [5, 30, 300])
def test_right_answers_alone_do_not_make_certain(count: int) -> None:
    labels = torch.arange(count) % 5
    logits = torch.eye(5)[labels]
    found = fit_temperature(logits, labels)
    assert found.probabilities(logits).amax(dim=1).mean().item() == pytest.approx((count + 1) / (count + 2), abs=1e-3)


def test_calibration_error_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 1, 1])  # 0.9 is right in half of its cases, 0.7 in all
    assert calibration_error(probabilities, labels) == pytest.approx(100 * (0.5 * 0.4 + 0.5 * 0.3), abs=1e-4)


def test_probabilities_keep_the_order() -> None:
    logits = torch.randn(20, 4)
    probabilities = Calibration(2.5, 10).probabilities(logits)
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(20))
    assert torch.equal(probabilities.argsort(dim=-1), logits.argsort(dim=-1))


def test_novelty_is_the_share_of_validation_samples_that_are_nearer() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0, 5.0], [10.0, 0.0, 5.0]])  # of classes 0 and 2; there is none of 1
    labels = torch.tensor([0, 2]).repeat(500)
    spread = torch.tensor([1.0, 0.1, 0.0])  # the last feature never varies

    def near() -> torch.Tensor:
        return centres[labels // 2] + spread * torch.randn(1000, 3, generator=generator)

    found = Novelty.fit(near(), labels, 3, near())
    assert found.share_nearer(near()).mean().item() == pytest.approx(0.5, abs=0.05)
    assert bool((found.share_nearer(centres) < 0.02).all())
    unlike = torch.tensor([[5.0, 0.0, 5.0], [0.0, 3.0, 5.0], [0.0, 0.0, 6.0]])  # each in another feature
    assert found.share_nearer(unlike).tolist() == [1.0, 1.0, 1.0]
    assert found.is_unlike(unlike).tolist() == [True, True, True]
    assert not bool(found.is_unlike(near()).any())
    again, others = Novelty.from_tensors(found.tensors()), near()
    assert torch.equal(again.share_nearer(others), found.share_nearer(others))


def test_a_run_stores_how_to_read_its_logits(run_config: Config, tmp_path: Path) -> None:
    config = run_config("dapt_x")
    run.train(config, "test", tmp_path / "run", run.make_accelerator("fp32"))
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())["calibration"]
    info = read_adapter(tmp_path / "run" / ADAPTER_FILE)
    assert info.calibration is not None
    assert info.novelty is not None
    assert info.calibration.temperature == report["temperature"]
    assert set(report) == {"temperature", "fitted_on", "calibration_error_before", "calibration_error"}
    model = build_model(config).eval()
    load_adapter(model, info)  # what was stored besides is none of the model's tensors
    points = torch.randn(4, 128, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.pooled(points)
        assert features.shape == (4, 3 * 48)
        torch.testing.assert_close(model.head.mlp(features), model(points).logits)
    path = tmp_path / "again.safetensors"
    save_adapter(
        model, path, config=info.config, classes=info.classes, calibration=info.calibration, novelty=info.novelty
    )
    again = read_adapter(path)
    assert again.calibration == info.calibration
    assert again.novelty is not None
    assert torch.equal(again.novelty.share_nearer(features), info.novelty.share_nearer(features))


@pytest.mark.parametrize("protocol", ["last", "published"])
def test_without_a_validation_part_nothing_is_fitted(protocol: str, run_config: Config, tmp_path: Path) -> None:
    config = run_config("linear", eval={"protocol": protocol})
    run.train(config, "test", tmp_path / "run", run.make_accelerator("fp32"))
    assert "calibration" not in json.loads((tmp_path / "run" / "metrics.json").read_text())
    info = read_adapter(tmp_path / "run" / ADAPTER_FILE)
    assert info.calibration is None
    assert info.novelty is None
