"""What a backbone gives and what a head may rely on; a head never sees the backbone itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from pointadapterx.models.tokens import TokenSequence


class StageInfo(NamedTuple):
    """A stage, as heads see it.

    Attributes:
        width: token width C.
        num_patches: patch tokens G.
        blocks: numbers of its blocks in the whole backbone.
        grid: patches along a side, where they lie on a square grid in rows, else None.
    """

    width: int
    num_patches: int
    blocks: range
    grid: int | None


class FeatureInfo(NamedTuple):
    """What a backbone's :class:`Features` will hold, known before any input.

    Attributes:
        stages: in their order; the last one's tokens are ``Features.sequence``.
        has_class_token: whether there is a class token.
        coordinates: of a patch's centre, 3 for clouds; 0 where ``Features.centers`` is None.
    """

    stages: tuple[StageInfo, ...]
    has_class_token: bool
    coordinates: int

    @property
    def width(self) -> int:
        """Token width C of the last stage."""
        return self.stages[-1].width

    @property
    def num_patches(self) -> int:
        """Patch tokens G of the last stage."""
        return self.stages[-1].num_patches

    @property
    def depth(self) -> int:
        """Number of blocks of all stages."""
        return self.stages[-1].blocks.stop

    def stage_of(self, block: int) -> StageInfo:
        """The stage that a block belongs to, by the block's number."""
        return next(stage for stage in self.stages if block in stage.blocks)


class BlockTokens(NamedTuple):
    """Tokens behind one block.

    Attributes:
        sequence: (B, [1 +] P + G, C); normalised by the final norm in the last stage, as they are in the others.
        centers: (B, G, 3), where patches have centres, else None.
    """

    sequence: TokenSequence
    centers: Tensor | None


class Features(NamedTuple):
    """Output of a backbone.

    Attributes:
        sequence: normalised tokens, see :class:`~pointadapterx.models.tokens.TokenSequence`.
        losses: auxiliary losses of the method, one scalar a block that has one.
        centers: (B, G, 3) centres of the patches in the frame of the input; None where there are none, and where
            they were not kept.
        intermediates: tokens behind the blocks that were asked for, by the block's number.
        inputs: the points (B, N, 3) or images that were given, for heads that answer for each point; None where only
            what the frozen part makes of them was given.
        condition: what else a head is given of the samples, such as a category (B, ...); in training also targets, for
            a head whose loss needs them.
    """

    sequence: TokenSequence
    losses: list[Tensor]
    centers: Tensor | None = None
    intermediates: Mapping[int, BlockTokens] = {}
    inputs: Tensor | None = None
    condition: Any = None

    @property
    def class_token(self) -> Tensor | None:
        """(B, C), or None in a backbone without one."""
        return self.sequence.cls if self.sequence.has_class_token else None


class Head(nn.Module, ABC):
    """What an adapted model asks of its head.

    Attributes:
        blocks: numbers of the blocks whose tokens :meth:`forward` reads in ``Features.intermediates``.
        width: of what :meth:`pool` returns.
    """

    blocks: tuple[int, ...] = ()
    width: int

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        raise NotImplementedError(f"{type(self).__name__} must say how many classes it has")

    @property
    def hidden_width(self) -> int:
        """Width H of what the last layer reads."""
        raise NotImplementedError(f"{type(self).__name__} must say what its last layer reads")

    def published_name(self, name: str) -> str | None:
        """Its own name of a tensor in a published file, such as ``layers.0.weight``; None of all others.

        Args:
            name: in the file, without wrappers such as ``module.``; what the backbone's key map takes for part of a
                classification head comes as ``mlp.0.weight``.
        """
        return None

    def prompt_pool_parameters(self) -> int:
        """Weights that read prompts alone, which a plain backbone does not have."""
        return 0

    def pool(self, features: Features) -> Tensor:
        """What of the features is read, (B, width)."""
        raise NotImplementedError(f"{type(self).__name__} must pool its features")

    def classify(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Output of :meth:`pool` -> what the last layer reads (B, H), and logits (B, num_classes)."""
        raise NotImplementedError(f"{type(self).__name__} must classify")

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """Features -> logits."""
