"""The low-rank mixture, compiled and not, against experts that are run one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pointadapterx import ops
from pointadapterx.peft.parts.low_rank_mixture import LowRankMixture
from pointadapterx.peft.parts.mixture import MixtureOutput, SharedMixture
from tests.conftest import randomise
from tests.peft.same_bits import same_bits_at, same_with_any_threads

compiled = pytest.mark.skipif(
    not ops.implementation("cpu").startswith("compiled"), reason="the compiled kernels are not there"
)
FORMS = [pytest.param(True, id="kernel", marks=[compiled, pytest.mark.compiler]), pytest.param(False, id="torch")]
# Sizes: (C, r, k, E, h); the second ones fill no vector.
SIZES = [(96, 32, 8, 4, 3), (60, 10, 3, 5, 3), (32, 16, 4, 40, 2)]


@pytest.fixture(params=FORMS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether the compiled kernel is used; it is seen to be used."""
    calls: list[None] = []
    op = torch.ops.pointadapterx.thin_experts if request.param else None
    if not request.param:
        monkeypatch.setattr(LowRankMixture, "_has_kernel", lambda self, tokens: False)
    else:
        monkeypatch.setattr(torch.ops.pointadapterx, "thin_experts", lambda *a: calls.append(None) or op(*a))
    yield request.param
    assert bool(calls) == request.param


def make(sizes: tuple[int, ...] = SIZES[0], **options: Any) -> LowRankMixture:
    dim, rank, inner, experts, heads = sizes
    torch.manual_seed(0)
    return randomise(LowRankMixture(dim, rank, inner, num_experts=experts, num_heads=heads, **options))


def tokens_of(mixture: LowRankMixture, heads: int = 3, *, length: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(3, length, heads * mixture.width, generator=generator)


def inputs(sizes: tuple[int, ...] = SIZES[0], *, length: int = 40) -> tuple[Tensor, list[Tensor]]:
    """Of the compiled operation: sub-tokens, and weights."""
    mixture = make(sizes)
    weights = [value.detach().contiguous() for value in (mixture.router.directions(), *mixture.bank())]
    return tokens_of(mixture, sizes[-1], length=length).flatten(1), weights


def raw(tokens: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """What the compiled operation returns, and its gradients."""
    op = torch.ops.pointadapterx
    codes, *saved = op.thin_experts(tokens, *weights)
    return [codes, *saved, *op.thin_experts_backward(codes, saved[0], *saved, tokens, *weights)]


def gradients(mixture: LowRankMixture, run: Callable[[Tensor], MixtureOutput], tokens: Tensor) -> list[Tensor]:
    output = run(tokens)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(output.tokens.shape, generator=generator)
    return list(
        torch.autograd.grad(
            (output.tokens * weights).sum() + 50 * output.balance_loss, list(mixture.parameters()), allow_unused=False
        )
    )


def agree(found: MixtureOutput, expected: MixtureOutput) -> None:
    torch.testing.assert_close(found.tokens, expected.tokens, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found.balance_loss, expected.balance_loss)
    torch.testing.assert_close(found.routing.gates, expected.routing.gates, atol=1e-6, rtol=1e-5)
    assert torch.equal(found.routing.chosen, expected.routing.chosen)


@pytest.mark.parametrize("sizes", SIZES)
def test_same_as_experts_one_by_one(sizes: tuple[int, ...], kernel: bool) -> None:
    mixture = make(sizes)
    tokens = tokens_of(mixture, sizes[-1])
    agree(mixture(tokens), SharedMixture.forward(mixture, tokens))
    found = gradients(mixture, mixture, tokens)
    expected = gradients(mixture, lambda some: SharedMixture.forward(mixture, some), tokens)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_tokens_get_a_gradient_and_several_experts(top_k: int) -> None:
    mixture = make(top_k=top_k)
    tokens = tokens_of(mixture).requires_grad_()
    agree(mixture(tokens), SharedMixture.forward(mixture, tokens))
    wanted = [tokens, *mixture.parameters()]
    found = torch.autograd.grad(mixture(tokens).tokens.square().sum(), wanted)
    expected = torch.autograd.grad(SharedMixture.forward(mixture, tokens).tokens.square().sum(), wanted)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-4)


def test_a_sum_is_decoded_once(kernel: bool) -> None:
    mixture = make()
    first, second = tokens_of(mixture), tokens_of(mixture).flip(1)
    codes = mixture.encode(first).tokens + mixture.encode(second).tokens
    assert codes.shape == (3, 40, 3 * 4 * 9)
    torch.testing.assert_close(
        mixture.decode(codes), mixture(first).tokens + mixture(second).tokens, atol=1e-5, rtol=1e-4
    )


def test_steps_of_a_cache_and_bf16(kernel: bool) -> None:
    mixture = make()
    cached = torch.stack([tokens_of(mixture), tokens_of(mixture).flip(0)], dim=1).bfloat16()
    views = [*cached.unbind(1), cached[:, 0].transpose(0, 1), cached[:1, 0].transpose(0, 1)]  # not contiguous
    for some in views:
        plain = some.float().contiguous()
        agree(mixture(some), SharedMixture.forward(mixture, plain))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            agree(mixture(some), mixture(plain))
        found = gradients(mixture, mixture, some)
        expected = gradients(mixture, lambda tokens: SharedMixture.forward(mixture, tokens), plain)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-4)


