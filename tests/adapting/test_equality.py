"""The sites are right: an adapted ViT of transformers or timm computes what ours does, with the same adapter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pointadapterx as pax
from pointadapterx.models.vit import ViT
from pointadapterx.peft import METHODS
from tests.adapting.models import (
    DEPTH,
    HEADS,
    IMAGES,
    PATCH,
    SIDE,
    WIDTH,
    hf_vit,
    method_of,
    need,
    randomised,
    timm_vit,
)

ARCHITECTURE = {"prompts": [2, 0, 3], "lora": [2, 3, 0], "adapter": [4, 0, 2]}
OPTIONS = {
    "noah": {"architecture": ARCHITECTURE},
    "lora": {"targets": ["q", "k", "v", "proj", "fc1", "fc2"]},
    "dapt_x": {"tfts": ["patch", "norm1", "qkv", "proj", "norm2", "fc1", "fc2"]},
    "vpt": {"num_prompts": 3},
}


def of_timm(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


def of_transformers(model: nn.Module) -> dict[str, Tensor]:
    """Our names for the weights of a transformers ViT."""
    state = {name.removeprefix("vit."): value for name, value in model.state_dict().items()}
    found = {"cls_token": state["embeddings.cls_token"], "pos_embed": state["embeddings.position_embeddings"]}
    names = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for kind in ("weight", "bias"):
        found[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
        found[f"norm.{kind}"] = state[f"layernorm.{kind}"]
        for block in range(DEPTH):
            layer = f"layers.{block}"
            parts = [state[f"{layer}.attention.{name}_proj.{kind}"] for name in "qkv"]
            found[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
            for ours, theirs in names.items():
                found[f"blocks.{block}.{ours}.{kind}"] = state[f"{layer}.{theirs}.{kind}"]
    return found


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("library", ["transformers", pytest.param("timm", marks=pytest.mark.timm)])
def test_adapted_models_equal_ours(library: str, name: str) -> None:
    need(library)
    model = randomised(hf_vit() if library == "transformers" else timm_vit())
    encoder = model.vit if library == "transformers" else model
    ours = ViT(ViT.Options(dim=WIDTH, depth=DEPTH, num_heads=HEADS, patch_size=PATCH, image_size=SIDE, drop_path=0.0))
    state = of_transformers(model) if library == "transformers" else of_timm(model)
    ours.load_state_dict({key: value for key, value in state.items() if key in ours.state_dict()})
    images = torch.randn(IMAGES)
    with torch.no_grad():
        plain = ours.eval()(images).sequence.tokens
    options = OPTIONS.get(name, {})
    pax.adapt(model, name, train=["classifier" if library == "transformers" else "head"], **options)
    theirs = randomised(method_of(model), seed=1)
    method = METHODS[name](METHODS[name].Options.model_validate({"name": name, **options}))
    method.attach(ours)
    method.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        wanted = method.eval().run(ours, images).sequence.without_prompts()
        found = encoder.forward_features(images) if library == "timm" else encoder(images).last_hidden_state
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0.0)
    if name not in ("linear", "full", "bitfit"):
        assert (wanted - plain).abs().max() > 1e-2  # so that the method has done something
    if name in ("lora", "ssf"):
        merged = pax.merge(model)
        assert not hasattr(merged, "pointadapterx")
        with torch.no_grad():
            logits, plainly = model(images), merged(images)
        one, other = (getattr(output, "logits", output) for output in (logits, plainly))
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
