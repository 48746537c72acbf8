"""Heads that give every pixel a class: UPerNet (arXiv 1807.10221), and a light one, both on the stages of a backbone.

Names of layers are those of transformers' ``UperNetForSemanticSegmentation``, whose files load.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.errors import ConfigError
from pointadapterx.models.features import FeatureInfo, Features, Head, StageInfo
from pointadapterx.models.recomputing import recomputed
from pointadapterx.tasks.convolutions import ConvModule, Part, enlarged, enlarging, side_by_side
from pointadapterx.tasks.pixel_losses import Pixels

POOLS = (1, 2, 3, 6)  # sides of the grids that the last stage is pooled to
AUXILIARY = 256  # channels of the auxiliary head
RESCALES = (4.0, 2.0, 1.0, 0.5)  # of the only grid of a plain transformer: strides 4, 8, 16 and 32 of patches of 16

_PSP = re.compile(r"(psp_modules\.\d+)\.1\.")
_NORM = re.compile(r"backbone\.hidden_states_norms\.stage(\d+)\.(weight|bias)")


class Level(NamedTuple):
    """What a head reads of a backbone.

    Attributes:
        block: number of the block whose tokens they are.
        width: of a token.
        side: tokens along a side of the picture.
        rescale: by how much the grid is made finer or coarser.
        normalised: whether the tokens come normalised, as those of the last stage do.
    """

    block: int
    width: int
    side: int
    rescale: float
    normalised: bool

    @property
    def finer(self) -> float:
        """By how much its map is finer than the grid; a single token is not pooled."""
        return 1.0 if self.rescale < 1 and self.side == 1 else self.rescale


def strides_of(levels: Sequence[Level], size: int) -> list[float]:
    """Pixels between neighbours in the map of each level.

    Pooling and merging by two makes 7 or 8 places of 15: the stride is twice as long, whatever the side of the map.

    Args:
        levels: of all stages.
        size: side of the picture in pixels.
    """
    found, stride = [], size / levels[0].side
    for before, level in zip((levels[0], *levels), levels, strict=False):
        stride *= round(before.side / level.side)
        found.append(stride / level.finer)
    return found


def levels_of(info: FeatureInfo, blocks: Sequence[int] | None = None) -> list[Level]:
    """One level a stage, behind its last block; of a plain transformer four, at strides 4, 8, 16 and 32.

    Args:
        info: of a backbone of pictures.
        blocks: to read instead: one a stage, or four of a plain transformer, whose own are as deep as BEiT's, 3, 5, 7
            and 11 of 12.

    Raises:
        ConfigError: for blocks that do not fit, or patches that lie on no square grid.
    """
    stages = info.stages
    plain = len(stages) == 1
    if blocks is None:
        depth = info.depth
        blocks = [stage.blocks[-1] for stage in stages]
        if plain:
            blocks = [math.ceil(share * depth) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1)]
    wanted = len(RESCALES) if plain else len(stages)
    fits = len(blocks) == wanted and all(0 <= block < info.depth for block in blocks)
    if not fits or not (plain or all(block in stage.blocks for block, stage in zip(blocks, stages, strict=True))):
        what = f"{wanted} of the blocks 0 to {info.depth - 1}" if plain else "a block of each stage"
        ranges = "" if plain else f" ({', '.join(f'{stage.blocks[0]} to {stage.blocks[-1]}' for stage in stages)})"
        raise ConfigError(f"task.blocks={list(blocks)}: give {what}{ranges}")
    rescales = RESCALES if plain else [1.0] * wanted
    found = []
    for block, rescale in zip(blocks, rescales, strict=True):
        stage = info.stage_of(block)
        found.append(Level(block, stage.width, _side(stage), rescale, stage is stages[-1]))
    return found


def _side(stage: StageInfo) -> int:
    """Tokens along a side. Models of pictures take square ones, so their tokens lie on a square grid, row by row."""
    side = stage.grid or math.isqrt(stage.num_patches)
    if side == 0 or side**2 != stage.num_patches:
        raise ConfigError(f"a backbone whose {stage.num_patches} patches lie on no square grid cannot label pixels")
    return side


class Affine(nn.Module):
    """A scale and a shift of each feature: behind a frozen norm, what training its own would be."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return tokens * self.weight + self.bias


