"""Pictures beside their masks, with a JSON file in COCO's form for each part: renderings of rooms, for instance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pointadapterx.datasets.base import DATASETS
from pointadapterx.datasets.image_masks import MaskedFiles, Pair, mask_beside
from pointadapterx.datasets.object_images import is_group
from pointadapterx.errors import DataError, reason_of, shown


@DATASETS.register("views")
class Views(MaskedFiles):
    """``<part>.json``, ``<part>/<name>.png`` (or ``.jpg``) and ``<part>/<name>_label.png`` for the parts ``train`` and
    ``test``, as ``pointadapterx data build views`` makes them.

    In a mask a number is the ``id`` of a category of ``train.json``, and 255 means unlabelled. Pictures of one ``room``
    stay on one side of a validation split.
    """

    called = "views"
    layout = (
        "train.json, test.json, {train,test}/NAME.png and NAME_label.png (pointadapterx data build views makes one)"
    )
    default_root = "data/views"

    @classmethod
    def classes_of(cls, folder: Path, variant: str | None) -> Sequence[str]:
        """Names of the categories."""
        return list(_categories(folder))

    @classmethod
    def pairs(cls, split: str, folder: Path, variant: str | None) -> Iterator[Pair]:
        """Of the pictures that the part's JSON file lists."""
        path = folder / f"{split}.json"
        numbers = tuple(_categories(folder).values())
        images = _entries(path, "images")
        for image in images:
            name, room = image.get("file_name"), image.get("room")
            if not isinstance(name, str) or not (room is None or is_group(room)):
                raise DataError(
                    f"{path}: an image has file_name {shown(name)}, room {shown(room)}; expected text and a number"
                )
            picture = folder / split / name
            mask = mask_beside(picture, picture.with_name(f"{picture.stem}_label.png"), numbers, (255,))
            yield Pair(name, picture, mask, room)


def _categories(folder: Path) -> dict[str, int]:
    """Names of the classes and their numbers in masks."""
    path = folder / "train.json"
    found: dict[str, int] = {}
    for entry in _entries(path, "categories"):
        name, number = entry.get("name"), entry.get("id")
        proper = isinstance(name, str) and isinstance(number, int) and 0 <= number < 255
        if not proper or name in found or number in found.values():
            raise DataError(
                f"{path}: a category has name {shown(name)} and id {shown(number)}; expected a name and a number from "
                "0 to 254 of its own"
            )
        found[name] = number
    return found


def _entries(path: Path, key: str) -> list[dict[str, Any]]:
    """A list of a JSON file in COCO's form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: is missing; it lists the pictures and categories in COCO's form") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of(error)}); write it again, in COCO's form") from None
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DataError(f"{path}: has no list '{key}'; write it again, in COCO's form")
    return found
