"""Masks of the layouts of COCO and Pascal VOC: classes of pixels instead of objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pointadapterx.datasets.base import DATASETS
from pointadapterx.datasets.coco import Coco
from pointadapterx.datasets.image_masks import MaskedFiles, Pair, mask_beside
from pointadapterx.datasets.images import SUFFIXES
from pointadapterx.datasets.layouts import parts_of_split
from pointadapterx.datasets.object_images import Annotated
from pointadapterx.datasets.outlines import described, drawn
from pointadapterx.errors import DataError, reason_of

BACKGROUND = "background"
LISTS = "ImageSets/Segmentation"

VOC_CLASSES = (
    *(BACKGROUND, "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True)
class OutlineMask:
    """The outlines of the objects of a picture, drawn into one mask: the smaller ones over the larger ones.

    Attributes:
        where: the picture, for messages.
        shape: height and width.
        labels: number of the class of each object.
        outlines: as :func:`~pointadapterx.datasets.outlines.drawn` takes them.
    """

    where: str
    shape: tuple[int, int]
    labels: tuple[int, ...]
    outlines: tuple[Any, ...]

    def size(self) -> tuple[int, int]:
        """See :class:`~pointadapterx.datasets.image_masks.Mask`."""
        return self.shape

    def read(self) -> np.ndarray:
        """See :class:`~pointadapterx.datasets.image_masks.Mask`; 0, the background, where no object is."""
        height, width = self.shape
        objects = drawn(self.outlines, width, height, self.where)
        mask = np.zeros(self.shape, np.uint8)
        for number in np.argsort(-objects.sum(axis=(1, 2), dtype=np.int64), kind="stable"):
            mask[objects[number] > 0] = self.labels[number]
        return mask

    def content(self) -> bytes:
        """See :class:`~pointadapterx.datasets.image_masks.Mask`."""
        return repr((self.shape, self.labels, [described(outline) for outline in self.outlines])).encode()


@DATASETS.register("coco_masks")
class CocoMasks(MaskedFiles):
    """A folder in COCO's layout, see :class:`~pointadapterx.datasets.coco.Coco`: class 0 is what no object covers.

    Every object needs an outline. Crowds count as their class.
    """

    called = "coco_masks"
    layout = "annotations/instances_{train,val}.json and the pictures, or the like"

    @classmethod
    def classes_of(cls, folder: Path, variant: str | None) -> Sequence[str]:
        """The background and the categories of the training part."""
        return [BACKGROUND, *Coco.objects_in(folder)]

    @classmethod
    def pairs(cls, split: str, folder: Path, variant: str | None) -> Iterator[Pair]:
        """Of the pictures of the parts of a split."""
        classes = list(cls.classes_of(folder, variant))
        parts = {name: (pictures, doubts) for name, pictures, doubts in Coco.examined(folder)}
        for part in parts_of_split(split, parts):
            pictures, doubts = parts[part]
            for text in doubts.found:
                yield Pair(part, folder, text)
            for one in pictures:
                held_out = part == "val" and split == "train"
                if set(one.labels) <= set(classes):  # or it is among the doubts
                    yield Pair(one.name, one.path, _outlines_of(one, classes), one.group, held_out)


def _outlines_of(picture: Annotated, classes: Sequence[str]) -> OutlineMask | str:
    if any(outline is None for outline in picture.outlines):
        return f"{picture.path}: an object has a box alone; add its 'segmentation', or remove the picture"
    labels = tuple(classes.index(label) for label in picture.labels)
    return OutlineMask(str(picture.path), picture.size[::-1], labels, tuple(picture.outlines))


@DATASETS.register("voc_masks")
class VocMasks(MaskedFiles):
    """A folder in the layout of Pascal VOC: ``ImageSets/Segmentation/*.txt``, ``JPEGImages``, ``SegmentationClass``.

    Masks have a palette; 255, the edges of objects, means unlabelled. Without ``test.txt``, the test is ``val.txt``.
    """

    called = "voc_masks"
    layout = "ImageSets/Segmentation/{train,val}.txt, JPEGImages/*.jpg and SegmentationClass/*.png"
    default_root = "data/VOCdevkit/VOC2012"

    @classmethod
    def classes_of(cls, folder: Path, variant: str | None) -> Sequence[str]:
        """The 20 of VOC and the background."""
        return VOC_CLASSES

    @classmethod
    def pairs(cls, split: str, folder: Path, variant: str | None) -> Iterator[Pair]:
        """Of the pictures that the lists name."""
        lists = {part: folder / LISTS / f"{part}.txt" for part in ("train", "val", "test")}
        there = {part: _lines(path) for part, path in lists.items() if path.is_file()}
        names = Counter(name for listed in there.values() for name in listed)
        if twice := next((name for name, times in names.items() if times > 1), None):
            raise DataError(f"{folder / LISTS}: {twice} is listed twice; leave it in one list, once")
        for part in parts_of_split(split, there):
            for name in there.get(part, ()):
                files = (folder / "JPEGImages" / f"{name}{suffix}" for suffix in SUFFIXES)
                usual = folder / "JPEGImages" / f"{name}.jpg"
                picture = usual if usual.is_file() else next((path for path in files if path.is_file()), usual)
                mask = mask_beside(picture, folder / "SegmentationClass" / f"{name}.png", range(21), (255,))
                yield Pair(name, picture, mask, None, part == "val" and split == "train")


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list ({reason_of(error)}); obtain it again") from None
