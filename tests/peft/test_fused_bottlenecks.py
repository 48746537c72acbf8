"""The compiled mixture of bottlenecks against experts that are run one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pointadapterx import ops
from pointadapterx.peft.parts.bottlenecks import ADAPTERS, Bottleneck, DynamicAdapter
from pointadapterx.peft.parts.fused_bottlenecks import can_be_fused
from pointadapterx.peft.parts.mixture import MixtureOutput, Router, SharedMixture
from tests.conftest import randomise
from tests.peft.same_bits import same_bits_at, same_with_any_threads

pytestmark = [
    pytest.mark.skipif(
        not hasattr(torch.ops.pointadapterx, "bottlenecks"), reason="the compiled kernels are not there"
    ),
    pytest.mark.compiler,
]
# C, r, E, h: a whole number of vectors; ranks and experts that fill none; whole tokens; many experts.
SIZES = [(384, 24, 4, 3), (96, 7, 5, 2), (64, 33, 1, 1), (192, 16, 31, 3), (48, 15, 17, 3), (32, 100, 2, 2)]
KINDS = ["dapt", "adaptformer", "adapter"]


def make(kind: str = "dapt", sizes: tuple[int, ...] = SIZES[0], dropout: float = 0.0, **options: Any) -> SharedMixture:
    dim, rank, experts, heads = sizes
    torch.manual_seed(0)
    return randomise(
        SharedMixture(lambda w: ADAPTERS[kind].make(w, rank, dropout), dim, rank, experts, heads, **options)
    )


def tokens_of(mixture: SharedMixture, heads: int, *, length: int = 37) -> Tensor:
    return 2 * torch.randn(4, length, heads * mixture.width, generator=torch.Generator().manual_seed(1))


def one_by_one(mixture: SharedMixture, tokens: Tensor) -> MixtureOutput:
    mixture.compiled = False
    try:
        return mixture(tokens)
    finally:
        mixture.compiled = True


def gradients(run: Callable[[Tensor], MixtureOutput], mixture: SharedMixture, tokens: Tensor) -> list[Tensor]:
    tokens = tokens.clone().requires_grad_()
    output = run(tokens)
    weights = torch.randn(output.tokens.shape, generator=torch.Generator().manual_seed(2))
    return list(
        torch.autograd.grad((output.tokens * weights).sum() + 50 * output.balance_loss, [tokens, *mixture.parameters()])
    )


def close(found: Tensor, expected: Tensor, error: float = 1e-4) -> None:
    torch.testing.assert_close(
        found, expected, atol=error * max(float(expected.detach().abs().max()), 1e-6), rtol=error
    )


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_same_as_experts_one_by_one(kind: str, sizes: tuple[int, ...], normalize: bool) -> None:
    mixture = make(kind, sizes, normalize=normalize)
    tokens = tokens_of(mixture, sizes[-1])
    found, expected = mixture(tokens), one_by_one(mixture, tokens)
    assert fused(mixture, tokens)
    close(found.tokens, expected.tokens)
    close(found.balance_loss, expected.balance_loss)
    close(found.routing.gates, expected.routing.gates)
    assert torch.equal(found.routing.chosen, expected.routing.chosen)
    for ours, theirs in zip(
        gradients(mixture, mixture, tokens),
        gradients(lambda some: one_by_one(mixture, some), mixture, tokens),
        strict=True,
    ):
        close(ours, theirs)


def fused(mixture: SharedMixture, tokens: Tensor) -> bool:
    """Whether the compiled pass runs."""
    calls: list[None] = []
    op = torch.ops.pointadapterx.bottlenecks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.pointadapterx, "bottlenecks", lambda *a: calls.append(None) or op(*a))
        mixture(tokens)
    return bool(calls)


def test_numeric_gradient() -> None:
    """Not against torch's, but against differences of the outcome itself."""
    mixture = make("dapt", (32, 3, 2, 1), normalize=False)
    for expert in mixture.experts:
        expert.token_scale.bias.data.fill_(9.0)  # no sub-token at the ReLU's edge
    tokens = tokens_of(mixture, 1, length=3)
    weights = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(5))
    parameters = dict(mixture.named_parameters())
    found = torch.autograd.grad((mixture(tokens).tokens * weights).sum(), list(parameters.values()))
    chosen = mixture(tokens).routing.chosen
    for gradient, (name, parameter) in zip(found, parameters.items(), strict=True):
        place = int(gradient.abs().argmax())
        step = 2e-3
        outcomes = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[place] += sign * step
                output = mixture(tokens)
                assert torch.equal(output.routing.chosen, chosen), name
                outcomes.append((output.tokens.double() * weights).sum())
                parameter.view(-1)[place] -= sign * step
        slope = float(outcomes[0] - outcomes[1]) / (2 * step)
        assert slope == pytest.approx(float(gradient.flatten()[place]), rel=0.03, abs=1e-3), name


