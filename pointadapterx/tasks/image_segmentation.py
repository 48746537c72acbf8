"""Segmentation of images: a class for every pixel of a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from rich.table import Table
from torch import Tensor, nn
from typing_extensions import Self

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.datasets import DATASETS, Samples
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.image_masks import MOST_CLASSES, MaskedImages
from pointadapterx.datasets.image_transforms import IGNORED, put_back
from pointadapterx.datasets.images import fitted
from pointadapterx.datasets.inputs import Batch
from pointadapterx.datasets.options import DataConfig
from pointadapterx.errors import ConfigError, PointAdapterXError, reason_of
from pointadapterx.files import write_text
from pointadapterx.models import Backbone
from pointadapterx.models.features import FeatureInfo
from pointadapterx.peft.base import Method
from pointadapterx.schema import Rate
from pointadapterx.tasks.base import TASKS, Task
from pointadapterx.tasks.exchange import Answer, Facts, Predictions, Ready, Score, Tabular, TaskOptions
from pointadapterx.tasks.pixel_answers import PixelLabels, likeliest
from pointadapterx.tasks.pixel_losses import Pixels
from pointadapterx.tasks.upernet import LightHead, PixelHead, UPerNet, levels_of
from pointadapterx.tasks.weighting import shared, weights_of_counts
from pointadapterx.text import cell, printable

CHANNELS = {"upernet": 512, "light": 128}


class ImageSegmentationOptions(TaskOptions):
    """``task:`` of the segmentation of images.

    ``head`` is UPerNet as published, or a light one for training few parameters. ``channels`` of its layers are 512 and
    128 if null. ``auxiliary`` is the weight of the loss of an auxiliary head, 0.4 as published, 0 for none. ``norm``
    ``group`` depends on no other picture of a batch. ``blocks`` are those that the head reads: one a stage, or four of
    a plain transformer. ``num_classes`` is that of the data.
    """

    name: Literal["image_segmentation"] = "image_segmentation"
    head: Literal["upernet", "light"] = "upernet"
    channels: int | None = Field(None, ge=1, le=2**12)
    auxiliary: float = Field(0.0, ge=0)
    norm: Literal["batch", "group"] = "batch"
    dropout: Rate = 0.1
    blocks: list[int] | None = Field(None, min_length=1)
    num_classes: int | None = Field(None, ge=2, le=MOST_CLASSES)

    def completed(self, data: DataConfig | None) -> tuple[Self, list[tuple[str, str]]]:
        """With the number of classes of the data, and the width of the head."""
        changes: dict[str, Any] = {} if self.channels is not None else {"channels": CHANNELS[self.head]}
        problems = []
        if data is not None:
            kind = DATASETS[data.name]
            if not issubclass(kind, MaskedImages):
                known = ", ".join(sorted(name for name, one in DATASETS.items() if issubclass(one, MaskedImages)))
                problems.append(("data.name", f"{data.name} has no classes of pixels; choose from {known}"))
            elif self.num_classes is None:
                try:
                    changes["num_classes"] = kind.count_pixel_classes(data.root, data.variant)
                except (PointAdapterXError, OSError) as error:
                    message = f"cannot be read from the data ({reason_of(error)}); mend them, or set it"
                    problems.append(("task.num_classes", message))
        return self.model_copy(update=changes), problems

    def problems(self, backbone: Backbone.Options | None, method: Method.Options | None) -> Iterator[tuple[str, str]]:
        """An auxiliary head where there is none."""
        if self.head == "light" and self.auxiliary:
            yield "task.auxiliary", "belongs to task.head=upernet; remove it"


@TASKS.register("image_segmentation")
class ImageSegmentation(Task):
    """One of the data set's classes for every pixel."""

    Options = ImageSegmentationOptions
    sections = ("method",)
    caches = False
    weighs_classes = True
    file_kinds = (".png", ".npz")
    pictures = (*Task.pictures, "pixel_labels")
    scores: ClassVar[Mapping[str, Score]] = {
        "miou": Score("mIoU", "mean IoU of the classes (mIoU)", metric="mean_iou"),
        "macc": Score("mAcc", "mean accuracy of the classes (mAcc)", metric="mean_accuracy"),
        "aacc": Score("aAcc", "accuracy of all pixels (aAcc)", metric="overall_accuracy"),
    }
    tags: ClassVar[Mapping[str, str]] = {"images": "image-segmentation"}
    pipelines = ("images",)
    usage = "found.shares(), found.labels, found.confidence"

    _weights: Tensor | None = None

    @property
    def options(self) -> ImageSegmentationOptions:
        """Of the config."""
        assert isinstance(self.config.task, ImageSegmentationOptions)
        return self.config.task

    @property
    def pixel_classes(self) -> list[str]:
        """Of the facts."""
        return self.facts.classes

    # Data.

    def check(self, data: Samples) -> None:
        """Whether there are masks, with as many classes as the head has.

        Raises:
            ConfigError: if not.
        """
        assert isinstance(data, MaskedImages)  # the config was checked
        own, there = self.options.num_classes, len(data.pixel_classes)
        if own != there:
            raise ConfigError(
                f"task.num_classes={own}, but {self.config.data.name} has {there} classes; set it to that"
            )
        if self.facts.classes not in ([], data.pixel_classes):
            raise ConfigError(
                f"the adapter knows the classes {', '.join(self.facts.classes[:3])}, …, but {self.config.data.name} "
                f"has {', '.join(data.pixel_classes[:3])}, …; give data with the same classes"
            )

    def learn(self, train: Samples) -> Facts:
        """Names of the classes, and how much each of them counts in the loss."""
        assert isinstance(train, MaskedImages)
        wanted, classes = self.config.train.class_weights, train.pixel_classes
        if wanted is not None:
            counts = train.count_pixels() if isinstance(wanted, str) else torch.ones(len(classes))
            self._weights = weights_of_counts(wanted, counts, classes)
        return Facts(train.pixel_classes)

    # Model.

    def build_head(self, info: FeatureInfo) -> PixelHead:
        """UPerNet, or the light head."""
        options = self.options
        assert options.num_classes is not None
        assert options.channels is not None
        levels = levels_of(info, options.blocks)
        if options.head == "light":
            return LightHead(levels, options.num_classes, options.channels, dropout=options.dropout)
        return UPerNet(
            levels,
            options.num_classes,
            options.channels,
            auxiliary=options.auxiliary > 0,
            norm=options.norm,
            dropout=options.dropout,
        )

    # Training.

    def blank_targets(self, inputs: Tensor) -> Targets:
        """All pixels of the first class."""
        size = (len(inputs), *inputs.shape[-2:])
        return Targets(pixels=inputs.new_zeros(size, dtype=torch.int64))

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the labelled pixels, of the head and with its weight of the auxiliary head."""
        truth = batch.targets.pixels
        assert truth is not None
        (found, auxiliary) = model(batch.inputs, Pixels(truth, self.criterion))
        own, *further, right = found
        loss = own
        for part in further:
            loss = loss + self.options.auxiliary * part
        sums = {"loss": loss.detach() * len(truth), "right": right.detach(), "known": (truth != IGNORED).sum()}
        return loss if auxiliary is None else loss + auxiliary, sums

    def criterion(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy over the labelled pixels, divided by the number of all pixels, as mmsegmentation has it.

        So the parts of a step add up to what the whole step would give.

        Args:
            logits: (b, classes, S, S).
            truth: (b, S, S); :data:`IGNORED` counts as no loss.
        """
        weights = None if self._weights is None else self._weights.to(logits.device)
        smoothing = self.config.train.label_smoothing
        found = F.cross_entropy(
            logits, truth, weights, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
        )
        return found.mean()

    def progress(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The accuracy of all labelled pixels of the training batches in %."""
        return {"train_accuracy": 100.0 * shared(means["right"], means["known"])}

    def progress_text(self, record: Mapping[str, Any]) -> str:
        """The same."""
        return f"train aAcc {record['train_accuracy']:.2f}"

    # Evaluation.

    def combine(self, outputs: Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        """The mean probabilities of each pixel of the first copy, over those copies that show it; of one its logits."""
        if len(outputs) == 1:
            return outputs[0]
        total, seen = outputs[0].softmax(dim=1), torch.ones_like(outputs[0][:, :1])
        for output, batch in zip(outputs[1:], batches[1:], strict=True):
            found = output.softmax(dim=1)
            if batch.frame is None:
                total, seen = total + found, seen + 1
            else:
                moved, reached = put_back(found, batch.frame)
                total, seen = total + moved, seen + reached
        return total / seen

    def rows(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(b, 3 · classes) float64: labelled pixels in intersection, truth and prediction of each class.

        NaN where outputs are not finite.
        """
        truth = batch.targets.pixels
        assert truth is not None
        count = outputs.shape[1]
        found = outputs.argmax(dim=1)
        known = truth != IGNORED
        sample = torch.arange(len(truth), device=truth.device)[:, None, None].expand_as(truth)

        def counted(chosen: Tensor, labels: Tensor) -> Tensor:
            places = (sample * count + labels)[chosen]
            return places.bincount(minlength=len(truth) * count).view(len(truth), count)

        rows = torch.cat(
            [counted(known & (found == truth), found), counted(known, truth), counted(known, found)], dim=1
        )
        finite = outputs.flatten(1).isfinite().all(dim=1)
        return rows.double().masked_fill(~finite[:, None], torch.nan)

    def sample_records(self, found: Predictions) -> Tensor:
        """The rows."""
        return found.rows

    @classmethod
    def scores_of(cls, sums: Tensor) -> Mapping[str, Tensor]:
        """Of all pixels of the pictures together; a class that is neither there nor found does not count."""
        both, truth, found = sums.tensor_split(3, dim=-1)
        either = truth + found - both
        return {
            "miou": 100 * _mean(both / either.clamp_min(1), either > 0),
            "macc": 100 * _mean(both / truth.clamp_min(1), truth > 0),
            "aacc": 100 * both.sum(dim=-1) / truth.sum(dim=-1).clamp_min(1),
        }

    def metrics(self, found: Predictions) -> dict[str, Any]:
        """The scores, and IoU and accuracy of each class; None of a class that is neither there nor found."""
        both, truth, taken = found.rows.sum(dim=0).tensor_split(3)
        either = truth + taken - both
        classes = {
            name: {
                "iou": 100 * float(both[i] / either[i]) if either[i] else None,
                "accuracy": 100 * float(both[i] / truth[i]) if truth[i] else None,
                "pixels": int(truth[i]),
            }
            for i, name in enumerate(self.facts.classes)
        }
        return super().metrics(found) | {"per_class": classes}

    def write_answers(self, path: Path, found: Predictions, data: Samples, protocol: str | None) -> None:
        """One row a picture: protocol, index, name, its scores, its labelled pixels, group."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["protocol", "index", "name", *self.scores, "pixels", "group"])
        scores = self.scores_of(found.rows)
        pixels = found.rows.tensor_split(3, dim=1)[1].sum(dim=1).tolist()
        for index, count in enumerate(pixels):
            name = cell(data.names[index]) if data.names is not None else ""
            group = int(data.groups[index]) if data.groups is not None else ""
            values = [f"{float(values[index]):.4f}" for values in scores.values()]
            writer.writerow([protocol, index, name, *values, int(count), group])
        write_text(path, text.getvalue())

    # Predictions for single inputs.

    def columns(self, top: int) -> list[str]:
        """Ranked classes and their shares of the picture, and the mean confidence."""
        return [*(f"{what}_{rank}" for rank in range(1, top + 1) for what in ("class", "share")), "confidence"]

    def answers(
        self, model: AdaptedModel, batch: Batch, inputs: Sequence[Ready], adapter: str, top: int
    ) -> list[Answer | None]:
        """The class of each pixel of the pictures as their files have them."""
        answers: list[Answer | None] = []
        letterbox = self.config.data.resize == "letterbox"
        for item, logits in zip(inputs, self.outputs(model, batch).float().cpu(), strict=True):
            if not logits.isfinite().all():
                answers.append(None)
                continue
            height, width = item.size or tuple(logits.shape[-2:])
            if letterbox:
                inner = fitted(height, width, logits.shape[-1])
                logits = logits[:, : inner[0], : inner[1]]
            labels, confidence = likeliest(logits, (height, width))
            answers.append(PixelLabels(item.name, adapter, [*item.warnings], labels, confidence, self.facts.classes))
        return answers

    def write_file(self, answer: Answer, path: Path, kind: str) -> None:
        """A PNG whose palette has a colour for each class, with their names; or both labels and confidence as NPZ."""
        assert isinstance(answer, PixelLabels)
        answer.write(path, kind)

    # Presentation.

    def metrics_table(self, metrics: Mapping[str, Any], title: str) -> Table:
        """IoU and accuracy by class, and the scores."""
        table = Table(title=title, title_justify="left")
        (classes,) = self.tables(metrics)
        for column in classes.header:
            table.add_column(column, justify="left" if column == "class" else "right")
        for row in classes.rows:
            table.add_row(*row)
        table.add_section()
        pixels = f"{sum(entry['pixels'] for entry in metrics['per_class'].values()):,}"
        for key, score in self.scores.items():
            value = f"{metrics[key]:.2f}"
            table.add_row(score.long, pixels, *((value, "") if key == "miou" else ("", value)), style="bold")
        return table

    def tables(self, metrics: Mapping[str, Any]) -> list[Tabular]:
        """IoU and accuracy by class."""
        rows = [
            (printable(name), f"{entry['pixels']:,}", _percent(entry["iou"]), _percent(entry["accuracy"]))
            for name, entry in metrics["per_class"].items()
        ]
        return [Tabular("Classes", ("class", "labelled pixels", "IoU %", "accuracy %"), rows)]

    def reading(self) -> dict[str, Any]:
        """Classes, and how pictures of other shapes become square."""
        return {"classes": self.facts.classes, "resize": self.config.data.resize or "stretch"}

    def limits(self) -> list[str]:
        """What a class of a pixel does not say."""
        return [
            "Every pixel gets one of the classes above, whatever it shows. Scores are of pictures and masks in the "
            "size that the model takes."
        ]


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over the last axis of those that are counted; 0 of none."""
    return (values * counted).sum(dim=-1) / counted.sum(dim=-1).clamp_min(1)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
