"""From a data set to the model's input: resampling or resizing, normalisation, augmentation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch

from pointadapterx.datasets.base import DATASETS, PointClouds, Samples
from pointadapterx.datasets.images import Images
from pointadapterx.datasets.options import DataConfig
from pointadapterx.datasets.resample import fps_stage, resample_test, resample_train, to_fps_stage
from pointadapterx.datasets.transforms import augment_label, build_augment

# indices (b,) int64 -> their raw inputs on the CPU
Fetch = Callable[[torch.Tensor], torch.Tensor]


class Inputs(ABC):
    """What stands between a data set and the model, in training and in tests."""

    @abstractmethod
    def source(self, dataset: Samples, *, staged: torch.device | None = None) -> Fetch:
        """Where raw batches come from.

        Args:
            dataset: of this modality.
            staged: device on which to do ahead what is the same in every epoch of training; None does nothing ahead.
        """

    @abstractmethod
    def for_training(self, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A raw batch on the device -> the model's input, with all random draws from ``generator``."""

    @abstractmethod
    def for_test(self, raw: torch.Tensor) -> torch.Tensor:
        """A raw batch on the device -> the model's input, without a random draw."""


class PointInputs(Inputs):
    """Clouds (B, N, 3): FPS to ``data.num_points``; in training a random subset of more, then augmentation."""

    def __init__(self, data: DataConfig, *, skip_origin: bool) -> None:
        assert data.num_points is not None
        self.count = data.num_points
        self.skip_origin = skip_origin
        self.augment = build_augment(data.augment)

    def source(self, dataset: Samples, *, staged: torch.device | None = None) -> Fetch:
        """The clouds, staged after the part of the resampling that is the same in every epoch."""
        assert isinstance(dataset, PointClouds)
        points = dataset.points
        if staged is not None and fps_stage(self.count) < points.shape[1]:
            parts = (
                to_fps_stage(part.to(staged), self.count, skip_origin=self.skip_origin).cpu()
                for part in points.split(256)
            )
            points = torch.cat(list(parts))
        return lambda indices: points[indices]

    def for_training(self, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Resampled and augmented."""
        return self.augment(resample_train(raw, self.count, generator, skip_origin=self.skip_origin), generator)

    def for_test(self, raw: torch.Tensor) -> torch.Tensor:
        """FPS alone."""
        return resample_test(raw, self.count, skip_origin=self.skip_origin)


class ImageInputs(Inputs):
    """Images (B, channels, S, S) uint8: to [0, 1], augmented in training, then ``(x - mean) / std``."""

    def __init__(self, data: DataConfig, channels: int, size: int) -> None:
        self.size, self.channels = size, channels
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in data.statistics(channels))
        self.augment = build_augment(data.augment, "images")

    def source(self, dataset: Samples, *, staged: torch.device | None = None) -> Fetch:
        """The images, decoded and resized when they are asked for."""
        assert isinstance(dataset, Images)
        return lambda indices: dataset.fetch(indices, self.size, self.channels)

    def for_training(self, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Augmented and normalised."""
        return self._normalized(self.augment(raw.float() / 255.0, generator))

    def for_test(self, raw: torch.Tensor) -> torch.Tensor:
        """Normalised."""
        return self._normalized(raw.float() / 255.0)

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean.to(images.device)) / self.std.to(images.device)


class Shaped(Protocol):
    """The ``backbone`` section of a config, as far as its inputs are concerned."""

    def input_shape(self, num_points: int | None) -> tuple[int, ...]:
        """(num_points, 3), or (channels, S, S)."""


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
        return PointInputs(data, skip_origin=getattr(backbone, "skip_origin", False))
    channels, size, _ = backbone.input_shape(None)
    return ImageInputs(data, channels, size)


def regime(data: DataConfig) -> str:
    """The augmentation regime of a config's ``data`` section, one label for one meaning, for results."""
    return augment_label(data.augment, DATASETS[data.name].modality)
