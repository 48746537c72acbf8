"""NOAH: adapter, LoRA and VPT in one supernet, and a search for the size of each in every block (arXiv 2206.04673)."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from pointadapterx.models.backbone import Backbone
from pointadapterx.models.block import FfnUpdate
from pointadapterx.models.features import Features
from pointadapterx.models.frozen import Frozen
from pointadapterx.models.host import Host
from pointadapterx.models.tokens import insert_after_cls
from pointadapterx.peft.base import METHODS, Method
from pointadapterx.peft.lora import LowRank, LowRankQkv
from pointadapterx.peft.parts.bottlenecks import Bottleneck
from pointadapterx.schema import Distinct, Rate, Section, Times, Width

OptionalWidth = Annotated[int, Field(ge=0, le=2**16)]
Widths = Annotated[list[OptionalWidth], Field(min_length=1, max_length=1_000)]
DistinctWidths = Annotated[list[Width], Field(min_length=1, max_length=1_000), Distinct]

COMPONENTS = ("prompts", "lora", "adapter")
Architecture = dict[str, list[int]]
"""By kind: prompt tokens, LoRA's r and the adapter's r of each block; 0 is none."""


class ArchitectureConfig(Section):
    """``method.architecture:``: one number a block for each kind, see :data:`Architecture`."""

    prompts: Widths
    lora: Widths
    adapter: Widths


class SearchConfig(Section):
    """``method.search:``: the evolutionary search among the supernet's architectures.

    Attributes:
        budget: parameters of prompts, LoRA and adapters together that an architecture may have.
        population: architectures of a generation.
        generations: number of generations, the random first one included.
        parents: number of best architectures so far from which the next generation is derived.
        mutation: probability that a mutation draws a width again.
        depth_mutation: probability that a mutation draws a component's depth again.
    """

    budget: int = Field(640_000, ge=1)
    population: int = Field(50, ge=2, le=10**6)
    generations: Times = 20
    parents: Times = 10
    mutation: float = Field(0.2, ge=0.0, le=1.0)
    depth_mutation: float = Field(0.4, ge=0.0, le=1.0)


class SlicedLowRank(LowRank):
    """Low-rank update of which only the first ``active`` ranks are used."""

    active: int = 0

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., width) -> (..., out); zeros with no rank active."""
        hidden = F.linear(self.dropout(tokens), self.down.weight[: self.active])
        return self.scale * F.linear(hidden, self.up.weight[:, : self.active])

    def third(self, tokens: Tensor, place: int) -> Tensor:
        """See :meth:`~pointadapterx.peft.lora.LowRank.third`."""
        hidden = F.linear(self.dropout(tokens), self.down.weight[: self.active])
        return self.scale * F.linear(hidden, self.up.weight[:, : self.active].chunk(3)[place])


