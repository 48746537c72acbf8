"""Masked reconstruction, the pre-training of Point-MAE: its section of a config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from pointadapterx.datasets import DATASETS
from pointadapterx.datasets.options import DataConfig
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.masking import hidden_groups
from pointadapterx.models.point_mae import PointMAE
from pointadapterx.registry import unknown_name
from pointadapterx.schema import Blocks, Many, Rate, Section
from pointadapterx.sections import NOTHING_TO_KEEP, TrainConfig


class ProbeConfig(Section):
    """``pretrain.probe:``: labelled data whose training part is cut for the linear probe; ``every: 0`` probes never."""

    every: int = Field(10, ge=0)
    name: str = "ldraw20"
    root: str | None = None
    variant: str | None = None
    val_fraction: float = Field(0.25, gt=0, lt=1)
    split_seed: int = Field(0, ge=0)

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) for each thing that is wrong with the data of the probe, if there is one."""
        if not self.every:
            return
        if self.name not in DATASETS:
            yield "name", unknown_name(self.name, DATASETS)
            return
        if not DATASETS[self.name].has_labels(self.root):
            yield "name", f"{self.name} has no labels for a probe; choose another data set"
        if DATASETS[self.name].modality != "points":
            yield "name", f"{self.name} holds images; choose a data set of point clouds"


class PretrainConfig(Section):
    """``pretrain:``: the masked autoencoder of Point-MAE; ``draw`` is a number of clouds, 0 draws nothing."""

    mask: Literal["random", "block"] = "random"
    mask_ratio: float = Field(0.6, gt=0, lt=1)
    chamfer: Literal["l1", "l2"] = "l2"
    decoder_depth: Blocks = 4
    decoder_heads: Many = 6
    decoder_drop_path: Rate = 0.1
    draw: int = Field(4, ge=0, le=10**6)
    probe: ProbeConfig = Field(default_factory=lambda: ProbeConfig.model_validate({}))

    def problems(
        self, backbone: Backbone.Options | None, data: DataConfig | None, train: TrainConfig | None
    ) -> Iterator[tuple[str, str]]:
        """(dotted key, message) for each impossible combination with the other sections, where they are right."""
        for key, message in self.probe.problems():
            yield f"pretrain.probe.{key}", message
        for key in ("few_shot", "train_size"):
            if getattr(data, key, None) is not None:
                yield f"data.{key}", "belongs to adaptation, but there is a section 'pretrain'; remove one"
        if train is not None and train.cached_views is not None and train.frozen_bn != "batch":
            yield "train.cached_views", NOTHING_TO_KEEP.format("pre-training freezes nothing")
        if backbone is None:
            return
        if not isinstance(backbone, PointMAE.Options):
            yield "backbone.name", f"{backbone.name} cannot be pre-trained, only point_mae can"
            return
        if backbone.dim % self.decoder_heads != 0:
            heads = f"{self.decoder_heads} heads do not divide backbone.dim={backbone.dim}"
            yield "pretrain.decoder_heads", f"{heads}; choose a divisor"
        if not 1 <= hidden_groups(self.mask_ratio, backbone.num_groups) < backbone.num_groups:
            hidden = f"{self.mask_ratio} of backbone.num_groups={backbone.num_groups} hides no group"
            yield "pretrain.mask_ratio", f"{hidden}; raise it"
