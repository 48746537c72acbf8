"""Which files a folder of points with labels has, and what their labels mean."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pointadapterx.datasets.base import check_choice
from pointadapterx.datasets.formats.label_field import LabelField
from pointadapterx.datasets.labelled_clouds import LABELLED_KINDS, LabelledCloud, LabelledReader, other_labels
from pointadapterx.datasets.layouts import VAL_AS_TEST, hold_out, part_of, parts_of_split, subfolders
from pointadapterx.datasets.listings import find_clouds
from pointadapterx.datasets.modelnet40_text import read_lines
from pointadapterx.datasets.point_files import Reading
from pointadapterx.datasets.ragged import IGNORED, MOST_CLASSES
from pointadapterx.datasets.workers import map_in_order
from pointadapterx.errors import ConfigError, DataError, reason_of

logger = logging.getLogger(__name__)

BLOCK = 64  # files handed to the processes at a time; fewer are read faster than a process starts
SHOWN = 8  # labels that a message lists
NO_LABEL = (-1,)
LAYOUT = "put files into {root}/train and {root}/test (and {root}/val), or all of them into {root}"


@dataclass(frozen=True)
class Source:
    """What the user says of the files: keys of the ``data`` section.

    Attributes:
        root: folder.
        field: which field of a file is the label.
        reading: how points are read.
        suffixes: kinds of files.
        label_names: file with the names of the labels, or None.
        ignored_labels: labels of points that have no class.
        workers: processes that read files.
    """

    root: Path
    field: LabelField
    reading: Reading
    suffixes: tuple[str, ...]
    label_names: Path | None
    ignored_labels: tuple[int, ...]
    workers: int | None = None

    @classmethod
    def of(
        cls,
        *,
        root: str | Path | None = None,
        label_field: str | int | None = None,
        label_names: str | None = None,
        ignored_labels: Sequence[int] | None = None,
        suffixes: Sequence[str] | None = None,
        columns: Sequence[str | int] | None = None,
        nan: str | None = None,
        workers: int | None = None,
        **others: Any,
    ) -> Source:
        """From keyword arguments of the data set, of which others are left out.

        Raises:
            ConfigError: for a missing root or an unknown kind of file.
            DataError: if the root is no folder.
        """
        if root is None:
            raise ConfigError("data.root is required for data.name=labelled_folder: set it to a folder of files")
        base = Path(root)
        if not base.is_dir():
            raise DataError(f"{base}: is no folder; set data.root to one, and {LAYOUT.format(root='it')}")
        for suffix in suffixes or ():
            check_choice(suffix, LABELLED_KINDS, "data.suffixes")
        named = None if label_names is None else base / label_names
        words = {} if named is None else {name: value for value, name in read_label_names(named).items()}
        return cls(
            base,
            LabelField(label_field, tuple(words.items())),
            Reading.of(columns, nan),
            tuple(suffixes or LABELLED_KINDS),
            named,
            NO_LABEL if ignored_labels is None else tuple(ignored_labels),
            workers,
        )

    def read(self, names: Sequence[str]) -> Iterator[LabelledCloud | str]:
        """What each of the files holds, or what is wrong with it."""
        yield from map_in_order(LabelledReader(self.root, self.field, self.reading), names, BLOCK, self.workers)

    def read_sound(self, names: Sequence[str]) -> Iterator[tuple[str, LabelledCloud]]:
        """Each file's name and what it holds.

        Raises:
            DataError: after the last file, if some cannot be read: about the first, with their number. From that one
                on, no other is given.
        """
        problems = list[str]()
        for name, cloud in zip(names, self.read(names), strict=True):
            if isinstance(cloud, str):
                problems.append(cloud)
            elif not problems:
                yield name, cloud
        if problems:
            count = f" ({len(problems)} of {len(names)} files cannot be read; doctor lists them)"
            raise DataError(f"{problems[0]}{count if len(problems) > 1 else ''}")

    def parts(self) -> dict[str, list[str]]:
        """Paths below the root of each part that is there, of ``"train"``, ``"val"`` and ``"test"``; or only train.

        Raises:
            DataError: if there is no file, or nothing to train on.
        """
        folders = {name: part for name in subfolders(self.root) if (part := part_of(name))}
        names = find_clouds(self.root, self.suffixes, quiet=True)
        if self.label_names is not None:
            own = self.label_names.resolve()  # either path may be relative, or go by links
            names = [name for name in names if (self.root / name).resolve() != own]
        if not folders:
            return {"train": names}
        found: dict[str, list[str]] = {}
        for name in names:
            part = folders.get(name.partition("/")[0])
            if part is not None:
                found.setdefault(part, []).append(name)
        if "train" not in found:
            listed = ", ".join(f"{name}/" for name in folders)
            raise DataError(f"{self.root}: has {listed} but no file of training; {LAYOUT.format(root=self.root)}")
        if (rest := len(names) - sum(map(len, found.values()))) > 0:
            logger.info("%s: %d files in no folder of a split are left out", self.root, rest)
        return found

    def split(self, split: str) -> tuple[list[str], list[bool], str]:
        """Files of a split, which of them are of the validation part, and what the user has to know of that."""
        parts = self.parts()
        used = parts_of_split(split, parts)
        if len(parts) > 1:
            names = [name for part in used for name in parts[part]]
            of_validation = [part == "val" and len(used) > 1 for part in used for _ in parts[part]]
            return names, of_validation, VAL_AS_TEST.format(root=self.root) * (used == ("val",))
        names = parts["train"]
        if len(names) < 2:
            raise DataError(f"{names[0]} is the only file below {self.root}; {LAYOUT.format(root=self.root)}")
        held_out = hold_out([0] * len(names), names)
        chosen = [name for name, out in zip(names, held_out, strict=True) if out == (split == "test")]
        said = f"{self.root}: no test split: {held_out.sum()} of {len(names)} files are held out, the same in every run"
        return chosen, [False] * len(chosen), said if split == "test" else ""

    def classes(self) -> dict[int, str]:
        """Names of the labels, in the order of the classes: of ``label_names``, or what training files hold.

        Raises:
            DataError: if there are fewer than two or too many, two have one name, or a file cannot be read.
        """
        vocabulary = self.vocabulary()
        if vocabulary is not None:
            found = vocabulary.classes()
        else:
            assert self.label_names is not None
            found = read_label_names(self.label_names)
            require_few(len(found), self.label_names)
        found = {value: name for value, name in found.items() if value not in self.ignored_labels}
        if len(found) < 2:
            raise DataError(
                f"{self.label_names or self.root}: {len(found)} classes of points ({_listed(found)}); at least 2 are "
                f"needed: choose another data.label_field{self.other_fields()}, or other values of data.ignored_labels"
            )
        return found

    def other_fields(self) -> str:
        """Fields that can hold labels in place of one that every file of a kind has, for a message; or empty."""
        if self.field.wanted is not None:
            return ""
        first, *_ = self.split("train")[0]
        with suppress(DataError):
            if names := other_labels(self.root / first):
                return f" ({first} has {', '.join(names)})"
        return ""

    def vocabulary(self) -> Vocabulary | None:
        """What the training files say of labels, to which more can be added; None where ``label_names`` does.

        Raises:
            DataError: for files that cannot be read, contradict each other, or have too many labels.
        """
        if self.label_names is not None:
            return None
        names = self.split("train")[0]
        stamps = tuple((name, (self.root / name).stat().st_mtime_ns) for name in names)
        known = _vocabulary_of(self, stamps)
        return Vocabulary(self, set(known.values), dict(known.said))


@dataclass
class Vocabulary:
    """The labels of files, and what these name them.

    Attributes:
        source: of the files.
        values: labels of points.
        said: the name of a label, and the first file that has it.
    """

    source: Source
    values: set[int] = field(default_factory=set)
    said: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, name: str, cloud: LabelledCloud) -> None:
        """The labels of one more file; nothing is added of one that is refused.

        Raises:
            DataError: if it names a label otherwise than one before it, or there are too many.
        """
        path = self.source.root / name
        for value, text in cloud.names.items():
            other, first = self.said.get(value, (text, name))
            if other != text:
                raise DataError(
                    f"{path}: names the label {value} {text!r}, but {first} names it {other!r}; name it alike, or set "
                    "data.label_names to a file with the names"
                )
        values = self.values.union(np.unique(cloud.labels).tolist())
        require_few(len(values.union(cloud.names, self.said).difference(self.source.ignored_labels)), path)
        self.values = values
        for value, text in cloud.names.items():
            self.said.setdefault(value, (text, name))

    def classes(self) -> dict[int, str]:
        """Names of the labels, sorted by label; a name that several have is followed by its label."""
        values = sorted({*self.values, *self.said})
        names = {value: self.said[value][0] if value in self.said else f"class_{value}" for value in values}
        times = Counter(names.values())
        return {value: f"{name} ({value})" if times[name] > 1 else name for value, name in names.items()}


@lru_cache(maxsize=4)
def _vocabulary_of(source: Source, stamps: tuple[tuple[str, int], ...]) -> Vocabulary:
    """Of training files; ``stamps`` are these and when they were written."""
    found = Vocabulary(source)
    for name, cloud in source.read_sound([name for name, _ in stamps]):
        found.add(name, cloud)
    return found


def require_few(classes: int, where: Path) -> None:
    """Refuses what can be no classes, but coordinates, intensities or numbers of points.

    Raises:
        DataError: for more than :data:`~pointadapterx.datasets.ragged.MOST_CLASSES`.
    """
    if classes > MOST_CLASSES:
        raise DataError(
            f"{where}: {classes:,} different labels of points, of which at most {MOST_CLASSES:,} can be classes; "
            "choose another data.label_field"
        )


def read_label_names(path: Path) -> dict[int, str]:
    """Names of labels: JSON ``{"0": "floor", …}`` or ``["floor", …]``, or lines ``0 floor`` or ``floor``.

    Lines without numbers, and a list, number the labels from 0.

    Raises:
        DataError: if the file is missing, is something else, or has a label or name twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; data.label_names is a path below data.root, or an absolute one")
    if path.suffix.lower() == ".json":
        pairs = _pairs_of_json(path)
    else:
        lines = [line.split(maxsplit=1) for line in read_lines(path)]
        numbered = all(len(words) == 2 and words[0].lstrip("-").isdecimal() for words in lines)
        if not numbered and any(words[0].lstrip("-").isdecimal() for words in lines):
            raise DataError(f"{path}: some lines begin with a number and some do not; write a label and a name in each")
        pairs = [(int(words[0]), words[1]) for words in lines] if numbered else list(enumerate(map(" ".join, lines)))
    for what, values in (("label", [value for value, _ in pairs]), ("name", [name for _, name in pairs])):
        twice = next((value for value, times in Counter(values).items() if times > 1), None)
        if twice is not None:
            raise DataError(f"{path}: has the {what} {twice} twice; keep one")
    return dict(pairs)


