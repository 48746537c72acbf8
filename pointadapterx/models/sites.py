"""Where methods act: a backbone is a row of stages, a stage a row of blocks, and a block a set of named sites."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol, cast

from torch import nn

from pointadapterx.errors import ConfigError

SITES = ("norm1", "qkv", "attention", "proj", "norm2", "ffn", "fc1", "act", "fc2", "block")
"""Names of sites in the order of the forward pass; ``attention`` and ``ffn`` are whole branches, ``block`` is all."""

LAYERS = ("norm1", "qkv", "proj", "norm2", "fc1", "fc2")
"""Those sites that are one layer with weights: a norm or a linear layer."""


class Site(NamedTuple):
    """A module of a backbone at which a method may act.

    Attributes:
        name: one of :data:`SITES`, or ``patch`` and ``final norm`` outside the blocks.
        module: what is there.
        width: of its output, queries, keys and values together where they are separate.
        parts: the layers of queries, keys and values at a site ``qkv`` of which the module is no single layer.
        channels_first: whether its output is (B, C, H, W) instead of (..., C).
        untapped: why nothing can be done to the output here, though something can be added to it; else empty.
        into: whether what is added joins the input of the module, not its output.
    """

    name: str
    module: nn.Module
    width: int
    parts: tuple[nn.Module, ...] = ()
    channels_first: bool = False
    untapped: str = ""
    into: bool = False

    @property
    def layer_scale(self) -> nn.Module | None:
        """The LayerScale that its output ends with, be it ours, timm's or transformers'; None where none is known.

        Its only parameter is γ (C,).
        """
        last = getattr(self.module, "closing_scale", self.module)
        known = type(last).__name__.endswith("LayerScale") and not self.into
        return last if known and [one.shape for one in last.parameters()] == [(self.width,)] else None

    def pieces(self) -> list[tuple[nn.Module, slice]]:
        """The layers that compute its output, each with its share of the output features."""
        if not self.parts:
            return [(self.module, slice(None))]
        third = self.width // len(self.parts)
        return [(part, slice(third * place, third * (place + 1))) for place, part in enumerate(self.parts)]


class BlockSites:
    """A block as methods see it.

    Args:
        index: its number in the whole backbone, from 0.
        stage: number of its stage, from 0.
        width: token width C.
        num_heads: of its attention.
        sites: what it has of :data:`SITES`.
    """

    def __init__(self, index: int, stage: int, width: int, num_heads: int, sites: Iterable[Site]) -> None:
        self.index = index
        self.stage = stage
        self.width = width
        self.num_heads = num_heads
        self.sites = {site.name: site for site in sites}

    def site(self, name: str) -> Site:
        """The site of that name.

        Raises:
            ConfigError: if the block has none.
        """
        if name not in self.sites:
            raise ConfigError(f"block {self.index} has no site '{name}', only {', '.join(self.sites)}")
        return self.sites[name]

    def layers(self) -> list[Site]:
        """Its norms and linear layers, in the order of the forward pass."""
        return [self.sites[name] for name in LAYERS if name in self.sites]


class SitedBlock(Protocol):
    """A module that is run as a block and says where methods may act in it."""

    num_heads: int

    def sites(self) -> Iterable[Site]:
        """What it has of :data:`SITES`."""
        ...


class Stage(NamedTuple):
    """Blocks of one width in a row.

    Attributes:
        number: of the stage, from 0.
        first: number of its first block in the whole backbone.
        width: token width C.
        num_patches: patch tokens G.
        modules: its blocks, as they are run; each is a :class:`SitedBlock`.
        grid: patches along a side, where they lie on a square grid in rows, else None.
        transition: frozen module that leads to the next stage, tokens and centres -> ``Embedded``; None at the end.
    """

    number: int
    first: int
    width: int
    num_patches: int
    modules: nn.ModuleList
    grid: int | None = None
    transition: nn.Module | None = None

    @property
    def blocks(self) -> list[BlockSites]:
        """Its blocks, as methods see them."""
        blocks = [cast(SitedBlock, module) for module in self.modules]
        return [
            BlockSites(index, self.number, self.width, block.num_heads, block.sites())
            for index, block in enumerate(blocks, self.first)
        ]


class StageSize(NamedTuple):
    """What the options of a backbone tell of a stage.

    Attributes:
        width: token width C.
        depth: number of blocks.
    """

    width: int
    depth: int
