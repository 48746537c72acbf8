"""Part segmentation: which part of its object each point of a cloud is of; the object's category is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from rich.table import Table
from torch import Tensor

from pointadapterx.datasets import Samples
from pointadapterx.datasets.options import DataConfig
from pointadapterx.errors import ConfigError
from pointadapterx.models.backbone import Backbone
from pointadapterx.peft.base import Method
from pointadapterx.tasks.base import TASKS
from pointadapterx.tasks.exchange import Predictions, Score, Tabular
from pointadapterx.tasks.from_data import read_of
from pointadapterx.tasks.point_segmentation import PointSegmentation, percent
from pointadapterx.tasks.segmentation_heads import PointOptions
from pointadapterx.text import cell, printable


class PartOptions(PointOptions):
    """``task:`` of part segmentation.

    ``parts`` are the names of the parts of each category, in the order of the categories' numbers, as the data set has
    them; null: filled in from it. A name that several categories have is one class of points. ``loss_over`` says what
    the loss is over: ``all`` parts, as published, or the ``own`` ones of the category, as predictions are.
    """

    name: Literal["part_segmentation"] = "part_segmentation"
    parts: dict[str, list[str]] | None = Field(None, min_length=1)
    loss_over: Literal["all", "own"] = "all"

    @property
    def of_categories(self) -> dict[str, list[str]]:
        """The parts, in a complete config."""
        assert self.parts is not None
        return self.parts

    @property
    def point_classes(self) -> list[str]:
        """Each part once, in the order in which they are named."""
        return list(dict.fromkeys(part for parts in self.of_categories.values() for part in parts))

    def completed(self, data: DataConfig | None) -> tuple[PartOptions, list[tuple[str, str]]]:
        """With the parts of the data set."""
        if self.parts is not None or data is None or data.lacks_variant:
            return self, []
        parts, found = read_of(data, data.find_parts, "task.parts", "{CATEGORY: [NAME, NAME]}")
        if found:
            return self, found
        if parts is None:
            return self, [("task.parts", f"is required, as {data.name} knows no parts: give {{category: [part, …]}}")]
        return self.model_copy(update={"parts": parts}), []

    def problems(self, backbone: Backbone.Options | None, method: Method.Options | None) -> Iterator[tuple[str, str]]:
        """Categories without a part, and parts that are named twice."""
        yield from super().problems(backbone, method)
        for category, parts in (self.parts or {}).items():
            if not parts or len(set(parts)) != len(parts):
                yield "task.parts", f"{category}: {'names a part twice' if parts else 'has no part'}"
        if self.parts is not None and len(self.point_classes) < 2:
            yield "task.parts", "there has to be more than one part in all"


@TASKS.register("part_segmentation")
class PartSegmentation(PointSegmentation):
    """A part for every point, of those that the object's category has.

    What a model says is restricted to these in predictions and metrics, and in the loss where ``loss_over`` says so.
    The IoU of a part that a shape neither has nor is said to have is 1.
    """

    Options: ClassVar[type[PartOptions]] = PartOptions
    balances_classes = True
    scores: ClassVar[Mapping[str, Score]] = {
        "instance_miou": Score("mIoU_I", "instance mIoU"),
        "class_miou": Score("mIoU_C", "class mIoU"),
    }
    tags: ClassVar[Mapping[str, str]] = {"points": "point-cloud-part-segmentation"}

    @property
    def options(self) -> PartOptions:
        """The ``task`` section."""
        assert isinstance(self.config.task, PartOptions)
        return self.config.task

    @property
    def categories(self) -> list[str]:
        """Of objects."""
        return list(self.options.of_categories)

    def check(self, data: Samples) -> None:
        """Parts and categories."""
        super().check(data)
        if data.classes != self.categories:
            name = self.config.data.name
            raise ConfigError(
                f"task.parts: names the categories {', '.join(self.categories[:5])}…, but data.name={name} has "
                f"{', '.join(data.classes[:5])}…; take task.parts out of the config to have those of the data"
            )

    def parts_of(self, condition: Tensor) -> Tensor:
        """The parts that categories (b,) have, (b, classes) bool."""
        names = self.point_classes
        own = [[name in parts for name in names] for parts in self.options.of_categories.values()]
        return torch.tensor(own, device=condition.device)[condition]

    def allowed(self, condition: Tensor | None) -> Tensor:
        """The parts of the category."""
        assert condition is not None
        return self.parts_of(condition)

    def contested(self, logits: Tensor, condition: Tensor | None) -> Tensor:
        """Those of the category's own parts, if ``loss_over`` says so."""
        if self.options.loss_over == "all":
            return logits
        return logits.masked_fill(~self.allowed(condition)[:, None], -torch.inf)

    # Metrics.

    def ious(self, found: Predictions) -> tuple[Tensor, Tensor]:
        """IoU of each part in each shape, 1 if it is in neither; and whether it is one of the shape's category.

        Returns:
            (n, classes) float64 in [0, 1], and bool.
        """
        assert found.targets.condition is not None
        both, either, _ = found.rows.double().chunk(3, dim=1)
        iou = torch.where(either > 0, both / either.clamp_min(1), 1.0)
        return iou, self.parts_of(found.targets.condition)

    def shape_ious(self, found: Predictions) -> Tensor:
        """The mean over the category's parts, (n,) float64 in [0, 1]."""
        iou, own = self.ious(found)
        return (iou * own).sum(dim=1) / own.sum(dim=1)

    @staticmethod
    def judged_shapes(found: Predictions) -> Tensor:
        """Shapes of which a point has a label, (n,) bool: nothing can be said of the others, so no score counts them.

        Those whose outputs are not finite are among them.
        """
        return found.rows.chunk(3, dim=1)[2].sum(dim=1) != 0

    def sample_records(self, found: Predictions) -> Tensor:
        """(n, 2 · categories): the shape's IoU in the column of its category, and a one in the other half.

        All zero for a shape without a labelled point.
        """
        assert found.targets.condition is not None
        number = torch.nn.functional.one_hot(found.targets.condition, len(self.categories)).double()
        number = number * self.judged_shapes(found)[:, None]
        return torch.cat([number * self.shape_ious(found)[:, None], number], dim=1)

    @classmethod
    def scores_of(cls, sums: Tensor) -> Mapping[str, Tensor]:
        """Mean over all shapes, and over the means of the categories that have some."""
        iou, number = sums.chunk(2, dim=-1)
        of_category = iou / number.clamp_min(1)
        categories = (number > 0).sum(dim=-1)
        return {
            "instance_miou": 100.0 * iou.sum(dim=-1) / number.sum(dim=-1).clamp_min(1),
            "class_miou": 100.0 * of_category.sum(dim=-1) / categories.clamp_min(1),
        }

    def metrics(self, found: Predictions) -> dict[str, Any]:
        """The scores, and of each category and each of its parts the mean IoU over its shapes.

        ``unlabelled`` is the number of shapes without a labelled point, where there are some.
        """
        values, judged = super().metrics(found), self.judged_shapes(found)
        assert found.targets.condition is not None
        if left_out := int((~judged).sum()):
            values["unlabelled"] = left_out
        shapes, (iou, _) = self.shape_ious(found), self.ious(found)
        column = {name: k for k, name in enumerate(self.point_classes)}
        per_category = {}
        for number, (category, parts) in enumerate(self.options.of_categories.items()):
            rows = judged & (found.targets.condition == number)
            count = int(rows.sum())
            of_parts = {part: 100.0 * iou[rows, column[part]].mean().item() if count else None for part in parts}
            mean = 100.0 * shapes[rows].mean().item() if count else None
            per_category[category] = {"miou": mean, "count": count, "parts": of_parts}
        return {**values, "per_category": per_category}

    def said_of(self, row: Tensor, found: Predictions, index: int) -> dict[str, str]:
        """Category, mean IoU of the shape, and the share of its points that are right; empty without a label."""
        assert found.targets.condition is not None
        one = Predictions(row[None], found.targets.of(torch.tensor([index])))
        both, _, truth = row.chunk(3)
        judged = bool(truth.sum())
        return {
            "category": cell(self.categories[int(found.targets.condition[index])]),
            "iou": f"{self.shape_ious(one).item():.6f}" if judged else "",
            "accuracy": f"{(both.sum() / truth.sum()).item():.6f}" if judged else "",
        }

    # Presentation.

    def metrics_table(self, metrics: Mapping[str, Any], title: str) -> Table:
        """Mean IoU per category with the scores, for the terminal."""
        table = Table(title=title, title_justify="left")
        table.add_column("category")
        table.add_column("shapes", justify="right")
        table.add_column("mIoU %", justify="right")
        for name, entry in metrics["per_category"].items():
            table.add_row(printable(name), str(entry["count"]), percent(entry["miou"]))
        table.add_section()
        left_out = metrics.get("unlabelled", 0)
        for key, score in self.scores.items():
            table.add_row(score.long, str(metrics["count"] - left_out), f"{metrics[key]:.2f}", style="bold")
        if left_out:
            table.add_row("without a labelled point, left out", str(left_out), "")
        return table

    def tables(self, metrics: Mapping[str, Any]) -> list[Tabular]:
        """IoU by category and part, means over shapes; then by part over the points of all shapes."""
        rows = [
            (category, str(entry["count"]), percent(entry["miou"]), part, percent(iou))
            for category, entry in metrics["per_category"].items()
            for part, iou in entry["parts"].items()
        ]
        header = ("category", "shapes", "mIoU %", "part", "IoU %")
        return [Tabular("Categories and their parts", header, rows), *super().tables(metrics)]

    def reading(self) -> dict[str, Any]:
        """The classes, and which of them each category has: only these are to be compared."""
        column = {name: k for k, name in enumerate(self.point_classes)}
        parts = {name: [column[part] for part in own] for name, own in self.options.of_categories.items()}
        return {"classes": self.facts.classes, "parts": parts}

    def limits(self) -> list[str]:
        """What a label needs."""
        return [*super().limits(), "The category of an object has to be known; with a wrong one every label is wrong."]
