"""Properties of a single cloud of a data set, measured for the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pointadapterx.datasets.doubts import Doubt, few_values, outside
from pointadapterx.datasets.draws import Measured
from pointadapterx.datasets.point_files import Cloud
from pointadapterx.hashing import content_hash

FLAT = 1e-3  # of the largest side, that the smallest must have


@dataclass(frozen=True)
class Examined:
    """Properties of one cloud.

    Attributes:
        points: number of points, of a mesh those that were sampled.
        distinct: different points among them.
        radius: largest distance from the mean.
        extents: share of x, y and z in the bounding box's sum of sides.
        flat: whether the bounding box has no depth.
        digest: equal for clouds with the same points in any order, up to rounding.
        mesh: whether it was sampled from a surface.
        doubts: what looks wrong with its coordinates, and with the labels of its points.
        point_classes: names of the classes of its points, where they have some.
    """

    points: int
    distinct: int
    radius: float
    extents: tuple[float, float, float]
    flat: bool
    digest: str
    mesh: bool
    doubts: tuple[Doubt, ...] = ()
    point_classes: tuple[str, ...] = ()


class Entry(NamedTuple):
    """A cloud of the set.

    Attributes:
        name: in what is printed.
        split: ``"train"`` or ``"test"``.
        label: its class, or None.
        found: what it is, or why it cannot be read.
        validation: whether it is of a validation part, which belongs to the training split.
        point_classes: names of what its points may be labelled with, where they are.
        measured: what samples hold of it, where they are drawn from clouds of any size.
    """

    name: str
    split: str
    label: str | None
    found: Examined | str
    validation: bool = False
    point_classes: tuple[str, ...] = ()
    measured: Measured | None = None

    @property
    def part(self) -> str:
        """The part that the clouds belong to: ``"train"``, ``"val"`` or ``"test"``."""
        return "val" if self.validation else self.split


def examine(cloud: Cloud, *, mesh: bool = False) -> Examined:
    """A cloud (n, 3), finite."""
    points, few = cloud.points, None if mesh else few_values(cloud.points)
    centred = points - points.mean(axis=0)
    radius = float(np.sqrt(np.square(centred).sum(axis=1)).max())
    sides = np.ptp(points, axis=0)
    total = float(sides.sum()) or 1.0
    shares = (sides / total).tolist()
    return Examined(
        points=len(points),
        distinct=len(np.unique(points, axis=0)),
        radius=radius,
        extents=(shares[0], shares[1], shares[2]),
        flat=bool(sides.min() < FLAT * sides.max()) or radius == 0.0,
        digest=_digest(points),
        mesh=mesh,
        doubts=cloud.doubts if few is None or cloud.doubts else (few,),
    )


def _digest(points: np.ndarray) -> str:
    """A hash of the cloud without far points, next to which all other points would be equal up to rounding."""
    body = points[~outside(points)]
    body = body - body.mean(axis=0)
    radius = float(np.sqrt(np.square(body).sum(axis=1)).max())
    return content_hash(np.unique((body / (radius or 1.0)).round(4) + 0.0, axis=0))