def test_steps_that_need_no_gradient_of_tokens_or_none_at_all() -> None:
    mixture = make()
    tokens = tokens_of(mixture, 3)
    of_weights = torch.autograd.grad(mixture(tokens).tokens.square().sum(), list(mixture.parameters()))
    for ours, theirs in zip(of_weights, gradients_of_square(mixture, tokens)[1:], strict=True):
        assert torch.equal(ours, theirs)
    with torch.inference_mode():
        assert torch.equal(mixture(tokens).tokens, mixture(tokens.clone()).tokens)


def gradients_of_square(mixture: SharedMixture, tokens: Tensor) -> list[Tensor]:
    tokens = tokens.clone().requires_grad_()
    return list(torch.autograd.grad(mixture(tokens).tokens.square().sum(), [tokens, *mixture.parameters()]))


def test_bf16_and_strides() -> None:
    mixture = make()
    tokens = tokens_of(mixture, 3).bfloat16()
    expected = mixture(tokens.float()).tokens
    assert fused(mixture, tokens)
    assert torch.equal(mixture(tokens).tokens, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mixture(tokens).tokens, expected)
    turned = tokens.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(mixture(turned).tokens, expected)


def test_dropout_is_of_its_rate_and_the_same_going_back() -> None:
    mixture = make("adapter", (32, 16, 2, 1), dropout=0.25).train()
    tokens = tokens_of(mixture, 1, length=400)
    assert fused(mixture, tokens)
    torch.manual_seed(3)
    first = mixture(tokens).tokens
    torch.manual_seed(3)
    again = mixture(tokens).tokens
    assert torch.equal(first, again)
    assert not torch.equal(first, mixture(tokens).tokens)
    with torch.no_grad():
        many = torch.stack([mixture(tokens).tokens for _ in range(200)])
    expected = mixture.eval()(tokens).tokens.detach()
    error = (many.mean(0) - expected) / (many.std(0) / 200**0.5 + 1e-9)
    assert 0.85 < float(error.std()) < 1.15
    assert abs(float(error.mean())) < 0.05
    # Linear in what a hidden value is worth: the gradient of a bias behind dropout shows which values were kept.
    mixture.train()
    experts = [expert for expert in mixture.experts if isinstance(expert, Bottleneck)]
    torch.manual_seed(4)
    loss = (mixture(tokens).tokens * 0.5).sum()
    of_up = torch.autograd.grad(loss, [expert.up.weight for expert in experts])
    for expert, gradient in zip(experts, of_up, strict=True):
        with torch.no_grad():
            torch.manual_seed(4)
            before = (mixture(tokens).tokens.double() * 0.5).sum()
            expert.up.weight[3, 5] += 0.5
            torch.manual_seed(4)
            after = (mixture(tokens).tokens.double() * 0.5).sum()
            expert.up.weight[3, 5] -= 0.5
        assert float(after - before) / 0.5 == pytest.approx(float(gradient[3, 5]), rel=1e-3)


