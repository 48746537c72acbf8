"""Plain torch twins of the compiled point ops: their test oracle, and the fallback on any device.

Every function computes a squared distance as ``((dx*dx + dy*dy) + dz*dz)``, coordinates left to right and
in the input's precision, and breaks ties towards the lowest index; so do the compiled kernels, and the
results agree bit for bit. The expanded form |a|² - 2ab + |b|² is avoided: it is faster, and wrong far from
the origin. A distance that is not a number (a cloud with non-finite points) counts as infinite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Entries of one (B, rows, N) block of distances: 64 MiB in float32, whatever the size of the clouds.
_BLOCK = 2**24


def farthest_point_sample(points: Tensor, num_samples: int, start: int, skip_origin: bool) -> Tensor:
    """(B, N, 3) -> (B, num_samples) int64; see :func:`pointadapterx.ops.farthest_point_sample`."""
    batch, count, _ = points.shape
    chosen = torch.empty(batch, num_samples, dtype=torch.int64, device=points.device)
    nearest = points.new_full((batch, count), math.inf)  # squared distance to the chosen set
    if skip_origin:
        x, y, z = points.unbind(-1)
        norm = (x * x + y * y) + z * z
        # torch rounds the constant to the tensor's type. In float32 it rounds up, past the double
        # 1e-3 that pointnet2_ops compares with, so <= in double is < in float32.
        near = norm < 1e-3 if points.dtype == torch.float32 else norm <= 1e-3
        nearest.masked_fill_(near, -1)
    current = torch.full((batch, 1), start, dtype=torch.int64, device=points.device)
    for sample in range(num_samples):
        chosen[:, sample : sample + 1] = current
        if not skip_origin:
            nearest.scatter_(1, current, -1)
        center = points.gather(1, current.unsqueeze(-1).expand(-1, -1, 3))  # (B, 1, 3)
        distance = _squared_distances(center, points).squeeze(1)  # (B, N)
        nearest = torch.where(distance < nearest, distance, nearest)
        current = nearest.argmax(dim=1, keepdim=True)
    return chosen


def knn(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(B, M, D), (B, N, D) -> squared distances and int64 indices, both (B, M, k), nearest first."""
    squared = query.new_empty(*query.shape[:2], k)
    indices = torch.empty(squared.shape, dtype=torch.int64, device=query.device)
    for rows in _row_blocks(query, points):
        # topk leaves the order of ties open; a stable sort keeps the lowest index first.
        ordered, order = _squared_distances(query[:, rows], points).sort(dim=-1, stable=True)
        squared[:, rows] = ordered[..., :k]
        indices[:, rows] = order[..., :k]
    return squared, indices


