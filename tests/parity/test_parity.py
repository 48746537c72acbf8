"""Agreement with the published models: through an oracle anywhere, through reference outputs where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.checkpoints.published import load_pretrained
from pointadapterx.models.grouping import Grouping, Groups
from pointadapterx.models.point_mae import MaskedAutoencoder, PointMAE
from pointadapterx.ops import farthest_point_sample
from pointadapterx.peft import METHODS
from pointadapterx.tasks.heads import ClassificationHead, HeadConfig
from tests.parity import oracle

POOLS = {"mean": ["cls", "prompt_mean", "patch_max"], "None": ["cls", "patch_max"]}


def classifier(config: dict[str, Any], method: str, pools: list[str]) -> AdaptedModel:
    """A model of the sizes that a published config names."""
    options = METHODS[method].Options
    chosen = options(rank=config["rank"], dropout=0.0) if method == "dapt" else options()
    position = "input" if method == "dapt" else "every_block"
    backbone = encoder(config, position)
    head = ClassificationHead(backbone.feature_info, HeadConfig(num_classes=config["cls_dim"], pools=pools))
    return AdaptedModel(backbone, METHODS[method](chosen), head).eval()


def encoder(config: dict[str, Any], position: str = "every_block") -> PointMAE:
    return PointMAE(
        PointMAE.Options(
            dim=config["trans_dim"],
            depth=config["depth"],
            num_heads=config["num_heads"],
            encoder_dim=config["encoder_dims"],
            num_groups=config["num_group"],
            group_size=config["group_size"],
            position=position,
            skip_origin=True,
        )
    )


def save(checkpoint: dict[str, Any], folder: Path) -> Path:
    torch.save(checkpoint, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


@pytest.mark.parametrize("prefix", ["", "module.", "module.base_model.", "transformer_k.", "module.ACT_encoder."])
@pytest.mark.parametrize("method", ["full", "dapt"])
def test_published_layouts_agree_with_the_oracle(method: str, prefix: str, tmp_path: Path) -> None:
    pools = POOLS["mean" if method == "dapt" else "None"]
    rank = 4 if method == "dapt" else None
    state = oracle.random_state(1, dim=24, depth=2, classes=5, pools=len(pools), rank=rank)
    sizes = {"trans_dim": 24, "depth": 2, "num_heads": 3, "encoder_dims": 24, "num_group": 8, "group_size": 4}
    model = classifier(sizes | {"cls_dim": 5, "rank": rank}, method, pools)
    path = save({"base_model": {prefix + name: tensor for name, tensor in state.items()}, "epoch": 3}, tmp_path)
    report = load_pretrained(model, path)
    assert (report.missing, report.unexpected, report.coverage) == ([], [], 1.0)
    points = torch.randn(3, 64, 3, generator=torch.Generator().manual_seed(2)) * 0.3
    wanted = oracle.classify(state, points, heads=3, num_groups=8, size=4, pools=pools)
    torch.testing.assert_close(model(points).logits, wanted, atol=1e-4, rtol=0)


@pytest.mark.reference
def test_finetuned_point_mae(reference_folder: Path, tmp_path: Path) -> None:
    golden = torch.load(reference_folder / "point_mae_finetuned.pt", weights_only=True)
    config = golden["config"]
    model = classifier(config, "full", POOLS["None"])
    report = load_pretrained(model, save(golden["checkpoint"], tmp_path))
    assert (report.missing, report.unexpected) == ([], [])
    groups = Grouping(config["num_group"], config["group_size"], skip_origin=True)(golden["points"])
    assert torch.equal(groups.centers, golden["center"])
    assert sorted_groups(groups.neighborhood) == sorted_groups(golden["neighborhood"])
    torch.testing.assert_close(model(golden["points"]).logits, golden["logits"], atol=1e-4, rtol=0)
    state = {name.removeprefix("module."): t for name, t in golden["checkpoint"]["base_model"].items()}
    wanted = oracle.classify(
        state, golden["points"], heads=config["num_heads"], num_groups=config["num_group"],
        size=config["group_size"], pools=POOLS["None"],
    )  # fmt: skip
    torch.testing.assert_close(wanted, golden["logits"], atol=1e-4, rtol=0)


@pytest.mark.reference
@pytest.mark.parametrize("name", ["dapt_mean_max", "dapt_none_max"])
def test_dapt(reference_folder: Path, tmp_path: Path, name: str) -> None:
    golden = torch.load(reference_folder / f"{name}.pt", weights_only=True)
    config, pools = golden["config"], POOLS[golden["config"]["prompt_token"]]
    model = classifier(config, "dapt", pools)
    report = load_pretrained(model, save(golden["checkpoint"], tmp_path))
    assert (report.missing, report.unexpected) == ([], [])
    torch.testing.assert_close(model(golden["points"]).logits, golden["logits"], atol=1e-4, rtol=0)
    state = {name.removeprefix("module."): t for name, t in golden["checkpoint"]["base_model"].items()}
    wanted = oracle.classify(
        state, golden["points"], heads=config["num_heads"], num_groups=config["num_group"],
        size=config["group_size"], pools=pools,
    )  # fmt: skip
    torch.testing.assert_close(wanted, golden["logits"], atol=1e-4, rtol=0)


@pytest.mark.reference
def test_pretraining(reference_folder: Path, tmp_path: Path) -> None:
    golden = torch.load(reference_folder / "point_mae_pretrain.pt", weights_only=True)
    config = golden["config"] | golden["config"]["transformer_config"]
    path = save(golden["checkpoint"], tmp_path)
    model = MaskedAutoencoder(encoder(config), config["decoder_depth"], config["decoder_num_heads"]).eval()
    report = load_pretrained(model, path)
    assert report.missing == ["encoder.cls_position", "encoder.cls_token"]
    assert report.unexpected == []
    groups = Groups(golden["neighborhood"], golden["center"])
    visible = model.encode(groups, torch.zeros_like(golden["mask"]))
    torch.testing.assert_close(visible, golden["encoder_tokens"], atol=1e-4, rtol=0)
    torch.testing.assert_close(model(groups, golden["mask"]).loss, golden["loss"], atol=1e-5, rtol=0)
    alone = load_pretrained(encoder(config), path)
    assert alone.missing == ["cls_position", "cls_token"]
    assert alone.coverage == 1.0


@pytest.mark.reference
def test_fps(reference_folder: Path) -> None:
    golden = torch.load(reference_folder / "fps.pt", weights_only=True)
    count = golden["fps_exact"].shape[1]
    assert torch.equal(farthest_point_sample(golden["points"], count), golden["fps_exact"])
    skipping = farthest_point_sample(golden["points"], count, skip_origin=True)
    assert torch.equal(skipping, golden["fps_pointnet2"])


def sorted_groups(neighborhood: torch.Tensor) -> list[Any]:
    """Groups as sorted lists of points: the order within a group carries no meaning."""
    return [[sorted(map(tuple, group)) for group in cloud] for cloud in neighborhood.tolist()]
