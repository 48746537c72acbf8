"""Chamfer distance between batches of point clouds, with gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from pointadapterx.ops import checks
from pointadapterx.ops.neighbours import root


def chamfer_distance(x: Tensor, y: Tensor, norm: str = "l2", reduction: str = "mean") -> Tensor:
    """Chamfer distance between two batches of clouds, which may differ in their number of points.

    ``norm="l2"`` is the mean of the squared nearest distances, both directions added (Fan et al. 2017, the
    pre-training loss of Point-MAE). ``norm="l1"`` is the mean of the nearest distances, both directions
    averaged (``ChamferDistanceL1`` of Point-MAE). Where a nearest distance is 0 its gradient is 0.

    Args:
        x: (B, N, D), floating-point. Half precision is upcast to float32.
        y: (B, M, D), in the frame of ``x``.
        norm: ``"l2"`` (squared unit of the points) or ``"l1"`` (unit of the points).
        reduction: ``"mean"`` over the batch, or ``"none"`` for one value per cloud.

    Returns:
        A scalar, or (B,) with ``reduction="none"``; differentiable with respect to both clouds.

    Raises:
        TypeError: if an input is not floating-point.
        ValueError: if shapes or devices do not fit, a coordinate is not finite, or a word is unknown.
    """
    x, y = checks.pair(x, y, ("x", "y"), dims=None)
    checks.choice(norm, "norm", ("l2", "l1"))
    checks.choice(reduction, "reduction", ("mean", "none"))
    forward, _ = torch.ops.pointadapterx.nearest(x, y)  # (B, N)
    backward, _ = torch.ops.pointadapterx.nearest(y, x)  # (B, M)
    if norm == "l1":
        distance = (root(forward).mean(1) + root(backward).mean(1)) / 2
    else:
        distance = forward.mean(1) + backward.mean(1)
    return distance.mean() if reduction == "mean" else distance
