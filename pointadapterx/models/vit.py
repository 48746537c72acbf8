"""ViT: images through the same blocks as point clouds (arXiv 2010.11929), with the names of timm's checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.errors import CheckpointError
from pointadapterx.models.backbone import BACKBONES, Backbone, Embedded, make_blocks
from pointadapterx.models.block import drop_path_schedule
from pointadapterx.models.checkpoint_keys import translate_vit
from pointadapterx.models.frozen import Patches
from pointadapterx.schema import Blocks, Many, Width, null_if


class PatchEmbedding(nn.Module):
    """Cuts an image into squares and projects each to a token.

    Args:
        channels: of the image.
        patch_size: side of a square in pixels.
        dim: token width C.
    """

    def __init__(self, channels: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, S, S) -> (B, G, C), row by row."""
        return self.proj(images).flatten(2).transpose(1, 2)


@BACKBONES.register("vit")
class ViT(Backbone):
    """The Vision Transformer, 85.8 M parameters at its published base size.

    Args:
        options: sizes, see :class:`ViT.Options`.
    """

    class Options(Backbone.Options):
        """``backbone:`` of a config; defaults are ViT-B/16 at 224².

        Attributes:
            layer_scale: whether attention and FFN end with a scale of each feature (DINOv2, DeiT III); null: no.
        """

        name: Literal["vit"] = "vit"
        dim: Width = 768
        depth: Blocks = 12
        num_heads: Many = 12
        patch_size: Width = 16
        image_size: Width = 224
        channels: Literal[1, 3] = 3
        layer_scale: Annotated[bool | None, null_if(False)] = None
        has_grid: ClassVar[bool] = True

        def input_shape(self, num_points: int | None) -> tuple[int, ...]:
            """(channels, S, S)."""
            return self.channels, self.image_size, self.image_size

        def problems(self) -> Iterator[tuple[str, str]]:
            """Also reports an image size that the patch size does not divide."""
            yield from super().problems()
            if self.image_size % self.patch_size != 0:
                yield (
                    "patch_size",
                    f"{self.patch_size} does not divide image_size={self.image_size}; choose a divisor",
                )

    modality = "images"
    translate = staticmethod(translate_vit)
    sizes: ClassVar = {
        "dim": ("norm.weight", 0),
        "patch_size": ("patch_embed.proj.weight", 3),
        "channels": ("patch_embed.proj.weight", 1),
    }

    def __init__(self, options: ViT.Options) -> None:
        super().__init__()
        self.dim = options.dim
        self.image_shape = (options.channels, options.image_size, options.image_size)
        side = options.image_size // options.patch_size
        self.grid = side
        self.num_patches = side**2
        self.patch_values = options.channels * options.patch_size**2
        self.position = "input"
        self.patch_embed = PatchEmbedding(options.channels, options.patch_size, options.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, options.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.num_patches, options.dim))
        self.blocks = make_blocks(
            options.depth,
            drop_path_schedule(options.drop_path, options.depth),
            dim=options.dim,
            num_heads=options.num_heads,
            qkv_bias=True,
            norm_eps=1e-6,
            layer_scale=options.layer_scale is True,
        )
        self.norm = nn.LayerNorm(options.dim, eps=1e-6)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)

    @property
    def patch_module(self) -> nn.Module:
        """The projection of the patches."""
        return self.patch_embed

    @property
    def patch_projection(self) -> nn.Conv2d:
        """The convolution that turns pixels into patch tokens."""
        return self.patch_embed.proj

    def class_parameters(self) -> dict[str, nn.Parameter]:
        """None: the class token is pre-trained, like every other parameter."""
        return {}

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """The class token and the position embeddings."""
        yield self.cls_token
        yield self.pos_embed

    def patches(self, inputs: Tensor) -> Patches:
        """Images (B, channels, S, S) float32 -> patch tokens (B, G, C).

        Raises:
            ValueError: for images of another size.
        """
        if tuple(inputs.shape[1:]) != self.image_shape:
            raise ValueError(f"images have shape {tuple(inputs.shape[1:])}, the backbone needs {self.image_shape}")
        tokens = self.patch_embed(inputs)
        return Patches(tokens, tokens.new_empty(*tokens.shape[:2], 0))

    def assemble(self, patches: Patches) -> Embedded:
        """Patches -> tokens and positions (B, 1 + G, C)."""
        tokens = patches.tokens
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return Embedded(tokens, self.pos_embed.expand(len(tokens), -1, -1))

    @classmethod
    def options_in(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Also whether there is LayerScale."""
        found = super().options_in(tensors)
        if "depth" in found:
            found["layer_scale"] = any(name.endswith((".ls1.gamma", ".ls2.gamma")) for name in tensors)
        return found

    def fit_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Position embeddings of another image or patch size, interpolated to this one's grid.

        Raises:
            CheckpointError: if they are of no square image.
        """
        if name != "pos_embed" or tensor.ndim != 3 or tensor.shape[1] == self.pos_embed.shape[1]:
            return tensor
        return interpolate_positions(tensor, math.isqrt(self.num_patches))


def interpolate_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings for another grid of patches: bicubic with antialiasing, the class token's kept.

    Args:
        positions: (1, 1 + g², C), CLS first.
        grid: patches along a side of the new image.

    Returns:
        (1, 1 + grid², C).

    Raises:
        CheckpointError: if the positions after the first are no square.
    """
    side = math.isqrt(positions.shape[1] - 1)
    if side**2 != positions.shape[1] - 1:
        raise CheckpointError(
            f"pos_embed has {positions.shape[1]} positions, which are not one class token and a square grid; "
            "only square images and a single class token are supported"
        )
    first, rest = positions[:, :1], positions[:, 1:]
    field = rest.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(field, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, resized.flatten(2).transpose(1, 2).to(first.dtype)], dim=1)
