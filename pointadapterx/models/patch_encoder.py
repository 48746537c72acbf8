"""The mini-PointNet that turns each group of points into one token (Point-MAE §3.1, Point-BERT §3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchEncoder(nn.Module):
    """Shared MLP, max over the group, shared MLP on point and group features, max over the group.

    3 -> 128 -> BN -> ReLU -> 256, the group's maximum concatenated to each point (512),
    512 -> 512 -> BN -> ReLU -> C. The published 1x1 convolutions are linear layers here, which is the
    same operation on the layout (points, channels).

    Args:
        dim: output width C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 256))
        self.second = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, dim))

    def forward(self, neighborhood: Tensor) -> Tensor:
        """(B, G, k, 3), relative to the centres -> patch tokens (B, G, C)."""
        batch, groups, size, _ = neighborhood.shape
        local = self.first(neighborhood.reshape(-1, 3)).view(batch * groups, size, -1)
        shared = local.amax(dim=1, keepdim=True).expand(-1, size, -1)
        joint = torch.cat([shared, local], dim=-1)  # (B G, k, 512), the group's feature first
        encoded = self.second(joint.flatten(0, 1)).view(batch * groups, size, -1)
        return encoded.amax(dim=1).view(batch, groups, -1)
