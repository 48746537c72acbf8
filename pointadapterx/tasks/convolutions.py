"""Convolutions of several maps side by side, of different sizes, with little memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.models.recomputing import recomputed

GROUPS = 32  # of GroupNorm, or fewer where they do not divide the channels


class ConvModule(nn.Module):
    """Convolution, norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        groups = math.gcd(GROUPS, outputs)
        if 2 * groups > outputs:  # of single channels, a map pooled to 1 x 1 has no spread
            groups = max(1, groups // 2)
        self.batch_norm = nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(groups, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        return self.activated(self.conv(maps))

    def activated(self, sums: Tensor) -> Tensor:
        """What the convolution gives, normed and rectified."""
        return F.relu(self.batch_norm(sums))


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinearly."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


class Part(NamedTuple):
    """One of several maps side by side.

    Attributes:
        layer: whose norm and activation come first; None: it is read as it is.
        sums: (B, C, side, side).
        enlarge: see :func:`enlarging`; None: it has the size that is wanted.
    """

    layer: ConvModule | None
    sums: Tensor
    enlarge: Tensor | None


def side_by_side(weight: Tensor, parts: Sequence[Part]) -> Tensor:
    """A 3 x 3 convolution with padding of maps side by side, the smaller ones enlarged to the size of the others.

    It is linear: a smaller map is convolved at its own size and then enlarged, which changes nothing but rounding. In
    the pyramid of Swin that is a third of the work, and nothing is kept at the size of the finest map.

    Args:
        weight: (outputs, channels of all maps, 3, 3).
        parts: the maps.
    """
    weights = weight.split([part.sums.shape[1] for part in parts], dim=1)
    total: Tensor | None = None
    for (layer, sums, enlarge), own in zip(reversed(parts), reversed(weights), strict=True):
        norms = [] if layer is None else [layer.batch_norm]
        found: Tensor = recomputed(partial(_convolved, layer, enlarge is None), sums, own, norms=norms)
        found = found if enlarge is None else _enlarged_taps(found, enlarge)
        total = found if total is None else total + found
    assert total is not None
    return total


def _convolved(layer: ConvModule | None, whole: bool, sums: Tensor, weight: Tensor) -> Tensor:
    """The convolution of a map, or each of its taps by itself."""
    values = sums if layer is None else layer.activated(sums)
    return F.conv2d(values, weight, padding=1) if whole else F.conv2d(values, _taps(weight))


def _taps(weight: Tensor) -> Tensor:
    """(C, inputs, 3, 3) -> (9 · C, inputs, 1, 1): each tap as a convolution of its own, row by row."""
    return weight.permute(2, 3, 0, 1).reshape(-1, weight.shape[1], 1, 1)


def enlarging(side: int, size: int) -> Tensor:
    """(3, size, side), whose product with a map enlarges it along an axis, moved by -1, 0 and 1 with zeros behind it.

    The rows of an enlarged map that the three taps of a convolution with padding see.
    """
    matrix = F.interpolate(torch.eye(side)[None], size=size, mode="linear", align_corners=False)[0].T
    padded = F.pad(matrix, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + size] for tap in range(3)])


def _enlarged_taps(taps: Tensor, enlarge: Tensor) -> Tensor:
    """What the taps of a 3 x 3 convolution give of a map, added up as they would be of the enlarged map.

    Args:
        taps: (B, 9 · C, side, side), row by row.
        enlarge: see :func:`enlarging`.

    Returns:
        (B, C, size, size).
    """
    enlarge = enlarge.to(taps.dtype)
    parts = taps.chunk(9, dim=1)
    total: Tensor | None = None
    for row in range(3):
        wide = sum(parts[3 * row + column] @ enlarge[column].T for column in range(3))
        part = enlarge[row] @ wide
        total = part if total is None else total + part
    assert total is not None
    return total