class SlicedBottleneck(Bottleneck):
    """Adapter of which only the first ``active`` hidden units are used."""

    active: int = 0

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., C); zeros with no unit active."""
        hidden = F.linear(tokens, self.down.weight[: self.active], self.down.bias[: self.active])
        hidden = self.dropout(self.activation(hidden))
        return F.linear(hidden, self.up.weight[:, : self.active], self.up.bias * (self.active > 0))


class QuickGelu(nn.Module):
    """x · sigmoid(1.702 x), which is close to GELU."""

    def forward(self, values: Tensor) -> Tensor:
        """x · sigmoid(1.702 x) of values of any shape."""
        return values * torch.sigmoid(1.702 * values)


@METHODS.register("noah")
class Noah(Method):
    """Prompts before each block, LoRA at its queries and values, an adapter behind its FFN; each of its own width.

    Without ``architecture`` this is the supernet: every module has the largest width, and each training pass draws an
    architecture whose widths are the first rows and columns of the shared weights (§3.2). ``--search RUN`` looks for
    the best one within a budget on the validation part and writes a config with it, which is then trained from the
    start (§3.3). The first ``depth`` blocks have a kind, those behind it have none. In evaluation, and to select its
    epoch, the supernet is its largest architecture.

    Trains the modules, class token and its position where they are not pre-trained, and the head. An architecture has
    P · C a block for prompts, 4 r · C for LoRA, 2 r · C + r + C for the adapter: 0.36 M on average over VTAB-1K on
    ViT-B. Extra cost: those of the three methods; to find it, one training of the supernet and
    population x generations evaluations on the validation part.
    """

    class Options(Method.Options):
        """``method: {name: noah, ...}``.

        Attributes:
            widths: what a block's prompts, LoRA's r and adapter's r may be.
            depths: how many blocks may have a kind; None is a quarter, a half, three quarters and all of them.
            architecture: the one that is trained; None is the supernet.
            search: of the search among the supernet's architectures.
            joint_lora: one update of queries, keys and values that share A, instead of one each of queries and values;
                the number of parameters is the same. Published: true. None: false.
            quick_gelu: QuickGELU in the adapters instead of GELU. Published: true. None: false.
            xavier: draws prompts and both layers of an adapter by Xavier's rule, biases with 10⁻⁶; adapters then do not
                start as zero. Published: true. None: false.
            dropout: of prompts, of LoRA's input and in the adapters. Published: 0.1. None: 0.
        """

        name: Literal["noah"] = "noah"
        widths: DistinctWidths = [5, 10, 50, 100]  # noqa: RUF012
        depths: DistinctWidths | None = None
        architecture: ArchitectureConfig | None = None
        search: SearchConfig = SearchConfig.model_validate({})
        joint_lora: bool | None = None
        quick_gelu: bool | None = None
        xavier: bool | None = None
        dropout: Rate | None = None

        @property
        def needs_class_token(self) -> bool:
            """For its prompts, of which an architecture may have none."""
            return self.architecture is None or any(self.architecture.prompts)

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """Those of its three components."""
            return ("qkv", "ffn", "block")

        def problems(self, backbone: Backbone.Options) -> Iterator[tuple[str, str]]:
            """Reports depths or architectures that do not fit the backbone or are empty, and a budget that is too
            small."""
            yield from super().problems(backbone)
            dims = [stage.width for stage in backbone.stages() for _ in range(stage.depth)]
            depth = len(dims)
            beyond = [number for number in self.depths or () if number > depth]
            if beyond:
                yield "depths", f"{beyond} exceed the {depth} blocks of the backbone"
                return
            if self.architecture is None:
                space = SearchSpace.of(self, dims)
                least = space.cost(space.smallest)
                if least > self.search.budget:
                    yield (
                        "search.budget",
                        f"{self.search.budget:,} is less than the {least:,} parameters of the smallest "
                        "architecture; raise it, or lower method.widths and method.depths",
                    )
                return
            widths = self.architecture.model_dump()
            for kind, values in widths.items():
                if len(values) != depth:
                    yield f"architecture.{kind}", f"{len(values)} numbers for {depth} blocks; give one a block"
            if not any(map(sum, widths.values())):
                yield "architecture", "has nothing; use method.name=linear"

    def __init__(self, options: Noah.Options) -> None:
        super().__init__(options)
        self.options: Noah.Options = options

    def attach(self, backbone: Host) -> None:
        """Creates the modules, of the architecture's widths or of the largest ones."""
        options, blocks = self.options, backbone.every_block()
        dims = [block.width for block in blocks]
        self.has_class_token = backbone.has_class_token
        self.firsts = [stage.first for stage in backbone.stages]
        self.space = SearchSpace.of(options, dims)
        chosen = options.architecture
        limits = self.space.largest if chosen is None else chosen.model_dump()
        dropout = options.dropout or 0.0
        self.dropout = nn.Dropout(dropout)
        self.prompts = nn.ParameterDict(
            {str(index): self._prompts(count, dims[index]) for index, count in enumerate(limits["prompts"]) if count}
        )
        self.lora, self.adapters = nn.ModuleDict(), nn.ModuleDict()
        for index, block in enumerate(blocks):
            dim = block.width
            if rank := limits["lora"][index]:
                self.lora[str(index)] = self._lora(dim, rank, dropout)
                self.branch(block.site("qkv"), self.lora[str(index)])
            if rank := limits["adapter"][index]:
                activation = QuickGelu() if options.quick_gelu else nn.GELU()
                self.adapters[str(index)] = SlicedBottleneck(dim, rank, activation, dropout)
                if options.xavier:
                    _draw_as_published(self.adapters[str(index)])
        self.use(limits)

    def _prompts(self, count: int, dim: int) -> nn.Parameter:
        if self.options.xavier:
            return nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, count, dim)))
        return nn.Parameter(0.02 * torch.randn(1, count, dim))

    def _lora(self, dim: int, rank: int, dropout: float) -> nn.Module:
        if self.options.joint_lora:
            return SlicedLowRank(dim, 3 * dim, rank, scale=1.0, dropout=dropout)
        parts = {name: SlicedLowRank(dim, dim, rank, scale=1.0, dropout=dropout) for name in ("q", "v")}
        return LowRankQkv(parts, dim)

    def use(self, architecture: Mapping[str, Sequence[int]]) -> None:
        """Sets the active widths of the modules, each at most the width it was created with."""
        self.active_prompts = list(architecture["prompts"])
        for name, updates in self.lora.items():
            for part in updates.modules():
                if isinstance(part, SlicedLowRank):
                    part.active = architecture["lora"][int(name)]
        for name, adapter in self.adapters.items():
            assert isinstance(adapter, SlicedBottleneck)
            adapter.active = architecture["adapter"][int(name)]

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """The prompt tokens of all blocks."""
        yield from self.prompts.values()

    def train(self, mode: bool = True) -> Noah:
        """In eval mode the supernet, which draws architectures in training, is its largest architecture."""
        leaves = self.training and not mode
        super().train(mode)
        if leaves and self.options.architecture is None:
            self.use(self.space.largest)
        return self

    def run(self, backbone: Backbone, inputs: Tensor | Frozen, keep: Collection[int] = ()) -> Features:
        """The whole pass; in training, of an architecture drawn with torch's random state.

        A supernet that is only counted has no random numbers: it is counted as its largest architecture.
        """
        if self.training and self.options.architecture is None:
            if isinstance(inputs, FakeTensor):
                self.use(self.space.largest)
            else:
                self._use_another()
        return super().run(backbone, inputs, keep)

    @torch.compiler.disable
    def _use_another(self) -> None:
        """The draw is not compiled; the compiler compiles once per architecture, up to its limit."""
        self.use(self.space.draw(random.Random(int(torch.randint(2**31, ())))))

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B, 1 + P + G, C): the block's own prompts replace those of the previous block."""
        if not self.has_class_token:
            return tokens
        previous = 0 if index in self.firsts else self.active_prompts[index - 1]
        tokens = torch.cat([tokens[:, :1], tokens[:, 1 + previous :]], dim=1)
        if str(index) not in self.prompts:
            return tokens
        prompts = self.prompts[str(index)][:, : self.active_prompts[index]]
        return insert_after_cls(tokens, self.dropout(prompts.expand(len(tokens), -1, -1)))

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> FfnUpdate | None:
        """adapter(mlp(u)), if the block has an adapter."""
        if str(index) not in self.adapters:
            return None
        return FfnUpdate(self.adapters[str(index)](ffn_output))


