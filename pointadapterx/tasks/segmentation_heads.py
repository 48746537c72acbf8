"""The head that labels each point of a cloud from the tokens of its patches, in two sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.models.backbone import Backbone
from pointadapterx.models.features import FeatureInfo, Features, Head
from pointadapterx.models.tokens import POOLS, TokenSequence
from pointadapterx.peft.base import Method
from pointadapterx.schema import Distinct, Rate
from pointadapterx.tasks.exchange import TaskOptions
from pointadapterx.tasks.heads import problems_of_pools
from pointadapterx.tasks.propagation import RelativePropagation, neighbours

KEPT = 3  # blocks that are read, by default
SLOPE = 0.2  # of the leaky ReLU behind the category
AXES = 3
NEAREST = 3  # patches that a point is read from


class Sizes(NamedTuple):
    """Widths of a head's layers.

    Attributes:
        projection: of the tokens of each block, before anything else reads them; None reads them as they are.
        relative: of what reads the tokens around a point with its place relative to them; None: they are interpolated.
        category: of what the category is turned into.
        propagation: of the layers that read a point's coordinates and the tokens around it.
        mixing: of the layers behind them, the first of which also reads what is the same for all points.
    """

    projection: int | None
    relative: int | None
    category: int
    propagation: tuple[int, ...]
    mixing: tuple[int, ...]

    @classmethod
    def named(cls, name: str, width: int) -> Sizes:
        """Those of ``task.head`` for a backbone of some token width."""
        if name == "published":
            return cls(None, None, 64, (4 * width, 1024), (512, 256))
        return cls(64, 128, 32, (128,), (128,))


class PointOptions(TaskOptions):
    """``task:`` of tasks that label points: their head.

    ``published`` is the head of Point-MAE and its descendants, 5.2 M parameters; ``light`` first projects the tokens
    of each block to 64 values, reads them with the place of a point relative to its three nearest patches, and has 0.19
    M. ``blocks`` are numbers of the blocks that are read, from 0; null: the last ones of three equal parts of the
    backbone, 3, 7 and 11 of 12. ``pools`` make of the tokens of each of them what is the same for all points; null:
    maximum and mean of the patches, as published, and the mean of the prompts where the method makes some.
    """

    head: Literal["published", "light"] = "published"
    blocks: Annotated[list[int], Distinct] | None = Field(None, min_length=1, max_length=1_000)
    pools: Annotated[list[str], Distinct] | None = Field(None, min_length=1, max_length=100)
    dropout: Rate = 0.5

    @property
    def point_classes(self) -> list[str]:
        """Names of what a point is labelled with, in the order of the logits."""
        raise NotImplementedError(f"{type(self).__name__} must name its classes")

    def problems(self, backbone: Backbone.Options | None, method: Method.Options | None) -> Iterator[tuple[str, str]]:
        """Blocks and pools that the backbone does not have."""
        if backbone is not None:
            if (groups := getattr(backbone, "num_groups", NEAREST)) < NEAREST:
                yield "backbone.num_groups", f"{groups}: a head that labels points reads the {NEAREST} nearest patches"
            depth = sum(stage.depth for stage in backbone.stages())
            for number in self.blocks or ():
                if not 0 <= number < depth:
                    yield "task.blocks", f"{number}: the backbone's blocks are 0 to {depth - 1}"
        yield from problems_of_pools(self.read_pools(method), method, backbone, "task.pools")

    def read_pools(self, method: Method.Options | None) -> list[str]:
        """What the head reads of the tokens of a block, the default filled in."""
        prompts = method is not None and method.makes_prompts
        return self.pools or ["patch_max", "patch_mean", *(["prompt_mean"] if prompts else [])]


def kept_blocks(wanted: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Numbers of the blocks that a head reads: those that are wanted, or the last of three equal parts."""
    if wanted is not None:
        return tuple(wanted)
    return tuple(sorted({max(1, round(depth * part / KEPT)) - 1 for part in range(1, KEPT + 1)}))


