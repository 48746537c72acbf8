"""DAPT: dynamic adapters meet prompt tuning (arXiv 2403.01439), the published baseline of DAPT-X."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.models.block import FfnUpdate
from pointadapterx.models.host import Host
from pointadapterx.models.sites import LAYERS, BlockSites
from pointadapterx.peft.base import METHODS, Method
from pointadapterx.peft.parts.bottlenecks import DynamicAdapter
from pointadapterx.peft.parts.scale_shift import ScaleShift
from pointadapterx.schema import Rate, Width


class DaptBlock(nn.Module):
    """What DAPT adds to one block: an adapter, a TFTS behind each of its layers, and one on the prompt.

    Args:
        block: the backbone's block.
        options: see :class:`Dapt.Options`.
    """

    def __init__(self, block: BlockSites, options: Dapt.Options) -> None:
        super().__init__()
        self.adapter = DynamicAdapter(block.width, options.rank, options.dropout, options.scale_bias)
        self.tfts = nn.ModuleDict()
        for site in block.layers():
            self.tfts[site.name] = ScaleShift(site.width, options.tfts_std)
        if options.prompts:
            self.tfts["prompt"] = ScaleShift(block.width, options.tfts_std)

    def forward(self, ffn_input: Tensor) -> FfnUpdate:
        """u (B, L, C) -> the adapter's output and the prompt TFTS(mean over tokens of GELU(a))."""
        update = self.adapter(ffn_input)
        if "prompt" not in self.tfts:
            return FfnUpdate(update)
        return FfnUpdate(update, self.tfts["prompt"](F.gelu(update).mean(dim=1, keepdim=True)))


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
            scale_bias: initial bias of the adapters' token scale; None: drawn by torch. DAPT's code starts it at 0.
        """

        name: Literal["dapt"] = "dapt"
        rank: Width = 64
        dropout: Rate = 0.1
        prompts: bool = True
        tfts_std: float = Field(0.0, ge=0.0)
        scale_bias: float | None = None

        @property
        def makes_prompts(self) -> bool:
            """Whether each block generates one prompt (the option ``prompts``)."""
            return self.prompts

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """The FFN for the adapter, every norm and linear layer for the TFTS."""
            return (*LAYERS, "ffn")

    def __init__(self, options: Dapt.Options) -> None:
        super().__init__(options)
        self.options: Dapt.Options = options

    def attach(self, backbone: Host) -> None:
        """Creates one :class:`DaptBlock` a block, and TFTS after the patch encoder and the final norm."""
        self.blocks = nn.ModuleList()
        for block in backbone.every_block():
            added = DaptBlock(block, self.options)
            for site in block.layers():
                self.tap(site, added.tfts[site.name])
            self.blocks.append(added)
        patch, norm = backbone.site("patch"), backbone.site("final norm")
        self.patch_tfts = ScaleShift(patch.width, self.options.tfts_std)
        self.norm_tfts = ScaleShift(norm.width, self.options.tfts_std)
        self.tap(patch, self.patch_tfts)
        self.tap(norm, self.norm_tfts)

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> FfnUpdate:
        """The block's own adapter, parallel to the FFN, and its prompt."""
        return self.blocks[index](ffn_input)
