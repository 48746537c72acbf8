"""Farthest point sampling (FPS) of batches of point clouds."""

from __future__ import annotations

import torch
from torch import Tensor

from pointadapterx.ops import checks


def farthest_point_sample(points: Tensor, num_samples: int, start: int = 0, skip_origin: bool = False) -> Tensor:
    """Chooses points one after the other, each the farthest from those chosen before (PointNet++ §3.2).

    Exact: no random start, no approximation, ties go to the lowest index, and the result does not depend
    on the device. An index is never chosen twice: once every distinct position has been taken, the copies
    follow, lowest index first, so that ``num_samples == N`` is a permutation.

    Args:
        points: (B, N, 3), floating-point, any unit and frame. Half precision is upcast to float32.
        num_samples: how many points to choose, at most N.
        start: index of the first sample, the same in every cloud.
        skip_origin: do as ``pointnet2_ops`` does, with which the published checkpoints were trained: a
            point whose squared norm is <= 1e-3 is never a candidate (``start`` is taken all the same).
            Indices may then repeat: at the lowest candidate when all distances are 0, at 0 when no point
            is a candidate.

    Returns:
        (B, num_samples) int64 indices into N.

    Raises:
        TypeError: if ``points`` is not floating-point.
        ValueError: if a shape is wrong, a coordinate is not finite, ``num_samples`` exceeds N, or
            ``start`` is not in [0, N).
    """
    points = checks.cloud(points, "points")
    checks.count(num_samples, "num_samples", points.shape[1])
    checks.start(start, points.shape[1])
    return torch.ops.pointadapterx.farthest_point_sample(points, num_samples, start, skip_origin)
