"""DAPT-X: Adapter-X on point clouds, with DAPT's dynamic adapters as the experts (arXiv 2406.03051)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.models.backbone import Backbone
from pointadapterx.models.block import Adaptation, Block
from pointadapterx.peft.adapters import DynamicAdapter
from pointadapterx.peft.base import METHODS, Method, ScaleShift
from pointadapterx.peft.mixture import SharedMixture
from pointadapterx.schema import Rate


@METHODS.register("dapt_x")
class DaptX(Method):
    """One shared mixture of dynamic adapters; per block a trainable norm2 and a prompt generator.

    Block i (§3.2, §3.3): ``u = norm2_i(h); a = SMoA(u); y = h + mlp(u) + s·a; p_i = γ_i ⊙ mean(a) + β_i``.
    Trains: the mixture, each block's norm2 and prompt generator, class token and its position, the final
    norm, the head: 415,699 parameters for ScanObjectNN. Extra cost: one token more after each block, and
    per sub-token one expert of rank r.
    """

    class Options(Method.Options):
        """``method: {name: dapt_x, ...}``.

        Attributes:
            rank: bottleneck width r of the experts and width of the router's embeddings.
            num_experts: E.
            num_heads: h, sub-tokens a token is split into.
            top_k: experts per sub-token; ``num_experts`` is the dense mixture.
            balance_weight: α of equation 7.
            dropout: dropout inside the experts.
            scale: s, factor of the mixture's output.
            prompts: whether each block generates a prompt token.
            prompt_gelu: GELU before the mean of the prompt generator, as DAPT has it.
        """

        name: Literal["dapt_x"] = "dapt_x"
        rank: int = Field(24, ge=1)
        num_experts: int = Field(4, ge=1)
        num_heads: int = Field(3, ge=1)
        top_k: int = Field(1, ge=1)
        balance_weight: float = Field(0.01, ge=0.0)
        dropout: Rate = 0.0
        scale: float = 1.0
        prompts: bool = True
        prompt_gelu: bool = False

        @property
        def makes_prompts(self) -> bool:
            """One prompt a block."""
            return self.prompts

        def problems(self, dim: int) -> Iterator[tuple[str, str]]:
            """Widths that do not divide, more experts asked for than there are."""
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

    def attach(self, backbone: Backbone) -> None:
        """Creates the shared mixture and one prompt generator a block."""
        options = self.options
        self.mixture = SharedMixture(
            lambda width: DynamicAdapter(width, options.rank, options.dropout),
            backbone.dim,
            options.rank,
            options.num_experts,
            options.num_heads,
            options.top_k,
        )
        count = len(backbone.blocks) if options.prompts else 0
        self.prompt_generators = nn.ModuleList(ScaleShift(backbone.dim) for _ in range(count))

    def trained_backbone_parameters(self, backbone: Backbone) -> Iterator[nn.Parameter]:
        """Each block's norm2, class token and its position, the final norm."""
        for block in backbone.blocks:
            assert isinstance(block, Block)
            yield from block.norm2.parameters()
        yield from backbone.class_parameters().values()
        yield from backbone.norm.parameters()

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> Adaptation:
        """s · SMoA(u), the block's prompt, and the block's balance loss."""
        mixed, balance = self.mixture(ffn_input)
        prompt = None
        if self.options.prompts:
            source = F.gelu(mixed) if self.options.prompt_gelu else mixed
            prompt = self.prompt_generators[index](source.mean(dim=1, keepdim=True))
        return Adaptation(self.options.scale * mixed, prompt, balance)

    def auxiliary_loss(self, losses: list[Tensor]) -> Tensor | None:
        """α times the mean balance loss over blocks (equation 7)."""
        return self.options.balance_weight * torch.stack(losses).mean()
