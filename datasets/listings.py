"""Which class one's own files are of: a folder for each, or a table of them."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from pointadapterx.datasets.base import SPLITS
from pointadapterx.errors import DataError

TABLE_SUFFIX = ".csv"
COLUMNS = ("file", "label", "split", "group")


class Listing(NamedTuple):
    """Files of one split.

    Attributes:
        root: what names are relative to.
        names: paths below ``root``, with ``/``.
        labels: (n,) int64, indices into ``classes``.
        classes: of the training split, sorted.
        groups: (n,) int64, files of one object share a number; None where nobody says.
    """

    root: Path
    names: list[str]
    labels: torch.Tensor
    classes: list[str]
    groups: torch.Tensor | None


def has_class_folders(root: Path) -> bool:
    """Whether there is a folder for each split, and in that of training one for a class."""
    return all((root / split).is_dir() for split in SPLITS) and bool(_folders(root / "train"))


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
    classes = _folders(root / "train")
    if len(classes) < 2:
        raise DataError(f"{root / 'train'}: {len(classes)} folders of classes; at least 2 are needed")
    strange = sorted(set(_folders(root / split)) - set(classes))
    if strange:
        raise DataError(
            f"{root / split}: {', '.join(strange[:5])} are no classes of {root / 'train'}; remove or rename them"
        )
    return classes


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def list_folders(root: Path, split: str, names: Sequence[str]) -> Listing:
    """Files of a split by the folders of their classes.

    Args:
        root: folder with one for each split.
        split: ``"train"`` or ``"test"``.
        names: paths of the files below the split's folder.

    Raises:
        DataError: as :func:`class_folders`, for a file in no class, and for a class without a file in training.
    """
    classes, folder = class_folders(root, split), root / split
    number = {name: index for index, name in enumerate(classes)}
    labels = []
    for name in names:
        first, _, rest = name.partition("/")
        if not rest:
            raise DataError(f"{folder / name}: lies in no folder of a class; move it into one, or remove it")
        labels.append(number[first])
    empty = [name for name, index in number.items() if index not in labels]
    if split == "train" and empty:
        raise DataError(f"{folder}: no file that is read in {', '.join(empty[:5])}")
    return Listing(folder, list(names), torch.tensor(labels), classes, None)


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
    return Listing(path.parent, [row["file"] for row in chosen], labels, classes, _groups(chosen))


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
        raise DataError(f"{path}: cannot be read as a table ({error})") from None
    return rows


def _groups(rows: Sequence[dict[str, str]]) -> torch.Tensor | None:
    if not any(row["group"] for row in rows):
        return None
    names = [f"group {row['group']}" if row["group"] else f"file {row['file']}" for row in rows]
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names])
