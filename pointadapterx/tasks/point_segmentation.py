"""Tasks that label every point of a cloud: what labels of parts and of scenes have in common."""

from __future__ import annotations

import csv
import io
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.arrays import as_array
from pointadapterx.datasets import Samples, Scenes
from pointadapterx.datasets.doubts import Cloud
from pointadapterx.datasets.formats.label_field import LabelField
from pointadapterx.datasets.inputs import Batch
from pointadapterx.datasets.point_files import Reading
from pointadapterx.datasets.ragged import IGNORED
from pointadapterx.errors import ConfigError, shown
from pointadapterx.files import write_text
from pointadapterx.labelled_files import FILE_KINDS, MOST, write_labelled
from pointadapterx.models.features import FeatureInfo
from pointadapterx.tasks.base import Task
from pointadapterx.tasks.exchange import (
    Answer,
    Facts,
    Predictions,
    Ready,
    Sections,
    Tabular,
    names_of,
    places,
    require_finite,
)
from pointadapterx.tasks.point_labels import JoinedPoints, PieceLogits, PointLabels, decided
from pointadapterx.tasks.point_scores import FileScores
from pointadapterx.tasks.segmentation_heads import PointOptions, SegmentationHead
from pointadapterx.tasks.weighting import counted, shared, weights_of_counts
from pointadapterx.text import cell