class Levels(nn.ModuleList):
    """Maps of features of a backbone's levels, each with a norm that is trained with the head."""

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__(
            Affine(level.width) if level.normalised else nn.LayerNorm(level.width, eps=1e-5) for level in levels
        )
        self.levels = tuple(levels)

    def maps(self, features: Features) -> list[Tensor]:
        """(B, C, side, side) of each level, the finest first."""
        return [self.map(number, tokens) for number, tokens in enumerate(self.tokens(features))]

    def tokens(self, features: Features) -> list[Tensor]:
        """(B, G, C) of each level, as the backbone gives them."""
        return [features.intermediates[level.block].sequence.patches for level in self.levels]

    def map(self, number: int, tokens: Tensor) -> Tensor:
        """A level's tokens -> its map."""
        level = self.levels[number]
        grid = self[number](tokens).transpose(1, 2).unflatten(2, (level.side, level.side))
        if level.finer < 1:
            return F.max_pool2d(grid, round(1 / level.finer))
        if level.finer > 1:
            return F.interpolate(grid, scale_factor=level.finer, mode="bilinear", align_corners=False)
        return grid


class PixelHead(Head):
    """Base of the heads: logits of each pixel of the input.

    In training an auxiliary head's logits come behind those of the head itself, as further channels.

    Attributes:
        norms: of the levels.
        classifier: from the last map to the classes.
    """

    classifier: nn.Conv2d

    def __init__(self, levels: Sequence[Level], width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.blocks = tuple(dict.fromkeys(level.block for level in levels))
        self.width = width
        self.norms = Levels(levels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(width, num_classes)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.classifier.out_channels

    def published_name(self, name: str) -> str | None:
        """Of a file of transformers' UPerNet."""
        norm = _NORM.fullmatch(name)
        if norm is not None:
            return f"norms.{int(norm[1]) - 1}.{norm[2]}"
        if name.startswith("auxiliary_head."):
            return name
        return _PSP.sub(r"\1.", name.removeprefix("decode_head.")) if name.startswith("decode_head.") else None

    def read(self, tokens: list[Tensor]) -> Tensor:
        """Tokens of the levels -> (B, classes, side, side), logits at the finest level."""
        raise NotImplementedError(f"{type(self).__name__} must read the levels")

    def further(self, tokens: list[Tensor]) -> list[Tensor]:
        """Logits of auxiliary heads, in training."""
        return []

    def forward(self, features: Features) -> Tensor:
        """Features -> logits (B, classes, S, S); in training (B, 2 classes, S, S) with an auxiliary head.

        Where the classes of the pixels are given in training (``Features.condition``, see
        ``Pixels``), the output is what its ``losses`` gives instead.
        """
        assert features.inputs is not None
        size, truth = features.inputs.shape[-2:], features.condition
        tokens = self.norms.tokens(features)
        logits = [self.read(tokens)]
        if self.training:
            logits += self.further(tokens)
            if isinstance(truth, Pixels):
                return truth.losses(logits)
        return torch.cat([enlarged(part, size) for part in logits], dim=1)


def _classifier(width: int, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(width, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class Fcn(nn.Module):
    """The auxiliary head: a convolution on one of the maps."""

    def __init__(self, width: int, num_classes: int, norm: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvModule(width, AUXILIARY, 3, norm)])
        self.classifier = _classifier(AUXILIARY, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes, H, W)."""
        return self.classifier(self.convs[0](maps))


class UPerNet(PixelHead):
    """Pooled last stage, and a pyramid from the coarsest stage to the finest.

    Args:
        levels: of the backbone.
        num_classes: of pixels.
        channels: of all layers; 512 as published, which alone are 31 million parameters on a Swin-T.
        auxiliary: whether an FCN on the second but last level is trained too.
        norm: ``"batch"`` as published, or ``"group"``, which in a loop of one's own also
            trains on single pictures.
        dropout: of whole channels before the last layer.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        num_classes: int,
        channels: int = 512,
        *,
        auxiliary: bool = False,
        norm: str = "batch",
        dropout: float = 0.1,
    ) -> None:
        super().__init__(levels, channels, num_classes, dropout)
        widths = [level.width for level in levels]
        self.norm = norm
        self.psp_modules = nn.ModuleList(ConvModule(widths[-1], channels, 1, norm) for _ in POOLS)
        self.bottleneck = ConvModule(widths[-1] + len(POOLS) * channels, channels, 3, norm)
        self.lateral_convs = nn.ModuleList(ConvModule(width, channels, 1, norm) for width in widths[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3, norm) for _ in widths[:-1])
        self.fpn_bottleneck = ConvModule(len(widths) * channels, channels, 3, norm)
        self.auxiliary_head = Fcn(widths[max(0, len(widths) - 2)], num_classes, norm) if auxiliary else None
        last = levels[-1]
        side = max(1, int(last.side * last.rescale))
        for pool in POOLS:
            self.register_buffer(f"pool{pool}", _pooling(side, pool), persistent=False)
            self.register_buffer(f"unpool{pool}", enlarging(pool, side), persistent=False)
        sides = [int(level.side * level.finer) for level in levels]
        for number, one in enumerate(sides[1:], 1):
            self.register_buffer(f"enlarge{number}", enlarging(one, sides[0]), persistent=False)

    def further(self, tokens: list[Tensor]) -> list[Tensor]:
        """See :class:`PixelHead`."""
        level = max(0, len(tokens) - 2)
        return [] if self.auxiliary_head is None else [self.auxiliary_head(self.norms.map(level, tokens[level]))]

    def read(self, tokens: list[Tensor]) -> Tensor:
        """See :class:`PixelHead`.

        Raises:
            ValueError: for a single picture in training, whose pooled map BatchNorm cannot normalise.
        """
        if self.training and self.norm == "batch" and len(tokens[0]) < 2:
            raise ValueError(
                "UPerNet with BatchNorm cannot train on a single picture, whose map pooled to 1 x 1 has no spread; "
                "give batches of two or more, or set task.norm=group"
            )
        *fine, coarse = tokens
        lateral, found = self._pooled(self.norms.map(len(fine), coarse)), []
        found.append(Part(None, lateral, self.get_buffer(f"enlarge{len(fine)}")))
        for level in range(len(fine) - 1, -1, -1):
            lateral, sums = self._level(level, fine[level], lateral)
            found.append(
                Part(_conv(self.fpn_convs, level), sums, self.get_buffer(f"enlarge{level}") if level else None)
            )
        last = self.fpn_bottleneck
        return recomputed(
            lambda sums: self.classifier(self.dropout(last.activated(sums))),
            side_by_side(last.conv.weight, found[::-1]),
            norms=[last.batch_norm],
            draws=self.dropout.p > 0,
        )

    def _level(self, level: int, tokens: Tensor, coarser: Tensor) -> tuple[Tensor, Tensor]:
        """A level of the pyramid, and what its convolution makes of it."""
        layer, convolution = _conv(self.lateral_convs, level), _conv(self.fpn_convs, level)

        def compute(tokens: Tensor, coarser: Tensor) -> tuple[Tensor, Tensor]:
            lateral = layer(self.norms.map(level, tokens))
            lateral = lateral + enlarged(coarser, lateral.shape[2:])
            return lateral, convolution.conv(lateral)

        found: tuple[Tensor, Tensor] = recomputed(compute, tokens, coarser, norms=[layer.batch_norm])
        return found

    def _pooled(self, maps: Tensor) -> Tensor:
        found = [Part(None, maps, None)]
        for number, pool in enumerate(POOLS):
            layer = _conv(self.psp_modules, number)
            matrix = self.get_buffer(f"pool{pool}").to(maps.dtype)
            sums = layer.conv(matrix @ maps @ matrix.T)
            found.append(Part(layer, sums, self.get_buffer(f"unpool{pool}")))
        return self.bottleneck.activated(side_by_side(self.bottleneck.conv.weight, found))


def _conv(layers: nn.ModuleList, number: int) -> ConvModule:
    """One of them, with its concrete type."""
    layer = layers[number]
    assert isinstance(layer, ConvModule)
    return layer


def _pooling(side: int, pool: int) -> Tensor:
    """(pool, side), whose product with a map is adaptive average pooling along an axis.

    As a matrix, since exporters know no pooling whose windows differ.
    """
    matrix = torch.zeros(pool, side)
    for row in range(pool):
        start, end = row * side // pool, -(-(row + 1) * side // pool)
        matrix[row, start:end] = 1 / (end - start)
    return matrix


class LightHead(PixelHead):
    """A projection of each level, their sum at the finest one, and a layer: few parameters, no BatchNorm.

    Args:
        levels: of the backbone.
        num_classes: of pixels.
        channels: of the sum.
        dropout: of whole channels before the last layer.
    """

    def __init__(self, levels: Sequence[Level], num_classes: int, channels: int = 128, *, dropout: float = 0.1) -> None:
        super().__init__(levels, channels, num_classes, dropout)
        self.projections = nn.ModuleList(nn.Conv2d(level.width, channels, 1) for level in levels)

    def published_name(self, name: str) -> str | None:
        """None: nobody has published it."""
        return None

    def read(self, tokens: list[Tensor]) -> Tensor:
        """See :class:`PixelHead`."""
        projected = [self._projected(level, part) for level, part in enumerate(tokens)]
        size = projected[0].shape[2:]
        total = projected[0]
        for part in projected[1:]:
            total = total + enlarged(part, size)
        return recomputed(lambda found: self.classifier(self.dropout(F.gelu(found))), total, draws=self.dropout.p > 0)

    def _projected(self, level: int, tokens: Tensor) -> Tensor:
        found: Tensor = recomputed(lambda tokens: self.projections[level](self.norms.map(level, tokens)), tokens)
        return found
