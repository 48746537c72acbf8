"""SSF: scale and shift the features behind every layer, which can be merged into it (arXiv 2210.08823)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import nn

from pointadapterx.models.backbone import Backbone
from pointadapterx.models.block import Block
from pointadapterx.peft.base import METHODS, Method, ScaleShift, tap


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

    def __init__(self, options: Ssf.Options) -> None:
        super().__init__(options)
        self.options: Ssf.Options = options

    def attach(self, backbone: Backbone) -> None:
        """Creates one γ and β a layer and hooks them behind it."""
        std = self.options.std
        self.patch = ScaleShift(backbone.dim, std)
        self.norm = ScaleShift(backbone.dim, std)
        tap(backbone.patch_module, self.patch)
        tap(backbone.norm, self.norm)
        self.blocks = nn.ModuleList()
        for block in backbone.blocks:
            assert isinstance(block, Block)
            leaves = block.leaves()
            layers = nn.ModuleDict({name: ScaleShift(width, std) for name, (_, width) in leaves.items()})
            for name, (leaf, _) in leaves.items():
                tap(leaf, layers[name])
            self.blocks.append(layers)

    def trained_backbone_parameters(self, backbone: Backbone) -> Iterator[nn.Parameter]:
        """Class token and its position."""
        yield from backbone.class_parameters().values()
