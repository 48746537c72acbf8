"""E³VA: adapters on a highway beside the frozen backbone, into which no gradient goes (ACM MM 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.models.backbone import Backbone, Features, FrozenStep
from pointadapterx.models.frozen import Frozen, Steps
from pointadapterx.models.tokens import TokenSequence, insert_after_cls
from pointadapterx.peft.base import METHODS, Method, ScaleShift
from pointadapterx.peft.parts.bottlenecks import start_as_zero
from pointadapterx.schema import Distinct, Rate, Width


class DoublyLowRank(nn.Module):
    """A bottleneck whose projections are products of two thin matrices each; it starts as the zero function.

    x -> (k) -> r -> GELU -> (k) -> out, where (k) is linear without a bias.

    Args:
        width: of the input.
        out: width of the output.
        rank: r.
        inner_rank: k.
        dropout: dropout rate behind the activation.
    """

    def __init__(self, width: int, out: int, rank: int, inner_rank: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.down_in = nn.Linear(width, inner_rank, bias=False)
        self.down_out = nn.Linear(inner_rank, rank)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.up_in = nn.Linear(rank, inner_rank, bias=False)
        self.up_out = nn.Linear(inner_rank, out)
        start_as_zero(self.down_out, self.up_out)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., width) -> (..., out)."""
        hidden = self.dropout(self.activation(self.down_out(self.down_in(tokens))))
        return self.up_out(self.up_in(hidden))


