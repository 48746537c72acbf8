"""A task that labels points, as the dense one of the engine's tests, with all that reports and studies may ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pointadapterx.config import Config
from pointadapterx.datasets import Samples
from pointadapterx.tasks.base import Task
from pointadapterx.tasks.exchange import Facts, Predictions, Score, Tabular, TaskOptions
from pointadapterx.tasks.weighting import class_weights
from tests.conftest import small_config
from tests.engine.test_dense_task import CLASSES, Halves

NAMES = ["lower", "upper"]


class LayersOptions(TaskOptions):
    """``task:``."""

    name: Literal["layers"] = "layers"


class Layers(Halves):
    """Whether a point is in the upper half of its cloud; its scores pool the points of all clouds."""

    Options = LayersOptions
    weighs_classes = True
    balances_classes = True
    pictures = (*Task.pictures, "point_labels")
    scores: ClassVar[Mapping[str, Score]] = {
        "iou": Score("mIoU", "mean IoU of the classes (mIoU)"),
        "upper": Score("IoU of upper", "IoU of the upper part"),
    }
    weights: Tensor | None = None

    @property
    def point_classes(self) -> list[str]:
        """Of the points."""
        return NAMES

    def learn(self, train: Samples) -> Facts:
        """Names, and how much each class of points counts."""
        points = self.targets(train).points
        assert points is not None
        self.weights = class_weights(self.config.train.class_weights, points, NAMES)
        return Facts(NAMES)

    def sample_records(self, found: Predictions) -> Tensor:
        """Intersections and unions."""
        return found.rows

    @classmethod
    def scores_of(cls, sums: Tensor) -> Mapping[str, Tensor]:
        """Of the pooled points."""
        both, either = sums.split(CLASSES, dim=-1)
        iou = 100 * both / either.clamp_min(1)
        return {"iou": iou.mean(dim=-1), "upper": iou[..., 1]}

    def metrics(self, found: Predictions) -> dict[str, Any]:
        """Of the records."""
        return Task.metrics(self, found)

    def tables(self, metrics: Mapping[str, Any]) -> list[Tabular]:
        """One."""
        return [Tabular("Parts", ("part", "IoU"), [("upper", f"{metrics['upper']:.1f}")])]


def layers_config(root: str, **train: Any) -> Config:
    """A small config of the task on clouds in ``root``."""
    sections = small_config("lora", data={"root": root}).dump()
    sections["eval"]["select"] = None
    return Config.of({"task": {"name": "layers"}, **sections, "train": {**sections["train"], "epochs": 1, **train}})


def random_records(rng: Any, count: int) -> Tensor:
    """(count, 2 · classes) intersections and unions as of clouds of 100 points."""
    either = torch.from_numpy(rng.integers(40, 60, (count, CLASSES)))
    return torch.cat([either - torch.from_numpy(rng.integers(0, 20, (count, CLASSES))), either], dim=1).double()
