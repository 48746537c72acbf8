"""Augmentation of whole batches of images: ``(B, channels, S, S) -> (B, channels, S, S)`` on their own device.

What is known of their pixels follows them, and so does where each pixel was: a **frame** ``(B, 4)``, scale and shift
along x, then along y. With coordinates from -1 to 1 between the edges, the pixel at x was at ``scale x + shift``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from pointadapterx.errors import ConfigError
from pointadapterx.registry import Registry

IGNORED = 255
"""The label of a pixel of which nothing is known, such as one that has come in from beyond the edge of the picture."""


class Pictures(NamedTuple):
    """Images and what follows them.

    Attributes:
        images: (B, channels, S, S).
        pixels: (B, S, S) int64, labels of their pixels, or None.
        frame: (B, 4), where they lie in what they were made of; None: as they are.
    """

    images: torch.Tensor
    pixels: torch.Tensor | None = None
    frame: torch.Tensor | None = None


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

    def carry(self, pictures: Pictures, generator: torch.Generator | None) -> Pictures:
        """As the call, with labels of pixels and frame; one that moves no pixel needs nothing of its own."""
        return pictures._replace(images=self(pictures.images, generator))


@dataclass(frozen=True)
class Moving(ImageTransform):
    """Base of the transforms that move pixels."""

    def apply(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """The images alone of :meth:`carry`."""
        return self.moved(images, None, generator).images

    def carry(self, pictures: Pictures, generator: torch.Generator | None) -> Pictures:
        """See :class:`ImageTransform`."""
        found = self.moved(pictures.images, pictures.pixels, generator)
        assert found.frame is not None
        before = pictures.frame
        return found if before is None else found._replace(frame=_composed(before, found.frame))

    @abstractmethod
    def moved(self, images: torch.Tensor, pixels: torch.Tensor | None, generator: torch.Generator | None) -> Pictures:
        """Images (B, channels, S, S), labels (B, S, S) after the transform, and the frame of this transform alone."""


def _composed(first: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
    """The frame (B, 4) of two transforms one after the other."""
    first, then = first.view(-1, 2, 2), then.view(-1, 2, 2)
    scale, shift = first[..., 0], first[..., 1]
    return torch.stack([scale * then[..., 0], scale * then[..., 1] + shift], dim=-1).flatten(1)


def _grid(frame: torch.Tensor, size: int) -> torch.Tensor:
    """Where the pixels of square pictures were, (B, S, S, 2), x and y, from -1 to 1 between the edges."""
    places = (2 * torch.arange(size, device=frame.device, dtype=frame.dtype) + 1) / size - 1
    x = frame[:, 0, None] * places + frame[:, 1, None]
    y = frame[:, 2, None] * places + frame[:, 3, None]
    return torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1)


def put_back(values: torch.Tensor, frame: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of transformed pictures where their pixels were before.

    Args:
        values: (B, C, S, S), one a pixel.
        frame: (B, 4), of the pictures.

    Returns:
        (B, C, S, S), 0 where the pictures do not reach; and (B, 1, S, S), 1 where they do, else 0.
    """
    scale, shift = frame.view(-1, 2, 2).unbind(dim=2)
    back = torch.stack([1 / scale, -shift / scale], dim=-1).flatten(1).to(values.dtype)
    grid = _grid(back, values.shape[-1])
    reached = (grid.abs() <= 1).all(dim=-1)[:, None].to(values.dtype)
    return F.grid_sample(values, grid, padding_mode="border", align_corners=False) * reached, reached


IMAGE_TRANSFORMS: Registry[type[ImageTransform]] = Registry("transform")
"""Augmentations of images by the name used in ``data.augment``."""


@IMAGE_TRANSFORMS.register("flip")
@dataclass(frozen=True)
class Flip(Moving):
    """Mirror each image left to right with probability ``p``."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ConfigError(f"{self!r}: expected 0 <= p <= 1")

    def moved(self, images: torch.Tensor, pixels: torch.Tensor | None, generator: torch.Generator | None) -> Pictures:
        """Mirrors the images that were drawn with probability ``p``."""
        drawn = torch.rand(len(images), generator=generator, device=images.device) < self.p
        if pixels is not None:
            pixels = torch.where(drawn.view(-1, 1, 1), pixels.flip(2), pixels)
        frame = images.new_tensor([1.0, 0.0, 1.0, 0.0]).repeat(len(images), 1)
        frame[:, 0] -= 2 * drawn
        return Pictures(torch.where(drawn.view(-1, 1, 1, 1), images.flip(3), images), pixels, frame)


@IMAGE_TRANSFORMS.register("shift")
@dataclass(frozen=True)
class Shift(Moving):
    """Move each image by a whole number of pixels, uniform up to ``fraction`` of its side; edges are repeated.

    Pixels from beyond the edge have the label :data:`IGNORED`.
    """

    fraction: float = 0.125

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ConfigError(f"{self!r}: expected 0 <= fraction < 1")

    def moved(self, images: torch.Tensor, pixels: torch.Tensor | None, generator: torch.Generator | None) -> Pictures:
        """Pads the images by repeating their edges, and crops them at random places."""
        batch, _, height, width = images.shape
        reach = round(self.fraction * width)
        padded = F.pad(images, (reach,) * 4, mode="replicate")
        moves = torch.randint(0, 2 * reach + 1, (2, batch, 1), generator=generator, device=images.device)
        rows = moves[0] + torch.arange(height, device=images.device)  # (B, H)
        columns = moves[1] + torch.arange(width, device=images.device)
        sample = torch.arange(batch, device=images.device).view(-1, 1, 1)
        places = sample, rows[:, :, None], columns[:, None, :]
        if pixels is not None:
            pixels = F.pad(pixels, (reach,) * 4, value=IGNORED)[places]
        y, x = 2 * (moves[..., 0] - reach) / width
        frame = torch.stack([torch.ones_like(x), x, torch.ones_like(y), y], dim=1)
        return Pictures(padded.permute(0, 2, 3, 1)[places].permute(0, 3, 1, 2), pixels, frame.to(images.dtype))


@IMAGE_TRANSFORMS.register("scale_crop")
@dataclass(frozen=True)
class ScaleCrop(Moving):
    """Scale each image by a factor, uniform in ``[low, high)``, and cut out a part of its size at a random place.

    What is smaller is put at a random place, and its edges are repeated around it, with the label :data:`IGNORED`.
    """

    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ConfigError(f"{self!r}: expected 0 < low <= high")

    def moved(self, images: torch.Tensor, pixels: torch.Tensor | None, generator: torch.Generator | None) -> Pictures:
        """Samples images bilinearly, and labels from the nearest pixel."""
        drawn = torch.rand((3, len(images)), generator=generator, device=images.device, dtype=images.dtype)
        scale = 1 / (self.low + (self.high - self.low) * drawn[0])
        x, y = (2 * drawn[1:] - 1) * (1 - scale).abs()
        frame = torch.stack([scale, x, scale, y], dim=1)
        grid = _grid(frame, images.shape[-1])
        if pixels is not None:
            beyond = (grid.abs() > 1).any(dim=-1)
            there = F.grid_sample(pixels[:, None].to(grid.dtype), grid, "nearest", "border", align_corners=False)
            pixels = there[:, 0].to(pixels.dtype).masked_fill(beyond, IGNORED)
        return Pictures(F.grid_sample(images, grid, padding_mode="border", align_corners=False), pixels, frame)
