"""E³VA: adapters on a highway parallel to the frozen backbone, which gets no gradient (ACM MM 2023)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.models.additions import Recorded, Rider
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.features import BlockTokens, Features
from pointadapterx.models.frozen import EarlyBlocks, Frozen, Patches, RecordedBranches
from pointadapterx.models.host import Host
from pointadapterx.models.tokens import insert_after_cls
from pointadapterx.peft.base import METHODS, Method
from pointadapterx.peft.parts.bottlenecks import start_as_zero
from pointadapterx.peft.parts.late import frozen_before, late_problems, moved, resumed, stored
from pointadapterx.peft.parts.scale_shift import ScaleShift
from pointadapterx.schema import Distinct, Rate, Width


class DoublyLowRank(nn.Module):
    """A bottleneck whose two projections are products of low-rank matrices; it starts as the zero function.

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
    """A running state parallel to the blocks; subclasses define what each block adds to it.

    ``s_i = s_{i-1} + A(attention_i) + A(mlp_i)``, with the outputs of the two branches of the frozen block i; the
    trained final norm of ``tokens + s`` feeds the head, with the tokens of the last block. So everything starts as the
    plain backbone. **A reading**: the paper says that the state feeds the head through a trainable norm, not what it
    starts from.

    Behind a stage that another follows, the state goes the same frozen way T as the tokens,
    ``s = T(tokens + s) - T(tokens)``, and the next stage adds to that; class-token state and prompts are those of the
    last stage. A head that reads several stages gets ``tokens + s`` of each, normalised in the last one alone.

    With late injection from block K on, the tokens on their way into block K are ``tokens + s``, the state starts again
    from zero, and what it gets of each later block joins the tokens behind that block; gradient enters these blocks.

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
            inject_from: K, number of the first block, from 0, that reads the state; None is no block.
        """

        unwritten = ("inject_from",)

        rank: Width = 64
        inner_rank: Width = 8
        dropout: Rate = 0.0
        blocks: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), Distinct] | None = None
        width: Width | None = None
        class_token: bool = False
        prompts: bool = False
        inject_from: Annotated[int, Field(ge=0)] | None = None

        @property
        def makes_prompts(self) -> bool:
            """Whether each block that feeds the highway adds one prompt (the option ``prompts``)."""
            return self.prompts

        @property
        def needs_prompt_pool(self) -> bool:
            """On the highway no token attends to another."""
            return self.prompts

        @property
        def needs_class_token(self) -> bool:
            """Also for a state of the class token."""
            return self.prompts or self.class_token

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """The branches whose outputs it reads."""
            return ("attention", "ffn")

        def problems(self, backbone: Backbone.Options) -> Iterator[tuple[str, str]]:
            """Blocks that the backbone does not have, or a width that fits only one of its stages."""
            yield from super().problems(backbone)
            stages = backbone.stages()
            depth = sum(stage.depth for stage in stages)
            beyond = [number for number in self.blocks or () if number >= depth]
            if beyond:
                yield "blocks", f"{beyond} are not among the {depth} blocks of the backbone, 0 to {depth - 1}"
            if self.width is not None and len(stages) > 1:
                widths = ", ".join(str(stage.width) for stage in stages)
                yield "width", f"{self.width} cannot fit all stages of {backbone.name} ({widths}); leave it out"
            yield from late_problems(self.inject_from, stages, backbone.name, prompts=False)

    def __init__(self, options: Highway.Options) -> None:
        super().__init__(options)
        self.options: Highway.Options = options

    @property
    def first(self) -> int | None:
        """K, see :attr:`Options.inject_from`."""
        return self.options.inject_from

    def attach(self, backbone: Host) -> None:
        """Creates everything on the highway but its adapters."""
        options, last, blocks = self.options, backbone.stages[-1], backbone.every_block()
        self.width = options.width or last.width
        self.block_numbers = [block.index for block in blocks] if options.blocks is None else sorted(options.blocks)
        self.stage_of = [block.stage for block in blocks]
        self.last_stage = last.number
        self.expand = nn.Linear(self.width, last.width) if self.width != last.width else None
        if self.expand is not None:
            nn.init.zeros_(self.expand.bias)
        self.class_state = nn.Parameter(torch.zeros(1, 1, self.width)) if options.class_token else None
        self.prompting = [number for number in self.block_numbers if options.prompts and number >= last.first]
        self.prompt_generators = nn.ModuleList(ScaleShift(self.width) for _ in self.prompting)

    def trained_backbone_parameters(self, backbone: Host) -> Iterator[nn.Parameter]:
        """The final norm, which reads the sum of tokens and highway."""
        yield from backbone.norm.parameters()

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """The trained initial state of the class token, if there is one."""
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

    def decode(self, state: Tensor, stage: int) -> Tensor:
        """A sum or mean of a stage's updates (B, L, ...) -> (B, L, width); linear. By default they are that wide."""
        return state

    def run(self, backbone: Backbone, inputs: Tensor | Frozen, keep: Collection[int] = ()) -> Features:
        """Runs the frozen backbone, or takes its precomputed outputs, and the highway parallel to it."""
        if backbone.foreign and not isinstance(inputs, RecordedBranches):
            return super().run(backbone, inputs, keep)  # it rides along
        ride, stages = Ride(self), backbone.stages
        kept: dict[int, BlockTokens] = {}
        for number, step in self._steps(backbone, inputs, ride):
            ride.take(number, step)
            if number in keep:
                stage = stages[self.stage_of[number]]
                kept[number] = backbone.tokens_behind(stage, ride.joined(), step.centers)
            ride.lead()
        tokens = backbone.norm(ride.end())
        return Features(backbone.sequence(stages[-1], tokens), ride.losses, step.centers, kept)

    def _steps(
        self, backbone: Backbone, inputs: Tensor | Frozen, ride: Rider | None = None
    ) -> Iterator[tuple[int, Recorded]]:
        """The blocks' numbers and outputs; of what was kept, only the blocks that feed the highway."""
        if isinstance(inputs, EarlyBlocks):
            yield from self._late_steps(backbone, inputs, ride)
            return
        if isinstance(inputs, RecordedBranches):
            branches = zip(inputs.attention.unbind(1), inputs.ffn.unbind(1), strict=True)
            for number, (attention, ffn) in zip(self.block_numbers, branches, strict=True):
                yield number, Recorded(attention, ffn, inputs.tokens)
            return
        assert isinstance(inputs, Tensor | Patches)
        yield from enumerate(backbone.record(inputs, ride))

    def _late_steps(self, backbone: Backbone, kept: EarlyBlocks, ride: Rider | None) -> Iterator[tuple[int, Recorded]]:
        """Those that feed the highway before block K, and all from there on."""
        assert ride is not None
        assert self.first is not None
        rows, tokens = kept.read.unbind(1), kept.tokens
        for place, number in enumerate(self._feeding_before(self.first)):
            yield number, Recorded(rows[2 * place], rows[2 * place + 1], tokens)
        embedded = resumed(backbone, kept)
        embedded = embedded._replace(tokens=ride.hand_over() if rows else tokens)
        yield from enumerate(backbone.record_blocks(embedded, ride, self.first), self.first)

    def _feeding_before(self, first: int) -> list[int]:
        return [number for number in self.block_numbers if number < first]

    def precompute(self, backbone: Backbone, inputs: Tensor, keep: Collection[int] = ()) -> Frozen:
        """All that the highway reads of the backbone before block K; its patches where there are several stages, or
        tokens to ``keep``.
        """
        if keep or len(backbone.stages) > 1 or (self.first is not None and backbone.foreign):
            return super().precompute(backbone, inputs, keep)
        steps = [step for _, step in islice(self._steps(backbone, inputs), self.first)]
        if self.first is not None:
            rows = [branch for number in self._feeding_before(self.first) for branch in steps[number][:2]]
            return stored(rows, steps[-1].tokens, steps[-1].centers)
        feeding = [steps[number] for number in self.block_numbers]
        return RecordedBranches(
            torch.stack([step.attention for step in feeding], dim=1),
            torch.stack([step.ffn for step in feeding], dim=1),
            steps[-1].tokens,
        )

    def frozen_state(self, backbone: Backbone) -> Mapping[str, Tensor]:
        """Everything in the backbone except the final norm, and which blocks feed the highway."""
        numbers = {"block_numbers": torch.tensor(self.block_numbers)}
        if self.first is not None:
            return {**frozen_before(backbone, self.first), **numbers}
        norm = next(f"{name}." for name, module in backbone.named_modules() if module is backbone.norm)
        state = {name: value for name, value in backbone.state_dict().items() if not name.startswith(norm)}
        return state | numbers

    def expanded(self, state: Tensor) -> Tensor:
        """A state (..., width) as wide as the tokens, (..., C)."""
        return state if self.expand is None else self.expand(state)


