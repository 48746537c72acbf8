"""Small rooms in the layout of the data set ``rooms``: what a point is of is seen from its height and place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pointadapterx.config import Config
from tests.conftest import small_config

CLASSES = ["floor", "wall", "ceiling", "lamp"]
TRAIN, TEST = [2600, 1900, 2200, 1500], [1500, 900]
"""Points of the rooms."""


def room(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (count, 3) int16 millimetres, y up, in a box of 2 x 1 x 1.6 m; and labels (count,) uint8."""
    draws = np.random.default_rng(seed)
    points = draws.uniform([0, 0, 0], [2000, 1000, 1600], (count, 3)).round().astype(np.int16)
    points[0, 1] = 0  # where the floor is
    labels = np.clip(points[:, 1] // 334, 0, 2).astype(np.uint8)
    return points, labels


def write_rooms(folder: Path, train: Sequence[int] = TRAIN, test: Sequence[int] = TEST) -> Path:
    """``train.h5`` and ``test.h5`` of rooms with so many points; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, counts in {"train": train, "test": test}.items():
        rooms = [room(count, 100 * number + len(split)) for number, count in enumerate(counts)]
        points, labels = zip(*rooms, strict=True)
        with h5py.File(folder / f"{split}.h5", "w") as file:
            file["xyz_mm"], file["label"] = np.concatenate(points), np.concatenate(labels)
            file["offset"] = np.concatenate([[0], np.cumsum(counts)])
            file["kind"] = ["kitchen"] * len(counts)
            file.attrs["labels"] = CLASSES
    return folder


def rooms_config(
    method: str = "lora", /, root: Path | str | None = None, task: dict[str, Any] | None = None, **changes: Any
) -> Config:
    """A small config of semantic segmentation of such rooms."""
    sections = small_config(method).dump()
    sections.pop("head")
    sections["data"] = {"name": "rooms", "root": None if root is None else str(root), "num_points": 128}
    sections["eval"]["select"] = None
    for section, update in changes.items():
        sections[section].update(update)
    own = {"name": "semantic_segmentation", "head": "light", "classes": CLASSES, **(task or {})}
    return Config.of({"task": own, **sections}, "test")
