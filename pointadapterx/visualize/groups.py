"""The groups of a cloud as colours of its points: which group a point is in, and in how many."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.visualize import introspection
from pointadapterx.visualize.colours import GREY, KINDS, rgb

OF_GROUPS = np.stack([rgb(colour) for colour in KINDS[:-1]])  # black, seen from afar, is the grey of no group
OF_COUNTS = np.stack([rgb(colour) for colour in (GREY, KINDS[4], KINDS[1], KINDS[5])])
COUNTS = ("in no group", "in one", "in two", "in three or more")


class GroupColours(NamedTuple):
    """Colours of the points of a cloud.

    Attributes:
        centers: (G, 3).
        size: points of a group, k.
        nearest: (N, 3), each point in the colour of the nearest of its groups, grey without any.
        counts: (N, 3), of :data:`OF_COUNTS`.
        none: share of the points that are in no group.
        several: share of those that are in more than one.
    """

    centers: np.ndarray
    size: int
    nearest: np.ndarray
    counts: np.ndarray
    none: float
    several: float


def group_colours(model: AdaptedModel, points: Tensor) -> list[GroupColours]:
    """Of each cloud of points (B, N, 3)."""
    members = introspection.group_members(model, points)
    counts = members.times(points.shape[1]).cpu().numpy()
    found = []
    for cloud, centers, numbers, count in zip(points, members.centers, members.points, counts, strict=True):
        distances = (cloud[numbers] - centers[:, None]).norm(dim=2).flatten()
        order = distances.argsort(descending=True).cpu().numpy()  # the nearest last: it overwrites the others
        group = np.repeat(np.arange(len(centers)), numbers.shape[1])[order]
        nearest = np.tile(rgb(GREY), (len(count), 1))
        nearest[numbers.flatten().cpu().numpy()[order]] = OF_GROUPS[kinds_apart(centers, len(OF_GROUPS))[group]]
        shares = float((count == 0).mean()), float((count > 1).mean())
        colours = OF_COUNTS[count.clip(max=len(OF_COUNTS) - 1)]
        found.append(GroupColours(centers.cpu().numpy(), numbers.shape[1], nearest, colours, *shares))
    return found


def kinds_apart(centers: Tensor, count: int) -> np.ndarray:
    """A kind below ``count`` for each of the centres (G, 3), those of one kind far from each other: (G,)."""
    distances = torch.cdist(centers.float(), centers.float()).cpu().numpy()
    kinds = np.zeros(len(centers), dtype=np.int64)
    for number in range(1, len(centers)):
        before = distances[number, :number]
        room = [before[kinds[:number] == kind].min(initial=np.inf) for kind in range(count)]
        kinds[number] = int(np.argmax(room))
    return kinds
