"""A hierarchical backbone of four tiny stages on point clouds: it halves the tokens and widens them between stages.

It is in no paper. It shows what a backbone of several stages has to say, and every method is tested on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pointadapterx.models.backbone import BACKBONES, Backbone, Embedded, make_blocks
from pointadapterx.models.checkpoint_keys import Translated
from pointadapterx.models.frozen import Patches
from pointadapterx.models.grouping import Grouping
from pointadapterx.models.patch_encoder import PatchEncoder
from pointadapterx.models.point_mae import position_mlp
from pointadapterx.models.sites import Stage
from pointadapterx.ops import knn
from pointadapterx.schema import Blocks, Many, Width


class Merging(nn.Module):
    """Halves the patches: the first half of the centres (FPS picks the coarse ones first) take in their neighbours."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, out)
        self.position = position_mlp(out)

    def forward(self, tokens: Tensor, centers: Tensor) -> Embedded:
        """Tokens (B, [1 +] G, C) and centres (B, G, 3) -> the next stage's, G / 2 patches of its width."""
        classes = tokens[:, : tokens.shape[1] - centers.shape[1]]
        patches = tokens[:, classes.shape[1] :]
        kept = centers[:, : centers.shape[1] // 2]
        nearest = knn(kept, centers, 2)[1]  # itself and one more
        near = patches.gather(1, nearest.flatten(1).unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        merged = torch.cat([classes, near.unflatten(1, nearest.shape[1:]).amax(dim=2)], dim=1)
        merged = self.widen(self.norm(merged))
        position = self.position(kept)
        return Embedded(merged, torch.cat([torch.zeros_like(merged[:, : classes.shape[1]]), position], dim=1), kept)


@BACKBONES.register("pyramid")
class Pyramid(Backbone):
    """Stages of blocks, with a :class:`Merging` between them."""

    class Options(Backbone.Options):
        name: Literal["pyramid"] = "pyramid"
        dim: list[Width] = [12, 24, 36, 48]  # noqa: RUF012
        depth: list[Blocks] = [1, 2, 1, 1]  # noqa: RUF012
        num_heads: list[Many] = [2, 2, 3, 3]  # noqa: RUF012
        num_groups: Width = 16
        group_size: Width = 8

        @property
        def least_points(self) -> int:
            return max(self.num_groups, self.group_size)

        class_token: bool = False

        @property
        def has_class_token(self) -> bool:
            return self.class_token

    modality = "points"
    position = "every_block"
    sizes: ClassVar = {}

    def __init__(self, options: Pyramid.Options) -> None:
        super().__init__()
        self.options = options
        self.has_class_token = options.class_token
        self.num_patches = options.num_groups // 2 ** (len(options.dim) - 1)
        self.patch_values = 3 * options.group_size
        self.grouping = Grouping(options.num_groups, options.group_size)
        self.patch_encoder = PatchEncoder(options.dim[0], 8)
        self.position_embed = position_mlp(options.dim[0])
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, options.dim[0])) if options.class_token else None
        self.levels = nn.ModuleList(
            make_blocks(depth, [options.drop_path] * depth, dim=dim, num_heads=heads)
            for dim, depth, heads in zip(options.dim, options.depth, options.num_heads, strict=True)
        )
        self.merging = nn.ModuleList(Merging(*pair) for pair in zip(options.dim, options.dim[1:], strict=False))
        self.norm = nn.LayerNorm(options.dim[-1])

    @property
    def stages(self) -> tuple[Stage, ...]:
        found, first = [], 0
        for number, (width, blocks) in enumerate(zip(self.options.dim, self.levels, strict=True)):
            assert isinstance(blocks, nn.ModuleList)
            transition = self.merging[number] if number < len(self.merging) else None
            patches = self.options.num_groups // 2**number
            found.append(Stage(number, first, width, patches, blocks, None, transition))
            first += len(blocks)
        return tuple(found)

    @property
    def patch_module(self) -> nn.Module:
        return self.patch_encoder

    @property
    def patch_projection(self) -> nn.Linear:
        return self.patch_encoder.projection

    @property
    def patch_scale_merges(self) -> bool:
        return False

    def position_layers(self) -> list[nn.Module]:
        return [self.position_embed]

    def class_parameters(self) -> dict[str, nn.Parameter]:
        return {} if self.cls_token is None else {"cls_token": self.cls_token}

    def patches(self, inputs: Tensor) -> Patches:
        groups = self.grouping(inputs)
        return Patches(self.patch_encoder(groups.neighborhood), groups.centers)

    def assemble(self, patches: Patches) -> Embedded:
        tokens, position = patches.tokens, self.position_embed(patches.centers)
        if self.cls_token is not None:
            first = self.cls_token.expand(len(tokens), -1, -1)
            tokens = torch.cat([first, tokens], dim=1)
            position = torch.cat([torch.zeros_like(first), position], dim=1)
        return Embedded(tokens, position, patches.centers)

    @staticmethod
    def translate(state: Mapping[str, Tensor]) -> Translated:
        return Translated({f"backbone.{name}": tensor for name, tensor in state.items()}, [], [])

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.class_parameters().values()
