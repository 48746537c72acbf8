"""ViT: agreement with published layouts, other image sizes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.checkpoints.published import load_pretrained
from pointadapterx.checkpoints.shipped import save_backbone
from pointadapterx.errors import CheckpointError
from pointadapterx.files import read_npz
from pointadapterx.models.block import Block, DropPath
from pointadapterx.models.vit import ViT, interpolate_positions
from pointadapterx.peft import METHODS
from pointadapterx.tasks.heads import ClassificationHead, HeadConfig
from tests.parity.oracle import classify_vit, random_vit_state

SIZES = {"dim": 24, "depth": 2, "num_heads": 3, "patch_size": 4, "image_size": 16}


def vit(**changes: int) -> ViT:
    return ViT(ViT.Options(**(SIZES | changes)))


def classifier(backbone: ViT, classes: int) -> AdaptedModel:
    head = ClassificationHead(backbone.feature_info, HeadConfig(num_classes=classes, pools=["cls"], hidden=[]))
    return AdaptedModel(backbone, METHODS["full"](METHODS["full"].Options()), head).eval()


@pytest.fixture
def state() -> dict[str, Tensor]:
    return random_vit_state(1, dim=24, depth=2, classes=5, grid=4, patch=4)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "vit.pth")
    return folder / "vit.pth"


def to_google(state: dict[str, Tensor], heads: int) -> dict[str, np.ndarray]:
    """The same model with Google's names and layouts."""
    dim = state["cls_token"].shape[-1]
    google = {"cls": state["cls_token"], "Transformer/posembed_input/pos_embedding": state["pos_embed"]}
    google["embedding/kernel"] = state["patch_embed.proj.weight"].permute(2, 3, 1, 0)
    google["embedding/bias"] = state["patch_embed.proj.bias"]
    google |= {"head/kernel": state["head.weight"].T, "head/bias": state["head.bias"]}
    google["Transformer/encoder_norm/scale"] = state["norm.weight"]
    google["Transformer/encoder_norm/bias"] = state["norm.bias"]
    for index in range(2):
        place, own = f"Transformer/encoderblock_{index}", f"blocks.{index}"
        for theirs, ours in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            google[f"{place}/{theirs}/scale"] = state[f"{own}.{ours}.weight"]
            google[f"{place}/{theirs}/bias"] = state[f"{own}.{ours}.bias"]
        for theirs, ours in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            google[f"{place}/MlpBlock_3/{theirs}/kernel"] = state[f"{own}.mlp.{ours}.weight"].T
            google[f"{place}/MlpBlock_3/{theirs}/bias"] = state[f"{own}.mlp.{ours}.bias"]
        attention = f"{place}/MultiHeadDotProductAttention_1"
        for number, part in enumerate(("query", "key", "value")):
            rows = slice(number * dim, (number + 1) * dim)
            google[f"{attention}/{part}/kernel"] = state[f"{own}.attn.qkv.weight"][rows].T.reshape(dim, heads, -1)
            google[f"{attention}/{part}/bias"] = state[f"{own}.attn.qkv.bias"][rows].reshape(heads, -1)
        google[f"{attention}/out/kernel"] = state[f"{own}.attn.proj.weight"].T.reshape(heads, -1, dim)
        google[f"{attention}/out/bias"] = state[f"{own}.attn.proj.bias"]
    return {name: tensor.numpy() for name, tensor in google.items()}


@pytest.mark.parametrize("source", ["timm", "module", "model", "google", "safetensors"])
def test_published_layouts_agree_with_the_oracle(
    source: str, state: dict[str, Tensor], images: Tensor, tmp_path: Path
) -> None:
    if source == "google":
        path = tmp_path / "vit.npz"
        np.savez(path, **to_google(state, heads=3))
    elif source == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "vit.safetensors"
        save_file(state, path)
    else:
        prefix = "module." if source == "module" else ""
        named = {prefix + name: tensor for name, tensor in state.items()}
        path = saved({"model": named} if source == "model" else named, tmp_path)
    model = classifier(vit(), 5)
    report = load_pretrained(model, path)
    assert (report.missing, report.unexpected, report.coverage) == ([], [], 1.0)
    torch.testing.assert_close(model(images).logits, classify_vit(state, images, heads=3), atol=1e-4, rtol=0)


@pytest.mark.reference
@pytest.mark.parametrize("source", ["timm", "google"])
def test_reference_outputs(source: str, reference_folder: Path, tmp_path: Path) -> None:
    golden = torch.load(reference_folder / f"vit_{source}_small.pt", weights_only=True)
    config = golden["config"]
    backbone = vit(
        dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        patch_size=config["patch_size"],
        image_size=config["img_size"],
    )
    model = classifier(backbone, config["num_classes"])
    path = reference_folder / "vit_google_small.npz"
    report = load_pretrained(model, saved(golden["checkpoint"], tmp_path) if source == "timm" else path)
    assert (report.missing, report.unexpected) == ([], [])
    torch.testing.assert_close(model(golden["images"]).logits, golden["logits"], atol=1e-4, rtol=0)
    tokens = model.method.run(backbone, golden["images"]).sequence.tokens
    torch.testing.assert_close(tokens, golden["tokens"], atol=1e-4, rtol=0)


