"""Divides a cloud into local patches: FPS centres and their nearest points (Point-MAE §3.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pointadapterx.ops import farthest_point_sample, knn


class Groups(NamedTuple):
    """Patches of a batch of clouds.

    Attributes:
        neighborhood: (B, G, k, 3), points of each group relative to its centre.
        centers: (B, G, 3), in the frame of the cloud.
    """

    neighborhood: Tensor
    centers: Tensor


class Grouping(nn.Module):
    """FPS picks G centres; the k nearest points of each form its group, the centre subtracted.

    Args:
        num_groups: G.
        group_size: k.
        skip_origin: FPS of pointnet2_ops, which never picks points near the origin (the published
            checkpoints were trained so); the default is exact FPS.
    """

    def __init__(self, num_groups: int, group_size: int, skip_origin: bool = False) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.group_size = group_size
        self.skip_origin = skip_origin

    def forward(self, points: Tensor) -> Groups:
        """(B, N, 3) float -> :class:`Groups`.

        Raises:
            ValueError: if a cloud has fewer points than ``num_groups`` or ``group_size``.
        """
        is_clouds = points.ndim == 3 and points.shape[-1] == 3  # the ops explain what else it may be
        count = points.shape[1] if is_clouds else self.num_groups + self.group_size
        for name, needed in (("num_groups", self.num_groups), ("group_size", self.group_size)):
            if needed > count:
                raise ValueError(f"{name}={needed} exceeds the {count} input points; lower backbone.{name}")
        with torch.no_grad():
            chosen = farthest_point_sample(points, self.num_groups, skip_origin=self.skip_origin)
            centers = _take(points, chosen)  # (B, G, 3)
            _, nearest = knn(centers, points, self.group_size)  # (B, G, k)
            neighborhood = _take(points, nearest.flatten(1)).unflatten(1, nearest.shape[1:])
        return Groups(neighborhood - centers.unsqueeze(2), centers)

    def extra_repr(self) -> str:
        """Shows the sizes in ``print(model)``."""
        return f"num_groups={self.num_groups}, group_size={self.group_size}, skip_origin={self.skip_origin}"


def _take(points: Tensor, indices: Tensor) -> Tensor:
    """Points (B, N, 3) at indices (B, M): (B, M, 3)."""
    return points.gather(1, indices.unsqueeze(-1).expand(-1, -1, points.shape[-1]))
