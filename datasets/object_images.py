"""Pictures with objects in them: what the readers of COCO's and VOC's layouts have in common."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from pointadapterx.datasets.base import UNLABELLED, Targets
from pointadapterx.datasets.images import THREADS, Images, read_picture
from pointadapterx.datasets.objects import Objects
from pointadapterx.datasets.outlines import described
from pointadapterx.errors import ConfigError, DataError, shown
from pointadapterx.hashing import content_hash

logger = logging.getLogger(__name__)

ROUNDING = 1.0  # pixels by which a box may leave its picture without a word


class Doubts:
    """What is wrong with annotations: the first thing is an error, or all are collected for the doctor.

    Args:
        collect: go on after an error, without what it is about.

    Attributes:
        found: errors, in whole lines.
        changed: first place and number of what was changed or left out, by what it is.
    """

    def __init__(self, *, collect: bool = False) -> None:
        self.collect = collect
        self.found: list[str] = []
        self.changed: dict[str, tuple[str, int]] = {}

    def wrong(self, text: str) -> None:
        """Something that cannot be read.

        Raises:
            DataError: unless errors are collected.
        """
        if not self.collect:
            raise DataError(text)
        self.found.append(text)

    def note(self, what: str, where: str) -> None:
        """Something that is changed or left out."""
        first, count = self.changed.get(what, (where, 0))
        self.changed[what] = first, count + 1

    def notes(self) -> Iterator[str]:
        """A line for each kind of change."""
        for what, (first, count) in self.changed.items():
            yield f"{first}: {what}" + (f" ({count} such boxes)" if count > 1 else "")


class Annotated(NamedTuple):
    """What is said of one picture.

    Attributes:
        path: of the picture.
        name: in messages and answers.
        size: width and height.
        boxes: left, top, right, bottom of each object.
        labels: names of the classes of these.
        ignored: whether each is a crowd, or difficult.
        outlines: of each, or None.
        areas: of each in pixels, as its annotation says; NaN where it says nothing.
        identity: what the annotations call the picture.
        group: pictures of one scene have the same; None: not known.
    """

    path: Path
    name: str
    size: tuple[int, int]
    boxes: list[list[float]]
    labels: list[str]
    ignored: list[bool]
    outlines: list[Any]
    areas: list[float]
    identity: int | str
    group: int | None = None


class ObjectImages(Images):
    """Pictures with objects; a picture as a whole has no class.

    Args:
        pictures: at least one.
        classes: names of the classes of objects, in the order of their numbers.
        split: ``"train"`` or ``"test"``.
        category_numbers: what the annotations call the classes; by default 1, 2 and so on.
        story: as of :class:`~pointadapterx.datasets.base.Samples`.

    Attributes:
        object_classes: names of the classes of objects.
        category_numbers: see above.
        boxes_alone: number of the objects without an outline, of all, and the first picture that has one; unless all
            have an outline, none is kept.
        identities: what the annotations call the pictures, for results in COCO's form.
    """

    def __init__(
        self,
        pictures: Sequence[Annotated],
        classes: Sequence[str],
        split: str,
        *,
        category_numbers: Sequence[int] | None = None,
        **story: Any,
    ) -> None:
        number = {name: index for index, name in enumerate(classes)}
        bare = [one.name for one in pictures for outline in one.outlines if outline is None]
        objects = Objects.of(
            [one.boxes for one in pictures],
            [[number[name] for name in one.labels] for one in pictures],
            [one.ignored for one in pictures],
            [one.size for one in pictures],
            [one.outlines for one in pictures] if not bare else None,
            [one.areas for one in pictures],
        )
        super().__init__(
            [one.path for one in pictures],
            torch.zeros(len(pictures), dtype=torch.int64),
            UNLABELLED,
            split,
            names=[one.name for one in pictures],
            groups=groups_of(pictures),
            targets=Targets(objects=objects),
            **story,
        )
        self.object_classes = list(classes)
        self.boxes_alone = len(bare), len(objects.labels), bare[0] if bare else ""
        self.category_numbers = list(category_numbers or range(1, len(classes) + 1))
        self.identities = [one.identity for one in pictures]

    @classmethod
    def objects_in(cls, root: str | Path | None) -> list[str]:
        """Names of the classes of objects in ``root``.

        Raises:
            ConfigError: without a root, where one is needed.
            DataError: if the files are not there, or wrong.
        """
        raise NotImplementedError(f"{cls.__name__} must name its classes")

    @classmethod
    def examined(cls, root: str | Path | None) -> Iterator[tuple[str, list[Annotated], Doubts]]:
        """Each part of the data with its pictures and what is wrong with them, for the doctor.

        Raises:
            ConfigError, DataError: if nothing can be read.
        """
        raise NotImplementedError(f"{cls.__name__} must be examined")

    @classmethod
    def classes_in(cls, root: str | Path | None) -> int | None:
        """Refuses: a picture as a whole has no class."""
        cls.require_labels(root)
        return None

    @classmethod
    def require_labels(cls, root: str | Path | None) -> None:
        """Refuses: a picture as a whole has no class."""
        raise ConfigError(
            f"data.root={root}: its pictures hold objects and have no class of their own; set task.name, for instance "
            "detection"
        )

    @classmethod
    def has_labels(cls, root: str | Path | None = None) -> bool:
        """No: a picture as a whole has no class."""
        return False

    @property
    def objects(self) -> Objects:
        """Those of all pictures."""
        assert self.targets.objects is not None
        return self.targets.objects

    def subset(self, indices: torch.Tensor | Sequence[int]) -> ObjectImages:
        """See :class:`Images`."""
        part = super().subset(indices)
        part.identities = [self.identities[i] for i in torch.as_tensor(indices).tolist()]
        return part

    def fetch(self, indices: torch.Tensor, size: int, channels: int, *, letterbox: bool = False) -> torch.Tensor:
        """See :class:`Images`; a file of another size than its annotations say is an error."""
        rows = indices.tolist()
        with ThreadPoolExecutor(THREADS) as pool:
            read = pool.map(lambda row: read_picture(self.pixels[row], size, channels, letterbox=letterbox), rows)
            found = list(read)
        for row, picture in zip(rows, found, strict=True):
            width, height = self.objects.sizes[row].tolist()
            if (picture.width, picture.height) != (width, height):
                raise DataError(
                    f"{self.pixels[row]}: is {picture.width} x {picture.height} pixels, but its annotations are of "
                    f"{width} x {height}; correct them, or obtain the picture again"
                )
        return torch.stack([torch.from_numpy(picture.pixels) for picture in found])

    def _hash(self) -> str:
        """Files, objects, names of the classes."""
        objects = self.objects
        outlines = "" if objects.outlines is None else "\n".join(map(described, objects.outlines))
        numbers = objects.boxes, objects.labels, objects.ignored, objects.areas, objects.starts, objects.sizes
        return content_hash(super()._hash(), *numbers, outlines, "\n".join(self.object_classes))


class Grouped(Protocol):
    """A picture that may be of a scene."""

    @property
    def group(self) -> int | None:
        """Pictures of one scene have the same; None: not known."""


def is_group(value: object) -> bool:
    """Whether it can be the number of a scene."""
    return isinstance(value, int) and abs(value) < 2**63


def is_finite(value: object) -> bool:
    """Whether it is a number that a float can be."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def groups_of(pictures: Sequence[Grouped]) -> torch.Tensor | None:
    """(n,) int64, equal for pictures of one scene; None where that is not known of all."""
    groups = [one.group for one in pictures]
    return None if None in groups else torch.tensor(groups, dtype=torch.int64)


