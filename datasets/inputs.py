"""From a data set to the model's input: resampling or resizing, normalisation, augmentation; targets come along."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from pointadapterx.datasets.base import DATASETS, PointClouds, Samples, Targets
from pointadapterx.datasets.image_masks import MaskedImages
from pointadapterx.datasets.image_transforms import Pictures
from pointadapterx.datasets.images import Images
from pointadapterx.datasets.options import DataConfig
from pointadapterx.datasets.resample import drawn_index, fps_stage, fps_stage_index, spread_index, taken
from pointadapterx.datasets.scenes import Scenes
from pointadapterx.datasets.transforms import augment_label, build_augment, follow

# indices (b,) int64 -> their raw inputs on the CPU
Fetch = Callable[[torch.Tensor], torch.Tensor]
# Which of the given points each point is, (B, M) int64; None: the same in the same order, and for images
Index = torch.Tensor | None


class Batch(NamedTuple):
    """What a model takes, and what is to be predicted of it.

    Attributes:
        inputs: points (b, N, 3), images (b, channels, S, S), or what the frozen part of a model made of them.
        targets: of these samples, and of these points.
        index: (b, N), which point of the sample's cloud each of the points is; None: the same in the same order. In
            training it is given where targets of points follow it.
        number: of the batch, for draws that a test repeats.
        frame: (b, 4), where images lie in the samples', see :mod:`~pointadapterx.datasets.image_transforms`; None: as
            they are.
    """

    inputs: Any
    targets: Targets
    index: Index = None
    number: int = 0
    frame: torch.Tensor | None = None


class Prepared(NamedTuple):
    """What a model takes of a raw batch, and what follows it.

    Attributes:
        inputs: points (b, N, 3), or images (b, channels, S, S).
        index: of the points, see :data:`Index`.
        pixels: (b, S, S) int64, labels of the pixels of images that have some.
        frame: see :class:`Batch`.
    """

    inputs: torch.Tensor
    index: Index = None
    pixels: torch.Tensor | None = None
    frame: torch.Tensor | None = None


class Inputs(ABC):
    """Converts samples of a data set into inputs of the model, in training and in tests."""

    @abstractmethod
    def source(self, dataset: Samples) -> Fetch:
        """Where the raw inputs of a data set of this modality come from."""

    def staged(self, dataset: Samples, device: torch.device) -> tuple[Fetch, Index]:
        """The same after what is the same in every epoch of training, done ahead.

        Args:
            dataset: of this modality.
            device: on which to do it.

        Returns:
            The source, and which points it gives of each cloud.
        """
        return self.source(dataset), None

    @abstractmethod
    def drawn(self, raw: torch.Tensor, generator: torch.Generator) -> Prepared:
        """A raw batch on the device -> the model's input, with all random draws from ``generator``."""

    @abstractmethod
    def plain(self, raw: torch.Tensor) -> Prepared:
        """A raw batch on the device -> the model's input, without a random draw."""

    def for_training(self, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The input alone of :meth:`drawn`."""
        return self.drawn(raw, generator).inputs

    def for_test(self, raw: torch.Tensor) -> torch.Tensor:
        """The input alone of :meth:`plain`."""
        return self.plain(raw).inputs


class PointInputs(Inputs):
    """Clouds (B, N, 3): FPS to ``data.num_points``; in training a random subset of more, then augmentation."""

    def __init__(self, data: DataConfig, *, skip_origin: bool) -> None:
        assert data.num_points is not None
        self.count = data.num_points
        self.skip_origin = skip_origin
        self.augment = build_augment(data.augment)

    def source(self, dataset: Samples) -> Fetch:
        """The clouds."""
        assert isinstance(dataset, PointClouds)
        return dataset.fetch

    def staged(self, dataset: Samples, device: torch.device) -> tuple[Fetch, Index]:
        """The clouds after the part of the resampling that is the same in every epoch."""
        assert isinstance(dataset, PointClouds)
        if isinstance(dataset, Scenes) or fps_stage(self.count) >= dataset.size:
            return self.source(dataset), None
        points = dataset.points
        parts = [(part, self._stage_index(part.to(device)).cpu()) for part in points.split(256)]
        staged = torch.cat([taken(part, index) for part, index in parts])
        return lambda indices: staged[indices], torch.cat([index for _, index in parts])

    def _stage_index(self, points: torch.Tensor) -> torch.Tensor:
        index = fps_stage_index(points, self.count, skip_origin=self.skip_origin)
        assert index is not None
        return index

    def drawn(self, raw: torch.Tensor, generator: torch.Generator) -> Prepared:
        """Clouds resampled at random and augmented: (B, num_points, 3)."""
        index = drawn_index(raw, self.count, generator, skip_origin=self.skip_origin)
        points, moved = self.augment.carry(taken(raw, index), generator)
        return Prepared(points, follow(index, moved))

    def plain(self, raw: torch.Tensor) -> Prepared:
        """Clouds reduced by FPS, without augmentation: (B, num_points, 3)."""
        index = spread_index(raw, self.count, skip_origin=self.skip_origin)
        return Prepared(taken(raw, index), index)


class ImageInputs(Inputs):
    """Images (B, channels, S, S) uint8: to [0, 1], augmented in training, then ``(x - mean) / std``.

    Labels of pixels come behind the channels of a raw batch.
    """

    def __init__(self, data: DataConfig, channels: int, size: int) -> None:
        self.size, self.channels, self.letterbox = size, channels, data.resize == "letterbox"
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in data.statistics(channels))
        self.augment = build_augment(data.augment, "images")

    def source(self, dataset: Samples) -> Fetch:
        """The images, decoded and resized when they are needed."""
        assert isinstance(dataset, Images)
        return lambda indices: dataset.raw(indices, self.size, self.channels, letterbox=self.letterbox)

    def drawn(self, raw: torch.Tensor, generator: torch.Generator) -> Prepared:
        """Images augmented in [0, 1], then normalised: (B, channels, S, S)."""
        return self._prepared(self.augment.carry_pictures(self._parted(raw), generator))

    def plain(self, raw: torch.Tensor) -> Prepared:
        """Images normalised, without augmentation: (B, channels, S, S)."""
        return self._prepared(self._parted(raw))

    def _parted(self, raw: torch.Tensor) -> Pictures:
        images = raw[:, : self.channels].float() / 255.0
        return Pictures(images, raw[:, self.channels].long() if raw.shape[1] > self.channels else None)

    def _prepared(self, pictures: Pictures) -> Prepared:
        return Prepared(self._normalized(pictures.images), None, pictures.pixels, pictures.frame)

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean.to(images.device)) / self.std.to(images.device)


class Batches:
    """Batches of a data set on a device, with the targets of their samples and points.

    Args:
        inputs: how samples are prepared.
        dataset: n samples.
        targets: of these samples.
        device: of the batches.
        staged: whether to do ahead what is the same in every epoch of training.

    Attributes:
        of_pixels: whether the pixels of the samples have labels.
    """

    def __init__(
        self, inputs: Inputs, dataset: Samples, targets: Targets, device: torch.device, *, staged: bool = False
    ) -> None:
        self._inputs, self._targets, self._device = inputs, targets, device
        self._scenes = dataset if isinstance(dataset, Scenes) else None
        self._fetch, self._index = inputs.staged(dataset, device) if staged else (inputs.source(dataset), None)
        self._traced = self._index is None or targets.points is not None or self._scenes is not None
        self.of_pixels = isinstance(dataset, MaskedImages)
        if not self._traced:  # two thirds of the memory of the clouds, for nothing
            self._index = None

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """From now on the samples are those of an epoch of a run, where they differ from epoch to epoch."""
        if self._scenes is not None:
            self._scenes = self._scenes.epoch(seed, epoch)

    def training(self, indices: torch.Tensor, generator: torch.Generator, repeats: torch.Tensor | None = None) -> Batch:
        """The samples at ``indices`` (b,), with all random draws from ``generator``, which is on the device.

        Args:
            indices: of samples.
            generator: on the device.
            repeats: (b,) int64, how often the epoch has had each of them before; None: never.
        """
        raw, targets = self._raw(indices, repeats)
        return self._batch(indices, targets, self._inputs.drawn(raw, generator))

    def test(self, indices: torch.Tensor, number: int = 0) -> Batch:
        """The samples at ``indices`` (b,) without a random draw; ``number`` of the batch."""
        raw, targets = self._raw(indices)
        return self._batch(indices, targets, self._inputs.plain(raw))._replace(number=number)

    def _raw(self, indices: torch.Tensor, repeats: torch.Tensor | None = None) -> tuple[torch.Tensor, Targets]:
        """What inputs are made of, and its targets, on the device."""
        targets = self._targets.of(indices)
        if self._scenes is None:
            raw = self._fetch(indices)
        else:
            raw, labels = self._scenes.draw(indices, repeats)
            targets = targets._replace(points=labels)
        return raw.to(self._device), targets.to(self._device)

    def _batch(self, indices: torch.Tensor, targets: Targets, found: Prepared) -> Batch:
        index = found.index
        if not self._traced:
            index = None
        elif self._index is not None:
            index = follow(self._index[indices].to(self._device), index)
        targets = targets.at(index)
        if found.pixels is not None:
            targets = targets._replace(pixels=found.pixels)
        return Batch(found.inputs, targets, index, frame=found.frame)


class Shaped(Protocol):
    """The ``backbone`` section of a config, as far as its inputs are concerned."""

    def input_shape(self, num_points: int | None) -> tuple[int, ...]:
        """(num_points, 3), or (channels, S, S)."""

    @property
    def leaves_out_origin(self) -> bool:
        """Whether clouds are resampled without the points that lie at the origin."""


class Fed(Protocol):
    """A config, as far as the inputs of its backbone are concerned."""

    @property
    def data(self) -> DataConfig:
        """Where they come from."""

    @property
    def backbone(self) -> Shaped:
        """What takes them."""


def build_inputs(config: Fed) -> Inputs:
    """What a config's data set and backbone need between them."""
    data, backbone = config.data, config.backbone
    if DATASETS[data.name].modality == "points":
        return PointInputs(data, skip_origin=backbone.leaves_out_origin)
    channels, size, _ = backbone.input_shape(None)
    return ImageInputs(data, channels, size)


def regime(data: DataConfig) -> str:
    """The augmentation regime of a config's ``data`` section, one label for one meaning, for results."""
    return augment_label(data.augment, DATASETS[data.name].modality)
