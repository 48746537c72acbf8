"""The keys of the X-family (Adapter-X, arXiv 2406.03051)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from pointadapterx.models.backbone import Backbone
from pointadapterx.peft.base import Method
from pointadapterx.peft.parts.bottlenecks import ADAPTERS
from pointadapterx.peft.parts.late import late_problems
from pointadapterx.peft.parts.mixture import mixture_problems
from pointadapterx.registry import did_you_mean
from pointadapterx.schema import Many, Rate, Width

Factor = Annotated[float, Field(gt=0.0, le=1_000.0)]
"""Of a learning rate."""
MOST_EXPERTS = 2**16  # of all blocks together: each is a module, and as many take minutes to make


class SharedMixtureOptions(Method.Options):
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
        inject_from: K, number of the first block, from 0, whose tokens are changed. What the mixture says of the
            blocks before, and their prompts, wait and join the tokens on their way into block K, so no gradient
            enters those blocks; their norm2 is not trained, and a class token from block K on. None: from the first
            block on.
        neighbours: k nearest centres that a branch beside the mixture looks at, one for all blocks of a stage, see
            :class:`~pointadapterx.peft.parts.neighbours.NeighbourBranch`; on a grid those within one patch. None:
            no such branch.
        train_position: whether the layers that make positions of centres are trained.
        layer_scale: whether the mixture's output passes the LayerScale of the block's FFN, see
            :class:`~pointadapterx.peft.parts.layer_scales.FfnScales`; only beside the FFN.
        gate: ``"raw"``: an output is multiplied by its gate, near 1 / E at the start, as published;
            ``"normalized"``: by the gate over the sum of the chosen gates, so that ``scale`` and learning rate mean
            the same for every E, see :class:`~pointadapterx.peft.parts.mixture.SharedMixture`.
        dense_epochs: training starts with the dense mixture, which sharpens to the ``top_k`` chosen experts over so
            many epochs; what is evaluated is always the latter.
        router_rate: factor of the learning rate of the router.
        expert_rate: the same of the experts, and of the branch of the neighbours.
        norm_rate: the same of the backbone's norms.
    """

    unwritten = (
        *("inject_from", "neighbours", "train_position", "layer_scale"),
        *("gate", "dense_epochs", "router_rate", "expert_rate", "norm_rate"),
    )

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
    inject_from: Annotated[int, Field(ge=0)] | None = None
    neighbours: Width | None = None
    train_position: bool = False
    layer_scale: bool = False
    gate: Literal["raw", "normalized"] = "raw"
    dense_epochs: int = Field(0, ge=0, le=10**6)
    router_rate: Factor = 1.0
    expert_rate: Factor = 1.0
    norm_rate: Factor = 1.0

    @property
    def makes_prompts(self) -> bool:
        """Whether each block generates one prompt (the option ``prompts``)."""
        return self.prompts

    @property
    def counts_patches(self) -> bool:
        """With neighbours the patches are the last so many tokens."""
        return self.neighbours is not None

    @property
    def needs_sites(self) -> tuple[str, ...]:
        """The FFN, and the norm before it where that is trained."""
        return ("norm2", "ffn") if self.norms else ("ffn",)

    def left_without_mixture(self) -> bool:
        """Whether anything is left of the method without the mixture."""
        return self.norms or self.prompts

    @property
    def needs_own_pass(self) -> str:
        """Late injection."""
        return "inject_from: only backbones of this package run what waits; leave it out" if self.inject_from else ""

    def problems(self, backbone: Backbone.Options) -> Iterator[tuple[str, str]]:
        """Nothing left of the method, widths that do not divide, more chosen experts than there are."""
        yield from super().problems(backbone)
        if self.expert is not None and self.expert not in ADAPTERS:
            known = list(ADAPTERS)
            yield (
                "expert",
                f"unknown adapter '{self.expert}'{did_you_mean(self.expert, known)} Known: {', '.join(known)}",
            )
        yield from self._young_problems(backbone)
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

    def _young_problems(self, backbone: Backbone.Options) -> Iterator[tuple[str, str]]:
        yield from late_problems(self.inject_from, backbone.stages(), backbone.name, prompts=self.prompts)
        of_mixture = ("inject_from", "neighbours", "layer_scale")
        given = [key for key in of_mixture if getattr(self, key) is not None and getattr(self, key) is not False]
        if not self.mixture and given:
            yield given[0], "belongs to the mixture, which is off; remove one"
        if self.inject_from is not None and self.train_position:
            yield "train_position", "puts a gradient into the blocks that inject_from leaves without; remove one"
