"""What a backbone asks of a method during a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from pointadapterx.models.block import FfnUpdate


class Additions(Protocol):
    """What a backbone asks during a pass: how a method acts at the sites ``block`` and ``ffn``.

    At every other site a module of the method acts as a hook, of which the backbone knows nothing.
    """

    def enter_stage(self, number: int, centers: Tensor | None) -> None:
        """Called before the first block of each stage with the centres (B, G, 3) of its patches, if they have any."""
        ...

    def leave_stage(self, tokens: Tensor, lead: Callable[[Tensor], Tensor]) -> None:
        """Called behind the last block of a stage that another follows.

        Args:
            tokens: (B, [1 +] G, C), without prompts.
            lead: the frozen way to the next stage, tokens to those of it.
        """
        ...

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) on their way into a block, to which prompts may be added."""
        ...

    def after_block(self, index: int, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) on their way out of a block."""
        ...

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> FfnUpdate | None:
        """What to add to a block, given input and output of its FFN, (B, L, C) each."""
        ...

    def tapped(self, module: nn.Module, output: Tensor) -> Tensor:
        """What the method makes of the output of a module that was not run in this pass."""
        ...


class Nothing:
    """A plain pass: nothing is added."""

    def enter_stage(self, number: int, centers: Tensor | None) -> None:
        """Nothing."""

    def leave_stage(self, tokens: Tensor, lead: Callable[[Tensor], Tensor]) -> None:
        """Nothing."""

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        """The tokens as they are."""
        return tokens

    def after_block(self, index: int, tokens: Tensor) -> Tensor:
        """The tokens as they are."""
        return tokens

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> None:
        """No update, prompt or loss."""

    def tapped(self, module: nn.Module, output: Tensor) -> Tensor:
        """The output as it is."""
        return output


PLAIN = Nothing()


class Recorded(NamedTuple):
    """The outputs of one block that a method parallel to the frozen backbone reads.

    They have no gradient, but where the method has changed the tokens on their way into the block, see :class:`Rider`.

    Attributes:
        attention: output of the site ``attention``, (B, [1 +] G, C).
        ffn: output of the site ``ffn``, the same shape.
        tokens: output of the block, the same shape.
        centers: (B, G, 3) of the patches, where they have centres, else None.
        lead: behind the last block of a stage that another follows, the frozen way there: tokens (B, [1 +] G, C) to
            those of the next stage.
    """

    attention: Tensor
    ffn: Tensor
    tokens: Tensor
    centers: Tensor | None = None
    lead: Callable[[Tensor], Tensor] | None = None


class Rider(Protocol):
    """What runs parallel to the frozen backbone, and may join its tokens."""

    @property
    def first(self) -> int | None:
        """Number of the first block that reads changed tokens, and so is run with autograd; None: none is."""
        ...

    def hand_over(self) -> Tensor:
        """The tokens (B, [1 +] G, C) of the block that was read last as the next one gets them."""
        ...


class Lead:
    """Tokens of one stage to those of the next, (B, [1 +] G, C) each, whose positions are added.

    Args:
        transition: tokens and centres -> :class:`~pointadapterx.models.backbone.Embedded`.
        centers: (B, G, 3) of the patches, where they have centres, else None.
    """

    def __init__(self, transition: nn.Module, centers: Tensor | None) -> None:
        self.transition = transition
        self.centers = centers

    def __call__(self, tokens: Tensor) -> Tensor:
        """Those of the next stage."""
        found: Tensor = self.transition(tokens, self.centers).tokens
        return found
