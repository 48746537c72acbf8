"""The X-family: a mixture shared by all blocks of a stage, of any kind of adapter (Adapter-X, arXiv 2406.03051)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.models.backbone import Backbone
from pointadapterx.models.block import FfnUpdate
from pointadapterx.models.host import Host
from pointadapterx.peft.base import Method
from pointadapterx.peft.parts.bottlenecks import ADAPTERS
from pointadapterx.peft.parts.mixture import SharedMixture, mixture_problems
from pointadapterx.peft.parts.routed import RoutedMethod
from pointadapterx.peft.parts.scale_shift import ScaleShift
from pointadapterx.registry import did_you_mean
from pointadapterx.schema import Many, Rate, Width

MOST_EXPERTS = 2**16  # of all blocks together: each is a module, and as many take minutes to make


class SharedMixtureMethod(RoutedMethod):
    """A shared mixture; per block a trainable norm2 and a prompt generator.

    Where stages differ in width, each stage has a shared mixture of its own.

    Block i (§3.2, §3.3): ``u = norm2_i(h); f = mlp(u); a = SMoA(u); y = h + f + s·a; p_i = γ_i ⊙ mean(a) + β_i``;
    with serial experts ``a = SMoA(f)``. Trains: the mixture, each block's norm2 and prompt generator, class token and
    its position where they are not pre-trained, the head. Extra cost: one token more after each block, and per
    sub-token one expert of rank r.

    Each part can be switched off for an ablation. Without the mixture nothing is added to the FFN, and the
    prompts come from the FFN's output: ``p_i = γ_i ⊙ mean(mlp(u)) + β_i``. That is what is left where the
    mixture is behind the FFN. γ_i then starts at 0 instead of 1, so that the prompts are zero tokens at the
    start in every variant.

    Attributes:
        kind: the expert, one of :data:`~pointadapterx.peft.parts.bottlenecks.ADAPTERS`, unless ``method.expert`` names
        another.
        scalar_prompts: whether γ_i and β_i are one number each instead of C, unless ``method.prompt_vectors`` says so.
        trains_final_norm: whether the final norm is trained, unless ``method.final_norm`` says so.
        mixture: the shared mixture of a backbone of one stage, or None without it.
        stage_mixtures: one a stage in a backbone of several, else empty.
        block_mixtures: one a block with ``shared: false``, else empty.
    """

    kind: ClassVar[str]
    scalar_prompts: ClassVar[bool] = True
    trains_final_norm: ClassVar[bool] = False
    mixture: SharedMixture | None

    class Options(Method.Options):
        """Keys of the whole family.

        Attributes:
            rank: bottleneck width r of the experts and width of the router's embeddings.
            num_experts: E.
            num_heads: h, sub-tokens a token is split into.
            top_k: experts per sub-token; ``num_experts`` is the dense mixture.
            balance_weight: α of equation 7.
            dropout: dropout inside the experts.
            scale: s, factor of the mixture's output.
            mixture: whether there is the shared mixture; without it the keys above mean nothing.
            shared: False gives every block a mixture of its own, router included. None: one for all, as published.
            expert: kind of adapter that the experts are; None: the method's own.
            norms: whether each block's norm2 is trained.
            prompts: whether each block generates a prompt token.
            prompt_gelu: GELU before the mean of the prompt generator, as DAPT has it.
            prompt_vectors: γ_i and β_i as vectors, or False: one number each. None: the method's own.
            final_norm: whether the final norm is trained. None: the method's own.
            soft_balance: the balance loss on soft loads, see :func:`~pointadapterx.peft.parts.mixture.balance_loss`.
                None: on the sub-tokens sent, as published, which is constant for a dense mixture.
        """

        rank: Width = 64
        num_experts: Many = 4
        num_heads: Many = 3
        top_k: Many = 1
        balance_weight: float = Field(0.01, ge=0.0)
        dropout: Rate = 0.0
        scale: float = 1.0
        mixture: bool = True
        shared: bool | None = None
        expert: str | None = None
        norms: bool = True
        prompts: bool = True
        prompt_gelu: bool = False
        prompt_vectors: bool | None = None
        final_norm: bool | None = None
        soft_balance: bool | None = None

        @property
        def makes_prompts(self) -> bool:
            """Whether each block generates one prompt (the option ``prompts``)."""
            return self.prompts

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """The FFN, and the norm before it where that is trained."""
            return ("norm2", "ffn") if self.norms else ("ffn",)

        def left_without_mixture(self) -> bool:
            """Whether anything is left of the method without the mixture."""
            return self.norms or self.prompts

        def problems(self, backbone: Backbone.Options) -> Iterator[tuple[str, str]]:
            """Nothing left of the method, widths that do not divide, more chosen experts than there are."""
            yield from super().problems(backbone)
            if self.expert is not None and self.expert not in ADAPTERS:
                known = list(ADAPTERS)
                yield (
                    "expert",
                    f"unknown adapter '{self.expert}'{did_you_mean(self.expert, known)} Known: {', '.join(known)}",
                )
            if not self.mixture:
                if not self.left_without_mixture():
                    yield (
                        "mixture",
                        "mixture and all other parts are all off, which leaves nothing of the method; switch one on, "
                        "or use method.name=linear",
                    )
                return
            yield from mixture_problems(backbone.stages(), self.num_experts, self.num_heads, self.top_k)
            depth = sum(stage.depth for stage in backbone.stages())
            if self.shared is False and self.num_experts * depth > MOST_EXPERTS:
                yield (
                    "num_experts",
                    f"{self.num_experts} experts in each of {depth} blocks exceed {MOST_EXPERTS:,}; lower it",
                )

    def __init__(self, options: SharedMixtureMethod.Options) -> None:
        super().__init__(options)
        self.options: SharedMixtureMethod.Options = options

    def attach(self, backbone: Host) -> None:
        """Creates the mixture and one prompt generator a block."""
        super().attach(backbone)
        options = self.options
        self.serial = ADAPTERS[options.expert or self.kind].serial
        own = options.mixture and options.shared is False
        shared, stages, blocks = options.mixture and not own, backbone.stages, backbone.every_block()
        several = shared and len(stages) > 1
        self.mixture = self._make_mixture(stages[0].width) if shared and not several else None
        self.stage_mixtures = nn.ModuleList(self._make_mixture(stage.width) for stage in stages if several)
        self.block_mixtures = nn.ModuleList(self._make_mixture(block.width) for block in blocks if own)
        vectors = not self.scalar_prompts if options.prompt_vectors is None else options.prompt_vectors
        scale = 1.0 if options.mixture else 0.0
        self.prompt_generators = nn.ModuleList(
            ScaleShift(block.width if vectors else 1, scale=scale) for block in blocks if options.prompts
        )

    @property
    def routes(self) -> bool:
        """Whether a mixture is in use, which an ablation may switch off."""
        return self.options.mixture

    def mixture_of(self, index: int) -> nn.Module | None:
        """The mixture that serves a block, by the block's number."""
        if self.block_mixtures:
            return self.block_mixtures[index]
        return self.stage_mixtures[self.stage_of[index]] if self.stage_mixtures else self.mixture

    def _make_mixture(self, dim: int) -> SharedMixture:
        options = self.options
        return SharedMixture(
            self.make_expert,
            dim,
            options.rank,
            options.num_experts,
            options.num_heads,
            options.top_k,
            soft_balance=bool(options.soft_balance),
        )

    def make_expert(self, width: int) -> nn.Module:
        """An expert for sub-tokens of ``width``, (T, width) -> (T, width), zero at the start."""
        return ADAPTERS[self.options.expert or self.kind].make(width, self.options.rank, self.options.dropout)

    def trained_backbone_parameters(self, backbone: Host) -> Iterator[nn.Parameter]:
        """Each block's norm2, class token and its position, the final norm where it is trained."""
        for block in backbone.every_block() if self.options.norms else ():
            yield from block.site("norm2").module.parameters()
        yield from super().trained_backbone_parameters(backbone)
        wanted = self.options.final_norm
        if self.trains_final_norm if wanted is None else wanted:
            yield from backbone.norm.parameters()

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> FfnUpdate:
        """s times the mixture's output, the block's prompt, and the block's balance loss."""
        mixture = self.mixture_of(index)
        if mixture is None:
            return FfnUpdate(torch.zeros_like(ffn_output), self._prompt(index, ffn_output))
        mixed, balance, routing = mixture(ffn_output if self.serial else ffn_input)
        self.note(routing, self.stage_of[index])
        return FfnUpdate(self.options.scale * mixed, self._prompt(index, mixed), balance)

    def _prompt(self, index: int, source: Tensor) -> Tensor | None:
        if not self.options.prompts:
            return None
        source = F.gelu(source) if self.options.prompt_gelu else source
        return self.prompt_generators[index](source.mean(dim=1, keepdim=True))
