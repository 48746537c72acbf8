"""IDPT: a prompt generated from the tokens of each instance, for the last block (arXiv 2304.07221)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.models.backbone import Backbone
from pointadapterx.models.host import Host
from pointadapterx.models.tokens import insert_after_cls
from pointadapterx.ops import knn
from pointadapterx.peft.base import METHODS, Method
from pointadapterx.peft.parts.neighbours import gathered, grid_neighbours
from pointadapterx.schema import Blocks, Width


class EdgeConv(nn.Module):
    """Maximum over the neighbours j of act(BN(W [x_j - x_i, x_i])) (DGCNN, arXiv 1801.07829).

    Args:
        dim: width C of input and output.
        slope: negative slope of the leaky ReLU.
    """

    def __init__(self, dim: int, slope: float) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, dim, bias=False)
        self.norm = nn.BatchNorm1d(dim)
        self.slope = slope

    def forward(self, tokens: Tensor, neighbours: Tensor) -> Tensor:
        """Tokens (B, G, C) and indices of their neighbours (B, G, k) -> (B, G, C)."""
        of_difference, of_own = self.linear.weight.chunk(2, dim=1)
        # W [x_j - x_i, x_i] = A x_j + (B - A) x_i: two products of G tokens instead of one of G k pairs.
        others = F.linear(tokens, of_difference)
        edges = gathered(others, neighbours) + F.linear(tokens, of_own - of_difference)[:, :, None]
        normed = self.norm(edges.flatten(0, 2)).view_as(edges)
        return F.leaky_relu(normed, self.slope).amax(dim=2)


@METHODS.register("idpt")
class Idpt(Method):
    """Three edge convolutions over the patch tokens before the last block, and their maximum as a prompt token.

    The neighbours are the k nearest patch tokens (in their own features, found again in each layer), or, on the grid
    of a ViT, the patches around. The outputs of all layers side by side, a linear layer, BatchNorm and a leaky ReLU,
    then the maximum over the patches gives one token after CLS. Trains that, class token and its position where they
    are not pre-trained, and the head: 1.70 M parameters for ScanObjectNN with the head. Extra cost: nine C x C
    products a patch, once, and one token more in the last block.
    """

    class Options(Method.Options):
        """``method: {name: idpt, ...}``.

        Attributes:
            layers: edge convolutions.
            neighbours: k, at most the number of patches; on a grid those within one patch, whatever k.
            graph: ``"features"`` or ``"grid"``; None is the grid where the backbone has one.
            slope: negative slope of the leaky ReLU.
        """

        name: Literal["idpt"] = "idpt"
        layers: Blocks = 3
        neighbours: Width = 20
        graph: Literal["features", "grid"] | None = None
        slope: float = Field(0.2, ge=0.0)

        @property
        def makes_prompts(self) -> bool:
            """One, for the last block."""
            return True

        @property
        def counts_patches(self) -> bool:
            """The patches are the last so many tokens."""
            return True

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """The whole block, before which the prompt comes."""
            return ("block",)

        def problems(self, backbone: Backbone.Options) -> Iterator[tuple[str, str]]:
            """A grid that the backbone does not have."""
            yield from super().problems(backbone)
            if self.graph == "grid" and not backbone.has_grid:
                yield "graph", f"the patches of {backbone.name} lie on no grid; use features, or leave it out"

    def __init__(self, options: Idpt.Options) -> None:
        super().__init__(options)
        self.options: Idpt.Options = options

    def attach(self, backbone: Host) -> None:
        """Creates the edge convolutions that generate the prompt."""
        options, stage = self.options, backbone.stages[-1]
        dim = stage.width
        self.last = stage.blocks[-1].index
        self.num_patches = stage.num_patches
        self.neighbours = min(options.neighbours, stage.num_patches)
        grid = None if options.graph == "features" else stage.grid
        self.register_buffer("grid_neighbours", None if grid is None else grid_neighbours(grid), persistent=False)
        self.layers = nn.ModuleList(EdgeConv(dim, options.slope) for _ in range(options.layers))
        self.joint = nn.Linear(options.layers * dim, dim, bias=False)
        self.joint_norm = nn.BatchNorm1d(dim)

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B, L + 1, C) before the last block."""
        if index != self.last:
            return tokens
        return insert_after_cls(tokens, self.prompt(tokens[:, -self.num_patches :]))

    def prompt(self, patches: Tensor) -> Tensor:
        """Patch tokens (B, G, C) -> prompt (B, 1, C)."""
        outputs = []
        for layer in self.layers:
            patches = layer(patches, self._graph(patches))
            outputs.append(patches)
        merged = self.joint(torch.cat(outputs, dim=-1))
        normed = self.joint_norm(merged.flatten(0, 1)).view_as(merged)
        return F.leaky_relu(normed, self.options.slope).amax(dim=1, keepdim=True)

    def _graph(self, patches: Tensor) -> Tensor:
        """Indices (B, G, k) of each patch's neighbours, including the patch itself."""
        fixed = self.grid_neighbours
        if isinstance(fixed, Tensor):
            return fixed.expand(len(patches), -1, -1)
        features = patches.detach().float()
        return knn(features, features, self.neighbours)[1]
