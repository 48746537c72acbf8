"""Objects in pictures: boxes, classes and outlines, a different number in each picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Placement(NamedTuple):
    """Where pictures lie in another frame: x there is ``scale · x + shift``, for each axis; a flip has a scale below 0.

    Attributes:
        scale: (b, 2) float32, of x and y.
        shift: (b, 2) float32, in pixels.
    """

    scale: Tensor
    shift: Tensor

    def then(self, other: Placement | None) -> Placement:
        """This one and then another."""
        if other is None:
            return self
        return Placement(self.scale * other.scale, self.shift * other.scale + other.shift)

    def inverse(self) -> Placement:
        """The way back."""
        return Placement(1 / self.scale, -self.shift / self.scale)

    def to(self, device: torch.device | str) -> Placement:
        """On a device."""
        return Placement(self.scale.to(device), self.shift.to(device))

    def boxes(self, boxes: Tensor) -> Tensor:
        """Boxes (b, …, 4) of left, top, right and bottom in the other frame."""
        middle = [1] * (boxes.ndim - 2)
        scale = self.scale.repeat(1, 2).view(-1, *middle, 4)
        moved = boxes * scale + self.shift.repeat(1, 2).view(-1, *middle, 4)
        return torch.cat(
            [torch.minimum(moved[..., :2], moved[..., 2:]), torch.maximum(moved[..., :2], moved[..., 2:])], -1
        )


def moved_by(frame: Tensor, side: int) -> Placement:
    """Where augmentation has moved the pixels of square pictures.

    Args:
        frame: (b, 4), see :mod:`~pointadapterx.datasets.image_transforms`.
        side: of the pictures, in pixels.
    """
    scale, shift = frame.view(-1, 2, 2).unbind(dim=2)
    return Placement(scale, side / 2 * (1 + shift - scale)).inverse()


def placed_in_square(sizes: Tensor, side: int, *, letterbox: bool = False) -> Placement:
    """Where pictures lie in the square that a model takes.

    Args:
        sizes: (b, 2), width and height of their files.
        side: of the square, in pixels.
        letterbox: whether they keep their shape, with a border on the right or below.
    """
    inner = torch.full_like(sizes, side).double()
    if letterbox:  # as datasets.images rounds it
        inner = (sizes * side / sizes.amax(dim=1, keepdim=True).double()).round().clamp(min=1)
    return Placement((inner / sizes).float(), torch.zeros_like(sizes, dtype=torch.float32))


@dataclass(frozen=True)
class Objects:
    """Objects of n pictures, K in all, those of one picture after the other.

    Attributes:
        boxes: (K, 4) float32, left, top, right and bottom edge in pixels of the picture's file.
        labels: (K,) int64, classes.
        ignored: (K,) bool, objects that are neither learnt nor missed (a crowd, or one that is difficult).
        areas: (K,) float32, pixels of each object as its annotation says; NaN where it says nothing.
        starts: (n + 1,) int64; picture i has the objects ``starts[i]`` to ``starts[i + 1] - 1``.
        sizes: (n, 2) int64, width and height of the pictures.
        outlines: K shapes as COCO writes them, see :func:`pointadapterx.datasets.outlines.drawn`; None: boxes alone.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    areas: Tensor
    starts: Tensor
    sizes: Tensor
    outlines: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def of(
        cls,
        boxes: Sequence[Sequence[Sequence[float]]],
        labels: Sequence[Sequence[int]],
        ignored: Sequence[Sequence[bool]],
        sizes: Sequence[tuple[int, int]],
        outlines: Sequence[Sequence[Any]] | None = None,
        areas: Sequence[Sequence[float]] | None = None,
    ) -> Objects:
        """Those of lists with an entry a picture."""
        counts = torch.tensor([0, *map(len, labels)], dtype=torch.int64)
        known = [[math.nan] * len(part) for part in labels] if areas is None else areas
        return cls(
            torch.tensor([box for part in boxes for box in part], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([label for part in labels for label in part], dtype=torch.int64),
            torch.tensor([one for part in ignored for one in part], dtype=torch.bool),
            torch.tensor([area for part in known for area in part], dtype=torch.float32),
            counts.cumsum(0),
            torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2),
            None if outlines is None else [one for part in outlines for one in part],
        )

    def __getitem__(self, indices: Tensor) -> Objects:
        """Those of the pictures at ``indices`` (b,)."""
        starts = self.starts.tolist()
        rows = [torch.arange(starts[i], starts[i + 1]) for i in indices.tolist()]
        counts = torch.tensor([0, *map(len, rows)], dtype=torch.int64)
        at = torch.cat([torch.empty(0, dtype=torch.int64), *rows])
        outlines = None if self.outlines is None else [self.outlines[i] for i in at.tolist()]
        place = at.to(self.boxes.device)
        return Objects(
            self.boxes[place],
            self.labels[place],
            self.ignored[place],
            self.areas[place],
            counts.cumsum(0),
            self.sizes[indices.to(self.sizes.device)],
            outlines,
        )

    def to(self, device: torch.device | str) -> Objects:
        """Numbers on a device; ``starts``, which cut lists, stay on the CPU."""
        moved = (part.to(device) for part in (self.boxes, self.labels, self.ignored, self.areas))
        return Objects(*moved, self.starts, self.sizes.to(device), self.outlines)

    @property
    def picture(self) -> Tensor:
        """(K,) int64, the picture of each object."""
        counts = self.starts.diff().to(self.boxes.device)
        return torch.arange(len(self), device=self.boxes.device).repeat_interleave(counts)

    def split(self, values: Tensor) -> list[Tensor]:
        """(K, …) of the objects -> those of each picture."""
        return list(values.split(self.starts.diff().tolist()))
