"""The classification head: pooled tokens through a small MLP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pointadapterx.models.tokens import POOLS, TokenSequence


class ClassificationHead(nn.Module):
    """Concatenated pools -> (Linear, BatchNorm, ReLU, Dropout) per hidden width -> Linear.

    Args:
        dim: token width C.
        num_classes: number of classes.
        pools: names from :data:`~pointadapterx.models.tokens.POOLS`, concatenated in this order.
        hidden: hidden widths; Point-MAE and DAPT use (256, 256), ``()`` is a linear classifier.
        dropout: dropout rate after each hidden layer.

    Attributes:
        width: of what :meth:`pool` returns.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        pools: Sequence[str] = ("cls", "patch_max"),
        hidden: Sequence[int] = (256, 256),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.pools = tuple(pools)
        layers: list[nn.Module] = []
        self.width = width = dim * len(self.pools)
        for inner in hidden:
            layers += [nn.Linear(width, inner), nn.BatchNorm1d(inner), nn.ReLU(), nn.Dropout(dropout)]
            width = inner
        self.mlp = nn.Sequential(*layers, nn.Linear(width, num_classes))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        return last.out_features

    @property
    def hidden_width(self) -> int:
        """Width H of what the last layer reads."""
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        return last.in_features

    def prompt_pool_parameters(self) -> int:
        """Weights of the first layer that read pooled prompts, which a plain backbone does not have."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        width = first.in_features // len(self.pools)
        return first.out_features * width * sum(name.startswith("prompt_") for name in self.pools)

    def pool(self, sequence: TokenSequence) -> Tensor:
        """Normalised tokens -> the concatenated pools (B, pools · C), which ``mlp`` reads."""
        return torch.cat([POOLS[name](sequence) for name in self.pools], dim=-1)

    def classify(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pools (B, pools · C) -> what the last layer reads (B, H), and logits (B, num_classes)."""
        hidden = self.mlp[:-1](pooled)
        return hidden, self.mlp[-1](hidden)

    def forward(self, sequence: TokenSequence) -> Tensor:
        """Normalised tokens -> logits (B, num_classes)."""
        return self.mlp(self.pool(sequence))
