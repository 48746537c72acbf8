"""The X-family: a mixture shared by all blocks of a stage, of any kind of adapter (Adapter-X, arXiv 2406.03051)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.errors import ConfigError
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.block import FfnUpdate
from pointadapterx.models.features import Features
from pointadapterx.models.frozen import EarlyBlocks, Frozen
from pointadapterx.models.host import Host
from pointadapterx.peft.base import Method
from pointadapterx.peft.parts.bottlenecks import ADAPTERS
from pointadapterx.peft.parts.late import (
    Waiting,
    early_blocks,
    frozen_before,
    late_class_token,
    late_problems,
    run_late,
)
from pointadapterx.peft.parts.mixture import SharedMixture, mixture_problems
from pointadapterx.peft.parts.neighbours import NeighbourBranch, Surroundings, require_places
from pointadapterx.peft.parts.routed import RoutedMethod
from pointadapterx.peft.parts.scale_shift import ScaleShift
from pointadapterx.registry import did_you_mean
from pointadapterx.schema import Many, Rate, Width

Factor = Annotated[float, Field(gt=0.0, le=1_000.0)]
"""Of a learning rate."""
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
            inject_from: K, number of the first block, from 0, whose tokens are changed. What the mixture says of the
                blocks before, and their prompts, wait and join the tokens on their way into block K, so no gradient
                enters those blocks; their norm2 is not trained, and a class token from block K on. None: from the first
                block on.
            neighbours: k nearest centres that a branch beside the mixture looks at, one for all blocks of a stage, see
                :class:`~pointadapterx.peft.parts.neighbours.NeighbourBranch`; on a grid those within one patch. None:
                no such branch.
            train_position: whether the layers that make positions of centres are trained.
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
            *("inject_from", "neighbours", "train_position"),
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
            return (
                "inject_from: only backbones of this package run what waits; leave it out" if self.inject_from else ""
            )

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
            if not self.mixture and (self.inject_from is not None or self.neighbours is not None):
                key = "neighbours" if self.inject_from is None else "inject_from"
                yield key, "belongs to the mixture, which is off; remove one"
            if self.inject_from is not None and self.train_position:
                yield "train_position", "puts a gradient into the blocks that inject_from leaves without; remove one"

    def __init__(self, options: SharedMixtureMethod.Options) -> None:
        super().__init__(options)
        self.options: SharedMixtureMethod.Options = options
        self._clear()

    def require(self, backbone: Host) -> None:
        """Also refuses a backbone without what the options ask of it."""
        super().require(backbone)
        name, options = type(self.options).model_fields["name"].default, self.options
        if options.neighbours is not None:
            require_places(backbone, f"method.neighbours of {name}")
        if options.train_position and not backbone.position_layers():
            raise ConfigError(
                f"method.train_position: backbone {backbone.title} has no layers that make positions; remove the key"
            )

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
        near = stages if options.neighbours is not None else ()
        self.around = nn.ModuleList(Surroundings(stage, options.neighbours or 1) for stage in near)
        self.neighbour_branches = nn.ModuleList(NeighbourBranch(stage.width, options.rank) for stage in near)
        first = self.first = options.inject_from or 0
        self.late_class = late_class_token(backbone, first) if options.inject_from is not None else None

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
            normalize=options.gate == "normalized",
        )

    def make_expert(self, width: int) -> nn.Module:
        """An expert for sub-tokens of ``width``, (T, width) -> (T, width), zero at the start."""
        return ADAPTERS[self.options.expert or self.kind].make(width, self.options.rank, self.options.dropout)

    def trained_backbone_parameters(self, backbone: Host) -> Iterator[nn.Parameter]:
        """Each block's norm2, class token and its position, the final norm where it is trained."""
        for block in backbone.every_block()[self.first :] if self.options.norms else ():
            yield from block.site("norm2").module.parameters()
        if self.options.inject_from is None:
            yield from super().trained_backbone_parameters(backbone)
        for layer in backbone.position_layers() if self.options.train_position else ():
            yield from layer.parameters()
        wanted = self.options.final_norm
        if self.trains_final_norm if wanted is None else wanted:
            yield from backbone.norm.parameters()

    def learning_rates(self, backbone: Host) -> Iterator[tuple[Iterable[nn.Parameter], float]]:
        """Of routers, experts and the backbone's norms, as factors of ``train.lr``."""
        options, mixtures = self.options, [m for m in self.modules() if isinstance(m, SharedMixture)]
        yield [p for mixture in mixtures for p in mixture.router.parameters()], options.router_rate
        experts = [*(mixture.experts for mixture in mixtures), self.neighbour_branches]
        yield [p for each in experts for p in each.parameters()], options.expert_rate
        norms = [block.site("norm2").module for block in backbone.every_block()] if options.norms else []
        yield [p for norm in (*norms, backbone.norm) for p in norm.parameters()], options.norm_rate

    def begin_epoch(self, epoch: int) -> None:
        """Sharpens the mixture, see :attr:`Options.dense_epochs`."""
        dense = self.options.dense_epochs
        for mixture in self.modules():
            if isinstance(mixture, SharedMixture):
                mixture.sharpness = min(epoch / dense, 1.0) if dense else 1.0

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """What is added to a class token from block K on."""
        if self.late_class is not None:
            yield from self.late_class.parameters()

    def run(self, backbone: Backbone, inputs: Tensor | Frozen, keep: Collection[int] = ()) -> Features:
        """Runs the backbone; also from what was kept of the blocks before the first that is changed."""
        try:
            features = super().run(backbone, inputs, keep)
            return features._replace(losses=[*self._waiting.losses, *features.losses])
        finally:
            self._clear()

    def resume(self, backbone: Backbone, kept: EarlyBlocks, keep: Collection[int]) -> Features:
        """The pass from block K on."""
        self.enter_stage(0, kept.centers)
        for index, read in enumerate(kept.read.unbind(1)):
            self._waiting.take(self._mixed(index, read))
        return run_late(backbone, self, kept, self.first, keep)

    @property
    def remembers(self) -> bool:
        """The neighbours, and what waits for block K."""
        return self.options.neighbours is not None or self.options.inject_from is not None

    def begin(self) -> None:
        """Also forgets the neighbours of the previous pass."""
        super().begin()
        self._clear()

    def _clear(self) -> None:
        self._waiting = Waiting()
        self._read: Tensor | None = None  # by the mixture in a block before K
        self._centers: dict[int, Tensor | None] = {}
        self._graphs: dict[int, Tensor] = {}

    def enter_stage(self, number: int, centers: Tensor | None) -> None:
        """Keeps the centres, where neighbours are looked for."""
        self._centers[number] = centers

    def leave_stage(self, tokens: Tensor, lead: Callable[[Tensor], Tensor]) -> None:
        """What waits goes the same way as the tokens."""
        self._waiting.lead(tokens, lead)

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        """On the way into block K, adds what has waited."""
        if self.options.inject_from is None:
            return tokens
        if self.late_class is not None:
            tokens = self.late_class(index, tokens)
        return self._waiting.join(tokens) if index == self.first else tokens

    def after_block(self, index: int, tokens: Tensor) -> Tensor:
        """Before block K, computes what waits; here, as a block may be run again for the backward pass."""
        if index < self.first:
            assert self._read is not None
            self._waiting.take(self._mixed(index, self._read))
        return tokens

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> FfnUpdate | None:
        """s times the mixture's output, the block's prompt, and the block's balance loss; nothing before block K."""
        if not self.options.mixture:
            return FfnUpdate(torch.zeros_like(ffn_output), self._prompt(index, ffn_output))
        read = ffn_output if self.serial else ffn_input
        if index < self.first:
            self._read = read
            return None
        return self._mixed(index, read)

    def _mixed(self, index: int, read: Tensor) -> FfnUpdate:
        """What the mixture, and the branch of the neighbours, make of what a block gives to read."""
        mixture, stage = self.mixture_of(index), self.stage_of[index]
        assert mixture is not None
        mixed, balance, routing = mixture(read)
        self.note(routing, stage)
        if self.neighbour_branches:
            mixed = mixed + self.neighbour_branches[stage](read, self._graph(stage, len(read)))
        return FfnUpdate(self.options.scale * mixed, self._prompt(index, mixed), balance)

    def _graph(self, stage: int, batch: int) -> Tensor:
        """Neighbours of each patch of a stage, found once a pass."""
        if stage not in self._graphs or len(self._graphs[stage]) != batch:
            self._graphs[stage] = self.around[stage](self._centers.get(stage), batch)
        return self._graphs[stage]

    def precompute(self, backbone: Backbone, inputs: Tensor, keep: Collection[int] = ()) -> Frozen:
        """What the blocks before K give to read, and their outcome; else the patches."""
        if keep or self.options.inject_from is None or backbone.foreign or len(backbone.stages) > 1:
            return super().precompute(backbone, inputs, keep)
        return early_blocks(backbone, inputs, self.first, lambda early: [pair[self.serial] for pair in early.ffn])

    @property
    def precomputed_by(self) -> str:
        """Without blocks that are left as they are, what any method keeps."""
        return Method.precompute.__qualname__ if self.options.inject_from is None else super().precomputed_by

    def frozen_state(self, backbone: Backbone) -> Mapping[str, Tensor]:
        """Also of the blocks before K, where there is one."""
        if self.options.inject_from is None:
            return super().frozen_state(backbone)
        return {**frozen_before(backbone, self.first), "behind the FFN": torch.tensor(self.serial)}

    def _prompt(self, index: int, source: Tensor) -> Tensor | None:
        if not self.options.prompts:
            return None
        source = F.gelu(source) if self.options.prompt_gelu else source
        return self.prompt_generators[index](source.mean(dim=1, keepdim=True))
