"""Fashion-MNIST: 70,000 grey images of clothes, 28 x 28 pixels (Xiao et al., 2017, MIT licence)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch

from pointadapterx.datasets.base import DATASETS, check_choice, check_split
from pointadapterx.datasets.files import impostor, require_files
from pointadapterx.datasets.images import Images
from pointadapterx.errors import DataError, reason_of

FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
PREFIX = {"train": "train", "test": "t10k"}
HALVES = {"first5": range(5), "last5": range(5, 10)}
OBTAIN = (
    "Fashion-MNIST is at https://github.com/zalandoresearch/fashion-mnist: put the four .gz files into a folder, "
    "unpacked or not, and set data.root to it."
)


@DATASETS.register("fashion_mnist")
class FashionMnist(Images):
    """60,000 images to train on and 10,000 to test, ten classes.

    Variants: ``first5`` and ``last5``, the classes with labels 0 to 4 and 5 to 9, for transfer from one to the other.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder of the four files, ``data/fashion_mnist`` by default.
        variant: see above; all ten classes by default.

    Raises:
        ConfigError: for an unknown split or variant.
        DataError: if a file is missing or damaged.
    """

    variants = tuple(HALVES)

    @classmethod
    def count_classes(cls, variant: str | None) -> int:
        """Five of a half, else ten."""
        return len(HALVES[variant]) if variant in HALVES else len(FASHION_MNIST_CLASSES)

    def __init__(self, split: str, *, root: str | Path | None = None, variant: str | None = None) -> None:
        check_split(split)
        if variant is not None:
            check_choice(variant, tuple(HALVES), "data.variant of fashion_mnist")
        base = Path(root or "data/fashion_mnist")
        paths = {
            (part, kind): _found(base / f"{PREFIX[part]}-{kind}-ubyte")
            for part in PREFIX
            for kind in ("images-idx3", "labels-idx1")
        }
        own = [path for (part, _), path in paths.items() if part == split]
        require_files("Fashion-MNIST", own, list(paths.values()), OBTAIN)
        pixels, labels = (torch.from_numpy(_read_idx(path)) for path in own)
        if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
            raise DataError(f"{own[0]}: {tuple(pixels.shape)} images for {tuple(labels.shape)} labels; obtain it again")
        labels = labels.long()
        if len(labels) and int(labels.max()) >= len(FASHION_MNIST_CLASSES):
            raise DataError(f"{own[1]}: label {int(labels.max())} of 10 classes; the file is damaged, obtain it again")
        chosen = list(HALVES[variant]) if variant is not None else list(range(len(FASHION_MNIST_CLASSES)))
        index = torch.isin(labels, torch.tensor(chosen)).nonzero().flatten()
        super().__init__(
            pixels[index, None],
            labels[index] - chosen[0],
            [FASHION_MNIST_CLASSES[label] for label in chosen],
            split,
            source=own,
            positions=index,
        )


def _found(path: Path) -> Path:
    """The unpacked file if it is there, else the packed one."""
    return path if path.is_file() else path.with_name(f"{path.name}.gz")


def _read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of bytes: two zeros, type 8, number of dimensions, each as big-endian int32, data."""
    what = impostor(path)
    if what is not None:
        raise DataError(f"{path}: {what}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the file is truncated or damaged ({reason_of(error)}); obtain it again") from None
    dimensions = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content[4:start], dtype=">i4").tolist()) if len(content) >= start else ()
    if not dimensions or min(shape, default=-1) < 0 or len(content) - start != int(np.prod(shape)):
        raise DataError(f"{path}: not an IDX file of bytes, or cut off; obtain it again")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
