"""What a pre-training run does beside its steps: the linear probe, the encoder's weights, drawings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from pointadapterx.build import build_probe_data
from pointadapterx.checkpoints.adapter_file import versions
from pointadapterx.checkpoints.shipped import save_backbone
from pointadapterx.config import Config
from pointadapterx.datasets import PointClouds, build_inputs
from pointadapterx.datasets.inputs import Batches
from pointadapterx.engine.hooks import Hook
from pointadapterx.engine.trainer import Trainer
from pointadapterx.jobs.linear_probe import probe_accuracy
from pointadapterx.models.grouping import Groups
from pointadapterx.optional import missing
from pointadapterx.run_folder import BEST_WEIGHTS_FILE, DRAWINGS_FOLDER, WEIGHTS_FILE
from pointadapterx.tasks.reconstruction import PretrainConfig, Reconstruction
from pointadapterx.visualize.drawing import paint, save
from pointadapterx.visualize.reconstruction import reconstruction_sheet

log = logging.getLogger(__name__)


def pretraining_hooks(config: Config) -> list[Hook]:
    """Those of a config with a ``pretrain`` section; reads the data of its probe."""
    options = config.pretrain
    assert isinstance(options, PretrainConfig)
    hooks: list[Hook] = [KeepWeights(options, build_probe_data(config) if options.probe.every else None)]
    return [*hooks, DrawReconstructions(options)] if options.draw else hooks


def _is_due(options: PretrainConfig, epoch: int, last: bool) -> bool:
    """Whether the encoder is looked at after this epoch, counted from 1."""
    return last or bool(options.probe.every and epoch % options.probe.every == 0)


class KeepWeights(Hook):
    """Writes the encoder now and then, with the accuracy of a linear probe, and the best one by it.

    Args:
        options: of pre-training.
        data: labelled clouds on which the probe is trained and judged; None probes never.
    """

    def __init__(self, options: PretrainConfig, data: tuple[PointClouds, PointClouds] | None) -> None:
        self.options, self.data = options, data

    def assessed(self, trainer: Trainer, record: dict[str, Any], last: bool) -> None:
        """See :class:`~pointadapterx.engine.hooks.Hook`."""
        progress = trainer.progress
        if not _is_due(self.options, progress.epoch + 1, last):
            return
        if trainer.accelerator.is_main_process:
            if self.data is not None:
                record["probe_accuracy"] = self.probe_accuracy(trainer)
            self.save(trainer, WEIGHTS_FILE, record)
            if record.get("probe_accuracy", float("-inf")) > progress.best_score:
                progress.best_score, progress.best_epoch = record["probe_accuracy"], progress.epoch
                self.save(trainer, BEST_WEIGHTS_FILE, record)
        trainer.accelerator.wait_for_everyone()

    def text(self, record: Mapping[str, Any]) -> str:
        """The probe, where this epoch had one."""
        return f"linear probe {record['probe_accuracy']:.2f} %" if "probe_accuracy" in record else ""

    def probe_accuracy(self, trainer: Trainer) -> float:
        """See :func:`~pointadapterx.jobs.linear_probe.probe_accuracy`."""
        assert self.data is not None
        return probe_accuracy(trainer.plain_model.encoder, *self.data, trainer.config, trainer.accelerator)

    def save(self, trainer: Trainer, name: str, record: Mapping[str, Any]) -> None:
        """Writes the encoder in half precision to a file of the run, with the story of its training."""
        config, train = trainer.config, trainer.splits.train
        nowhere = {"root": None, "cache_dir": None}  # where files lay is nobody else's business
        sections = config.dump()
        pretrain = sections["pretrain"]
        story = {
            "data": {"name": config.data.name, "clouds": len(train), "checksum": train.checksum},
            "config": {
                **sections,
                "backbone": {**sections["backbone"], "weights": None},
                "pretrain": {**pretrain, "probe": {**pretrain["probe"], "root": None}},
                "data": {**sections["data"], **nowhere},
            },
            "record": dict(record),
            "versions": versions(),
        }
        save_backbone(trainer.plain_model.encoder, trainer.folder / name, config.backbone, story)


class DrawReconstructions(Hook):
    """Draws what the model makes of the first held-out clouds, whenever the encoder is written.

    Args:
        options: of pre-training.
    """

    def __init__(self, options: PretrainConfig) -> None:
        self.options = options

    def assessed(self, trainer: Trainer, record: dict[str, Any], last: bool) -> None:
        """See :class:`~pointadapterx.engine.hooks.Hook`."""
        epoch = trainer.progress.epoch + 1
        if trainer.accelerator.is_main_process and _is_due(self.options, epoch, last):
            self._draw(trainer, epoch)

    @torch.inference_mode()
    def _draw(self, trainer: Trainer, epoch: int) -> None:
        task, model, val = trainer.task, trainer.plain_model, trainer.splits.val
        assert isinstance(task, Reconstruction)
        assert val is not None
        batches = Batches(build_inputs(trainer.config), val, task.targets(val), trainer.accelerator.device)
        first = torch.arange(min(trainer.config.eval.batch_size, len(val)))  # the masks are those of a whole batch
        groups, mask = task.test_masked(model.encoder, batches.test(first))
        kept = slice(self.options.draw)
        groups, mask = Groups(groups.neighborhood[kept], groups.centers[kept]), mask[kept]
        model.eval()
        predicted = model(groups, mask).predicted.float().cpu()
        model.train()
        of_cpu = Groups(*(part.cpu() for part in groups))
        sheet = reconstruction_sheet(of_cpu, mask.cpu(), predicted, val.names[kept] if val.names else None)
        try:
            save(paint(sheet), trainer.folder / DRAWINGS_FOLDER / f"epoch_{epoch:04d}.png")
        except ImportError:
            reason = missing("matplotlib.figure", "viz")
            if reason is None:
                raise
            log.warning("no reconstructions are drawn: matplotlib %s, or set pretrain.draw=0", reason)
