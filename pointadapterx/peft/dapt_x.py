"""DAPT-X: Adapter-X on point clouds, with DAPT's dynamic adapters as the experts (arXiv 2406.03051)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.models.backbone import Backbone, Features
from pointadapterx.models.block import Adaptation, Block
from pointadapterx.peft.adapters import DynamicAdapter
from pointadapterx.peft.base import METHODS, Method, ScaleShift, tap
from pointadapterx.peft.mixture import Routing, SharedMixture, routing_statistics
from pointadapterx.schema import Distinct, Rate

TftsPlace = Literal["patch", "norm1", "qkv", "proj", "fc1", "fc2"]
"""After the patch encoder, or after this layer of every block. norm2 is not among them: ``norms`` trains it."""


@METHODS.register("dapt_x")
class DaptX(Method):
    """One shared mixture of dynamic adapters; per block a trainable norm2 and a prompt generator.

    Block i (§3.2, §3.3): ``u = norm2_i(h); a = SMoA(u); y = h + mlp(u) + s·a; p_i = γ_i ⊙ mean(a) + β_i``.
    Trains: the mixture, each block's norm2 and prompt generator, class token and its position, the final
    norm, the head: 415,699 parameters for ScanObjectNN. Extra cost: one token more after each block, and
    per sub-token one expert of rank r.

    Each part can be switched off for an ablation. Without the mixture nothing is added to the FFN, and the
    prompts are made of the FFN's output: ``p_i = γ_i ⊙ mean(mlp(u)) + β_i``. That is what is left where the
    mixture stands behind the FFN, as in the paper's serial Adapter-X. γ_i then starts at 0 instead of 1, so
    that the prompts are zero tokens at the start in every variant.

    Attributes:
        mixture: the shared mixture, or None without it.
        block_mixtures: one a block with ``shared: false``, else empty.
    """

    mixture: SharedMixture | None

    class Options(Method.Options):
        """``method: {name: dapt_x, ...}``.

        Attributes:
            rank: bottleneck width r of the experts and width of the router's embeddings.
            num_experts: E.
            num_heads: h, sub-tokens a token is split into.
            top_k: experts per sub-token; ``num_experts`` is the dense mixture.
            balance_weight: α of equation 7.
            dropout: dropout inside the experts.
            scale_bias: initial bias of the token scale, see :class:`~pointadapterx.peft.adapters.DynamicAdapter`.
            scale: s, factor of the mixture's output.
            mixture: whether there is the shared mixture; without it the keys above mean nothing.
            shared: False gives every block a mixture of its own, router included. None: one for all, as published.
            norms: whether each block's norm2 is trained.
            prompts: whether each block generates a prompt token.
            prompt_gelu: GELU before the mean of the prompt generator, as DAPT has it.
            tfts: places that get a TFTS, γ ⊙ x + β, as DAPT has there. It starts as the identity. None: nowhere,
                the published form, which trains nothing inside the attention branch.
        """

        name: Literal["dapt_x"] = "dapt_x"
        rank: int = Field(24, ge=1)
        num_experts: int = Field(4, ge=1)
        num_heads: int = Field(3, ge=1)
        top_k: int = Field(1, ge=1)
        balance_weight: float = Field(0.01, ge=0.0)
        dropout: Rate = 0.0
        scale_bias: float | None = None
        scale: float = 1.0
        mixture: bool = True
        shared: bool | None = None
        norms: bool = True
        prompts: bool = True
        prompt_gelu: bool = False
        tfts: Annotated[list[TftsPlace], Field(min_length=1), Distinct] | None = None

        @property
        def makes_prompts(self) -> bool:
            """One prompt a block."""
            return self.prompts

        def problems(self, dim: int) -> Iterator[tuple[str, str]]:
            """Nothing left of the method, widths that do not divide, more experts asked for than there are."""
            if not (self.mixture or self.norms or self.prompts or self.tfts):
                yield (
                    "mixture",
                    "mixture, norms, prompts and tfts are all off, which leaves nothing of dapt_x; switch one on, "
                    "or use method.name=linear",
                )
            if not self.mixture:
                return
            if dim % self.num_heads != 0:
                yield (
                    "num_heads",
                    f"{self.num_heads} sub-tokens do not divide backbone.dim={dim}; choose a divisor of {dim}",
                )
            if self.top_k > self.num_experts:
                yield (
                    "top_k",
                    f"{self.top_k} exceeds num_experts={self.num_experts}; lower it to {self.num_experts}",
                )

    def __init__(self, options: DaptX.Options) -> None:
        super().__init__(options)
        self.options: DaptX.Options = options
        self._routings: list[Routing] = []  # one a block, of the last pass in training mode

    def attach(self, backbone: Backbone) -> None:
        """Creates the shared mixture and one prompt generator a block."""
        options = self.options
        self.num_patches = backbone.num_patches
        own = options.mixture and options.shared is False
        self.mixture = self._make_mixture(backbone.dim) if options.mixture and not own else None
        self.block_mixtures = nn.ModuleList(self._make_mixture(backbone.dim) for _ in backbone.blocks if own)
        count = len(backbone.blocks) if options.prompts else 0
        scale = 1.0 if options.mixture else 0.0
        self.prompt_generators = nn.ModuleList(ScaleShift(backbone.dim, scale=scale) for _ in range(count))
        self._attach_tfts(backbone)

    def _attach_tfts(self, backbone: Backbone) -> None:
        wanted = self.options.tfts or []
        self.patch_tfts = ScaleShift(backbone.dim) if "patch" in wanted else None
        if self.patch_tfts is not None:
            tap(backbone.patch_module, self.patch_tfts)
        self.block_tfts = nn.ModuleList()
        for block in backbone.blocks if wanted else ():
            assert isinstance(block, Block)
            leaves = {name: leaf for name, leaf in block.leaves().items() if name in wanted}
            of_block = nn.ModuleDict({name: ScaleShift(width) for name, (_, width) in leaves.items()})
            for name, (leaf, _) in leaves.items():
                tap(leaf, of_block[name])
            self.block_tfts.append(of_block)

    def _make_mixture(self, dim: int) -> SharedMixture:
        options = self.options
        return SharedMixture(
            lambda width: DynamicAdapter(width, options.rank, options.dropout, options.scale_bias),
            dim,
            options.rank,
            options.num_experts,
            options.num_heads,
            options.top_k,
        )

    def trained_backbone_parameters(self, backbone: Backbone) -> Iterator[nn.Parameter]:
        """Each block's norm2, class token and its position, the final norm."""
        for block in backbone.blocks if self.options.norms else ():
            assert isinstance(block, Block)
            yield from block.norm2.parameters()
        yield from backbone.class_parameters().values()
        yield from backbone.norm.parameters()

    def run(self, backbone: Backbone, inputs: Tensor) -> Features:
        """The backbone's pass; forgets the routing of the pass before."""
        self._routings = []
        return super().run(backbone, inputs)

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> Adaptation:
        """s · SMoA(u), the block's prompt, and the block's balance loss."""
        mixture = self.block_mixtures[index] if self.block_mixtures else self.mixture
        if mixture is None:
            return Adaptation(torch.zeros_like(ffn_output), self._prompt(index, ffn_output))
        mixed, balance, routing = mixture(ffn_input)
        if self.training:
            self._routings.append(routing)
        return Adaptation(self.options.scale * mixed, self._prompt(index, mixed), balance)

    def _prompt(self, index: int, source: Tensor) -> Tensor | None:
        if not self.options.prompts:
            return None
        source = F.gelu(source) if self.options.prompt_gelu else source
        return self.prompt_generators[index](source.mean(dim=1, keepdim=True))

    def auxiliary_loss(self, losses: list[Tensor]) -> Tensor | None:
        """α times the mean balance loss over blocks (equation 7)."""
        return self.options.balance_weight * torch.stack(losses).mean()

    def statistics(self) -> dict[str, Tensor]:
        """Health of the routing, see :func:`~pointadapterx.peft.mixture.routing_statistics`."""
        routings, self._routings = self._routings, []
        return routing_statistics(routings, self.num_patches) if routings else {}
