"""AdaptFormer: a scaled bottleneck beside the FFN (arXiv 2205.13535)."""

from __future__ import annotations

from typing import Literal

from pointadapterx.peft.base import METHODS
from pointadapterx.peft.parts.per_block import BlockAdapters


@METHODS.register("adaptformer")
class AdaptFormer(BlockAdapters):
    """y = h + mlp(u) + s · up(ReLU(down(u))), u = norm2(h), in every block (equations 4 and 5).

    1.19 M parameters without the head on ViT-B with r = 64.
    """

    class Options(BlockAdapters.Options):
        """``method: {name: adaptformer, ...}``, see :class:`~pointadapterx.peft.parts.per_block.BlockAdapters.Options`.

        ``scale`` is 0.1 in the paper; VTAB-1K chooses it on its validation part.
        """

        name: Literal["adaptformer"] = "adaptformer"
        scale: float = 0.1

    kind = "adaptformer"
