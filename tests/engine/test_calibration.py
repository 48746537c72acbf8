"""Confidence that is calibrated, where that can be shown to help."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pointadapterx import jobs as run
from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import load_adapter, read_adapter, save_adapter
from pointadapterx.config import Config
from pointadapterx.engine import devices
from pointadapterx.run_folder import ADAPTER_FILE
from pointadapterx.tasks import calibration
from pointadapterx.tasks.calibration import (
    Calibration,
    calibration_error,
    fit_temperature,
    least_loss,
    summary,
)

MakeConfig = Callable[..., Config]


def draws(temperature: float, count: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(count, 6, generator=generator)
    return logits, torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator).flatten()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_and_lowers_the_calibration_error(temperature: float) -> None:
    logits, labels = draws(temperature)
    assert least_loss(logits, labels) == pytest.approx(temperature, rel=0.05)
    if temperature == 1.0:
        return
    found = fit_temperature(logits, labels)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.samples == 4000
    told = summary(found, logits, labels)
    assert told["calibration_error"] < 3.0
    assert told["calibration_error"] < 0.3 * told["calibration_error_before"]


@pytest.mark.parametrize("count", [5, 30, 300])
def test_right_answers_alone_do_not_make_certain(count: int) -> None:
    labels = torch.arange(count) % 5
    logits = torch.eye(5)[labels]
    found = Calibration(least_loss(logits, labels), count)
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


def test_a_temperature_is_kept_only_where_it_helps() -> None:
    labels = torch.arange(400) % 5
    said = labels.clone()
    said[:80] = (labels[:80] + 1) % 5  # 80 % are right, and 80 % is what they say
    logits = torch.full((400,), 16.0).log()[:, None] * torch.eye(5)[said]
    logits[:8] *= 9  # but for some that are wrong and sure of it, which a loss weighs more than a calibration error
    assert least_loss(logits, labels) > 1.1
    found = fit_temperature(logits, labels)
    assert found.temperature == 1.0
    assert "does not lower the calibration error" in found.reason
    assert fit_temperature(*draws(3.0, 400)).reason == ""
    few = fit_temperature(*draws(3.0, 49))
    assert few == Calibration(1.0, 49, "49 validation samples are too few to judge one by; 50 are enough")


def test_it_is_judged_on_samples_that_it_was_not_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fold gets the temperature of the others, so one that fits only its own samples is not kept."""
    logits, labels = draws(3.0, 400)
    seen: list[int] = []

    def overfitted(logits: torch.Tensor, labels: torch.Tensor) -> float:
        seen.append(len(labels))
        return 3.0 if len(labels) == 400 else 0.3

    monkeypatch.setattr(calibration, "least_loss", overfitted)
    assert fit_temperature(logits, labels).temperature == 1.0
    assert seen == [320] * 5


@pytest.mark.parametrize("temperature", [0.01, 100.0])
def test_probabilities_of_extreme_logits_are_numbers(temperature: float) -> None:
    logits = torch.tensor([[3e38, -3e38, 0.0], [1e37, 2e37, -3e38]])
    assert Calibration(temperature, 10).probabilities(logits).argmax(dim=-1).tolist() == [0, 1]
    torch.testing.assert_close(Calibration(temperature, 10).probabilities(logits).sum(dim=-1), torch.ones(2))


def test_a_run_stores_how_to_read_its_logits(run_config: MakeConfig, tmp_path: Path) -> None:
    config = run_config("dapt_x")
    run.train(config, "test", tmp_path / "run", devices.make_accelerator("fp32"))
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())["calibration"]
    info = read_adapter(tmp_path / "run" / ADAPTER_FILE)
    assert info.facts.calibration is not None
    assert info.facts.novelty is not None
    assert info.facts.calibration.temperature == report["temperature"]
    assert set(report) == {"temperature", "fitted_on", "reason", "calibration_error_before", "calibration_error"}
    model = build_model(config).eval()
    load_adapter(model, info)  # what was stored besides is none of the model's tensors
    points = torch.randn(4, 128, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.pooled(points)
        assert features.shape == (4, 3 * 48)
        hidden, logits = model.head.classify(features)
        torch.testing.assert_close(logits, model(points).logits)
    path = tmp_path / "again.safetensors"
    save_adapter(model, path, config=info.config, facts=info.facts)
    again = read_adapter(path)
    assert again.facts.calibration == info.facts.calibration
    assert again.facts.novelty is not None
    assert torch.equal(again.facts.novelty.share_below(hidden, logits), info.facts.novelty.share_below(hidden, logits))


@pytest.mark.parametrize("protocol", ["last", "published"])
def test_without_a_validation_part_nothing_is_fitted(protocol: str, run_config: MakeConfig, tmp_path: Path) -> None:
    config = run_config("linear", eval={"protocol": protocol})
    run.train(config, "test", tmp_path / "run", devices.make_accelerator("fp32"))
    assert "calibration" not in json.loads((tmp_path / "run" / "metrics.json").read_text())
    info = read_adapter(tmp_path / "run" / ADAPTER_FILE)
    assert info.facts.calibration is None
    assert info.facts.novelty is None
