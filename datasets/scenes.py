"""Clouds of any size with a label for each point: whole shapes, or blocks of scenes, other ones in every epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from pointadapterx.datasets.base import UNLABELLED, PointClouds, Targets, Unchecked
from pointadapterx.datasets.grid import GROUND
from pointadapterx.datasets.ragged import UP, Ragged
from pointadapterx.datasets.transforms import NormalizeUnitSphere
from pointadapterx.errors import ConfigError
from pointadapterx.hashing import content_hash, derive_seed

WHOLE = "whole"
"""Value of ``data.block`` for whole clouds."""
LEAST = 1024  # points that a block holds more of, where its scene has such a block
TRIES = 20  # blocks that are looked at before the fullest of them is taken
LOOKED_AT = 256  # samples by which the form of all is judged

Key = tuple[int | str, ...]
FIXED: Key = ("fixed",)
"""What samples are drawn with outside of training."""

ScenesT = TypeVar("ScenesT", bound="Scenes")


class Scenes(PointClouds):
    """Clouds of any number of points, each with a label, of which a sample takes ``num_points``.

    With ``block``, a sample is a column of the scene over a square of the ground with that side, around a point that is
    drawn. Blocks of at most 1,024 points, or of ``num_points`` if that is less, are drawn again, up to twenty times. x
    and z are relative to that point, y is the height above the lowest point of the scene. An epoch has as many samples
    as all points are worth, and each scene its share of them. Where ``block`` is ``"whole"``, each cloud is one sample.

    The points of a sample are drawn without replacement, and with it where there are fewer than ``num_points`` or
    ``with_replacement`` says so.
    Every draw is a function of a key, by default the same one, of the sample's position in the files, and of how often
    an epoch has drawn it before: see :meth:`epoch`. A vote asks about the same points in all of its copies.

    A subclass reads the files, and passes :class:`~pointadapterx.datasets.ragged.Ragged`.

    Args:
        clouds: at least one.
        point_classes: names of the labels.
        split: ``"train"`` or ``"test"``.
        num_points: of a sample.
        block: side of a block in units of the points, or ``"whole"``.
        normalize: centre each cloud and scale it into the unit sphere; only of whole clouds, which are copied.
        names: of the clouds.
        groups: (clouds,) int64, those that belong on one side of a validation split; by default each is one.
        validation: (clouds,) bool, those of the validation part that the data set publishes.
        with_replacement: draw the points of a sample so from clouds of any size.
        condition: (clouds,) int64, the number of each one's category, for tasks that take it.
        classes: names of these categories.
        source: the files that were read.
    """

    default_block: ClassVar[float | str] = 1.0

    def __init__(
        self,
        clouds: Ragged,
        point_classes: Sequence[str],
        split: str,
        *,
        num_points: int,
        block: float | str,
        names: Sequence[str],
        normalize: bool = False,
        with_replacement: bool = False,
        groups: torch.Tensor | None = None,
        validation: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
        classes: Sequence[str] = UNLABELLED,
        source: Sequence[Path] = (),
    ) -> None:
        if isinstance(block, str):
            self.block: float | None = None
            clouds = _in_unit_spheres(clouds) if normalize else clouds
        elif normalize:
            raise ConfigError(
                "data.normalize: blocks keep the units of their scene; remove it, or use data.block=whole"
            )
        else:
            self.block = block
            clouds = clouds if clouds.grids else clouds.in_cells(cell_of(block), names)
        self.clouds: Ragged | None = clouds
        self.num_points, self.with_replacement = num_points, with_replacement
        self.scene_names = list(names)
        self.key: Key = FIXED
        self.scene = torch.from_numpy(_scenes_of_samples(clouds.counts, num_points, self.block))
        self.floors = clouds.floors
        chosen = self.scene
        super(PointClouds, self).__init__(
            torch.zeros(len(chosen), dtype=torch.int64) if condition is None else condition[chosen],
            classes,
            split,
            names=[names[number] for number in chosen.tolist()],
            groups=chosen.clone() if groups is None else groups[chosen],
            source=source,
            targets=Targets(condition=None if condition is None else condition[chosen]),
            point_classes=point_classes,
            validation=None if validation is None else validation[chosen],
        )

    @classmethod
    def has_labels(cls, root: str | Path | None = None) -> bool:
        """Whole clouds have no classes."""
        return False

    @classmethod
    def require_labels(cls, root: str | Path | None) -> None:
        """Refuses tasks that label whole clouds.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "the points of this data set are labelled, its clouds are not; set task.name=semantic_segmentation"
        )

    @property
    def size(self) -> int:
        """Points of a sample."""
        return self.num_points

    @property
    def content(self) -> Ragged:
        """The clouds.

        Raises:
            ValueError: of an outline, which has none.
        """
        if self.clouds is None:
            raise ValueError("an outline of a data set has no points")
        return self.clouds

    # Samples.

    def epoch(self: ScenesT, *key: int | str) -> ScenesT:
        """The same samples as drawn with another key, such as the seed and the number of an epoch.

        Nothing else determines a draw, so a run that is resumed, or has other processes, sees the same samples.
        """
        drawn = copy.copy(self)
        drawn.key = key
        return drawn

    def draw(self, indices: torch.Tensor, repeats: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The samples at ``indices`` (b,): points (b, num_points, 3) float32, and labels (b, num_points) int64.

        Args:
            indices: of samples.
            repeats: (b,) int64, how often the epoch has drawn each of them before; None: never.
        """
        points = torch.empty(len(indices), self.num_points, 3)
        labels = torch.empty(len(indices), self.num_points, dtype=torch.int64)
        times = [0] * len(indices) if repeats is None else repeats.tolist()
        for row, (index, before) in enumerate(zip(indices.tolist(), times, strict=True)):
            found = self._sample(index, before)
            points[row], labels[row] = map(torch.from_numpy, found)
        return points, labels

    def fetch(self, indices: torch.Tensor) -> torch.Tensor:
        """The points alone."""
        return self.draw(indices)[0]

    def _sample(self, index: int, before: int) -> tuple[np.ndarray, np.ndarray]:
        clouds, number = self.content, int(self.scene[index])
        again = [before] if before else []  # of one epoch
        draws = np.random.default_rng(derive_seed("sample", *self.key, int(self.positions[index]), *again))
        rows = clouds.rows(number)
        points, labels = clouds.points[rows], clouds.labels[rows]
        if self.block is None:
            chosen = drawn_rows(len(points), self.num_points, draws, replace=self.with_replacement)
            found, origin = clouds.in_units(points[chosen]), np.zeros(3)
        else:
            found, inside, origin = self._block(number, points, draws)
            chosen = drawn_rows(len(inside), self.num_points, draws)
            found, chosen = found[chosen], inside[chosen]
            origin[UP] = self.floors[number]
        return (found - origin).astype(np.float32), labels[chosen].astype(np.int64)

    def _block(
        self, number: int, points: np.ndarray, draws: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A block: its points (m, 3) in units, which rows they are (m,), and the point (3,) in its middle."""
        clouds, best = self.content, None
        assert self.block is not None
        for _ in range(TRIES):
            row = int(draws.integers(len(points)))
            middle = clouds.in_units(points[row : row + 1])[0].astype(np.float64)
            found, rows = points_around(clouds, number, middle[list(GROUND)], self.block / 2)
            if best is None or len(rows) > len(best[1]):
                best = found, rows, middle
            if len(rows) > min(LEAST, self.num_points):
                break
        assert best is not None
        return best

    # What every data set has.

    def examples(self) -> Iterator[torch.Tensor]:
        """Whole clouds as they are, or some blocks as they are drawn."""
        if self.block is None:
            yield from (torch.from_numpy(self.content.cloud(k))[None].float() for k in self.scene.unique().tolist())
        else:
            yield self.fetch(torch.arange(0, len(self), -(-len(self) // LOOKED_AT)))

    def sparse(self, least: int) -> Iterator[tuple[str, int]]:
        """Of all clouds; blocks repeat their points."""
        for number in self.scene.unique().tolist() if self.clouds is not None else ():
            cloud = self.content.cloud(number)
            found = len(cloud)
            if self.block is None and len(np.unique(cloud[: 8 * least], axis=0)) < least:
                found = len(np.unique(cloud, axis=0))
            if found < least:
                yield self.scene_names[number], found

    def label_parts(self) -> Iterator[torch.Tensor]:
        """All labels of points of the scenes that samples are from, a scene at a time."""
        for labels in self.content.label_parts(self.scene.unique().tolist()):
            yield torch.from_numpy(np.array(labels))  # copied: torch warns of arrays that nobody may write into

    def unchecked(self) -> Iterator[Unchecked]:
        """Each cloud as a whole."""
        of_validation = set() if self.validation is None else set(self.scene[self.validation].tolist())
        for number, name in enumerate(self.scene_names):
            rows = self.content.rows(number)
            points, labels = self.content.cloud(number).astype(np.float64), np.asarray(self.content.labels[rows])
            yield Unchecked(name, points, None, number in of_validation, labels, self.point_classes, (-1,))

    def _hash(self) -> str:
        parts = [self.content.digest, f"{self.block} {self.num_points}", "\n".join(self.point_classes)]
        condition = [] if self.targets.condition is None else [self.targets.condition]
        return content_hash(*parts, self.scene, self.positions, "\n".join(self.classes), *condition)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """``{"points": (num_points, 3), "label": () int64, "point_labels": (num_points,) int64, "index": i}``."""
        points, labels = self.draw(torch.tensor([i]))
        return {"points": points[0], "label": self.labels[i], "point_labels": labels[0], "index": i}

    def subset(self: ScenesT, indices: torch.Tensor | Sequence[int]) -> ScenesT:
        """The samples at ``indices``, in that order; they are drawn as they were, and share the clouds in memory."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        part = self._part(index)
        part.scene = self.scene[index]
        return part

    def wholes(self: ScenesT) -> ScenesT:
        """The scenes that samples are from as samples, one each; where blocks are drawn only :attr:`scene` tells which.

        For what goes over whole scenes, and draws nothing.
        """
        scene, first = np.unique(self.scene.numpy(), return_index=True)
        part = self._part(torch.from_numpy(first))
        part.scene = torch.from_numpy(scene)
        return part

    def outline(self: ScenesT) -> ScenesT:
        """Without the clouds."""
        part = self._part(torch.arange(len(self)))
        part.clouds = None
        return part


def cell_of(block: float) -> float:
    """Side of the cells of the ground for blocks: a block then touches at most nine of them."""
    return block / 2


def points_around(clouds: Ragged, number: int, middle: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
    """The points of a scene over a square of the ground, in units (m, 3), and which rows of the scene they are (m,).

    Args:
        clouds: with grids.
        number: of the scene.
        middle: (2,) float64, of the square.
        half: of its side; points on the edge are inside.
    """
    low, high, start = middle - half, middle + half, int(clouds.starts[number])
    parts, rows = [np.empty((0, 3))], [np.empty(0, np.int64)]
    for span in clouds.grids[number].spans(low, high):
        points = clouds.in_units(clouds.points[start + span.start : start + span.stop])
        ground = points[:, GROUND]
        inside = np.flatnonzero(((ground >= low) & (ground <= high)).all(axis=1))
        parts.append(points[inside])
        rows.append(inside + span.start)
    return np.concatenate(parts), np.concatenate(rows)


def fixed_rows(available: int, wanted: int) -> np.ndarray:
    """``wanted`` of so many rows as a test draws them of the first whole cloud of its file, (wanted,) int64."""
    return drawn_rows(available, wanted, np.random.default_rng(derive_seed("sample", *FIXED, 0)))


def drawn_rows(available: int, wanted: int, draws: np.random.Generator, *, replace: bool = False) -> np.ndarray:
    """``wanted`` of so many rows in random order, with replacement where that is wanted or there are fewer."""
    return draws.choice(available, wanted, replace=replace or available < wanted)


def _scenes_of_samples(counts: np.ndarray, num_points: int, block: float | None) -> np.ndarray:
    """The scene of each sample, (samples,) int64: each has its share of the samples, and at least one."""
    if block is None:
        return np.arange(len(counts))
    samples = int(counts.sum()) // num_points
    return np.repeat(np.arange(len(counts)), np.maximum(1, np.rint(counts / counts.sum() * samples).astype(np.int64)))


def _in_unit_spheres(clouds: Ragged) -> Ragged:
    points = np.empty(clouds.points.shape, np.float32)
    for number in range(len(clouds)):
        cloud = torch.from_numpy(clouds.cloud(number))[None].double()
        points[clouds.rows(number)] = NormalizeUnitSphere()(cloud)[0].float().numpy()
    return Ragged.flat(points, clouds.labels, clouds.counts)