def test_another_image_size_interpolates_the_positions(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved(state, tmp_path)
    for image_size, patch_size in ((32, 4), (8, 4), (16, 4)):
        model = vit(image_size=image_size, patch_size=patch_size)
        report = load_pretrained(model, path)
        assert report.coverage == 1.0
        wanted = interpolate_positions(state["pos_embed"], image_size // patch_size)
        assert torch.equal(model.pos_embed, wanted)
        assert torch.isfinite(model.embed(torch.zeros(1, 3, image_size, image_size)).position).all()
    assert torch.equal(wanted, interpolate_positions(wanted, 4))


def test_interpolated_positions_keep_what_a_field_looks_like() -> None:
    side, grid = 7, 14
    ramp = torch.arange(side, dtype=torch.float32)
    field = torch.stack([ramp[:, None].expand(side, side), ramp.expand(side, side), torch.ones(side, side)], dim=-1)
    first = torch.tensor([[[5.0, 6.0, 7.0]]])
    found = interpolate_positions(torch.cat([first, field.reshape(1, -1, 3)], dim=1), grid)
    assert torch.equal(found[:, :1], first)
    rows, columns, constant = found[0, 1:].reshape(grid, grid, 3).unbind(-1)
    torch.testing.assert_close(constant, torch.ones(grid, grid))
    torch.testing.assert_close(rows, columns.T)  # rows stay rows, columns stay columns
    inner = rows[4:-4]  # at the border the kernel is cut
    torch.testing.assert_close(inner.diff(dim=0), torch.full((grid - 9, grid), 0.5))
    assert (rows.diff(dim=1).abs() < 1e-5).all()


def test_positions_that_are_no_square_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["pos_embed"] = torch.zeros(1, 14, 24)
    with pytest.raises(CheckpointError, match=r"pos_embed has 14 positions.*square"):
        load_pretrained(vit(), saved(state, tmp_path))


def test_another_patch_size_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"patch size 4 \(the backbone: 8\); set backbone\.patch_size=4$"):
        load_pretrained(vit(patch_size=8), saved(state, tmp_path))


def test_a_missing_class_token_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    del state["cls_token"]
    with pytest.raises(CheckpointError, match="1 encoder tensors are missing, first cls_token"):
        load_pretrained(vit(), saved(state, tmp_path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off"])
def test_a_damaged_npz_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "vit.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"vit\.npz: not a readable \.npz"):
        load_pretrained(vit(), tmp_path / "vit.npz")


def test_an_npz_of_python_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "vit.npz", cls=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CheckpointError, match=r"not a readable \.npz"):
        load_pretrained(vit(), tmp_path / "vit.npz")


def test_own_weights_round_trip_in_half_precision(images: Tensor, tmp_path: Path) -> None:
    model, fresh = vit().eval(), vit()
    save_backbone(model, tmp_path / "own.safetensors", ViT.Options(**SIZES), {})
    report = load_pretrained(fresh, tmp_path / "own.safetensors")
    assert (report.missing, report.unexpected, report.coverage) == ([], [], 1.0)
    torch.testing.assert_close(fresh.embed(images).tokens, model.embed(images).tokens, atol=2e-3, rtol=0)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images have shape \(3, 8, 8\), the backbone needs \(3, 16, 16\)"):
        vit().embed(torch.zeros(2, 3, 8, 8))


def test_a_patch_size_must_divide_the_image() -> None:
    assert list(ViT.Options(patch_size=15).problems()) == [
        ("patch_size", "15 does not divide image_size=224; choose a divisor")
    ]


def test_the_published_size_has_its_published_parameters() -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in ViT(ViT.Options()).parameters())
    assert count == 85_798_656


@pytest.mark.parametrize(
    "name",
    ["reg_token", "blocks.1.attn.q_norm.weight", "norm_pre.weight", "fc_norm.weight", "blocks.0.gamma_1"],
)
def test_another_architecture_is_refused(name: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    """Without these tensors the others would compute something else."""
    state[name] = torch.ones(24)
    with pytest.raises(CheckpointError, match=r"belongs to a layer that this backbone does not have"):
        load_pretrained(vit(), saved(state, tmp_path))


def test_a_small_npz_that_expands_to_much(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "vit.npz", a=np.zeros(2_000_000, np.float32))
    with pytest.raises(CheckpointError, match=r"vit\.npz: not a readable \.npz .*bytes are said to be 8000128"):
        read_npz(tmp_path / "vit.npz")


def test_stochastic_depth_in_half_precision() -> None:
    """The type stays; what is kept is larger by the rate, and no factor is rounded to bf16 before."""
    block = Block(24, 3, drop_path=0.5).bfloat16().train()
    tokens = torch.randn(4, 5, 24).bfloat16()
    output, _ = block(tokens)
    assert output.dtype == torch.bfloat16
    dropped = DropPath(0.1).train()(torch.full((500, 1, 1), 3.0, dtype=torch.bfloat16))
    assert set(dropped.flatten().tolist()) == {0.0, float(torch.tensor(3.0 / 0.9).bfloat16())}