class Highway(Method):
    """A running state beside the blocks; what is added to it in each block is a subclass's business.

    ``s_i = s_{i-1} + A(attention_i) + A(mlp_i)``, with the outputs of the two branches of the frozen block i; the
    trained final norm of ``tokens + s`` feeds the head, with the tokens of the last block. So everything starts as the
    plain backbone. **A reading**: the paper says that the state feeds the head through a trainable norm, not what it
    starts from.

    Trains the adapters, the final norm and the head; nothing inside the backbone, whose class token stays as it is.
    """

    class Options(Method.Options):
        """Keys of both methods.

        Attributes:
            rank: r, bottleneck of an adapter.
            inner_rank: k, rank of its two projections.
            dropout: dropout rate inside the adapters.
            blocks: numbers of the blocks, from 0, that feed the highway; None is all.
            width: of the state; None is the tokens' C. With another, a linear layer leads back to C.
            class_token: a trained vector that the state of the class token starts from, instead of zero.
            prompts: whether each of the blocks puts a prompt token γ ⊙ mean(what it added) + β on the highway.
        """

        rank: Width = 64
        inner_rank: Width = 8
        dropout: Rate = 0.0
        blocks: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), Distinct] | None = None
        width: Width | None = None
        class_token: bool = False
        prompts: bool = False

        @property
        def makes_prompts(self) -> bool:
            """One prompt a block that feeds the highway."""
            return self.prompts

        @property
        def needs_prompt_pool(self) -> bool:
            """On the highway no token attends to another."""
            return self.prompts

        def problems(self, backbone: Backbone.Options) -> Iterator[tuple[str, str]]:
            """Blocks that the backbone does not have."""
            beyond = [number for number in self.blocks or () if number >= backbone.depth]
            if beyond:
                yield (
                    "blocks",
                    f"{beyond} are not among the {backbone.depth} blocks of the backbone, 0 to {backbone.depth - 1}",
                )

    def __init__(self, options: Highway.Options) -> None:
        super().__init__(options)
        self.options: Highway.Options = options

    def attach(self, backbone: Backbone) -> None:
        """Creates what stands on the highway besides adapters."""
        options = self.options
        self.width = options.width or backbone.dim
        depth = len(backbone.blocks)
        self.block_numbers = list(range(depth)) if options.blocks is None else sorted(options.blocks)
        self.expand = nn.Linear(self.width, backbone.dim) if self.width != backbone.dim else None
        if self.expand is not None:
            nn.init.zeros_(self.expand.bias)
        self.class_state = nn.Parameter(torch.zeros(1, 1, self.width)) if options.class_token else None
        count = len(self.block_numbers) if options.prompts else 0
        self.prompt_generators = nn.ModuleList(ScaleShift(self.width) for _ in range(count))

    def trained_backbone_parameters(self, backbone: Backbone) -> Iterator[nn.Parameter]:
        """The final norm."""
        yield from backbone.norm.parameters()

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """The class token's state."""
        if self.class_state is not None:
            yield self.class_state

    def update(self, place: int, attention: Tensor, ffn: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What a block adds to the state.

        Args:
            place: number of the block among those that feed the highway.
            attention: output of its attention, (B, 1 + G, C), without gradient.
            ffn: output of its FFN, the same.

        Returns:
            (B, 1 + G, ...), of which :meth:`decode` makes the state, and auxiliary losses.
        """
        raise NotImplementedError(f"{type(self).__name__} must define its update")

    def decode(self, state: Tensor) -> Tensor:
        """A sum or mean of updates (B, L, ...) -> (B, L, width); linear. By default updates are of that width."""
        return state

    def run(self, backbone: Backbone, inputs: Tensor | Frozen) -> Features:
        """The frozen pass, or its outputs of before, with the highway beside it."""
        losses: list[Tensor] = []
        prompts: list[Tensor] = []
        state: Tensor | None = None
        place = 0
        for step, feeds in self._steps(backbone, inputs):
            if not feeds:
                continue
            update, loss = self.update(place, step.attention, step.ffn)
            losses += loss
            state = update if state is None else state + update
            if self.prompt_generators:
                prompts.append(self.prompt_generators[place](self.decode(update.mean(dim=1, keepdim=True))))
            place += 1
        assert state is not None
        state = self.decode(state)
        if self.class_state is not None:
            state = torch.cat([state[:, :1] + self.class_state, state[:, 1:]], dim=1)
        tokens = step.tokens + self._expanded(state)
        if prompts:
            tokens = insert_after_cls(tokens, self._expanded(torch.cat(prompts[::-1], dim=1)))
        return Features(TokenSequence(backbone.norm(tokens), backbone.num_patches), losses)

    def _steps(self, backbone: Backbone, inputs: Tensor | Frozen) -> Iterator[tuple[FrozenStep, bool]]:
        """The blocks' outputs, and whether they feed the highway."""
        if isinstance(inputs, Steps):
            for attention, ffn in zip(inputs.attention.unbind(1), inputs.ffn.unbind(1), strict=True):
                yield FrozenStep(attention, ffn, inputs.tokens), True
            return
        assert isinstance(inputs, Tensor)
        for number, step in enumerate(backbone.frozen_steps(inputs)):
            yield step, number in self.block_numbers

    def precompute(self, backbone: Backbone, inputs: Tensor) -> Steps:
        """All that the highway reads of the backbone."""
        steps = list(self._steps(backbone, inputs))
        feeding = [step for step, feeds in steps if feeds]
        return Steps(
            torch.stack([step.attention for step in feeding], dim=1),
            torch.stack([step.ffn for step in feeding], dim=1),
            steps[-1][0].tokens,
        )

    def frozen_state(self, backbone: Backbone) -> Mapping[str, Tensor]:
        """All of the backbone but its final norm, and which blocks feed the highway."""
        state = {name: value for name, value in backbone.state_dict().items() if not name.startswith("norm.")}
        return state | {"block_numbers": torch.tensor(self.block_numbers)}

    def _expanded(self, state: Tensor) -> Tensor:
        return state if self.expand is None else self.expand(state)


@METHODS.register("e3va")
class E3va(Highway):
    """Two doubly low-rank adapters a block, behind its attention and its FFN.

    k (C + r) + r + k (r + width) + width parameters an adapter. Extra cost: four thin products an adapter; in return
    nothing of the backbone is kept for the backward pass, and none is run through it.
    """

    class Options(Highway.Options):
        """``method: {name: e3va, ...}``, see :class:`Highway.Options`."""

        name: Literal["e3va"] = "e3va"

    def attach(self, backbone: Backbone) -> None:
        """Creates the adapters."""
        super().attach(backbone)
        options = self.options
        self.adapters = nn.ModuleList(
            nn.ModuleDict(
                {
                    branch: DoublyLowRank(backbone.dim, self.width, options.rank, options.inner_rank, options.dropout)
                    for branch in ("attention", "ffn")
                }
            )
            for _ in self.block_numbers
        )

    def update(self, place: int, attention: Tensor, ffn: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Adapters of its own for every block."""
        adapters = self.adapters[place]
        assert isinstance(adapters, nn.ModuleDict)
        return adapters["attention"](attention) + adapters["ffn"](ffn), []
