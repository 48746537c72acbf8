"""Parameter budgets of the shipped configs, and of every method at its published size, by written numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pointadapterx.build import build_method, build_model
from pointadapterx.config import load_config
from pointadapterx.models.adapted import AdaptedModel, count_parameters
from pointadapterx.models.head import ClassificationHead
from pointadapterx.models.vit import ViT
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


@pytest.mark.parametrize(
    ("method", "without_head"),
    [
        ({"name": "full"}, 85_798_656),
        ({"name": "linear"}, 0),
        ({"name": "bitfit"}, 102_144),
        ({"name": "vpt", "num_prompts": 50}, 460_800),
        ({"name": "vpt", "num_prompts": 50, "deep": False}, 38_400),
        ({"name": "lora"}, 294_912),
        ({"name": "ssf"}, 205_824),
        ({"name": "adapter", "rank": 8}, 156_768),
        ({"name": "adapter"}, 1_189_632),
        ({"name": "adaptformer"}, 1_189_632),
        ({"name": "adapter_x"}, 167_448),
        ({"name": "adapter_x", "norms": False, "prompts": False}, 148_992),
        ({"name": "adaptformer_x"}, 167_448),
    ],
)
def test_published_sizes_on_vit_b(method: dict[str, Any], without_head: int) -> None:
    with torch.device("meta"):
        model = AdaptedModel(ViT(ViT.Options()), build_method(method), ClassificationHead(768, 100, ["cls"], ()))
    assert count_parameters(model).trainable_without_head == without_head
