"""How inputs are prepared for an adapter's model: read, rotated, normalised and resampled as in its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointadapterx.checkpoints.adapter_file import AdapterInfo
from pointadapterx.datasets.base import AXES, DATASETS, Targets
from pointadapterx.datasets.cloud_reader import CloudReader
from pointadapterx.datasets.doubts import Cloud
from pointadapterx.datasets.images import Picture, read_picture
from pointadapterx.datasets.inputs import Batch, build_inputs
from pointadapterx.datasets.options import DataConfig
from pointadapterx.datasets.point_files import Reading
from pointadapterx.datasets.preparation import Preparation, wants_unit_sphere
from pointadapterx.datasets.ragged import UP
from pointadapterx.datasets.scenes import fixed_rows
from pointadapterx.datasets.transforms import NormalizeUnitSphere
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.models.backbone import Backbone
from pointadapterx.tasks import Task
from pointadapterx.tasks.exchange import Cut, Piece, Ready
from pointadapterx.text import counted

SAMPLED = 100_000  # points by which a scene is measured
STRAY = 0.01  # of its points at either end of an axis, which are left out of that
FAR_TOO_HIGH = 20  # times the reach of the training blocks
LYING = 1.25  # likewise, where the scene is not higher along another axis


@dataclass(frozen=True)
class Failure:
    """An input that cannot be predicted; it takes the place of its prediction, and the others go on.

    Attributes:
        name: of the input.
        reason: what is wrong with it, in a line that names it.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class ImageReader:
    """Decodes a picture; picklable, for other processes."""

    size: int
    channels: int
    letterbox: bool = False

    def __call__(self, name: str) -> Picture | str:
        """A picture (channels, size, size), or what is wrong with its file."""
        try:
            return read_picture(Path(name), self.size, self.channels, letterbox=self.letterbox)
        except DataError as error:
            return str(error)