def _draw_as_published(adapter: nn.Module) -> None:
    for layer in adapter.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)


class SearchSpace:
    """The architectures of a supernet.

    Args:
        dims: token width C of each block.
        widths: that a block may have of a kind.
        depths: how many of the first blocks may have a kind.
    """

    def __init__(self, dims: Sequence[int], widths: Sequence[int], depths: Sequence[int]) -> None:
        self.dims = list(dims)
        self.depth = len(self.dims)
        self.widths = sorted(widths)
        self.depths = sorted(depths)

    @classmethod
    def of(cls, options: Noah.Options, dims: Sequence[int]) -> SearchSpace:
        """That of a method on a backbone whose blocks have these widths."""
        quarters = sorted({max(1, round(len(dims) * share / 4)) for share in (1, 2, 3, 4)})
        return cls(dims, options.widths, options.depths or quarters)

    @property
    def largest(self) -> Architecture:
        """Every kind at its largest width in as many blocks as may have it."""
        return {kind: self._padded([self.widths[-1]] * self.depths[-1]) for kind in COMPONENTS}

    @property
    def smallest(self) -> Architecture:
        """Every kind at its smallest width in as few blocks as may have it."""
        return {kind: self._padded([self.widths[0]] * self.depths[0]) for kind in COMPONENTS}

    def cost(self, architecture: Mapping[str, Sequence[int]]) -> int:
        """Parameters of prompts, LoRA and adapters together."""
        blocks = zip(self.dims, *(architecture[kind] for kind in COMPONENTS), strict=True)
        return sum(
            (prompts + 4 * lora) * dim + (2 * adapter * dim + adapter + dim if adapter else 0)
            for dim, prompts, lora, adapter in blocks
        )

    def draw(self, source: random.Random) -> Architecture:
        """An architecture with random depths and widths."""
        return {kind: self._drawn(source.choice(self.depths), source) for kind in COMPONENTS}

    def mutate(self, architecture: Architecture, source: random.Random, options: SearchConfig) -> Architecture:
        """Some kinds of another depth, some widths drawn again."""
        mutated: Architecture = {}
        for kind in COMPONENTS:
            old = [width for width in architecture[kind] if width]
            if source.random() < options.depth_mutation:
                depth = source.choice(self.depths)
                old = old[:depth] + [source.choice(self.widths) for _ in range(depth - len(old))]
            widths = [source.choice(self.widths) if source.random() < options.mutation else width for width in old]
            mutated[kind] = self._padded(widths)
        return mutated

    def cross(self, one: Architecture, other: Architecture, source: random.Random) -> Architecture:
        """A child with each kind's depth from one of two parents, and each width from either if both have one."""
        child: Architecture = {}
        for kind in COMPONENTS:
            first, second = (one, other) if source.random() < 0.5 else (other, one)
            pairs = zip(first[kind], second[kind], strict=True)
            child[kind] = [source.choice([a, b]) if a and b else a for a, b in pairs]
        return child

    def _drawn(self, depth: int, source: random.Random) -> list[int]:
        return self._padded([source.choice(self.widths) for _ in range(depth)])

    def _padded(self, widths: list[int]) -> list[int]:
        return widths + [0] * (self.depth - len(widths))
