"""Adapter-X: one shared mixture of bottlenecks behind the FFNs (arXiv 2406.03051, table 1)."""

from __future__ import annotations

from typing import Literal

from pointadapterx.peft.base import METHODS
from pointadapterx.peft.parts.shared_mixture import SharedMixtureMethod


@METHODS.register("adapter_x")
class AdapterX(SharedMixtureMethod):
    """The mixture of ``adapter``: 167,448 parameters without the head on ViT-B with r = 64, 0.20 % (see docs)."""

    class Options(SharedMixtureMethod.Options):
        """``method: {name: adapter_x, ...}``: the keys of every shared mixture."""

        name: Literal["adapter_x"] = "adapter_x"

    kind = "adapter"
