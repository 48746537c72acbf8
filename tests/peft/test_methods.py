"""What every method must satisfy; a new entry of METHODS is tested without anyone remembering."""

from __future__ import annotations

import copy
import functools
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pointadapterx.adapted_model import AdaptedModel, count_parameters
from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import load_adapter, save_adapter
from pointadapterx.config import Config
from pointadapterx.engine.optim import build_optimizer
from pointadapterx.errors import ConfigError
from pointadapterx.models.tokens import insert_after_cls
from pointadapterx.peft import METHODS
from pointadapterx.peft.base import Method
from pointadapterx.peft.parts.bottlenecks import DynamicAdapter
from pointadapterx.sections import TrainConfig
from tests.conftest import randomise, small_config
from tests.mechanisms import STARTS_ELSEWHERE, exhaustive, marks

MakeConfig = Callable[..., Config]
LABELS = torch.tensor([0, 1, 2, 3, 4, 5])
SHAPES = {"point_mae": (6, 128, 3), "vit": (6, 3, 16, 16)}
TFTS = {"tfts": ["patch", "norm1", "qkv", "proj", "norm2", "fc1", "fc2"], "top_k": 4}  # dense, as plain DAPT-X is top-1
LATE = {"inject_from": 1, "neighbours": 4}
HIGHWAY = {"blocks": [1], "class_token": True, "prompts": True}
FORMS = [
    *((name, {}) for name in METHODS),
    *[("dapt_x", TFTS), ("dapt_x", {"shared": False}), ("vpt", {"deep": False}), ("lora", {"targets": ["k", "fc1"]})],
    ("lora", {"targets": ["q", "v", "fc1"], "dora": True, "rslora": True}),
    ("noah", {"architecture": {"prompts": [2, 0], "lora": [0, 3], "adapter": [4, 1]}}),
    *[("e3va", {**HIGHWAY, "width": 24}), ("e3va_x", HIGHWAY)],
    *[("e3va", {"inject_from": 1, "class_token": True, "width": 24}), ("e3va_x", {"inject_from": 1, "prompts": True})],
    *[("stag", {"variant": "sl", "final_norm": False}), ("dapt_x", LATE)],
]


