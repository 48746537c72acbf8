"""Linear probing: the backbone is a fixed feature extractor."""

from __future__ import annotations

from typing import Literal

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

    merge = Method.merge_nothing
