"""ScanObjectNN: scanned objects, real noise and background (Uy et al., ICCV 2019)."""

from __future__ import annotations

from pathlib import Path

from pointadapterx.datasets.base import DATASETS, PointClouds, check_choice, check_split, warn_count
from pointadapterx.datasets.files import require_files
from pointadapterx.datasets.h5 import read_h5

SCANOBJECTNN_CLASSES = (
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door"),
    *("shelf", "table", "bed", "pillow", "sink", "sofa", "toilet"),
)

# variant -> folder, file name after "training_" or "test_", published number of clouds
VARIANTS = {
    "obj_bg": ("main_split", "objectdataset.h5", {"train": 2309, "test": 581}),
    "obj_only": ("main_split_nobg", "objectdataset.h5", {"train": 2309, "test": 581}),
    "pb_t50_rs": ("main_split", "objectdataset_augmentedrot_scale75.h5", {"train": 11416, "test": 2882}),
}
PREFIX = {"train": "training", "test": "test"}

OBTAIN = (
    "ScanObjectNN is given out by its authors under their terms: fill in the form at "
    "https://hkust-vgd.github.io/scanobjectnn/, unpack h5_files.zip, and set data.root to the folder that holds "
    "main_split/ and main_split_nobg/."
)


@DATASETS.register("scanobjectnn")
class ScanObjectNN(PointClouds):
    """15 classes, 2048 points a cloud, y up, in the scanner's metric frame moved to the object.

    Variants: ``obj_bg`` (with background), ``obj_only`` (without), ``pb_t50_rs`` (with background, boxes perturbed,
    rotated and scaled). In ``pb_t50_rs`` several clouds are perturbed copies of one object and the file does not
    say which, so a validation part cut from it is optimistic; this touches only the choice of the model, never the
    test result. The files' ``mask`` is ignored.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder that holds ``main_split/`` and ``main_split_nobg/``, or ``h5_files/`` with them.
        variant: see above.
        normalize: centre and scale into the unit sphere. Off in the usual protocol.

    Raises:
        ConfigError: for an unknown split or variant.
        DataError: if the file is missing or damaged. A number of clouds that is not the published one is a warning.
    """

    variants = tuple(VARIANTS)
    num_classes = len(SCANOBJECTNN_CLASSES)

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        variant: str | None = None,
        normalize: bool = False,
    ) -> None:
        check_split(split)
        variant = check_choice(variant or "obj_bg", tuple(VARIANTS), "data.variant of scanobjectnn")
        folder, suffix, published = VARIANTS[variant]
        base = Path(root or "data/ScanObjectNN")
        if (base / "h5_files").is_dir() and not (base / folder).is_dir():
            base = base / "h5_files"
        paths = {part: base / folder / f"{prefix}_{suffix}" for part, prefix in PREFIX.items()}
        require_files(f"ScanObjectNN {variant}", [paths[split]], list(paths.values()), OBTAIN)
        content = read_h5(paths[split], len(SCANOBJECTNN_CLASSES))
        super().__init__(
            content.points,
            content.labels,
            SCANOBJECTNN_CLASSES,
            split,
            source=[paths[split]],
            normalize=normalize,
        )
        warn_count(f"ScanObjectNN {variant}", split, len(self), published[split])
