"""``method.layer_scale``: what is added beside an FFN passes the LayerScale behind it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import build_model
from pointadapterx.counting import count_model
from pointadapterx.errors import ConfigError
from pointadapterx.peft.side_by_side import side_by_side
from tests.conftest import randomise, small_config

METHODS = ["adaptformer", "adaptformer_x", "dapt_x"]


def build(method: str, *, wanted: bool = True, **options: Any) -> AdaptedModel:
    """With other γ in every place."""
    sections = {"backbone": {"layer_scale": True}, "method": {"layer_scale": wanted, **options}}
    model = build_model(small_config(method, "vit", **sections, data={"name": "digits"})).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.ls1.gamma.normal_(1.0, 0.5, generator=generator)
            block.ls2.gamma.normal_(1.0, 0.5, generator=generator)
    return randomise(model)


@pytest.mark.parametrize("method", METHODS)
def test_it_multiplies_what_is_added(method: str) -> None:
    scaled, plain = build(method), build(method, wanted=False)
    tokens = torch.randn(2, 5, 48)
    for index, block in enumerate(scaled.backbone.blocks):
        found, known = (model.method.adapt_ffn(index, tokens, tokens) for model in (scaled, plain))
        torch.testing.assert_close(found.update, known.update * block.ls2.gamma, rtol=1e-6, atol=0)
        assert known.update.abs().max() > 1e-3
        if known.prompt is not None:
            assert torch.equal(found.prompt, known.prompt)


def test_it_is_no_part_of_the_adapter() -> None:
    scaled, plain = build("adaptformer_x"), build("adaptformer_x", wanted=False)
    assert scaled.state_dict().keys() == plain.state_dict().keys()
    assert not scaled.backbone.blocks[0].ls2.gamma.requires_grad
    assert "layer_scale" not in plain.method.options.model_dump()  # as in files that are older than it


@pytest.mark.parametrize("method", ["adaptformer", "adaptformer_x"])
def test_a_copy_has_scales_of_its_own(method: str) -> None:
    model = build(method)
    images, copied = torch.randn(2, 3, 16, 16), copy.deepcopy(model)
    with torch.no_grad():
        before = model(images).logits
        for block in copied.backbone.blocks:
            block.ls2.gamma.fill_(2.0)
        assert torch.equal(model(images).logits, before)
        moved = torch.func.functional_call(model, dict(copied.named_parameters()), (images,))
        assert torch.equal(moved.logits, copied(images).logits)
    assert not torch.allclose(moved.logits, before)


def test_parameters_may_be_replaced() -> None:
    tokens = torch.empty(2, 5, 48, device="meta")
    assert build("adaptformer").to("meta").method.adapt_ffn(0, tokens, tokens).update.is_meta
    config = small_config("adaptformer_x", "vit", backbone={"layer_scale": True}, method={"layer_scale": True})
    assert count_model(config).costs.forward > 0


@pytest.mark.parametrize("method", METHODS)
def test_adapters_of_several_samples_at_once(method: str) -> None:
    models, tokens = [build(method), randomise(build(method), seed=1)], torch.randn(2, 5, 48)
    joined = side_by_side([model.method for model in models], [1, 0])
    with torch.no_grad():
        for index in range(2):
            found = joined.adapt_ffn(index, tokens, tokens)
            single = [models[own].method.adapt_ffn(index, tokens[[at]], tokens[[at]]) for at, own in enumerate([1, 0])]
            assert found is not None
            torch.testing.assert_close(found.update, torch.cat([one.update for one in single]), atol=1e-6, rtol=1e-4)
            assert not torch.allclose(*(model.method.adapt_ffn(index, tokens, tokens).update for model in models))


def test_it_is_exported() -> None:
    model, images = build("adaptformer_x", prompts=False), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        program = torch.export.export(model, (images,))
        torch.testing.assert_close(program.module()(images).logits, model(images).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_gradients_pass_it(half: bool) -> None:
    model = build("adaptformer_x", inject_from=1, prompts=False).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits, auxiliary = model(torch.randn(2, 3, 16, 16))
        assert auxiliary is not None
        (logits.sum() + auxiliary).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert model.backbone.blocks[1].ls2.gamma.grad is None


@pytest.mark.parametrize("method", ["adaptformer", "dapt_x"])
def test_a_backbone_without_is_refused(method: str) -> None:
    says = "method.layer_scale: .* has no known LayerScale behind the FFN of block 0; remove the key"
    with pytest.raises(ConfigError, match=says):
        build_model(small_config(method, method={"layer_scale": True}))


@pytest.mark.parametrize(("method", "options"), [("adapter", {}), ("adapter_x", {}), ("dapt_x", {"expert": "adapter"})])
def test_what_reads_the_output_of_an_ffn_is_refused(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="these adapters read what has passed the FFN's LayerScale; remove the key"):
        build(method, **options)


def test_without_a_mixture_there_is_nothing_to_scale() -> None:
    with pytest.raises(ConfigError, match="layer_scale: belongs to the mixture, which is off; remove one"):
        build("dapt_x", mixture=False)
