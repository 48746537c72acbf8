"""Full fine-tuning: every parameter is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn

from pointadapterx.models.host import Host
from pointadapterx.peft.base import METHODS, Method
from pointadapterx.schema import Section


@METHODS.register("full")
class Full(Method):
    """Trains backbone and head: 22.1 M parameters for Point-MAE, the reference of every comparison."""

    class Options(Method.Options):
        """``method: {name: full}``, without further keys."""

        name: Literal["full"] = "full"

    merge = Method.merge_nothing

    trains_backbone = True

    def __init__(self, options: Section) -> None:
        super().__init__(options)

    def trained_backbone_parameters(self, backbone: Host) -> Iterator[nn.Parameter]:
        """Every parameter of the backbone."""
        yield from backbone.parameters()