@pytest.fixture(params=["point_mae", "vit"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every test that asks for inputs or configs runs on both backbones, unless it is marked for one."""
    return request.param


on_point_mae = pytest.mark.parametrize("kind", ["point_mae"], indirect=True)


@pytest.fixture
def make_config(kind: str) -> MakeConfig:
    return functools.partial(small_config, kind=kind)


@pytest.fixture
def inputs(kind: str) -> torch.Tensor:
    """Clouds or images."""
    return torch.randn(SHAPES[kind], generator=torch.Generator().manual_seed(3))


def skip_supernet(name: str, method: dict[str, Any]) -> None:
    if name == "noah" and not method:
        pytest.skip("a step of the supernet trains what it draws: tests/peft/test_noah.py")


def steps(model: AdaptedModel, inputs: torch.Tensor, count: int = 3) -> None:
    """A few real optimiser steps."""
    model.train()
    torch.manual_seed(0)  # dropout and drop path
    optimizer = build_optimizer(model, TrainConfig(lr=1e-2, weight_decay=0.05))
    for _ in range(count):
        logits, auxiliary = model(inputs)
        loss = F.cross_entropy(logits, LABELS)
        optimizer.zero_grad()
        (loss if auxiliary is None else loss + auxiliary).backward()
        optimizer.step()


@pytest.mark.parametrize(("name", "method"), FORMS)
@pytest.mark.parametrize(
    ("kind", "position"), [("point_mae", "every_block"), ("point_mae", "input"), ("vit", "input")], indirect=["kind"]
)
def test_starts_as_the_plain_backbone(
    name: str, method: dict[str, Any], kind: str, position: str, inputs: torch.Tensor, make_config: MakeConfig
) -> None:
    if "prompts" in METHODS[name].Options.model_fields:
        method = {**method, "prompts": False}
    if name == "noah":
        method = {"architecture": {"prompts": [0, 0], "lora": [0, 3], "adapter": [4, 1]}}
    if METHODS[name].Options(**method).makes_prompts:
        pytest.skip("its prompts cannot be switched off, and a token takes part in attention")
    if name in STARTS_ELSEWHERE:
        pytest.skip(STARTS_ELSEWHERE[name])
    backbone = {"position": position} if kind == "point_mae" else {}
    config = make_config(name, backbone=backbone, method=method, head={"pools": ["cls", "patch_max"]})
    model = build_model(config).eval()
    plain = model.backbone(inputs, Method(config.method)).sequence.tokens
    assert torch.equal(model.method.run(model.backbone, inputs).sequence.tokens, plain)


@pytest.mark.parametrize(("name", "method"), FORMS)
def test_what_is_kept_of_the_frozen_part_gives_the_same(
    name: str, method: dict[str, Any], inputs: torch.Tensor, make_config: MakeConfig
) -> None:
    model = build_model(make_config(name, method=method)).eval()
    randomise(model.method)
    if name == "full":
        with pytest.raises(ConfigError, match="cached_views: full trains the patch embedding; remove the key"):
            model.method.frozen_state(model.backbone)
        return
    before = {key: value.clone() for key, value in model.method.frozen_state(model.backbone).items()}
    with torch.no_grad():
        kept = model.method.precompute(model.backbone, inputs)
    torch.testing.assert_close(model(kept).logits, model(inputs).logits)
    skip_supernet(name, method)
    steps(model, inputs)
    after = model.method.frozen_state(model.backbone)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    model.eval()
    torch.testing.assert_close(model(kept).logits, model(inputs).logits)  # training leaves what is kept as it is


@on_point_mae
def test_a_method_that_acts_inside_the_patch_encoder_keeps_nothing(
    inputs: torch.Tensor, make_config: MakeConfig
) -> None:
    model = build_model(make_config("linear")).eval()
    method = Method(model.method.options)
    patch = model.backbone.site("patch")
    inside = patch._replace(module=model.backbone.patch_encoder.first)
    for act, site in ((method.tap, inside), (method.branch, patch)):
        act(site, torch.nn.Identity())
        with pytest.raises(ConfigError, match="trains the patch embedding"):
            method.frozen_state(model.backbone)
        method.hooks.pop().remove()
    assert method.frozen_state(model.backbone)


class ZeroTokens(Method):
    """A zero token after every block."""

    def before_block(self, index: int, tokens: torch.Tensor) -> torch.Tensor:
        return insert_after_cls(tokens, torch.zeros_like(tokens[:, :1])) if index > 0 else tokens


WITH_PROMPTS = [
    (name, {})
    for name, kind in METHODS.items()
    if "prompts" in kind.Options.model_fields and kind.Options().makes_prompts  # on a highway, they attend to nothing
]


@pytest.mark.parametrize(
    ("name", "method"),
    [*WITH_PROMPTS, ("dapt_x", {"mixture": False}), ("dapt_x", {"norms": False}), ("dapt_x", TFTS)],
)
def test_prompts_start_as_zero_tokens(
    name: str, method: dict[str, Any], inputs: torch.Tensor, make_config: MakeConfig
) -> None:
    """A token, even zero, takes part in attention: step 0 is the backbone with zero tokens, and no more."""
    config = make_config(name, method=method)
    model = build_model(config).eval()
    wanted = model.backbone(inputs, ZeroTokens(config.method)).sequence
    found = model.method.run(model.backbone, inputs).sequence
    depth = len(model.backbone.blocks)
    assert found.prompts.shape[1] == depth  # one a block; the last joins after the last block
    assert torch.equal(found.cls, wanted.cls)
    assert torch.equal(found.patches, wanted.patches)


@pytest.mark.parametrize(("name", "method"), FORMS)
def test_frozen_tensors_and_buffers_stay_bit_identical(
    name: str, method: dict[str, Any], inputs: torch.Tensor, make_config: MakeConfig
) -> None:
    skip_supernet(name, method)
    model = build_model(make_config(name, method=method))
    for module in model.modules():
        if isinstance(module, DynamicAdapter):  # as initialised, its ReLU may be 0 for every token of these clouds
            torch.nn.init.ones_(module.token_scale.bias)
    before = copy.deepcopy(model.state_dict())
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    free = {n for n, _ in model.named_buffers() if not n.startswith("backbone.")}  # of BatchNorm layers of its own
    if METHODS[name].trains_backbone:
        free |= {n for n, _ in model.named_buffers()}
    steps(model, inputs)
    after = model.state_dict()
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert changed <= trainable | free
    still = {n for n in trainable - changed if model.get_parameter(n).grad is not None}
    assert not still, f"trainable but untouched by training: {sorted(still)}"


@pytest.mark.parametrize(("name", "method"), FORMS)
def test_every_trainable_parameter_gets_a_gradient(
    name: str, method: dict[str, Any], inputs: torch.Tensor, make_config: MakeConfig
) -> None:
    skip_supernet(name, method)
    model = randomise(build_model(make_config(name, method=method)))
    logits, auxiliary = model.train()(inputs)
    loss = F.cross_entropy(logits, LABELS)
    (loss if auxiliary is None else loss + auxiliary).backward()
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name


@on_point_mae
def test_frozen_batch_norm_in_batch_mode_is_part_of_the_adapter(inputs: torch.Tensor, make_config: MakeConfig) -> None:
    config = make_config("dapt_x", train={"frozen_bn": "batch"})
    model = build_model(config)
    assert not any("running" in n for n in model.adapter_state() if n.startswith("backbone."))
    steps(model, inputs, 1)
    kept = [n for n in model.adapter_state() if n.startswith("backbone.patch_encoder")]
    assert sorted({n.rsplit(".", 1)[-1] for n in kept}) == ["num_batches_tracked", "running_mean", "running_var"]


@pytest.mark.parametrize("bn", ["eval", "batch"])
@pytest.mark.parametrize(("name", "method"), FORMS)
def test_adapter_round_trip(
    name: str, method: dict[str, Any], bn: str, inputs: torch.Tensor, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(name, method=method, train={"frozen_bn": bn})
    model = build_model(config)
    steps(model, inputs)
    path = tmp_path / "adapter.safetensors"
    classes = [f"class {i}" for i in range(config.head.num_classes)]
    save_adapter(model, path, config=config, classes=classes)
    fresh = build_model(config)
    info = load_adapter(fresh, path)
    assert info.classes == classes
    assert info.config == config
    assert torch.equal(fresh.eval()(inputs).logits, model.eval()(inputs).logits)


def test_adapter_round_trip_in_a_fresh_process(tmp_path: Path) -> None:
    for kind, shape in SHAPES.items():
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        for name in METHODS:
            config = small_config(name, kind=kind)
            model = randomise(build_model(config))
            classes = [str(i) for i in range(config.head.num_classes)]
            path = tmp_path / f"{name}-{kind}.safetensors"
            save_adapter(model, path, config=config, classes=classes)
            torch.save((inputs, model.eval()(inputs).logits.detach()), path.with_suffix(".pt"))
    script = f"""
import torch
from pathlib import Path
from pointadapterx import build_model, load_adapter, read_adapter
paths = sorted(Path({str(tmp_path)!r}).glob("*.safetensors"))
for path in paths:
    info = read_adapter(path)
    model = build_model(info.config)
    load_adapter(model, info)
    inputs, logits = torch.load(path.with_suffix(".pt"))
    assert torch.equal(model.eval()(inputs).logits, logits), path.stem
print(len(paths), "identical")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"{2 * len(METHODS)} identical", done.stderr


@pytest.mark.parametrize(("name", "method"), FORMS)
def test_deep_copies_are_independent(
    name: str, method: dict[str, Any], inputs: torch.Tensor, make_config: MakeConfig
) -> None:
    model = build_model(make_config(name, method=method)).eval()
    before = model(inputs).logits
    randomise(copy.deepcopy(model))
    assert torch.equal(model(inputs).logits, before)
    other = randomise(copy.deepcopy(model))
    assert not torch.equal(other(inputs).logits, before)


WITH_DEFAULT_COMPILER = ("dapt_x", "dapt", "full")  # takes longest; the first has every kind of part
TRACED_BY_OTHERS = ("linear", "full", "ssf", "adaptformer")  # parts of dapt_x: backbone, head, scales and bottlenecks


def compilations() -> list[Any]:
    """Forms, backbones and compilers; ``exhaustive`` where others stand for them."""
    found = []
    for kind, (name, method) in itertools.product(("point_mae", "vit"), FORMS):
        repeats = bool(marks(name, kind)) or name in TRACED_BY_OTHERS or method not in ({}, TFTS)
        repeats |= (name, method, kind) == (WITH_DEFAULT_COMPILER[0], {}, "point_mae")
        found.append(pytest.param(name, method, kind, "aot_eager", marks=[exhaustive] * repeats))
    for name in WITH_DEFAULT_COMPILER:
        found.append(pytest.param(name, {}, "point_mae", "inductor", marks=[exhaustive] * (name != "dapt_x")))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method", "kind", "backend"), compilations(), indirect=["kind"])
def test_compiles(
    name: str, method: dict[str, Any], kind: str, backend: str, inputs: torch.Tensor, make_config: MakeConfig
) -> None:
    torch._dynamo.reset()  # the models share code, of which only so many versions are kept
    model = randomise(build_model(make_config(name, method=method))).eval()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(inputs).logits, model(inputs).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "method"), FORMS)
