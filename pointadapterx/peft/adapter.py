"""Adapter: a bottleneck after the FFN (Houlsby et al., arXiv 1902.00751)."""

from __future__ import annotations

from typing import Literal

from pointadapterx.peft.base import METHODS
from pointadapterx.peft.parts.per_block import PerBlockMethod


@METHODS.register("adapter")
class Adapter(PerBlockMethod):
    """y = h + f + s · up(GELU(down(f))), f = mlp(norm2(h)), in every block.

    Houlsby et al. have another after attention; this is only the one after the FFN, as in NOAH and Adapter-X:
    0.15 M parameters without the head on ViT-B with r = 8, 1.19 M with r = 64.
    """

    class Options(PerBlockMethod.Options):
        """``method: {name: adapter, ...}``, see :class:`~.PerBlockMethod.Options`."""

        name: Literal["adapter"] = "adapter"

    kind = "adapter"
