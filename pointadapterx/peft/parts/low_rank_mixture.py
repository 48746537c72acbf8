"""The mixture of E³VA-X: experts whose first and last layers have low rank, so sub-tokens need no sorting."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pointadapterx.models.inspected import acts_alone, is_plain_call
from pointadapterx.models.recomputing import recomputed
from pointadapterx.peft.e3va import DoublyLowRank
from pointadapterx.peft.parts.mixture import MixtureOutput, SharedMixture, at_least_float32_on_cpu, float32_on_cpu


class Bank(NamedTuple):
    """The layers of all experts: C / h wide, inner rank k, rank r.

    Attributes:
        down_in: (E, k, C / h).
        down_out: (E, k, r), transposed.
        bias: (E, r), of ``down_out``.
        up_in: (E, k, r).
    """

    down_in: Tensor
    down_out: Tensor
    bias: Tensor
    up_in: Tensor


class LowRankMixture(SharedMixture):
    """A :class:`~pointadapterx.peft.parts.mixture.SharedMixture` of :class:`~pointadapterx.peft.e3va.DoublyLowRank`
    experts.

    Computes the same in two parts. :meth:`encode` ends before the experts' last layer; :meth:`decode` is that layer of
    all experts, one product with a matrix of E (k + 1) rows. It is linear: a sum over many uses of the mixture is
    decoded once. On a CPU a compiled kernel encodes, where experts have no dropout, a sub-token has one expert, and
    tokens need no gradient. It runs the chosen expert alone, and has no second derivatives. Everywhere else all experts
    run on every sub-token, with zeros for what was not sent to them, and compute again in the backward pass.

    Codes are narrower than tokens where E (k + 1) < C / h, as usual; with many experts they are wider.

    Args:
        dim: token width C, divisible by ``num_heads``.
        rank: r.
        inner_rank: k.
        dropout: dropout rate inside the experts.
        num_experts: E.
        num_heads: h, sub-tokens per token.
        top_k: experts a sub-token is sent to.
        soft_balance: see :class:`~pointadapterx.peft.parts.mixture.SharedMixture`.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        inner_rank: int,
        dropout: float = 0.0,
        num_experts: int = 4,
        num_heads: int = 3,
        top_k: int = 1,
        *,
        soft_balance: bool = False,
    ) -> None:
        super().__init__(
            lambda width: DoublyLowRank(width, width, rank, inner_rank, dropout),
            dim,
            rank,
            num_experts,
            num_heads,
            top_k,
            soft_balance=soft_balance,
        )
        self.dropout = dropout

    def forward(self, tokens: Tensor) -> MixtureOutput:
        """(B, L, C) -> :class:`~pointadapterx.peft.parts.mixture.MixtureOutput`."""
        output = self.encode(tokens)
        return output._replace(tokens=self.decode(output.tokens))

    def encode(self, tokens: Tensor) -> MixtureOutput:
        """Computes everything except the experts' last layer.

        Args:
            tokens: (B, L, C).

        Returns:
            Output with codes in place of tokens, (B, L, h · E · (k + 1)): of each sub-token, in the place of an expert
            that it is sent to, what this expert's last layer reads, and 1; both times the gate. Else zeros.
        """
        if self._has_kernel(tokens):
            codes, gates, chosen, _ = _LowRankExperts.apply(tokens.flatten(1), self.router.directions(), *self.bank())
        else:
            codes, gates, chosen = recomputed(self._encode, tokens, draws=self.training and self.dropout > 0)
        return self.output(codes.view(*tokens.shape[:-1], -1), gates, chosen)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, L, h · E · (k + 1)) -> (B, L, C)."""
        weight = torch.stack([expert.up_out.weight.T for expert in self.doubly_low_rank()])
        bias = torch.stack([expert.up_out.bias for expert in self.doubly_low_rank()])
        matrix = torch.cat([weight, bias.unsqueeze(1)], dim=1).flatten(0, 1)  # (E (k + 1), C / h)
        with float32_on_cpu(codes):
            return (codes.unflatten(-1, (-1, len(matrix))) @ matrix).flatten(-2)

    def bank(self) -> Bank:
        """The layers of all experts except the last."""
        experts = self.doubly_low_rank()
        return Bank(
            torch.stack([expert.down_in.weight for expert in experts]),
            torch.stack([expert.down_out.weight.T for expert in experts]),
            torch.stack([expert.down_out.bias for expert in experts]),
            torch.stack([expert.up_in.weight for expert in experts]),
        )

    def doubly_low_rank(self) -> list[DoublyLowRank]:
        """The experts, with their concrete type."""
        return [expert for expert in self.experts if isinstance(expert, DoublyLowRank)]

    def _has_kernel(self, tokens: Tensor) -> bool:
        return (
            self.compiled
            and is_plain_call(tokens)
            and tokens.dtype in (torch.float32, torch.bfloat16)
            and self.router.embeddings.dtype == torch.float32
            and not tokens.requires_grad
            and self.top_k == 1
            and not (self.training and self.dropout > 0)
            and hasattr(torch.ops.pointadapterx, "thin_experts")
            and acts_alone(self.router, self.router.project, *self.experts)
        )

    def _encode(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every expert's outer layers on every sub-token, and zeros for what was not sent to it."""
        sub_tokens = tokens.reshape(-1, self.width)
        gates = self.router(sub_tokens)
        weights, chosen = self.choose(gates)  # (T, top_k)
        bank, num_experts = self.bank(), len(self.experts)
        sub_tokens = at_least_float32_on_cpu(sub_tokens)
        with float32_on_cpu(sub_tokens):
            inner = F.linear(sub_tokens, bank.down_in.flatten(0, 1)).unflatten(1, (1, num_experts, -1))  # (T, 1, E, k)
            sent = F.one_hot(chosen, num_experts).to(inner.dtype).unsqueeze(-1)  # (T, top_k, E, 1)
            down_out = torch.cat([bank.down_out, bank.bias.unsqueeze(1)], dim=1).flatten(0, 1)  # (E (k + 1), r)
            hidden = F.gelu(torch.cat([inner * sent, sent], dim=-1).flatten(-2) @ down_out)  # (T, top_k, r)
            hidden = F.dropout(hidden, self.dropout, self.training)
            code = F.linear(hidden, bank.up_in.flatten(0, 1)).unflatten(-1, (num_experts, -1))  # (T, top_k, E, k)
            sent = sent * weights.unsqueeze(-1).unsqueeze(-1)
            return torch.cat([code * sent, sent], dim=-1).sum(dim=1).flatten(1), gates, chosen


class _LowRankExperts(torch.autograd.Function):
    """The compiled :meth:`LowRankMixture._encode`, each sub-token by its expert alone; tokens get no gradient.

    (B, L · C) and the bank -> codes (T, E, k + 1), gates (T, E), chosen (T,), and what ``down_in`` makes (T, k).
    """

    @staticmethod
    def forward(tokens: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = torch.ops.pointadapterx.thin_experts(tokens, *weights)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Saves the inputs and the small intermediate tensors."""
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*output[1:], *inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, codes: Tensor, gates: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of codes and gates -> those of the weights."""
        return None, *torch.ops.pointadapterx.thin_experts_backward(codes, gates, *ctx.saved_tensors)
