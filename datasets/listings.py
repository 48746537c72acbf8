"""Finds the classes of the user's own files: by folders, or by a table."""

from __future__ import annotations

import csv
import logging
import posixpath
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pointadapterx.datasets.base import SPLITS
from pointadapterx.datasets.files import walk_files
from pointadapterx.datasets.layouts import VAL_AS_TEST, Layout, held_out_text, hold_out, parts_of_split, subfolders
from pointadapterx.datasets.point_files import KINDS
from pointadapterx.errors import DataError, reason_of

logger = logging.getLogger(__name__)

TABLE_SUFFIX = ".csv"
CACHE_SUFFIX = ".cache"  # of no point file: the cache lies in the folder that is searched
COLUMNS = ("file", "label", "split", "group")


class Listing(NamedTuple):
    """Files of one split.

    Attributes:
        root: what names are relative to.
        names: paths below ``root``, with ``/``.
        labels: (n,) int64, indices into ``classes``.
        classes: of the training split, sorted.
        groups: (n,) int64, files of one object share a number; None where nobody says.
        validation: (n,) bool, the files of a validation part; None without one.
        label: what tells its cache from that of the other split in the same folder.
        said: what the user has to know of it.
    """

    root: Path
    names: list[str]
    labels: torch.Tensor
    classes: list[str]
    groups: torch.Tensor | None
    validation: torch.Tensor | None = None
    label: str = ""
    said: str = ""


def class_folders(root: Path, split: str) -> list[str]:
    """Classes, which are the folders of the training split in sorted order; those of ``split`` are among them.

    Args:
        root: folder with one for each split.
        split: ``"train"`` or ``"test"``.

    Raises:
        DataError: if a folder is missing, there are fewer than two classes, or one that training does not have.
    """
    for part in SPLITS:
        if not (root / part).is_dir():
            raise DataError(f"{root / part}: no such folder; files lie in {root}/{{train,test}}/<class>/")
    classes = subfolders(root / "train")
    if len(classes) < 2:
        raise DataError(f"{root / 'train'}: {len(classes)} folders of classes; at least 2 are needed")
    strange = sorted(set(subfolders(root / split)) - set(classes))
    if strange:
        raise DataError(
            f"{root / split}: {', '.join(strange[:5])} are no classes of {root / 'train'}; remove or rename them"
        )
    return classes


def list_layout(layout: Layout, split: str, suffixes: Collection[str]) -> Listing:
    """Files of a split by their folders.

    Args:
        layout: with labels.
        split: ``"train"`` or ``"test"``.
        suffixes: kinds of files to read.

    Raises:
        DataError: if there are fewer than two classes, or one that training does not have or has no file of; for a file
            in no folder of a class, or of no part; or if a test split has to be cut but cannot be.
    """
    used = parts_of_split(split, layout.parts) if layout.parts else ()
    folders = [layout.parts[part] for part in used or ("train",)] if layout.kind == "parts" else []
    if layout.kind == "parts" and len(layout.classes) < 2:
        number = len(layout.classes)
        raise DataError(f"{layout.root / layout.parts['train']}: {number} folders of classes; at least 2 are needed")
    root = layout.root / folders[0] if len(folders) == 1 else layout.root
    names, found = list[str](), list[tuple[str, str | None]]()
    for folder in folders or [""]:
        for name in find_clouds(layout.root / folder, suffixes, quiet=not folder and split != "train"):
            below = f"{folder}/{name}" if folder else name
            part, label = layout.place(below) or ("", None)
            if label is None:
                raise DataError(
                    f"{layout.root / below}: lies in no folder of a class; move it into one, remove it, or leave "
                    "out its kind with data.suffixes"
                )
            if layout.kind == "parts of classes" and not part:
                raise DataError(f"{layout.root / below}: lies in no folder of a split; move it into one, or remove it")
            if not layout.parts or part in (used or ("train",)):
                names.append(name if len(folders) == 1 else below)
                found.append((part, label))
    labels = [str(label) for _, label in found]
    _check_labels(root, labels, layout, complete=split == "train" or not used)
    listing = Listing(
        root,
        names,
        torch.tensor([layout.classes.index(label) for label in labels]),
        layout.classes,
        None,
        validation=torch.tensor([part == "val" for part, _ in found]) if len(used) > 1 else None,
        label="" if len(folders) == 1 and used else f"{split}-",
        said=VAL_AS_TEST.format(root=layout.root) if used == ("val",) else "",
    )
    return listing if parts_of_split("test", layout.parts) else _held_out(listing, split, layout.root)


def _check_labels(root: Path, labels: Sequence[str], layout: Layout, *, complete: bool) -> None:
    strange = sorted(set(labels) - set(layout.classes))
    if strange:
        of = layout.root / layout.parts.get("train", "")
        raise DataError(f"{root}: {', '.join(strange[:5])} are no classes of {of}; remove or rename them")
    empty = [name for name in layout.classes if name not in labels]
    if complete and empty:
        raise DataError(f"{root}: no file that is read in {', '.join(empty[:5])}")


