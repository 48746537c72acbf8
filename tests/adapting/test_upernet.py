"""UPerNet on Swin: the numbers of transformers' own, its files, timm's Swin under it; and what else needs extras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pointadapterx.build import build_model
from pointadapterx.checkpoints.published import load_pretrained
from pointadapterx.config import Config
from pointadapterx.datasets import MaskedImages, build_dataset
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.inputs import Batch
from pointadapterx.errors import DataError
from pointadapterx.tasks import build_task
from tests.adapting.models import randomised
from tests.masks import segmentation_config, write_coco_masks

pytest.importorskip("transformers")

# The last stage has 4 x 4 tokens, more than a window: where it has no more, transformers' SwinModel shifts no windows,
# but its UPerNet does.
SWIN = {"embed_dim": 8, "depths": [1, 2, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 2, "patch_size": 2}
SIDE = 64


def swin_config(name: str = "linear", backbone: dict[str, Any] | None = None, **task: Any) -> Config:
    hf = {"name": "hf", "architecture": {"model_type": "swin", "image_size": SIDE, **SWIN}, "weights": None}
    sections = segmentation_config(None, name).dump()
    sections["backbone"] = {**(backbone or hf), "image_size": SIDE}
    sections["task"] = {"name": "image_segmentation", "channels": 8, "num_classes": 5, **task}
    sections["data"].pop("mean", None), sections["data"].pop("std", None)
    return Config.of(sections, "test")


def quiet(model: nn.Module) -> nn.Module:
    """In training mode, but without draws."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d) or "DropPath" in type(module).__name__:
            module.eval()
    return model


@pytest.mark.parametrize("norm", ["swin.", ""], ids=["as written today", "as published"])
def test_transformers_upernet_says_the_same(norm: str, tmp_path: Path) -> None:
    """Logits, and the loss with the auxiliary head, of a file that transformers wrote."""
    from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

    stages = [f"stage{number}" for number in range(1, 5)]
    swin = SwinConfig(**SWIN, image_size=SIDE, out_features=stages)
    options = {"hidden_size": 8, "num_labels": 5, "auxiliary_channels": 256, "auxiliary_loss_weight": 0.4}
    theirs = randomised(UperNetForSemanticSegmentation(UperNetConfig(backbone_config=swin, **options)))
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    state = {
        name.replace("backbone.swin.", f"backbone.{norm}"): tensor.contiguous()
        for name, tensor in theirs.state_dict().items()
        if not name.startswith("backbone.swin.layernorm")  # which it has no use for
    }
    save_file(state, tmp_path / "upernet.safetensors")
    config = swin_config(auxiliary=0.4)
    own = build_model(config)
    report = load_pretrained(own, tmp_path / "upernet.safetensors")
    assert report.missing == ["head.norms.3.bias", "head.norms.3.weight"]  # the last stage's is the final norm
    assert report.unexpected == []
    images, truth = torch.randn(2, 3, SIDE, SIDE), torch.randint(0, 5, (2, SIDE, SIDE))
    with torch.no_grad():
        expected = theirs.eval()(images).logits
        assert (own.eval()(images).logits - expected).abs().max() < 1e-4 * expected.abs().max()
    loss, _ = build_task(config).loss(quiet(own), Batch(images, Targets(pixels=truth)), torch.Generator())
    assert loss.item() == pytest.approx(quiet(theirs)(images, labels=truth).loss.item(), rel=1e-4)


TIMM = {
    "name": "timm",
    "model": "swin_tiny_patch4_window7_224",
    "architecture": {**{key: value for key, value in SWIN.items() if key != "patch_size"}, "patch_size": 2},
    "weights": None,
}


@pytest.mark.timm
@pytest.mark.parametrize("name", ["linear", "lora", "full", "e3va"])
@pytest.mark.parametrize("head", ["upernet", "light"])
def test_swin_of_timm_gives_its_stages(name: str, head: str) -> None:
    pytest.importorskip("timm", reason="timm is not installed here; make test-foreign runs this")
    config = swin_config(name, TIMM, head=head)
    model, images = build_model(config), torch.randn(2, 3, SIDE, SIDE)
    assert model.head.blocks == (0, 2, 4, 6)
    assert [level.side for level in model.head.norms.levels] == [32, 16, 8, 4]
    loss, _ = build_task(config).loss(
        model, Batch(images, Targets(pixels=torch.zeros(2, SIDE, SIDE).long())), torch.Generator()
    )
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.eval()(images).logits.shape == (2, 5, SIDE, SIDE)


@pytest.mark.timm
def test_outlines_of_coco_become_masks(tmp_path: Path) -> None:
    """Smaller objects over larger ones, in the order of the ids of their categories."""
    pytest.importorskip("pycocotools", reason="pycocotools is not installed here; make test-foreign runs this")
    data = build_dataset("coco_masks", "train", root=write_coco_masks(tmp_path))
    assert isinstance(data, MaskedImages)
    assert data.pixel_classes == ["background", "plate", "table"]
    mask = data.mask(0)
    assert mask.shape == (8, 12)
    assert mask[3, [1, 3, 6, 10]].tolist() == [2, 1, 2, 0]
    assert data.checksum != data.subset([]).checksum
    content = json.loads((tmp_path / "train.json").read_text())
    del content["annotations"][0]["segmentation"]
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"0\.png: an object has a box alone; add its 'segmentation'"):
        build_dataset("coco_masks", "train", root=tmp_path)
