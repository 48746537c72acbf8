"""``layer_scale`` in models of transformers and timm."""

from __future__ import annotations

import importlib

import pytest
import torch

import pointadapterx as pax
from pointadapterx.errors import ConfigError
from tests.adapting.models import (
    DEPTH,
    HEADS,
    IMAGES,
    PATCH,
    SIDE,
    WIDTH,
    hf_dinov2,
    hf_vit,
    method_of,
    need,
    randomised,
)


def test_a_model_of_transformers_has_it_too() -> None:
    """As an adapter without, whose last layer takes γ in."""
    need("transformers")
    images, found = torch.randn(IMAGES), []
    for wanted in (True, False):
        model = randomised(hf_dinov2())
        layers = model.dinov2.layers if hasattr(model.dinov2, "layers") else model.dinov2.encoder.layer
        pax.adapt(model, "adaptformer", train=["classifier"], rank=4, layer_scale=wanted)
        method = randomised(method_of(model), seed=1)
        for layer, adapter in zip(layers, method.adapters, strict=True):
            gamma = torch.ones(()) if wanted else layer.layer_scale2.lambda1.detach()
            adapter.up.weight.data *= gamma.view(-1, 1)
            adapter.up.bias.data *= gamma
        with torch.no_grad():
            found.append(model(images).logits)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.timm
def test_timm_has_it_where_it_was_asked_for() -> None:
    need("timm")
    timm = importlib.import_module("timm")
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    model = randomised(timm.models.VisionTransformer(init_values=1.0, **sizes))
    pax.adapt(model, "adaptformer", train=["head"], rank=4, layer_scale=True)
    method, tokens = randomised(method_of(model), seed=1), torch.randn(2, 5, WIDTH)
    for index, block in enumerate(model.blocks):
        plain = 0.1 * method.adapters[index](tokens)
        torch.testing.assert_close(method.adapt_ffn(index, tokens, tokens).update, plain * block.ls2.gamma)
    with pytest.raises(ConfigError, match="has no known LayerScale"):
        pax.adapt(timm.models.VisionTransformer(**sizes), "adaptformer", train=["head"], layer_scale=True)


@pytest.mark.parametrize("method", ["adaptformer", "dapt_x"])
def test_a_model_without_is_refused(method: str) -> None:
    need("transformers")
    says = "method.layer_scale: .* has no known LayerScale behind the FFN of block 0; remove the key"
    with pytest.raises(ConfigError, match=says):
        pax.adapt(hf_vit(), method, train=["classifier"], layer_scale=True)
