"""AdaptFormer-X: one shared mixture of AdaptFormer's bottlenecks beside the FFNs (arXiv 2406.03051, table 1)."""

from __future__ import annotations

from typing import Literal

from pointadapterx.peft.base import METHODS
from pointadapterx.peft.parts.shared_mixture import SharedMixtureMethod


@METHODS.register("adaptformer_x")
class AdaptFormerX(SharedMixtureMethod):
    """The mixture of ``adaptformer``: 167,448 parameters without the head on ViT-B with r = 64, 0.20 % (see docs)."""

    class Options(SharedMixtureMethod.Options):
        """``method: {name: adaptformer_x, ...}``; ``scale`` as :class:`~pointadapterx.peft.adaptformer.AdaptFormer`."""

        name: Literal["adaptformer_x"] = "adaptformer_x"
        scale: float = 0.1

    kind = "adaptformer"
