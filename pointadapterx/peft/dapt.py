"""DAPT: dynamic adapters meet prompt tuning (arXiv 2403.01439), the published baseline of DAPT-X."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.models.backbone import Backbone
from pointadapterx.models.block import Adaptation, Block
from pointadapterx.peft.base import METHODS, Method, ScaleShift
from pointadapterx.peft.parts.bottlenecks import DynamicAdapter
from pointadapterx.schema import Rate, Width


class DaptBlock(nn.Module):
    """What DAPT adds to one block: an adapter, six TFTS at the leaves, and one on the prompt.

    Args:
        block: the backbone's block, whose leaves the TFTS are for.
        dim: token width C.
        options: see :class:`Dapt.Options`.
    """

    def __init__(self, block: Block, dim: int, options: Dapt.Options) -> None:
        super().__init__()
        self.adapter = DynamicAdapter(dim, options.rank, options.dropout, options.scale_bias)
        self.tfts = nn.ModuleDict()
        for name, (_, width) in block.leaves().items():
            self.tfts[name] = ScaleShift(width, options.tfts_std)
        if options.prompts:
            self.tfts["prompt"] = ScaleShift(dim, options.tfts_std)

    def forward(self, ffn_input: Tensor) -> Adaptation:
        """u (B, L, C) -> the adapter's output and the prompt TFTS(mean over tokens of GELU(a))."""
        update = self.adapter(ffn_input)
        if "prompt" not in self.tfts:
            return Adaptation(update)
        return Adaptation(update, self.tfts["prompt"](F.gelu(update).mean(dim=1, keepdim=True)))


@METHODS.register("dapt")
class Dapt(Method):
    """Dynamic adapter, TFTS and generated prompt in every block: 1.09 M parameters with the head.

    Trains: adapters, TFTS, class token and its position, head. Extra cost: the adapters' products
    (about 3 % of the blocks' multiply-adds at rank 64) and one more token after each block.
    """

    class Options(Method.Options):
        """``method: {name: dapt, ...}``.

        Attributes:
            rank: bottleneck width (published: 64).
            dropout: dropout inside the adapter.
            prompts: whether each block generates a prompt token.
            tfts_std: spread of the initial γ and β; the published code draws them with 0.02, the default 0
                starts at the plain backbone.
            scale_bias: initial bias of the token scale, see
            :class:`~pointadapterx.peft.parts.bottlenecks.DynamicAdapter`.
        """

        name: Literal["dapt"] = "dapt"
        rank: Width = 64
        dropout: Rate = 0.1
        prompts: bool = True
        tfts_std: float = Field(0.0, ge=0.0)
        scale_bias: float | None = None

        @property
        def makes_prompts(self) -> bool:
            """One prompt a block."""
            return self.prompts

    def __init__(self, options: Dapt.Options) -> None:
        super().__init__(options)
        self.options: Dapt.Options = options

    def attach(self, backbone: Backbone) -> None:
        """Creates one :class:`DaptBlock` a block, and TFTS after the patch encoder and the final norm."""
        self.blocks = nn.ModuleList()
        for block in backbone.blocks:
            assert isinstance(block, Block)
            added = DaptBlock(block, backbone.dim, self.options)
            for name, (leaf, _) in block.leaves().items():
                self.tap(leaf, added.tfts[name])
            self.blocks.append(added)
        self.patch_tfts = ScaleShift(backbone.dim, self.options.tfts_std)
        self.norm_tfts = ScaleShift(backbone.dim, self.options.tfts_std)
        self.tap(backbone.patch_module, self.patch_tfts)
        self.tap(backbone.norm, self.norm_tfts)

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> Adaptation:
        """The block's own adapter, parallel to the FFN, and its prompt."""
        return self.blocks[index](ffn_input)
