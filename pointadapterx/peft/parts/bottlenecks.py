"""Adapters: small residual networks that a method places parallel to or after the FFN."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.peft.parts.expert_batching import ExpertGroups, Grouped, grouped_linear, stacked
from pointadapterx.registry import Registry


class FoldedExperts(NamedTuple):
    """The weights of E bottlenecks of one kind, as products read them.

    Attributes:
        down: (E, r, C), with one row more where a sub-token has a scale: (E, r + 1, C).
        bias: (E, r) or (E, r + 1), of ``down``.
        up: (E, C, r).
        up_bias: (E, C).
        eps: of a norm without γ and β in front of ``down``; None without a norm.
        gelu: GELU between the layers, or ReLU.
    """

    down: Tensor
    bias: Tensor
    up: Tensor
    up_bias: Tensor
    eps: float | None
    gelu: bool


class Bottleneck(nn.Module):
    """up(dropout(act(down(x)))), which starts as the zero function since ``up`` does.

    Args:
        dim: width C of its input and output.
        rank: bottleneck width r.
        activation: between the two layers.
        dropout: dropout rate behind the activation.
    """

    def __init__(self, dim: int, rank: int, activation: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(rank, dim)
        start_as_zero(self.down, self.up)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.up(self.dropout(self.activation(self.down(tokens))))

    @staticmethod
    def folded(experts: Sequence[Bottleneck]) -> FoldedExperts:
        """The weights of many of the same kind."""
        down, up = _stacked([expert.down for expert in experts]), _stacked([expert.up for expert in experts])
        return FoldedExperts(*down, *up, None, isinstance(experts[0].activation, nn.GELU))

    @staticmethod
    def grouped(experts: Sequence[Bottleneck]) -> Grouped:
        """Many of the same kind, each on its group: :class:`~pointadapterx.peft.parts.expert_batching.Groupable`."""
        first = experts[0]
        down, up = _stacked([expert.down for expert in experts]), _stacked([expert.up for expert in experts])

        def run(tokens: Tensor, groups: ExpertGroups) -> Tensor:
            hidden = first.dropout(first.activation(grouped_linear(tokens, *down, groups)))
            return grouped_linear(hidden, *up, groups)

        return run


def _stacked(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    return stacked(layer.weight for layer in layers), stacked(layer.bias for layer in layers)


def start_as_zero(down: nn.Linear, up: nn.Linear) -> None:
    """The usual initialisation of a bottleneck: ``down`` random with zero bias, ``up`` zero, so its output is zero."""
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    nn.init.zeros_(down.bias)
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)


def without_biases(adapter: nn.Module) -> nn.Module:
    """Removes the biases of an adapter's linear layers, and returns the adapter."""
    for layer in adapter.modules():
        if isinstance(layer, nn.Linear):
            layer.register_parameter("bias", None)
    return adapter


class DynamicAdapter(nn.Module):
    """DAPT's dynamic adapter: LayerNorm, bottleneck, times a scale that each token computes for itself.

    a(x) = ReLU(w · LN(x) + b) · up(dropout(GELU(down(LN(x))))) (DAPT, arXiv 2403.01439, §3.2).
    The up-projection starts at zero, so the adapter starts as the zero function.

    Args:
        dim: width C of its input and output.
        rank: bottleneck width r.
        dropout: dropout rate inside the bottleneck.
        scale_bias: initial b; the published code starts it at 0. None draws it as torch does, within 1 / √C of 0. So
            near 0, the ReLU can be 0 for every token, and then no parameter of the adapter gets a gradient.
    """

    def __init__(self, dim: int, rank: int, dropout: float = 0.0, scale_bias: float | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down = nn.Linear(dim, rank)
        self.up = nn.Linear(rank, dim)
        self.token_scale = nn.Linear(dim, 1)
        self.dropout = nn.Dropout(dropout)
        start_as_zero(self.down, self.up)
        if scale_bias is not None:
            nn.init.constant_(self.token_scale.bias, scale_bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        normed = self.norm(tokens)
        scale = F.relu(self.token_scale(normed))  # (..., 1)
        return self.up(self.dropout(F.gelu(self.down(normed)))) * scale

    @staticmethod
    def folded(experts: Sequence[DynamicAdapter]) -> FoldedExperts:
        """The weights of many of them; the norms' γ and β go into the layers that read them.

        W (γ ⊙ x + β) + b = (W ⊙ γ) x + (W β + b), with the token scale as one more row of W.
        """
        read = [_stacked([expert.down for expert in experts]), _stacked([expert.token_scale for expert in experts])]
        weight, bias = (torch.cat(parts, dim=1) for parts in zip(*read, strict=True))  # (E, r + 1, C) and (E, r + 1)
        gamma = stacked(expert.norm.weight for expert in experts).unsqueeze(1)  # (E, 1, C)
        beta = stacked(expert.norm.bias for expert in experts).unsqueeze(2)
        up = _stacked([expert.up for expert in experts])
        return FoldedExperts(weight * gamma, bias + (weight @ beta).squeeze(2), *up, experts[0].norm.eps, True)

    @staticmethod
    def grouped(experts: Sequence[DynamicAdapter]) -> Grouped:
        """Many of them, each on its group."""
        first, rank = experts[0], len(experts[0].down.weight)
        folded = DynamicAdapter.folded(experts)

        def run(tokens: Tensor, groups: ExpertGroups) -> Tensor:
            normed = F.layer_norm(tokens, first.norm.normalized_shape, eps=first.norm.eps)
            hidden, scale = grouped_linear(normed, folded.down, folded.bias, groups).split([rank, 1], dim=1)
            hidden = first.dropout(F.gelu(hidden))
            return grouped_linear(hidden, folded.up, folded.up_bias, groups) * F.relu(scale)

        return run


class AdapterKind(NamedTuple):
    """A kind of adapter, as a method of its own in every block, or as the expert of a shared mixture.

    Attributes:
        make: builds one from width C, rank r and dropout rate; (..., C) -> (..., C), zero at the start.
        serial: it is behind the FFN and reads its output; otherwise it is beside the FFN and reads its input.
    """

    make: Callable[[int, int, float], nn.Module]
    serial: bool


ADAPTERS: Registry[AdapterKind] = Registry("adapter")
"""Kinds of adapters by the name used in ``method.expert``; a new one is one line here."""
ADAPTERS.register("adapter")(AdapterKind(lambda c, r, dropout: Bottleneck(c, r, nn.GELU(), dropout), serial=True))
ADAPTERS.register("adaptformer")(AdapterKind(lambda c, r, dropout: Bottleneck(c, r, nn.ReLU(), dropout), serial=False))
ADAPTERS.register("dapt")(AdapterKind(DynamicAdapter, serial=False))