def checked_box(edges: Sequence[Any], size: tuple[int, int], where: str, doubts: Doubts) -> list[float] | None:
    """A box inside its picture; None where nothing of it can be used.

    A box that leaves the picture is cut, and one without area is left out; both are noted.

    Args:
        edges: left, top, right, bottom, whatever the file has.
        size: width and height of the picture.
        where: picture and object, for messages.
        doubts: receives what is wrong.
    """
    if not all(map(is_finite, edges)):
        doubts.wrong(f"{where}: box {shown(list(edges))} is not four finite numbers")
        return None
    left, top, right, bottom = map(float, edges)
    width, height = size
    if right < left or bottom < top:
        doubts.wrong(f"{where}: the box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) has a negative size")
        return None
    if right == left or bottom == top:
        doubts.note("a box without area is left out", where)
        return None
    cut = [max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))]
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        doubts.wrong(
            f"{where}: the box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) lies outside its picture of "
            f"{width} x {height} pixels"
        )
        return None
    if max(abs(one - other) for one, other in zip(cut, (left, top, right, bottom), strict=True)) > ROUNDING:
        doubts.note("a box reaches beyond its picture and is cut", where)
    return cut


def require_pictures(pictures: Sequence[Annotated], where: str, doubts: Doubts) -> list[Annotated]:
    """Those whose files are there.

    Raises:
        DataError: if some are not, unless errors are collected.
    """
    missing = [one.path for one in pictures if not one.path.is_file()]
    if missing:
        doubts.wrong(
            f"{where}: {len(missing)} of {len(pictures)} pictures are missing, first {missing[0]}; copy them there, or "
            "remove their annotations"
        )
    absent = set(missing)
    return [one for one in pictures if one.path not in absent]


def require_known(pictures: Sequence[Annotated], classes: Sequence[str], where: str, doubts: Doubts) -> None:
    """Checks that objects are of the classes of the training part.

    Raises:
        DataError: if not, unless errors are collected.
    """
    for name in sorted({name for one in pictures for name in one.labels} - set(classes)):
        example = next(one.name for one in pictures if name in one.labels)
        doubts.wrong(
            f"{where}: {example} holds an object of the class {shown(name)}, which the training part does not have "
            f"({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}); correct it"
        )


def require_distinct(names: Sequence[Any], what: str, where: str, doubts: Doubts) -> None:
    """Checks that nothing is named twice.

    Raises:
        DataError: if not, unless errors are collected.
    """
    for name, count in Counter(names).items():
        if count > 1:
            doubts.wrong(f"{where}: {count} {what} are {shown(name)}; each needs its own")


def say_notes(doubts: Doubts) -> None:
    """Logs what was changed or left out."""
    for line in doubts.notes():
        logger.warning("%s", line)
