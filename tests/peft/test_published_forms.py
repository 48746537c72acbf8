"""Options that make a method as its published code has it, and the configs that set them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.adapted_model import count_parameters
from pointadapterx.build import build_model
from pointadapterx.config import Config, read_config
from pointadapterx.peft.parts.low_rank_mixture import LowRankMixture
from pointadapterx.peft.parts.mixture import SharedMixture
from tests.conftest import randomise, small_config

MakeConfig = Callable[..., Config]
ARCHITECTURE = {"prompts": [2, 0], "lora": [3, 3], "adapter": [4, 1]}
NOAH = {"joint_lora": True, "quick_gelu": True, "xavier": True, "dropout": 0.5}


@pytest.mark.parametrize(
    ("config", "drop_path", "dropout", "rank", "pools"),
    [
        ("scan_pb_t50_rs_dapt", 0.3, 0.2, 64, ["cls", "prompt_mean", "patch_max"]),
        ("scan_obj_bg_dapt", 0.3, 0.5, 64, ["cls", "prompt_mean", "patch_max"]),
        ("scan_obj_only_dapt", 0.1, 0.0, 64, ["cls", "prompt_mean"]),
        ("modelnet40_dapt", 0.1, 0.0, 72, ["cls", "patch_max"]),
    ],
)
def test_dapt_is_as_published_on_each_data_set(
    config: str, drop_path: float, dropout: float, rank: int, pools: list[str]
) -> None:
    found = read_config(config)
    method = found.method
    assert (found.backbone.drop_path, method.dropout, method.rank) == (drop_path, dropout, rank)
    assert found.head.pools == pools
    assert (method.name, method.tfts_std, method.scale_bias, method.prompts) == ("dapt", 0.02, 0.0, True)
    assert found.backbone.position == "input"
    own, plain = (read_config(name) for name in (config, config.removesuffix("_dapt")))
    assert own.data == plain.data
    assert own.train == plain.train


def test_dapts_published_start_draws_the_scales_weights_and_not_their_bias() -> None:
    method = build_model(small_config("dapt", method={"scale_bias": 0.0, "tfts_std": 0.02})).method
    scales = [block.adapter.token_scale for block in method.blocks]
    assert all(scale.bias.item() == 0.0 and scale.weight.std() > 0.05 for scale in scales)


def test_a_dense_mixtures_balance_loss_needs_soft_loads() -> None:
    tokens = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))
    for make in (
        lambda soft: SharedMixture(lambda width: nn.Linear(width, width), 24, 3, top_k=4, soft_balance=soft),
        lambda soft: LowRankMixture(24, 3, 2, top_k=4, soft_balance=soft),
    ):
        hard, soft = make(False), make(True)
        soft.load_state_dict(hard.state_dict())
        for mixture in (hard, soft):
            mixture(tokens).balance_loss.backward()
        assert hard(tokens).balance_loss.item() == pytest.approx(1.0)
        assert hard.router.project.weight.grad.abs().max() < 1e-6
        gates = soft.router(tokens.reshape(-1, 8)).mean(dim=0)
        assert soft(tokens).balance_loss.item() == pytest.approx(4 * gates.square().sum().item())
        assert soft.router.project.weight.grad.abs().max() > 1e-4


@pytest.mark.parametrize("name", ["dapt_x", "adapter_x"])
def test_vectors_and_the_final_norm_may_be_chosen(name: str, make_config: MakeConfig) -> None:
    own = name == "dapt_x"  # vectors, and a trained norm
    other = build_model(make_config(name, method={"prompt_vectors": not own, "final_norm": not own}))
    assert other.method.prompt_generators[0].gamma.numel() == (1 if own else 48)
    assert other.backbone.norm.weight.requires_grad != own
    difference = count_parameters(build_model(make_config(name))).trainable - count_parameters(other).trainable
    assert difference == (1 if own else -1) * (2 * 2 * 47 + 2 * 48)


def test_adapters_without_biases(points: Tensor, make_config: MakeConfig) -> None:
    model = randomise(build_model(make_config("adaptformer", method={"biases": False}))).eval()
    adapter, values = model.method.adapters[0], torch.randn(3, 48)
    assert [name for name, _ in adapter.named_parameters()] == ["down.weight", "up.weight"]
    wanted = F.linear(F.relu(values @ adapter.down.weight.T), adapter.up.weight)
    torch.testing.assert_close(adapter(values), wanted)
    assert torch.isfinite(model(points).logits).all()


def test_vpt_may_train_positions_of_its_prompts(points: Tensor, make_config: MakeConfig) -> None:
    config = make_config("vpt", method={"num_prompts": 3, "positions": True}, backbone={"position": "every_block"})
    model = build_model(config).eval()
    tokens = model.method.before_block(0, model.backbone.embed(points).tokens)
    wanted = model.method.prompts[0] + model.method.positions[0]
    assert torch.equal(tokens[:, 1:4], wanted.expand(len(tokens), -1, -1))
    assert 0.015 < wanted.std().item() / 2**0.5 < 0.025
    plain = build_model(make_config("vpt", method={"num_prompts": 3}))
    assert count_parameters(model).trainable - count_parameters(plain).trainable == 2 * 3 * 48
    assert {id(p) for p in model.method.positions} <= {id(p) for p in model.undecayed_parameters()}


def test_noah_as_its_code_has_it(points: Tensor, make_config: MakeConfig) -> None:
    model = build_model(make_config("noah", method={"architecture": ARCHITECTURE, **NOAH}))
    method, values = model.method, torch.randn(3, 48)
    lora, adapter = method.lora["0"], method.adapters["0"]
    assert lora.up.weight.shape == (3 * 48, 3)  # queries, keys and values read one A
    with torch.no_grad():
        lora.up.weight.normal_()
    update = lora.eval()(values)
    torch.testing.assert_close(update, values @ lora.down.weight.T @ lora.up.weight.T)
    assert update.split(48, dim=-1)[1].any()
    hidden = F.linear(values, adapter.down.weight, adapter.down.bias)
    wanted = F.linear(hidden * torch.sigmoid(1.702 * hidden), adapter.up.weight, adapter.up.bias)
    torch.testing.assert_close(adapter.eval()(values), wanted)
    limit = (6 / (48 + 4)) ** 0.5  # Xavier's, of both layers
    assert all(0.8 * limit < layer.weight.abs().max() <= limit for layer in (adapter.down, adapter.up))
    assert 0 < adapter.up.bias.abs().max() < 1e-5
    plain = build_model(make_config("noah", method={"architecture": ARCHITECTURE}))
    assert count_parameters(model) == count_parameters(plain)
    tokens = model.train().backbone.embed(points).tokens
    assert not torch.equal(method.before_block(0, tokens), method.before_block(0, tokens))  # dropped prompts
    model(points).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_noahs_supernet_is_trained_as_published() -> None:
    found = read_config("vtab/noah")
    assert (found.train.epochs, found.train.lr, found.train.weight_decay) == (500, 5e-4, 1e-4)
    assert found.method.search.generations == 15
    assert {key: getattr(found.method, key) for key in NOAH} == {**NOAH, "dropout": 0.1}
