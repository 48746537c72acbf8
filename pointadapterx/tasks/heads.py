"""The classification head: pooled tokens through a small MLP."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.models.features import FeatureInfo, Features, Head
from pointadapterx.models.tokens import POOLS
from pointadapterx.schema import Rate, Section


class HeadConfig(Section):
    """``head:``: pools are concatenated in the given order.

    Null stands for :func:`default_pools` of the method, and for the number of classes of the data set.
    """

    pools: list[str] | None = Field(None, min_length=1, max_length=100)
    num_classes: int | None = Field(None, ge=2, le=2**20)
    hidden: list[int] = Field(default=[256, 256], max_length=100)
    dropout: Rate = 0.5


class ClassificationHead(Head):
    """Concatenated pools -> (Linear, BatchNorm, ReLU, Dropout) per hidden width -> Linear.

    Args:
        info: of the backbone whose features it reads.
        options: ``pools`` are names from :data:`~pointadapterx.models.tokens.POOLS`, concatenated in this order;
            ``hidden`` are hidden widths, (256, 256) in Point-MAE and DAPT, none for a linear classifier; ``dropout`` is
            the rate behind each hidden layer; ``num_classes`` is required.

    Attributes:
        width: of what :meth:`pool` returns.
    """

    def __init__(self, info: FeatureInfo, options: HeadConfig) -> None:
        super().__init__()
        assert options.num_classes is not None
        self.pools = tuple(options.pools or ("cls", "patch_max"))
        layers: list[nn.Module] = []
        self.width = width = info.width * len(self.pools)
        for inner in options.hidden:
            layers += [nn.Linear(width, inner), nn.BatchNorm1d(inner), nn.ReLU(), nn.Dropout(options.dropout)]
            width = inner
        self.mlp = nn.Sequential(*layers, nn.Linear(width, options.num_classes))

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

    def pool(self, features: Features) -> Tensor:
        """The concatenated pools (B, pools · C) of the normalised tokens, which ``mlp`` reads."""
        return torch.cat([POOLS[name](features.sequence) for name in self.pools], dim=-1)

    def classify(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pools (B, pools · C) -> what the last layer reads (B, H), and logits (B, num_classes)."""
        hidden = self.mlp[:-1](pooled)
        return hidden, self.mlp[-1](hidden)

    def forward(self, features: Features) -> Tensor:
        """Features -> logits (B, num_classes)."""
        return self.mlp(self.pool(features))
