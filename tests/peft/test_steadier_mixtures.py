"""Options that make a shared mixture's training steadier: normalised gates, rates of its parts, a dense start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pointadapterx.build import build_model
from pointadapterx.engine.optim import build_optimizer, set_learning_rate
from pointadapterx.errors import ConfigError
from pointadapterx.models.block import recompute_activations
from pointadapterx.models.tokens import POOLS, TokenSequence, sum_sequences
from pointadapterx.peft.parts.mixture import SharedMixture
from pointadapterx.sections import TrainConfig
from tests.conftest import randomise, small_config


def mixture(experts: int = 4, top_k: int = 1, *, normalize: bool = True) -> SharedMixture:
    """Of linear experts on tokens of width 24."""
    torch.manual_seed(0)
    return SharedMixture(lambda width: nn.Linear(width, width), 24, 4, experts, 3, top_k, normalize=normalize)


@pytest.mark.parametrize("top_k", [1, 2])
def test_normalised_gates_add_up_to_one_and_still_teach_the_router(top_k: int) -> None:
    built, tokens = mixture(top_k=top_k), torch.randn(2, 5, 24)
    sub_tokens = tokens.reshape(-1, 8)
    gates = built.router(sub_tokens)
    weights, chosen = built.choose(gates)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(len(weights)))
    wanted = torch.stack(
        [
            sum(w * built.experts[int(e)](x) for w, e in zip(row, best, strict=True))  # type: ignore[misc]
            for x, row, best in zip(sub_tokens, weights, chosen, strict=True)
        ]
    )
    output = built(tokens).tokens
    torch.testing.assert_close(output.reshape(-1, 8), wanted, atol=1e-6, rtol=1e-5)
    (found,) = torch.autograd.grad(output.cos().sum(), built.router.project.weight)
    kept = (gates.gather(1, chosen).sum(dim=-1, keepdim=True)).detach()  # as a constant
    again = built.mix_dense(sub_tokens, gates.gather(1, chosen) / kept, chosen)
    (of_gates,) = torch.autograd.grad(again.cos().sum(), built.router.project.weight)
    torch.testing.assert_close(found, of_gates, atol=1e-6, rtol=1e-4)
    assert found.abs().sum() > 0


def test_the_size_of_an_output_does_not_hang_on_the_number_of_experts() -> None:
    tokens, sizes = torch.randn(4, 50, 24), {}
    for experts in (2, 16):
        for normalize in (False, True):
            built = mixture(experts, normalize=normalize)
            for expert in built.experts:
                nn.init.eye_(expert.weight)
                nn.init.zeros_(expert.bias)
            sizes[experts, normalize] = float(built(tokens).tokens.detach().norm())
    assert sizes[2, True] == pytest.approx(sizes[16, True], rel=1e-5)
    assert sizes[2, False] > 2 * sizes[16, False]


@pytest.mark.parametrize("sharpness", [0.0, 0.25, 1.0])
def test_a_dense_start_sharpens_to_the_chosen_experts(sharpness: float) -> None:
    built, tokens = mixture(normalize=False), torch.randn(2, 5, 24)
    built.sharpness = sharpness
    sparse = built.eval()(tokens)
    found = built.train()(tokens)
    sub_tokens = tokens.reshape(-1, 8)
    gates = built.router(sub_tokens)
    outputs = torch.stack([expert(sub_tokens) for expert in built.experts], dim=1)
    dense = (gates.unsqueeze(-1) * outputs).sum(dim=1).view_as(tokens)
    wanted = (1 - sharpness) * dense + sharpness * sparse.tokens  # evaluation is always sparse
    torch.testing.assert_close(found.tokens, wanted, atol=1e-6, rtol=1e-5)
    assert torch.equal(found.routing.chosen, sparse.routing.chosen)


def test_epochs_sharpen_the_mixture() -> None:
    model = build_model(small_config("dapt_x", method={"dense_epochs": 4, "shared": False}))
    for epoch, sharpness in ((0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)):
        model.begin_epoch(epoch)
        assert [mixture.sharpness for mixture in model.method.block_mixtures] == [sharpness] * 2
    plain = build_model(small_config("dapt_x"))
    plain.begin_epoch(0)
    assert plain.method.mixture.sharpness == 1.0


def test_parts_of_the_mixture_have_rates_of_their_own() -> None:
    rates = {"router_rate": 0.1, "expert_rate": 4.0, "norm_rate": 0.5}
    model = build_model(small_config("dapt_x", method={**rates, "neighbours": 4}))
    optimizer = build_optimizer(model, TrainConfig(lr=1e-2, weight_decay=0.05))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for scale in (1.0, 0.5):
        set_learning_rate(optimizer, scale * 1e-2)
        found = {names[id(p)]: group["lr"] / scale for group in optimizer.param_groups for p in group["params"]}
        assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
        for name, rate in found.items():
            factor = 0.1 if ".router." in name else 4.0 if ".experts." in name or "neighbour_" in name else 1.0
            factor = 0.5 if name.startswith("backbone.") and "norm" in name else factor
            assert rate == pytest.approx(1e-2 * factor), name
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays["method.mixture.experts.0.down.weight"] == 0.05
    assert decays["method.mixture.experts.0.down.bias"] == 0.0
    plain = build_optimizer(build_model(small_config("dapt_x")), TrainConfig(lr=1e-2))
    assert len(plain.param_groups) == 2
    assert not any("lr_factor" in group for group in plain.param_groups)
    with pytest.raises(ConfigError, match=r"method\.router_rate: "):
        small_config("dapt_x", method={"router_rate": 0.0})


@pytest.mark.parametrize("name", ["dapt_x", "linear", "e3va", "stag"])
def test_the_head_sums_tokens_of_spread_blocks(name: str) -> None:
    config = small_config(name, backbone={"depth": 5, "drop_path": 0.0}, head={"sum_every": 2})
    model = randomise(build_model(config)).eval()
    inputs = torch.randn(2, 128, 3, generator=torch.Generator().manual_seed(3))
    assert model.head.blocks == (4, 2, 0)
    found = model.method.run(model.backbone, inputs, range(5))
    total = [found.intermediates[number].sequence for number in (4, 2, 0)]
    first = sum(sequence.cls for sequence in total)
    largest = sum(sequence.patches for sequence in total).amax(dim=1)  # type: ignore[union-attr, attr-defined]
    middle = [found.sequence.prompts.mean(dim=1)] if "prompt_mean" in model.head.pools else []
    torch.testing.assert_close(model.pooled(inputs), torch.cat([first, *middle, largest], dim=1))
    plain = build_model(small_config(name, backbone={"depth": 5}))
    assert sum(p.numel() for p in plain.head.parameters()) == sum(p.numel() for p in model.head.parameters())
    assert "sum_every" not in small_config(name).dump()["head"]


def test_a_pool_of_all_tokens() -> None:
    tokens = torch.randn(2, 7, 4)
    sequence = TokenSequence(tokens, 5)
    torch.testing.assert_close(POOLS["token_mean"](sequence), tokens.mean(dim=1))
    assert torch.equal(sum_sequences(sequence, [sequence]).tokens, tokens)


def test_neighbours_are_refused_where_blocks_are_computed_again() -> None:
    config = small_config("adaptformer_x", method={"neighbours": 4})
    model = build_model(config).train()
    recompute_activations(model, True)
    with pytest.raises(ConfigError, match=r"method\.neighbours: .*set train\.gradient_checkpointing=false"):
        model(torch.rand(4, config.data.num_points, 3)).logits.sum().backward()
