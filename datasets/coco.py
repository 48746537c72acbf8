"""COCO's layout: pictures in a folder for each part, and their objects in a JSON file."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pointadapterx.datasets.base import DATASETS, check_split
from pointadapterx.datasets.files import state_of
from pointadapterx.datasets.layouts import NO_TEST
from pointadapterx.datasets.object_images import (
    Annotated,
    Doubts,
    ObjectImages,
    checked_box,
    is_finite,
    is_group,
    require_distinct,
    require_known,
    require_pictures,
    say_notes,
)
from pointadapterx.datasets.outlines import Instance
from pointadapterx.errors import ConfigError, DataError, reason_of, shown

PARTS = {
    "train": ("train", "train2017", "train2014"),
    "val": ("val", "valid", "validation", "val2017", "val2014", "minival"),
    "test": ("test", "test2017", "test2014"),
}
"""What folders and files of a part are called."""
PLACES = (
    *("annotations/instances_{}.json", "annotations/{}.json", "{}.json", "instances_{}.json"),
    *("{}/_annotations.coco.json", "{}/annotations.json", "{}/instances.json", "{}/coco.json"),
)
"""Where the objects of a part may be."""
FOLDERS = ("{}", "images/{}", "images", "")
"""Where its pictures may be."""
GROUPS = ("group", "scene", "room")
"""Keys of a picture whose number is that of its scene."""
INSTANCES = "_instance.png"  # beside a picture, where annotations give the number of each object in it


class Part(NamedTuple):
    """A part of the data.

    Attributes:
        annotations: JSON file.
        name: that the part has in it.
    """

    annotations: Path
    name: str


@DATASETS.register("coco")
class Coco(ObjectImages):
    """Any folder in COCO's layout, boxes with or without outlines.

    The training part is ``train.json`` or ``annotations/instances_train2017.json`` and the like, with its pictures in a
    folder of that name. A part ``val`` beside a part ``test`` is the published validation part; without ``test`` it is
    the test. Classes are the categories of the training part, in the order of their ids, which may have gaps. Crowds
    are not learnt, and are ignored in a test. Pictures without objects are kept.

    Outlines are polygons or run lengths; or numbers ``instance`` in ``NAME_instance.png`` beside ``NAME.jpg``. Pictures
    with one number ``group``, ``scene`` or ``room`` stay on one side of a validation split.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder.
        variant: not supported here; a name is an error.

    Raises:
        ConfigError: for an unknown split, a variant, or a missing root.
        DataError: if files are missing or damaged, or hold what cannot be meant.
    """

    @classmethod
    def objects_in(cls, root: str | Path | None) -> list[str]:
        """Names of the categories of the training part."""
        return list(_categories(_read(_parts(_required(root))["train"].annotations), Doubts()).values())

    @classmethod
    def examined(cls, root: str | Path | None) -> Iterator[tuple[str, list[Annotated], Doubts]]:
        """Each part."""
        parts, classes = _parts(_required(root)), None
        for name, part in parts.items():
            doubts = Doubts(collect=True)
            content = _read(part.annotations)
            found = list(_categories(content, doubts).values())
            classes = found if classes is None else classes
            pictures = list(_pictures(part, content, doubts))
            require_known(pictures, classes, str(part.annotations), doubts)
            if name == "test" and part.name in PARTS["val"]:
                doubts.note(NO_TEST, str(root))
            yield name, require_pictures(pictures, str(part.annotations), doubts), doubts

    def __init__(self, split: str, *, root: str | Path | None = None, variant: str | None = None) -> None:
        check_split(split)
        if variant is not None:
            raise ConfigError(f"data.variant '{variant}': coco has no variants; remove data.variant")
        parts = _parts(_required(root))
        doubts = Doubts()
        categories = _categories(_read(parts["train"].annotations), doubts)
        classes = list(categories.values())
        wanted = [parts[name] for name in ("train", "val") if name in parts] if split == "train" else [parts["test"]]
        found = [_checked(part, classes, doubts) for part in wanted]
        pictures = [one for part in found for one in part]
        if split == "test" and parts["test"].name in PARTS["val"]:
            doubts.note(NO_TEST, str(root))
        say_notes(doubts)
        if not any(one.labels for one in found[0]):
            raise DataError(f"{wanted[0].annotations}: holds no object; add annotations")
        numbers = categories
        if split == "test":
            numbers = _categories(_read(parts["test"].annotations), doubts)
        published = torch.arange(len(pictures)) >= len(found[0]) if len(found) > 1 else None
        super().__init__(
            pictures,
            classes,
            split,
            category_numbers=_numbers(classes, numbers),
            source=[part.annotations for part in wanted],
            validation=published,
        )


def _required(root: str | Path | None) -> Path:
    if root is None:
        raise ConfigError("data.root is required for data.name=coco: a folder with train.json and train/, or the like")
    return Path(root)


def _parts(root: Path) -> dict[str, Part]:
    """Training, validation (where a test part is there too) and test part.

    Raises:
        DataError: if training or test is not there.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; set data.root to one with COCO's annotations")
    found: dict[str, Part] = {}
    for kind, names in PARTS.items():
        places = ((root / place.format(name), name) for name in names for place in PLACES)
        there = {path.resolve(): Part(path, name) for path, name in places if path.is_file()}
        if len(there) > 1:
            first, second, *_ = (one.annotations.relative_to(root) for one in there.values())
            raise DataError(f"{root}: the part {kind} is both {first} and {second}; keep one of them there")
        found.update((kind, part) for part in there.values())
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    for kind in ("train", "test"):
        if kind not in found:
            names = f"{kind}.json, annotations/instances_{kind}.json or {kind}/_annotations.coco.json"
            other = " (or the same of val)" if kind == "test" else ""
            raise DataError(f"{root}: no annotations of the part {kind}: {names}{other} is needed")
    return {kind: found[kind] for kind in ("train", "val", "test") if kind in found}


