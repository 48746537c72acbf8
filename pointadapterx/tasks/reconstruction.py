"""Masked reconstruction, the pre-training of Point-MAE: hidden groups of a cloud from the visible ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.datasets import DATASETS, Samples, derive_seed
from pointadapterx.datasets.inputs import Batch
from pointadapterx.datasets.options import DataConfig
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.grouping import Groups
from pointadapterx.models.masking import MASKINGS, hidden_groups
from pointadapterx.models.point_mae import MaskedAutoencoder, PointMAE
from pointadapterx.registry import unknown_name
from pointadapterx.schema import Blocks, Many, Rate, Section
from pointadapterx.sections import NOTHING_TO_KEEP, TrainConfig
from pointadapterx.tasks.base import TASKS, Task
from pointadapterx.tasks.exchange import Predictions, Sections, TaskOptions


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
        of_adaptation = {} if data is None else {"few_shot": data.few_shot, "train_size": data.train_size}
        for key, value in of_adaptation.items():
            if value is not None:
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


class ReconstructionOptions(TaskOptions):
    """``task:`` of pre-training, whose own keys are in ``pretrain``."""

    name: Literal["reconstruction"] = "reconstruction"


@TASKS.register("reconstruction")
class Reconstruction(Task):
    """The points of hidden groups; what is kept is the encoder."""

    Options = ReconstructionOptions
    sections = ("pretrain",)
    adapts = False
    caches = False
    recorded: ClassVar[tuple[str, ...]] = ("loss",)
    pictures = ("reconstruction",)

    def __init__(self, config: Sections, facts: Any = None) -> None:
        super().__init__(config, facts)
        assert isinstance(config.pretrain, PretrainConfig)
        assert isinstance(config.backbone, PointMAE.Options)
        self.options = config.pretrain
        self.hidden = hidden_groups(self.options.mask_ratio, config.backbone.num_groups)

    def split(self, data: Samples, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        """Whole groups, drawn until they hold at least ``fraction`` of the clouds.

        Raises:
            DataError: if nothing is left to learn from.
        """
        units = torch.arange(len(data)) if data.groups is None else data.groups.unique(return_inverse=True)[1]
        sizes = units.bincount()
        order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(derive_seed(seed, "held out")))
        held = sizes[order].cumsum(0)  # clouds held out with the groups so far
        count = int((held < math.ceil(fraction * len(data))).sum()) + 1
        held_out = torch.isin(units, order[:count])
        if held_out.all():
            raise DataError(
                f"data.root={self.config.data.root}: eval.val_fraction={fraction} of {len(data)} clouds holds all of "
                "them out; use more clouds or a smaller fraction"
            )
        return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()

    def build_whole(self, backbone: Backbone) -> MaskedAutoencoder:
        """The masked autoencoder around an encoder.

        Raises:
            ConfigError: for another backbone than Point-MAE's.
        """
        if not isinstance(backbone, PointMAE):
            raise ConfigError(f"backbone.name={self.config.backbone.name}: only point_mae can be pre-trained")
        options = self.options
        return MaskedAutoencoder(
            backbone, options.decoder_depth, options.decoder_heads, options.decoder_drop_path, options.chamfer
        )

    def masked(self, encoder: PointMAE, points: Tensor, generator: torch.Generator) -> tuple[Groups, Tensor]:
        """Groups of clouds (b, N, 3), and (b, G) bool: which are hidden."""
        groups = encoder.grouping(points)
        return groups, MASKINGS[self.options.mask](groups.centers, self.hidden, generator)

    def test_masked(self, encoder: PointMAE, batch: Batch) -> tuple[Groups, Tensor]:
        """The same for held-out clouds, with masks that are the same in every epoch."""
        seed = derive_seed(self.config.eval.split_seed, "mask", batch.number)
        return self.masked(encoder, batch.inputs, torch.Generator(batch.inputs.device).manual_seed(seed))

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Chamfer distance of the hidden groups."""
        loss = model(*self.masked(_plain(model).encoder, batch.inputs, generator)).loss
        return loss, {"loss": loss.detach() * len(batch.inputs)}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """The batch's Chamfer distance for each of its clouds, (b, 1)."""
        groups, mask = self.test_masked(_plain(model).encoder, batch)
        return model(groups, mask).loss.float().expand(len(mask), 1)

    def metrics(self, found: Predictions) -> dict[str, Any]:
        """The mean Chamfer distance; every cloud counts once."""
        batches = found.rows[:, 0].split(self.config.eval.batch_size)  # all rows of a batch are its mean
        total = sum((part[0] * len(part) for part in batches), torch.zeros(()))
        return {"loss": total.item() / len(found.rows)}

    def record_text(self, record: Mapping[str, Any], part: str) -> str:
        """The loss of held-out clouds."""
        return f"{part} loss {record[f'{part}_loss']:.5g}"


def _plain(model: nn.Module) -> MaskedAutoencoder:
    """Without the wrapper for several processes."""
    plain = getattr(model, "module", model)
    assert isinstance(plain, MaskedAutoencoder)
    return plain
