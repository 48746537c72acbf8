"""Properties of the training clouds, so that other clouds can be prepared alike, and differences noticed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pointadapterx.datasets.base import PointClouds
from pointadapterx.datasets.options import DataConfig

UNIT = 0.02  # how far radius and centre may be from those of a unit sphere


class Preparation(NamedTuple):
    """Numbers of a training set's clouds (n, N, 3), as they came out of it, before resampling.

    Attributes:
        points: N.
        radius: least, median and largest over the clouds of the distance of the farthest point from the origin.
        offset: largest distance of a cloud's mean from the origin.
        extents: mean share of x, y and z in a bounding box's sum of sides.
    """

    points: int
    radius: list[float]
    offset: float
    extents: list[float]

    @classmethod
    def of(cls, data: PointClouds) -> Preparation:
        """Of the clouds of a data set."""
        found = [
            (part.norm(dim=2).amax(dim=1).double(), part.mean(dim=1).norm(dim=1), extents(part))
            for part in data.examples()
        ]
        radius, offset, shares = map(torch.cat, zip(*found, strict=True))
        quantiles = radius.quantile(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
        return cls(data.size, quantiles.tolist(), float(offset.max()), shares.mean(dim=0).tolist())

    @classmethod
    def stored(cls, metrics: Mapping[str, Any]) -> Preparation | None:
        """Of an adapter's file, if it has them.

        Raises:
            TypeError, ValueError: if they are something else.
        """
        if "inputs" not in metrics:
            return None
        stored = cls(**metrics["inputs"])
        numbers = [stored.points, stored.offset, *stored.radius, *stored.extents]
        if len(stored.radius) != 3 or len(stored.extents) != 3 or not all(is_number(value) for value in numbers):
            raise ValueError(f"inputs is {metrics['inputs']!r}")
        return stored

    @property
    def in_unit_sphere(self) -> bool:
        """Whether every cloud is centred and scaled into the unit sphere."""
        return self.offset < UNIT and abs(self.radius[0] - 1) < UNIT and abs(self.radius[2] - 1) < UNIT


def is_number(value: object, above: float = -math.inf) -> bool:
    """Whether a value of a JSON file is a finite number above another."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and above < value < math.inf


def wants_unit_sphere(metrics: Mapping[str, Any], data: DataConfig) -> bool:
    """Whether an adapter's inputs have to be brought into the unit sphere: as its training clouds were, where it knows.

    Args:
        metrics: of the adapter's file.
        data: section of its config.
    """
    stored = Preparation.stored(metrics)
    return stored.in_unit_sphere if stored is not None else data.normalize is not False


def extents(points: Tensor) -> Tensor:
    """Clouds (n, N, 3) -> share (n, 3) of each axis in a bounding box's sum of sides."""
    sides = points.amax(dim=1) - points.amin(dim=1)
    return sides / sides.sum(dim=1, keepdim=True).clamp_min(torch.finfo(points.dtype).tiny)


def mean_extents(points: Tensor) -> Tensor:
    """The mean of :func:`extents` over the clouds, (3,)."""
    return extents(points).mean(dim=0)
