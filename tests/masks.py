"""Small pictures with masks, in the layouts that are read, and small configs of their segmentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pointadapterx.config import Config
from tests.conftest import small_config

CLASSES = ("ground", "disc", "bar")
SIZE = (20, 28)  # height and width


def scene(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) and its mask (H, W): a bright disc, a dark bar, and a corner of which nothing is known."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    row, column, radius = rng.integers(6, height - 5), rng.integers(6, width - 5), rng.integers(4, 7)
    mask = np.zeros(size, np.uint8)
    mask[(y - row) ** 2 + (x - column) ** 2 < radius**2] = 1
    mask[:, (start := rng.integers(0, width - 4)) : start + 4] = 2
    picture = np.array([[120, 130, 110], [230, 220, 90], [20, 30, 60]])[mask] + rng.integers(-15, 15, (*size, 3))
    mask[:2, :2] = 255
    return picture.clip(0, 255).astype(np.uint8), mask


def save(picture: np.ndarray, path: Path) -> Path:
    """Writes a picture or a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def write_mask_folder(root: Path, counts: dict[str, int] | None = None, size: tuple[int, int] = SIZE) -> Path:
    """The layout of ``mask_folder``."""
    rng = np.random.default_rng(0)
    for part, count in (counts or {"train": 10, "test": 5}).items():
        for number in range(count):
            picture, mask = scene(rng, size)
            save(picture, root / "images" / part / f"{number}.png")
            save(mask, root / "masks" / part / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def write_ade20k(root: Path, counts: tuple[int, int] = (4, 2)) -> Path:
    """The layout of ``ade20k``: class k is the number k + 1, and 0 means unlabelled."""
    rng = np.random.default_rng(0)
    for part, count in zip(("training", "validation"), counts, strict=True):
        for number in range(count):
            picture, mask = scene(rng)
            save(picture, root / "images" / part / f"ADE_{number}.jpg")
            save(np.where(mask == 255, 0, mask + 1).astype(np.uint8), root / "annotations" / part / f"ADE_{number}.png")
    return root


def write_views(root: Path, counts: tuple[int, int] = (6, 2)) -> Path:
    """The layout of ``views``, whose numbers of classes have gaps; two pictures a room."""
    rng, numbers = np.random.default_rng(0), np.array([3, 7, 8])
    for part, count in zip(("train", "test"), counts, strict=True):
        for number in range(count):
            picture, mask = scene(rng)
            save(picture, root / part / f"{number}.jpg")
            save(
                np.where(mask == 255, 255, numbers[mask.clip(0, 2)]).astype(np.uint8),
                root / part / f"{number}_label.png",
            )
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "room": i // 2} for i in range(count)],
            "categories": [{"id": int(n), "name": name} for n, name in zip(numbers, CLASSES, strict=True)],
        }
        (root / f"{part}.json").write_text(json.dumps(content))
    return root


def segmentation_config(root: Path | None, name: str = "lora", /, **changes: dict[str, Any]) -> Config:
    """A small config of the task on our own ViT; on ``mask_folder`` in a folder, else on ``digit_scenes``."""
    sections = small_config(name, kind="vit").dump()
    del sections["head"]
    sections["task"] = {"name": "image_segmentation", "head": "light", "channels": 8}
    sections["backbone"] |= {"channels": 3, "image_size": 16}
    sections["data"] = (
        {"name": "digit_scenes", "augment": "flip"}
        if root is None
        else {"name": "mask_folder", "root": str(root), "augment": "flip"}
    )
    sections["eval"]["select"] = None
    for section, update in changes.items():
        sections[section].update(update)
    return Config.of(sections, "test")


def write_voc_masks(root: Path, counts: tuple[int, int] = (4, 2)) -> Path:
    """The layout of ``voc_masks``, with a palette."""
    rng, start = np.random.default_rng(0), 0
    for part, count in zip(("train", "val"), counts, strict=True):
        names = [f"2007_{number:06d}" for number in range(start, start + count)]
        start += count
        for name in names:
            picture, mask = scene(rng)
            save(picture, root / "JPEGImages" / f"{name}.jpg")
            image = Image.fromarray(mask)
            image.putpalette(list(range(256)) * 3)
            (root / "SegmentationClass").mkdir(exist_ok=True)
            image.save(root / "SegmentationClass" / f"{name}.png")
        (root / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("\n".join(names))
    return root


def write_coco_masks(root: Path) -> Path:
    """The layout of ``coco_masks``: a large square and a smaller one over it, in pictures of 12 x 8."""
    for part in ("train", "val"):
        save(np.full((8, 12, 3), 90, np.uint8), root / part / "0.png")
        corners = {7: [0, 0, 8, 0, 8, 6, 0, 6], 3: [2, 2, 5, 2, 5, 5, 2, 5]}
        boxes = {7: [0, 0, 8, 6], 3: [2, 2, 3, 3]}
        content = {
            "images": [{"id": 1, "file_name": "0.png", "width": 12, "height": 8}],
            "categories": [{"id": 7, "name": "table"}, {"id": 3, "name": "plate"}],
            "annotations": [
                {"id": number, "image_id": 1, "category_id": kind, "bbox": boxes[kind], "segmentation": [corners[kind]]}
                for number, kind in enumerate([3, 7])
            ],
        }
        (root / f"{part}.json").write_text(json.dumps(content))
    return root
