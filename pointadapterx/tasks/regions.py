"""Layers of R-CNN that keep little for the backward pass, with the names of torchvision's."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.models.recomputing import recomputed


class Regions(NamedTuple):
    """What is to be pooled of regions.

    Attributes:
        pool: that does it.
        maps: (B, C, h, w) of the levels, by name.
        boxes: (k, 4) of each picture.
        sizes: of the pictures.
    """

    pool: nn.Module
    maps: dict[str, Tensor]
    boxes: list[Tensor]
    sizes: list[tuple[int, int]]


class Later(nn.Module):
    """Leaves pooling to the layer that reads the regions."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Regions:
        """As torchvision calls a pooling."""
        return Regions(self.pool, maps, boxes, sizes)


class BoxHead(nn.Module):
    """torchvision's ``TwoMLPHead``, whose backward pass pools the regions again: they are larger than all maps."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(width, out)
        self.fc7 = nn.Linear(out, out)

    def forward(self, regions: Regions | Tensor) -> Tensor:
        """Regions, or what was pooled of them (k, C, h, w) -> (k, out)."""
        if isinstance(regions, Tensor):
            hidden = self.fc6(regions.flatten(1))
        else:
            pool, maps, boxes, sizes = regions

            def read(*levels: Tensor) -> Tensor:
                pooled: Tensor = pool(dict(zip(maps, levels, strict=True)), boxes, sizes)
                return self.fc6(pooled.flatten(1))

            hidden = recomputed(read, *maps.values())
        return F.relu(self.fc7(F.relu(hidden, inplace=True)), inplace=True)


class Again(nn.Sequential):
    """Layers that keep their input alone for the backward pass."""

    def forward(self, values: Tensor) -> Tensor:
        """As ever."""
        found: Tensor = recomputed(super().forward, values)
        return found
