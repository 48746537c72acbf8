"""VOC's layout: an XML file for each picture with its boxes, and lists of the pictures of each part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from pointadapterx.datasets.base import DATASETS, check_split
from pointadapterx.datasets.images import SUFFIXES
from pointadapterx.datasets.layouts import NO_TEST
from pointadapterx.datasets.object_images import (
    Annotated,
    Doubts,
    ObjectImages,
    checked_box,
    require_distinct,
    require_known,
    require_pictures,
    say_notes,
)
from pointadapterx.errors import ConfigError, DataError, reason_of, shown

EMBEDDED = Path(__file__).parent / "embedded" / "blood"
LISTS = "ImageSets/Main"
EDGES = ("xmin", "ymin", "xmax", "ymax")


@DATASETS.register("voc")
class Voc(ObjectImages):
    """A folder in the layout of Pascal VOC: ``Annotations/*.xml``, ``ImageSets/Main/*.txt``, ``JPEGImages``.

    The training part is ``train.txt``, or ``trainval.txt`` where that is all; ``val.txt`` beside ``test.txt`` is the
    published validation part, and without ``test.txt`` it is the test, whose pictures are left out of ``trainval.txt``.
    Classes are those of the training part by name. Boxes that are marked as difficult are not learnt, and are ignored
    in a test. Coordinates count pixels from 1, as VOC's do.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder, or one that holds it, such as ``VOCdevkit``; the shipped photographs of blood cells by default.
        variant: not supported here; a name is an error.

    Raises:
        ConfigError: for an unknown split or a variant.
        DataError: if files are missing or damaged, or hold what cannot be meant.
    """

    @classmethod
    def objects_in(cls, root: str | Path | None) -> list[str]:
        """Names of the classes of the training part."""
        folder = _folder(root)
        part = _parts(folder)["train"]
        return _classes(_pictures(folder, part, Doubts()))

    @classmethod
    def examined(cls, root: str | Path | None) -> Iterator[tuple[str, list[Annotated], Doubts]]:
        """Each part."""
        folder, classes = _folder(root), None
        for name, part in _parts(folder).items():
            doubts = Doubts(collect=True)
            pictures = list(_pictures(folder, part, doubts))
            classes = _classes(pictures) if classes is None else classes
            require_known(pictures, classes, str(part), doubts)
            if name == "test" and part.stem == "val":
                doubts.note(NO_TEST, str(folder))
            yield name, require_pictures(pictures, str(part), doubts), doubts

    def __init__(self, split: str, *, root: str | Path | None = None, variant: str | None = None) -> None:
        check_split(split)
        if variant is not None:
            raise ConfigError(f"data.variant '{variant}': voc has no variants; set data.root to the folder of one year")
        folder, doubts = _folder(root), Doubts()
        parts = _parts(folder)
        wanted = [parts[name] for name in ("train", "val") if name in parts] if split == "train" else [parts["test"]]
        _require_apart(folder, parts)
        found = [list(_pictures(folder, part, doubts)) for part in wanted]
        classes = _classes(found[0]) if split == "train" else self.objects_in(root)
        pictures = [one for part in found for one in part]
        for part, own in zip(wanted, found, strict=True):
            require_known(own, classes, str(part), doubts)
            require_pictures(own, str(part), doubts)
        if split == "test" and parts["test"].stem == "val":
            doubts.note(NO_TEST, str(folder))
        say_notes(doubts)
        if not any(one.labels for one in found[0]):
            raise DataError(f"{wanted[0]}: its pictures hold no object; add annotations")
        published = torch.arange(len(pictures)) >= len(found[0]) if len(found) > 1 else None
        super().__init__(pictures, classes, split, source=wanted, validation=published)


def _folder(root: str | Path | None) -> Path:
    """The folder of the layout, which may lie alone in the given one.

    Raises:
        DataError: if it is not there.
    """
    base = EMBEDDED if root is None else Path(root)
    within = [base, *sorted(base.glob("VOC*")), *sorted(base.glob("*/VOC*"))]
    found = [folder for folder in within if (folder / "Annotations").is_dir() and (folder / LISTS).is_dir()]
    if not found:
        raise DataError(
            f"{base}: no folder with Annotations, {LISTS} and JPEGImages; set data.root to one in VOC's layout"
        )
    if len(found) > 1 and found[0] != base:
        raise DataError(f"{base}: holds {', '.join(folder.name for folder in found)}; set data.root to one of them")
    return found[0]


def _parts(folder: Path) -> dict[str, Path]:
    """Lists of training, validation (where a test part is there too) and test part.

    Raises:
        DataError: if training or test is not there.
    """
    lists = {name: folder / LISTS / f"{name}.txt" for name in ("train", "trainval", "val", "test")}
    there = {name: path for name, path in lists.items() if path.is_file()}
    train = there.get("train", there.get("trainval"))
    test = there.get("test", there.get("val"))
    if train is None or test is None:
        lacking = "train.txt or trainval.txt" if train is None else "test.txt or val.txt"
        raise DataError(f"{folder / LISTS}: {lacking} is missing, which lists the pictures of a part")
    own = {"val": there["val"]} if {"train", "val", "test"} <= there.keys() else {}
    return {"train": train, **own, "test": test}


