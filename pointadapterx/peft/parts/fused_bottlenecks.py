"""A mixture of bottlenecks in one compiled pass on a CPU: the router, the chosen expert, and its gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pointadapterx.models.inspected import acts_alone, is_plain_call
from pointadapterx.peft.parts.bottlenecks import Bottleneck, DynamicAdapter, FoldedExperts

LANES = 16
"""The kernel takes sub-tokens of a width that this number divides."""

KNOWN = (Bottleneck, DynamicAdapter)


class Foldable(Protocol):
    """An expert whose class gives the weights of many experts."""

    @staticmethod
    def folded(experts: Sequence[Any]) -> FoldedExperts:
        """Those of E experts of this class."""
        ...


class FusedOutput(NamedTuple):
    """What the kernel makes of T sub-tokens.

    Attributes:
        tokens: (T, C / h) float32, each from its expert, times its gate.
        gates: (T, E) float32.
        chosen: (T,), the expert of each.
    """

    tokens: Tensor
    gates: Tensor
    chosen: Tensor


def can_be_fused(experts: Sequence[nn.Module], tokens: Tensor) -> bool:
    """Whether :func:`run_fused` takes the experts, for sub-tokens such as ``tokens`` (..., C / h).

    It does on a CPU, in float32 or bf16, with the compiled library, for experts that are exactly bottlenecks or dynamic
    adapters; not where something wants to see what happens inside: hooks on an expert, torch.compile, torch.func, or a
    model that is only counted.
    """
    return (
        is_plain_call(tokens)
        and tokens.dtype in (torch.float32, torch.bfloat16)
        and tokens.shape[-1] % LANES == 0
        and hasattr(torch.ops.pointadapterx, "bottlenecks")
        and type(experts[0]) in KNOWN
        and all(_is_plain(expert) for expert in experts)
        and len({_form(expert) for expert in experts}) == 1
    )


def _is_plain(expert: nn.Module) -> bool:
    """Of the layers that the kernel computes, and nothing else."""
    activation, dropout = getattr(expert, "activation", None), expert.dropout
    layers = [layer for layer in expert.children() if layer is not activation and layer is not dropout]
    return (
        (activation is None or type(activation) in (nn.ReLU, nn.GELU))
        and getattr(activation, "approximate", "none") == "none"
        and type(dropout) is nn.Dropout
        and dropout.p < 1
        and all(type(layer) in (nn.Linear, nn.LayerNorm) for layer in layers)
        and all(value is not None and value.dtype == torch.float32 for m in layers for value in m._parameters.values())
        and acts_alone(expert, *expert.children())
    )


def _form(expert: nn.Module) -> tuple[Any, ...]:
    """What must be the same for all experts."""
    layers = [(type(m), getattr(m, "eps", None), getattr(m, "p", None), m.training) for m in expert.children()]
    return type(expert), *layers, *(tuple(parameter.shape) for parameter in expert.parameters())


def run_fused(experts: Sequence[nn.Module], router: Tensor, tokens: Tensor, *, normalize: bool) -> FusedOutput:
    """Routes each sub-token to its best expert, and applies this. It has no second derivatives.

    Args:
        experts: E of one class, which :func:`can_be_fused` takes.
        router: (E, C / h), whose products with a sub-token are its scores.
        tokens: (T, C / h).
        normalize: whether the chosen gate counts as 1, and its gradient as that of its logarithm.
    """
    first = cast(Bottleneck | DynamicAdapter, experts[0])
    with torch.autocast("cpu", enabled=False):
        folded = cast(Foldable, type(first)).folded(experts)
        up = torch.cat([folded.up.mT, folded.up_bias.unsqueeze(1)], dim=1)
        tokens = tokens.float().contiguous()
        eps = -1.0 if folded.eps is None else folded.eps
        dropout = first.dropout.p if first.dropout.training else 0.0
        seed = int(torch.randint(2**63 - 1, (), device="cpu")) if dropout > 0 else 0
        out, gates, chosen, _ = _Bottlenecks.apply(
            tokens, router, folded.down, folded.bias, up, folded.gelu, normalize, eps, dropout, seed
        )
    return FusedOutput(out, gates, chosen)


class _Bottlenecks(torch.autograd.Function):
    """The compiled pass; of the experts' insides it keeps what their first layers make, (T, r) or (T, r + 1)."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = torch.ops.pointadapterx.bottlenecks(*inputs)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Saves the inputs, and what is small of the outputs."""
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*output[1:], *inputs[:5])
        ctx.settings = inputs[5:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, tokens: Tensor, gates: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of tokens and gates -> those of sub-tokens, router and experts."""
        wanted = ctx.needs_input_grad[0]
        of_tokens, *of_weights = torch.ops.pointadapterx.bottlenecks_backward(
            tokens.contiguous(), gates.contiguous(), *ctx.saved_tensors, *ctx.settings, wanted
        )
        return (of_tokens if wanted else None, *of_weights, *(None for _ in ctx.settings))
