"""VPT: learned prompt tokens, at the input or in every block (arXiv 2203.12119)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from pointadapterx.models.host import Host
from pointadapterx.models.tokens import insert_after_cls
from pointadapterx.peft.base import METHODS, Method
from pointadapterx.schema import Rate, Width


@METHODS.register("vpt")
class Vpt(Method):
    """P learned tokens after CLS: before the first block of each stage (shallow), or others in each block (deep).

    Deep (equation 5): block i sees its own prompts, and the outputs of the previous ones are dropped. Shallow
    (equation 4): the blocks carry them on. Trains the prompts (P · C a block, deep), class token and its position
    where they are not pre-trained, and the head. Extra cost: P more tokens in every block, about P / L of its
    products, and more of attention. On Point-MAE their position is zero, unless it is trained.
    """

    class Options(Method.Options):
        """``method: {name: vpt, ...}``.

        Attributes:
            num_prompts: P; the paper tunes it on each task, from 1 to 200.
            deep: prompts of its own for every block.
            dropout: dropout on the prompts.
            positions: trains a position for every prompt too, which is added to it, P · C parameters a block more: VPT
                on Point-MAE as IDPT's code has it. None: no positions.
        """

        name: Literal["vpt"] = "vpt"
        num_prompts: Width = 10
        deep: bool = True
        dropout: Rate = 0.0
        positions: bool | None = None

        @property
        def makes_prompts(self) -> bool:
            """True: this method consists of prompts."""
            return True

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """The whole block, before which the prompts come."""
            return ("block",)

    def __init__(self, options: Vpt.Options) -> None:
        super().__init__(options)
        self.options: Vpt.Options = options
        self.dropout = nn.Dropout(options.dropout)

    def attach(self, backbone: Host) -> None:
        """Creates the prompts, drawn as the weights of a layer from a patch's values to a token would be.

        With positions both are drawn with 0.02, as IDPT's code does.
        """
        count = self.options.num_prompts
        self.firsts = [stage.first for stage in backbone.stages]
        blocks = [block for block in backbone.every_block() if self.options.deep or block.index in self.firsts]
        self.place_of = {block.index: place for place, block in enumerate(blocks)}
        dims = [block.width for block in blocks]
        if self.options.positions:
            self.prompts, self.positions = (
                nn.ParameterList(nn.init.trunc_normal_(torch.empty(1, count, dim), std=0.02) for dim in dims)
                for _ in range(2)
            )
            return
        limits = [math.sqrt(6.0 / (backbone.patch_values + dim)) for dim in dims]
        self.positions = nn.ParameterList()
        self.prompts = nn.ParameterList(
            nn.init.uniform_(torch.empty(1, count, dim), -limit, limit) for dim, limit in zip(dims, limits, strict=True)
        )

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """The prompts and their positions."""
        yield from (*self.prompts, *self.positions)

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B, L + P, C) before a stage's first block; before others, deep prompts are replaced."""
        place = self.place_of.get(index)
        if place is None:
            return tokens
        prompts = self.dropout(self.prompts[place].expand(len(tokens), -1, -1))
        if self.positions:
            prompts = prompts + self.positions[place]
        if index not in self.firsts:
            tokens = torch.cat([tokens[:, :1], tokens[:, 1 + self.options.num_prompts :]], dim=1)
        return insert_after_cls(tokens, prompts)
