"""AdaptFormer: a scaled bottleneck parallel to the FFN (arXiv 2205.13535)."""

from __future__ import annotations

from typing import Literal

from pointadapterx.peft.base import METHODS
from pointadapterx.peft.parts.per_block import PerBlockMethod


@METHODS.register("adaptformer")
class AdaptFormer(PerBlockMethod):
    """y = h + mlp(u) + s · up(ReLU(down(u))), u = norm2(h), in every block (equations 4 and 5).

    1.19 M parameters without the head on ViT-B with r = 64.
    """

    class Options(PerBlockMethod.Options):
        """``method: {name: adaptformer, ...}``, see :class:`~.PerBlockMethod.Options`.

        ``scale`` is 0.1 in the paper; for VTAB-1K it is chosen on the validation part.
        """

        name: Literal["adaptformer"] = "adaptformer"
        scale: float = 0.1

    kind = "adaptformer"