def _classes(pictures: Iterator[Annotated] | Sequence[Annotated]) -> list[str]:
    return sorted({name for one in pictures for name in one.labels})


def _require_apart(folder: Path, parts: Mapping[str, Path]) -> None:
    """Raises a DataError for a picture in two lists."""
    found: dict[str, Path] = {}
    for part in parts.values():
        names = _names(folder, part, Doubts())
        if twice := next((name for name in names if name in found), None):
            raise DataError(f"{part}: lists {twice}, and so does {found[twice].name}; leave it in one of them")
        found.update(dict.fromkeys(names, part))


def _name(folder: Path, line: str) -> str:
    """The picture of a line, which may say whether a class is in it behind the name, as VOC's lists of classes do."""
    first, *further = line.split()
    whole = line.strip()
    return whole if further and (folder / "Annotations" / f"{whole}.xml").is_file() else first


def _names(folder: Path, part: Path, doubts: Doubts) -> list[str]:
    """The pictures of a list by name."""
    try:
        lines = part.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{part}: not a readable list ({reason_of(error)}); obtain it again") from None
    names = [_name(folder, line) for line in lines if line.strip()]
    if part.stem == "trainval" and _parts(folder)["test"].stem == "val":  # which is in it
        held = set(_names(folder, part.with_stem("val"), Doubts()))
        names = [name for name in names if name not in held]
    if not names:
        raise DataError(f"{part}: an empty list; add names of pictures without suffix")
    require_distinct(names, "lines", str(part), doubts)
    return names


def _pictures(folder: Path, part: Path, doubts: Doubts) -> Iterator[Annotated]:
    """The pictures of a list."""
    for name in _names(folder, part, doubts):
        found = _annotated(folder, name, part, doubts)
        if found is not None:
            yield found


def _annotated(folder: Path, name: str, part: Path, doubts: Doubts) -> Annotated | None:
    path = folder / "Annotations" / f"{name}.xml"
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        doubts.wrong(f"{path}: is missing, but {part} lists {name}")
        return None
    except (OSError, ElementTree.ParseError, ValueError) as error:
        doubts.wrong(f"{path}: not readable XML ({reason_of(error)}); obtain it again")
        return None
    size = _number(root.find("size/width")), _number(root.find("size/height"))
    if not all(side is not None and 0 < side < 2**20 and side == int(side) for side in size):
        doubts.wrong(f"{path}: needs size/width and size/height in pixels")
        return None
    width, height = int(size[0] or 0), int(size[1] or 0)
    found = Annotated(_picture(folder, name, root), name, (width, height), [], [], [], [], [], name)
    for number, element in enumerate(root.iter("object"), 1):
        _add_object(found, element, f"{path}: object {number}", doubts)
    return found


def _picture(folder: Path, name: str, root: ElementTree.Element) -> Path:
    """The file of a picture: of the name that is listed, or else of the one that the XML says."""
    named = folder / "JPEGImages" / f"{name}.jpg"
    if named.is_file():
        return named
    others = (folder / "JPEGImages" / f"{name}{suffix}" for suffix in SUFFIXES)
    said = root.findtext("filename")
    given = [folder / "JPEGImages" / Path(said).name] if said else []
    return next((path for path in (*others, *given) if path.is_file()), named)


def _add_object(picture: Annotated, element: ElementTree.Element, where: str, doubts: Doubts) -> None:
    name = (element.findtext("name") or "").strip()
    if not name:
        doubts.wrong(f"{where} has no name")
        return
    edges: list[Any] = [_number(element.find(f"bndbox/{edge}")) for edge in EDGES]
    if None in edges:
        said = [element.findtext(f"bndbox/{edge}") for edge in EDGES]
        doubts.wrong(f"{where} ({name}): bndbox needs {', '.join(EDGES)}, not {shown(said)}")
        return
    left, top, right, bottom = edges
    first = max(0.0, left - 1), max(0.0, top - 1)  # of files that count from 0, too
    if right < left or bottom < top:
        first = left, top  # to be refused with the numbers of the file
    box = checked_box([*first, right, bottom], picture.size, f"{where} ({name})", doubts)
    if box is None:
        return
    picture.boxes.append(box)
    picture.labels.append(name)
    picture.ignored.append((element.findtext("difficult") or "0").strip() == "1")
    picture.outlines.append(None)
    picture.areas.append(math.nan)


def _number(element: ElementTree.Element | None) -> float | None:
    try:
        number = float((element.text if element is not None else None) or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
