"""LoRA: low-rank updates of linear layers, which can be merged into them (arXiv 2106.09685); DoRA and rsLoRA."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.errors import ConfigError
from pointadapterx.models.host import Host
from pointadapterx.models.sites import BlockSites, Site
from pointadapterx.peft.base import METHODS, Method
from pointadapterx.peft.parts.low_rank import QKV, LowRank, LowRankQkv, WeightDecomposed
from pointadapterx.schema import Distinct, Rate, Width

Target = Literal["q", "k", "v", "proj", "fc1", "fc2"]


@METHODS.register("lora")
class Lora(Method):
    """W x + (alpha / r) · B A x beside the targets of every block (§4.1).

    Trains A and B (r · (in + out) each), class token and its position where they are not pre-trained, and the
    head: 0.29 M without it on ViT-B with r = 8 at queries and values. Extra cost: the two thin products while
    training, nothing once merged. DoRA trains one number more for each output of a target, the norm of that row of
    the merged weight (arXiv 2402.09353).
    """

    class Options(Method.Options):
        """``method: {name: lora, ...}``.

        Attributes:
            rank: r.
            alpha: numerator of the scale alpha / r; None is r, a scale of one.
            targets: linear layers that get an update; q, k and v are thirds of the joint projection.
            dropout: dropout rate on the input of A.
            dora: trains the norm of every row of W + s · B A too, and the update changes its direction alone. None:
                false.
            rslora: the scale is alpha / √r, so that it does not shrink the update of a large r (arXiv 2312.03732).
                None: false.
        """

        name: Literal["lora"] = "lora"
        rank: Width = 8
        alpha: float | None = Field(None, gt=0.0)
        targets: Annotated[list[Target], Field(min_length=1), Distinct] = ["q", "v"]  # noqa: RUF012
        dropout: Rate = 0.0
        dora: bool | None = None
        rslora: bool | None = None

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """The layers of the targets."""
            return tuple(dict.fromkeys("qkv" if name in QKV else name for name in self.targets))

        @property
        def scale(self) -> float:
            """s of an update s · B A."""
            alpha = self.rank if self.alpha is None else self.alpha
            return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def __init__(self, options: Lora.Options) -> None:
        super().__init__(options)
        self.options: Lora.Options = options

    def attach(self, backbone: Host) -> None:
        """Creates the updates and places them at their layers."""
        self.blocks = nn.ModuleList()
        for block in backbone.every_block():
            updates = self._updates(block)
            for site in block.layers():
                if site.name in updates:
                    self.change(site, _update(updates[site.name]))
            self.blocks.append(updates)

    def _updates(self, block: BlockSites) -> nn.ModuleDict:
        """The updates of a block's layers, by the name of the layer."""
        updates = nn.ModuleDict()
        targets = self.options.targets
        thirds = [name for name in QKV if name in targets]
        if thirds:
            site = block.site("qkv")
            width, dim = _linear(site)[0].in_features, site.width // 3
            parts: dict[str, LowRank] = {name: self._create(width, dim) for name in thirds}
            updates["qkv"] = LowRankQkv(parts, dim)
        for site in block.layers():
            if site.name in targets:
                updates[site.name] = self._create(_linear(site)[0].in_features, site.width)
        for name, update in updates.items():
            _update(update).start(_weight(block.site(name)))
        return updates

    def _create(self, width: int, out: int) -> LowRank:
        options = self.options
        kind = WeightDecomposed if options.dora else LowRank
        return kind(width, out, options.rank, options.scale, options.dropout)

    @torch.no_grad()
    def merge(self, backbone: Host) -> None:
        """W + s · B A, and what DoRA makes of it."""
        for block, updates in zip(backbone.every_block(), self.blocks, strict=True):
            assert isinstance(updates, nn.ModuleDict)
            for name, update in updates.items():
                site = block.site(name)
                merged = _update(update).merged(_weight(site))
                for layer, (_, features) in zip(_linear(site), site.pieces(), strict=True):
                    layer.weight.copy_(merged[features])


def _update(module: nn.Module) -> LowRank | LowRankQkv:
    assert isinstance(module, LowRank | LowRankQkv)
    return module


def _linear(site: Site) -> list[nn.Linear]:
    """The layers at a site: one, or those of queries, keys and values.

    Raises:
        ConfigError: if one is no linear layer, or a quantised one.
    """
    layers = []
    for layer, _ in site.pieces():
        kind = type(layer).__name__
        if not isinstance(layer, nn.Linear):
            raise ConfigError(f"lora adapts linear layers, but at {site.name} is a {kind}")
        package = type(layer.weight).__module__.partition(".")[0]
        if not layer.weight.is_floating_point() or package in ("bitsandbytes", "torchao"):
            raise ConfigError(
                f"lora adapts layers in floating point, but at {site.name} is a quantised {kind}; load the model "
                "without quantisation"
            )
        layers.append(layer)
    return layers


def _weight(site: Site) -> Tensor:
    """The weight (out, in) of a site's layers, one below the other."""
    weights = [layer.weight for layer in _linear(site)]
    return weights[0] if len(weights) == 1 else torch.cat(weights)