def test_bf16_stays_close(name: str, method: dict[str, Any], inputs: torch.Tensor, make_config: MakeConfig) -> None:
    model = randomise(build_model(make_config(name, method=method))).eval()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(inputs).logits.float()
    assert torch.isfinite(half).all()
    assert (half - model(inputs).logits).abs().max() < 0.15


@pytest.mark.parametrize("name", METHODS)
def test_bf16_on_a_cpu_avoids_the_slow_fused_attention(
    name: str, inputs: torch.Tensor, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where DAPT's TFTS have made the queries float32."""
    model = randomise(build_model(make_config(name)))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *_: pytest.fail("fused"))
    with torch.autocast("cpu", torch.bfloat16):
        model(inputs)


def test_weight_decay_spares_tokens_biases_and_vectors() -> None:
    model = build_model(small_config("dapt_x"))
    optimizer = build_optimizer(model, TrainConfig(lr=1e-3, weight_decay=0.05))
    names = {id(p): n for n, p in model.named_parameters()}
    decayed = {names[id(p)] for p in optimizer.param_groups[0]["params"]}
    spared = {names[id(p)] for p in optimizer.param_groups[1]["params"]}
    assert {"backbone.cls_token", "backbone.cls_position", "method.prompt_generators.0.gamma"} <= spared
    assert "method.mixture.experts.0.down.weight" in decayed
    assert not any(n.endswith("bias") for n in decayed)
    assert optimizer.param_groups[1]["weight_decay"] == 0.0