@dataclass(frozen=True)
class Form:
    """How inputs have to come to a model.

    Attributes:
        points: whether they are clouds.
        data: the config's section, without augmentation.
        backbone: likewise.
        stored: of the training clouds, where the adapter's file has it.
        up: axis of the inputs that points up.
        normalize: whether clouds are centred and scaled into the unit sphere.
        settle: whether whole clouds are moved so that their least coordinates are 0.
        draws: whether the points of whole clouds are drawn at random, as in training and tests, and not spread by FPS.
        reading: what the user, or else the adapter's config, says of files.
    """

    points: bool
    data: DataConfig
    backbone: Backbone.Options
    stored: Preparation | None
    up: str
    normalize: bool
    settle: bool
    draws: bool
    reading: Reading

    @classmethod
    def of(cls, info: AdapterInfo, said: Mapping[str, Any]) -> Form:
        """As an adapter's training had it, but for what the user says of ``up``, ``columns`` and ``nan``."""
        config, stored = info.config, Preparation.stored(info.metrics)
        data, backbone = config.data, config.backbone
        axis = said["up"] or data.up or "y"
        if axis not in AXES:
            raise ConfigError(f"up={axis}: is no axis; choose x, y or z")
        reading = Reading.of(said["columns"] or data.columns, said["nan"] or data.nan)
        points = DATASETS[data.name].modality == "points"
        plain = data.model_copy(update={"augment": "none"})
        normalize = wants_unit_sphere(info.metrics, data)
        kind = DATASETS[data.name]
        settle = kind.settles and not normalize
        draws = kind.default_block is not None and data.block_side is None
        return cls(points, plain, backbone, stored, axis, normalize, settle, draws, reading)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal where inputs are prepared alike."""
        shape = self.backbone.input_shape(self.data.num_points)
        grouped = self.backbone.leaves_out_origin, self.backbone.least_points
        scaled = self.data.mean, self.data.std, self.data.resize
        placed = self.up, self.normalize, self.settle, self.draws, self.data.block_side
        return (self.points, shape, *grouped, *scaled, self.count, *placed, self.reading)

    @property
    def count(self) -> int:
        """Points of a cloud before it is resampled for the model."""
        wanted = self.data.num_points or 0
        return wanted if self.stored is None else max(wanted, self.stored.points)

    def reader(self, *, whole: bool = False) -> CloudReader | ImageReader:
        """Reads a file; returns what is wrong with it as text.

        Args:
            whole: gives all points of clouds, for :meth:`cut`.
        """
        if self.points:
            reading = self.reading
            return CloudReader(Path(), self.count, self.normalize, by_name=False, reading=reading, whole=whole)
        channels, size, _ = self.backbone.input_shape(None)
        return ImageReader(size, channels, self.data.resize == "letterbox")

    def cut(self, name: str, cloud: Cloud, task: Task) -> Iterator[Ready | Failure]:
        """The pieces of a whole cloud that a task wants, as :meth:`bring` has them; a failure ends them."""
        whole = np.roll(cloud.points, 1 - AXES.index(self.up), axis=1)
        tiled, before = self.data.block_side is not None, None
        doubt = self._doubt_of_unit(name, whole) if tiled else None
        if isinstance(doubt, Failure):
            yield doubt
            return
        try:
            for cut in task.pieces(torch.from_numpy(whole), name):
                ready = self._piece(name, cloud, cut)
                if isinstance(ready, Failure):
                    yield ready
                    return
                if before is not None:
                    yield before
                elif doubt is not None:
                    ready.warnings.append(doubt)
                before = ready
        except DataError as error:
            yield Failure(name, str(error))
            return
        if before is None or before.piece is None:
            yield Failure(name, f"{name}: the task {task.config.task.name} finds nothing in it to predict")
            return
        yield replace(before, piece=replace(before.piece, last=True))

    def _piece(self, name: str, cloud: Cloud, cut: Cut) -> Ready | Failure:
        """A piece of a whole cloud as the model takes it."""
        if cut.placed is not None:
            distinct = len(cloud.points)
            if distinct < self.backbone.least_points:
                return self._too_few(name, distinct)
            return Ready(name, cut.placed, [], Piece(cloud, cut.index, last=False))
        rows = cloud.points[cut.index.numpy()]
        if self.settle:
            rows = rows - cloud.points.min(axis=0)
        if self.draws:
            return self._drawn(name, rows, Piece(cloud, cut.index, last=False))
        reader = self.reader()
        assert isinstance(reader, CloudReader)
        found = reader.reduced(rows, name)
        if isinstance(found, str):
            return Failure(name, found)
        points, index = found
        chosen = cut.index if index is None else cut.index[torch.from_numpy(index)]
        return self.bring(name, torch.from_numpy(points), Piece(cloud, chosen, last=False))

    def _drawn(self, name: str, rows: np.ndarray, piece: Piece) -> Ready | Failure:
        """A cloud (m, 3) placed by all its points, of which the model's are drawn: what a test gives the model."""
        wanted, least = self.data.num_points or 0, self.backbone.least_points
        if all(len(np.unique(axis)) < least for axis in rows.T) and (few := len(np.unique(rows, axis=0))) < least:
            return self._too_few(name, few)
        ready = self.bring(name, torch.from_numpy(np.ascontiguousarray(rows)), piece)
        if isinstance(ready, Failure):
            return ready
        assert ready.piece is not None
        chosen = torch.from_numpy(fixed_rows(len(ready.values), wanted))
        piece = replace(ready.piece, index=ready.piece.index[chosen])
        return replace(ready, values=ready.values[chosen].float(), piece=piece)

    def _doubt_of_unit(self, name: str, points: np.ndarray) -> str | Failure | None:
        """What makes the unit of a scene (n, 3), or its upward axis, y, seem another than that of the training blocks.

        Stray points have no say. Where it is far too small a unit, tiles without number would each hold a few points.
        """
        if self.stored is None:
            return None
        low, median, high = self.stored.radius
        some = points[:: len(points) // SAMPLED + 1]
        sides = np.diff(np.quantile(some, [STRAY, 1 - STRAY], axis=0), axis=0)[0]
        said = f"is {sides[UP]:.3g} high and training blocks reach {median:.3g}"
        if sides[UP] > FAR_TOO_HIGH * high:
            return Failure(name, f"{name}: {said}: another unit; scale it to the training data's")
        if sides[UP] > LYING * high and sides.min() <= high:
            along = AXES[(int(sides.argmin()) + AXES.index(self.up) - UP) % len(AXES)]
            return (
                f"{said}, as it does along {along} ({sides.min():.3g}): {along} may point up, which --up {along} says"
            )
        return f"{said}: another unit" if sides[UP] > 2 * high or sides.max() < low / 4 else None

    def _too_few(self, name: str, found: int) -> Failure:
        return Failure(
            name, f"{name}: {counted(found, 'different point')}; the model's groups need {self.backbone.least_points}"
        )

    def bring(self, name: str, cloud: Tensor, piece: Piece | None = None) -> Ready | Failure:
        """A cloud (m, 3) turned, normalised, and with at least as many points as the model takes.

        Args:
            name: of the input.
            cloud: as it was read.
            piece: where its points come from, for a task about whole clouds.
        """
        wanted, found, warnings = self.data.num_points or 0, len(cloud), []
        if found < self.backbone.least_points:
            return self._too_few(name, found)
        if found < wanted:
            warnings.append(
                f"{counted(found, 'different point')}, fewer than the {wanted} that the model takes: some are repeated"
            )
            repeated = torch.arange(wanted) % found
            cloud, piece = cloud[repeated], None if piece is None else replace(piece, index=piece.index[repeated])
        turn = 1 - AXES.index(self.up)
        cloud = cloud.roll(turn, dims=1) if turn else cloud
        if self.normalize:
            cloud = NormalizeUnitSphere()(cloud[None])[0]
        elif self.stored is not None:
            low, median, high = self.stored.radius
            radius = float(cloud.norm(dim=1).max())
            if not low / 2 <= radius <= 2 * high:
                warnings.append(
                    f"reaches {radius:.3g} from the origin, training clouds {median:.3g}: another unit or place"
                )
        return Ready(name, cloud, warnings, piece)

    def batch(self, values: list[Tensor], device: torch.device) -> Batch:
        """Prepared inputs as the model's, without targets."""
        inputs = build_inputs(self)
        if len({tuple(value.shape) for value in values}) == 1:
            together = inputs.plain(torch.stack(values).to(device))
            return Batch(together.inputs, Targets(), together.index)
        parts = [inputs.plain(value[None].to(device)) for value in values]
        rows = [
            torch.arange(part.inputs.shape[1], device=device)[None] if part.index is None else part.index
            for part in parts
        ]
        return Batch(torch.cat([part.inputs for part in parts]), Targets(), torch.cat(rows))
