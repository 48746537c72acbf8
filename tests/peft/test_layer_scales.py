"""``method.layer_scale``: what is added beside an FFN passes the LayerScale behind it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pointadapterx as pax
from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import build_model
from pointadapterx.errors import ConfigError
from tests.adapting.models import IMAGES, hf_dinov2, hf_vit, method_of, need, randomised
from tests.conftest import randomise, small_config

METHODS = ["adapter", "adaptformer", "adapter_x", "adaptformer_x", "dapt_x"]


def build(method: str, *, wanted: bool) -> AdaptedModel:
    torch.manual_seed(0)
    config = small_config(method, "vit", backbone={"layer_scale": True}, method={"layer_scale": wanted})
    model = build_model(config).eval()
    randomise(model)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_it_multiplies_what_is_added(method: str) -> None:
    scaled, plain = build(method, wanted=True), build(method, wanted=False)
    tokens: Tensor = torch.randn(2, 5, 48)
    for index, block in enumerate(scaled.backbone.blocks):
        found, known = (model.method.adapt_ffn(index, tokens, tokens) for model in (scaled, plain))
        torch.testing.assert_close(found.update, known.update * block.ls2.gamma)
        assert known.update.abs().mean() > 0
        if known.prompt is not None:
            assert torch.equal(found.prompt, known.prompt)


def test_it_is_no_part_of_the_adapter() -> None:
    scaled, plain = build("adaptformer_x", wanted=True), build("adaptformer_x", wanted=False)
    assert scaled.state_dict().keys() == plain.state_dict().keys()
    assert not scaled.backbone.blocks[0].ls2.gamma.requires_grad


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


def test_a_backbone_without_is_refused() -> None:
    says = "method.layer_scale: .* has no known LayerScale behind the FFN of block 0; remove the key"
    for method in ("adaptformer", "dapt_x"):
        with pytest.raises(ConfigError, match=says):
            build_model(small_config(method, method={"layer_scale": True}))
    need("transformers")
    with pytest.raises(ConfigError, match=says):
        pax.adapt(hf_vit(), "adaptformer", train=["classifier"], layer_scale=True)
