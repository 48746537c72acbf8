"""Pictures of which every pixel has a class: masks, where they come from, and how they are read with their pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from pointadapterx.datasets.base import UNLABELLED, check_split
from pointadapterx.datasets.image_transforms import IGNORED
from pointadapterx.datasets.images import (
    FORMATS,
    THREADS,
    Images,
    bordered,
    fitted,
    numbers_of,
    picture_problem,
    picture_size,
    read_bytes,
    read_picture,
)
from pointadapterx.datasets.object_images import groups_of
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.hashing import content_hash, hash_bytes

MOST_CLASSES = 255  # numbers of 8 bits, of which the last says that a pixel has no class
EXACT = tuple(name for name in FORMATS if name != "JPEG")  # formats that keep numbers as they are

MaskedT = TypeVar("MaskedT", bound="MaskedImages")


class Mask(Protocol):
    """Where the class of every pixel of a picture is known from; hashable as text by its ``repr``."""

    def size(self) -> tuple[int, int]:
        """Height and width, without reading all of it.

        Raises:
            DataError: if it cannot be read, or is of no kind that has classes of pixels.
        """

    def read(self) -> np.ndarray:
        """(H, W) uint8, numbers of classes, :data:`IGNORED` where none is known.

        Raises:
            DataError: if it cannot be read, or holds a number that is no class.
        """

    def content(self) -> bytes:
        """All that decides what it says."""


@dataclass(frozen=True)
class MaskFile:
    """A picture with a number a pixel: of grey values, or of a palette.

    Attributes:
        path: of the file.
        numbers: of the classes, in their order.
        unlabelled: numbers of pixels without a class.
    """

    path: Path
    numbers: range | tuple[int, ...]
    unlabelled: tuple[int, ...] = (IGNORED,)

    def size(self) -> tuple[int, int]:
        """See :class:`Mask`."""
        return self._opened(lambda image: (image.height, image.width))

    def read(self) -> np.ndarray:
        """See :class:`Mask`."""
        values = self._opened(numbers_of)
        classes = np.full(256, -1)
        classes[list(self.unlabelled)] = IGNORED
        classes[list(self.numbers)] = range(len(self.numbers))
        known = np.where((values >= 0) & (values < 256), classes[values.astype(np.int64).clip(0, 255)], -1)
        if (known < 0).any():
            strange, counts = np.unique(values[known < 0], return_counts=True)
            raise DataError(
                f"{self.path}: holds the number {strange[0]} in {counts[0]} pixels, which is no class "
                f"({_listed(self.numbers)}) and does not mean unlabelled ({_listed(self.unlabelled)}); correct the mask"
            )
        return known.astype(np.uint8)

    def content(self) -> bytes:
        """See :class:`Mask`."""
        return read_bytes(self.path) + repr((self.numbers, self.unlabelled)).encode()

    def _opened(self, look: Callable[[Any], Any]) -> Any:
        from PIL import Image  # slow to import

        data = read_bytes(self.path)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.format not in EXACT:
                    raise DataError(
                        f"{self.path}: a mask of the format {image.format}, which changes the numbers of classes; "
                        "save masks as PNG"
                    )
                if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                    raise DataError(
                        f"{self.path}: a mask in colour (mode {image.mode}), which does not say the numbers of "
                        "classes; save one number a pixel, as grey values or with a palette"
                    )
                return look(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.path}: not a readable mask ({picture_problem(error)}); replace it") from None


def _listed(numbers: Sequence[int]) -> str:
    listed = sorted(numbers)
    if len(listed) > 2 and listed == list(range(listed[0], listed[-1] + 1)):
        return f"{listed[0]} to {listed[-1]}"
    return ", ".join(map(str, listed))


class Pair(NamedTuple):
    """A picture and its mask, as a data set's files have them.

    Attributes:
        name: in what is printed.
        picture: its file.
        mask: of the picture; a message if it is missing.
        group: pictures of one scene share a number.
        validation: whether it is of a published validation part.
    """

    name: str
    picture: Path
    mask: Mask | str
    group: int | None = None
    validation: bool = False

    def problem(self) -> str | None:
        """Why the two do not belong together, as far as that can be seen without reading them; None: they do."""
        if isinstance(self.mask, str):
            return self.mask
        try:
            own, other = picture_size(self.picture), self.mask.size()
        except DataError as error:
            return str(error)
        if own != other:
            return (
                f"{self.picture}: {own[1]} x {own[0]} pixels, but its mask has {other[1]} x {other[0]}; make them alike"
            )
        return None


class MaskedImages(Images):
    """Pictures with a mask each; they have no class as a whole.

    Args:
        pixels: see :class:`~pointadapterx.datasets.images.Images`.
        masks: of the pictures, one each; or ``(n, H, W)`` uint8.
        pixel_classes: names of the classes of pixels.
        split: ``"train"`` or ``"test"``.
        story: what else :class:`~pointadapterx.datasets.base.Samples` takes.
    """

    def __init__(
        self,
        pixels: torch.Tensor | Sequence[Path],
        masks: torch.Tensor | Sequence[Mask],
        pixel_classes: Sequence[str],
        split: str,
        **story: Any,
    ) -> None:
        super().__init__(pixels, torch.zeros(len(pixels), dtype=torch.int64), UNLABELLED, split, **story)
        self.masks = masks if isinstance(masks, torch.Tensor) else list(masks)
        self.pixel_classes = list(pixel_classes)

    @classmethod
    def count_pixel_classes(cls, root: str | Path | None, variant: str | None) -> int:
        """Number of classes of pixels, without reading pictures.

        Raises:
            ConfigError, DataError: if files tell it and are missing or wrong.
        """
        raise NotImplementedError(f"{cls.__name__} must count its classes")

    @classmethod
    def require_labels(cls, root: str | Path | None) -> None:
        """Refuses: pictures have no class as a whole."""
        raise ConfigError(f"the data are pictures with masks, which have no class as a whole; {OF_PIXELS}")

    @classmethod
    def classes_in(cls, root: str | Path | None) -> int | None:
        """Refuses, likewise."""
        cls.require_labels(root)
        return None

    @classmethod
    def has_labels(cls, root: str | Path | None = None) -> bool:
        """False, see :meth:`require_labels`."""
        return False

    def _hash(self) -> str:
        pictures, names = super()._hash(), "\n".join(self.pixel_classes)
        if isinstance(self.masks, torch.Tensor):
            return content_hash(pictures, names, self.masks)
        with ThreadPoolExecutor(THREADS) as pool:
            return content_hash(pictures, names, *pool.map(lambda mask: hash_bytes(mask.content()), self.masks))

    def mask(self, i: int) -> np.ndarray:
        """(H, W) uint8, numbers of classes of a picture's pixels; :data:`IGNORED` where none is known.

        Raises:
            DataError: see :meth:`Mask.read`.
        """
        masks = self.masks
        return masks[i].numpy() if isinstance(masks, torch.Tensor) else masks[i].read()

    def raw(self, indices: torch.Tensor, size: int, channels: int, *, letterbox: bool = False) -> torch.Tensor:
        """Pictures as :meth:`fetch` has them, and behind their channels the masks: ``(b, channels + 1, size, size)``.

        Masks are resized to the nearest pixel; around letterboxed ones nothing is known.

        Raises:
            DataError: if a file cannot be decoded, or picture and mask are of different sizes.
        """
        if isinstance(self.pixels, torch.Tensor):
            images = self.fetch(indices, size, channels, letterbox=letterbox)
            masks = [_resized(self.mask(i), size, letterbox) for i in indices.tolist()]
            return torch.cat([images, torch.stack(masks)[:, None]], dim=1)
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.stack(list(pool.map(lambda i: self._raw(i, size, channels, letterbox), indices.tolist())))

    def _raw(self, i: int, size: int, channels: int, letterbox: bool) -> torch.Tensor:
        path = self.pixels[i]
        assert isinstance(path, Path)
        picture, mask = read_picture(path, size, channels, letterbox=letterbox), self.mask(i)
        if mask.shape != (picture.height, picture.width):
            raise DataError(
                f"{path}: {picture.width} x {picture.height} pixels, but its mask has {mask.shape[1]} x "
                f"{mask.shape[0]}; make them alike"
            )
        return torch.cat([torch.from_numpy(picture.pixels), _resized(mask, size, letterbox)[None]])

    def count_pixels(self) -> torch.Tensor:
        """(C,) int64, pixels of each class in all masks, as the files have them.

        Raises:
            DataError: see :meth:`mask`.
        """
        total, count = torch.zeros(256, dtype=torch.int64), len(self.pixel_classes)
        with ThreadPoolExecutor(THREADS) as pool:
            for mask in pool.map(self.mask, range(len(self))):
                total += torch.from_numpy(mask).flatten().long().bincount(minlength=256)
        return total[:count]

    def subset(self: MaskedT, indices: torch.Tensor | Sequence[int]) -> MaskedT:
        """The pictures at ``indices``, in that order."""
        index, part = torch.as_tensor(indices, dtype=torch.int64), super().subset(indices)
        masks = self.masks
        part.masks = masks[index] if isinstance(masks, torch.Tensor) else [masks[i] for i in index.tolist()]
        return part

    def outline(self: MaskedT) -> MaskedT:
        """Without pixels and masks in memory; files are kept, being only names."""
        part = super().outline()
        if isinstance(self.masks, torch.Tensor):
            part.masks = self.masks[:, :0, :0].clone()
        return part


OF_PIXELS = "use task.name=image_segmentation"


def _resized(mask: np.ndarray, size: int, letterbox: bool) -> torch.Tensor:
    """(H, W) uint8 -> (size, size), each pixel as the nearest one."""
    height, width = fitted(*mask.shape, size) if letterbox else (size, size)
    values = torch.from_numpy(mask)[None, None]
    if mask.shape != (height, width):
        values = F.interpolate(values, size=(height, width), mode="nearest-exact")
    return bordered(values, size, IGNORED)[0, 0]


class MaskedFiles(MaskedImages):
    """Base of the data sets whose pictures and masks are files, which a subclass lists.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder of the data.
        variant: of the set, where it has several.

    Attributes:
        called: its name in a config.
        layout: of its folder, in a few words.
        default_root: where it is looked for.

    Raises:
        ConfigError: for an unknown split or variant, or a missing root.
        DataError: if files are missing, or a picture and its mask do not belong together.
    """

    called: ClassVar[str]
    layout: ClassVar[str]
    default_root: ClassVar[str | None] = None

    def __init__(self, split: str, *, root: str | Path | None = None, variant: str | None = None) -> None:
        check_split(split)
        folder = self.folder(root, variant)
        classes = self.classes_of(folder, variant)
        if (problem := count_problem(classes, folder)) is not None:
            raise DataError(problem)
        pairs = list(self.pairs(split, folder, variant))
        if not pairs:
            raise DataError(f"{folder}: holds no picture of the split {split}; {self.called} has {self.layout}")
        _require(pairs)
        validation = torch.tensor([pair.validation for pair in pairs])
        super().__init__(
            [pair.picture for pair in pairs],
            [pair.mask for pair in pairs if not isinstance(pair.mask, str)],
            classes,
            split,
            names=[pair.name for pair in pairs],
            groups=groups_of(pairs),
            source=[folder],
            validation=validation if validation.any() and not validation.all() else None,
        )

    @classmethod
    def folder(cls, root: str | Path | None, variant: str | None) -> Path:
        """Where the files lie.

        Raises:
            ConfigError: for an unknown variant, or if nothing says where.
            DataError: if there is no such folder.
        """
        if variant is not None and variant not in cls.variants:
            known = f"known: {', '.join(cls.variants)}" if cls.variants else "it has none; remove data.variant"
            raise ConfigError(f"data.variant '{variant}': unknown to {cls.called}; {known}")
        if root is None and cls.default_root is None:
            raise ConfigError(f"data.root is required for {cls.called}: the folder of its pictures and masks")
        folder = Path(root or cls.default_root or "")
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; data.root of {cls.called} is the one with {cls.layout}")
        return folder

    @classmethod
    def count_pixel_classes(cls, root: str | Path | None, variant: str | None) -> int:
        """Of :meth:`classes_of`."""
        return len(cls.classes_of(cls.folder(root, variant), variant))

    @classmethod
    def classes_of(cls, folder: Path, variant: str | None) -> Sequence[str]:
        """Names of the classes of pixels.

        Raises:
            DataError: if files that say so are missing or wrong.
        """
        raise NotImplementedError(f"{cls.__name__} must name its classes")

    @classmethod
    def pairs(cls, split: str, folder: Path, variant: str | None) -> Iterator[Pair]:
        """The pictures of a split with their masks, none of them read.

        Raises:
            DataError: if nothing can be listed.
        """
        raise NotImplementedError(f"{cls.__name__} must list its pictures")


def count_problem(classes: Sequence[str], folder: Path) -> str | None:
    """Why masks cannot have that number of classes; None: they can."""
    if 2 <= len(classes) <= MOST_CLASSES:
        return None
    return f"{folder}: {len(classes)} classes of pixels; masks can have from 2 to {MOST_CLASSES}"


def _require(pairs: Sequence[Pair]) -> None:
    """Reads the headers of all files, so that what does not belong together is found before a training."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = [problem for problem in pool.map(Pair.problem, pairs) if problem is not None]
    if found:
        more = f" ({len(found) - 1} more such; doctor lists them)" if len(found) > 1 else ""
        raise DataError(f"{found[0]}{more}")


def mask_beside(picture: Path, mask: Path, numbers: range | tuple[int, ...], unlabelled: Sequence[int]) -> Mask | str:
    """The mask of a picture in a file of its own; a message if the file is missing."""
    if not mask.is_file():
        return f"{picture}: its mask {mask} is missing; add it, or remove the picture"
    return MaskFile(mask, numbers, tuple(unlabelled))