def _read(path: Path) -> Mapping[str, Any]:
    """The content of a JSON file, with lists of mappings as COCO has them."""
    return _parsed(path, state_of(path))


@lru_cache(maxsize=3)
def _parsed(path: Path, state: tuple[int, int]) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable JSON ({reason_of(error)}); obtain it again") from None
    for key in ("images", "annotations", "categories"):
        lists = content.get(key) if isinstance(content, dict) else None
        if not isinstance(lists, list) or not all(isinstance(one, dict) for one in lists):
            raise DataError(f"{path}: has no list '{key}' of objects, so it is not in COCO's form of detection")
    return content


def _categories(content: Mapping[str, Any], doubts: Doubts, where: str = "categories") -> dict[int, str]:
    """Names of the categories by id, in the order of the ids."""
    found: dict[int, str] = {}
    for one in content["categories"]:
        number, name = one.get("id"), one.get("name")
        if not isinstance(number, int) or not isinstance(name, str) or not name:
            doubts.wrong(f"{where}: category {shown(one)} needs an id and a name")
        elif number in found:
            doubts.wrong(f"{where}: two categories have the id {number} ({found[number]}, {name})")
        else:
            found[number] = name
    require_distinct(list(found.values()), "names of categories", where, doubts)
    return dict(sorted(found.items()))


def _numbers(classes: Sequence[str], categories: Mapping[int, str]) -> list[int]:
    """Ids that a file has for the classes; of those that it does not have, ids that are free."""
    known, free = {name: number for number, name in categories.items()}, count(max(categories, default=0) + 1)
    return [known[name] if name in known else next(free) for name in classes]


def _checked(part: Part, classes: Sequence[str], doubts: Doubts) -> list[Annotated]:
    """The pictures of a part."""
    pictures = list(_pictures(part, _read(part.annotations), doubts))
    require_known(pictures, classes, str(part.annotations), doubts)
    if not pictures:
        raise DataError(f"{part.annotations}: holds no picture; add some")
    return require_pictures(pictures, str(part.annotations), doubts)


