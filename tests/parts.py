"""Small data for part segmentation: objects whose parts are seen from the height of their points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pointadapterx.config import Config
from pointadapterx.datasets.base import DATASETS, PointClouds, Targets
from tests.conftest import small_config

PARTS = {"lamp": ["foot", "pole", "shade"], "mug": ["body", "handle"], "stool": ["foot", "seat"]}
"""Categories, two of which have a part in common."""
CLASSES = list(dict.fromkeys(part for parts in PARTS.values() for part in parts))
COUNTS = {"train": 24, "test": 9}
POINTS = 160


def objects(count: int, seed: int, points: int = POINTS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clouds (count, points, 3) with y up in [-1, 1]³, their categories in turn, and labels of their points."""
    generator = torch.Generator().manual_seed(seed)
    clouds = torch.rand(count, points, 3, generator=generator) * 2 - 1
    category = torch.arange(count) % len(PARTS)
    labels = torch.empty(count, points, dtype=torch.int64)
    for number, own in enumerate(PARTS.values()):
        columns = torch.tensor([CLASSES.index(part) for part in own])
        rows = category == number
        clouds[rows] *= torch.tensor([0.3 + 0.3 * number, 1.0, 0.3 + 0.3 * number])
        layer = ((clouds[rows, :, 1] + 1) / 2 * len(own)).long().clamp(max=len(own) - 1)
        labels[rows] = columns[layer]
    return clouds, category, labels


class Objects(PointClouds):
    """See :data:`PARTS`."""

    num_classes = len(PARTS)

    def __init__(self, split: str, *, root: str | Path | None = None, variant: str | None = None) -> None:
        clouds, category, labels = objects(COUNTS[split], seed=int(split == "test"))
        names = [f"{split}{number}" for number in range(len(clouds))]
        targets = Targets(points=labels, condition=category)
        story = {"names": names, "targets": targets, "point_classes": CLASSES, "normalize": True}
        super().__init__(clouds, category, list(PARTS), split, **story)

    @classmethod
    def parts_in(cls, **options: Any) -> dict[str, list[str]]:
        """See :data:`PARTS`."""
        return PARTS


if "objects" not in DATASETS:
    DATASETS.register("objects")(Objects)


def parts_config(method: str = "lora", /, task: dict[str, Any] | None = None, **changes: dict[str, Any]) -> Config:
    """A small config of part segmentation on the synthetic objects."""
    sections = small_config(method).dump()
    sections.pop("head")
    sections["data"] = {"name": "objects", "num_points": 128, "augment": "none"}
    sections["eval"]["select"] = None
    for section, update in changes.items():
        sections[section].update(update)
    return Config.of({"task": {"name": "part_segmentation", "head": "light", **(task or {})}, **sections}, "test")
