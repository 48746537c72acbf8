"""Farthest point sampling (FPS) of batches of point clouds."""

from __future__ import annotations

import torch
from torch import Tensor

from pointadapterx.ops import checks


def farthest_point_sample(
    points: Tensor, num_samples: int, start: int = 0, skip_origin: bool = False, *, lengths: Tensor | None = None
) -> Tensor:
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
        lengths: (B,), how many points of each cloud are real, 1 to N; what the others hold does not matter. A cloud of
            fewer points than ``num_samples`` is taken as a whole, and the remaining places repeat index 0.

    Returns:
        (B, num_samples) int64 indices into N. The first m of them are a sample of m points, so that clouds may take
        different numbers of them.

    Raises:
        TypeError: if ``points`` is not floating-point, or ``lengths`` is not int64 or int32.
        ValueError: if a shape is wrong, a coordinate is not finite, ``num_samples`` exceeds N, ``start`` is not a point
            of each cloud, or a length is out of range.
    """
    if lengths is not None:
        points, lengths = checks.ragged_cloud(points, lengths, ("points", "lengths"))
        checks.count(num_samples, "num_samples", points.shape[1])
        checks.start(start, points.shape[1], lengths)
        return torch.ops.pointadapterx.ragged_farthest_point_sample(points, lengths, num_samples, start, skip_origin)
    points = checks.cloud(points, "points")
    checks.count(num_samples, "num_samples", points.shape[1])
    checks.start(start, points.shape[1])
    return torch.ops.pointadapterx.farthest_point_sample(points, num_samples, start, skip_origin)