@dataclass(frozen=True)
class PointFacts(Facts):
    """The names of the classes, which the config has too.

    Attributes:
        values: the numbers that files have for the classes, which answers are written with; empty: 0 and so on.
    """

    values: list[int] = field(default_factory=list)

    @classmethod
    def restored(cls, config: Sections, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PointFacts:
        """See :class:`~pointadapterx.tasks.exchange.Facts`."""
        classes = names_of(values["classes"])
        assert isinstance(config.task, PointOptions)
        if classes != config.task.point_classes:
            raise ValueError("its classes are not those of its config")
        numbers = values.get("values", [])
        if not isinstance(numbers, list) or len(numbers) not in (0, len(classes)):
            raise ValueError(f"values is {shown(numbers)}, expected a number for each class")
        if not all(isinstance(number, int) and abs(number) < MOST for number in numbers):
            raise ValueError(f"values is {shown(numbers)}, which are not all whole numbers")
        return cls(classes, numbers)


class PointSegmentation(Task):
    """A label for every point.

    A subclass has options with :attr:`~PointOptions.point_classes`, names its scores and counts them from
    :meth:`counts`, which :meth:`rows` keeps of each sample.
    """

    Options: ClassVar[type[PointOptions]] = PointOptions
    stores = PointFacts
    sections = ("method",)
    weighs_classes = True
    caches = False
    whole = True
    file_kinds = FILE_KINDS
    usage = "found.labels, found.confidence"
    pictures = (*Task.pictures, "point_labels")
    summary_pictures = ("point_labels",)

    _weights: Tensor | None = None
    _known = 1.0  # share of the training points that have a label

    @property
    def options(self) -> PointOptions:
        """The ``task`` section."""
        assert isinstance(self.config.task, PointOptions)
        return self.config.task

    @property
    def point_classes(self) -> list[str]:
        """Of the ``task`` section, which has them from the data set."""
        return self.options.point_classes

    # Data.

    def check(self, data: Samples) -> None:
        """Whether points have labels, and those that the config names."""
        name, wanted, found = self.config.data.name, self.point_classes, data.point_classes
        if not found:
            raise ConfigError(
                f"data.name={name}: its points have no labels, which the task {self.options.name} learns; choose "
                "another data set or another task"
            )
        if found != wanted:
            odd = next((one for one in found if one not in wanted), None) or next(
                (one for one in wanted if one not in found), None
            )
            what = f"{odd!r} is in one of them only" if odd is not None else "their order differs"
            raise ConfigError(
                f"data.name={name}: its points are labelled with {len(found)} classes, and the config names "
                f"{len(wanted)}; {what}: take the names out of the config to have those of the data"
            )

    def label_counts(self, data: Samples) -> tuple[Tensor, int]:
        """How many points have each class, (classes,) int64; and how many points there are."""
        if isinstance(data, Scenes):
            parts = data.label_parts()
        else:
            labels = self.targets(data).points
            assert labels is not None
            parts = iter([labels])
        counts, points = torch.zeros(len(self.point_classes), dtype=torch.int64), 0
        for part in parts:
            counts, points = counts + counted(part, len(counts)), points + part.numel()
        return counts, points

    def learn(self, train: Samples) -> PointFacts:
        """The classes, how much each of them counts in the loss, and how many points have one.

        Raises:
            ConfigError: if no point has one.
        """
        wanted, (counts, points) = self.config.train.class_weights, self.label_counts(train)
        self._known = int(counts.sum()) / points
        if not self._known:
            raise ConfigError(f"data.name={self.config.data.name}: none of the {points:,} training points has a label")
        if wanted is not None:
            self._weights = weights_of_counts(wanted, counts, self.point_classes)
        return PointFacts(self.point_classes, list(train.point_values))

    # Model.

    def build_head(self, info: FeatureInfo) -> SegmentationHead:
        """The head of the ``task`` section."""
        pools = self.options.read_pools(self.config.method)
        return SegmentationHead(info, self.options, pools, len(self.point_classes), len(self.categories))

    # Training.

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the points that have a label, and the method's auxiliary loss; reports the former."""
        assert batch.targets.points is not None
        logits, auxiliary = model(batch.inputs, batch.targets.condition)
        labels = batch.targets.points.long()
        logits = self.contested(logits, batch.targets.condition)
        loss = self.criterion(logits.float(), labels)
        right = (logits.detach().argmax(dim=-1) == labels).sum()
        sums = {"loss": loss.detach() * len(logits), "correct": right, "known": (labels != IGNORED).sum()}
        return loss if auxiliary is None else loss + auxiliary, sums

    def contested(self, logits: Tensor, condition: Tensor | None) -> Tensor:
        """The logits that the loss is over: -inf for classes that it leaves out."""
        return logits

    def criterion(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over the points (b, N) with a label of the cross-entropy of (b, N, classes).

        Classes with a logit of -inf are left out, also where labels are smoothed. It is divided by as many points as
        have a label in such a batch on average over the training data, and not by their number or weights in this one:
        the parts of a step then add up to what the whole step would give.
        """
        weights = None if self._weights is None else self._weights.to(logits.device)
        smoothing = self.config.train.label_smoothing
        likely, labels = F.log_softmax(logits.flatten(0, 1), dim=-1), labels.flatten()
        found = F.nll_loss(likely, labels, weights, ignore_index=IGNORED, reduction="sum")
        if smoothing:
            left_out, known = likely == -torch.inf, labels != IGNORED
            even = likely.masked_fill(left_out, 0.0) * (1.0 if weights is None else weights)
            even = even.sum(dim=-1) / (~left_out).sum(dim=-1)
            found = (1.0 - smoothing) * found - smoothing * even[known].sum()
        return found / (labels.numel() * self._known)

    def progress(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The share of right points in the training batches in %, of those that have a label."""
        return {"train_point_accuracy": 100.0 * shared(means["correct"], means["known"])}

    def progress_text(self, record: Mapping[str, Any]) -> str:
        """The same."""
        return f"train points {record['train_point_accuracy']:.2f} %"

    # Evaluation.

    def allowed(self, condition: Tensor | None) -> Tensor | None:
        """What the points of clouds may be, (b, classes) bool; None: any of the classes.

        Args:
            condition: (b,) int64, where the model takes one.
        """
        return None

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (b, N, classes)."""
        return model(batch.inputs, batch.targets.condition).logits

    def point_labels(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(b, N) int64: the likeliest of what is allowed."""
        allowed = self.allowed(batch.targets.condition)
        if allowed is not None:
            outputs = outputs.masked_fill(~allowed[:, None], -torch.inf)
        return outputs.argmax(dim=-1)

    def rows(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(b, 3 · classes) float64: see :meth:`counts`; NaN where an output is not finite."""
        assert batch.targets.points is not None
        rows = self.counts(self.point_labels(outputs, batch), batch.targets.points)
        broken = ~outputs.isfinite().flatten(1).all(dim=1)
        return rows.masked_fill_(broken[:, None], torch.nan)

    def counts(self, found: Tensor, truth: Tensor) -> Tensor:
        """Points of each class, side by side: in found and truth, in either, and in truth.

        Args:
            found: (b, N), labels.
            truth: (b, N); points with a number that is no class are left out.

        Returns:
            (b, 3 · classes) float64.
        """
        classes = len(self.point_classes)
        truth = truth.long()
        known = (truth >= 0) & (truth < classes)
        offset = classes * classes * torch.arange(len(truth), device=truth.device)[:, None]
        pairs = (offset + classes * truth + found)[known]
        table = torch.bincount(pairs, minlength=len(truth) * classes**2).view(-1, classes, classes).double()
        both, of_truth, of_found = table.diagonal(dim1=1, dim2=2), table.sum(dim=2), table.sum(dim=1)
        return torch.cat([both, of_truth + of_found - both, of_truth], dim=1)

    def metrics(self, found: Predictions) -> dict[str, Any]:
        """The scores, and of each class over the points of all samples: IoU, recall and number of points."""
        require_finite(found.rows, "logits")
        both, either, truth = found.rows.double().sum(dim=0).chunk(3)
        per_class = {
            name: {
                "iou": 100.0 * both[k].item() / either[k].item() if either[k] else None,
                "accuracy": 100.0 * both[k].item() / truth[k].item() if truth[k] else None,
                "points": int(truth[k]),
            }
            for k, name in enumerate(self.point_classes)
        }
        return {**super().metrics(found), "per_class": per_class}

    @abstractmethod
    def said_of(self, row: Tensor, found: Predictions, index: int) -> dict[str, str]:
        """What the table of answers has of a sample.

        Args:
            row: of the sample, (3 · classes,).
            found: of all samples.
            index: of the sample.
        """

    def write_answers(self, path: Path, found: Predictions, data: Samples, protocol: str | None) -> None:
        """One row per sample: protocol, index, name, :meth:`said_of` it, group."""
        require_finite(found.rows, "logits")
        text = io.StringIO()
        writer = csv.writer(text)
        for index, row in enumerate(found.rows.double()):
            said = self.said_of(row, found, index)
            if index == 0:
                writer.writerow(["protocol", "index", "name", *said, "group"])
            name = cell(data.names[index]) if data.names is not None else ""
            group = int(data.groups[index]) if data.groups is not None else ""
            writer.writerow([protocol, index, name, *said.values(), group])
        write_text(path, text.getvalue())

    # Predictions for single inputs.

    def columns(self, top: int) -> list[str]:
        """Number of points, the most frequent classes with their shares, and the mean confidence."""
        return [
            "points",
            *(f"{what}_{rank}" for rank in range(1, top + 1) for what in ("class", "share")),
            "confidence",
        ]

    def answers(
        self, model: AdaptedModel, batch: Batch, inputs: Sequence[Ready], adapter: str, top: int
    ) -> list[Answer | None]:
        """Logits of the points that the model takes of each piece."""
        outputs = self.outputs(model, batch).float().cpu()
        condition = batch.targets.condition
        allowed = self.allowed(None if condition is None else condition.cpu())
        answers: list[Answer | None] = []
        for row, (item, logits, at) in enumerate(zip(inputs, outputs, places(batch, inputs), strict=True)):
            if not bool(logits.isfinite().all()):
                answers.append(None)
                continue
            assert item.piece is not None
            possible = None if allowed is None else allowed[row]
            labels, confidence = map(as_array, decided(logits, possible))
            points = item.piece.cloud.points[at.numpy()]
            values = self.facts.values or list(range(len(self.point_classes)))
            named = (item.name, adapter, self.point_classes, labels, confidence, item.warnings, points, values)
            answers.append(PieceLogits(*named, logits, at, possible))
        return answers

    def joining(self, cloud: Cloud) -> JoinedPoints:
        """See :class:`JoinedPoints`."""
        return JoinedPoints(cloud, len(self.point_classes))

    def write_file(self, answer: Answer, path: Path, kind: str) -> None:
        """All points of the file with their labels and confidence."""
        assert isinstance(answer, PointLabels)
        given = Path(answer.name)
        source = given if given.is_file() else None
        values = self.facts.values or None
        found = (answer.points, answer.labels, answer.confidence, answer.classes)
        wanted = LabelField(self.config.data.label_field)
        write_labelled(path, kind, *found, values=values, source=source, replaced=wanted.is_read)

    def scoring(self, field: str | int | None, reading: Reading) -> FileScores:
        """See :class:`FileScores`."""
        return FileScores(self, field, reading)

    # Presentation.

    def tables(self, metrics: Mapping[str, Any]) -> list[Tabular]:
        """IoU and recall by class."""
        rows = [
            (name, f"{entry['points']:,}", percent(entry["iou"]), percent(entry["accuracy"]))
            for name, entry in metrics["per_class"].items()
        ]
        return [Tabular("Classes of points", ("class", "points", "IoU %", "recall %"), rows)]

    def limits(self) -> list[str]:
        """What a label says."""
        return [
            "Every point gets one of the classes above, whatever it is of. Where a file has more points than the model "
            "takes, the others get their labels from the three nearest that it took."
        ]


def percent(value: float | None) -> str:
    """For a table; a dash where there is nothing to count."""
    return "–" if value is None else f"{value:.1f}"