def _pictures(part: Part, content: Mapping[str, Any], doubts: Doubts) -> Iterator[Annotated]:
    path = part.annotations
    categories = _categories(content, doubts, str(path))
    images = [one for one in content["images"] if _is_image(one, path, doubts)]
    require_distinct([one["id"] for one in images], "pictures of the id", str(path), doubts)
    require_distinct([one["file_name"] for one in images], "pictures of the file", str(path), doubts)
    known = {one["id"] for one in images}
    annotations = content["annotations"]
    require_distinct(
        [one["id"] for one in annotations if isinstance(one.get("id"), int)], "objects of the id", str(path), doubts
    )
    of_image: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for number, one in enumerate(annotations):
        where = f"{path}: object {one.get('id', number)}"
        if not isinstance(one.get("image_id"), int | str) or one["image_id"] not in known:
            doubts.wrong(f"{where} belongs to the picture {shown(one.get('image_id'))}, which is not listed")
        elif not isinstance(one.get("category_id"), int) or one["category_id"] not in categories:
            doubts.wrong(f"{where} has the category {shown(one.get('category_id'))}, which is not listed")
        else:
            of_image[one["image_id"]].append(one)
    folder = _folder(part, images)
    for image in images:
        yield _annotated(image, of_image[image["id"]], categories, folder, path, doubts)


def _is_image(one: Mapping[str, Any], path: Path, doubts: Doubts) -> bool:
    sides = one.get("width"), one.get("height")
    if not isinstance(one.get("id"), int | str) or not isinstance(one.get("file_name"), str):
        doubts.wrong(f"{path}: picture {shown(dict(one))} needs an id and a file_name")
        return False
    if not all(isinstance(side, int) and 0 < side < 2**20 for side in sides):
        doubts.wrong(f"{path}: picture {one['file_name']} needs width and height in pixels, not {shown(list(sides))}")
        return False
    return True


def _folder(part: Part, images: Sequence[Mapping[str, Any]]) -> Path:
    """Where the first picture is, or else where it should be."""
    root = part.annotations.parent
    roots = [root, root.parent] if root.name in ("annotations", part.name) else [root]
    places = [base / place.format(part.name) for base in roots for place in FOLDERS]
    places.append(root)
    first = images[0]["file_name"] if images else ""
    fitting = (place for place in places if (place / first).is_file())
    return next(fitting, next((place for place in places if place.is_dir()), places[0]))


def _annotated(
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    categories: Mapping[int, str],
    folder: Path,
    path: Path,
    doubts: Doubts,
) -> Annotated:
    file, size = folder / image["file_name"], (image["width"], image["height"])
    found = Annotated(file, image["file_name"], size, [], [], [], [], [], image["id"], _group(image))
    for number, one in enumerate(annotations):
        where = f"{path}: object {one.get('id', number)} of {image['file_name']}"
        box = one.get("bbox")
        if not isinstance(box, list) or len(box) != 4:
            doubts.wrong(f"{where}: needs a bbox [left, top, width, height], not {shown(box)}")
            continue
        numbers = all(map(is_finite, box))
        edges = checked_box([*box[:2], box[0] + box[2], box[1] + box[3]] if numbers else box, size, where, doubts)
        if edges is None:
            continue
        found.boxes.append(edges)
        found.labels.append(categories[one["category_id"]])
        found.ignored.append(bool(one.get("iscrowd", 0)))
        found.outlines.append(_outline(one, file))
        area = one.get("area")
        found.areas.append(float(area) if is_finite(area) and area >= 0 else math.nan)
    return found


def _group(image: Mapping[str, Any]) -> int | None:
    found = [image[key] for key in GROUPS if is_group(image.get(key))]
    return found[0] if found else None


def _outline(one: Mapping[str, Any], file: Path) -> Any:
    """What is said of the shape of an object; None: nothing."""
    if one.get("segmentation"):
        return one["segmentation"]
    if isinstance(one.get("instance"), int):
        beside = file.with_name(f"{file.stem}{INSTANCES}")
        return Instance(beside, one["instance"]) if beside.is_file() else None
    return None
