"""Linear probing: the backbone is a fixed feature extractor."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from torch import Tensor, nn

from pointadapterx.models.backbone import Backbone
from pointadapterx.models.features import Features
from pointadapterx.models.frozen import FinalTokens, Frozen
from pointadapterx.models.host import Host
from pointadapterx.peft.base import METHODS, Method


@METHODS.register("linear")
class Linear(Method):
    """Trains only the head; with ``head.hidden: []`` it is a single linear layer.

    The class token is not trained: a self-supervised checkpoint has none, so it stays as initialised and
    is stored in the adapter file.
    """

    class Options(Method.Options):
        """``method: {name: linear}``, without further keys."""

        name: Literal["linear"] = "linear"

    def trained_backbone_parameters(self, backbone: Host) -> Iterator[nn.Parameter]:
        """No parameter of the backbone."""
        yield from ()

    def run(self, backbone: Backbone, inputs: Tensor | Frozen, keep: Collection[int] = ()) -> Features:
        """Runs the plain backbone, or takes its precomputed output."""
        if isinstance(inputs, FinalTokens):
            return Features(backbone.sequence(backbone.stages[-1], inputs.tokens), [])
        return super().run(backbone, inputs, keep)

    def precompute(self, backbone: Backbone, inputs: Tensor, keep: Collection[int] = ()) -> Frozen:
        """The whole backbone's output, unless tokens of other blocks are wanted too."""
        if keep:
            return super().precompute(backbone, inputs, keep)
        return FinalTokens(super().run(backbone, inputs).sequence.tokens)

    def frozen_state(self, backbone: Backbone) -> Mapping[str, Tensor]:
        """Every parameter and buffer of the backbone."""
        return backbone.state_dict()

    merge = Method.merge_nothing
