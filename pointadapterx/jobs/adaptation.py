"""Adaptation: trains method and head, and keeps the best adapter."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import Splits
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.config import Config
from pointadapterx.datasets import PointClouds, Samples
from pointadapterx.datasets.inputs import regime
from pointadapterx.datasets.preparation import Preparation
from pointadapterx.engine.evaluator import evaluate, predict
from pointadapterx.engine.features import open_features
from pointadapterx.engine.health import routing_line, routing_record, starved_experts
from pointadapterx.engine.metrics import Predictions, compute_metrics
from pointadapterx.engine.trainer import Trainer
from pointadapterx.models.frozen import Frozen
from pointadapterx.run_folder import ADAPTER_FILE

log = logging.getLogger(__name__)

PROTOCOLS = {
    "validation": "validation: best epoch selected on {part}, test set used once",
    "last": "last: the last epoch of the whole training set, nothing selected, test set used once",
    "published": "published: best epoch selected on the TEST set, optimistic",
}
LAST_KEPT = {
    "validation": "validation: the last epoch kept, the only one scored on {part}, test set used once",
    "published": "published: the last epoch kept, the only one scored on the TEST set",
}
"""The same where ``eval.every`` leaves a single epoch to choose from."""


def chooses(config: Mapping[str, Any]) -> bool:
    """Whether a run of this config has several epochs to choose from."""
    settings = config["eval"]
    return settings["protocol"] != "last" and settings["every"] < config["train"]["epochs"]


def protocol_words(config: Mapping[str, Any], own_validation: bool) -> str:
    """How the kept epoch is chosen, in words that are printed with every figure.

    Args:
        config: complete config.
        own_validation: whether the data set has a validation part, which is then not drawn from the training set.
    """
    protocol = config["eval"]["protocol"]
    words = PROTOCOLS[protocol] if chooses(config) else LAST_KEPT.get(protocol, PROTOCOLS[protocol])
    return words.format(part="the data set's validation part" if own_validation else "a part of the training set")


class AdaptationTrainer(Trainer):
    """Fits the trainable part of a model and keeps the best adapter by the selection metric.

    Args:
        config: complete config.
        model: built and frozen, on the CPU.
        splits: data; selection uses ``val``, or ``test`` under ``protocol: published``, or nothing under
            ``protocol: last``.
        folder: run folder, which besides receives the adapter.
        accelerator: device, precision, processes.
    """

    def __init__(
        self,
        config: Config,
        model: AdaptedModel,
        splits: Splits,
        folder: Path,
        accelerator: Accelerator,
    ) -> None:
        self.model = model
        self.splits = splits
        self.protocol = config["eval"]["protocol"]
        self.protocol_words = protocol_words(config, splits.own_validation)
        self.selection = {"validation": splits.val, "published": splits.test, "last": None}[self.protocol]
        if config["train"]["cached_views"] is not None:
            model.method.frozen_state(model.backbone)  # refuses what cannot be kept before anything is written
        identity = {"backbone": model.backbone_hash, "test": splits.test.checksum}
        if self.selection is not None:
            identity["selection"] = self.selection.checksum
        super().__init__(config, model, splits.train, folder, accelerator, identity)

    @property
    def selection_name(self) -> str:
        """``"val"``, or ``"test"`` under the published protocol."""
        return "test" if self.protocol == "published" else "val"

    def prepare(self) -> None:
        """Computes the features where they are trained from."""
        views = self.settings["cached_views"]
        if views is None:
            super().prepare()
            return
        self.features = open_features(self.model, self.dataset, self.config, self.accelerator, views=views)
        if self.selection is not None:
            self.selection_features = open_features(
                self.model, self.selection, self.config, self.accelerator, views=None
            )

    def draw(self, indices: Tensor, generator: torch.Generator) -> Tensor | Frozen:
        """Inputs, or the features of a view of each sample."""
        if self.settings["cached_views"] is None:
            return super().draw(indices, generator)
        device = self.accelerator.device
        views = torch.randint(self.features.views, indices.shape, generator=generator, device=device).cpu()
        return self.features.fetch(indices, views, device)

    def loss(
        self, inputs: Tensor | Frozen, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy and the method's auxiliary loss; reports the former, the hits, the method's statistics."""
        logits, auxiliary = self.wrapped(inputs)
        task = F.cross_entropy(logits.float(), labels, label_smoothing=self.settings["label_smoothing"])
        sums = {"loss": task.detach() * len(labels), "correct": (logits.argmax(dim=-1) == labels).sum()}
        return task if auxiliary is None else task + auxiliary, sums | self.model.method.statistics()

    def assess(self, record: dict[str, Any], means: Mapping[str, Tensor], last: bool) -> None:
        """Evaluates on the selection part and keeps the adapter if it is the best so far."""
        progress, settings = self.progress, self.config["eval"]
        record["train_accuracy"] = 100.0 * means["correct"].item()
        record["protocol"] = self.protocol_words
        record |= routing_record(means)
        for warning in starved_experts([*progress.history, record]):
            log.warning(warning)
        if self.selection is None:
            if last:
                progress.best_epoch = progress.epoch
                self._save_adapter({})
        elif last or (progress.epoch + 1) % settings["every"] == 0:
            predictions = self._predict_selection(self.selection)
            metrics = compute_metrics(predictions, self.selection.classes)
            for key in ("overall_accuracy", "mean_class_accuracy"):
                record[f"{self.selection_name}_{key}"] = metrics[key]
            score = metrics[settings["select"]]
            if score > progress.best_score:
                progress.best_score, progress.best_epoch = score, progress.epoch
                self._save_adapter({self.selection_name: metrics})

    def _predict_selection(self, dataset: Samples) -> Predictions:
        if self.settings["cached_views"] is None:
            return evaluate(self.model, dataset, self.config, self.accelerator)
        features = self.selection_features

        def fetch(indices: Tensor) -> Frozen:
            return features.fetch(indices, torch.zeros_like(indices), self.accelerator.device)

        size = self.config["eval"]["batch_size"]
        return predict(self.model, dataset, self.accelerator, batch_size=size, inputs=lambda batch, _: fetch(batch))

    def state_tensors(self) -> dict[str, Tensor]:
        """Only what differs from the backbone's weights file."""
        return self.model.adapter_state()

    def line(self, record: Mapping[str, Any]) -> str:
        """Accuracies, and the routing where there is one."""
        name = self.selection_name
        line = f"  train OA {record['train_accuracy']:.2f}"
        if f"{name}_overall_accuracy" in record:
            line += (
                f"  {name} OA {record[f'{name}_overall_accuracy']:.2f}"
                f" mAcc {record[f'{name}_mean_class_accuracy']:.2f}"
                f"{' (selects on TEST)' if name == 'test' and chooses(self.config) else ''}"
            )
            if chooses(self.config):
                line += f"  best {self.progress.best_score:.2f} (epoch {self.progress.best_epoch + 1})"
        routing = routing_line(record)
        return f"{line}  {routing}" if routing else line

    @cached_property
    def _form_of_inputs(self) -> dict[str, Any]:
        """What a prediction has to know of the training clouds."""
        train = self.splits.train
        return {"inputs": Preparation.of(train.points)._asdict()} if isinstance(train, PointClouds) else {}

    def _save_adapter(self, selected: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            story = {
                "protocol": self.protocol_words,
                "regime": regime(self.config["data"]),
                "epoch": self.progress.epoch + 1,
                **self._form_of_inputs,
                **selected,
            }
            save_adapter(
                self.model,
                self.folder / ADAPTER_FILE,
                config=self.config,
                classes=self.splits.test.classes,
                metrics=story,
            )
