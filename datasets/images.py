"""Labelled images: in memory as an array, or on disk as files that are decoded when they are needed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from pointadapterx.datasets.base import Samples
from pointadapterx.datasets.formats.tables import EXPANSION, SMALL
from pointadapterx.errors import DataError, reason_of
from pointadapterx.hashing import content_hash, hash_bytes

THREADS = 8  # decoding and resizing release the interpreter's lock
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # not all that Pillow knows: EPS starts another program
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

ImagesT = TypeVar("ImagesT", bound="Images")


class Images(Samples):
    """Labelled images.

    Args:
        pixels: ``(n, channels, H, W)`` uint8, or one file an image.
        labels: see :class:`~pointadapterx.datasets.base.Samples`, as all that is not named here.
        classes: class names.
        split: ``"train"`` or ``"test"``.
    """

    modality = "images"

    def __init__(
        self,
        pixels: torch.Tensor | Sequence[Path],
        labels: torch.Tensor,
        classes: Sequence[str],
        split: str,
        **story: Any,
    ) -> None:
        super().__init__(labels, classes, split, **story)
        self.pixels = pixels if isinstance(pixels, torch.Tensor) else list(pixels)

    def _hash(self) -> str:
        """The pixels, or the files' bytes."""
        names = "\n".join(self.classes)
        if isinstance(self.pixels, torch.Tensor):
            return content_hash(self.pixels, self.labels, names)
        with ThreadPoolExecutor(THREADS) as pool:
            files = pool.map(lambda path: hash_bytes(_read(path)), self.pixels)
            return content_hash("\n".join(files), self.labels, names)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """``{"image": (channels, H, W) uint8, "label": () int64, "index": i}``, an image of its own size."""
        pixels = self.pixels
        image = pixels[i] if isinstance(pixels, torch.Tensor) else decode(pixels[i], None, None)
        return {"image": image, "label": self.labels[i], "index": i}

    def fetch(self, indices: torch.Tensor, size: int, channels: int) -> torch.Tensor:
        """The images at ``indices``, resized: ``(b, channels, size, size)`` uint8.

        Bicubic with antialiasing, whatever the shape of the original; grey images are repeated over the channels, and
        coloured ones become grey (ITU-R 601) for a single channel.

        Raises:
            DataError: if a file cannot be decoded.
        """
        if isinstance(self.pixels, torch.Tensor):
            return _resize(_with_channels(self.pixels[indices], channels), size)
        paths = [self.pixels[i] for i in indices.tolist()]
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.stack(list(pool.map(lambda path: decode(path, size, channels), paths)))

    def subset(self: ImagesT, indices: torch.Tensor | Sequence[int]) -> ImagesT:
        """The images at ``indices``, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        part = self._part(index)
        pixels = self.pixels
        part.pixels = pixels[index] if isinstance(pixels, torch.Tensor) else [pixels[i] for i in index.tolist()]
        return part

    def outline(self: ImagesT) -> ImagesT:
        """Without pixels; files are kept, being only names."""
        part = self._part(torch.arange(len(self)))
        if isinstance(self.pixels, torch.Tensor):
            part.pixels = self.pixels[:, :, :0, :0].clone()
        return part


def _with_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """(b, 1 or 3, H, W) uint8 -> (b, 1 or 3, H, W)."""
    have = images.shape[1]
    if have == channels:
        return images
    if have == 1:
        return images.expand(-1, channels, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images[:, :3].float() * weights).sum(dim=1, keepdim=True).round().to(torch.uint8)


def _resize(images: torch.Tensor, size: int) -> torch.Tensor:
    if tuple(images.shape[2:]) == (size, size):
        return images
    resized = F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


def decode(path: Path, size: int | None, channels: int | None) -> torch.Tensor:
    """An image file as (channels, H, W) uint8, resized to a square of side ``size``; None: as it is.

    Raises:
        DataError: if it cannot be decoded.
    """
    from PIL import Image, ImageOps  # slow to import, and point clouds do without

    data = _read(path)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > max(SMALL, EXPANSION * len(data)):
                raise ValueError(f"its {len(data)} bytes are said to be {opened.width} x {opened.height} pixels")
            image = ImageOps.exif_transpose(opened)  # as the camera was held
            if image.mode in ("I", "F"):
                raise ValueError(f"pixels of mode {image.mode}, whose range is not known; save it with 8 or 16 bits")
            if image.mode.startswith("I;16"):  # Pillow would clip instead of scale
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            grey = image.mode in ("1", "L") if channels is None else channels == 1
            converted = image.convert("L" if grey else "RGB")
            if size is not None and converted.size != (size, size):
                converted = converted.resize((size, size), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(converted))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({reason_of(error)}); replace or remove it") from None
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)).contiguous()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
