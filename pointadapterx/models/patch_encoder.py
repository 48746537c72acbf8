"""The mini-PointNet that turns each group of points into one token (Point-MAE §3.1, Point-BERT §3.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEncoder(nn.Module):
    """Shared MLP, max over the group, shared MLP on point and group features, max over the group.

    3 -> w -> BN -> ReLU -> 2w, the group's maximum concatenated to each point (4w), 4w -> 4w -> BN -> ReLU -> C,
    with w = 128 as published. The published 1x1 convolutions are linear layers here, which is the same
    operation on the layout (points, channels).

    Args:
        dim: output width C.
        width: w.
    """

    def __init__(self, dim: int, width: int = 128) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2 * width))
        self.second = nn.Sequential(
            nn.Linear(4 * width, 4 * width), nn.BatchNorm1d(4 * width), nn.ReLU(), nn.Linear(4 * width, dim)
        )

    def forward(self, neighborhood: Tensor) -> Tensor:
        """(..., k, 3), relative to the centres -> patch tokens (..., C)."""
        leading, size = neighborhood.shape[:-2], neighborhood.shape[-2]
        local = self.first(neighborhood.reshape(-1, 3)).unflatten(0, (-1, size))  # (groups, k, 2w)
        shared = local.amax(dim=1, keepdim=True)
        # The joint layer on [shared, local]: the shared half is the same for all k points, so it is computed once.
        joint, rest = self.second[0], self.second[1:]
        assert isinstance(joint, nn.Linear)
        of_shared, of_local = joint.weight.split(shared.shape[-1], dim=1)
        features = F.linear(local, of_local) + F.linear(shared, of_shared, joint.bias)
        encoded = rest(features.flatten(0, 1)).unflatten(0, (-1, size))
        return encoded.amax(dim=1).unflatten(0, leading)
