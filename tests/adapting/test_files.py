"""Adapters of foreign models in files, several of them in one model, and models that are plain again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pointadapterx as pax
from pointadapterx.errors import CheckpointError, ConfigError, MergeError
from pointadapterx.files import read_safetensors, write_safetensors
from tests.adapting.models import FAMILIES, PointTransformer, hf_dinov2, hf_vit, method_of, need, randomised

POINTS = FAMILIES[-1].inputs()
HEAD = "cls_head_finetune"


def fresh(seed: int = 0, head: int = 5) -> nn.Module:
    """With the same weights for the same seed, but another head each time, as an untrained head is."""
    model = randomised(PointTransformer(), seed)
    model.cls_head_finetune = nn.Linear(model.cls_head_finetune.in_features, head)
    return model.eval()


def trained(method: str = "adaptformer_x", **options: Any) -> nn.Module:
    """One step of training changes the adapter, norm2 and the head."""
    options = {"prompts": False, **options} if method == "adaptformer_x" else options
    model = pax.adapt(fresh(), method, train=[HEAD], **options)
    return stepped(model)


def stepped(model: nn.Module) -> nn.Module:
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(chosen, lr=0.1)
    (model.train()(POINTS).square().mean() + pax.auxiliary_loss(model)).backward()
    optimizer.step()
    return model.eval()


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(POINTS)


@pytest.mark.parametrize("method", ["adaptformer_x", "lora", "full"])
def test_a_file_gives_the_same_answers(method: str, tmp_path: Path) -> None:
    model, file = trained(method), tmp_path / "adapter.safetensors"
    pax.save_adapter(model, file, metrics={"accuracy": 0.5})
    other = fresh(seed=1) if method == "full" else fresh()
    info = pax.load_adapter(other, file)
    assert torch.equal(answer(other.eval()), answer(model))
    assert (info.metrics, info.method["name"], info.train) == ({"accuracy": 0.5}, method, [HEAD])
    report = pax.count_parameters(other)
    assert report == pax.count_parameters(model)
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert report.components["head"].total == sum(p.numel() for p in model.cls_head_finetune.parameters())


def changed(file: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    tensors, metadata = read_safetensors(file)
    change(tensors, metadata)
    write_safetensors(file, tensors, metadata)


DOWN = "method.mixture.experts.0.down.weight"


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (
            lambda: fresh(seed=1),
            None,
            "belongs to weights of PointTransformer .* with hash .*, but this PointTransformer has",
        ),
        (lambda: fresh(head=7), None, "cls_head_finetune.bias has shape .*, the model needs"),
        (lambda: nn.Linear(2, 2), None, "trains '.*', which Linear does not have; it was made for PointTransformer"),
        (fresh, lambda t, m: t.update({DOWN: t[DOWN] * float("nan")}), "down.weight holds NaN"),
        (fresh, lambda t, m: t.pop(DOWN), "'mixture.experts.0.down.weight' does not fit .* \\(1 tensors differ"),
        (fresh, lambda t, m: t.update({DOWN: t[DOWN][:1]}), "'mixture.experts.0.down.weight' does not fit"),
        (fresh, lambda t, m: m.pop("train"), "its metadata is damaged"),
        (fresh, lambda t, m: m.update(format="x"), "is not an adapter of a model like this"),
        (
            fresh,
            lambda t, m: m.update(method=json.dumps({"name": "lroa"})),
            "unknown method 'lroa'; did you mean 'lora'",
        ),
    ],
)
def test_a_file_that_does_not_fit(make: Any, change: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    pax.save_adapter(trained(), file)
    if change is not None:
        changed(file, change)
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        pax.load_adapter(model, file)
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0.0, atol=0.0)
    assert not any(module._forward_hooks for module in model.modules())


def test_several_adapters_in_one_model(tmp_path: Path) -> None:
    model = fresh()
    plain = answer(model)
    pax.adapt(model, "adaptformer_x", train=[HEAD], prompts=False)
    first = answer(stepped(model))
    pax.adapt(model, "lora", train=[HEAD], name="second")
    assert torch.equal(answer(model.eval()), plain)  # norm2 and the head are as they came
    second = answer(stepped(model))
    pax.set_adapter(model, "default")
    assert torch.equal(answer(model), first)
    trained_names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained_names
    assert not any("methods.second" in name for name in trained_names)
    with pax.disable_adapter(model):
        assert torch.equal(answer(model), plain)
        assert pax.auxiliary_loss(model) == 0
    assert torch.equal(answer(model), first)
    pax.set_adapter(model, "second")
    assert torch.equal(answer(model), second)
    pax.save_adapter(model, tmp_path / "second.safetensors")
    other = trained()
    kept = answer(other)
    pax.load_adapter(other, tmp_path / "second.safetensors", name="more")
    assert torch.equal(answer(other.eval()), second)
    pax.set_adapter(other, "default")
    assert torch.equal(answer(other), kept)


def test_a_second_adapter_starts_from_the_weights_that_came() -> None:
    """DoRA's norms are those of the rows, which the first adapter has changed."""
    model = fresh()
    plain = answer(model)
    pax.adapt(model, "full")
    with torch.no_grad():
        model.blocks.blocks[0].attn.qkv.weight.mul_(3.0)
    first = answer(model)
    with pytest.raises(ConfigError, match="lora: rank"):
        pax.adapt(model, "lora", name="wrong", rank=0)
    assert torch.equal(answer(model), first)
    pax.adapt(model, "lora", name="second", dora=True)
    torch.testing.assert_close(answer(model), plain, atol=1e-6, rtol=1e-6)