def nearest(query: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """(B, M, D), (B, N, D) -> squared distance to and int64 index of the nearest point, both (B, M)."""
    squared = query.new_empty(query.shape[:2])
    indices = torch.empty(squared.shape, dtype=torch.int64, device=query.device)
    for rows in _row_blocks(query, points):
        squared[:, rows], indices[:, rows] = _squared_distances(query[:, rows], points).min(dim=-1)
    return squared, indices


def ball_query(query: Tensor, points: Tensor, radius: float, num_samples: int) -> tuple[Tensor, Tensor]:
    """(B, M, 3), (B, N, 3) -> int64 indices (B, M, num_samples) and counts (B, M)."""
    count = points.shape[1]
    limit = query.new_tensor(radius) * query.new_tensor(radius)
    indices = torch.empty(*query.shape[:2], num_samples, dtype=torch.int64, device=query.device)
    counts = torch.empty(query.shape[:2], dtype=torch.int64, device=query.device)
    places = torch.arange(count, device=query.device)
    for rows in _row_blocks(query, points):
        inside = _squared_distances(query[:, rows], points) < limit
        found = torch.where(inside, places, count).sort(dim=-1).values[..., :num_samples]
        found = torch.nn.functional.pad(found, (0, num_samples - found.shape[-1]), value=count)
        first = found[..., :1] % count  # 0 for an empty ball
        indices[:, rows] = torch.where(found < count, found, first)
        counts[:, rows] = inside.sum(dim=-1).clamp(max=num_samples)
    return indices, counts


def gather_points(points: Tensor, indices: Tensor) -> Tensor:
    """(B, N, C), int64 (B, M) -> (B, M, C)."""
    return points.gather(1, indices.unsqueeze(-1).expand(-1, -1, points.shape[-1]))


def interpolate(points: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """(B, N, C), int64 (B, M, K), (B, M, K) -> (B, M, C), the weighted sum of K points, left to right."""
    total = torch.zeros_like(points[:, :1]).expand(-1, indices.shape[1], -1)
    for neighbour in range(indices.shape[-1]):
        total = total + gather_points(points, indices[..., neighbour]) * weights[..., neighbour, None]
    return total


def spread(values: Tensor, indices: Tensor, weights: Tensor, count: int) -> Tensor:
    """(B, M, C), int64 (B, M, K), (B, M, K) -> (B, count, C), the transpose of :func:`interpolate`."""
    total = values.new_zeros(values.shape[0], count, values.shape[2])
    for at, weight in zip(indices.unbind(-1), weights.unbind(-1), strict=True):
        total.scatter_add_(1, at.unsqueeze(-1).expand_as(values), values * weight.unsqueeze(-1))
    return total


def ragged_farthest_point_sample(
    points: Tensor, lengths: Tensor, num_samples: int, start: int, skip_origin: bool
) -> Tensor:
    """(B, N, 3) of which lengths (B,) are real -> (B, num_samples) int64: each cloud by itself."""
    chosen = torch.empty(len(points), num_samples, dtype=torch.int64, device=points.device)
    for number, length in enumerate(lengths.tolist()):
        chosen[number] = farthest_point_sample(points[number : number + 1, :length], num_samples, start, skip_origin)[0]
    return chosen


def ragged_knn(query: Tensor, points: Tensor, query_lengths: Tensor, lengths: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(B, M, D), (B, N, D) of which lengths (B,) are real -> (B, M, k): each cloud by itself; 0 for other queries.

    Where a cloud has fewer than k points, the free places are infinitely far and repeat the nearest.
    """
    squared = query.new_zeros(*query.shape[:2], k)
    indices = torch.zeros(squared.shape, dtype=torch.int64, device=query.device)
    for number, (rows, length) in enumerate(zip(query_lengths.tolist(), lengths.tolist(), strict=True)):
        real = min(k, length)
        own = slice(number, number + 1)
        squared[own, :rows, :real], indices[own, :rows, :real] = knn(query[own, :rows], points[own, :length], real)
        squared[own, :rows, real:] = math.inf
        indices[own, :rows, real:] = indices[own, :rows, :1]
    return squared, indices


def ragged_ball_query(
    query: Tensor, points: Tensor, query_lengths: Tensor, lengths: Tensor, radius: float, num_samples: int
) -> tuple[Tensor, Tensor]:
    """(B, M, 3), (B, N, 3) of which lengths (B,) are real -> as :func:`ball_query`; 0 for other queries."""
    indices = torch.zeros(*query.shape[:2], num_samples, dtype=torch.int64, device=query.device)
    counts = torch.zeros(query.shape[:2], dtype=torch.int64, device=query.device)
    for number, (rows, length) in enumerate(zip(query_lengths.tolist(), lengths.tolist(), strict=True)):
        own = slice(number, number + 1)
        found = ball_query(query[own, :rows], points[own, :length], radius, num_samples)
        indices[own, :rows], counts[own, :rows] = found
    return indices, counts


def within(lengths: Tensor, count: int) -> Tensor:
    """(B,) -> (B, count), true for the places before each length."""
    return torch.arange(count, device=lengths.device) < lengths.unsqueeze(-1)


def _squared_distances(query: Tensor, points: Tensor) -> Tensor:
    """(B, M, D), (B, N, D) -> (B, M, N)."""
    total: Tensor | None = None
    for q, p in zip(query.unbind(-1), points.unbind(-1), strict=True):
        difference = q.unsqueeze(-1) - p.unsqueeze(-2)
        square = difference * difference
        total = square if total is None else total + square
    assert total is not None, "points have at least one coordinate"
    return torch.where(total < math.inf, total, math.inf)


def _row_blocks(query: Tensor, points: Tensor) -> list[slice]:
    """Ranges of queries whose distances to all points fit in one block."""
    rows = max(1, _BLOCK // max(1, points.shape[0] * points.shape[1]))
    return [slice(begin, begin + rows) for begin in range(0, query.shape[1], rows)]
