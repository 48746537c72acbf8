"""VTAB-1K: 19 tasks of 1,000 labelled images each (Zhai et al., arXiv 1910.04867), as file lists beside images."""

from __future__ import annotations

from pathlib import Path

import torch

from pointadapterx.datasets.base import DATASETS, check_choice, check_split
from pointadapterx.datasets.files import require_files
from pointadapterx.datasets.images import Images
from pointadapterx.errors import ConfigError, DataError, reason_of

GROUPS: dict[str, dict[str, int]] = {
    "natural": {
        **{"cifar": 100, "caltech101": 102, "dtd": 47, "oxford_flowers102": 102},
        **{"oxford_iiit_pet": 37, "svhn": 10, "sun397": 397},
    },
    "specialized": {"patch_camelyon": 2, "eurosat": 10, "resisc45": 45, "diabetic_retinopathy": 5},
    "structured": {
        **{"clevr_count": 8, "clevr_dist": 6, "dmlab": 6, "kitti": 4},
        **{"dsprites_loc": 16, "dsprites_ori": 16, "smallnorb_azi": 18, "smallnorb_ele": 9},
    },
}
"""Tasks of each group in the order of the published tables, with their numbers of classes."""
TASKS = {task: classes for group in GROUPS.values() for task, classes in group.items()}

LISTS = {"train": ("train800.txt", "val200.txt"), "test": ("test.txt",)}
OBTAIN = (
    "The prepared VTAB-1K with its file lists is linked by the code of NOAH (https://github.com/ZhangYuanhan-AI/NOAH); "
    "unpack it and set data.root to the folder that holds one folder a task."
)


@DATASETS.register("vtab")
class Vtab(Images):
    """One of the 19 tasks: 1,000 images to train on, and its test set.

    The training split is ``train800.txt`` followed by ``val200.txt``, whose 200 images are its published validation
    part: hyperparameters are chosen on them, and the final model is trained on all 1,000. ``train800val200.txt`` is
    not read: in the prepared data it names copies of the same images.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder with one folder a task, each with lists of ``path label`` lines; ``data/vtab-1k`` by default.
        variant: the task; required.

    Raises:
        ConfigError: for an unknown split or task.
        DataError: if a list or an image that it names is missing, or a line is not of that form.
    """

    variants = tuple(TASKS)
    needs_variant = True

    @classmethod
    def count_classes(cls, variant: str | None) -> int | None:
        """Number of classes of the task."""
        return None if variant is None else TASKS.get(variant)

    def __init__(self, split: str, *, root: str | Path | None = None, variant: str | None = None) -> None:
        check_split(split)
        if variant is None:
            raise ConfigError(f"data.variant is required for data.name=vtab: the task, one of {', '.join(TASKS)}")
        check_choice(variant, self.variants, "data.variant of vtab")
        folder = Path(root or "data/vtab-1k") / variant
        lists = {part: [folder / name for name in names] for part, names in LISTS.items()}
        require_files(f"VTAB-1K {variant}", lists[split], [*lists["train"], *lists["test"]], OBTAIN)
        parts = [_read_list(path, TASKS[variant]) for path in lists[split]]
        names, labels = zip(*(entry for part in parts for entry in part), strict=True)
        super().__init__(
            [folder / name for name in names],
            torch.tensor(labels),
            [f"{variant} {label}" for label in range(TASKS[variant])],
            split,
            names=names,
            source=lists[split],
            validation=torch.arange(len(names)) >= len(parts[0]) if split == "train" else None,
        )


def _read_list(path: Path, num_classes: int) -> list[tuple[str, int]]:
    """Path below the list's folder and label of each of its images, of which there is at least one."""
    entries = _entries(path, num_classes)
    if not entries:
        raise DataError(f"{path}: an empty list; obtain it again")
    missing = [name for name, _ in entries if not (path.parent / name).is_file()]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(entries)} images are missing, first {path.parent / missing[0]}; {OBTAIN}"
        )
    return entries


def _entries(path: Path, num_classes: int) -> list[tuple[str, int]]:
    entries = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list ({reason_of(error)}); obtain it again") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not (label.isascii() and label.isdigit()) or int(label) >= num_classes:
            raise DataError(
                f"{path}:{number}: '{line[:80]}' is not 'path label' with a label from 0 to {num_classes - 1}"
            )
        entries.append((name, int(label)))
    return entries
