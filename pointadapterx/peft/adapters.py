"""Adapters: small residual networks that a method places beside or behind the FFN."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


class DynamicAdapter(nn.Module):
    """DAPT's dynamic adapter: LayerNorm, bottleneck, times a scale that each token computes for itself.

    a(x) = ReLU(w · LN(x) + b) · up(dropout(GELU(down(LN(x))))) (DAPT, arXiv 2403.01439, §3.2).
    The up-projection starts at zero, so the adapter starts as the zero function.

    Args:
        dim: width C of its input and output.
        rank: bottleneck width r.
        dropout: dropout rate inside the bottleneck.
        scale_bias: initial b; None draws it as torch does, which is what the published code has. Drawn so near 0,
            the ReLU can be 0 for every token, and then no parameter of the adapter gets a gradient.
    """

    def __init__(self, dim: int, rank: int, dropout: float = 0.0, scale_bias: float | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down = nn.Linear(dim, rank)
        self.up = nn.Linear(rank, dim)
        self.token_scale = nn.Linear(dim, 1)
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        if scale_bias is not None:
            nn.init.constant_(self.token_scale.bias, scale_bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        normed = self.norm(tokens)
        scale = F.relu(self.token_scale(normed))  # (..., 1)
        return self.up(self.dropout(F.gelu(self.down(normed)))) * scale