class _Layer(nn.Module):
    """Linear, BatchNorm over all points of the batch, ReLU."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.norm = nn.BatchNorm1d(out)

    def activated(self, sums: Tensor) -> Tensor:
        """What the linear layer gives (B, N, out), normed and rectified."""
        return F.relu(self.norm(sums.flatten(0, 1)), inplace=True).view_as(sums)  # no gradient reads what was there

    def forward(self, values: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, out)."""
        return self.activated(self.linear(values))


class SegmentationHead(Head):
    """Point-MAE's segmentation network behind its backbone: tokens of some blocks -> logits of every point.

    The normalised tokens of the patches are carried to the points and read with their coordinates; to that comes what
    is the same for all points: pools of the tokens, and the category. What is linear is done where it is cheapest, on
    the patches in place of the points and once a cloud, which changes nothing but rounding: a linear layer of
    interpolated tokens is the interpolation of what it makes of them.

    Args:
        info: of the backbone, a backbone of clouds.
        options: see :class:`PointOptions`.
        pools: what is read of the tokens of a block, see :meth:`PointOptions.read_pools`.
        classes: of a point.
        categories: of a cloud, numbered by ``Features.condition``; 0: there are none.

    Attributes:
        levels: the blocks that are read, by stage.
        columns: widths of what the first layer reads of a point: its place, and what comes of each level.
        width: of what is the same for all points.
    """

    def __init__(
        self, info: FeatureInfo, options: PointOptions, pools: Sequence[str], classes: int, categories: int
    ) -> None:
        super().__init__()
        sizes = Sizes.named(options.head, info.width)
        self.blocks = kept_blocks(options.blocks, info.depth)
        self.levels = [found for stage in info.stages if (found := [b for b in self.blocks if b in stage.blocks])]
        self.pools = tuple(pools)
        self.categories = categories
        widths = {block: info.stage_of(block).width for block in self.blocks}
        self.project: nn.ModuleDict | None = None
        if sizes.projection is not None:
            self.project = nn.ModuleDict({str(b): nn.Linear(w, sizes.projection) for b, w in widths.items()})
            widths = dict.fromkeys(widths, sizes.projection)
        self.tokens_width = sum(widths.values())
        self.width = len(self.pools) * self.tokens_width
        if categories:
            norm = nn.BatchNorm1d(sizes.category)
            self.category = nn.Sequential(nn.Linear(categories, sizes.category, bias=False), norm, nn.LeakyReLU(SLOPE))
            self.width += sizes.category
        carried = [sum(widths[block] for block in blocks) for blocks in self.levels]
        self.relative: nn.ModuleList | None = None
        if sizes.relative is not None:
            self.relative = nn.ModuleList(RelativePropagation(width, sizes.relative) for width in carried)
            carried = [sizes.relative] * len(carried)
        self.columns = [AXES, *carried]
        self.propagation, width = _layers(sum(self.columns), sizes.propagation)
        self.mixing, width = _layers(width + self.width, sizes.mixing)
        self.dropout = nn.Dropout(options.dropout)
        self.last = nn.Linear(width, classes)

    @property
    def num_classes(self) -> int:
        """Of a point."""
        return self.last.out_features

    @property
    def hidden_width(self) -> int:
        """What the last layer reads of a point."""
        return self.last.in_features

    def published_name(self, name: str) -> str | None:
        """Point-MAE's names, and those of its descendants that end in ``_cls``."""
        for pattern, own in _PUBLISHED:
            if (found := pattern.fullmatch(name)) is not None:
                return found.expand(own)
        return None

    def prompt_pool_parameters(self) -> int:
        """Weights of the first mixing layer that read prompts."""
        prompts = sum(pool.startswith("prompt_") for pool in self.pools)
        return prompts * self.tokens_width * _first(self.mixing).linear.out_features

    def pool(self, features: Features) -> Tensor:
        """What is the same for all points of a cloud, (B, width)."""
        return self._pooled(self._read(features), features)

    def forward(self, features: Features) -> Tensor:
        """Features -> logits (B, N, classes) of the points that the backbone was given."""
        points = features.inputs
        assert points is not None, "a head that labels points needs the points"
        read = self._read(features)
        carried = self._carried(points, read, features)
        for layer in self.propagation[1:]:
            carried = layer(carried)
        first = _first(self.mixing)
        of_point, of_cloud = first.linear.weight.split([carried.shape[-1], self.width], dim=1)
        same = F.linear(self._pooled(read, features), of_cloud, first.linear.bias)
        sums = F.linear(carried, of_point)
        sums += same[:, None]
        hidden = self.dropout(first.activated(sums))
        for layer in self.mixing[1:]:
            hidden = layer(hidden)
        return self.last(hidden)

    def _read(self, features: Features) -> dict[int, TokenSequence]:
        """The tokens of each block, projected where that is wanted."""
        found = {}
        for block in self.blocks:
            sequence = features.intermediates[block].sequence
            if self.project is not None:
                tokens = self.project[str(block)](sequence.tokens)
                sequence = TokenSequence(tokens, sequence.num_patches, has_class_token=sequence.has_class_token)
            found[block] = sequence
        return found

    def _carried(self, points: Tensor, read: dict[int, TokenSequence], features: Features) -> Tensor:
        """The first propagation layer: coordinates and interpolated tokens of each point -> (B, N, ...)."""
        layer = _first(self.propagation)
        of_points, *of_tokens = layer.linear.weight.split(self.columns, dim=1)
        sums = F.linear(points.to(of_points.dtype), of_points, layer.linear.bias)
        for number, blocks in enumerate(self.levels):
            tokens = torch.cat([read[block].patches for block in blocks], dim=-1)
            centers = features.intermediates[blocks[0]].centers
            assert centers is not None
            if self.relative is None:
                sums += neighbours(points, centers).interpolate(F.linear(tokens, of_tokens[number]))
            else:
                sums += F.linear(self.relative[number](points, centers, tokens), of_tokens[number])
        return layer.activated(sums)

    def _pooled(self, read: dict[int, TokenSequence], features: Features) -> Tensor:
        parts = [_pool(name, sequence) for name in self.pools for sequence in read.values()]
        if self.categories:
            assert features.condition is not None, "this head needs the category of each cloud"
            linear = self.category[0]
            assert isinstance(linear, nn.Linear)
            parts.append(self.category[1:](F.embedding(features.condition, linear.weight.t())))  # of a one-hot row
        return torch.cat(parts, dim=-1)


