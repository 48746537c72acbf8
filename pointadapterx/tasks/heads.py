"""The classification head: pooled tokens through a small MLP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.datasets import DATASETS
from pointadapterx.datasets.options import DataConfig
from pointadapterx.errors import shown
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.features import FeatureInfo, Features, Head
from pointadapterx.models.tokens import POOLS, sum_sequences
from pointadapterx.peft.base import Method
from pointadapterx.registry import did_you_mean
from pointadapterx.schema import Rate, Section
from pointadapterx.tasks.from_data import read_of


class HeadConfig(Section):
    """``head:``: pools are concatenated in the given order.

    Null means :func:`default_pools` of the method, and the number of classes of the data set. ``sum_every`` k: class
    token and patches are the sums of those behind every k-th block, counted from the last.
    """

    pools: list[str] | None = Field(None, min_length=1, max_length=100)
    num_classes: int | None = Field(None, ge=2, le=2**20)
    hidden: list[int] = Field(default=[256, 256], max_length=100)
    dropout: Rate = 0.5
    sum_every: int | None = Field(None, ge=1, le=1_000)

    unwritten = ("sum_every",)

    def completed(
        self, method: Method.Options | None, data: DataConfig | None, backbone: Backbone.Options | None = None
    ) -> tuple[HeadConfig, list[tuple[str, str]]]:
        """With what is null filled in, and (dotted key, message) for what cannot be.

        Files are read only where ``num_classes`` is null, so that a stored config is complete without them.

        Args:
            method: None where its section is wrong.
            data: likewise.
            backbone: likewise.
        """
        changes: dict[str, object] = {}
        problems: list[tuple[str, str]] = []
        if self.pools is None:
            changes["pools"] = default_pools(method, backbone)
        if self.num_classes is None and data is not None and data.name in DATASETS:
            changes["num_classes"], problems = read_of(data, data.find_classes, "head.num_classes", "NUMBER")
            if not problems and changes["num_classes"] is None and not data.lacks_variant:
                problems = [("head.num_classes", f"is required, as only the files of {data.name} tell it")]
        return self.model_copy(update=changes), problems

    def problems(
        self, method: Method.Options | None, data: DataConfig | None, backbone: Backbone.Options | None = None
    ) -> Iterator[tuple[str, str]]:
        """(dotted key, message) for each unknown pool, and for what does not fit other sections that are right."""
        yield from problems_of_pools(self.pools or [], method, backbone, "head.pools")
        if not all(1 <= width <= 2**16 for width in self.hidden):
            yield "head.hidden", f"widths must be from 1 to {2**16}, not {shown(self.hidden)}"
        if data is not None and data.name in DATASETS:
            expected = data.count_classes()
            if expected is not None and self.num_classes not in (None, expected):
                what = data.name if data.few_shot is None else "data.few_shot"
                yield "head.num_classes", f"{self.num_classes}, but {what} has {expected} classes"


def problems_of_pools(
    pools: Sequence[str], method: Method.Options | None, backbone: Backbone.Options | None, key: str
) -> Iterator[tuple[str, str]]:
    """(dotted key, message) for each unknown pool, and for what does not fit method and backbone that are right.

    Args:
        pools: names.
        method: None if the config has no such section, or a wrong one.
        backbone: None where its section is wrong.
        key: of the pools.
    """
    for pool in pools:
        if pool not in POOLS:
            yield key, f"unknown pool '{pool}'{did_you_mean(pool, POOLS)} Known: {', '.join(POOLS)}"
    if len(set(pools)) != len(pools):
        yield key, f"a pool is named twice in {pools}"
    if backbone is not None and not backbone.has_class_token and "cls" in pools:
        needs = f"cls needs a class token, which backbone {backbone.name} does not have"
        yield key, f"{needs}; use patch_mean or patch_max"
    if method is None:
        return
    of_prompts = [pool for pool in pools if pool.startswith("prompt_")]
    if not method.makes_prompts:
        for pool in of_prompts:
            yield key, f"{pool} needs prompt tokens, which method {method.name} does not make; remove it"
    elif method.needs_prompt_pool and not of_prompts:
        yield "method.prompts", f"its prompts are read by a prompt pool alone; add prompt_mean to {key}"


def default_pools(method: Method.Options | None, backbone: Backbone.Options | None = None) -> list[str]:
    """What the head reads where ``head.pools`` is null: class token and patches, and prompts where there are some.

    Without a class token it is mean and maximum of the patches.
    """
    first = "cls" if backbone is None or backbone.has_class_token else "patch_mean"
    return [first, *(["prompt_mean"] if method is not None and method.makes_prompts else []), "patch_max"]


class ClassificationHead(Head):
    """Concatenated pools -> (Linear, BatchNorm, ReLU, Dropout) per hidden width -> Linear.

    Args:
        info: of the backbone whose features it reads.
        options: ``pools`` are names from :data:`~pointadapterx.models.tokens.POOLS`, concatenated in this order;
            ``hidden`` are hidden widths, (256, 256) in Point-MAE and DAPT, none for a linear classifier; ``dropout`` is
            the rate behind each hidden layer; ``num_classes`` is required; ``sum_every`` k: the tokens are summed over
            every k-th block of the last stage, from its last (k - 1 blocks between two of them), each normalised;
            prompts are those behind the last block.

    Attributes:
        width: of what :meth:`pool` returns.
    """

    def __init__(self, info: FeatureInfo, options: HeadConfig) -> None:
        super().__init__()
        assert options.num_classes is not None
        self.pools = tuple(options.pools or ("cls", "patch_max"))
        layers: list[nn.Module] = []
        self.width = width = info.width * len(self.pools)
        for inner in options.hidden:
            layers += [nn.Linear(width, inner), nn.BatchNorm1d(inner), nn.ReLU(), nn.Dropout(options.dropout)]
            width = inner
        self.mlp = nn.Sequential(*layers, nn.Linear(width, options.num_classes))
        self.summed: tuple[int, ...] = ()
        if options.sum_every is not None:
            self.blocks = self.summed = tuple(info.stages[-1].blocks[:: -options.sum_every])

    @property
    def num_classes(self) -> int:
        """Number of classes, that is, of logits per sample."""
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        return last.out_features

    @property
    def hidden_width(self) -> int:
        """Width H of what the last layer reads."""
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        return last.in_features

    def prompt_pool_parameters(self) -> int:
        """Weights of the first layer that read pooled prompts, which a plain backbone does not have."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        width = first.in_features // len(self.pools)
        return first.out_features * width * sum(name.startswith("prompt_") for name in self.pools)

    def pool(self, features: Features) -> Tensor:
        """The concatenated pools (B, pools · C) of the normalised tokens, which ``mlp`` reads."""
        sequence = features.sequence
        if self.summed:
            behind = [features.intermediates[number].sequence for number in self.summed]
            sequence = sum_sequences(sequence, behind)
        return torch.cat([POOLS[name](sequence) for name in self.pools], dim=-1)

    def classify(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pools (B, pools · C) -> what the last layer reads (B, H), and logits (B, num_classes)."""
        hidden = self.mlp[:-1](pooled)
        return hidden, self.mlp[-1](hidden)

    def forward(self, features: Features) -> Tensor:
        """Features -> logits (B, num_classes)."""
        return self.mlp(self.pool(features))