def test_share_of_what_is_dropped() -> None:
    """With ReLU and positive hidden values everywhere, an output tells the kept values one by one."""
    rank, op = 16, torch.ops.pointadapterx.bottlenecks
    tokens = torch.zeros(20_000, 16)
    down, bias = torch.zeros(1, rank, 16), torch.ones(1, rank)
    up = torch.cat([torch.eye(rank), torch.zeros(1, rank)]).unsqueeze(0)
    for rate in (0.1, 0.5, 0.9):
        kept = [op(tokens, torch.zeros(1, 16), down, bias, up, False, False, -1.0, rate, seed)[0] for seed in (1, 2)]
        for values in kept:
            assert values.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])
            share = (values == 0).double()
            error = (rate * (1 - rate) / share.shape[0]) ** 0.5
            assert ((share.mean(0) - rate).abs() < 5 * error).all()
            together = torch.corrcoef(share.T) - torch.eye(rank)  # of columns
            assert float(together.abs().max()) < 5 / share.shape[0] ** 0.5
            follow = torch.corrcoef(torch.stack([share[:-1].flatten(), share[1:].flatten()]))[0, 1]
            assert abs(float(follow)) < 5 / share.numel() ** 0.5
        assert not torch.equal(*kept)


def test_what_is_not_a_number_is_seen() -> None:
    mixture = make()
    tokens = tokens_of(mixture, 3)
    tokens[1, 5, 200] = float("nan")
    found = mixture(tokens)
    assert found.tokens[1, 5, 128:256].isnan().all()
    assert found.tokens.isnan().sum() == 128
    assert found.routing.gates.isnan().sum() == 4
    for normalize in (False, True):
        mixture = make("adaptformer", normalize=normalize)
        tokens = tokens_of(mixture, 3)
        tokens[1, 5, 200] = -float("inf")
        assert (
            mixture(tokens).tokens[1, 5, 128:256].isnan().all()
            == one_by_one(mixture, tokens).tokens[1, 5, 128:256].isnan().all()
        )
        assert mixture(tokens).tokens[1, 5, 128:256].isnan().all()


def test_experts_that_someone_looks_into_run_one_by_one() -> None:
    mixture = make()
    tokens = tokens_of(mixture, 3)
    assert fused(mixture, tokens)
    seen: list[int] = []
    handle = mixture.experts[2].register_forward_hook(lambda *_: seen.append(2))
    assert not fused(mixture, tokens)
    assert seen
    handle.remove()
    handle = mixture.experts[1].down.register_forward_pre_hook(lambda *_: seen.append(1))
    assert not fused(mixture, tokens)
    assert seen[-1] == 1
    handle.remove()
    assert fused(mixture, tokens)


def test_a_router_that_someone_looks_into_or_replaces() -> None:
    mixture = make()
    tokens, seen = tokens_of(mixture, 3), []
    handle = mixture.router.register_forward_hook(lambda *_: seen.append(1))
    assert not fused(mixture, tokens)
    assert seen
    handle.remove()

    class Other(Router):
        pass

    mixture.router.__class__ = Other
    assert not fused(mixture, tokens)
    mixture.router.__class__ = Router

    class Own(SharedMixture):
        def choose(self, gates: Tensor) -> tuple[Tensor, Tensor]:
            return super().choose(gates)

    mixture.__class__ = Own
    assert not fused(mixture, tokens)


def test_dropout_layers_have_modes_of_their_own() -> None:
    """As in Monte Carlo dropout: the model evaluates, its dropout trains."""
    mixture = make("adapter", (32, 16, 2, 1), dropout=0.5).eval()
    tokens = tokens_of(mixture, 1)
    for expert in mixture.experts:
        expert.dropout.train()
    assert fused(mixture, tokens)
    assert not torch.equal(mixture(tokens).tokens, mixture(tokens).tokens)
    mixture.train()
    for expert in mixture.experts:
        expert.dropout.eval()
    assert torch.equal(mixture(tokens).tokens, mixture(tokens).tokens)
    mixture.experts[0].dropout.train()
    assert not fused(mixture, tokens)


