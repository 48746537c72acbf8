"""Beside huggingface/peft: the same parameters, outputs, gradients and merged weights; and its files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pointadapterx as pax
from benchmarks import peft as benchmark
from pointadapterx.adapting.peft_files import load_peft_adapter, save_peft_adapter
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.models.sites import Site
from pointadapterx.peft.base import Method
from pointadapterx.peft.noah import SlicedLowRank
from pointadapterx.peft.parts.low_rank import LowRank, LowRankQkv, WeightDecomposed
from pointadapterx.peft.parts.scale_shift import ScaleShift
from tests.adapting.models import IMAGES, hf_vit, randomised
from tests.conftest import randomise

RANK, ALPHA = 4, 12.0
FORMS = [{}, {"dora": True}, {"rslora": True}, {"dora": True, "rslora": True}]


def theirs(model: nn.Module, form: dict[str, bool], targets: list[str]) -> Any:
    """A model adapted by peft."""
    peft = pytest.importorskip("peft")
    flags = {f"use_{name}": value for name, value in form.items()}
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, **flags)
    return peft.get_peft_model(model, config)


def ours(model: nn.Module, form: dict[str, bool]) -> nn.Module:
    """The same model adapted by us, with random values."""
    return randomise(pax.adapt(model, "lora", rank=RANK, alpha=ALPHA, targets=["q", "v"], **form)).eval()


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def pairs(model: nn.Module, other: Any) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """The trained parameters of ours, each with peft's."""
    found = []
    for number, layer in enumerate(other.base_model.model.vit.layers):
        for name, theirs in (("q", layer.attention.q_proj), ("v", layer.attention.v_proj)):
            update = model.pointadapterx.methods["default"].blocks[number]["qkv"].parts[name]
            found += [(update.down.weight, theirs.lora_A.default.weight)]
            found += [(update.up.weight, theirs.lora_B.default.weight)]
            if isinstance(update, WeightDecomposed):
                found += [(update.magnitude, theirs.lora_magnitude_vector.default.weight)]
    return found


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_it_is_what_peft_computes(form: dict[str, bool]) -> None:
    pytest.importorskip("transformers")
    base, images = randomised(hf_vit()), torch.randn(IMAGES)
    other = theirs(copy.deepcopy(base), form, ["q_proj", "v_proj"]).eval()
    if form.get("dora"):
        fresh = pax.adapt(copy.deepcopy(base), "lora", rank=RANK, targets=["q", "v"], **form)
        for mine, its in pairs(fresh, other):
            if mine.ndim == 1:
                torch.testing.assert_close(mine, its)  # the norms that both start with
    model = ours(base, form)
    assert sum(p.numel() for p in trained(model)) == sum(p.numel() for p in trained(other))
    matched = pairs(model, other)
    assert len(matched) == len(trained(model))
    with torch.no_grad():
        for mine, its in matched:
            its.copy_(mine)
    logits = [one(pixel_values=images).logits for one in (model, other)]
    torch.testing.assert_close(*logits, atol=2e-5, rtol=1e-5)
    for one in logits:
        one.square().sum().backward()
    for mine, its in matched:
        torch.testing.assert_close(mine.grad, its.grad, atol=1e-3 * float(its.grad.abs().max()), rtol=1e-3)
    merged, wanted = pax.merge(model).state_dict(), other.merge_and_unload().state_dict()
    assert merged.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(merged[name], value, atol=1e-6, rtol=1e-6)


def test_a_step_is_measured_beside_that_of_peft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    small = ["--dim", "64", "--depth", "1", "--batch-size", "1", "--rounds", "2", "--forms", "lora", "dora"]
    assert benchmark.main([*small, "--output", str(tmp_path / "peft")]) == 0
    rows = json.loads((tmp_path / "peft.json").read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows] == [f"{form}, {of}" for form in ("lora", "dora") for of in benchmark.PACKAGES]
    for theirs, ours in (rows[:2], rows[2:]):
        assert ours["trainable"] == theirs["trainable"]
        assert ours["memory_ratio"] <= 1.05
        assert len(ours["seconds"]) == 2
    assert (tmp_path / "peft.md").read_text(encoding="utf-8") in capsys.readouterr().out


