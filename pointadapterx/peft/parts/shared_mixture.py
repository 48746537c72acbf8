"""The X-family: a mixture shared by all blocks of a stage, of any kind of adapter (Adapter-X, arXiv 2406.03051)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.errors import ConfigError
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.block import FfnUpdate
from pointadapterx.models.features import Features
from pointadapterx.models.frozen import EarlyBlocks, Frozen
from pointadapterx.models.host import Host
from pointadapterx.peft.base import Method
from pointadapterx.peft.parts.bottlenecks import ADAPTERS
from pointadapterx.peft.parts.late import Waiting, early_blocks, frozen_before, late_class_token, run_late
from pointadapterx.peft.parts.layer_scales import FfnScales
from pointadapterx.peft.parts.mixture import SharedMixture
from pointadapterx.peft.parts.neighbours import NeighbourBranch, Surroundings, require_places
from pointadapterx.peft.parts.routed import RoutedMethod
from pointadapterx.peft.parts.scale_shift import ScaleShift
from pointadapterx.peft.parts.shared_options import SharedMixtureOptions


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

    class Options(SharedMixtureOptions):
        """See :class:`~pointadapterx.peft.parts.shared_options.SharedMixtureOptions`."""

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
        if options.layer_scale:
            FfnScales(backbone, serial=ADAPTERS[options.expert or self.kind].serial)

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
        self._scaled = FfnScales(backbone, serial=self.serial) if options.layer_scale else None
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
        """Sharpens the mixture, see :attr:`~.SharedMixtureOptions.dense_epochs`."""
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
        update = mixed if self.options.scale == 1.0 else self.options.scale * mixed
        if self._scaled is not None:
            update = self._scaled(index, update)
        return FfnUpdate(update, self._prompt(index, mixed), balance)

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
        # The gradient of `mean` would be written out for every token.
        return self.prompt_generators[index](source.sum(dim=1, keepdim=True) / source.shape[1])