def _held_out(listing: Listing, split: str, where: Path) -> Listing:
    """The part of a training listing that is of a split, where no other files are there for the test."""
    held_out = hold_out(listing.labels.tolist(), listing.names)
    index = np.flatnonzero(held_out == (split == "test"))
    return listing._replace(
        names=[listing.names[number] for number in index],
        labels=listing.labels[index],
        said=held_out_text(where, held_out) if split == "test" else "",
    )


def find_clouds(root: Path, suffixes: Collection[str], *, quiet: bool = False) -> list[str]:
    """Files of the kinds ``suffixes`` below ``root``, as sorted relative paths with ``/``.

    Args:
        root: folder.
        suffixes: kinds of files to read.
        quiet: does not log what is left out, which was done before.

    Raises:
        DataError: if there are no such files, or a folder cannot be listed.
    """
    names, unwanted, others = [], Counter[str](), Counter[str]()
    for path in walk_files(root):
        suffix = path.suffix.lower()
        if suffix[1:] in suffixes:
            names.append(path.relative_to(root).as_posix())
        elif suffix[1:] in KINDS:
            unwanted[suffix] += 1
        elif suffix != CACHE_SUFFIX:
            others[suffix or "without suffix"] += 1
    if not names:
        raise DataError(nothing_text(root, suffixes, unwanted + others))
    if unwanted and not quiet:
        text = "%s: %d files that could be read are left out (%s), as data.suffixes is [%s]"
        logger.warning(text, root, unwanted.total(), _listed(unwanted), ", ".join(suffixes))
    if others and not quiet:
        logger.info("%s: %d files of other kinds are left out (%s)", root, others.total(), _listed(others))
    return sorted(names)


def nothing_text(root: Path, suffixes: Collection[str], others: Mapping[str, int] | None = None) -> str:
    """The message about a folder without a file that is read.

    Args:
        root: the folder.
        suffixes: kinds of files that are read.
        others: number of files of each other kind; counted by default.
    """
    if others is None:
        others = Counter(path.suffix.lower() or "without suffix" for path in walk_files(root))
    if not others:
        return f"{root}: is empty, with no file in it or below; choose a folder with files ({' '.join(suffixes)})"
    return (
        f"{root}: no point file or mesh in it or below ({' '.join(suffixes)}), only {_listed(others)}; choose another "
        "folder"
    )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(counts).most_common())


def list_table(path: Path, split: str) -> Listing:
    """Files of a split by a CSV file with the columns ``file``, ``label``, ``split`` and, if wanted, ``group``.

    Paths are relative to the table's folder. ``split`` is ``train`` or ``test``. Files with the same ``group`` are of
    one object, and stay on one side of a validation split; those without are each of their own.

    Raises:
        DataError: naming the line, if the table cannot be read as such.
    """
    rows = _read_table(path)
    classes = sorted({row["label"] for row in rows if row["split"] == "train"})
    if len(classes) < 2:
        raise DataError(f"{path}: {len(classes)} classes in split train; at least 2 are needed")
    chosen = [row for row in rows if row["split"] == split]
    if not chosen:
        raise DataError(f"{path}: no line of split {split}")
    number = {name: index for index, name in enumerate(classes)}
    strange = sorted({row["label"] for row in chosen} - set(classes))
    if strange:
        raise DataError(f"{path}: {', '.join(strange[:5])} are classes of split test alone; rename or remove them")
    labels = torch.tensor([number[row["label"]] for row in chosen])
    names = [row["file"] for row in chosen]
    return Listing(path.parent, names, labels, classes, _groups(chosen), label=f"{path.stem}-{split}-")


def count_table_classes(path: Path) -> int:
    """Classes of a table's training split.

    Raises:
        DataError: see :func:`list_table`.
    """
    return len({row["label"] for row in _read_table(path) if row["split"] == "train"})


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [name.strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            missing = [name for name in COLUMNS[:3] if name not in columns]
            if missing:
                raise DataError(
                    f"{path}: has no column {', '.join(missing)}; its first line names the columns file,label,split "
                    "and perhaps group"
                )
            rows, seen, split_of = [], dict[str, int](), dict[str, str]()
            for values in reader:
                line = reader.line_num
                row = {name: (values.get(name) or "").strip() for name in COLUMNS}
                empty = [name for name in COLUMNS[:3] if not row[name]]
                if empty:
                    raise DataError(f"{path}: line {line} has no {', '.join(empty)}")
                if row["split"] not in SPLITS:
                    raise DataError(f"{path}: line {line} has the split {row['split']!r}; use {' or '.join(SPLITS)}")
                row["file"] = posixpath.normpath(row["file"].replace("\\", "/"))
                if row["file"] in seen:
                    raise DataError(f"{path}: lines {seen[row['file']]} and {line} name the same file; remove one")
                if not (path.parent / row["file"]).is_file():
                    raise DataError(f"{path}: line {line} names {row['file']}, which is not in {path.parent}")
                seen[row["file"]] = line
                if row["group"]:
                    other = split_of.setdefault(row["group"], row["split"])
                    if other != row["split"]:
                        raise DataError(f"{path}: line {line}: group {row['group']} is in training and test; split it")
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({reason_of(error)})") from None
    return rows


def _groups(rows: Sequence[dict[str, str]]) -> torch.Tensor | None:
    if not any(row["group"] for row in rows):
        return None
    names = [f"group {row['group']}" if row["group"] else f"file {row['file']}" for row in rows]
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names])
