"""Labelled images: in memory as an array, or on disk as files that are decoded when they are needed."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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

BORDER = 128  # around pictures that keep their shape: about the mean of most data sets

ImagesT = TypeVar("ImagesT", bound="Images")


class Picture(NamedTuple):
    """A picture for a model, and what it was.

    Attributes:
        pixels: (channels, S, S) uint8.
        height: of the file's picture, as the camera was held.
        width: likewise.
    """

    pixels: np.ndarray
    height: int
    width: int


def fitted(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of a picture whose longer side has become ``size``."""
    longest = max(height, width)
    return max(1, round(height * size / longest)), max(1, round(width * size / longest))


SIDEWAYS = (5, 6, 7, 8)  # values of EXIF's orientation that exchange height and width
ORIENTATION = 0x0112
SCALES = {"L;2": 85, "L;4": 17}
"""Of grey values of 2 and 4 bits, which Pillow stretches to 8."""


def numbers_of(image: Any) -> np.ndarray:
    """What the file of a picture has for each pixel, (H, W), undoing what Pillow does to grey values of few bits.

    Args:
        image: of Pillow, just opened.

    Raises:
        ValueError: for a scale that cannot be undone.
        OSError: if the file is damaged.
    """
    raw = image.tile[0][3] if image.tile else ""
    kind, *further = (raw,) if isinstance(raw, str) else raw
    if image.format == "PPM" and further and further[0] not in (255, 65535):
        raise ValueError(f"grey values up to {further[0]} are scaled by readers; save numbers as PNG")
    scale = SCALES.get(str(kind)[:3])
    return np.array(image) if scale is None else np.array(image) // scale


def picture_problem(error: Exception) -> str:
    """What Pillow has against a file, without the object that it was read from."""
    from PIL import UnidentifiedImageError

    return f"none of {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else reason_of(error)


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture as the camera was held, from its header.

    Raises:
        DataError: if it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
            return (image.width, image.height) if sideways else (image.height, image.width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({picture_problem(error)}); replace or remove it") from None


def copies(parts: Sequence[Sequence[Path]]) -> list[tuple[Path, Path]]:
    """Pictures that are in several parts: a file of each of two parts, with the same content.

    Only files of which others have the size are read, and of a file that two parts name nothing at all.
    """
    same: dict[int, list[tuple[int, Path]]] = defaultdict(list)
    for part, files in enumerate(parts):
        for path in files:
            same[path.stat().st_size].append((part, path))
    found = []
    for group in same.values():
        if len({part for part, _ in group}) > 1:
            once = len({path.resolve() for _, path in group}) == 1
            first: dict[str, tuple[int, Path]] = {}
            for part, path in group:
                known = first.setdefault("" if once else hash_bytes(read_bytes(path)), (part, path))
                if known[0] != part:
                    found.append((known[1], path))
    return found


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
            files = pool.map(lambda path: hash_bytes(read_bytes(path)), self.pixels)
            return content_hash("\n".join(files), self.labels, names)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """``{"image": (channels, H, W) uint8, "label": () int64, "index": i}``, an image of its own size."""
        pixels = self.pixels
        image = pixels[i] if isinstance(pixels, torch.Tensor) else decode(pixels[i], None, None)
        return {"image": image, "label": self.labels[i], "index": i}

    def fetch(self, indices: torch.Tensor, size: int, channels: int, *, letterbox: bool = False) -> torch.Tensor:
        """The images at ``indices``, resized: ``(b, channels, size, size)`` uint8.

        Bicubic with antialiasing; grey images are repeated over the channels, and coloured ones become grey (ITU-R 601)
        for a single channel.

        Args:
            indices: (b,) int64.
            size: of a side.
            channels: 1 or 3.
            letterbox: keep the shape of the original, with a grey border on the right or below; otherwise it is
                stretched.

        Raises:
            DataError: if a file cannot be decoded.
        """
        if isinstance(self.pixels, torch.Tensor):
            return _resize(_with_channels(self.pixels[indices], channels), size, letterbox)
        paths = [self.pixels[i] for i in indices.tolist()]
        with ThreadPoolExecutor(THREADS) as pool:
            read = pool.map(lambda path: read_picture(path, size, channels, letterbox=letterbox).pixels, paths)
            return torch.from_numpy(np.stack(list(read)))

    def raw(self, indices: torch.Tensor, size: int, channels: int, *, letterbox: bool = False) -> torch.Tensor:
        """As :meth:`fetch`; a data set that knows more of each pixel adds it as further channels."""
        return self.fetch(indices, size, channels, letterbox=letterbox)

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


def _resize(images: torch.Tensor, size: int, letterbox: bool) -> torch.Tensor:
    height, width = fitted(*images.shape[2:], size) if letterbox else (size, size)
    if tuple(images.shape[2:]) != (height, width):
        images = images.float()
        images = F.interpolate(images, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
        images = images.round().clamp(0, 255).to(torch.uint8)
    return bordered(images, size, BORDER)


def bordered(images: torch.Tensor, size: int, value: int) -> torch.Tensor:
    """(..., h, w) with a border on the right or below, which makes them (..., size, size)."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    return F.pad(images, (0, size - width, 0, size - height), value=value)


def decode(path: Path, size: int | None, channels: int | None) -> torch.Tensor:
    """The pixels alone of :func:`read_picture`, stretched."""
    return torch.from_numpy(read_picture(path, size, channels).pixels)


def read_picture(path: Path, size: int | None, channels: int | None, *, letterbox: bool = False) -> Picture:
    """An image file as (channels, H, W) uint8, resized to a square of side ``size``; None: as it is.

    Args:
        path: of the file.
        size: of a side.
        channels: 1 or 3; None: as the file has it.
        letterbox: see :meth:`Images.fetch`.

    Raises:
        DataError: if it cannot be decoded.
    """
    from PIL import Image, ImageOps  # slow to import, and point clouds do without

    data = read_bytes(path)
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
            width, height = converted.size
            wanted = (height, width) if size is None else (size, size)
            if size is not None and letterbox:
                wanted = fitted(height, width, size)
            if (height, width) != wanted:
                converted = converted.resize(wanted[::-1], Image.Resampling.BICUBIC)
            pixels = np.array(converted)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({picture_problem(error)}); replace or remove it") from None
    pixels = np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
    if size is not None:
        pixels = bordered(torch.from_numpy(pixels), size, BORDER).numpy()
    return Picture(pixels, height, width)


def read_bytes(path: Path) -> bytes:
    """A file's content.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
