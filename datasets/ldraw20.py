"""LDraw-20: surface samples of real CAD parts from the LDraw parts library (CC BY 4.0); a subset is shipped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pointadapterx.datasets.base import DATASETS, PointClouds
from pointadapterx.datasets.checks import check_classes
from pointadapterx.datasets.h5 import read_h5
from pointadapterx.datasets.shipped import file_of, lacks
from pointadapterx.errors import DataError

LDRAW20_CLASSES = (
    *("plate", "brick", "headwear", "electric", "train", "wheel", "slope", "animal", "door", "container"),
    *("window", "technic", "hinge", "windscreen", "tile", "panel", "plant", "wedge", "wing", "bracket"),
)
EMBEDDED = Path(__file__).parent / "embedded" / "ldraw20"


def part_number(name: str) -> str:
    """The part that a file describes: ``3001.dat``, ``3001a.dat`` and ``3001p01.dat`` are all ``3001``.

    Raises:
        ValueError: if the name does not begin with a part number.
    """
    match = re.match(r"[a-z]*\d+", name)
    if match is None:
        raise ValueError(f"'{name}' does not begin with a part number")
    return match.group()


def part_groups(names: Sequence[str]) -> torch.Tensor:
    """``(n,)`` int64, equal for the variants of one part."""
    return torch.from_numpy(np.unique([part_number(name) for name in names], return_inverse=True)[1].astype(np.int64))


@DATASETS.register("ldraw20")
class LDraw20(PointClouds):
    """20 classes of the library's own categories, unbalanced, 2048 points a cloud, y up, unit sphere.

    The order of a cloud's points carries no meaning. ``names`` are the parts' file names; ``groups`` keep the
    variants of a part together in a validation split, as the train and test files themselves do.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder with ``train.h5`` and ``test.h5``; the shipped subset by default.
        variant: not supported here; a name is an error.
        normalize: centre and scale again, although the files already are.

    Raises:
        ConfigError: for an unknown split or a variant.
        DataError: if the file is missing or damaged, or its classes are others.
    """

    num_classes = 20

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        variant: str | None = None,
        normalize: bool = False,
    ) -> None:
        path = file_of("ldraw20", split, root, variant, EMBEDDED)
        content = read_h5(path, len(LDRAW20_CLASSES))
        if content.names is None or content.classes is None:
            raise lacks(path, "data set 'name'" if content.names is None else "attribute 'classes'", "ldraw20")
        check_classes(content.classes, LDRAW20_CLASSES, f"{path}: attribute 'classes'")
        try:
            groups = part_groups(content.names)
        except ValueError as error:
            raise DataError(f"{path}: name {error}, such as 3001a.dat") from None
        super().__init__(
            content.points,
            content.labels,
            LDRAW20_CLASSES,
            split,
            names=content.names,
            groups=groups,
            source=[path],
            normalize=normalize,
        )
