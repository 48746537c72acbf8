"""BitFit: trains only biases (arXiv 2106.10199)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn

from pointadapterx.models.host import Host
from pointadapterx.peft.base import METHODS, Method

JOINT = ("q_bias", "v_bias", "in_proj_bias")
"""Biases of joint projections that the attention of timm and of torch has apart from the layer."""


@METHODS.register("bitfit")
class BitFit(Method):
    """Trains the biases of the transformer: of every linear layer and norm of the blocks, and of the final norm.

    Also trains class token and its position where they are not pre-trained, and the head. Patch encoder, positions and
    what leads from stage to stage stay frozen. 0.10 M parameters on ViT-B; Point-MAE's qkv layers have no bias. Adds
    nothing to the forward pass.
    """

    class Options(Method.Options):
        """``method: {name: bitfit}``, without further keys."""

        name: Literal["bitfit"] = "bitfit"

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """The whole block."""
            return ("block",)

    merge = Method.merge_nothing

    def trained_backbone_parameters(self, backbone: Host) -> Iterator[nn.Parameter]:
        """The biases, class token and its position."""
        blocks = [block.site("block").module for block in backbone.every_block()]
        for part in (*blocks, backbone.norm):
            for module in part.modules():
                if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                    yield module.bias
                own = dict(module.named_parameters(recurse=False))
                yield from (own[name] for name in JOINT if name in own)
        yield from super().trained_backbone_parameters(backbone)
