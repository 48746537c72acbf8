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
SCENES = {"train": 400, "test": 200}
MOST = 5  # digits of a scene
SIZES = (16, 28)  # of a digit, in pixels
INK = 0.35  # brightness from which on a pixel belongs to its digit
CLASSES = ("background", *map(str, range(10)))


@DATASETS.register("digit_scenes")
class DigitScenes(MaskedImages):
    """Grey scenes of 56 x 56 pixels with one to five digits on an uneven ground; 400 to train on and 200 to test.

    The digits of the test scenes are none of those of the training scenes, see
    :class:`~pointadapterx.datasets.digits.Digits`. A later digit covers an earlier one.

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
        rng = np.random.default_rng(["train", "test"].index(split))
        drawn = [_scene(digits.pixels, digits.labels, rng) for _ in range(SCENES[split])]
        pictures, masks = (torch.stack(part) for part in zip(*drawn, strict=True))
        super().__init__(pictures[:, None], masks, CLASSES, split)


def _scene(digits: torch.Tensor, labels: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture (SIDE, SIDE) uint8 and its mask."""
    field = torch.from_numpy(rng.random((1, 1, 4, 4)))  # of another brightness here and there
    ground = F.interpolate(field, size=(SIDE, SIDE), mode="bicubic", align_corners=False)[0, 0]
    picture = 0.3 * ground.clamp(0, 1) + 0.08 * torch.from_numpy(rng.random((SIDE, SIDE)))
    mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    for _ in range(rng.integers(1, MOST + 1)):
        chosen, size = int(rng.integers(len(digits))), int(rng.integers(*SIZES, endpoint=True))
        top, left = rng.integers(0, SIDE - size, 2, endpoint=True).tolist()
        large = F.interpolate(digits[chosen][None] / 255, size=(size, size), mode="bicubic", align_corners=False)
        ink = large[0, 0].clamp(0, 1).double()
        area = slice(top, top + size), slice(left, left + size)
        picture[area] = torch.where(ink > INK, ink, picture[area])
        mask[area][ink > INK] = 1 + int(labels[chosen])
    return (255 * picture.clamp(0, 1)).round().to(torch.uint8), mask
