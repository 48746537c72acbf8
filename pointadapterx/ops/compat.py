"""Stand-ins for what other code imports from ``pointnet2_ops.pointnet2_utils`` and ``knn_cuda``.

Same names, arguments, layouts (channels first) and index types, on any device and without building either
package. ``import pointadapterx.ops.compat as pointnet2_utils`` is all that such code has to change. Unlike
the originals they check their inputs, and ``furthest_point_sample`` is exact unless asked otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pointadapterx import ops

__all__ = [
    "KNN",
    "GroupAll",
    "QueryAndGroup",
    "ball_query",
    "furthest_point_sample",
    "gather_operation",
    "grouping_operation",
    "three_interpolate",
    "three_nn",
]


def furthest_point_sample(xyz: Tensor, npoint: int, *, skip_origin: bool = False) -> Tensor:
    """Farthest point sampling from index 0: (B, N, 3) -> (B, npoint) int32.

    ``pointnet2_ops`` never picks a point whose squared norm is <= 1e-3; ``skip_origin=True`` does the same.

    Raises:
        TypeError, ValueError: as :func:`pointadapterx.ops.farthest_point_sample`.
    """
    return ops.farthest_point_sample(xyz, npoint, skip_origin=skip_origin).int()


def gather_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Takes points by index: features (B, C, N), idx (B, npoint) -> (B, C, npoint), differentiable."""
    return ops.gather_points(features.transpose(1, 2), idx).transpose(1, 2).contiguous()


def grouping_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Takes groups by index: features (B, C, N), idx (B, npoint, nsample) -> (B, C, npoint, nsample)."""
    return ops.group_points(features.transpose(1, 2), idx).permute(0, 3, 1, 2).contiguous()


def ball_query(radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor) -> Tensor:
    """The first nsample points xyz (B, N, 3) within a radius of new_xyz (B, npoint, 3): (B, npoint, nsample) int32.

    Free places repeat the first index of the ball; an empty ball holds zeros.

    Raises:
        TypeError, ValueError: as :func:`pointadapterx.ops.ball_query`.
    """
    indices, _ = ops.ball_query(new_xyz, xyz, radius, nsample)
    return indices.int()


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The three nearest known (B, m, 3) of each unknown (B, n, 3): distances and int32 indices, both (B, n, 3).

    Raises:
        TypeError, ValueError: as :func:`pointadapterx.ops.three_nn`; ``m`` must be at least 3.
    """
    distances, indices = ops.three_nn(unknown, known)
    return distances, indices.int()


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Weighted sum of three points: features (B, C, m), idx and weight (B, n, 3) -> (B, C, n)."""
    return ops.three_interpolate(features.transpose(1, 2), idx, weight).transpose(1, 2).contiguous()


class QueryAndGroup(nn.Module):
    """Groups the points within a radius of each centre, relative to it.

    Args:
        radius: of the ball, in the unit of the points.
        nsample: points per group.
        use_xyz: whether the relative coordinates come first in the result when there are features.
    """

    def __init__(self, radius: float, nsample: int, use_xyz: bool = True) -> None:
        super().__init__()
        self.radius = radius
        self.nsample = nsample
        self.use_xyz = use_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor, features: Tensor | None = None) -> Tensor:
        """Points (B, N, 3), centres (B, npoint, 3), features (B, C, N) -> (B, [3 +] C, npoint, nsample).

        Raises:
            ValueError: without features and with ``use_xyz=False``, which leaves nothing to group.
        """
        _require_content(features, self.use_xyz)
        idx = ball_query(self.radius, self.nsample, xyz, new_xyz)
        relative = grouping_operation(xyz.transpose(1, 2), idx) - new_xyz.transpose(1, 2).unsqueeze(-1)
        if features is None:
            return relative
        grouped = grouping_operation(features, idx)
        return torch.cat([relative, grouped], dim=1) if self.use_xyz else grouped


class GroupAll(nn.Module):
    """Makes one group of the whole cloud, in its own frame.

    Args:
        use_xyz: whether the coordinates come first in the result when there are features.
    """

    def __init__(self, use_xyz: bool = True) -> None:
        super().__init__()
        self.use_xyz = use_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Points (B, N, 3), features (B, C, N) -> (B, [3 +] C, 1, N); ``new_xyz`` is ignored.

        Raises:
            ValueError: without features and with ``use_xyz=False``, which leaves nothing to group.
        """
        _require_content(features, self.use_xyz)
        grouped_xyz = xyz.transpose(1, 2).unsqueeze(2)
        if features is None:
            return grouped_xyz
        grouped = features.unsqueeze(2)
        return torch.cat([grouped_xyz, grouped], dim=1) if self.use_xyz else grouped


class KNN(nn.Module):
    """The k nearest reference points of each query; like ``knn_cuda.KNN``, without gradients.

    Args:
        k: number of neighbours.
        transpose_mode: the layout, of inputs and results alike: (B, N, D) and (B, M, k) if true,
            (B, D, N) and (B, k, M) otherwise.
    """

    def __init__(self, k: int, transpose_mode: bool = False) -> None:
        super().__init__()
        self.k = k
        self._t = transpose_mode

    @torch.no_grad()
    def forward(self, ref: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Euclidean distances, ascending along k, and int64 indices into ``ref``.

        Raises:
            TypeError, ValueError: as :func:`pointadapterx.ops.knn`.
        """
        if not self._t:
            ref, query = ref.transpose(1, 2), query.transpose(1, 2)
        distances, indices = ops.knn(query, ref, self.k)
        if not self._t:
            return distances.transpose(1, 2).contiguous(), indices.transpose(1, 2).contiguous()
        return distances, indices


def _require_content(features: Tensor | None, use_xyz: bool) -> None:
    if features is None and not use_xyz:
        raise ValueError("use_xyz=False leaves nothing to group without features; pass features or use_xyz=True")