def site(width: int, *layers: nn.Linear) -> Site:
    return (
        Site("qkv", nn.ModuleList(layers), 3 * width, layers) if len(layers) == 3 else Site("qkv", *layers, 3 * width)
    )


def updates() -> list[tuple[str, nn.Module]]:
    def thirds(kind: type[LowRank], *names: str) -> LowRankQkv:
        return LowRankQkv({name: kind(6, 6, 2, scale=1.5, dropout=0.0) for name in names}, 6)

    joint = SlicedLowRank(6, 18, 2, scale=1.0, dropout=0.0)
    joint.active = 1
    return [
        ("change", thirds(LowRank, "q", "v")),
        ("change", thirds(WeightDecomposed, "v", "k")),
        ("change", joint),
        ("tap", ScaleShift(18)),
    ]


@pytest.mark.parametrize(("act", "module"), updates())
@pytest.mark.parametrize("bias", [False, True])
def test_separate_queries_keys_and_values_are_changed_as_the_joint_ones(act: str, module: Any, bias: bool) -> None:
    joint, parts = nn.Linear(6, 18, bias), [nn.Linear(6, 6, bias) for _ in range(3)]
    for number, part in enumerate(parts):
        for name, value in part.named_parameters():
            value.data = getattr(joint, name).data[6 * number : 6 * number + 6].clone()
    if isinstance(module, LowRankQkv):
        module.start(joint.weight)
    randomise(module)
    tokens = torch.randn(2, 5, 6)
    found = []
    for layers in ([joint], parts):
        method = Method(Method.Options(name="test"))
        getattr(method, act)(site(6, *layers), module)
        found.append(torch.cat([layer(tokens) for layer in layers], dim=-1))
        for hook in method.hooks:
            hook.remove()
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0], joint(tokens))
    grads: list[tuple[Tensor, ...]] = [torch.autograd.grad(one.sin().sum(), list(module.parameters())) for one in found]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("form", [{}, {"dora": True, "rslora": True}], ids="-".join)
def test_adapters_go_to_peft_and_come_back(form: dict[str, bool], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    base, images = randomised(hf_vit()), torch.randn(IMAGES)
    targets = ["q", "v", "fc1"]
    model = pax.adapt(copy.deepcopy(base), "lora", rank=RANK, targets=targets, train=["classifier"], **form)
    randomise(model).eval()
    wanted = model(pixel_values=images).logits
    save_peft_adapter(model, tmp_path / "ours")
    other = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
    torch.testing.assert_close(other(pixel_values=images).logits, wanted, atol=2e-5, rtol=1e-5)
    other.save_pretrained(tmp_path / "theirs")
    back = load_peft_adapter(copy.deepcopy(base), tmp_path / "theirs").eval()
    assert torch.equal(back(pixel_values=images).logits, wanted)
    assert len(trained(back)) == len(trained(model))


def test_what_peft_has_and_lora_has_not_is_said(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    base = hf_vit()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"target_modules": ["q_proj"], "bias": "all"}, r"adapter_config\.json: has bias='all', which lora does not"),
        ({"target_modules": ["classifier"]}, "changes 'classifier', at which lora does not act"),
        (
            {"target_modules": ["q_proj"], "init_lora_weights": "olora"},
            "init_lora_weights='olora' has changed the model",
        ),
        ({"target_modules": ["q_proj"], "use_qalora": True}, "has use_qalora=True, which lora does not have"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 3}}, r"has rank_pattern=\{'q_proj': 3\}"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0]}, r"leaves out 'vit\.layers\.1\.attention\.q_proj'"),
    ]
    for number, (options, words) in enumerate(cases):
        folder = tmp_path / str(number)
        peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, **options)).save_pretrained(folder)
        with pytest.raises(CheckpointError, match=words):
            load_peft_adapter(base, folder)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: cannot be read"):
        load_peft_adapter(base, tmp_path)
    assert not hasattr(base, "pointadapterx")
    model = pax.adapt(base, "bitfit")
    with pytest.raises(ConfigError, match="adapter 'default' is no active one of lora"):
        save_peft_adapter(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