@pytest.mark.parametrize("name", ["full", "vpt"])
def test_tokens_take_no_weight_decay(name: str, make_config: MakeConfig) -> None:
    model = build_model(make_config(name))
    names = {id(p): n for n, p in model.named_parameters()}
    optimizer = build_optimizer(model, TrainConfig(lr=1e-3, weight_decay=0.05))
    decayed = {names[id(p)] for p in optimizer.param_groups[0]["params"]}
    assert decayed
    assert not any("cls_" in n or "pos_embed" in n or "prompts." in n for n in decayed)


ABLATIONS = {
    "shared mixture only": {"norms": False, "prompts": False},
    "block-specific parts only": {"mixture": False},
    "norms only": {"mixture": False, "prompts": False},
    "prompts only": {"mixture": False, "norms": False},
}


def ablated(make_config: MakeConfig, name: str) -> dict[str, Any]:
    method = ABLATIONS[name]
    pools = ["cls", "prompt_mean", "patch_max"] if method.get("prompts", True) else ["cls", "patch_max"]
    return make_config("dapt_x", method={**method, "scale_bias": 1.0}, head={"pools": pools})


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_trains_its_parts_and_no_other(name: str, inputs: torch.Tensor, make_config: MakeConfig) -> None:
    model = build_model(ablated(make_config, name))
    before = copy.deepcopy(model.state_dict())
    steps(model, inputs)
    changed = {n for n, p in model.named_parameters() if not torch.equal(before[n], p)}
    assert changed == {n for n, p in model.named_parameters() if p.requires_grad}
    parts = {
        "mixture": any(n.startswith("method.mixture.") for n in changed),
        "norms": any(".norm2." in n for n in changed),
        "prompts": any(n.startswith("method.prompt_generators.") for n in changed),
    }
    assert parts == {"mixture": True, "norms": True, "prompts": True} | ABLATIONS[name]
    class_token = {f"backbone.{n}" for n in model.backbone.class_parameters()}
    assert class_token | {"backbone.norm.weight", "backbone.norm.bias"} <= changed