@pytest.mark.parametrize("place", ["experts.0", "experts.1.down", "router"])
def test_a_forward_of_its_own(place: str) -> None:
    """As libraries that move layers between devices set it."""
    mixture, called = make(), []
    module = mixture.get_submodule(place)
    before = module.forward
    module.forward = lambda *a: called.append(1) or before(*a)
    assert not fused(mixture, tokens_of(mixture, 3))
    assert called


class Louder(Bottleneck):
    def forward(self, tokens: Tensor) -> Tensor:
        return 2 * super().forward(tokens)


def test_what_the_kernel_does_not_know() -> None:
    tokens = torch.randn(3, 32)
    plain = [Bottleneck(32, 4, nn.ReLU()) for _ in range(2)]
    assert can_be_fused(plain, tokens)
    assert not can_be_fused([Louder(32, 4, nn.ReLU()), *plain], tokens)
    assert not can_be_fused([*plain, Louder(32, 4, nn.ReLU())], tokens)
    assert not can_be_fused([Bottleneck(32, 4, nn.GELU(approximate="tanh"))], tokens)
    assert not can_be_fused([Bottleneck(32, 4, nn.SiLU())], tokens)
    assert not can_be_fused([Bottleneck(40, 4, nn.ReLU())], torch.randn(3, 40))
    assert not can_be_fused(plain, tokens.double())
    assert not can_be_fused([expert.double() for expert in plain], tokens)
    without = Bottleneck(32, 4, nn.ReLU())
    without.up.register_parameter("bias", None)
    assert not can_be_fused([without], tokens)
    mixed = [Bottleneck(32, 4, nn.ReLU()), Bottleneck(32, 4, nn.GELU())]
    assert not can_be_fused(mixed, tokens)
    assert not can_be_fused([Bottleneck(32, 4, nn.ReLU(), rate) for rate in (0.0, 0.1)], tokens)
    assert not can_be_fused([Bottleneck(32, rank, nn.ReLU()) for rank in (4, 5)], tokens)
    assert not can_be_fused([Bottleneck(32, 4, nn.Dropout(0.1))], tokens)
    assert not can_be_fused([Bottleneck(32, 4, nn.ReLU(), 1.0)], tokens)


@pytest.mark.parametrize("options", [{"top_k": 2}, {"sharpness": 0.5}])
def test_what_needs_several_experts_a_token(options: dict[str, Any]) -> None:
    sharpness = options.pop("sharpness", 1.0)
    mixture = make(**options).train()
    mixture.sharpness = sharpness
    assert not fused(mixture, tokens_of(mixture, 3))
    if sharpness < 1:
        assert fused(mixture.eval(), tokens_of(mixture, 3))  # evaluation is always sharp


def test_torch_func() -> None:
    mixture = make("adapter", (32, 4, 2, 1))
    tokens = tokens_of(mixture, 1, length=3)
    parameters = dict(mixture.named_parameters())

    def loss(given: dict[str, Tensor], some: Tensor) -> Tensor:
        return torch.func.functional_call(mixture, given, (some,)).tokens.square().sum()

    found = torch.func.grad(loss)(parameters, tokens)
    expected = dict(zip(parameters, gradients_of_square(mixture, tokens)[1:], strict=True))
    for name in parameters:
        close(found[name], expected[name])


def inputs(sizes: tuple[int, ...] = SIZES[0], *, length: int = 40) -> tuple[Tensor, list[Any]]:
    """Of the compiled operation: sub-tokens, weights and settings."""
    mixture = make("dapt", sizes)
    folded = DynamicAdapter.folded(list(mixture.experts))
    up = torch.cat([folded.up.mT, folded.up_bias.unsqueeze(1)], dim=1)
    weights = [part.detach() for part in (mixture.router.directions(), folded.down, folded.bias, up)]
    tokens = tokens_of(mixture, sizes[-1], length=length).view(-1, mixture.width)
    return tokens, [*weights, True, False, 1e-5, 0.2, 123456789012345]


