"""Parameter budgets of the shipped configs, by written numbers."""

from __future__ import annotations

import pytest

from pointadapterx.build import build_model
from pointadapterx.config import load_config
from pointadapterx.models.adapted import count_parameters
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("name", "trainable", "without_head", "percent"),
    [
        ("scan_pb_t50_rs", 415_699, 49_860, "1.88"),
        ("scan_obj_bg", 415_699, 49_860, "1.88"),
        ("scan_obj_only", 415_699, 49_860, "1.88"),
        ("scan_pb_t50_rs_dapt", 1_087_771, 721_932, "4.92"),
        ("scan_pb_t50_rs_full", 22_093_327, 21_825_792, "100.00"),
        ("scan_pb_t50_rs_linear", 267_535, 0, "1.21"),
    ],
)
def test_budget(name: str, trainable: int, without_head: int, percent: str) -> None:
    report = count_parameters(build_model(load_config(ROOT / "cfgs" / f"{name}.yaml")))
    assert (report.trainable, report.trainable_without_head) == (trainable, without_head)
    assert f"{report.percent:.2f}" == percent
    assert report.full == 22_093_327
    assert sum(part.total for part in report.components.values()) == report.total


@pytest.mark.parametrize(
    ("overrides", "trainable", "without_head"),
    [
        (["method.norms=false", "method.prompts=false", "head.pools=[cls, patch_max]"], 298_963, 31_428),
        (["method.mixture=false"], 385_807, 19_968),
    ],
)
def test_budget_of_ablations(overrides: list[str], trainable: int, without_head: int) -> None:
    report = count_parameters(build_model(load_config(ROOT / "cfgs" / "scan_pb_t50_rs.yaml", overrides)))
    assert (report.trainable, report.trainable_without_head) == (trainable, without_head)
