"""Home: surface samples of furniture and household objects, from free furniture libraries (CC BY 3.0, CC0 1.0)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pointadapterx.datasets.base import DATASETS, PointClouds
from pointadapterx.datasets.checks import check_classes
from pointadapterx.datasets.h5 import read_h5
from pointadapterx.datasets.hdf5 import open_h5, read_numbers
from pointadapterx.datasets.shipped import file_of, lacks
from pointadapterx.errors import DataError

HOME_CLASSES = (
    *("appliance", "armchair", "bed", "bottle", "cabinet", "chair", "clothes", "container", "door", "electronics"),
    *("lamp", "plant", "sanitary", "shelf", "sofa", "stool", "table", "tableware", "tool", "tree", "window"),
)
EMBEDDED = Path(__file__).parent / "embedded" / "home"


@DATASETS.register("home")
class Home(PointClouds):
    """21 classes, unbalanced and small (348 / 142 clouds), 2048 points a cloud, y up, unit sphere.

    The order of a cloud's points carries no meaning. ``names`` are library and model; ``groups`` keep near-duplicates
    together in a validation split, as the train and test files themselves do.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder with ``train.h5`` and ``test.h5``; the shipped set by default.
        variant: not supported here; a name is an error.
        normalize: centre and scale again, although the files already are.

    Raises:
        ConfigError: for an unknown split or a variant.
        DataError: if the file is missing or damaged, or its classes are others.
    """

    num_classes = len(HOME_CLASSES)

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        variant: str | None = None,
        normalize: bool = False,
    ) -> None:
        path = file_of("home", split, root, variant, EMBEDDED)
        content = read_h5(path, self.num_classes)
        if content.classes is None:
            raise lacks(path, "attribute 'classes'", "home")
        check_classes(content.classes, HOME_CLASSES, f"{path}: attribute 'classes'")
        with open_h5(path) as file:
            groups = np.asarray(read_numbers(file, "group"))
        if groups.shape != (len(content.points),) or groups.dtype.kind not in "iu":
            raise DataError(
                f"{path}: 'group' holds {groups.dtype} of shape {groups.shape}, expected a whole number for each of "
                f"{len(content.points)} clouds"
            )
        super().__init__(
            content.points,
            content.labels,
            HOME_CLASSES,
            split,
            names=content.names,
            groups=torch.from_numpy(np.unique(groups, return_inverse=True)[1].reshape(-1).astype(np.int64)),
            source=[path],
            normalize=normalize,
        )
