"""Values of points by index: gathered, grouped, interpolated."""

from __future__ import annotations

import torch
from torch import Tensor

from pointadapterx.ops import checks


def gather_points(points: Tensor, indices: Tensor) -> Tensor:
    """Takes points, or any per-point values, by index.

    Args:
        points: (B, N, C), any dtype; differentiable if floating-point.
        indices: (B, M), int64 or int32, each in [0, N).

    Returns:
        (B, M, C), in the dtype of ``points``.

    Raises:
        TypeError: if ``indices`` is not int64 or int32.
        ValueError: if shapes or devices do not fit.
        IndexError: if an index is out of range.
    """
    points = checks.features(points, "points", indices, "indices")
    indices = checks.indices(indices, "indices", 2, points.shape[1])
    return torch.ops.pointadapterx.gather_points(points, indices)


def group_points(points: Tensor, indices: Tensor) -> Tensor:
    """Takes groups of points by index, as :func:`knn` and :func:`ball_query` return them.

    Args:
        points: (B, N, C), any dtype; differentiable if floating-point.
        indices: (B, M, k), int64 or int32, each in [0, N).

    Returns:
        (B, M, k, C), in the dtype of ``points``; the centre is not subtracted.

    Raises:
        TypeError, ValueError, IndexError: as :func:`gather_points`.
    """
    points = checks.features(points, "points", indices, "indices")
    indices = checks.indices(indices, "indices", 3, points.shape[1])
    gathered = torch.ops.pointadapterx.gather_points(points, indices.flatten(1))
    return gathered.unflatten(1, indices.shape[1:])


def three_interpolate(points: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the values of three points per query (PointNet++ §3.4).

    Args:
        points: (B, N, C) values, floating-point; half precision is summed in float32.
        indices: (B, M, 3) from :func:`three_nn`, int64 or int32.
        weights: (B, M, 3), floating-point; usually inverse distances that sum to 1. Used as they are.

    Returns:
        (B, M, C), in the dtype of ``points``; differentiable with respect to ``points`` and ``weights``.

    Raises:
        TypeError: if ``points`` or ``weights`` is not floating-point.
        ValueError: if shapes or devices do not fit.
        IndexError: if an index is out of range.
    """
    points = checks.features(points, "points", indices, "indices")
    checks.floating(points, "points")
    indices = checks.indices(indices, "indices", 3, points.shape[1])
    if indices.shape[-1] != 3:
        raise ValueError(f"indices has shape {tuple(indices.shape)}, expected (B, M, 3)")
    checks.same_shape(weights, "weights", indices, "indices")
    checks.floating(weights, "weights")
    dtype = torch.promote_types(torch.promote_types(points.dtype, weights.dtype), torch.float32)
    summed = torch.ops.pointadapterx.interpolate(points.to(dtype), indices, weights.to(dtype))
    return summed.to(points.dtype)
