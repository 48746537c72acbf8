"""Patches and the patches next to them: nearest centres of a cloud, or the patches around on an image's grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.errors import ConfigError
from pointadapterx.models.host import Host, HostStage
from pointadapterx.ops import knn


class Surroundings(nn.Module):
    """Which patches of a stage are next to which, each to itself too.

    Args:
        stage: of a backbone whose patches have centres or lie on a grid, see :func:`require_places`.
        neighbours: k nearest centres, the patch's own included, at most all; on a grid those within one patch, whatever
            k.
    """

    grid: Tensor | None

    def __init__(self, stage: HostStage, neighbours: int) -> None:
        super().__init__()
        self.neighbours = min(neighbours, stage.num_patches)
        self.register_buffer("grid", None if stage.grid is None else grid_neighbours(stage.grid), persistent=False)

    def forward(self, centers: Tensor | None, batch: int) -> Tensor:
        """Centres (B, G, 3), None on a grid, and B -> indices of each patch's neighbours, (B, G, k).

        Raises:
            ConfigError: without centres behind the pass, where they are needed.
        """
        if self.grid is not None:
            return self.grid.expand(batch, -1, -1)
        if centers is None:
            raise ConfigError(
                "method.neighbours: a block is computed again for the backward pass, when the centres are gone; set "
                "train.gradient_checkpointing=false, or remove the key"
            )
        centers = centers.detach().float()
        return knn(centers, centers, self.neighbours)[1]


def require_places(backbone: Host, name: str) -> None:
    """Checks that patches have centres or lie on a grid.

    Args:
        backbone: that a method adapts.
        name: of what asks for neighbours, for the message.

    Raises:
        ConfigError: if they do not.
    """
    if not backbone.has_places:
        raise ConfigError(
            f"{name} looks for neighbours of each patch, but the patches of backbone {backbone.title} have "
            "neither centres nor places on a grid; leave it out or choose another method"
        )


def gathered(values: Tensor, neighbours: Tensor) -> Tensor:
    """Values (B, G, C) of the patches and indices (B, G, k) -> those of each patch's neighbours, (B, G, k, C)."""
    batch, count, size = neighbours.shape
    starts = count * torch.arange(batch, device=values.device).view(-1, 1, 1)
    return values.flatten(0, 1).index_select(0, (neighbours + starts).flatten()).view(batch, count, size, -1)


def grid_neighbours(side: int) -> Tensor:
    """(1, side², 9) int64: each patch of a square grid and the eight around; beyond the border the border's."""
    place = torch.arange(side)
    steps = (place[:, None] + torch.tensor([-1, 0, 1])).clamp(0, side - 1)  # (side, 3)
    index = side * steps[:, None, :, None] + steps[None, :, None, :]  # (side, side, 3, 3)
    return index.reshape(1, side**2, 9)


class EdgeMaximum(nn.Module):
    """max over the neighbours j of A x_i + B x_j, which is A x_i plus the maximum of B x_j.

    Args:
        width: of input and output.
        bias: whether both layers have a bias, or A alone.
    """

    def __init__(self, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.own = nn.Linear(width, width)
        self.other = nn.Linear(width, width, bias=bias)

    def forward(self, values: Tensor, neighbours: Tensor) -> Tensor:
        """(B, G, width) and indices (B, G, k) -> (B, G, width)."""
        return self.own(values) + gathered(self.other(values), neighbours).amax(dim=2)


class NeighbourBranch(nn.Module):
    """What the neighbours of a patch say, through a bottleneck; zero at the start, and for tokens that are no patches.

    U GELU(max_j (A D x_i + B D x_j)) with D from C to r, A and B of r x r, U back to C. 2 C r + C + 2 r² + 2 r
    parameters.

    Args:
        width: token width C.
        rank: r.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank)
        self.edges = EdgeMaximum(rank, bias=False)
        self.up = nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor, neighbours: Tensor) -> Tensor:
        """Tokens (B, [1 + P +] G, C) and indices (B, G, k) -> (B, [1 + P +] G, C)."""
        first = tokens.shape[1] - neighbours.shape[1]
        found = self.up(F.gelu(self.edges(self.down(tokens[:, first:]), neighbours)))
        return F.pad(found, (0, 0, first, 0))
