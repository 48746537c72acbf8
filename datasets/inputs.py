"""From a data set to the model's input: resampling or resizing, normalisation, augmentation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pointadapterx.datasets.base import DATASETS, PointClouds, Samples
from pointadapterx.datasets.images import Images
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

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.count = config["data"]["num_points"]
        self.skip_origin = config["backbone"]["skip_origin"]
        self.augment = build_augment(config["data"]["augment"])

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

    def __init__(self, config: Mapping[str, Any]) -> None:
        backbone, data = config["backbone"], config["data"]
        self.size, self.channels = backbone["image_size"], backbone["channels"]
        self.mean, self.std = (
            torch.tensor(data[key] if data[key] is not None else [0.5] * self.channels).view(1, -1, 1, 1)
            for key in ("mean", "std")
        )
        self.augment = build_augment(data["augment"], "images")

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


def build_inputs(config: Mapping[str, Any]) -> Inputs:
    """What a config's data set and backbone need between them."""
    kind = PointInputs if DATASETS[config["data"]["name"]].modality == "points" else ImageInputs
    return kind(config)


def regime(data: Mapping[str, Any]) -> str:
    """The augmentation regime of a config's ``data`` section, one label for one meaning, for results."""
    return augment_label(data["augment"], DATASETS[data["name"]].modality)
