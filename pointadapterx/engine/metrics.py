"""Metrics of a set of predictions, as JSON, as a table, and as a file of predictions."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from pointadapterx.errors import TrainingError
from pointadapterx.files import write_text
from pointadapterx.text import cell, printable


class Predictions(NamedTuple):
    """Model output for a whole split, in file order.

    Attributes:
        logits: (n, C) float32 on the CPU.
        labels: (n,) int64.
    """

    logits: Tensor
    labels: Tensor


def require_finite(rows: Tensor, what: str) -> None:
    """Refuses what no class can be read from.

    Args:
        rows: (n, width), a sample each.
        what: they are.

    Raises:
        TrainingError: naming the samples with NaN or infinite values.
    """
    broken = (~torch.isfinite(rows).all(dim=-1)).nonzero().flatten().tolist()
    if broken:
        raise TrainingError(
            f"the {what} of {len(broken)} samples are not finite, first indices {broken[:5]}; the weights have "
            "diverged: lower train.lr, or use train.precision=fp32"
        )


def compute_metrics(predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """Overall accuracy (OA), mean-class accuracy (mAcc), accuracy per class, confusion matrix; percentages.

    A class without any sample has no accuracy (None) and does not enter the mean.

    Args:
        predictions: see :class:`Predictions`.
        classes: C names.

    Raises:
        TrainingError: if logits are not finite, as the largest of them is then no answer.
    """
    require_finite(predictions.logits, "logits")
    logits, labels = predictions
    chosen, count = logits.argmax(dim=-1), len(classes)
    confusion = multiclass_confusion_matrix(chosen, labels, num_classes=count)  # rows: truth
    recall = multiclass_accuracy(chosen, labels, num_classes=count, average="none")
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


def metrics_table(metrics: dict[str, Any], title: str) -> Table:
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
