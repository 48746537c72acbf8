"""Scenes of handwritten digits with a class for every pixel, drawn from the digits that come with scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from pointadapterx.datasets.base import DATASETS, check_split
from pointadapterx.datasets.digits import Digits
from pointadapterx.datasets.image_masks import MaskedImages
from pointadapterx.errors import ConfigError

SIDE = 56  # of a scene, in pixels
SIZES = (44, 56)  # of a digit, in pixels: as much of the picture as what the shipped transformer has seen
INK = 0.35  # brightness from which on a pixel belongs to its digit
CLASSES = ("background", *map(str, range(10)))


@DATASETS.register("digit_scenes")
class DigitScenes(MaskedImages):
    """Grey scenes of 56 x 56 pixels, a large digit on an uneven ground each; 1,000 to train on and 797 to test.

    Every digit is in one scene, so that no part of the data knows the digits of another.

    Args:
        split: ``"train"`` or ``"test"``.
        root: not supported here; a folder is an error.
        variant: not supported here; a name is an error.

    Raises:
        ConfigError: for an unknown split, a folder or a variant.
    """

    @classmethod
    def count_pixel_classes(cls, root: str | Path | None, variant: str | None) -> int:
        """Ten digits and what is behind them."""
        return len(CLASSES)

    def __init__(self, split: str, *, root: str | Path | None = None, variant: str | None = None) -> None:
        check_split(split)
        for key, value in (("root", root), ("variant", variant)):
            if value is not None:
                raise ConfigError(f"data.{key} '{value}': digit_scenes are drawn, not read; remove data.{key}")
        digits = Digits(split)
        assert isinstance(digits.pixels, torch.Tensor)
        pictures, masks = _drawn(digits.pixels, digits.labels, np.random.default_rng(["train", "test"].index(split)))
        super().__init__(pictures, masks, CLASSES, split)


def _drawn(digits: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A scene for each of the digits (n, 1, 8, 8): pictures (n, 1, SIDE, SIDE) and masks (n, SIDE, SIDE), uint8."""
    count = len(digits)
    field = torch.from_numpy(rng.random((count, 1, 4, 4)))  # of another brightness here and there
    ground = F.interpolate(field, size=(SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)
    pictures = 0.3 * ground + 0.08 * torch.from_numpy(rng.random((count, 1, SIDE, SIDE)))
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    sizes = rng.integers(*SIZES, count, endpoint=True)
    corners = rng.integers(0, SIDE - sizes + 1, (2, count))
    for number, (size, top, left) in enumerate(zip(sizes.tolist(), *corners.tolist(), strict=True)):
        large = F.interpolate(digits[number, None] / 255, size=(size, size), mode="bicubic", align_corners=False)
        ink = large[0, 0].clamp(0, 1).double()
        area = number, slice(top, top + size), slice(left, left + size)
        pictures[:, 0][area] = torch.where(ink > INK, ink, pictures[:, 0][area])
        masks[area][ink > INK] = 1 + int(labels[number])
    return (255 * pictures.clamp(0, 1)).round().to(torch.uint8), masks
