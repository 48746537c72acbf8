"""SSF: scales and shifts the output of every layer, and can be merged into the layers (arXiv 2210.08823)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from pointadapterx.errors import MergeError
from pointadapterx.models.host import Host
from pointadapterx.models.sites import LAYERS
from pointadapterx.peft.base import METHODS, Method
from pointadapterx.peft.parts.scale_shift import ScaleShift


@METHODS.register("ssf")
class Ssf(Method):
    """y = γ ⊙ x + β (equation 4) behind patch encoder, final norm, and every norm and linear layer of the blocks.

    Trains γ and β, class token and its position where they are not pre-trained, and the head: 205,824 without it
    on ViT-B. Extra cost: one product and sum per feature of each of these layers while training, nothing once merged.
    """

    class Options(Method.Options):
        """``method: {name: ssf, ...}``.

        Attributes:
            std: spread of the initial γ (around 1) and β (around 0); the published code draws them with 0.02, the
                default 0 starts at the plain backbone.
        """

        name: Literal["ssf"] = "ssf"
        std: float = Field(0.0, ge=0.0)

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """Every norm and linear layer."""
            return LAYERS

    def __init__(self, options: Ssf.Options) -> None:
        super().__init__(options)
        self.options: Ssf.Options = options

    def attach(self, backbone: Host) -> None:
        """Creates one γ and β a layer and places them behind it."""
        std = self.options.std
        patch, norm = backbone.site("patch"), backbone.site("final norm")
        self.patch = ScaleShift(patch.width, std)
        self.norm = ScaleShift(norm.width, std)
        self.tap(patch, self.patch)
        self.tap(norm, self.norm)
        self.blocks = nn.ModuleList()
        for block in backbone.every_block():
            layers = nn.ModuleDict({site.name: ScaleShift(site.width, std) for site in block.layers()})
            for site in block.layers():
                self.tap(site, layers[site.name])
            self.blocks.append(layers)

    def merge(self, backbone: Host) -> None:
        """γ ⊙ (W x + b) + β = (γ ⊙ W) x + γ ⊙ b + β; a layer without a bias gets one.

        Raises:
            MergeError: for a negative γ behind a patch encoder that ends in a maximum, which it would turn around.
        """
        if not backbone.patch_scale_merges and bool((self.patch.gamma < 0).any()):
            raise MergeError(
                f"ssf scales {int((self.patch.gamma < 0).sum())} features of the patch encoder by a negative number; "
                "it ends in a maximum over points, so that cannot be merged"
            )
        merge_into(backbone.patch_projection, self.patch)
        merge_into(backbone.norm, self.norm)
        for block, layers in zip(backbone.every_block(), self.blocks, strict=True):
            assert isinstance(layers, nn.ModuleDict)
            for site in block.layers():
                for layer, features in site.pieces():
                    merge_into(layer, layers[site.name], features)


@torch.no_grad()
def merge_into(layer: nn.Module, scale: nn.Module, features: slice = slice(None)) -> None:
    """Folds γ and β into a norm, a linear layer or a convolution, whose output features they scale and shift.

    Args:
        layer: of the backbone.
        scale: its γ and β.
        features: those of them that are the layer's.

    Raises:
        MergeError: for a layer of another kind.
    """
    if not isinstance(layer, nn.Linear | nn.LayerNorm | nn.Conv2d):
        raise MergeError(
            f"ssf cannot be merged into a {type(layer).__name__}; only into linear layers, convolutions and LayerNorm"
        )
    assert isinstance(scale, ScaleShift)
    gamma, beta = scale.gamma[features], scale.beta[features]
    layer.weight *= gamma.view(-1, *[1] * (layer.weight.ndim - 1))
    if layer.bias is None:
        layer.bias = nn.Parameter(beta.clone(), requires_grad=False)
    else:
        layer.bias.mul_(gamma).add_(beta)
