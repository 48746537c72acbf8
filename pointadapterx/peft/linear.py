"""Linear probing: the backbone is a fixed feature extractor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import nn

from pointadapterx.models.backbone import Backbone
from pointadapterx.peft.base import METHODS, Method


@METHODS.register("linear")
class Linear(Method):
    """Trains the head alone, whichever ``head.hidden`` makes it; ``head.hidden: []`` is one linear layer.

    The class token is not trained: a self-supervised checkpoint has none, so it stays as initialised and
    is stored in the adapter file.
    """

    class Options(Method.Options):
        """``method: {name: linear}``."""

        name: Literal["linear"] = "linear"

    def trained_backbone_parameters(self, backbone: Backbone) -> Iterator[nn.Parameter]:
        """None."""
        yield from ()

    merge = Method.merge_nothing