def test_dropout_is_inside_the_experts() -> None:
    mixture = make(dropout=0.5).train()
    tokens = tokens_of(mixture)
    torch.manual_seed(0)
    one, two = mixture(tokens).tokens, mixture(tokens).tokens
    assert not torch.equal(one, two)
    plain = make().eval()
    torch.testing.assert_close(mixture.eval()(tokens).tokens, plain(tokens).tokens)
    mixture.train()
    with torch.no_grad():
        many = torch.stack([mixture(tokens).tokens for _ in range(100)])
    error = (many.mean(0) - plain(tokens).tokens) / (many.std(0) / 10)  # in standard errors
    assert 0.8 < error.std() < 1.2


@compiled
def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    same_with_any_threads(lambda: raw(*inputs(length=600)))


@compiled
@pytest.mark.parametrize("level", ["AVX2", "baseline"])
def test_other_instruction_sets_give_the_same_bits(level: str, tmp_path: Path) -> None:
    same_bits_at(level, "tests.peft.test_low_rank_mixture", lambda: [raw(*inputs(sizes)) for sizes in SIZES], tmp_path)


@compiled
def test_gelu_of_the_kernel_is_torchs() -> None:
    """One expert that hands its input on: what lies between is GELU."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 40.0, -40.0, 1e4, -1e4])])
    one = torch.ones(1, 1, 1)
    codes, *_ = torch.ops.pointadapterx.thin_experts(x.view(1, -1), torch.zeros(1, 1), one, one, torch.zeros(1, 1), one)
    torch.testing.assert_close(codes[:, 0, 0], torch.nn.functional.gelu(x), atol=1e-6, rtol=1e-6)


@compiled
def test_a_wrong_call_is_refused() -> None:
    op = torch.ops.pointadapterx
    tokens, weights = inputs()
    with pytest.raises(RuntimeError, match="tokens must be rows of sub-tokens"):
        op.thin_experts(tokens[:, :-1], *weights)
    with pytest.raises(RuntimeError, match="tokens must be float32 or bfloat16"):
        op.thin_experts(tokens.double(), *weights)
    with pytest.raises(RuntimeError, match="do not fit together"):
        op.thin_experts(tokens, weights[0], weights[1][:, :-1], *weights[2:])
    with pytest.raises(RuntimeError, match="there must be experts"):
        op.thin_experts(tokens, *(weight[:0] for weight in weights))
    with pytest.raises(RuntimeError, match="must be dense float32 tensors, got Double"):
        op.thin_experts(tokens, weights[0].double(), *weights[1:])
    router, down_in, down_out, bias, up_in = weights
    for strange in (
        (router[:, :0], down_in[..., :0], down_out, bias, up_in),
        (router, down_in, down_out[..., :0], bias[:, :0], up_in[..., :0]),
        (router, down_in[:, :0], down_out[:, :0], bias, up_in[:, :0]),
    ):
        with pytest.raises(RuntimeError, match="of a width, a rank and an inner rank of 1 or more"):
            op.thin_experts(tokens, *strange)
    for place in range(5):
        for change in (lambda part: part[None], lambda part: part[0], lambda part: part.flatten()):
            strange = [change(part) if number == place else part for number, part in enumerate(weights)]
            with pytest.raises(RuntimeError, match="must have 2 axes, down_in, down_out and up_in 3"):
                op.thin_experts(tokens, *strange)
    codes, gates, chosen, squeezed = op.thin_experts(tokens, *weights)
    with pytest.raises(RuntimeError, match="chosen must be int64, got Int"):
        op.thin_experts_backward(codes, gates, gates, chosen.int(), squeezed, tokens, *weights)
    with pytest.raises(RuntimeError, match="must be float32, got Double"):
        op.thin_experts_backward(codes.double(), gates, gates, chosen, squeezed, tokens, *weights)
    with pytest.raises(RuntimeError, match="gradients do not fit"):
        op.thin_experts_backward(codes[:-1], gates, gates, chosen, squeezed, tokens, *weights)
    with pytest.raises(RuntimeError, match="chosen experts must be among the 4"):
        op.thin_experts_backward(codes, gates, gates, chosen + 1, squeezed, tokens, *weights)
