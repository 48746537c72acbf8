"""Adapter: a bottleneck behind the FFN (Houlsby et al., arXiv 1902.00751)."""

from __future__ import annotations

from typing import Literal

from pointadapterx.peft.base import METHODS
from pointadapterx.peft.parts.per_block import PerBlockMethod


@METHODS.register("adapter")
class Adapter(PerBlockMethod):
    """y = h + f + s · up(GELU(down(f))), f = mlp(norm2(h)), in every block.

    Houlsby has a second one behind attention; here it is the one behind the FFN, NOAH's and Adapter-X's baseline:
    0.15 M parameters without the head on ViT-B with r = 8, 1.19 M with r = 64.
    """

    class Options(PerBlockMethod.Options):
        """``method: {name: adapter, ...}``, see :class:`~.PerBlockMethod.Options`."""

        name: Literal["adapter"] = "adapter"

    kind = "adapter"
