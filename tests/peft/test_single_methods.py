"""What is particular to one method: its equation, its options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.build import build_model
from pointadapterx.config import Config
from pointadapterx.errors import ConfigError
from pointadapterx.models.block import Block
from pointadapterx.models.sites import LAYERS
from pointadapterx.peft import Method
from pointadapterx.peft.idpt import EdgeConv
from pointadapterx.peft.lora import Lora
from pointadapterx.peft.parts.bottlenecks import ADAPTERS, DynamicAdapter
from pointadapterx.peft.parts.scale_shift import ScaleShift
from tests.conftest import randomise, small_config

MakeConfig = Callable[..., Config]
TOKENS = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))


def plain_branches(block: Block, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """h, u = norm2(h) and mlp(u) of a block."""
    hidden = tokens + block.attn(block.norm1(tokens))
    ffn_input = block.norm2(hidden)
    return hidden, ffn_input, block.mlp(ffn_input)


def run_block(model: Any, index: int) -> Tensor:
    return model.backbone.blocks[index](TOKENS, lambda u, f: model.method.adapt_ffn(index, u, f))[0]


@pytest.mark.parametrize(("name", "activation", "serial"), [("adapter", F.gelu, True), ("adaptformer", F.relu, False)])
def test_adapters_stand_where_their_papers_put_them(
    name: str, activation: Callable[[Tensor], Tensor], serial: bool, make_config: MakeConfig
) -> None:
    model = randomise(build_model(make_config(name, method={"scale": 0.7}))).eval()
    hidden, ffn_input, ffn = plain_branches(model.backbone.blocks[1], TOKENS)
    adapter = model.method.adapters[1]
    inner = activation(F.linear(ffn if serial else ffn_input, adapter.down.weight, adapter.down.bias))
    wanted = hidden + ffn + 0.7 * F.linear(inner, adapter.up.weight, adapter.up.bias)
    torch.testing.assert_close(run_block(model, 1), wanted)


@pytest.mark.parametrize(("name", "serial"), [("adapter_x", True), ("adaptformer_x", False), ("dapt_x", False)])
def test_the_x_family_shares_one_mixture(name: str, serial: bool, make_config: MakeConfig) -> None:
    """Whatever the block, the update is s times the same mixture of what its experts read."""
    model = randomise(build_model(make_config(name, method={"scale": 0.7}))).eval()
    for index in range(2):
        hidden, ffn_input, ffn = plain_branches(model.backbone.blocks[index], TOKENS)
        mixed = model.method.mixture(ffn if serial else ffn_input).tokens
        output = run_block(model, index)
        torch.testing.assert_close(output[:, :1], (hidden + ffn + 0.7 * mixed)[:, :1])
        torch.testing.assert_close(output[:, 2:], (hidden + ffn + 0.7 * mixed)[:, 1:])
        generator = model.method.prompt_generators[index]
        assert generator.gamma.numel() == (48 if name == "dapt_x" else 1)
        torch.testing.assert_close(output[:, 1], generator.gamma * mixed.mean(dim=1) + generator.beta)


@pytest.mark.parametrize("expert", list(ADAPTERS))
@pytest.mark.parametrize("name", ["adapter_x", "dapt_x"])
def test_any_adapter_can_be_the_expert(name: str, expert: str, points: Tensor, make_config: MakeConfig) -> None:
    model = randomise(build_model(make_config(name, method={"expert": expert}))).eval()
    assert isinstance(model.method.mixture.experts[0], DynamicAdapter) == (expert == "dapt")
    assert model.method.serial == ADAPTERS[expert].serial
    assert torch.isfinite(model(points).logits).all()


def test_an_unknown_expert_is_named(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"method\.expert: unknown adapter 'adaptformr'; did you mean 'adaptformer'"):
        make_config("adapter_x", method={"expert": "adaptformr"})


@pytest.mark.parametrize("kind", ["point_mae", "vit"])
def test_bitfit_trains_biases_alone(kind: str) -> None:
    model = build_model(small_config("bitfit", kind=kind))
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad} - set(
        model.backbone.class_parameters()
    )
    linear = ["attn.proj", "mlp.fc1", "mlp.fc2", *(["attn.qkv"] if kind == "vit" else [])]
    wanted = {f"blocks.{i}.{name}.bias" for i in range(2) for name in ["norm1", "norm2", *linear]}
    assert trained == wanted | {"norm.bias"}


class Recorder(Method):
    """Keeps the tokens that each block is given."""

    def __init__(self, method: Method) -> None:
        super().__init__(method.options)
        self.inner, self.seen = method, []

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        self.seen.append(self.inner.before_block(index, tokens))
        return self.seen[-1]


@pytest.mark.parametrize("kind", ["point_mae", "vit"])
@pytest.mark.parametrize("deep", [False, True])
def test_vpt_inserts_its_prompts_once_or_anew(deep: bool, kind: str) -> None:
    config = small_config("vpt", kind=kind, method={"num_prompts": 3, "deep": deep})
    model = build_model(config).eval()
    recorder = Recorder(model.method)
    inputs = torch.randn((2, 128, 3) if kind == "point_mae" else (2, 3, 16, 16))
    sequence = model.backbone(inputs, recorder).sequence
    assert sequence.prompts.shape == (2, 3, 48)
    prompts = model.method.prompts
    assert len(prompts) == (2 if deep else 1)
    for index, prompt in enumerate(prompts):
        assert torch.equal(recorder.seen[index][:, 1:4], prompt.expand(2, -1, -1))
    assert len({tokens.shape[1] for tokens in recorder.seen}) == 1
    if not deep:
        assert not torch.equal(recorder.seen[1][:, 1:4], prompts[0].expand(2, -1, -1))


def test_prompt_dropout_acts_in_training_alone(points: Tensor, make_config: MakeConfig) -> None:
    model = build_model(make_config("vpt", method={"dropout": 0.5}, backbone={"drop_path": 0.0})).eval()
    assert torch.equal(model(points).logits, model(points).logits)
    tokens = model.backbone.embed(points).tokens
    assert torch.equal(model.method.before_block(0, tokens), model.method.before_block(0, tokens))
    model.train()
    assert not torch.equal(model.method.before_block(0, tokens), model.method.before_block(0, tokens))


LORA = {"rank": 2, "alpha": 6.0, "targets": ["v", "q", "proj", "fc1", "fc2"]}


@pytest.mark.parametrize("targets", [["q"], ["k", "v"], ["proj"], ["fc1", "fc2"], LORA["targets"]])
def test_lora_adds_its_product_to_the_targets_and_to_nothing_else(targets: list[str], make_config: MakeConfig) -> None:
    model = randomise(build_model(make_config("lora", method={**LORA, "targets": targets}))).eval()
    method, block = model.method, model.backbone.every_block()[0]
    assert isinstance(method, Lora)
    for name, leaf, *_ in block.layers():
        if not isinstance(leaf, nn.Linear):
            continue
        values = torch.randn(2, 4, leaf.in_features)
        change = leaf(values) - F.linear(values, leaf.weight, leaf.bias)
        touched = [t for t in targets if t == name or (name == "qkv" and t in "qkv")]
        if not touched:
            assert not change.any(), name
            continue
        update = method.blocks[0][name]
        torch.testing.assert_close(change, values @ update.weight().T, atol=1e-5, rtol=1e-4)
        thirds = dict(zip("qkv", update.weight().split(48), strict=True)) if name == "qkv" else {}
        assert {part for part, weight in thirds.items() if weight.any()} == set(touched if thirds else [])
        for part, weight in thirds.items():
            if weight.any():
                low = update.parts[part]
                torch.testing.assert_close(weight, 3.0 * low.up.weight @ low.down.weight)  # alpha / rank


def test_lora_targets_are_distinct_and_known(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"method\.targets.*q is listed twice"):
        make_config("lora", method={"targets": ["q", "v", "q"]})
    with pytest.raises(ConfigError, match=r"method\.targets"):
        make_config("lora", method={"targets": ["qkv"]})


@pytest.mark.parametrize("kind", ["point_mae", "vit"])
def test_ssf_scales_and_shifts_every_layer(kind: str) -> None:
    model = randomise(build_model(small_config("ssf", kind=kind))).eval()
    block, layers = model.backbone.every_block()[1], model.method.blocks[1]
    assert set(layers) == set(LAYERS)
    for name, leaf, width, *_ in block.layers():
        values = torch.randn(2, 4, leaf.weight.shape[-1])
        before = leaf.forward(values)  # without its hooks
        assert before.shape[-1] == width
        torch.testing.assert_close(leaf(values), before * layers[name].gamma + layers[name].beta)


def test_ssf_may_start_as_published(make_config: MakeConfig) -> None:
    method = build_model(make_config("ssf", method={"std": 0.02})).method
    gamma = torch.cat([layer.gamma for layers in method.blocks for layer in layers.values()]).detach()
    assert abs(gamma.mean().item() - 1.0) < 0.01
    assert 0.015 < gamma.std().item() < 0.025


def edge_maximum(tokens: Tensor, neighbours: list[list[int]], layer: EdgeConv) -> Tensor:
    """One sample's edge convolution, pair by pair, BatchNorm in eval mode."""
    rows = []
    for own, others in zip(tokens, neighbours, strict=True):
        pairs = torch.stack([torch.cat([tokens[other] - own, own]) for other in others])
        rows.append(F.leaky_relu(layer.norm(pairs @ layer.linear.weight.T), 0.2).amax(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("graph", ["features", "grid"])
def test_idpts_prompt_is_that_of_its_equations(graph: str) -> None:
    kind = "point_mae" if graph == "features" else "vit"
    model = randomise(build_model(small_config("idpt", kind=kind, method={"neighbours": 4}))).eval()
    method = model.method
    for module in method.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    patches = torch.randn(16, 48, generator=torch.Generator().manual_seed(1))
    outputs, tokens = [], patches
    for layer in method.layers:
        if graph == "features":
            near = [((tokens - own) ** 2).sum(dim=1).argsort()[:4].tolist() for own in tokens]
        else:
            near = [
                [
                    4 * r + c
                    for r in range(i // 4 - 1, i // 4 + 2)
                    for c in range(i % 4 - 1, i % 4 + 2)
                    if 0 <= r < 4 and 0 <= c < 4
                ]
                for i in range(16)
            ]
        tokens = edge_maximum(tokens, near, layer)
        outputs.append(tokens)
    joint = method.joint_norm(torch.cat(outputs, dim=1) @ method.joint.weight.T)
    wanted = F.leaky_relu(joint, 0.2).amax(dim=0)
    torch.testing.assert_close(method.prompt(patches[None])[0, 0], wanted, atol=1e-4, rtol=1e-4)


def test_idpt_puts_one_prompt_before_the_last_block(points: Tensor, make_config: MakeConfig) -> None:
    model = build_model(make_config("idpt")).eval()
    recorder = Recorder(model.method)
    assert model.backbone(points, recorder).sequence.prompts.shape[1] == 1
    assert [tokens.shape[1] for tokens in recorder.seen] == [17, 18]
    with pytest.raises(ConfigError, match=r"method\.graph: the patches of point_mae lie on no grid"):
        build_model(make_config("idpt", method={"graph": "grid"}))


@pytest.mark.parametrize("width", [48, 1])
def test_a_scale_and_shift_has_the_gradients_of_its_formula(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pointadapterx.peft.parts.scale_shift._ScaleShift.CHUNK", 100
    )  # several parts, the last one smaller
    layer = ScaleShift(width, std=0.3)
    tokens = TOKENS.clone().requires_grad_()
    variables = [tokens, layer.gamma, layer.beta]
    found, wanted = layer(tokens), tokens * layer.gamma + layer.beta
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(layer(TOKENS), wanted)  # frozen layers before it
    gradients = torch.autograd.grad(found.cos().sum(), variables)
    torch.testing.assert_close(gradients, torch.autograd.grad(wanted.cos().sum(), variables))
    alone = torch.autograd.grad(layer(TOKENS).cos().sum(), variables[1:])
    torch.testing.assert_close(alone, gradients[1:])
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens), wanted)