def test_a_file_that_does_not_fit_leaves_the_active_adapter(tmp_path: Path) -> None:
    model, file = trained(), tmp_path / "adapter.safetensors"
    pax.save_adapter(model, file)
    changed(file, lambda t, m: t.pop(DOWN))
    kept = answer(model)
    with pytest.raises(CheckpointError, match="does not fit"):
        pax.load_adapter(model, file, name="second")
    assert torch.equal(answer(model), kept)


def test_a_file_older_than_an_option(tmp_path: Path) -> None:
    model, file = trained("lora"), tmp_path / "adapter.safetensors"
    pax.save_adapter(model, file)

    def older(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        options = json.loads(metadata["method"])
        metadata["method"] = json.dumps({key: value for key, value in options.items() if key != "dora"})

    changed(file, older)
    other = fresh()
    pax.load_adapter(other, file)
    pax.load_adapter(other, file)  # into the one that is there
    assert torch.equal(answer(other.eval()), answer(model))


def test_wrapped_models(tmp_path: Path) -> None:
    model = trained()
    wrapped = torch.compile(model, backend="eager")
    pax.save_adapter(wrapped, tmp_path / "adapter.safetensors")
    pax.load_adapter(wrapped, tmp_path / "adapter.safetensors")
    assert torch.equal(answer(pax.unload(nn.DataParallel(model))), answer(pax.unload(model)))


def test_plain_again() -> None:
    model = fresh()
    plain, names = answer(model), list(model.state_dict())
    frozen = model.pos_embed[0].weight.requires_grad_(False)
    pax.adapt(model, "lora", train=[HEAD])
    randomised(method_of(model), 1)
    adapted = answer(stepped(model))
    merged, unloaded = pax.merge(model), pax.unload(model)
    torch.testing.assert_close(answer(merged), adapted, atol=1e-5, rtol=1e-4)
    assert torch.equal(answer(unloaded), plain)
    assert torch.equal(answer(model), adapted)
    for copied in (merged, unloaded):
        assert list(copied.state_dict()) == names
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in copied.modules())
        assert {name for name, p in copied.named_parameters() if not p.requires_grad} == {"pos_embed.0.weight"}
    assert not frozen.requires_grad
    with pytest.raises(MergeError, match="adaptformer_x adds what no plain backbone computes"):
        pax.merge(trained())
    with pytest.raises(MergeError, match="full fine-tuning has changed the whole model"):
        pax.unload(trained("full"))


def test_an_adapter_of_another_kind_of_model(tmp_path: Path) -> None:
    """It is named before shapes, hashes and names are compared."""
    need("transformers")
    file = tmp_path / "adapter.safetensors"
    pax.save_adapter(pax.adapt(hf_dinov2(), "lora", train=["classifier"]), file)
    model = hf_vit()
    with pytest.raises(CheckpointError, match=r"belongs to Dinov2Model \(.*\), but this ViTFor.* is ViTModel"):
        pax.load_adapter(model, file)
    assert not hasattr(model, "pointadapterx")
