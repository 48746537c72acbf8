"""FPS, kNN, gathering and interpolation in operators that every runtime has, for files that run without this package.

Same start, distances and ties as :mod:`pointadapterx.ops.reference`, of which they differ in form alone: nothing is
written in place, and no shape depends on the size of the batch. FPS is unrolled, a dozen operators a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from pointadapterx.ops.reference import within

TAKEN_FOR_ZERO = 1e-8
"""The largest number that onnxscript's optimiser takes for zero."""


def farthest_point_sample(points: Tensor, num_samples: int, start: int, skip_origin: bool) -> Tensor:
    """(B, N, 3) -> (B, num_samples) int64; see :func:`pointadapterx.ops.farthest_point_sample`."""
    return _sample(points, torch.full_like(points[..., 0], math.inf), num_samples, start, skip_origin)


def ragged_farthest_point_sample(
    points: Tensor, lengths: Tensor, num_samples: int, start: int, skip_origin: bool
) -> Tensor:
    """(B, N, 3) of which lengths (B,) are real -> (B, num_samples) int64."""
    real = within(lengths, points.shape[1])
    candidates = torch.where(real, math.inf, -1.0).to(points.dtype)
    points = torch.where(real.unsqueeze(-1), points, 0.0)  # whatever fills the other places
    return _sample(points, candidates, num_samples, start, skip_origin)


def _sample(points: Tensor, nearest: Tensor, num_samples: int, start: int, skip_origin: bool) -> Tensor:
    """FPS with ``nearest`` (B, N), the squared distance to the chosen set: infinite at first, -1 for no candidate."""
    x, y, z = points.unbind(-1)
    places = torch.arange(points.shape[1], device=points.device)
    if skip_origin:
        norm = (x * x + y * y) + z * z
        near = norm < 1e-3 if points.dtype == torch.float32 else norm <= 1e-3  # as the reference
        nearest = torch.where(near, -1.0, nearest)
    current = torch.full_like(x[:, :1], start, dtype=torch.int64)
    chosen = [current]
    for _ in range(num_samples - 1):
        if not skip_origin:
            nearest = torch.where(places == current, -1.0, nearest)
        dx, dy, dz = (axis - axis.gather(1, current) for axis in (x, y, z))
        nearest = torch.minimum(nearest, (dx * dx + dy * dy) + dz * dz)
        current = nearest.argmax(dim=1, keepdim=True)
        chosen.append(current)
    return torch.cat(chosen, dim=1)


def knn(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(B, M, D), (B, N, D) -> squared distances and int64 indices, both (B, M, k), nearest first."""
    ordered, order = _squared_distances(query, points).sort(dim=-1, stable=True)
    return ordered[..., :k], order[..., :k]


def knn_by_topk(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same for ONNX, whose TopK puts the lower index first where distances are equal; torch leaves that open."""
    squared, indices = _squared_distances(query, points).topk(k, dim=-1, largest=False, sorted=True)
    return squared, indices


def ragged_knn(query: Tensor, points: Tensor, query_lengths: Tensor, lengths: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same for clouds of which lengths (B,) are real; see :func:`pointadapterx.ops.reference.ragged_knn`."""
    squared = _real_distances(query, points, lengths)
    ordered, order = squared.sort(dim=-1, stable=True)
    return _real_places(ordered[..., :k], order[..., :k], query_lengths, lengths)


def ragged_knn_by_topk(
    query: Tensor, points: Tensor, query_lengths: Tensor, lengths: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The same for ONNX."""
    squared = _real_distances(query, points, lengths)
    ordered, order = squared.topk(k, dim=-1, largest=False, sorted=True)
    return _real_places(ordered, order, query_lengths, lengths)


def _real_distances(query: Tensor, points: Tensor, lengths: Tensor) -> Tensor:
    """(B, M, N), infinite to points that are not real."""
    return torch.where(within(lengths, points.shape[1]).unsqueeze(1), _squared_distances(query, points), math.inf)


def _real_places(squared: Tensor, indices: Tensor, query_lengths: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Results (B, M, k) in the form of the reference where a cloud has fewer points or queries."""
    queries, k = indices.shape[1:]
    found = within(lengths, k).unsqueeze(1)
    real = within(query_lengths, queries).unsqueeze(-1)
    return (
        torch.where(real, torch.where(found, squared, math.inf), 0.0),
        torch.where(real, torch.where(found, indices, indices[..., :1]), 0),
    )


def gather_points(points: Tensor, indices: Tensor) -> Tensor:
    """(B, N, C), (B, M) -> (B, M, C)."""
    return points.gather(1, indices.long().unsqueeze(-1).expand(-1, -1, points.shape[-1]))


def interpolate(points: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """(B, N, C), (B, M, 3), (B, M, 3) -> (B, M, C), summed from the first point on."""
    first, second, third = (
        gather_points(points, at) * weight.unsqueeze(-1)
        for at, weight in zip(indices.unbind(-1), weights.unbind(-1), strict=True)
    )
    return first + second + third


def add_small(values: Tensor, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    """values + alpha · other for ONNX, whose optimiser takes a number up to 1e-8 for zero and drops it.

    So ``1 / (distance + 1e-8)`` would be infinite in the file where a distance is zero. Both are multiplied by a power
    of two, which changes no bit of the sum, and the sum is divided by it.
    """
    number = None if isinstance(other, Tensor) else alpha * other
    if not isinstance(number, float) or not 0 < abs(number) <= TAKEN_FOR_ZERO or not values.is_floating_point():
        return NotImplemented
    factor = 2.0 ** math.ceil(math.log2(2 * TAKEN_FOR_ZERO / abs(number)))
    return (values * factor + number * factor) * (1 / factor)


def subtract_small(values: Tensor, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    """values - alpha · other, as :func:`add_small`."""
    return add_small(values, other, alpha=-alpha)


def _squared_distances(query: Tensor, points: Tensor) -> Tensor:
    """(B, M, D), (B, N, D) -> (B, M, N), coordinates left to right."""
    pairs = zip(query.unbind(-1), points.unbind(-1), strict=True)
    differences = [q.unsqueeze(-1) - p.unsqueeze(-2) for q, p in pairs]
    return reduce(torch.add, [difference * difference for difference in differences])


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.pointadapterx.farthest_point_sample.default: farthest_point_sample,
    torch.ops.pointadapterx.knn.default: knn,
    torch.ops.pointadapterx.gather_points.default: gather_points,
    torch.ops.pointadapterx.interpolate.default: interpolate,
    torch.ops.pointadapterx.ragged_farthest_point_sample.default: ragged_farthest_point_sample,
    torch.ops.pointadapterx.ragged_knn.default: ragged_knn,
}
"""For :meth:`torch.export.ExportedProgram.run_decompositions`."""

FPS = torch.ops.pointadapterx.farthest_point_sample.default
ONNX_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    **{operator: function for operator, function in DECOMPOSITIONS.items() if operator is not FPS},
    torch.ops.pointadapterx.knn.default: knn_by_topk,
    torch.ops.pointadapterx.ragged_knn.default: ragged_knn_by_topk,
    torch.ops.aten.add.Tensor: add_small,
    torch.ops.aten.sub.Tensor: subtract_small,
}
"""The same on the way to ONNX, where FPS is a loop: see :mod:`pointadapterx.ops.onnx_loops`."""
