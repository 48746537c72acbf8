"""Late injection: what a method adds joins the tokens from a block K on, and no gradient enters earlier blocks.

Nothing trained may lie before block K then: neither the class token nor a norm of the blocks before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from pointadapterx.models.additions import Nothing
from pointadapterx.models.backbone import Backbone, Embedded
from pointadapterx.models.block import FfnUpdate
from pointadapterx.models.features import Features
from pointadapterx.models.frozen import EarlyBlocks, Patches
from pointadapterx.models.host import Host
from pointadapterx.models.tokens import insert_after_cls
from pointadapterx.peft.base import Method


class LateClassToken(nn.Module):
    """Trains a class token that is not pre-trained, and its position, from block K on; both start as zero.

    τ is added to the class token on its way into block K, π to its position there and before every later block (where
    the backbone adds positions once, at K alone).

    Args:
        width: token width C.
        first: K.
        position: of the backbone, ``"every_block"`` or ``"input"``.
    """

    def __init__(self, width: int, first: int, position: str) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1, width))
        self.first = first
        self.repeated = position == "every_block"

    def forward(self, index: int, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) on their way into block ``index``, CLS first."""
        if index < self.first or (index > self.first and not self.repeated):
            return tokens
        added = self.position + self.token if index == self.first else self.position
        return torch.cat([tokens[:, :1] + added, tokens[:, 1:]], dim=1)


def late_class_token(backbone: Host, first: int) -> LateClassToken | None:
    """For a backbone of one stage, or the last of several; None where the class token is pre-trained, or missing."""
    if not backbone.class_parameters():
        return None
    return LateClassToken(backbone.stages[-1].width, first, backbone.position)


class EarlyPass(Nothing):
    """Keeps what the blocks of a plain pass give a method to read.

    Attributes:
        entering: tokens on their way into each block, (B, L, C).
        ffn: input and output of each block's FFN, the same.
        leaving: tokens on their way out of the last block; None before the first.
    """

    def __init__(self) -> None:
        self.entering: list[Tensor] = []
        self.ffn: list[tuple[Tensor, Tensor]] = []
        self.leaving: Tensor | None = None

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        """Keeps them."""
        self.entering.append(tokens)
        return tokens

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> None:
        """Keeps both."""
        self.ffn.append((ffn_input, ffn_output))

    def after_block(self, index: int, tokens: Tensor) -> Tensor:
        """Keeps them."""
        self.leaving = tokens
        return tokens


def early_blocks(
    backbone: Backbone, inputs: Tensor, first: int, read: Callable[[EarlyPass], list[Tensor]]
) -> EarlyBlocks:
    """What the blocks before the first injection compute, of a backbone of one stage.

    Args:
        backbone: to which nothing is added before block ``first``.
        inputs: of the task.
        first: number K of the first block that anything is added to.
        read: chooses the rows of ``EarlyBlocks.read``, (B, L, C) each, from what the blocks give.
    """
    early = EarlyPass()
    with torch.no_grad():
        embedded = backbone.embed(inputs)
        backbone.run_blocks(embedded, early, (), range(first))
        tokens = embedded.tokens if early.leaving is None else early.leaving
        rows = read(early)
    stored = torch.stack(rows, dim=1) if rows else tokens.new_empty(len(tokens), 0, 1, tokens.shape[2])
    centers = embedded.centers
    return EarlyBlocks(stored, tokens, tokens.new_empty(*tokens.shape[:2], 0) if centers is None else centers)


def run_late(backbone: Backbone, method: Method, kept: EarlyBlocks, first: int, keep: Collection[int]) -> Features:
    """The pass from block K = ``first`` on, from what :func:`early_blocks` computed."""
    patches = kept.tokens[:, -backbone.num_patches :]
    position = backbone.assemble(Patches(patches, kept.centers)).position
    centers = kept.centers if kept.centers.shape[-1] else None
    last = backbone.stages[-1].blocks[-1].index
    return backbone.run_blocks(Embedded(kept.tokens, position, centers), method, keep, range(first, last + 1))


class Waiting:
    """What the blocks before K have for the tokens, until the pass comes to block K.

    Attributes:
        total: sum of their updates, (B, L, C).
        prompts: of the blocks in order, (B, 1, C) each.
        losses: of the blocks.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.prompts: list[Tensor] = []
        self.losses: list[Tensor] = []

    def take(self, update: FfnUpdate) -> None:
        """Adds what a block has."""
        self.total = update.update if self.total is None else self.total + update.update
        if update.prompt is not None:
            self.prompts.append(update.prompt)
        if update.loss is not None:
            self.losses.append(update.loss)

    def join(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) on their way into block K -> with everything that has waited, (B, L + P, C)."""
        tokens = tokens if self.total is None else tokens + self.total
        return insert_after_cls(tokens, torch.cat(self.prompts[::-1], dim=1)) if self.prompts else tokens


def frozen_before(backbone: Backbone, first: int) -> Mapping[str, Tensor]:
    """Tensors that decide :func:`early_blocks`, by name: all of the backbone that is not trained, and K."""
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    state = {name: value for name, value in backbone.state_dict().items() if name not in trained}
    return state | {"first block": torch.tensor(first)}


def late_problems(first: int | None, depth: int, stages: int, name: str) -> Iterator[tuple[str, str]]:
    """(key, message) for a block that the backbone does not have, or a backbone of several stages.

    Args:
        first: ``method.inject_from``.
        depth: of the backbone.
        stages: their number.
        name: of the backbone.
    """
    if first is None:
        return
    if stages > 1:
        yield "inject_from", f"waits within one stage, but {name} has {stages}; leave it out"
    elif not 1 <= first < depth:
        yield "inject_from", f"{first} is not among the blocks 1 to {depth - 1} of the backbone; choose one of them"
