"""Classification: one of a list of classes for every cloud or picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.datasets import Samples
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.inputs import Batch
from pointadapterx.errors import ConfigError
from pointadapterx.files import write_text
from pointadapterx.tasks.base import TASKS, LabelOf
from pointadapterx.tasks.calibration import Calibration, card_text, fit_temperature, summary
from pointadapterx.tasks.exchange import (
    Answer,
    Facts,
    Predictions,
    Ready,
    Score,
    Sections,
    Tabular,
    TaskOptions,
    names_of,
    require_finite,
)
from pointadapterx.tasks.novelty import Novelty
from pointadapterx.tasks.pooled import PooledTask
from pointadapterx.tasks.weighting import class_weights
from pointadapterx.text import cell, printable

NOVELTY = "novelty/"  # before the names of its tensors in an adapter's file
NOT_AVAILABLE = "not available"  # of an adapter's file that says nothing of its training data


@dataclass(frozen=True)
class ClassFacts(Facts):
    """What is stored with an adapter that classifies.

    Attributes:
        classes: names, in the order of the logits.
        calibration: how to read the logits, where that was fitted.
        novelty: what training data look like to the adapter, where that was fitted.
    """

    calibration: Calibration | None = None
    novelty: Novelty | None = None

    def stored(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See :class:`~pointadapterx.tasks.base.Facts`."""
        values: dict[str, Any] = {"classes": self.classes}
        if self.calibration is not None:
            values["calibration"] = self.calibration._asdict()
        tensors = {} if self.novelty is None else self.novelty.tensors()
        return values, {f"{NOVELTY}{key}": value for key, value in tensors.items()}

    @classmethod
    def restored(cls, config: Sections, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ClassFacts:
        """See :class:`~pointadapterx.tasks.base.Facts`."""
        classes, head = names_of(values["classes"]), config.head
        assert head is not None
        calibration = Calibration(**values["calibration"]) if "calibration" in values else None
        width = head.hidden[-1] if head.hidden else config.backbone.stages()[-1].width * len(head.pools or ())
        seen = {key.removeprefix(NOVELTY): tensor for key, tensor in tensors.items() if key.startswith(NOVELTY)}
        novelty = Novelty.from_tensors(seen, len(classes), width)
        if len(classes) != head.num_classes:
            raise ValueError(f"{len(classes)} classes for a head of {head.num_classes}")
        if calibration is not None:
            calibration.check()
        return cls(classes, calibration, novelty)

    def unfitted(self) -> ClassFacts:
        """The classes alone."""
        return ClassFacts(self.classes)


@dataclass(frozen=True)
class Prediction:
    """The prediction of one adapter for one input.

    Attributes:
        name: of the input.
        adapter: name of the adapter.
        classes: the likeliest first.
        probabilities: of these classes; calibrated where the adapter stores a temperature.
        novelty: share of the adapter's validation samples that are more like its training data; None where the adapter
            does not store it.
        known: whether that is usual for a sample of the adapter's classes: 95 % of them are. None as above.
        warnings: in what the input differs from the training data, and what looks wrong with its coordinates.
    """

    name: str
    adapter: str
    classes: list[str]
    probabilities: list[float]
    novelty: float | None
    known: bool | None
    warnings: list[str]

    def text(self) -> str:
        """The classes in order with their probabilities, and the novelty."""
        pairs = zip(self.classes, self.probabilities, strict=True)
        ranked = ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in pairs)
        novelty = "" if self.novelty is None else f"; novelty {self.novelty:.2f}"
        return f"{ranked}{novelty}{' (unfamiliar)' if self.known is False else ''}"

    def cells(self, top: int) -> list[str]:
        """Classes and probabilities by rank, novelty and whether it is known."""
        pairs = zip(self.classes, self.probabilities, strict=True)
        ranked = [text for name, probability in pairs for text in (cell(name), f"{probability:.6f}")]
        novelty = "" if self.novelty is None else f"{self.novelty:.3f}"
        known = {True: "yes", False: "no", None: NOT_AVAILABLE}[self.known]
        return [*ranked, *[""] * (2 * top - len(ranked)), novelty, known]

    def content(self) -> dict[str, Any]:
        """All but the name."""
        return {key: value for key, value in asdict(self).items() if key != "name"}


class ClassificationOptions(TaskOptions):
    """``task:`` of classification."""

    name: Literal["classification"] = "classification"


