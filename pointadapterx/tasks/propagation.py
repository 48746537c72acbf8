"""Values of a few points carried over to many: by the three nearest, nearer ones counting more (PointNet++ §3.4).

Interpolated tokens are smooth: they cannot draw a line through a patch. :class:`RelativePropagation` can, as it reads
each token with the place of the point relative to its centre, before the weighted mean is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.ops import group_points, implementation, three_interpolate, three_nn

EPSILON = 1e-8  # added to squared distances, as published heads do
TINY = 1e-6  # of the unit sphere
LEAST = 0.05  # of the distance to the third centre, that the unit of offsets is
CHUNK = 2**17  # points at a time in carry
TREE_FROM = 2**14  # known points, from which on SciPy's tree is faster than plain torch, which compares all pairs


class Neighbours(NamedTuple):
    """The three nearest of some centres for each of some points.

    Attributes:
        places: (B, N, 3) int64, into the centres.
        weights: (B, N, 3), inverse squared distances, of sum 1.
    """

    places: Tensor
    weights: Tensor

    def interpolate(self, values: Tensor) -> Tensor:
        """Values of the centres (B, G, C) -> of the points (B, N, C)."""
        return three_interpolate(values, self.places, self.weights)


def neighbours(points: Tensor, centers: Tensor) -> Neighbours:
    """Whom each point takes its values from.

    Distances are exact. Published code expands the square of a - b, whose rounding errors decide the weights of points
    near a centre.

    Args:
        points: (B, N, 3).
        centers: (B, G, 3), G >= 3.
    """
    distance, index = three_nn(points, centers)
    return Neighbours(index, _weights(distance.square()))


def _weights(squared: Tensor) -> Tensor:
    inverse = 1 / (squared + EPSILON)
    return inverse / inverse.sum(dim=-1, keepdim=True)


class RelativePropagation(nn.Module):
    """What the three nearest patches say about a point: of their tokens, and of where it lies relative to each.

    The weighted mean, as in :func:`neighbours`, of a rectified layer that reads a token and the offset of the point
    from its centre, with its length, in units of the cloud's mean distance between a point and the nearest centre.

    Args:
        width: of the tokens.
        out: of what is given.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(width, out)
        self.offset = nn.Linear(4, out, bias=False)  # x, y, z and the length

    def forward(self, points: Tensor, centers: Tensor, tokens: Tensor) -> Tensor:
        """(B, N, 3), (B, G, 3) and (B, G, width) -> (B, N, out)."""
        distance, index = three_nn(points, centers)
        weights = _weights(distance.square())
        nearest, *_, third = distance.mean(dim=1).unbind(-1)
        unit = torch.maximum(nearest, LEAST * third).clamp_min(TINY)[:, None, None, None]  # points may all be centres
        offset = torch.cat([points[:, :, None] - group_points(centers, index), distance[..., None]], dim=-1) / unit
        found = group_points(self.tokens(tokens), index) + self.offset(offset)
        return (F.relu(found, inplace=True) * weights[..., None].to(found.dtype)).sum(dim=2)


def carry(values: Tensor, known: Tensor, points: Tensor) -> Tensor:
    """Values of known points carried to other points, a bounded number at a time.

    Args:
        values: (m, C) of the known points, on the CPU.
        known: (m, 3) float64, at least one.
        points: (n, 3) float64.

    Returns:
        (n, C), means of the values of the three nearest, as :func:`neighbours` weighs them; of the nearest where fewer
        than three are known.
    """
    origin = known.mean(dim=0)  # float32 keeps little of coordinates far from the origin, such as those of a map
    size = max(float((part - origin).abs().max()) for part in (known, points)) or 1.0
    known, points = (((part - origin) / size).float() for part in (known, points))
    if len(known) < 3:
        known, values = (part[torch.arange(3) % len(part)] for part in (known, values))
    compiled = implementation("cpu").startswith("compiled")  # which has a tree of its own, and several threads
    find = _searched(known) if compiled or len(known) < TREE_FROM else _tree(known)
    return torch.cat([find(part).interpolate(values[None])[0] for part in points.split(CHUNK)])


Find = Callable[[Tensor], Neighbours]
"""Points (n, 3) -> whom each takes its values from."""


def _searched(known: Tensor) -> Find:
    return lambda points: neighbours(points[None], known[None])


def _tree(known: Tensor) -> Find:
    from scipy.spatial import KDTree  # slow to import

    tree = KDTree(known.numpy())

    def find(points: Tensor) -> Neighbours:
        distance, index = tree.query(points.numpy(), k=3)
        squared = torch.from_numpy(distance).float().square()
        return Neighbours(torch.from_numpy(index)[None], _weights(squared)[None])

    return find
