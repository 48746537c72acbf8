"""Detection: the objects in a picture, with boxes, and with masks where the head finds them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from rich.table import Table
from torch import Tensor, nn
from typing_extensions import Self

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.datasets import DATASETS, Samples
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.inputs import Batch
from pointadapterx.datasets.object_images import ObjectImages
from pointadapterx.datasets.objects import Placement, moved_by, placed_in_square
from pointadapterx.datasets.options import DataConfig
from pointadapterx.datasets.outlines import EXTRA, drawn
from pointadapterx.errors import ConfigError
from pointadapterx.files import write_text
from pointadapterx.models.features import FeatureInfo
from pointadapterx.optional import need_all
from pointadapterx.schema import Width
from pointadapterx.tasks.base import TASKS, Task
from pointadapterx.tasks.detection_answers import BESIDE, Detected
from pointadapterx.tasks.detection_heads import COLUMNS, HEADS, DetectionHead, Objects, Settings, packed, unpacked
from pointadapterx.tasks.detection_metrics import found_in, measure
from pointadapterx.tasks.exchange import Answer, Facts, Predictions, Ready, Score, Tabular, TaskOptions
from pointadapterx.tasks.from_data import read_of
from pointadapterx.text import cell, printable

SMALLEST = 1.0  # pixels of a side of a box in the model's picture, below which it is not learnt


class DetectionOptions(TaskOptions):
    """``task:`` of detection.

    ``head`` is ``retinanet`` or ``faster_rcnn`` (boxes), or ``mask_rcnn`` (boxes and masks). ``channels`` are those of
    the feature pyramid. ``anchors`` is the size of a level's smallest anchor by its stride, 4 for RetinaNet and 8 for
    the others if null. ``blocks`` are those that the head reads: one a stage, or four of a plain transformer. Nothing
    with a score below ``score_threshold`` is an answer, nor the worse of two boxes of one class whose IoU exceeds
    ``nms_threshold``; a picture has at most ``detections``. ``num_classes`` is that of the data.
    """

    name: Literal["detection"] = "detection"
    needs = ("torchvision", "pycocotools")
    extra = EXTRA
    head: Literal["retinanet", "faster_rcnn", "mask_rcnn"] = "retinanet"
    channels: Width = 256
    anchors: float | None = Field(None, gt=0, le=64)
    blocks: list[int] | None = Field(None, min_length=1)
    score_threshold: float = Field(0.05, ge=0, lt=1)
    nms_threshold: float = Field(0.5, gt=0, le=1)
    detections: int = Field(100, ge=1, le=1_000)
    num_classes: int | None = Field(None, ge=1, le=2**16)

    def completed(self, data: DataConfig | None) -> tuple[Self, list[tuple[str, str]]]:
        """With the number of classes."""
        if data is None:
            return self, []
        kind = DATASETS[data.name]
        if not issubclass(kind, ObjectImages):
            fitting = ", ".join(sorted(name for name, one in DATASETS.items() if issubclass(one, ObjectImages)))
            return self, [("data.name", f"{data.name} has no boxes of objects; for detection choose from {fitting}")]
        if self.num_classes is not None:
            return self, []
        classes, found = read_of(data, lambda: kind.objects_in(data.root), "task.num_classes", "NUMBER")
        return (self if classes is None else self.model_copy(update={"num_classes": len(classes)})), found


@TASKS.register("detection")
class Detection(Task):
    """Boxes, classes and scores of the objects in a picture; masks by Mask R-CNN."""

    Options = DetectionOptions
    sections = ("method",)
    caches = False
    unexportable = "its answers differ in number from picture to picture, which exported files do not have"
    scores: ClassVar[Mapping[str, Score]] = {
        "ap": Score("AP", "COCO AP of boxes"),
        "ap50": Score("AP50", "AP at IoU 0.50"),
        "ap75": Score("AP75", "AP at IoU 0.75"),
        "voc_ap50": Score("VOC AP50", "VOC's AP at IoU 0.50"),
    }
    tags: ClassVar[Mapping[str, str]] = {"images": "object-detection"}
    pipelines = ("images",)
    usage = "found.classes, found.scores, found.boxes"
    file_kinds = (".png", ".json", ".csv")
    pictures = (*Task.pictures, "objects")

    @property
    def options(self) -> DetectionOptions:
        """The config's section."""
        options = self.config.task
        assert isinstance(options, DetectionOptions)
        return options

    @property
    def _side(self) -> int:
        return self.config.backbone.input_shape(None)[1]

    # Data.

    def check(self, data: Samples) -> None:
        """Whether there are objects, as many classes as outputs, and masks where the head learns some."""
        name, options = self.config.data.name, self.options
        if not isinstance(data, ObjectImages):
            raise ConfigError(f"data.name={name} has no boxes of objects, which the task detection needs")
        if options.num_classes != len(data.object_classes):
            raise ConfigError(
                f"task.num_classes={options.num_classes}, but {name} has {len(data.object_classes)} classes of "
                "objects; set it to that, or to null"
            )
        if HEADS[options.head].has_masks and data.objects.outlines is None:
            without, total, example = data.boxes_alone
            raise ConfigError(
                f"task.head={options.head} learns masks, but {without} of {total} objects of {data.source[0]} "
                f"have boxes alone, first in {example}; use faster_rcnn or retinanet"
            )

    def targets(self, data: Samples) -> Targets:
        """The objects; of the classes that the adapter knows, where that is said."""
        assert isinstance(data, ObjectImages)
        if self.facts.classes and self.facts.classes != data.object_classes:
            raise ConfigError(
                f"the adapter knows the classes {', '.join(self.facts.classes[:5])}, the data have "
                f"{', '.join(data.object_classes[:5])}; set data.root to data with the same"
            )
        return data.targets

    def learn(self, train: Samples) -> Facts:
        """Names of the classes."""
        assert isinstance(train, ObjectImages)
        return Facts(list(train.object_classes))

    # Model.

    def build_head(self, info: FeatureInfo) -> DetectionHead:
        """The one that ``task.head`` names."""
        options = self.options
        need_all(options.needs, "the task detection needs", options.extra, ConfigError)
        assert options.num_classes is not None
        chosen = options.score_threshold, options.nms_threshold, options.detections
        settings = Settings(options.num_classes, self._side, options.channels, options.anchors, options.blocks, *chosen)
        return HEADS[options.head](info, settings)

    # Training.

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the detector's losses."""
        if batch.targets.objects is None:  # counted, see DetectionHead.work
            total, auxiliary = model(batch.inputs)
            return total if auxiliary is None else total + auxiliary, {"loss": total.detach()}
        head = HEADS[self.options.head]
        losses, auxiliary = model(batch.inputs, self.placed(batch, masks=head.has_masks))
        total, size = losses.sum(), len(batch.inputs)
        sums = {name: value.detach() * size for name, value in zip(head.losses, losses, strict=True)}
        return total if auxiliary is None else total + auxiliary, {"loss": total.detach() * size, **sums}

    def placed(self, batch: Batch, *, masks: bool = False) -> list[Objects]:
        """The objects of each picture where they are in the model's, without those that are ignored or cut off."""
        objects, side = batch.targets.objects, self._side
        assert objects is not None
        place = self._placement(objects.sizes)
        if batch.frame is not None:
            place = place.then(moved_by(batch.frame, side))
        picture = objects.picture
        boxes = Placement(place.scale[picture], place.shift[picture]).boxes(objects.boxes).clamp(0, side)
        kept = ~objects.ignored & ((boxes[:, 2:] - boxes[:, :2]).amin(dim=1) >= SMALLEST)
        found, starts = [], objects.starts.tolist()
        for row in range(len(objects)):
            own = torch.arange(starts[row], starts[row + 1], device=kept.device)
            own = own[kept[own]]
            inside = None
            if masks:
                assert objects.outlines is not None
                width, height = objects.sizes[row].tolist()
                shapes = drawn([objects.outlines[i] for i in own.tolist()], width, height, f"picture {row}")
                inside = resampled(shapes, place.scale[row], place.shift[row], side).to(boxes.device)
            found.append(Objects(boxes[own], objects.labels[own], inside))
        return found

    def _placement(self, sizes: Tensor) -> Placement:
        return placed_in_square(sizes, self._side, letterbox=self.config.data.resize == "letterbox")

    def progress(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """The losses one by one."""
        return {f"train_{name}": float(means[name]) for name in HEADS[self.options.head].losses}

    # Evaluation.

    def combine(self, outputs: Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        """What is found in several copies, back where they were; of boxes that overlap only the surest stays."""
        back = [self._back(output, batch) for output, batch in zip(outputs, batches, strict=True)]
        if len(back) == 1:
            return back[0]
        from torchvision.ops import batched_nms

        most, merged = self.options.detections, []
        for found in torch.cat(back, dim=1):
            found = found[found[:, COLUMNS - 1] >= 0] if found.isfinite().all() else found[:1] * math.nan
            rows = batched_nms(found[:, :4], found[:, 4], found[:, 5].long(), self.options.nms_threshold)[:most]
            padded = found.new_zeros(most, found.shape[1])
            padded[:, COLUMNS - 1] = -1
            padded[: len(rows)] = found[rows]
            merged.append(padded if bool(found.isfinite().all()) else padded * math.nan)
        return torch.stack(merged)

    def _back(self, output: Tensor, batch: Batch) -> Tensor:
        """Detections (b, most, columns) as if nothing had been augmented."""
        if batch.frame is None:
            return output
        place = moved_by(batch.frame, self._side).inverse()
        moved = torch.cat([place.boxes(output[..., :4]), output[..., 4:]], dim=-1)
        if output.shape[-1] > COLUMNS and bool((place.scale < 0).any()):
            for row, scale in enumerate(place.scale):
                turned = [axis for axis, one in ((-1, scale[0]), (-2, scale[1])) if one < 0]
                moved[row, :, COLUMNS:] = packed(unpacked(output[row, :, COLUMNS:].nan_to_num()).flip(turned))
        return moved

    def rows(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The detections with boxes in pixels of the pictures' files."""
        assert batch.targets.objects is not None
        return self._in_files(outputs, batch.targets.objects.sizes)

    def _in_files(self, outputs: Tensor, sizes: Tensor) -> Tensor:
        boxes = self._placement(sizes).inverse().boxes(outputs[..., :4])
        boxes = torch.minimum(boxes.clamp(min=0), sizes.repeat(1, 2)[:, None].to(boxes.dtype))
        return torch.cat([boxes, outputs[..., 4:]], dim=-1)

    def metrics(self, found: Predictions) -> dict[str, Any]:
        """See :func:`~pointadapterx.tasks.detection_metrics.measure`."""
        assert found.targets.objects is not None
        return measure(found.rows, found.targets.objects, self.facts.classes or self._names(), found.groups)

    def _names(self) -> list[str]:
        return [f"class {number}" for number in range(self.options.num_classes or 0)]

    def write_answers(self, path: Path, found: Predictions, data: Samples, protocol: str | None) -> None:
        """A line an object as CSV, and beside it COCO's results as JSON."""
        assert isinstance(data, ObjectImages)
        text, results = io.StringIO(), []
        writer = csv.writer(text)
        writer.writerow(["protocol", "index", "name", *BESIDE])
        for index, row in enumerate(found.rows):
            width, height = data.objects.sizes[index].tolist()
            name = data.names[index] if data.names is not None else str(index)
            one = self._detected(row, name, "", [], (width, height))
            results += one.results(data.identities[index], data.category_numbers)
            for label, score, box in zip(one.classes, one.scores, one.boxes, strict=True):
                edges = (f"{edge:.2f}" for edge in box)
                writer.writerow([protocol, index, cell(name), cell(label), f"{score:.6f}", *edges])
        write_text(path, text.getvalue())
        write_text(path.with_suffix(".json"), f"{json.dumps(results)}\n")

    # Predictions for single inputs.

    def columns(self, top: int) -> list[str]:
        """How many objects, and which."""
        return ["objects", "found"]

    def answers(
        self, model: AdaptedModel, batch: Batch, inputs: Sequence[Ready], adapter: str, top: int
    ) -> list[Answer | None]:
        """The objects of each picture."""
        outputs = self.outputs(model, batch).float().cpu()
        sizes = [(0, 0) if item.size is None else (item.size[1], item.size[0]) for item in inputs]
        rows = self._in_files(outputs, torch.tensor(sizes))
        return [
            self._detected(row, item.name, adapter, [*item.warnings], size) if bool(row.isfinite().all()) else None
            for row, item, size in zip(rows, inputs, sizes, strict=True)
        ]

    def _detected(self, row: Tensor, name: str, adapter: str, warnings: list[str], size: tuple[int, int]) -> Detected:
        found, names = found_in(row, size), self.facts.classes or self._names()
        labels = found.labels.tolist()
        classes = [names[label] for label in labels]
        scores, boxes = found.scores.tolist(), found.boxes.tolist()
        return Detected(name, adapter, warnings, classes, labels, scores, boxes, found.masks, size)

    def write_file(self, answer: Answer, path: Path, kind: str) -> None:
        """The picture with boxes, COCO's results, or a table."""
        assert isinstance(answer, Detected)
        answer.write(path, kind, len(self.facts.classes))

    # Presentation.

    def metrics_table(self, metrics: Mapping[str, Any], title: str) -> Table:
        """The scores, and AP by class."""
        table = Table(title=title, title_justify="left")
        masks = metrics.get("masks")
        for column in ("class", "objects", "AP %", "AP50 %", *(["AP of masks %"] if masks else [])):
            table.add_column(column, justify="left" if column == "class" else "right")
        for name, entry in metrics["per_class"].items():
            own = [_percent(masks["per_class"][name]["ap"])] if masks else []
            table.add_row(printable(name), str(entry["count"]), _percent(entry["ap"]), _percent(entry["ap50"]), *own)
        table.add_section()
        whole = [_percent(masks["ap"])] if masks else []
        table.add_row(
            "all", str(metrics["objects"]), _percent(metrics["ap"]), _percent(metrics["ap50"]), *whole, style="bold"
        )
        return table

    def result(self, metrics: Mapping[str, Any], what: str, interval: tuple[float, float] | None) -> str:
        """AP with its interval, which the metrics have themselves."""
        own = metrics["intervals"].get("ap")
        said = super().result(metrics, what, interval or (None if own is None else (own[0], own[1])))
        return f"{said}; too few pictures or scenes for an interval" if metrics["objects"] and own is None else said

    def tables(self, metrics: Mapping[str, Any]) -> list[Tabular]:
        """AP by class and size, and intervals."""
        parts = [("boxes", metrics), *([("masks", metrics["masks"])] if "masks" in metrics else [])]
        classes = [
            (name, str(entry["count"]), *(_percent(part["per_class"][name][key]) for _, part in parts for key in KEYS))
            for name, entry in metrics["per_class"].items()
        ]
        header = ("class", "objects", *(f"{key.upper()} of {name} %" for name, _ in parts for key in KEYS))
        whole = [
            (name, key.upper(), _percent(part[key]), _span(part["intervals"].get(key)))
            for name, part in parts
            for key in (*KEYS, "ap75")
        ]
        sizes = [
            (name, f"AP of {size} objects", _percent(value), "")
            for name, part in parts
            for size, value in part["sizes"].items()
        ]
        return [
            Tabular("Classes", header, classes),
            Tabular("Average precision", ("of", "", "%", "95 % interval over pictures or scenes"), [*whole, *sizes]),
        ]

    def reading(self) -> dict[str, Any]:
        """The classes."""
        return {"classes": self.facts.classes}

    def limits(self) -> list[str]:
        """What is not found."""
        return [
            "Objects of other classes are not found, or are taken for one of these. A score ranks answers; it is no "
            "probability."
        ]


KEYS = ("ap", "ap50")


def resampled(masks: np.ndarray, scale: Tensor, shift: Tensor, side: int) -> Tensor:
    """Masks (k, h, w) where they are in a model's picture, (k, side, side) float32, each pixel as the nearest one.

    Args:
        masks: as the file has them.
        scale: (2,), see :class:`~pointadapterx.datasets.objects.Placement`.
        shift: (2,).
        side: of the model's picture.
    """
    centres = np.arange(side) + 0.5
    picked, known = [], []
    for axis, length in ((1, masks.shape[1]), (0, masks.shape[2])):  # rows by y, columns by x
        at = np.floor((centres - float(shift[axis])) / float(scale[axis])).astype(np.int64)
        known.append((at >= 0) & (at < length))
        picked.append(at.clip(0, length - 1))
    there = known[0][:, None] & known[1][None]
    return torch.from_numpy(masks[:, picked[0]][:, :, picked[1]] * there).float()


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _span(edges: Sequence[float] | None) -> str:
    return "" if edges is None else f"{edges[0]:.1f} to {edges[1]:.1f}"
