"""Neighbour searches: k nearest, three nearest, and within a ball."""

from __future__ import annotations

import torch
from torch import Tensor

from pointadapterx.ops import checks


def knn(
    query: Tensor,
    points: Tensor,
    k: int,
    *,
    query_lengths: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k nearest points of each query, nearest first.

    Exact, in any number of dimensions; ties go to the lowest index. Distances are differentiable with
    respect to both inputs, twice if needed; where a distance is 0 its gradient is 0, as in
    :func:`torch.cdist`.

    Args:
        query: (B, M, D), floating-point. Half precision is upcast to float32.
        points: (B, N, D), in the frame of ``query``.
        k: number of neighbours, at most N.
        query_lengths: (B,), how many queries of each cloud are real, 1 to M; all of them by default.
        lengths: (B,), how many points of each cloud are real, 1 to N; what the others hold does not matter.

    Returns:
        Euclidean distances (B, M, k), ascending, and int64 indices (B, M, k) into N. Where a cloud has fewer than k
        points, the remaining places have an infinite distance and repeat the nearest point, so that weights of inverse
        distances are 0 there. Both are 0 for queries that are not real.

    Raises:
        TypeError: if an input is not floating-point, or lengths are not int64 or int32.
        ValueError: if shapes or devices do not fit, a coordinate is not finite, ``k`` exceeds N, or a length is out of
            range.
    """
    if query_lengths is not None or lengths is not None:
        query, points, query_lengths, lengths = checks.ragged_pair(query, points, query_lengths, lengths, dims=None)
        checks.count(k, "k", points.shape[1])
        squared, indices = torch.ops.pointadapterx.ragged_knn(query, points, query_lengths, lengths, k)
        return root(squared), indices
    query, points = checks.pair(query, points, ("query", "points"), dims=None)
    checks.count(k, "k", points.shape[1])
    squared, indices = torch.ops.pointadapterx.knn(query, points, k)
    return root(squared), indices


def three_nn(
    query: Tensor, points: Tensor, *, query_lengths: Tensor | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The three nearest points of each query: :func:`knn` with k=3, for :func:`three_interpolate`.

    Args:
        query: (B, M, 3).
        points: (B, N, 3), N >= 3.
        query_lengths: (B,), how many queries of each cloud are real.
        lengths: (B,), how many points of each cloud are real; fewer than 3 will do.

    Returns:
        Euclidean distances (B, M, 3), ascending, and int64 indices (B, M, 3).

    Raises:
        TypeError, ValueError: as :func:`knn`.
    """
    return knn(query, points, 3, query_lengths=query_lengths, lengths=lengths)


def ball_query(
    query: Tensor,
    points: Tensor,
    radius: float,
    num_samples: int,
    *,
    query_lengths: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Points closer to each query than a radius: the first ``num_samples`` of them, in index order.

    The rule of PointNet++ (§3.3): if a ball has more points than places, the first ones are taken, not the nearest, and
    the free places of a ball with fewer repeat its first index. ``counts`` says which places are real.

    Args:
        query: (B, M, 3), floating-point. Half precision is upcast to float32.
        points: (B, N, 3), in the frame of ``query``.
        radius: in the unit of the points; a point at exactly this distance is outside.
        num_samples: places per ball; may exceed N.
        query_lengths: (B,), how many queries of each cloud are real, 1 to M; all of them by default.
        lengths: (B,), how many points of each cloud are real, 1 to N; what the others hold does not matter.

    Returns:
        int64 indices (B, M, num_samples) into N, 0 in an empty ball, and int64 counts (B, M), at most
        ``num_samples``, 0 for an empty ball. Both are 0 for queries that are not real.

    Raises:
        TypeError: if an input is not floating-point, or lengths are not int64 or int32.
        ValueError: if shapes or devices do not fit, a coordinate is not finite, ``radius`` or ``num_samples`` is not
            positive, or a length is out of range.
    """
    if query_lengths is not None or lengths is not None:
        query, points, query_lengths, lengths = checks.ragged_pair(query, points, query_lengths, lengths, dims=3)
        checks.count(num_samples, "num_samples")
        return torch.ops.pointadapterx.ragged_ball_query(
            query, points, query_lengths, lengths, checks.radius(radius), num_samples
        )
    query, points = checks.pair(query, points, ("query", "points"), dims=3)
    checks.count(num_samples, "num_samples")
    return torch.ops.pointadapterx.ball_query(query, points, checks.radius(radius), num_samples)


def root(squared: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 instead of infinite."""
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1).sqrt(), 0)
