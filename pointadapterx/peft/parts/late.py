"""Late injection: what a method adds joins the tokens from a block K on, and no gradient enters earlier blocks.

Nothing trained may lie before block K then: neither the class token nor a norm of the blocks before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pointadapterx.models.additions import Nothing
from pointadapterx.models.backbone import Backbone, Embedded
from pointadapterx.models.block import FfnUpdate
from pointadapterx.models.features import Features
from pointadapterx.models.frozen import EarlyBlocks, Patches
from pointadapterx.models.host import Host
from pointadapterx.models.recomputing import recomputed
from pointadapterx.models.sites import StageSize
from pointadapterx.models.tokens import insert_after_cls
from pointadapterx.peft.base import Method


class LateClassToken(nn.Module):
    """Trains a class token that is not pre-trained, and its position, from block K on; both start as zero.

    τ is added to the class token on its way into block K, π to its position there and before every later block of its
    stage (where the backbone adds positions once, at K alone).

    Args:
        width: token width C of the stage of block K.
        blocks: from K to the last of its stage.
        position: of the backbone, ``"every_block"`` or ``"input"``.
    """

    def __init__(self, width: int, blocks: range, position: str) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1, width))
        self.first = blocks.start
        self.blocks = blocks if position == "every_block" else blocks[:1]

    def forward(self, index: int, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) on their way into block ``index``, CLS first."""
        if index not in self.blocks:
            return tokens
        added = self.position + self.token if index == self.first else self.position
        return torch.cat([tokens[:, :1] + added, tokens[:, 1:]], dim=1)


def late_class_token(backbone: Host, first: int) -> LateClassToken | None:
    """That of block K = ``first``; None where the class token is pre-trained, or missing."""
    if not backbone.class_parameters():
        return None
    stage = backbone.stages[backbone.every_block()[first].stage]
    return LateClassToken(stage.width, range(first, stage.first + len(stage.blocks)), backbone.position)


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
    return stored(rows, tokens, embedded.centers)


def stored(rows: list[Tensor], tokens: Tensor, centers: Tensor | None) -> EarlyBlocks:
    """What is kept of rows (B, L, C) each, tokens on their way into block K, and centres where there are any."""
    read = torch.stack(rows, dim=1) if rows else tokens.new_empty(len(tokens), 0, 1, tokens.shape[2])
    return EarlyBlocks(read, tokens, tokens.new_empty(*tokens.shape[:2], 0) if centers is None else centers)


def resumed(backbone: Backbone, kept: EarlyBlocks) -> Embedded:
    """Tokens on their way into block K, with their positions and centres, of a backbone of one stage."""
    patches = kept.tokens[:, -backbone.num_patches :]
    position = backbone.assemble(Patches(patches, kept.centers)).position
    return Embedded(kept.tokens, position, kept.centers if kept.centers.shape[-1] else None)


def run_late(backbone: Backbone, method: Method, kept: EarlyBlocks, first: int, keep: Collection[int]) -> Features:
    """The pass from block K = ``first`` on, from what :func:`early_blocks` computed."""
    last = backbone.stages[-1].blocks[-1].index
    return backbone.run_blocks(resumed(backbone, kept), method, keep, range(first, last + 1))


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

    def lead(self, tokens: Tensor, lead: Callable[[Tensor], Tensor]) -> None:
        """Between stages, the sum goes the frozen way T of the tokens x (B, L, C): T(x + sum) - T(x)."""
        if self.total is not None:
            self.total = moved(tokens, tokens + self.total, lead)

    def join(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) on their way into block K -> with everything that has waited, (B, L + P, C)."""
        tokens = tokens if self.total is None else tokens + self.total
        tokens = insert_after_cls(tokens, torch.cat(self.prompts[::-1], dim=1)) if self.prompts else tokens
        self.total, self.prompts = None, []
        return tokens


def moved(tokens: Tensor, joined: Tensor, lead: Callable[[Tensor], Tensor]) -> Tensor:
    """What is added to the tokens of the next stage, where ``joined`` takes the place of frozen ``tokens``.

    Where ``lead`` has led them there already, its ``plain`` is taken.
    """
    plain: Tensor | None = getattr(lead, "plain", None)
    if plain is None:
        with torch.no_grad():
            plain = lead(tokens)
    # It copies, norms and projects: what it makes is not kept. A model of someone's own may also drop something.
    found: Tensor = recomputed(getattr(lead, "go", lead), joined, draws=True)
    return found - plain


def frozen_before(backbone: Backbone, first: int) -> Mapping[str, Tensor]:
    """Tensors that decide :func:`early_blocks`, by name: all of the backbone that is not trained, and K."""
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    state = {name: value for name, value in backbone.state_dict().items() if name not in trained}
    return state | {"first block": torch.tensor(first)}


def late_problems(
    first: int | None, stages: Sequence[StageSize], name: str, *, prompts: bool
) -> Iterator[tuple[str, str]]:
    """(key, message) for a block that the backbone does not have, or one that prompts cannot wait for.

    Args:
        first: ``method.inject_from``.
        stages: of the backbone.
        name: of the backbone.
        prompts: whether blocks before K make prompts, which end with their stage.
    """
    if first is None:
        return
    depth = sum(stage.depth for stage in stages)
    if not 1 <= first < depth:
        yield "inject_from", f"{first} is not among the blocks 1 to {depth - 1} of the backbone; choose one of them"
    elif prompts and first >= stages[0].depth:
        yield (
            "inject_from",
            f"the first stage of {name} has {stages[0].depth} blocks, and prompts cannot wait for block {first}, as "
            "they end with their stage; set method.prompts=false",
        )
