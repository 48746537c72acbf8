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
    """The outputs of one block that a method parallel to the frozen backbone reads; they have no gradient.

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
