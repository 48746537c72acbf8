"""Finds the split and class of files by the names of their folders, for training and the doctor alike."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from pointadapterx.datasets.files import walk_files
from pointadapterx.datasets.point_files import KINDS
from pointadapterx.errors import DataError
from pointadapterx.hashing import derive_seed

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
HELD_OUT = 0.2  # of each class, where the files have no test split
NO_TEST = "no test split, val is taken for it"
VAL_AS_TEST = f"{{root}}: {NO_TEST}"
SHOWN = 5  # folders that a message lists
HELD_OUT_SEED = 0  # that of every run, so that all of them are tested on the same samples


def part_of(name: str) -> str | None:
    """``"train"``, ``"val"`` or ``"test"``, whatever the case and ending of its name; None for another name."""
    return PARTS.get(name.lower())


def parts_of_split(split: str, found: Collection[str]) -> tuple[str, ...]:
    """The parts that make a split: a validation part belongs to training, or is the test where no other is.

    Args:
        split: ``"train"`` or ``"test"``.
        found: of ``"train"``, ``"val"`` and ``"test"``, what is there.

    Returns:
        Nothing where the test split has to be cut from that of training, by :func:`hold_out`.
    """
    if split == "train":
        return ("train", "val") if {"val", "test"} <= set(found) else ("train",)
    return next(((part,) for part in ("test", "val") if part in found), ())


def hold_out(labels: Sequence[Hashable], keys: Sequence[str], units: Sequence[Hashable] | None = None) -> np.ndarray:
    """A test part where the files have none: about 20 % of each class, the same in every run.

    Every draw depends on names alone, so most samples keep their side when others are added.

    Args:
        labels: n classes.
        keys: n names, all different.
        units: n objects; samples of one object are on one side. Each sample is of its own by default.

    Returns:
        ``(n,)`` bool, the samples held out: none of a class that has a single sample or object, else at least one.

    Raises:
        DataError: if no class has two.
    """
    units = list(keys) if units is None else units
    members: dict[Hashable, list[int]] = {}
    for index in sorted(range(len(keys)), key=lambda index: derive_seed(HELD_OUT_SEED, "held out", keys[index])):
        members.setdefault(units[index], []).append(index)
    total, held = _counts(labels, range(len(labels))), dict.fromkeys(labels, 0)
    chosen = np.zeros(len(labels), dtype=bool)

    def take(unit: list[int], most: dict[Hashable, int]) -> None:
        of_unit = _counts(labels, unit)
        if not chosen[unit[0]] and all(held[label] + count <= most[label] for label, count in of_unit.items()):
            chosen[unit] = True
            for label, count in of_unit.items():
                held[label] += count

    wanted = {label: max(1, round(HELD_OUT * count)) for label, count in total.items()}
    for unit in members.values():
        take(unit, {label: min(wanted[label], total[label] - 1) for label in total})
    for unit in sorted(members.values(), key=len):  # classes of few, large objects
        if any(held[labels[index]] == 0 for index in unit):
            take(unit, {label: total[label] - 1 for label in total})
    if not chosen.any():
        raise DataError("no test split, and none can be held out, as no class has two samples or objects; add some")
    return chosen


def _counts(labels: Sequence[Hashable], indices: Collection[int]) -> dict[Hashable, int]:
    counts: dict[Hashable, int] = {}
    for index in indices:
        counts[labels[index]] = counts.get(labels[index], 0) + 1
    return counts


def held_out_text(where: Path, held_out: np.ndarray) -> str:
    """The message about held-out samples, on which a result depends."""
    return (
        f"{where}: no test split: {100 * HELD_OUT:.0f} % of each class, {held_out.sum()} of {len(held_out)} clouds, "
        "are held out for the test, the same in every run"
    )


class Layout(NamedTuple):
    """How the folders below ``root`` divide its files.

    Attributes:
        root: the folder.
        kind: ``"parts"``: ``<part>/<class>/...``; ``"classes"``: ``<class>/...``; ``"parts of classes"``:
            ``<class>/<part>/...``; ``"plain"``: no labels.
        parts: what is there of ``"train"``, ``"val"`` and ``"test"``, and of ``<part>/<class>`` its folder's name.
        classes: those of training, sorted.
        why: of ``"plain"``, why there are no labels.
    """

    root: Path
    kind: Literal["parts", "classes", "parts of classes", "plain"]
    parts: Mapping[str, str]
    classes: list[str]
    why: str = ""

    def place(self, name: str) -> tuple[str, str | None] | None:
        """Part (``""``: of none) and class of a file by its path below the root; None if it lies elsewhere."""
        names = name.split("/")
        if self.kind == "plain":
            return "", None
        if self.kind == "parts":
            part = next((part for part, folder in self.parts.items() if folder == names[0]), None)
            return None if part is None else (part, names[1] if len(names) > 2 else None)
        label = names[0] if len(names) > 1 else None
        part = part_of(names[1]) if self.kind == "parts of classes" and len(names) > 2 else None
        return part or "", label


def find_layout(root: Path) -> Layout:
    """What the folders below ``root`` mean.

    Raises:
        DataError: if they can be taken in two ways.
    """
    folders = subfolders(root)
    parts = {name: part for name in folders if (part := part_of(name))}
    divided = [name for name in parts if subfolders(root / name)]
    if divided:
        return _by_parts(root, parts, divided, folders)
    classes = [name for name in folders if holds_clouds(root / name)]
    if len(classes) < 2:
        why = f"{classes[0]}/ is its only folder of clouds" if classes else "none of its folders holds clouds"
        return Layout(root, "plain", {}, [], why)
    of_parts = [name for name in classes if name in parts]
    if len(of_parts) > 1:
        others = [name for name in classes if name not in parts]
        if others:
            raise DataError(
                f"{root}: {_and(of_parts)} hold no folders of classes, and beside them is {_and(others[:SHOWN])}: they "
                "can be splits or classes; move what is no class away, or files of the splits into folders of classes"
            )
        return Layout(root, "plain", {}, [], f"{_and(of_parts)} hold no folders of classes")
    inner = {name: _parts_in(root / name) for name in classes}
    without = [name for name, found in inner.items() if not found]
    if len(without) == len(classes):
        return Layout(root, "classes", {}, classes)
    if without:
        some = next(name for name, found in inner.items() if found)
        raise DataError(
            f"{root}: {some}/ is divided into {_and(list(inner[some].values()))}, but {without[0]}/ is not; divide all "
            "classes, or rename those folders"
        )
    found = {part: part for names in inner.values() for part in names}
    if "train" not in found:
        raise DataError(f"{root}: its classes are divided into {_and(list(found))}, but none has train/; add it")
    return Layout(root, "parts of classes", found, classes)


def _by_parts(root: Path, parts: Mapping[str, str], divided: Sequence[str], folders: Sequence[str]) -> Layout:
    found = _unique(root, parts)
    if "train" not in found or found["train"] not in divided:
        what = f"{found['train']}/ has none" if "train" in found else "there is no train/"
        raise DataError(f"{root}: {_and(divided)} has folders of classes, but {what}; put those of training into it")
    others = [name for name in folders if name not in parts and len(parts) == 1 and holds_clouds(root / name)]
    if others:
        raise DataError(
            f"{root}: {found['train']}/ can be the training split, or a class beside {_and(others[:SHOWN])}; move what "
            "is no class away, or rename that class"
        )
    return Layout(root, "parts", found, subfolders(root / found["train"]))


def _parts_in(folder: Path) -> dict[str, str]:
    return _unique(folder, {name: part for name in subfolders(folder) if (part := part_of(name))})


def _unique(root: Path, parts: Mapping[str, str]) -> dict[str, str]:
    """Folder by part.

    Raises:
        DataError: if two are the same part.
    """
    found: dict[str, str] = {}
    for name, part in parts.items():
        if part in found:
            raise DataError(f"{root}: {found[part]}/ and {name}/ can each be the split {part}; keep one")
        found[part] = name
    return found


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in one, sorted, but those that begin with a dot."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def holds_clouds(folder: Path) -> bool:
    """Whether there is a point file or mesh in a folder or below."""
    return any(path.suffix.lower()[1:] in KINDS for path in walk_files(folder))


def _and(names: Sequence[str]) -> str:
    *first, last = (f"{name}/" for name in names)
    return f"{', '.join(first)} and {last}" if first else last