class Ride:
    """One pass of a highway, which takes the outputs of the blocks one after the other.

    Args:
        highway: whose state it is.

    Attributes:
        losses: auxiliary losses of the blocks so far.
    """

    def __init__(self, highway: Highway) -> None:
        self.highway = highway
        self.losses: list[Tensor] = []
        self._places = {number: place for place, number in enumerate(highway.block_numbers)}
        self._prompts: list[Tensor] = []
        self._joined: Tensor | None = None  # tokens and state behind the block that was taken last
        self._given = False  # whether the tokens of the last stage have the state of the class token
        self._carried: Tensor | None = None  # from the stages before
        self._total: Tensor | None = None  # of the updates of this stage

    def take(self, number: int, step: Recorded) -> None:
        """Adds what the outputs of block ``number`` make the highway add to its state."""
        highway = self.highway
        self._stage, self._step, self._joined = highway.stage_of[number], step, None
        if number not in self._places:
            return
        update, losses = highway.update(self._places[number], step.attention, step.ffn)
        self.losses += losses
        self._total = update if self._total is None else self._total + update
        if number in highway.prompting:
            make = highway.prompt_generators[highway.prompting.index(number)]
            self._prompts.append(make(highway.decode(update.mean(dim=1, keepdim=True), self._stage)))

    def joined(self) -> Tensor:
        """Tokens of the block that was taken last plus the state behind it, (B, L, C)."""
        if self._joined is None:
            self._joined = self._join(self._step.tokens)
        return self._joined

    def _join(self, tokens: Tensor) -> Tensor:
        highway = self.highway
        parts = [] if self._carried is None else [self._carried]
        parts += [] if self._total is None else [highway.decode(self._total, self._stage)]
        if not parts:
            return tokens
        state = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        if highway.class_state is not None and self._stage == highway.last_stage and not self._given:
            state = torch.cat([state[:, :1] + highway.class_state, state[:, 1:]], dim=1)
        return tokens + highway.expanded(state)

    @property
    def first(self) -> int | None:
        """Number of the first block that reads the state."""
        return self.highway.first

    def hand_over(self) -> Tensor:
        """Tokens plus state as the next block gets them; the state starts again from zero."""
        tokens = self.joined()
        self._given |= self._has_state and self._stage == self.highway.last_stage
        self._carried = self._total = None
        return tokens

    @property
    def _has_state(self) -> bool:
        return self._carried is not None or self._total is not None

    def lead(self) -> None:
        """Behind the last block of a stage: takes the state to the next one."""
        lead = self._step.lead
        if lead is not None and self._has_state:
            self._carried, self._total = moved(self._step.tokens, self.joined(), lead), None

    def end(self) -> Tensor:
        """Tokens and state of the last block, with the prompts behind the class token."""
        tokens = self.joined()
        if not self._prompts:
            return tokens
        return insert_after_cls(tokens, self.highway.expanded(torch.cat(self._prompts[::-1], dim=1)))


@METHODS.register("e3va")
class E3va(Highway):
    """Two doubly low-rank adapters per block, after its attention and its FFN.

    k (C + r) + r + k (r + width) + width parameters an adapter. Extra cost: four thin products an adapter; in return
    nothing of the backbone is kept for the backward pass, and none is run through it.
    """

    class Options(Highway.Options):
        """``method: {name: e3va, ...}``, see :class:`Highway.Options`."""

        name: Literal["e3va"] = "e3va"

    def attach(self, backbone: Host) -> None:
        """Creates two adapters for each block that feeds the highway, for its attention and its FFN."""
        super().attach(backbone)
        options, blocks = self.options, backbone.every_block()
        self.adapters = nn.ModuleList(
            nn.ModuleDict(
                {
                    branch: DoublyLowRank(
                        width, options.width or width, options.rank, options.inner_rank, options.dropout
                    )
                    for branch in ("attention", "ffn")
                }
            )
            for width in (blocks[number].width for number in self.block_numbers)
        )

    def update(self, place: int, attention: Tensor, ffn: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The sum of the outputs of the block's own two adapters."""
        adapters = self.adapters[place]
        assert isinstance(adapters, nn.ModuleDict)
        return adapters["attention"](attention) + adapters["ffn"](ffn), []
