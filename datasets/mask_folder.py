"""One's own pictures with masks: a folder of each, a folder for each part in them, and the names of the classes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from pointadapterx.datasets.base import DATASETS
from pointadapterx.datasets.files import walk_files
from pointadapterx.datasets.image_masks import MaskedFiles, Pair, mask_beside
from pointadapterx.datasets.images import SUFFIXES
from pointadapterx.datasets.layouts import VAL_AS_TEST, part_of, parts_of_split
from pointadapterx.errors import DataError, reason_of

logger = logging.getLogger(__name__)

PICTURES, MASKS, CLASSES = "images", "masks", "classes.txt"


@DATASETS.register("mask_folder")
class MaskFolder(MaskedFiles):
    """``images/<part>/``, ``masks/<part>/`` with the same names and ``.png``, and ``classes.txt``.

    Parts are ``train``, ``test`` and, if you like, ``val``; without ``test``, ``val`` is the test split. In a mask k is
    the class of line k + 1 of ``classes.txt``, and 255 means unlabelled.
    """

    called = "mask_folder"
    layout = "images/{train,test}/, masks/{train,test}/*.png and classes.txt"

    @classmethod
    def classes_of(cls, folder: Path, variant: str | None) -> Sequence[str]:
        """Lines of ``classes.txt``."""
        path = folder / CLASSES
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except FileNotFoundError:
            raise DataError(f"{path}: is missing; write the names of the classes into it, one a line") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({reason_of(error)}); write one name a line, in UTF-8") from None
        while names and not names[-1]:
            names.pop()
        for number, name in enumerate(names, 1):
            if not name or name in names[: number - 1]:
                what = f"'{name}' a second time" if name else "no name"
                raise DataError(f"{path}: line {number} has {what}; give every class a name of its own")
        return names

    @classmethod
    def pairs(cls, split: str, folder: Path, variant: str | None) -> Iterator[Pair]:
        """Of files with the same place below the folder of their part."""
        parts: dict[str, Path] = {}
        for place in sorted((folder / PICTURES).glob("*")):
            part = part_of(place.name) if place.is_dir() else None
            if part in parts:
                raise DataError(f"{place}: {parts[part].name} is the part {part} as well; make them one folder")
            if part is not None:
                parts[part] = place
        numbers = range(len(cls.classes_of(folder, variant)))
        used = parts_of_split(split, parts)
        if used == ("val",):
            logger.warning("%s", VAL_AS_TEST.format(root=folder))
        for part in used:
            place = parts.get(part)
            for picture in sorted(walk_files(place)) if place is not None else ():
                if picture.suffix.lower() not in SUFFIXES:
                    continue
                name = picture.relative_to(place)
                mask = folder / MASKS / place.name / name.with_suffix(".png")
                yield Pair(
                    name.as_posix(),
                    picture,
                    mask_beside(picture, mask, numbers, (255,)),
                    None,
                    part == "val" and split == "train",
                )
