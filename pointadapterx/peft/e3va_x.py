"""E³VA-X: E³VA's highway with Adapter-X's shared mixture on it. A method of this project, from no paper."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from pointadapterx.models.backbone import Backbone
from pointadapterx.models.features import Features
from pointadapterx.models.frozen import EarlyBlocks
from pointadapterx.models.host import Host
from pointadapterx.peft.base import METHODS
from pointadapterx.peft.e3va import Highway
from pointadapterx.peft.parts.low_rank_mixture import LowRankMixture
from pointadapterx.peft.parts.mixture import mixture_problems
from pointadapterx.peft.parts.routed import RoutedMethod
from pointadapterx.schema import Many


@METHODS.register("e3va_x")
class E3vaX(RoutedMethod, Highway):
    """One mixture of doubly low-rank experts for both branches of all blocks of a stage, with a router per sub-token.

    Adapter-X's parameters with E³VA's memory and time: the state's width is the tokens' C. Where stages differ in
    width, each stage that feeds the highway has a mixture of its own.

    Attributes:
        mixture: of a backbone of one stage, else None.
        stage_mixtures: by the number of the stage in a backbone of several, else empty.
    """

    class Options(Highway.Options):
        """``method: {name: e3va_x, ...}``.

        Attributes:
            num_experts: E.
            num_heads: h, sub-tokens a token is split into.
            top_k: experts per sub-token.
            balance_weight: α of Adapter-X's equation 7.
            soft_balance: as in :class:`~pointadapterx.peft.parts.shared_mixture.SharedMixtureMethod.Options`.
        """

        name: Literal["e3va_x"] = "e3va_x"
        num_experts: Many = 4
        num_heads: Many = 3
        top_k: Many = 1
        balance_weight: float = Field(0.01, ge=0.0)
        soft_balance: bool | None = None

        def problems(self, backbone: Backbone.Options) -> Iterator[tuple[str, str]]:
            """Also reports problems of the mixture, whose output is as wide as its input."""
            yield from super().problems(backbone)
            yield from mixture_problems(backbone.stages(), self.num_experts, self.num_heads, self.top_k)
            if len(backbone.stages()) == 1 and self.width not in (None, backbone.dim):
                yield "width", f"{self.width} is not backbone.dim={backbone.dim}, which a mixture keeps; leave it out"

    def __init__(self, options: E3vaX.Options) -> None:
        super().__init__(options)
        self.options: E3vaX.Options = options

    def attach(self, backbone: Host) -> None:
        """Creates the mixture that all blocks share."""
        super().attach(backbone)
        stages = backbone.stages
        fed = {self.stage_of[number] for number in self.block_numbers}
        self.mixture = self._make_mixture(stages[0].width) if len(stages) == 1 else None
        self.stage_mixtures = nn.ModuleDict(
            {str(stage.number): self._make_mixture(stage.width) for stage in stages if stage.number in fed}
            if len(stages) > 1
            else {}
        )

    def _make_mixture(self, dim: int) -> LowRankMixture:
        options = self.options
        return LowRankMixture(
            dim,
            options.rank,
            options.inner_rank,
            options.dropout,
            options.num_experts,
            options.num_heads,
            options.top_k,
            soft_balance=bool(options.soft_balance),
        )

    def update(self, place: int, attention: Tensor, ffn: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Codes of the mixture, which is the same for both branches of all blocks of a stage."""
        stage = self.stage_of[self.block_numbers[place]]
        outputs = [self.mixture_of(stage).encode(tokens) for tokens in (attention, ffn)]
        for output in outputs:
            self.note(output.routing, stage)
        return outputs[0].tokens + outputs[1].tokens, [output.balance_loss for output in outputs]

    def uses(self, count: int) -> list[str]:
        """Two a block that feeds the highway: outputs of its attention and of its FFN."""
        return [f"block {number + 1} {branch}" for number in self.block_numbers for branch in ("attention", "FFN")]

    def resume(self, backbone: Backbone, kept: EarlyBlocks, keep: Collection[int]) -> Features:
        """The pass from block K on."""
        return Highway.run(self, backbone, kept, keep)

    def decode(self, state: Tensor, stage: int) -> Tensor:
        """Codes -> (B, L, C)."""
        return self.mixture_of(stage).decode(state)

    def mixture_of(self, stage: int) -> LowRankMixture:
        """The mixture that serves a stage."""
        mixture = self.mixture if self.mixture is not None else self.stage_mixtures[str(stage)]
        assert isinstance(mixture, LowRankMixture)
        return mixture
