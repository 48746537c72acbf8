"""LoRA: low-rank updates of linear layers, which can be merged into them (arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.errors import ConfigError
from pointadapterx.models.host import Host
from pointadapterx.models.sites import BlockSites, Site
from pointadapterx.peft.base import METHODS, Method
from pointadapterx.schema import Distinct, Rate, Width

Target = Literal["q", "k", "v", "proj", "fc1", "fc2"]
QKV = ("q", "k", "v")


class LowRank(nn.Module):
    """s · B A x, zero at the start.

    Args:
        width: of the input.
        out: width of the output.
        rank: r.
        scale: s = alpha / r.
        dropout: dropout rate on the input.
    """

    def __init__(self, width: int, out: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, out, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., width) -> (..., out)."""
        return self.scale * self.up(self.down(self.dropout(tokens)))

    def third(self, tokens: Tensor, place: int) -> Tensor:
        """A third of a joint update: queries (0), keys (1) or values (2), (..., width) -> (..., out / 3)."""
        return self.scale * F.linear(self.down(self.dropout(tokens)), self.up.weight.chunk(3)[place])

    def weight(self) -> Tensor:
        """s · B A, (out, width)."""
        return self.scale * self.up.weight @ self.down.weight


class LowRankQkv(nn.Module):
    """Low-rank updates of queries, keys or values, concatenated like the joint projection.

    Args:
        parts: by name, in any order.
        dim: width C of each.
    """

    def __init__(self, parts: Mapping[str, LowRank], dim: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.dim = dim

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, 3 C), zeros where there is no update."""
        found = {name: part(tokens) for name, part in self.parts.items()}
        zeros = torch.zeros_like(next(iter(found.values())))  # of the type that autocast gives
        return torch.cat([found.get(name, zeros) for name in QKV], dim=-1)

    def third(self, tokens: Tensor, place: int) -> Tensor | None:
        """The update of queries (0), keys (1) or values (2) alone, (B, L, C), or None."""
        return self.parts[QKV[place]](tokens) if QKV[place] in self.parts else None

    def weight(self) -> Tensor:
        """The update of the joint projection, (3 C, C); zeros for q, k or v without an update."""
        device = next(self.parameters()).device
        zeros = torch.zeros(self.dim, self.dim, device=device)
        found = {name: part.weight() for name, part in self.parts.items() if isinstance(part, LowRank)}
        return torch.cat([found.get(name, zeros) for name in QKV])


@METHODS.register("lora")
class Lora(Method):
    """W x + (alpha / r) · B A x beside the targets of every block (§4.1).

    Trains A and B (r · (in + out) each), class token and its position where they are not pre-trained, and the
    head: 0.29 M without it on ViT-B with r = 8 at queries and values. Extra cost: the two thin products while
    training, nothing once merged.
    """

    class Options(Method.Options):
        """``method: {name: lora, ...}``.

        Attributes:
            rank: r.
            alpha: numerator of the scale alpha / r; None is r, a scale of one.
            targets: linear layers that get an update; q, k and v are thirds of the joint projection.
            dropout: dropout rate on the input of A.
        """

        name: Literal["lora"] = "lora"
        rank: Width = 8
        alpha: float | None = Field(None, gt=0.0)
        targets: Annotated[list[Target], Field(min_length=1), Distinct] = ["q", "v"]  # noqa: RUF012
        dropout: Rate = 0.0

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """The layers of the targets."""
            return tuple(dict.fromkeys("qkv" if name in QKV else name for name in self.targets))

    def __init__(self, options: Lora.Options) -> None:
        super().__init__(options)
        self.options: Lora.Options = options

    def attach(self, backbone: Host) -> None:
        """Creates the updates and places them beside their layers."""
        self.blocks = nn.ModuleList()
        for block in backbone.every_block():
            updates = self._updates(block)
            for site in block.layers():
                if site.name in updates:
                    self.branch(site, updates[site.name])
            self.blocks.append(updates)

    def _updates(self, block: BlockSites) -> nn.ModuleDict:
        """The updates of a block's layers, by the name of the layer."""
        updates = nn.ModuleDict()
        dim = block.width
        thirds: dict[str, LowRank] = {name: self._update(dim) for name in QKV if name in self.options.targets}
        if thirds:
            updates["qkv"] = LowRankQkv(thirds, dim)
        for site in block.layers():
            if site.name in self.options.targets:
                updates[site.name] = self._update(_linear(site).in_features, site.width)
        return updates

    def _update(self, width: int, out: int | None = None) -> LowRank:
        options = self.options
        scale = 1.0 if options.alpha is None else options.alpha / options.rank
        return LowRank(width, out or width, options.rank, scale, options.dropout)

    @torch.no_grad()
    def merge(self, backbone: Host) -> None:
        """W + s · B A."""
        for block, updates in zip(backbone.every_block(), self.blocks, strict=True):
            assert isinstance(updates, nn.ModuleDict)
            for name, update in updates.items():
                assert isinstance(update, LowRank | LowRankQkv)
                merge_weight(block.site(name), update.weight())


def merge_weight(site: Site, update: Tensor) -> None:
    """Adds (out, in) to the weight of the layer at a site, or of the layers that make it up."""
    for layer, features in site.pieces():
        _linear(site, layer).weight += update[features]


def _linear(site: Site, layer: nn.Module | None = None) -> nn.Linear:
    """The layer at a site.

    Raises:
        ConfigError: if it is no linear layer.
    """
    found = site.module if layer is None else layer
    if not isinstance(found, nn.Linear):
        raise ConfigError(f"lora adapts linear layers, but at {site.name} is a {type(found).__name__}")
    return found
