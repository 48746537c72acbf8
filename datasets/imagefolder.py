"""One's own pictures: a folder for each split, in it a folder for each class; or a table of files."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from pointadapterx.datasets.base import DATASETS, check_split
from pointadapterx.datasets.files import walk_files
from pointadapterx.datasets.images import SUFFIXES, Images
from pointadapterx.datasets.listings import TABLE_SUFFIX, class_folders, count_table_classes, list_table
from pointadapterx.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


@DATASETS.register("imagefolder")
class ImageFolder(Images):
    """``root/{train,test}/<class>/...``, searched with everything below, except what begins with a dot.

    Classes are the folders of the training split in sorted order. Images may have any size; they are decoded when they
    are needed. ``names`` are the paths below the split's folder.

    Or a CSV file with the columns ``file``, ``label``, ``split`` and perhaps ``group``, as :class:`Folder
    <pointadapterx.datasets.folder.Folder>` has it: pictures of a group stay on one side of a validation split. Then
    ``names`` are the paths in the table.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder with ``train`` and ``test``, or the table.
        variant: not supported here; a name is an error.

    Raises:
        ConfigError: for an unknown split, a variant, or a missing root.
        DataError: if there is no image, a class has none in training, or a test class is none of training's.
    """

    @classmethod
    def classes_in(cls, root: str | Path | None) -> int:
        """Number of class folders in the training part, or of classes in its lines of the table."""
        base = _required(root)
        return count_table_classes(base) if _is_table(base) else len(class_folders(base, "train"))

    def __init__(self, split: str, *, root: str | Path | None = None, variant: str | None = None) -> None:
        check_split(split)
        if variant is not None:
            raise ConfigError(f"data.variant '{variant}': imagefolder has no variants; remove data.variant")
        base = _required(root)
        if _is_table(base):
            listing = list_table(base, split)
            files = [listing.root / name for name in listing.names]
            unread = [path for path in files if path.suffix.lower() not in SUFFIXES]
            if unread:
                raise DataError(f"{base}: {unread[0].name} is no image ({', '.join(SUFFIXES)}); remove its line")
            super().__init__(
                files,
                listing.labels,
                listing.classes,
                split,
                names=listing.names,
                groups=listing.groups,
                source=[base],
            )
            return
        classes, folder = class_folders(base, split), base / split
        found = [(path, label) for label, name in enumerate(classes) for path in _images(folder / name)]
        empty = sorted(set(classes) - {classes[label] for _, label in found})
        if not found or (split == "train" and empty):
            where = ", ".join(empty[:5]) or "it"
            raise DataError(f"{folder}: no images ({', '.join(SUFFIXES)}) in {where}")
        super().__init__(
            [path for path, _ in found],
            torch.tensor([label for _, label in found]),
            classes,
            split,
            names=[path.relative_to(folder).as_posix() for path, _ in found],
            source=[folder],
        )


def _required(root: str | Path | None) -> Path:
    if root is None:
        raise ConfigError("data.root is required for data.name=imagefolder: a folder with train/ and test/ in it")
    return Path(root)


def _is_table(root: Path) -> bool:
    return root.suffix.lower() == TABLE_SUFFIX and not root.is_dir()


def _images(folder: Path) -> list[Path]:
    files = list(walk_files(folder)) if folder.is_dir() else []
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if len(images) < len(files):
        logger.info("%s: %d files of other kinds are left out", folder, len(files) - len(images))
    return sorted(images)
