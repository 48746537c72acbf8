"""From an adapted model back to a plain one: merged where that can be, unloaded always."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import build_backbone, build_model
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.errors import CheckpointError, MergeError
from pointadapterx.peft import METHODS, Method
from tests.conftest import randomise, small_config
from tests.peft.test_methods import FORMS, steps

LORA_ALL = {"targets": ["q", "k", "v", "proj", "fc1", "fc2"], "alpha": 8.0}
MERGEABLE: list[tuple[str, dict[str, Any]]] = [
    ("lora", {}),
    ("lora", LORA_ALL),
    ("lora", {**LORA_ALL, "dora": True, "rslora": True}),
    ("ssf", {}),
    ("bitfit", {}),
    ("full", {}),
]


def batch(kind: str) -> Tensor:
    shape = (6, 128, 3) if kind == "point_mae" else (6, 3, 16, 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("kind", ["point_mae", "vit"])
@pytest.mark.parametrize(("name", "method"), MERGEABLE)
def test_merged_equals_unmerged(name: str, method: dict[str, Any], kind: str, tmp_path: Path) -> None:
    config = small_config(name, kind=kind, method=method)
    model = randomise(build_model(config)).eval()
    inputs, before = batch(kind), {key: value.clone() for key, value in model.state_dict().items()}
    merged = model.merge()
    torch.testing.assert_close(merged(inputs).logits, model(inputs).logits, atol=1e-5, rtol=0)
    assert hook_count(merged) == 0
    assert not list(merged.method.parameters())
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(merged.merge()(inputs).logits, merged(inputs).logits)  # once more changes nothing
    with pytest.raises(CheckpointError, match="the model trains nothing, so there is no adapter to write"):
        save_adapter(merged, tmp_path / "merged.safetensors", config=config, classes=["a"] * merged.head.num_classes)


def test_a_projection_behind_the_maximum_merges_any_scale() -> None:
    model = randomise(build_model(small_config("ssf", backbone={"encoder_dim": 32}))).eval()
    with torch.no_grad():
        model.method.patch.gamma.neg_()
    inputs = batch("point_mae")
    torch.testing.assert_close(model.merge()(inputs).logits, model(inputs).logits, atol=1e-5, rtol=0)


def test_a_negative_scale_of_the_maximum_is_refused() -> None:
    model = build_model(small_config("ssf"))
    with torch.no_grad():
        model.method.patch.gamma[:3] = -0.5
    with pytest.raises(MergeError, match="ssf scales 3 features of the patch encoder by a negative number"):
        model.merge()


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].merge is Method.merge])
def test_what_cannot_be_merged_says_so(name: str) -> None:
    with pytest.raises(MergeError, match=rf"^{name} adds what .*methods that can: bitfit, full, linear, lora, ssf$"):
        build_model(small_config(name)).merge()


@pytest.mark.parametrize("kind", ["point_mae", "vit"])
@pytest.mark.parametrize(("name", "method"), FORMS)
def test_unload_gives_the_backbone_back(name: str, method: dict[str, Any], kind: str) -> None:
    config = small_config(name, kind=kind, method=method)
    model: AdaptedModel = build_model(config)
    inputs = batch(kind)
    steps(model, inputs, 2)
    if METHODS[name].trains_backbone:
        with pytest.raises(MergeError, match="build it again from its weights file"):
            model.unload()
        return
    after = model.eval()(inputs).logits
    plain, fresh = model.unload(), build_backbone(config.backbone).eval()
    assert hook_count(plain) == 0
    for key, value in fresh.state_dict().items():
        assert torch.equal(plain.state_dict()[key], value), key
    nothing = Method(config.method)
    assert torch.equal(plain(inputs, nothing).sequence.tokens, fresh(inputs, nothing).sequence.tokens)
    assert torch.equal(model(inputs).logits, after)
