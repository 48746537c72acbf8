"""Augmentation of whole batches of images: ``(B, channels, S, S) -> (B, channels, S, S)`` on their own device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pointadapterx.errors import ConfigError
from pointadapterx.registry import Registry


@dataclass(frozen=True)
class ImageTransform(ABC):
    """Base of the transforms of images; the fields are the parameters that a configuration may set."""

    def __call__(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Transform a batch.

        Args:
            images: ``(B, channels, S, S)``, floating point; not changed.
            generator: source of the random draws, on the device of ``images``.

        Returns:
            The same shape, type and device.

        Raises:
            ValueError: if ``images`` has another number of dimensions.
        """
        if images.ndim != 4:
            raise ValueError(f"images has shape {tuple(images.shape)}, expected (batch, channels, height, width)")
        return self.apply(images, generator)

    @abstractmethod
    def apply(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Transforms a batch whose shape has been checked; see :meth:`__call__`."""


IMAGE_TRANSFORMS: Registry[type[ImageTransform]] = Registry("transform")
"""Augmentations of images by the name used in ``data.augment``."""


@IMAGE_TRANSFORMS.register("flip")
@dataclass(frozen=True)
class Flip(ImageTransform):
    """Mirror each image left to right with probability ``p``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ConfigError(f"{self!r}: expected 0 <= p <= 1")

    def apply(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Mirrors the images that were drawn with probability ``p``."""
        drawn = torch.rand(len(images), generator=generator, device=images.device) < self.p
        return torch.where(drawn.view(-1, 1, 1, 1), images.flip(3), images)


@IMAGE_TRANSFORMS.register("shift")
@dataclass(frozen=True)
class Shift(ImageTransform):
    """Move each image by a whole number of pixels, uniform up to ``fraction`` of its side; edges are repeated."""

    fraction: float = 0.125

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ConfigError(f"{self!r}: expected 0 <= fraction < 1")

    def apply(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Pads the images by repeating their edges, and crops them at random places."""
        batch, _, height, width = images.shape
        reach = round(self.fraction * width)
        padded = F.pad(images, (reach,) * 4, mode="replicate")
        moves = torch.randint(0, 2 * reach + 1, (2, batch, 1), generator=generator, device=images.device)
        rows = moves[0] + torch.arange(height, device=images.device)  # (B, H)
        columns = moves[1] + torch.arange(width, device=images.device)
        sample = torch.arange(batch, device=images.device).view(-1, 1, 1)
        return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
