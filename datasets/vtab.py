"""VTAB-1K: 19 tasks of 1,000 labelled images each (Zhai et al., arXiv 1910.04867), as file lists beside images."""

from __future__ import annotations

from pathlib import Path

import torch

from pointadapterx.datasets.base import DATASETS, check_choice, check_split
from pointadapterx.datasets.files import require_files
from pointadapterx.datasets.images import Images
from pointadapterx.errors import ConfigError, DataError

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

LISTS = {"train": "train800val200.txt", "test": "test.txt"}
TUNING = {"train": "train800.txt", "test": "val200.txt"}
OBTAIN = (
    "The prepared VTAB-1K with its file lists is linked by the code of NOAH (https://github.com/ZhangYuanhan-AI/NOAH); "
    "unpack it and set data.root to the folder that holds one folder a task."
)


@DATASETS.register("vtab")
class Vtab(Images):
    """One of the 19 tasks: 1,000 images to train on, and its test set.

    ``data.variant`` is the task; ``<task>/tune`` is its 800 and 200 images for choosing hyperparameters, of which the
    200 stand where the test set is, so that the test set takes no part in it.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder with one folder a task, each with lists of ``path label`` lines; ``data/vtab-1k`` by default.
        variant: task, see above; required.

    Raises:
        ConfigError: for an unknown split or task.
        DataError: if a list or an image that it names is missing, or a line is not of that form.
    """

    variants = (*TASKS, *(f"{task}/tune" for task in TASKS))

    @classmethod
    def count_classes(cls, variant: str | None) -> int | None:
        """The task's."""
        return None if variant is None else TASKS.get(variant.partition("/")[0])

    def __init__(self, split: str, *, root: str | Path | None = None, variant: str | None = None) -> None:
        check_split(split)
        if variant is None:
            raise ConfigError(f"data.variant is required for data.name=vtab: the task, one of {', '.join(TASKS)}")
        check_choice(variant, self.variants, "data.variant of vtab")
        task, _, tune = variant.partition("/")
        folder = Path(root or "data/vtab-1k") / task
        lists = {part: folder / name for part, name in (TUNING if tune else LISTS).items()}
        require_files(f"VTAB-1K {task}", [lists[split]], list(lists.values()), OBTAIN)
        entries = list(_entries(lists[split], TASKS[task]))
        if not entries:
            raise DataError(f"{lists[split]}: an empty list; obtain it again")
        names = [name for name, _ in entries]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise DataError(
                f"{lists[split]}: {len(missing)} of {len(names)} images are missing, first {folder / missing[0]}; "
                f"{OBTAIN}"
            )
        super().__init__(
            [folder / name for name in names],
            torch.tensor([label for _, label in entries]),
            [f"{task} {label}" for label in range(TASKS[task])],
            split,
            names=names,
            source=[lists[split]],
        )


def _entries(path: Path, num_classes: int) -> list[tuple[str, int]]:
    entries = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list ({error}); obtain it again") from None
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