def raw(tokens: Tensor, rest: list[Any]) -> list[Tensor]:
    """What the compiled operation returns, and its gradients."""
    op = torch.ops.pointadapterx
    out, gates, chosen, hidden = op.bottlenecks(tokens, *rest)
    return [
        *(out, gates, chosen, hidden),
        *op.bottlenecks_backward(out, gates, gates, chosen, hidden, tokens, *rest, True),
    ]


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    same_with_any_threads(lambda: raw(*inputs(length=600)))


@pytest.mark.parametrize("level", ["AVX2", "baseline"])
def test_other_instruction_sets_give_the_same_bits(level: str, tmp_path: Path) -> None:
    same_bits_at(level, "tests.peft.test_fused_bottlenecks", lambda: [raw(*inputs(sizes)) for sizes in SIZES], tmp_path)


def test_a_wrong_call_is_refused() -> None:
    op = torch.ops.pointadapterx
    tokens, (router, down, bias, up, *settings) = inputs()
    with pytest.raises(RuntimeError, match="tokens must be contiguous float32 of shape"):
        op.bottlenecks(tokens[:, :-1], router, down, bias, up, *settings)
    with pytest.raises(RuntimeError, match="tokens must be contiguous float32"):
        op.bottlenecks(tokens.double(), router, down, bias, up, *settings)
    with pytest.raises(RuntimeError, match="tokens must have 2 axes"):
        op.bottlenecks(tokens[None], router, down, bias, up, *settings)
    with pytest.raises(RuntimeError, match="do not fit together"):
        op.bottlenecks(tokens, router, down[:, :-2], bias, up, *settings)
    with pytest.raises(RuntimeError, match="do not fit together"):
        op.bottlenecks(tokens, router, down, bias[:, 1:], up, *settings)
    with pytest.raises(RuntimeError, match="there must be experts"):
        op.bottlenecks(tokens, *(part[:0] for part in (router, down, bias, up)), *settings)
    with pytest.raises(RuntimeError, match="a width that 16 divides"):
        op.bottlenecks(tokens[:, :8], router[:, :8], down[..., :8], bias, up[..., :8], *settings)
    with pytest.raises(RuntimeError, match="must be dense float32 tensors, got Double"):
        op.bottlenecks(tokens, router.double(), down, bias, up, *settings)
    with pytest.raises(RuntimeError, match="must have 2 axes"):
        op.bottlenecks(tokens, router[0], down, bias, up, *settings)
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(RuntimeError, match="dropout"):
            op.bottlenecks(tokens, router, down, bias, up, *settings[:3], rate, 0)
    for eps in (-0.5, float("nan")):
        with pytest.raises(RuntimeError, match="eps"):
            op.bottlenecks(tokens, router, down, bias, up, True, False, eps, 0.0, 0)
    out, gates, chosen, hidden = op.bottlenecks(tokens, router, down, bias, up, *settings)
    rest = (tokens, router, down, bias, up, *settings, True)
    with pytest.raises(RuntimeError, match="chosen experts must be among the 4"):
        op.bottlenecks_backward(out, gates, gates, chosen + 1, hidden, *rest)
    with pytest.raises(RuntimeError, match="chosen must be"):
        op.bottlenecks_backward(out, gates, gates, chosen.int(), hidden, *rest)
    with pytest.raises(RuntimeError, match="gradient must be contiguous float32"):
        op.bottlenecks_backward(out[:-1], gates, gates, chosen, hidden, *rest)
    with pytest.raises(RuntimeError, match="hidden must be contiguous float32"):
        op.bottlenecks_backward(out, gates, gates, chosen, hidden[:, 1:], *rest)


def test_no_sub_tokens() -> None:
    tokens, rest = inputs()
    found = raw(tokens[:0], rest)
    assert found[0].shape == (0, 128)
    assert all(not part.any() for part in found[5:])


def test_the_library_says_what_it_has() -> None:
    assert ops.implementation("cpu").startswith("compiled C++ (")
    assert "older" not in ops.implementation("cpu")
