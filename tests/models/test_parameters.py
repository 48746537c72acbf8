"""Parameter budgets of the shipped configs, and of every method at its published size, by written numbers."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import torch
from rich.console import Console

from pointadapterx.adapted_model import AdaptedModel, count_parameters
from pointadapterx.build import build_method, build_model
from pointadapterx.config import load_config
from pointadapterx.jobs.tables import parameter_table
from pointadapterx.models.vit import ViT
from pointadapterx.peft import METHODS
from pointadapterx.tasks.heads import ClassificationHead, HeadConfig
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("name", "trainable", "without_head", "percent"),
    [
        ("scan_pb_t50_rs", 415_699, 49_860, "1.88"),
        ("scan_obj_bg", 415_699, 49_860, "1.88"),
        ("scan_obj_only", 415_699, 49_860, "1.88"),
        ("scan_pb_t50_rs_dapt_x_table3", 564_243, 198_404, "2.55"),
        ("scan_obj_bg_dapt_x_table3", 564_243, 198_404, "2.55"),
        ("scan_obj_only_dapt_x_table3", 564_243, 198_404, "2.55"),
        ("scan_pb_t50_rs_dapt", 1_087_771, 721_932, "4.92"),
        ("scan_obj_bg_dapt", 1_087_771, 721_932, "4.92"),
        ("scan_pb_t50_rs_full", 22_093_327, 21_825_792, "100.00"),
        ("scan_pb_t50_rs_linear", 267_535, 0, "1.21"),
    ],
)
def test_budget(name: str, trainable: int, without_head: int, percent: str) -> None:
    with torch.device("meta"):
        model = build_model(load_config(ROOT / "cfgs" / f"{name}.yaml"))
    report = count_parameters(model)
    assert (report.trainable, report.trainable_without_head) == (trainable, without_head)
    assert f"{report.percent:.2f}" == percent
    assert report.full == 22_093_327
    assert sum(part.total for part in report.components.values()) == report.total


@pytest.mark.parametrize(
    ("name", "trainable", "without_head", "percent"),
    [
        ("scan_pb_t50_rs_adapter", 863_503, 595_968, "3.91"),
        ("scan_pb_t50_rs_adapter_x", 413_479, 47_640, "1.87"),
        ("scan_pb_t50_rs_adaptformer", 863_503, 595_968, "3.91"),
        ("scan_pb_t50_rs_adaptformer_x", 413_479, 47_640, "1.87"),
        ("scan_pb_t50_rs_bitfit", 305_551, 38_016, "1.38"),
        ("scan_pb_t50_rs_e3va", 451_087, 183_552, "2.04"),
        ("scan_pb_t50_rs_e3va_x", 289_807, 22_272, "1.31"),
        ("scan_pb_t50_rs_idpt", 1_696_783, 1_330_944, "7.68"),
        ("scan_pb_t50_rs_lora", 415_759, 148_224, "1.88"),
        ("scan_pb_t50_rs_stag", 429_199, 259_968, "1.95"),
        ("scan_pb_t50_rs_ssf", 371_215, 103_680, "1.68"),
        ("scan_pb_t50_rs_vpt", 360_463, 92_928, "1.63"),
        ("scan_obj_only_dapt", 989_467, 721_932, "4.50"),
        ("modelnet40", 323_820, 49_860, "1.47"),
        ("modelnet40_dapt", 1_069_716, 795_756, "4.84"),
        ("modelnet40_dapt_x_table3", 472_364, 198_404, "2.14"),
        ("vtab/adapter", 233_668, 156_768, "0.27"),
        ("vtab/adapter_x", 244_348, 167_448, "0.28"),
        ("vtab/adaptformer", 1_266_532, 1_189_632, "1.47"),
        ("vtab/adaptformer_x", 244_348, 167_448, "0.28"),
        ("vtab/bitfit", 179_044, 102_144, "0.21"),
        ("vtab/dapt", 1_518_448, 1_441_548, "1.77"),
        ("vtab/dapt_x", 267_368, 190_468, "0.31"),
        ("vtab/e3va", 417_892, 340_992, "0.49"),
        ("vtab/e3va_x", 116_836, 39_936, "0.14"),
        ("vtab/idpt", 5_391_460, 5_314_560, "6.28"),
        ("vtab/full", 85_875_556, 85_798_656, "100.00"),
        ("vtab/linear", 76_900, 0, "0.09"),
        ("vtab/lora", 371_812, 294_912, "0.43"),
        ("vtab/stag", 483_940, 407_040, "0.56"),
        ("vtab/ssf", 282_724, 205_824, "0.33"),
        ("vtab/vpt", 537_700, 460_800, "0.63"),
    ],
)
def test_budget_of_every_other_method(name: str, trainable: int, without_head: int, percent: str) -> None:
    with torch.device("meta"):
        model = build_model(load_config(ROOT / "cfgs" / f"{name}.yaml"))
    report = count_parameters(model)
    assert (report.trainable, report.trainable_without_head) == (trainable, without_head)
    assert f"{report.percent:.2f}" == percent


def test_every_method_has_its_configs() -> None:
    for name in METHODS:
        scan = "scan_pb_t50_rs" if name == "dapt_x" else f"scan_pb_t50_rs_{name}"
        for path in (scan, f"vtab/{name}"):
            assert load_config(ROOT / "cfgs" / f"{path}.yaml").method.name == name


@pytest.mark.parametrize(
    ("name", "overrides", "trainable", "without_head"),
    [
        ("", ["method.norms=false", "method.prompts=false", "head.pools=[cls, patch_max]"], 298_963, 31_428),
        ("", ["method.mixture=false"], 385_807, 19_968),
        ("", ["method.inject_from=6"], 411_091, 45_252),
        ("", ["method.neighbours=8"], 435_715, 69_876),
        ("", ["method.train_position=true"], 465_747, 49_860 + 50_048),
        ("_adapter_x", ["method.train_position=true"], 463_527, 97_688),
        ("", ["head.sum_every=4"], 415_699, 49_860),
        ("_stag", ["method.variant=sl"], 1_021_519, 852_288),
        ("_stag", ["method.class_token=false"], 428_431, 259_200),
        ("_dapt_x_table3", ["method.tfts=null"], 462_099, 96_260),
        ("_dapt_x_table3", ["method.shared=false"], 1_403_455, 1_037_616),
    ],
)
def test_budget_of_ablations(name: str, overrides: list[str], trainable: int, without_head: int) -> None:
    with torch.device("meta"):
        model = build_model(load_config(ROOT / "cfgs" / f"scan_pb_t50_rs{name}.yaml", overrides))
    report = count_parameters(model)
    assert (report.trainable, report.trainable_without_head) == (trainable, without_head)


def test_the_table_of_heads_is_right() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\[[a-z_, ]+\])` \| `(\[[0-9, ]*\])` \| ([0-9,]+) \| ([0-9,]+) \|$", page, re.MULTILINE)
    assert len(rows) == 11
    for pools, hidden, head, trained in rows:
        with torch.device("meta"):
            model = build_model(load_config("scan_pb_t50_rs", [f"head.pools={pools}", f"head.hidden={hidden}"]))
        found = count_parameters(model)
        assert (f"{found.components['head'].trainable:,}", f"{found.trainable:,}") == (head, trained)


@pytest.mark.parametrize(
    ("rank", "heads", "vectors", "norm", "trainable"),
    [
        (24, 3, "true", "true", 415_699),
        (16, 2, "true", "false", 415_891),
        (32, 3, "false", "false", 415_019),
        (32, 3, "false", "true", 415_787),
        (32, 4, "true", "true", 415_251),
        (64, 6, "false", "true", 415_019),
    ],
)
def test_several_compositions_meet_the_paper(rank: int, heads: int, vectors: str, norm: str, trainable: int) -> None:
    """0.42 M and 1.88 %; docs/deviations.md lists them."""
    values = {"rank": rank, "num_heads": heads, "prompt_vectors": vectors, "final_norm": norm}
    with torch.device("meta"):
        config = load_config("scan_pb_t50_rs", [f"method.{key}={value}" for key, value in values.items()])
        report = count_parameters(build_model(config))
    assert report.trainable == trainable
    assert (round(trainable / 1e6, 2), round(report.percent, 2)) == (0.42, 1.88)
    words = {"true": "yes", "false": "no"}
    row = f"| {rank} | {heads} | {'vectors' if vectors == 'true' else 'numbers'} | {words[norm]} | {trainable:,} |"
    assert row in (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("method", "without_head"),
    [
        ({"name": "full"}, 85_798_656),
        ({"name": "linear"}, 0),
        ({"name": "bitfit"}, 102_144),
        ({"name": "vpt", "num_prompts": 50}, 460_800),
        ({"name": "vpt", "num_prompts": 50, "deep": False}, 38_400),
        ({"name": "lora"}, 294_912),
        ({"name": "lora", "dora": True, "rslora": True}, 294_912 + 12 * 2 * 768),
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
        backbone = ViT(ViT.Options())
        head = ClassificationHead(backbone.feature_info, HeadConfig(num_classes=100, pools=["cls"], hidden=[]))
        model = AdaptedModel(backbone, build_method(METHODS[method["name"]].Options(**method)), head)
    assert count_parameters(model).trainable_without_head == without_head


def test_both_percentages_of_papers_are_printed_and_explained() -> None:
    """0.20 % of the backbone, as Adapter-X prints for images; 1.88 % with the head, as for clouds."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for name, with_head, without in (("scan_pb_t50_rs", "1.88", "0.23"), ("vtab/adapter_x", "0.28", "0.20")):
        with torch.device("meta"):
            config = load_config(name)
            report = count_parameters(build_model(config))
        console = Console(width=100, file=io.StringIO())
        console.print(parameter_table(config, report))
        lines = console.file.getvalue().splitlines()
        cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
        shares = {part: share for part, share, _ in cells if share.endswith("%")}
        assert shares == {"of full fine-tuning": f"{with_head} %", "of the backbone": f"{without} %"}
        if name == "scan_pb_t50_rs":
            shown = [[cell.strip() for cell in line.split("│")[1:-1]] for line in page.splitlines() if "│" in line]
            assert all(row in shown for row in cells)
