"""Neighbour searches: k nearest, three nearest, and within a ball."""

from __future__ import annotations

import torch
from torch import Tensor

from pointadapterx.ops import checks


def knn(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest points of each query, nearest first.

    Exact, in any number of dimensions; ties go to the lowest index. Distances are differentiable with
    respect to both inputs, twice if needed; where a distance is 0 its gradient is 0, as in
    :func:`torch.cdist`.

    Args:
        query: (B, M, D), floating-point. Half precision is upcast to float32.
        points: (B, N, D), in the frame of ``query``.
        k: number of neighbours, at most N.

    Returns:
        Euclidean distances (B, M, k), ascending, and int64 indices (B, M, k) into N.

    Raises:
        TypeError: if an input is not floating-point.
        ValueError: if shapes or devices do not fit, a coordinate is not finite, or ``k`` exceeds N.
    """
    query, points = checks.pair(query, points, ("query", "points"), dims=None)
    checks.count(k, "k", points.shape[1])
    squared, indices = torch.ops.pointadapterx.knn(query, points, k)
    return root(squared), indices


def three_nn(query: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The three nearest points of each query: :func:`knn` with k=3, for :func:`three_interpolate`.

    Args:
        query: (B, M, 3).
        points: (B, N, 3), N >= 3.

    Returns:
        Euclidean distances (B, M, 3), ascending, and int64 indices (B, M, 3).

    Raises:
        TypeError, ValueError: as :func:`knn`.
    """
    return knn(query, points, 3)


def ball_query(query: Tensor, points: Tensor, radius: float, num_samples: int) -> tuple[Tensor, Tensor]:
    """Points closer to each query than a radius: the first ``num_samples`` of them, in index order.

    The rule of PointNet++ (§3.3): if a ball has more points than places, the first ones are taken, not the nearest, and
    the free places of a ball with fewer repeat its first index. ``counts`` says which places are real.

    Args:
        query: (B, M, 3), floating-point. Half precision is upcast to float32.
        points: (B, N, 3), in the frame of ``query``.
        radius: in the unit of the points; a point at exactly this distance is outside.
        num_samples: places per ball; may exceed N.

    Returns:
        int64 indices (B, M, num_samples) into N, 0 in an empty ball, and int64 counts (B, M), at most
        ``num_samples``, 0 for an empty ball.

    Raises:
        TypeError: if an input is not floating-point.
        ValueError: if shapes or devices do not fit, a coordinate is not finite, or ``radius`` or
            ``num_samples`` is not positive.
    """
    query, points = checks.pair(query, points, ("query", "points"), dims=3)
    checks.count(num_samples, "num_samples")
    return torch.ops.pointadapterx.ball_query(query, points, checks.radius(radius), num_samples)


def root(squared: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 instead of infinite."""
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)
