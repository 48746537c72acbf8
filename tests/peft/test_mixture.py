"""The sharing mixture of adapters (Adapter-X equations 4 to 6)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pointadapterx.peft.parts.bottlenecks import ADAPTERS, Bottleneck, DynamicAdapter
from pointadapterx.peft.parts.mixture import Routing, SharedMixture, balance_loss, routing_statistics


def mixture(top_k: int = 1, experts: int = 4) -> SharedMixture:
    torch.manual_seed(0)
    built = SharedMixture(lambda width: DynamicAdapter(width, 3), 24, rank=3, num_experts=experts, top_k=top_k)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_grouped_agrees_with_the_dense_form_masked(top_k: int) -> None:
    built, tokens = mixture(top_k), torch.randn(2, 9, 24, requires_grad=True)
    sub_tokens = tokens.reshape(-1, 8)
    weights, chosen = built.router(sub_tokens).topk(top_k, dim=-1)
    grouped, dense = built.mix(sub_tokens, weights, chosen), built.mix_dense(sub_tokens, weights, chosen)
    torch.testing.assert_close(grouped, dense, atol=1e-6, rtol=1e-5)
    assert_same_gradients(grouped, dense, [tokens, *built.parameters()])


def assert_same_gradients(one: Tensor, other: Tensor, parameters: list[Tensor]) -> None:
    """Of the sums of squares."""
    for gradient, wanted in zip(
        torch.autograd.grad(one.square().sum(), parameters, retain_graph=True),
        torch.autograd.grad(other.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(("width", "rank"), [(10, 3), (8, 4)])
@pytest.mark.parametrize("kind", list(ADAPTERS))
def test_many_experts_in_a_few_products(
    kind: str, width: int, rank: int, top_k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = many(lambda inner: ADAPTERS[kind].make(inner, rank, 0.0), width, top_k)
    tokens = torch.randn(2, 20, 3 * width, requires_grad=True)  # 120 sub-tokens, so that some experts get none
    sub_tokens = tokens.reshape(-1, width)
    weights, chosen = built.router(sub_tokens).topk(top_k, dim=-1)
    with monkeypatch.context() as patch:
        for expert in built.experts:  # a call for each expert would fail
            patch.setattr(expert, "forward", None)
        grouped = built.mix(sub_tokens, weights, chosen)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(built.mix(sub_tokens, weights, chosen), grouped)
    dense = built.mix_dense(sub_tokens, weights, chosen)
    assert len(chosen.unique()) < 64
    torch.testing.assert_close(grouped, dense, atol=1e-5, rtol=1e-5)
    assert_same_gradients(grouped, dense, [tokens, *built.parameters()])


def test_dropout_of_many_experts_drops_in_training_alone() -> None:
    built, tokens = many(lambda inner: DynamicAdapter(inner, 4, 0.5), 8), torch.randn(2, 20, 24)
    assert not torch.equal(built(tokens).tokens, built(tokens).tokens)
    built.eval()
    assert torch.equal(built(tokens).tokens, built(tokens).tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_activation_with_parameters_of_each_expert_keeps_them(dtype: torch.dtype) -> None:
    built = many(lambda inner: Bottleneck(inner, 4, nn.PReLU()), 8).to(dtype)
    sub_tokens = torch.randn(120, 8, dtype=dtype)
    weights, chosen = built.router(sub_tokens).max(dim=-1, keepdim=True)
    dense = built.mix_dense(sub_tokens, weights, chosen)
    torch.testing.assert_close(built.mix(sub_tokens, weights, chosen), dense, atol=1e-5, rtol=1e-5)


def many(make: Callable[[int], nn.Module], width: int, top_k: int = 1) -> SharedMixture:
    """64 experts of random parameters for tokens of three sub-tokens."""
    torch.manual_seed(0)
    built = SharedMixture(make, 3 * width, 3, num_experts=64, top_k=top_k)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built


def test_a_derived_expert_with_another_forward_is_not_taken_for_its_base() -> None:
    class Zero(DynamicAdapter):
        def forward(self, tokens: Tensor) -> Tensor:
            return torch.zeros_like(tokens)

    built = many(lambda width: Zero(width, 3), 8)
    assert not built(torch.randn(2, 9, 24)).tokens.any()


@pytest.mark.parametrize("top_k", [1, 4])
def test_experts_on_a_cpu_stay_in_float32_under_autocast(top_k: int) -> None:
    built, tokens = mixture(top_k), torch.randn(2, 9, 24)
    wanted = built(tokens).tokens
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(built(tokens).tokens, wanted)


def test_top_one_is_the_chosen_expert_times_its_gate() -> None:
    built, tokens = mixture(), torch.randn(2, 5, 24)
    output = built(tokens).tokens.reshape(-1, 8)
    for row, sub_token in enumerate(tokens.reshape(-1, 8)):
        gates = built.router(sub_token[None])[0]
        best = int(gates.argmax())
        wanted = gates[best] * built.experts[best](sub_token)
        torch.testing.assert_close(output[row], wanted, atol=1e-5, rtol=1e-4)


def test_all_experts_is_the_dense_mixture() -> None:
    built, tokens = mixture(top_k=4), torch.randn(2, 5, 24)
    sub_tokens = tokens.reshape(-1, 8)
    gates = built.router(sub_tokens)
    wanted = sum(gates[:, i : i + 1] * expert(sub_tokens) for i, expert in enumerate(built.experts))
    assert isinstance(wanted, Tensor)
    torch.testing.assert_close(built(tokens).tokens, wanted.view_as(tokens), atol=1e-6, rtol=1e-5)


def test_only_the_chosen_expert_is_computed() -> None:
    built, seen = mixture(), []
    for expert in built.experts:
        expert.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    built(torch.randn(2, 7, 24))
    assert sum(seen) == 2 * 7 * 3


def test_router_scores_ignore_the_length_of_the_embeddings() -> None:
    built, sub_tokens = mixture(), torch.randn(10, 8)
    before = built.router(sub_tokens)
    with torch.no_grad():
        built.router.embeddings *= torch.tensor([[2.0], [0.5], [7.0], [1.0]])
    torch.testing.assert_close(built.router(sub_tokens), before)
    torch.testing.assert_close(before.sum(dim=-1), torch.ones(10))


def test_balance_loss_is_one_when_uniform_and_grows_to_the_number_of_experts() -> None:
    uniform = torch.full((8, 4), 0.25)
    everyone = torch.arange(8)[:, None] % 4
    assert balance_loss(uniform, everyone).item() == pytest.approx(1.0)
    collapsed = torch.tensor([[1.0, 0, 0, 0]]).expand(8, 4)
    assert balance_loss(collapsed, torch.zeros(8, 1, dtype=torch.int64)).item() == pytest.approx(4.0)


@pytest.mark.parametrize("top_k", [1, 2])
def test_routing_tells_gates_and_choice_of_each_sub_token(top_k: int) -> None:
    built, tokens = mixture(top_k), torch.randn(2, 5, 24, requires_grad=True)
    routing = built(tokens).routing
    gates = built.router(tokens[1, 3, 8:16][None])[0]  # second sub-token of a token
    torch.testing.assert_close(routing.gates[1, 3, 1], gates)
    assert routing.chosen[1, 3, 1].tolist() == gates.argsort(descending=True)[:top_k].tolist()
    assert routing.gates.shape == (2, 5, 3, 4)
    assert routing.chosen.shape == (2, 5, 3, top_k)
    assert not routing.gates.requires_grad


def routing(best: list[list[int]], num_experts: int = 3) -> Routing:
    """Of tokens that are one sub-token each, with all of the gate on the best expert; ``best`` is (B, L)."""
    chosen = torch.tensor(best)[..., None, None]
    return Routing(nn.functional.one_hot(chosen.squeeze(-1), num_experts).float(), chosen)


def test_routing_statistics_are_shares_times_samples() -> None:
    first = routing([[0, 1, 2], [0, 0, 0]])  # CLS and two patches
    second = routing([[0, 2, 1, 0], [1, 1, 0, 0]])  # CLS, a prompt, two patches
    found = routing_statistics([first, second], num_patches=2)
    wanted = 2 * torch.tensor([[4 / 6, 1 / 6, 1 / 6], [4 / 8, 3 / 8, 1 / 8]])
    torch.testing.assert_close(found["routing/load"], wanted)
    # Of CLS and patches: 1 -> 1, 2 -> 0 and 0 -> 0 in the first sample, only CLS in the second.
    torch.testing.assert_close(found["routing/switched"], torch.tensor([2 * 2 / 6]))
    assert found["routing/entropy"].tolist() == [0.0, 0.0]


def test_routing_statistics_of_one_block_and_uniform_gates() -> None:
    even = Routing(torch.full((3, 5, 2, 4), 0.25), torch.randint(4, (3, 5, 2, 2)))
    found = routing_statistics([even], num_patches=4)
    torch.testing.assert_close(found["routing/entropy"], torch.tensor([3 * math.log(4)]))
    torch.testing.assert_close(found["routing/load"].sum(dim=-1), torch.tensor([3.0]))  # of both choices
    assert found["routing/switched"].shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "dim=24 does not divide into num_heads=5"),
        ({"top_k": 5}, "top_k=5 must be between 1 and num_experts=4"),
    ],
)
def test_refuses_impossible_sizes(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharedMixture(lambda width: DynamicAdapter(width, 3), 24, rank=3, **options)
