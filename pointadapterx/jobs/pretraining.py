"""Pre-training: Point-MAE on clouds without labels, watched by reconstruction and by a linear probe."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pointadapterx.build import PretrainingData
from pointadapterx.checkpoints.adapter_file import versions
from pointadapterx.checkpoints.shipped import save_backbone
from pointadapterx.config import Config
from pointadapterx.datasets import EvalBatches, derive_seed, resample_test
from pointadapterx.engine.trainer import Trainer
from pointadapterx.jobs.linear_probe import probe_accuracy
from pointadapterx.models.grouping import Groups
from pointadapterx.models.masking import MASKINGS, hidden_groups
from pointadapterx.models.point_mae import MaskedAutoencoder
from pointadapterx.optional import missing
from pointadapterx.run_folder import BEST_WEIGHTS_FILE, DRAWINGS_FOLDER, WEIGHTS_FILE
from pointadapterx.visualize.drawing import paint, save
from pointadapterx.visualize.reconstruction import reconstruction_sheet

log = logging.getLogger(__name__)


class PretrainingTrainer(Trainer):
    """Fits a masked autoencoder; its encoder is written with every probe, and kept where the probe was best.

    Args:
        config: complete config with a ``pretrain`` section.
        model: the autoencoder, on the CPU.
        data: see :class:`~pointadapterx.build.PretrainingData`.
        folder: run folder, which besides receives the encoder's weights and drawings.
        accelerator: device, precision, processes.
    """

    def __init__(
        self,
        config: Config,
        model: MaskedAutoencoder,
        data: PretrainingData,
        folder: Path,
        accelerator: Accelerator,
    ) -> None:
        self.model = model
        self.data = data
        self.options = config["pretrain"]
        self.hidden = hidden_groups(self.options["mask_ratio"], config["backbone"]["num_groups"])
        super().__init__(config, model, data.train, folder, accelerator, {"selection": data.val.checksum})

    def loss(self, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Chamfer distance of the hidden groups."""
        groups = self.model.encoder.grouping(inputs)
        mask = MASKINGS[self.options["mask"]](groups.centers, self.hidden, generator)
        loss = self.wrapped(groups, mask).loss
        return loss, {"loss": loss.detach() * len(inputs)}

    def assess(self, record: dict[str, Any], means: Mapping[str, Tensor], last: bool) -> None:
        """Reconstruction loss on held-out clouds; now and then the probe, drawings and the weights."""
        number, probe = self.progress.epoch + 1, self.options["probe"]
        if last or number % self.config["eval"]["every"] == 0:
            record["val_loss"] = self.validation_loss()
        if not (last or (probe["every"] and number % probe["every"] == 0)):
            return
        if self.accelerator.is_main_process:
            if self.data.probe is not None:
                record["probe_accuracy"] = self.probe_accuracy()
            if self.options["draw"]:
                self._draw(self.folder / DRAWINGS_FOLDER / f"epoch_{number:04d}.png")
            self.save_weights(WEIGHTS_FILE, record)
            if record.get("probe_accuracy", float("-inf")) > self.progress.best_score:
                self.progress.best_score, self.progress.best_epoch = record["probe_accuracy"], self.progress.epoch
                self.save_weights(BEST_WEIGHTS_FILE, record)
        self.accelerator.wait_for_everyone()

    def line(self, record: Mapping[str, Any]) -> str:
        """Held-out loss and probe, where this epoch had them."""
        line = f"  val loss {record['val_loss']:.5g}" if "val_loss" in record else ""
        return line + (f"  linear probe {record['probe_accuracy']:.2f} %" if "probe_accuracy" in record else "")

    @torch.inference_mode()
    def validation_loss(self) -> float:
        """Chamfer distance on the held-out clouds under the same masks in every epoch.

        Every cloud counts once, whatever the number of processes.
        """
        self.model.eval()
        total = torch.zeros(1, dtype=torch.float32, device=self.accelerator.device)
        for groups, mask in self._validation_batches():
            with self.accelerator.autocast():
                total += self.model(groups, mask).loss * len(mask)
        self.model.train()
        return self.accelerator.reduce(total).item() / len(self.data.val)

    def probe_accuracy(self) -> float:
        """See :func:`~pointadapterx.jobs.linear_probe.probe_accuracy`."""
        assert self.data.probe is not None
        return probe_accuracy(self.model.encoder, *self.data.probe, self.config, self.accelerator)

    def save_weights(self, name: str, record: Mapping[str, Any]) -> None:
        """Writes the encoder in half precision to a file of the run, with the story of its training."""
        config = self.config
        nowhere = {"root": None, "cache_dir": None}  # where files lay is nobody else's business
        sections = config.dump()
        story = {
            "data": {
                "name": config["data"]["name"],
                "clouds": len(self.data.train),
                "checksum": self.data.train.checksum,
            },
            "config": {
                **sections,
                "backbone": {**sections["backbone"], "weights": None},
                "pretrain": {**sections["pretrain"], "probe": {**sections["pretrain"]["probe"], "root": None}},
                "data": {**sections["data"], **nowhere},
            },
            "record": dict(record),
            "versions": versions(),
        }
        save_backbone(self.model.encoder, self.folder / name, sections["backbone"], story)

    def _validation_batches(self) -> Iterator[tuple[Groups, Tensor]]:
        accelerator, count = self.accelerator, self.config["data"]["num_points"]
        size, seed = self.config["eval"]["batch_size"], self.config["eval"]["split_seed"]
        skip_origin = self.config["backbone"]["skip_origin"]
        batches = EvalBatches(
            len(self.data.val), size, rank=accelerator.process_index, world_size=accelerator.num_processes
        )
        for batch in batches:
            points = resample_test(self.data.val.points[batch].to(accelerator.device), count, skip_origin=skip_origin)
            groups = self.model.encoder.grouping(points)
            generator = torch.Generator(points.device).manual_seed(derive_seed(seed, "mask", int(batch[0]) // size))
            yield groups, MASKINGS[self.options["mask"]](groups.centers, self.hidden, generator)

    @torch.inference_mode()
    def _draw(self, path: Path) -> None:
        groups, mask = next(self._validation_batches())
        kept = slice(self.options["draw"])
        groups, mask = Groups(groups.neighborhood[kept], groups.centers[kept]), mask[kept]
        self.model.eval()
        predicted = self.model(groups, mask).predicted.float().cpu()
        self.model.train()
        names = self.data.val.names
        of_cpu = Groups(*(part.cpu() for part in groups))
        sheet = reconstruction_sheet(of_cpu, mask.cpu(), predicted, names[kept] if names else None)
        try:
            save(paint(sheet), path)
        except ImportError:
            reason = missing("matplotlib.figure", "viz")
            if reason is None:
                raise
            log.warning("no reconstructions are drawn: matplotlib %s, or set pretrain.draw=0", reason)
