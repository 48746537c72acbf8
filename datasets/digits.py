"""Digits: 1,797 handwritten digits of 8 x 8 pixels, which come with scikit-learn (UCI, CC BY 4.0)."""

from __future__ import annotations

from pathlib import Path

import torch

from pointadapterx.datasets.base import DATASETS, check_split
from pointadapterx.datasets.images import Images
from pointadapterx.datasets.splits import stratified_split
from pointadapterx.errors import ConfigError

TEST_SHARE = 797 / 1797


@DATASETS.register("digits")
class Digits(Images):
    """Grey images of ten classes; 1,000 to train on and 797 to test, a stratified draw that is always the same.

    Args:
        split: ``"train"`` or ``"test"``.
        root: not supported here; a folder is an error.
        variant: not supported here; a name is an error.

    Raises:
        ConfigError: for an unknown split, a folder or a variant.
    """

    num_classes = 10

    def __init__(self, split: str, *, root: str | Path | None = None, variant: str | None = None) -> None:
        check_split(split)
        for key, value in (("root", root), ("variant", variant)):
            if value is not None:
                raise ConfigError(f"data.{key} '{value}': digits come with scikit-learn; remove data.{key}")
        from sklearn.datasets import load_digits  # slow to import

        content = load_digits()
        labels = torch.from_numpy(content.target).long()
        kept, held_out = stratified_split(labels, TEST_SHARE, 0)
        index = kept if split == "train" else held_out
        pixels = torch.from_numpy(content.images * (255 / 16)).round().to(torch.uint8)[:, None]  # 0 to 16 in the file
        super().__init__(pixels[index], labels[index], [str(i) for i in range(10)], split, positions=index)