@pytest.mark.parametrize("name", ["shared mixture only", "norms only"])
def test_an_ablation_without_prompts_starts_as_the_plain_backbone(
    name: str, inputs: torch.Tensor, make_config: MakeConfig
) -> None:
    config = ablated(make_config, name)
    model = build_model(config).eval()
    plain = model.backbone(inputs, Method(config.method)).sequence.tokens
    assert torch.equal(model.method.run(model.backbone, inputs).sequence.tokens, plain)


@on_point_mae
def test_not_shared_every_block_has_a_mixture_of_its_own(inputs: torch.Tensor, make_config: MakeConfig) -> None:
    shared = build_model(make_config("dapt_x"))
    own = build_model(make_config("dapt_x", method={"shared": False}))
    one = sum(parameter.numel() for parameter in shared.method.mixture.parameters())
    depth = len(own.backbone.blocks)
    assert count_parameters(own).trainable - count_parameters(shared).trainable == (depth - 1) * one
    randomise(shared)
    state = {name: tensor for name, tensor in shared.state_dict().items() if not name.startswith("method.mixture.")}
    own.load_state_dict(state, strict=False)
    for mixture in own.method.block_mixtures:  # the same weights in every block: the shared mixture
        mixture.load_state_dict(shared.method.mixture.state_dict())
    assert torch.equal(own.eval()(inputs).logits, shared.eval()(inputs).logits)


@on_point_mae
def test_prompts_without_the_mixture_are_made_of_the_ffn_output(make_config: MakeConfig) -> None:
    method = randomise(build_model(ablated(make_config, "prompts only"))).method
    ffn_input, ffn_output = torch.randn(2, 2, 5, 48)
    update, prompt, loss = method.adapt_ffn(1, ffn_input, ffn_output)
    generator = method.prompt_generators[1]
    torch.testing.assert_close(prompt[:, 0], generator.gamma * ffn_output.mean(dim=1) + generator.beta)
    assert not update.any()
    assert loss is None


def test_nothing_left_of_the_method_is_a_problem(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"method\.mixture.*all off.*switch one on"):
        make_config("dapt_x", method={"mixture": False, "norms": False, "prompts": False}, head={"pools": ["cls"]})