@TASKS.register("classification")
class Classification(PooledTask):
    """One of the data set's classes for every sample."""

    Options = ClassificationOptions
    stores = ClassFacts
    needs_labels = True
    predicts_classes = True
    weighs_classes = True
    balances_classes = True
    scores: ClassVar[Mapping[str, Score]] = {
        "overall_accuracy": Score("OA", "overall accuracy (OA)", metric="accuracy"),
        "mean_class_accuracy": Score("mAcc", "mean-class accuracy (mAcc)", metric="balanced_accuracy"),
    }
    tags: ClassVar[Mapping[str, str]] = {
        "points": "point-cloud-classification",
        "images": "image-classification",
    }
    pipelines = ("images",)
    usage = "found.classes[0], found.probabilities[0], found.known"
    pictures = (*PooledTask.pictures, "saliency", "tsne", "umap", "confusion", "mistakes")
    summary_pictures = ("confusion", "mistakes")

    facts: ClassFacts
    _weights: Tensor | None = None

    def learn(self, train: Samples) -> Facts:
        """The classes, and how much each of them counts in the loss."""
        self._weights = class_weights(self.config.train.class_weights, train.labels, train.classes)
        return super().learn(train)

    def width(self) -> int:
        """``head.num_classes``."""
        assert self.config.head is not None
        assert self.config.head.num_classes is not None
        return self.config.head.num_classes

    def targets(self, data: Samples) -> Targets:
        """The labels."""
        return Targets(data.labels)

    def check(self, data: Samples) -> None:
        """Whether the head has as many outputs as the data classes."""
        wanted, available = self.width(), len(data.classes)
        if wanted != available:
            raise ConfigError(
                f"head.num_classes={wanted}, but {self.config.data.name} has {available} classes; set head.num_classes "
                "to that"
            )

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, weighted by ``train.class_weights``."""
        smoothing = self.config.train.label_smoothing
        if self._weights is None:
            return F.cross_entropy(outputs, targets, label_smoothing=smoothing)
        weights = self._weights.to(outputs.device)
        # Not divided by the weights of the batch: the parts of a step then add up to what the whole step would give.
        return F.cross_entropy(outputs, targets, weights, label_smoothing=smoothing, reduction="none").mean()

    def counted(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The hits."""
        return {"correct": (outputs.argmax(dim=-1) == targets).sum()}

    def progress(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The accuracy on the training batches in %."""
        return {"train_accuracy": 100.0 * means["correct"].item()}

    def progress_text(self, record: Mapping[str, Any]) -> str:
        """The same."""
        return f"train OA {record['train_accuracy']:.2f}"

    def metrics(self, found: Predictions) -> dict[str, Any]:
        """See :func:`compute_metrics`."""
        return compute_metrics(found, self.facts.classes)

    def metrics_table(self, metrics: Mapping[str, Any], title: str) -> Table:
        """See :func:`metrics_table`."""
        return metrics_table(metrics, title)

    def write_answers(self, path: Path, found: Predictions, data: Samples, protocol: str | None) -> None:
        """See :func:`write_predictions`."""
        write_predictions(path, found, data.classes, data.names, protocol, data.groups)

    def fit(self, read: LabelOf, train: Samples, val: Samples) -> ClassFacts:
        """Temperature and novelty, from the training and the validation part."""
        hidden, _ = read(train)
        val_hidden, logits = read(val)
        return replace(
            self.facts,
            calibration=fit_temperature(logits, val.labels),
            novelty=Novelty.fit(hidden, train.labels, val_hidden, logits),
        )

    def judge(self, found: Predictions) -> dict[str, Any]:
        """How well calibrated the answers are, where a temperature was fitted."""
        calibration = self.facts.calibration
        return {} if calibration is None else {"calibration": summary(calibration, found.logits, found.labels)}

    def sample_scores(self, found: Predictions) -> Tensor:
        """100 where the answer is right."""
        return 100.0 * (found.logits.argmax(dim=-1) == found.labels).double()

    def columns(self, top: int) -> list[str]:
        """Ranked classes and probabilities, novelty, and whether that is usual."""
        ranks = [f"{what}_{rank}" for rank in range(1, top + 1) for what in ("class", "probability")]
        return [*ranks, "novelty", "known"]

    def answers(
        self, model: AdaptedModel, batch: Batch, inputs: Sequence[Ready], adapter: str, top: int
    ) -> list[Answer | None]:
        """The likeliest classes of each input, and how unlike the training data it is."""
        hidden, logits = (part.float().cpu() for part in model.head.classify(model.pooled(batch.inputs)))
        calibration, seen = self.facts.calibration, self.facts.novelty
        probabilities = logits.softmax(dim=-1) if calibration is None else calibration.probabilities(logits)
        best = probabilities.topk(min(top, len(self.facts.classes)), dim=-1)
        novelty: list[float | None] = [None] * len(inputs)
        known: list[bool | None] = [None] * len(inputs)
        if seen is not None:
            novelty, known = seen.share_below(hidden, logits).tolist(), seen.is_known(hidden, logits).tolist()
        finite = torch.cat([logits, hidden], dim=1).isfinite().all(dim=1).tolist()
        answers: list[Answer | None] = []
        for row, item in enumerate(inputs):
            score = novelty[row]
            if not finite[row] or (score is not None and not math.isfinite(score)):
                answers.append(None)
                continue
            names = [self.facts.classes[index] for index in best.indices[row].tolist()]
            ranked = best.values[row].tolist()
            answers.append(Prediction(item.name, adapter, names, ranked, score, known[row], item.warnings))
        return answers

    @property
    def lacks_novelty(self) -> bool:
        """Where no validation part was there to fit it on."""
        return self.facts.novelty is None

    def result(self, metrics: Mapping[str, Any], what: str, interval: tuple[float, float] | None) -> str:
        """How many are right, and how many would be if every answer were the most frequent class."""
        largest = 100 * max(map(sum, metrics["confusion_matrix"])) / metrics["count"]
        sure = "" if interval is None else f", 95 % interval {interval[0]:.0f} to {interval[1]:.0f} %"
        return (
            f"{metrics['overall_accuracy']:.1f} % of {metrics['count']} {what} are right{sure} (always the most "
            f"frequent class: {largest:.1f} %)"
        )

    def tables(self, metrics: Mapping[str, Any]) -> list[Tabular]:
        """Accuracy by class."""
        rows = [
            (name, str(entry["count"]), "–" if entry["accuracy"] is None else f"{entry['accuracy']:.1f}")
            for name, entry in metrics["per_class"].items()
        ]
        return [Tabular("Classes", ("class", "samples", "accuracy %"), rows)]

    def reading(self) -> dict[str, Any]:
        """Classes and the temperature of the softmax."""
        calibration = self.facts.calibration
        return {"classes": self.facts.classes, "temperature": None if calibration is None else calibration.temperature}

    def card(self, report: Mapping[str, Any] | None) -> list[tuple[str, str]]:
        """What the probabilities are worth."""
        return [("Calibration", card_text(self.facts.calibration, (report or {}).get("calibration")))]

    def limits(self) -> list[str]:
        """What a class says, and what novelty does not."""
        line = "Every input gets one of the classes above, whatever it shows."
        if self.facts.novelty is not None:
            line += (
                " `novelty` and `known` of a prediction hint at what is unlike the training data; most objects of "
                "other classes pass as known."
            )
        return [line]


def compute_metrics(predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """Overall accuracy (OA), mean-class accuracy (mAcc), accuracy per class, confusion matrix; percentages.

    A class without any sample has no accuracy (None) and does not enter the mean.

    Args:
        predictions: rows are logits (n, C), targets labels (n,).
        classes: C names.

    Raises:
        TrainingError: if logits are not finite, as the largest of them is then no answer.
    """
    from torchmetrics.functional import classification as scores  # slow to import

    logits, labels = predictions.logits, predictions.labels
    require_finite(logits, "logits")
    chosen, count = logits.argmax(dim=-1), len(classes)
    confusion = scores.multiclass_confusion_matrix(chosen, labels, num_classes=count)  # rows: truth
    recall = scores.multiclass_accuracy(chosen, labels, num_classes=count, average="none")
    present = confusion.sum(dim=1) > 0
    return {
        "overall_accuracy": 100.0 * (chosen == labels).double().mean().item(),
        "mean_class_accuracy": 100.0 * recall[present].double().mean().item(),
        "count": len(labels),
        "per_class": {
            name: {
                "accuracy": 100.0 * recall[i].item() if present[i] else None,
                "count": int(confusion[i].sum()),
            }
            for i, name in enumerate(classes)
        },
        "confusion_matrix": confusion.tolist(),
    }


def metrics_table(metrics: Mapping[str, Any], title: str) -> Table:
    """Per-class accuracies with OA and mAcc, for the terminal."""
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    table.add_column("samples", justify="right")
    table.add_column("accuracy %", justify="right")
    for name, entry in metrics["per_class"].items():
        accuracy = "–" if entry["accuracy"] is None else f"{entry['accuracy']:.1f}"
        table.add_row(printable(name), str(entry["count"]), accuracy)
    table.add_section()
    table.add_row("overall accuracy (OA)", str(metrics["count"]), f"{metrics['overall_accuracy']:.2f}", style="bold")
    table.add_row("mean-class accuracy (mAcc)", "", f"{metrics['mean_class_accuracy']:.2f}", style="bold")
    return table


def write_predictions(
    path: Path,
    predictions: Predictions,
    classes: Sequence[str],
    names: Sequence[str] | None,
    protocol: str | None,
    groups: Tensor | None = None,
) -> None:
    """One CSV row per sample: protocol, index, name, label, prediction, its probability, correct, group.

    Args:
        path: file to write.
        predictions: n of them.
        classes: C names.
        names: n, or None where the files have none.
        protocol: how the model was selected.
        groups: (n,) int64, which samples come from one object, or None where that is not known.

    Raises:
        TrainingError: if logits are not finite.
    """
    require_finite(predictions.logits, "logits")
    probabilities, chosen = torch.softmax(predictions.logits, dim=-1).max(dim=-1)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["protocol", "index", "name", "label", "prediction", "probability", "correct", "group"])
    rows = zip(predictions.labels.tolist(), chosen.tolist(), probabilities.tolist(), strict=True)
    for index, (label, prediction, probability) in enumerate(rows):
        name = cell(names[index]) if names is not None else ""
        group = int(groups[index]) if groups is not None else ""
        names_of = cell(classes[label]), cell(classes[prediction])
        outcome = (*names_of, f"{probability:.6f}", int(label == prediction), group)
        writer.writerow([protocol, index, name, *outcome])
    write_text(path, text.getvalue())
