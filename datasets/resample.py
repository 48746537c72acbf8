"""Resampling to the number of points that a model takes: FPS, then, in training, a random subset."""

from __future__ import annotations

import math

import torch

from pointadapterx.errors import ConfigError
from pointadapterx.ops import farthest_point_sample

# Point-MAE's table. Its code refuses other counts; here they take the ratio of the first row.
FPS_STAGE = {1024: 1200, 2048: 2400, 4096: 4800, 8192: 8192}


def check_num_points(num_points: int, available: int) -> None:
    """Check that clouds of ``available`` points can give ``num_points``.

    Raises:
        ConfigError: naming both numbers.
    """
    if num_points < 1:
        raise ConfigError(f"num_points={num_points} must be at least 1")
    if num_points > available:
        raise ConfigError(
            f"num_points={num_points} exceeds the {available} points of a cloud in this data set; "
            f"lower data.num_points to {available} or less"
        )


def fps_stage(num_points: int) -> int:
    """Points kept by FPS before the random subset: 1200 for 1024, 2400 for 2048, 4800 for 4096, 8192 for 8192.

    Any other count takes ``ceil(num_points * 1200 / 1024)``.
    """
    return FPS_STAGE.get(num_points, math.ceil(num_points * 1200 / 1024))


def fps(points: torch.Tensor, num_points: int, *, skip_origin: bool = False) -> torch.Tensor:
    """The ``num_points`` farthest points of each cloud, from its first one on: ``(B, N, 3) -> (B, num_points, 3)``.

    Args:
        points: ``(B, N, 3)``.
        num_points: at most N.
        skip_origin: leave out points within √0.001 of the origin, as pointnet2_ops does.
    """
    return taken(points, farthest_point_sample(points, num_points, skip_origin=skip_origin))


def taken(points: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """The points ``(B, N, 3)`` at ``index`` (B, M); None for all of them, which are then the very same tensor."""
    return points if index is None else points.take_along_dim(index[..., None], dim=1)


def fps_stage_index(points: torch.Tensor, num_points: int, *, skip_origin: bool = False) -> torch.Tensor | None:
    """Which points :func:`to_fps_stage` keeps: ``(B, fps_stage(num_points))``, or None for all of them.

    Raises:
        ConfigError: if ``num_points`` exceeds N.
    """
    check_num_points(num_points, points.shape[1])
    stage = fps_stage(num_points)
    return farthest_point_sample(points, stage, skip_origin=skip_origin) if stage < points.shape[1] else None


def drawn_index(
    points: torch.Tensor, num_points: int, generator: torch.Generator | None = None, *, skip_origin: bool = False
) -> torch.Tensor:
    """Which points :func:`resample_train` keeps, and in what order: ``(B, num_points)``.

    Raises:
        ConfigError: if ``num_points`` exceeds N.
    """
    staged = fps_stage_index(points, num_points, skip_origin=skip_origin)
    shape = points.shape[:2] if staged is None else staged.shape
    order = torch.rand(shape, generator=generator, device=points.device).argsort(dim=1)[:, :num_points]
    return order if staged is None else staged.gather(1, order)


def spread_index(points: torch.Tensor, num_points: int, *, skip_origin: bool = False) -> torch.Tensor | None:
    """Which points :func:`resample_test` keeps: ``(B, num_points)``, or None for all of them as they come.

    Raises:
        ConfigError: if ``num_points`` exceeds N.
    """
    check_num_points(num_points, points.shape[1])
    if num_points == points.shape[1]:
        return None
    return farthest_point_sample(points, num_points, skip_origin=skip_origin)


def to_fps_stage(points: torch.Tensor, num_points: int, *, skip_origin: bool = False) -> torch.Tensor:
    """The part of :func:`resample_train` that is the same every time: FPS to :func:`fps_stage` of the points.

    Done once ahead of training, it is not repeated by :func:`resample_train`, whose result stays the same.

    Args:
        points: ``(B, N, 3)``.
        num_points: points that training will keep of each cloud.
        skip_origin: see :func:`fps`.

    Returns:
        ``(B, fps_stage(num_points), 3)``, or ``points`` itself where that would keep all of them.

    Raises:
        ConfigError: if ``num_points`` exceeds N.
    """
    return taken(points, fps_stage_index(points, num_points, skip_origin=skip_origin))


def resample_train(
    points: torch.Tensor, num_points: int, generator: torch.Generator | None = None, *, skip_origin: bool = False
) -> torch.Tensor:
    """Training points: FPS to :func:`fps_stage` of the points, then a random subset of them for each cloud.

    When the FPS stage would keep every point it is skipped, being only a permutation. The subset is in random
    order also when it is the whole cloud: the grouping's FPS starts at the first point, so order is augmentation.

    Args:
        points: ``(B, N, 3)``.
        num_points: points to keep of each cloud.
        generator: source of the random draw, on the device of ``points``.
        skip_origin: see :func:`fps`.

    Returns:
        ``(B, num_points, 3)``.

    Raises:
        ConfigError: if ``num_points`` exceeds N.
    """
    return taken(points, drawn_index(points, num_points, generator, skip_origin=skip_origin))


def resample_test(points: torch.Tensor, num_points: int, *, skip_origin: bool = False) -> torch.Tensor:
    """Test points: FPS to ``num_points``; the very same tensor when a cloud has just that many.

    Args:
        points: ``(B, N, 3)``.
        num_points: points to keep of each cloud.
        skip_origin: see :func:`fps`.

    Returns:
        ``(B, num_points, 3)``.

    Raises:
        ConfigError: if ``num_points`` exceeds N.
    """
    return taken(points, spread_index(points, num_points, skip_origin=skip_origin))
