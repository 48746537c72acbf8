"""Linear probing: the backbone is a fixed feature extractor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from torch import Tensor, nn

from pointadapterx.models.backbone import Backbone, Features
from pointadapterx.models.frozen import Frozen, Sequence
from pointadapterx.models.tokens import TokenSequence
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

    def run(self, backbone: Backbone, inputs: Tensor | Frozen) -> Features:
        """The plain backbone, or its output of before."""
        if isinstance(inputs, Sequence):
            return Features(TokenSequence(inputs.tokens, backbone.num_patches), [])
        return super().run(backbone, inputs)

    def precompute(self, backbone: Backbone, inputs: Tensor) -> Sequence:
        """The whole backbone's output."""
        return Sequence(super().run(backbone, inputs).sequence.tokens)

    def frozen_state(self, backbone: Backbone) -> Mapping[str, Tensor]:
        """All of the backbone."""
        return backbone.state_dict()

    merge = Method.merge_nothing
