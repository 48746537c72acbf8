"""The segmentation network of Point-MAE and its descendants: what it computes, its names, and its size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel, count_parameters
from pointadapterx.build import build_backbone, build_model
from pointadapterx.checkpoints.published import load_pretrained
from pointadapterx.config import Config, read_config
from pointadapterx.datasets.s3dis import S3DIS_CLASSES
from pointadapterx.models.checkpoint_keys import translate_published
from tests.parity.segmentation import published_shapes, random_segmentor, segment
from tests.parts import parts_config
from tests.rooms import rooms_config

COUNTS = [4, 2, 2, 4, 4, 3, 3, 2, 4, 2, 6, 2, 3, 3, 3, 3]  # of the 16 categories of ShapeNetPart
PARTS = {f"category {k}": [f"{k}/{part}" for part in range(count)] for k, count in enumerate(COUNTS)}
SMALL = {"dim": 48, "depth": 4, "num_heads": 3, "encoder_dim": 48, "num_groups": 16, "group_size": 8}
LARGE = {"dim": 384, "depth": 12, "num_heads": 6, "encoder_dim": 384, "num_groups": 128, "group_size": 32}
KEPT = [1, 2, 3]


def config_of(method: str = "full", /, head: str = "published", **backbone: object) -> Config:
    """A segmentor without class token."""
    options = {"position": "every_block", "class_token": False, **SMALL, **backbone}
    blocks = None if options["depth"] == 12 else KEPT
    return parts_config(method, {"parts": PARTS, "head": head, "blocks": blocks}, backbone=options)


def computed(model: AdaptedModel, points: Tensor, category: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(points, category).logits.log_softmax(dim=-1)


@pytest.mark.parametrize("suffix", ["", "_cls"])
def test_a_published_checkpoint_loads_whole_and_computes_what_it_did(
    suffix: str, points: Tensor, tmp_path: Path
) -> None:
    """Names of Point-MAE, and of IDPT, whose head's names end in ``_cls``."""
    state = random_segmentor(published_shapes(48, 4))
    renamed = dict(state)
    for layer in ("label_conv", "propagation_0", "convs1", "convs2", "convs3", "bns1", "bns2"):
        renamed = {name.replace(f"{layer}.", f"{layer}{suffix}."): tensor for name, tensor in renamed.items()}
    torch.save({"model_state_dict": renamed, "epoch": 300}, tmp_path / "best_model.pth")
    model = build_model(config_of())
    report = load_pretrained(model, tmp_path / "best_model.pth")
    assert (report.unexpected, report.missing, report.coverage) == ([], [], 1.0)
    category = torch.arange(6)
    wanted = segment(state, points, category, heads=3, groups=16, size=8, kept=KEPT)
    torch.testing.assert_close(computed(model, points, category), wanted, atol=1e-5, rtol=0)


def test_a_checkpoint_of_scenes_loads_whole_and_computes_what_it_did(points: Tensor, tmp_path: Path) -> None:
    """The network for S3DIS: no category, 13 classes, and names that end in ``_cls``."""
    state = random_segmentor(published_shapes(48, 4, parts=13, category=False))
    renamed = dict(state)
    for layer in ("propagation_0", "convs1", "convs2", "convs3", "bns1", "bns2"):
        renamed = {name.replace(f"{layer}.", f"{layer}_cls."): tensor for name, tensor in renamed.items()}
    torch.save({"model_state_dict": renamed}, tmp_path / "best_model.pth")
    task = {"head": "published", "blocks": KEPT, "classes": list(S3DIS_CLASSES)}
    backbone = {"position": "every_block", "class_token": False, **SMALL}
    model = build_model(rooms_config("full", task=task, backbone=backbone))
    report = load_pretrained(model, tmp_path / "best_model.pth")
    assert (report.unexpected, report.missing, report.coverage) == ([], [], 1.0)
    wanted = segment(state, points, torch.zeros(6), heads=3, groups=16, size=8, kept=KEPT)
    with torch.no_grad():
        found = model.eval()(points).logits.log_softmax(dim=-1)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "published", "total", "head"),
    [
        (None, {}, 27_063_730, 5_238_706),
        ("s3dis", {"parts": 13, "category": False}, 27_020_301, 5_195_277),
    ],
)
def test_the_published_network_has_its_names_shapes_and_size(
    config: str | None, published: dict[str, Any], total: int, head: int
) -> None:
    """Of parts, and of the shipped config of scenes."""
    with torch.device("meta"):
        model = build_model(config_of(**LARGE) if config is None else read_config(config, ["data.root=none"]))
        shapes = {name: torch.empty(shape) for name, shape in published_shapes(**published).items()}
    translated = translate_published(shapes)
    names = {**translated.tensors}
    for name in translated.unknown:
        own = model.head.published_name(name)
        assert own is not None, name
        names[f"head.{own}"] = shapes[name]
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {
        name: tuple(tensor.squeeze(-1).shape if tensor.ndim == 3 else tensor.shape) for name, tensor in names.items()
    } == found
    assert model.head.blocks == (3, 7, 11)
    counted = count_parameters(model)
    assert counted.total == total
    assert counted.components["head"].total == head


def test_the_head_of_scenes_starts_as_published() -> None:
    """From a truncated normal of 0.02; a linear layer of torch has a wider uniform one."""
    backbone = {"class_token": False, **SMALL}
    model = build_model(rooms_config("full", task={"head": "published", "blocks": KEPT}, backbone=backbone))
    linear = [module for module in model.head.modules() if isinstance(module, nn.Linear)]
    weights = torch.cat([module.weight.flatten() for module in linear])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(module.bias is not None and not module.bias.any() for module in linear)


def test_the_light_head_is_a_small_share() -> None:
    with torch.device("meta"):
        model = build_model(config_of("lora", "light", **LARGE))
    assert count_parameters(model).components["head"].total == 193_330


def test_a_pretraining_checkpoint_fills_the_backbone(tmp_path: Path) -> None:
    whole = random_segmentor(published_shapes(48, 4))
    encoder = {
        f"MAE_encoder.{n}": t for n, t in whole.items() if n.split(".")[0] in ("encoder", "pos_embed", "blocks", "norm")
    }
    torch.save({"base_model": encoder}, tmp_path / "pretrain.pth")
    config = config_of().replaced(backbone={"weights": str(tmp_path / "pretrain.pth")})
    backbone = build_backbone(config.backbone)
    assert torch.equal(backbone.norm.weight, whole["norm.weight"])


def test_a_checkpoint_of_other_parts_leaves_the_head_as_it_was(tmp_path: Path) -> None:
    torch.save({"model_state_dict": random_segmentor(published_shapes(48, 4, parts=13))}, tmp_path / "other.pth")
    model = build_model(config_of())
    before = model.head.last.weight.clone(), model.head.mixing[0].linear.weight.clone()
    report = load_pretrained(model, tmp_path / "other.pth")
    assert report.coverage == 1.0
    assert torch.equal(model.head.last.weight, before[0])
    assert torch.equal(model.head.mixing[0].linear.weight, before[1])
    assert any(name.startswith("head.last") for name in report.unexpected)