def _pairs_of_json(path: Path) -> list[tuple[int, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pairs = [*content.items()] if isinstance(content, dict) else [*enumerate(content)]
        if not all(isinstance(name, str) for _, name in pairs):
            raise ValueError("a name is no text")
        return [(int(value), name) for value, name in pairs]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: is no JSON of labels and names ({reason_of(error)})") from None


def vocabulary_of_sound_files(source: Source) -> Vocabulary | None:
    """As :meth:`Source.vocabulary`, but of those files that can be read and added."""
    if source.label_names is not None:
        return None
    found, names = Vocabulary(source), source.split("train")[0]
    for name, cloud in zip(names, source.read(names), strict=True):
        if not isinstance(cloud, str):
            with suppress(DataError):  # which the caller is about to notice
                found.add(name, cloud)
    return found


def numbered(labels: np.ndarray, classes: Mapping[int, str], ignored_labels: Sequence[int], where: str) -> np.ndarray:
    """Numbers of the classes (m,) int16, :data:`~pointadapterx.datasets.ragged.IGNORED` for points without one.

    Args:
        labels: (m,) int64, as the file has them.
        classes: names of the labels.
        ignored_labels: labels of points without a class.
        where: they are from, for messages.

    Raises:
        DataError: if a label is none of the classes, or no point has a class.
    """
    values = np.array(sorted(classes))
    order = np.argsort(np.array(list(classes)))  # of the classes, by value
    place = np.searchsorted(values, labels).clip(max=len(values) - 1)
    known, ignored = values[place] == labels, np.isin(labels, ignored_labels)
    wrong = ~known & ~ignored
    if wrong.any():
        raise DataError(
            f"{where}: {wrong.sum()} of {len(labels)} points have labels that are none of the classes, such as "
            f"{labels[wrong][0]}; known are {_listed(classes)}, and data.ignored_labels is {list(ignored_labels)}"
        )
    if ignored.all():
        raise DataError(f"{where}: none of its {len(labels)} points has a label; remove it")
    return np.where(ignored, IGNORED, order[place]).astype(np.int16)


def _listed(classes: Mapping[int, str]) -> str:
    more = f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
    return ", ".join(str(value) for value in list(classes)[:SHOWN]) + more or "none"
