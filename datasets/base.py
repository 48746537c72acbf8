"""What every data set is once it is read: clouds and labels in memory, and where they came from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import Dataset

from pointadapterx.datasets.hashing import content_hash
from pointadapterx.datasets.transforms import NormalizeUnitSphere
from pointadapterx.errors import ConfigError
from pointadapterx.registry import Registry, did_you_mean

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")


class PointClouds(Dataset[dict[str, Any]]):
    """Labelled point clouds, all in memory.

    Args:
        points: ``(n, N, 3)`` float32, contiguous; y is up in every data set of this project.
        labels: ``(n,)`` int64, indices into ``classes``.
        classes: class names.
        split: ``"train"`` or ``"test"``.
        names: one name a cloud, where the files have them.
        groups: ``(n,)`` int64; clouds of one object share a number and belong on one side of a validation split.
        source: the files that were read.
        positions: ``(n,)`` int64, each cloud's number in the files; ``0 .. n - 1`` by default.
        normalize: centre each cloud and scale it into the unit sphere, in place.

    Attributes:
        checksum: hash of points, labels and class names, for the record of a run.
        variants: names that ``data.variant`` may take.
        num_classes: number of classes, where it is known before reading.
        labelled: whether labels mean anything; clouds without serve for pre-training alone.
    """

    variants: ClassVar[tuple[str, ...]] = ()
    num_classes: ClassVar[int | None] = None
    labelled: ClassVar[bool] = True

    def __init__(
        self,
        points: torch.Tensor,
        labels: torch.Tensor,
        classes: Sequence[str],
        split: str,
        *,
        names: Sequence[str] | None = None,
        groups: torch.Tensor | None = None,
        source: Sequence[Path] = (),
        positions: torch.Tensor | None = None,
        normalize: bool = False,
    ) -> None:
        if normalize:
            for part in points.split(256):  # parts, since the whole set's temporaries would not fit in small memories
                part.copy_(NormalizeUnitSphere()(part))
        self.points = points
        self.labels = labels
        self.classes = list(classes)
        self.names = None if names is None else list(names)
        self.groups = groups
        self.split = split
        self.source = list(source)
        self.positions = torch.arange(len(points)) if positions is None else positions

    @cached_property
    def checksum(self) -> str:
        """Hash of points, labels and class names: equal if and only if a run would see the same data."""
        return content_hash(self.points, self.labels, "\n".join(self.classes))

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """``{"points": (N, 3), "label": () int64, "index": i}``."""
        return {"points": self.points[i], "label": self.labels[i], "index": i}

    def subset(self, indices: torch.Tensor | Sequence[int]) -> PointClouds:
        """The clouds at ``indices``, copied, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return PointClouds(
            self.points[index],
            self.labels[index],
            self.classes,
            self.split,
            names=None if self.names is None else [self.names[i] for i in index.tolist()],
            groups=None if self.groups is None else self.groups[index],
            source=self.source,
            positions=self.positions[index],
        )


DATASETS: Registry[type[PointClouds]] = Registry("data set")


def check_choice(value: str, known: Sequence[str], key: str, hint: str = "") -> str:
    """``value`` if it is one of ``known``.

    Raises:
        ConfigError: naming the value, the key, the nearest known name and all of them.
    """
    if value in known:
        return value
    near = did_you_mean(str(value), list(known)) or "."
    raise ConfigError(f"{key} '{value}' is unknown{near} Known: {', '.join(known)}.{hint}")


def check_split(split: str) -> str:
    """``split`` if it is ``"train"`` or ``"test"``.

    Raises:
        ConfigError: for another name.
    """
    return check_choice(split, SPLITS, "split", " A validation part is cut from 'train' by stratified_split.")


def warn_count(what: str, split: str, found: int, published: int) -> None:
    """Log a warning if the number of clouds is not the published one; partial copies still train."""
    if found != published:
        logger.warning(
            "%s %s holds %d clouds, published are %d: results are not comparable", what, split, found, published
        )