@on_point_mae
def test_tfts_stand_where_they_are_wanted(inputs: torch.Tensor, make_config: MakeConfig) -> None:
    """γ and β scale and shift the output of that layer in their block."""
    model = build_model(make_config("dapt_x", method={"tfts": ["patch", "qkv"]})).eval()
    dim, depth = model.backbone.dim, len(model.backbone.blocks)
    plain = build_model(make_config("dapt_x")).eval()
    method = model.method
    extra = count_parameters(model).trainable - count_parameters(plain).trainable
    assert extra == 2 * dim + depth * 2 * 3 * dim
    before = model(inputs).logits
    seen: dict[str, torch.Tensor] = {}
    block = model.backbone.blocks[1]
    block.attn.qkv.register_forward_hook(lambda leaf, inputs, output: seen.update(x=inputs[0], y=output))
    with torch.no_grad():
        method.block_tfts[1]["qkv"].gamma.fill_(0.5)
        method.block_tfts[1]["qkv"].beta.fill_(0.25)
    assert not torch.equal(model(inputs).logits, before)
    torch.testing.assert_close(seen["y"], 0.5 * F.linear(seen["x"], block.attn.qkv.weight, block.attn.qkv.bias) + 0.25)


def test_a_place_of_tfts_is_listed_once(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"method\.tfts.*qkv is listed twice"):
        make_config("dapt_x", method={"tfts": ["qkv", "proj", "qkv"]})
    with pytest.raises(ConfigError, match=r"method\.tfts"):
        make_config("dapt_x", method={"tfts": ["head"]})


def test_without_the_mixture_its_widths_do_not_matter(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="sub-tokens do not divide"):
        make_config("dapt_x", method={"num_heads": 7})
    make_config("dapt_x", method={"num_heads": 7, "mixture": False})


@pytest.mark.parametrize("name", [n for n in METHODS if "scale_bias" in METHODS[n].Options.model_fields])
def test_scale_bias_sets_the_bias_and_no_other_initial_value(name: str, make_config: MakeConfig) -> None:
    drawn = build_model(make_config(name)).state_dict()
    chosen = build_model(make_config(name, method={"scale_bias": 1.0})).state_dict()
    for key, value in chosen.items():
        if key.endswith("token_scale.bias"):
            assert value.item() == 1.0
            assert drawn[key].item() != 1.0
        else:
            assert torch.equal(value, drawn[key]), key
    assert any(key.endswith("token_scale.bias") for key in chosen)


@pytest.mark.parametrize("name", METHODS)
def test_statistics_are_detached_and_cleared_when_read(
    name: str, inputs: torch.Tensor, make_config: MakeConfig
) -> None:
    model = build_model(make_config(name))
    keys = set(model.state_dict())
    model.eval()(inputs)
    assert model.method.statistics() == {}
    model.train()(inputs)
    assert set(copy.deepcopy(model).state_dict()) == keys
    assert not any(values.requires_grad for values in model.method.statistics().values())
    assert model.method.statistics() == {}


@on_point_mae
def test_routing_statistics_are_those_of_the_last_training_pass(inputs: torch.Tensor, make_config: MakeConfig) -> None:
    config = make_config("dapt_x", backbone={"depth": 3, "drop_path": 0.0})
    model = randomise(build_model(config)).train()
    model(inputs)
    model(inputs[:4])
    found = model.method.statistics()
    assert {key: tuple(values.shape) for key, values in found.items()} == {
        "routing/load": (3, 4),
        "routing/entropy": (3,),
        "routing/switched": (2,),
    }
    torch.testing.assert_close(found["routing/load"].sum(dim=-1), torch.full((3,), 4.0))  # samples
    parts = []
    for part in (inputs[:2], inputs[2:4]):
        model(part)
        parts.append(model.method.statistics())
    for key in ("routing/entropy", "routing/switched"):  # shares of sub-tokens, of which each sample has as many
        torch.testing.assert_close(parts[0][key] + parts[1][key], found[key], atol=1e-4, rtol=1e-4, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("point_mae", marks=exhaustive), "vit"], indirect=True)
def test_statistics_survive_compilation(inputs: torch.Tensor, make_config: MakeConfig) -> None:
    config = make_config("dapt_x", backbone={"drop_path": 0.0})
    model = randomise(build_model(config)).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):  # the second pass finds the statistics of the first
        compiled(inputs).logits.sum().backward()
    found = model.method.statistics()
    model(inputs)
    for key, values in model.method.statistics().items():
        torch.testing.assert_close(found[key], values, atol=0.05, rtol=0.0, msg=key)
