"""The common form of all data sets: samples with labels, and where they came from."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from pointadapterx.datasets.objects import Objects
from pointadapterx.datasets.transforms import NormalizeUnitSphere
from pointadapterx.errors import ConfigError
from pointadapterx.hashing import content_hash
from pointadapterx.registry import Registry, did_you_mean

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")
AXES = ("x", "y", "z")
UNLABELLED = ["unlabelled"]  # classes of what has none


class Targets(NamedTuple):
    """What a task predicts of samples, and what it is told of them beside their inputs; a row a sample.

    Attributes:
        sample: ``(n, ...)``, of a whole sample, such as its class; None where a task has nothing of the kind.
        points: ``(n, N, ...)``, of every point of a cloud; they follow the points through resampling and augmentation.
        condition: ``(n,)`` int64, the model's second input, such as the number of the object's category; None where a
            task's model takes none.
        pixels: ``(n, S, S)`` int64, of every pixel of a picture as the model takes it. Only batches have them: a data
            set reads them with its pictures, which they follow through resizing and augmentation.
        objects: of every picture, a different number in each, in pixels of its file.
    """

    sample: torch.Tensor | None = None
    points: torch.Tensor | None = None
    condition: torch.Tensor | None = None
    pixels: torch.Tensor | None = None
    objects: Objects | None = None

    def of(self, indices: torch.Tensor) -> Targets:
        """Those of the samples at ``indices`` (b,)."""
        return Targets(*(None if part is None else part[indices] for part in self))

    def to(self, device: torch.device | str) -> Targets:
        """On a device."""
        return Targets(*(None if part is None else part.to(device) for part in self))

    def at(self, index: torch.Tensor | None) -> Targets:
        """With the targets of the points at ``index`` (n, M) of each cloud; None keeps them all."""
        if self.points is None or index is None:
            return self
        rows = torch.arange(len(index), device=index.device)[:, None]
        return self._replace(points=self.points[rows, index])


class Unchecked(NamedTuple):
    """A cloud as a data set's files have it, for the doctor, who looks at all of them and refuses none.

    Attributes:
        name: in what is printed.
        points: (m, 3); or why they cannot be read.
        label: its class, or None.
        validation: whether it is of a published validation part.
        point_labels: one number a point, whatever the file has; None where it has none.
        point_classes: names of what these numbers mean; empty where points have no labels.
        ignored: numbers of points that have no class.
        own: of these numbers, those that points of its class may have, such as parts of its category; empty: all.
        values: the numbers, in the order of their names; empty: 0 and so on.
        doubts: what reading it has found.
    """

    name: str
    points: np.ndarray | str
    label: str | None = None
    validation: bool = False
    point_labels: np.ndarray | None = None
    point_classes: Sequence[str] = ()
    ignored: Sequence[int] = ()
    own: Sequence[int] = ()
    values: Sequence[int] = ()
    doubts: Sequence[Any] = ()


SamplesT = TypeVar("SamplesT", bound="Samples")
PointCloudsT = TypeVar("PointCloudsT", bound="PointClouds")


class Samples(Dataset[dict[str, Any]]):
    """Labelled samples and where they came from. What a sample is, a subclass says.

    Args:
        labels: ``(n,)`` int64, indices into ``classes``.
        classes: class names.
        split: ``"train"`` or ``"test"``.
        names: one name a sample, where the files have them.
        groups: ``(n,)`` int64; samples of one object share a number and belong on one side of a validation split.
        source: the files that were read.
        positions: ``(n,)`` int64, each sample's number in the files; ``0 .. n - 1`` by default.
        targets: what tasks other than classification predict, where the files hold it.
        point_classes: names of what ``targets.points`` numbers, where these are labels.
        validation: ``(n,)`` bool, the samples that the data set itself publishes as the validation part of its training
            split, which then is not drawn; some but not all. None: it publishes none.

    Attributes:
        modality: ``"points"`` or ``"images"``, what a backbone must take.
        variants: names that ``data.variant`` may take.
        needs_variant: whether it must be given.
        num_classes: number of classes, where the name of the data set tells it; see :meth:`count_classes`.
        labels_optional: whether there is an option ``labels``, whose False reads all samples for pre-training.
        point_values: what the files have for each of ``point_classes``; empty: 0 and so on.
        default_block: where samples are drawn from clouds of any number of points, by options ``num_points`` and
            ``block``: the latter's default, see :class:`~pointadapterx.datasets.scenes.Scenes`. Else None.
        settles: whether clouds that are not normalised are moved so that their least coordinates are 0.
    """

    modality: ClassVar[str]
    variants: ClassVar[tuple[str, ...]] = ()
    needs_variant: ClassVar[bool] = False
    num_classes: ClassVar[int | None] = None
    labels_optional: ClassVar[bool] = False
    default_block: ClassVar[float | str | None] = None
    settles: ClassVar[bool] = False
    point_values: Sequence[int] = ()

    def __init__(
        self,
        labels: torch.Tensor,
        classes: Sequence[str],
        split: str,
        *,
        names: Sequence[str] | None = None,
        groups: torch.Tensor | None = None,
        source: Sequence[Path] = (),
        positions: torch.Tensor | None = None,
        targets: Targets | None = None,
        point_classes: Sequence[str] = (),
        validation: torch.Tensor | None = None,
    ) -> None:
        self.labels = labels
        self.classes = list(classes)
        self.names = None if names is None else list(names)
        self.groups = groups
        self.split = split
        self.source = list(source)
        self.positions = torch.arange(len(labels)) if positions is None else positions
        self.targets = targets or Targets()
        self.point_classes = list(point_classes)
        self.validation = validation

    @classmethod
    def count_classes(cls, variant: str | None) -> int | None:
        """Number of classes of a variant, or None where only the files tell it."""
        return cls.num_classes

    @classmethod
    def classes_in(cls, root: str | Path | None) -> int | None:
        """Number of classes of the files in ``root``, or None where they would have to be read for that.

        Raises:
            ConfigError: without a root, or for one without labels.
            DataError: if the files are not there, or wrong.
        """
        return None

    @classmethod
    def point_classes_in(cls, **options: Any) -> list[str] | None:
        """Names of what points are labelled with, in the order of :attr:`point_classes`; None where they are not.

        Args:
            options: keyword arguments of the data set, such as ``root``.

        Raises:
            ConfigError, DataError: if they are in files that are needed, and not there or wrong.
        """
        parts = cls.parts_in(**options)
        return None if parts is None else list(dict.fromkeys(name for names in parts.values() for name in names))

    @classmethod
    def parts_in(cls, **options: Any) -> dict[str, list[str]] | None:
        """Names of the parts of each category of objects, in the order of ``classes``; None where there are no parts.

        A name that several categories have is one class of points.
        """
        return None

    @classmethod
    def require_labels(cls, root: str | Path | None) -> None:
        """Makes sure that ``root`` has labels, which pre-training does not need.

        Raises:
            ConfigError: for one without labels.
        """

    @classmethod
    def has_labels(cls, root: str | Path | None = None) -> bool:
        """Whether labels mean anything; samples without serve for pre-training alone."""
        return True

    @cached_property
    def checksum(self) -> str:
        """Hash of inputs, labels and class names: equal if and only if a run would see the same data."""
        return self._hash()

    def _hash(self) -> str:
        raise NotImplementedError(f"{type(self).__name__} must hash its content")

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self: SamplesT, indices: torch.Tensor | Sequence[int]) -> SamplesT:
        """The samples at ``indices``, copied, in that order."""
        raise NotImplementedError(f"{type(self).__name__} must take subsets")

    def outline(self: SamplesT) -> SamplesT:
        """The same samples without their inputs, for what only needs labels, groups and names."""
        raise NotImplementedError(f"{type(self).__name__} must give an outline")

    def _part(self: SamplesT, index: torch.Tensor) -> SamplesT:
        """A copy of what every data set has, at ``index``; the caller adds its inputs."""
        part = copy.copy(self)
        part.__dict__.pop("checksum", None)  # cached, and of the whole
        part.labels = self.labels[index]
        part.classes = list(self.classes)
        part.names = None if self.names is None else [self.names[i] for i in index.tolist()]
        part.groups = None if self.groups is None else self.groups[index]
        part.positions = self.positions[index]
        part.targets = self.targets.of(index)
        part.validation = None if self.validation is None else self.validation[index]
        return part


class PointClouds(Samples):
    """Labelled point clouds, all in memory.

    Args:
        points: ``(n, N, 3)`` float32, contiguous; y is up in every data set of this project.
        labels: see :class:`Samples`, as all that is not named here.
        classes: class names.
        split: ``"train"`` or ``"test"``.
        normalize: centre each cloud and scale it into the unit sphere, in place.
    """

    modality = "points"

    def __init__(
        self,
        points: torch.Tensor,
        labels: torch.Tensor,
        classes: Sequence[str],
        split: str,
        *,
        normalize: bool = False,
        **story: Any,
    ) -> None:
        super().__init__(labels, classes, split, **story)
        if normalize:
            for part in points.split(256):  # parts, since the whole set's temporaries would not fit in small memories
                part.copy_(NormalizeUnitSphere()(part))
        self.points = points

    @property
    def size(self) -> int:
        """Points of a cloud."""
        return self.points.shape[1]

    def fetch(self, indices: torch.Tensor) -> torch.Tensor:
        """The clouds at ``indices`` (b,), (b, N, 3)."""
        return self.points[indices]

    def examples(self) -> Iterator[torch.Tensor]:
        """Clouds (b, N, 3), some at a time, by which the form of all is known; N may differ."""
        yield from self.points.split(256)

    def sparse(self, least: int) -> Iterator[tuple[str, int]]:
        """Clouds with fewer different points than ``least``: name, and how many. An outline has none."""
        start = 0
        for part in self.points.split(256) if self.points.numel() else ():
            heights = part[:, : 8 * least, 1].sort(dim=1).values  # enough for nearly all clouds, and far quicker
            doubted = (heights.diff(dim=1) != 0).sum(dim=1) + 1 < least
            for row in doubted.nonzero().flatten().tolist():
                number, found = start + row, len(part[row].unique(dim=0))
                if found < least:
                    yield (self.names[number] if self.names is not None else f"sample {number}"), found
            start += len(part)

    @classmethod
    def each_cloud(cls, split: str, **options: Any) -> Iterator[Unchecked]:
        """The clouds of a split, one by one; a data set of many files overrides it, so that no bad file hides the next.

        Args:
            split: ``"train"`` or ``"test"``.
            options: keyword arguments of the data set.

        Raises:
            ConfigError, DataError: if nothing can be read.
        """
        yield from cls(split, **options).unchecked()  # type: ignore[arg-type]  # a subclass reads what it needs

    def unchecked(self) -> Iterator[Unchecked]:
        """The same of a data set that was read as a whole."""
        for number, points in enumerate(self.points):
            yield Unchecked(
                self.names[number] if self.names is not None else f"{self.split} {number}",
                points.double().numpy(),
                None if self.classes == UNLABELLED else self.classes[int(self.labels[number])],
                self.validation is not None and bool(self.validation[number]),
                self.targets.points[number].numpy() if self.point_classes and self.targets.points is not None else None,
                self.point_classes,
            )

    def _hash(self) -> str:
        targets = [part for part in self.targets if part is not None]
        return content_hash(self.points, self.labels, "\n".join(self.classes), *targets)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """``{"points": (N, 3), "label": () int64, "index": i}``."""
        return {"points": self.points[i], "label": self.labels[i], "index": i}

    def subset(self: PointCloudsT, indices: torch.Tensor | Sequence[int]) -> PointCloudsT:
        """The clouds at ``indices``, copied, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        part = self._part(index)
        part.points = self.points[index]
        return part

    def outline(self: PointCloudsT) -> PointCloudsT:
        """With ``points`` (n, N, 0)."""
        part = self._part(torch.arange(len(self)))
        part.points = self.points[..., :0].clone()
        part.targets = part.targets._replace(points=None)
        return part


DATASETS: Registry[type[Samples]] = Registry("data set")
"""Data sets by the name used in ``data.name``."""


def check_choice(value: str, known: Sequence[str], key: str, hint: str = "") -> str:
    """``value`` if it is one of ``known``.

    Raises:
        ConfigError: naming the value, the key, the nearest known name and all of them.
    """
    if value in known:
        return value
    near = did_you_mean(str(value), known)
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