def _layers(width: int, sizes: Sequence[int]) -> tuple[nn.ModuleList, int]:
    """Layers of these sizes behind each other, and the last width."""
    layers = nn.ModuleList()
    for size in sizes:
        layers.append(_Layer(width, size))
        width = size
    return layers, width


def _first(layers: nn.ModuleList) -> _Layer:
    layer = layers[0]
    assert isinstance(layer, _Layer)
    return layer


def _pool(name: str, sequence: TokenSequence) -> Tensor:
    """(B, C); zeros for the prompts of a block before the first one that has some."""
    if name.startswith("prompt_") and sequence.prompts.shape[1] == 0:
        return torch.zeros_like(sequence.tokens[:, 0])
    return POOLS[name](sequence)


_PUBLISHED = [
    (re.compile(pattern), own)
    for pattern, own in [
        (r"label_conv(?:_cls)?\.([01]\.\w+)", r"category.\1"),
        (r"propagation_0(?:_cls)?\.mlp_convs\.(\d\.)(\w+)", r"propagation.\1linear.\2"),
        (r"propagation_0(?:_cls)?\.mlp_bns\.(\d\.)(\w+)", r"propagation.\1norm.\2"),
        (r"convs1(?:_cls)?\.(\w+)", r"mixing.0.linear.\1"),
        (r"bns1(?:_cls)?\.(\w+)", r"mixing.0.norm.\1"),
        (r"convs2(?:_cls)?\.(\w+)", r"mixing.1.linear.\1"),
        (r"bns2(?:_cls)?\.(\w+)", r"mixing.1.norm.\1"),
        (r"convs3(?:_cls)?\.(\w+)", r"last.\1"),
    ]
]
