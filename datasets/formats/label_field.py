"""Which field of a file is the label of its points."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from pointadapterx.datasets.formats.columns import listed
from pointadapterx.datasets.formats.tables import NotReadError
from pointadapterx.errors import shown
from pointadapterx.registry import did_you_mean

USUAL = (
    *("label", "labels", "class", "classes", "classification", "segment", "segments", "segmentation", "semantic"),
    *("semantic_label", "semantic_labels", "sem_label", "class_id", "label_id", "category", "part", "parts", "pid"),
)
PREFIXES = ("scalar_",)  # of fields that CloudCompare writes
COORDINATES = ("x", "y", "z")


def plain(name: str) -> str:
    """A name without its case and what programs write before it."""
    name = name.strip().lower()
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


class WordError(NotReadError):
    """A label is a word that no number is known of."""


@dataclass(frozen=True)
class LabelField:
    """``data.label_field``.

    Attributes:
        wanted: name of a property, field, column or entry, or number of a column from 0; None: the one with a usual
            name.
        words: names of classes and their labels, for files whose labels are these names.
        source: of these names, for messages.
    """

    wanted: str | int | None = None
    words: tuple[tuple[str, int], ...] = ()
    source: str = "data.label_names"

    @cached_property
    def labels(self) -> dict[str, int]:
        """The label of each name."""
        return dict(self.words)

    def value(self, cell: str) -> float:
        """The label in a cell of text, which is a number or a name; what is a number is not a name.

        Raises:
            ValueError: if it is neither.
        """
        cell = cell.strip()
        try:
            return float(cell)
        except ValueError:
            if cell in self.labels:
                return self.labels[cell]
            raise

    def unknown(self, word: str, where: str = "") -> WordError:
        """For a word that is no label.

        Args:
            word: the label.
            where: it is, in front of the message.
        """
        what = f"{where}the label {shown(word)} is"
        if self.words:
            near = did_you_mean(word, self.labels)
            return WordError(f"{what} none of the names in {self.source}{near} Mend it, or add it to them")
        return WordError(
            f"{what} a word, not a number; write the words into a file, each in a line, and set data.label_names to it"
        )

    def may_be(self, name: str) -> bool:
        """Whether a name is the wanted one, or a usual one where none is."""
        return name == self.wanted if self.wanted is not None else plain(name) in USUAL

    def is_read(self, name: str) -> bool:
        """Whether a field is read as the label, with this setting or without."""
        wanted = self.wanted if isinstance(self.wanted, str) else ""
        return plain(name) in (*USUAL, plain(wanted))

    def place(self, names: Sequence[str], standard: Collection[str] = (), *, others: Collection[int] = ()) -> int:
        """Which of a file's fields it is.

        Args:
            names: of the fields.
            standard: names that every file of a kind has, used or not: taken only where no other is usual.
            others: places of fields that are something else.

        Raises:
            NotReadError: if no field, or more than one, can hold labels.
        """
        free = [place for place, name in enumerate(names) if place not in others and name.lower() not in COORDINATES]
        has = f"it has {listed([names[place] for place in free]) or 'none beside the coordinates'}"
        way_out = "set data.label_field to one of them" if free else "add one"
        if isinstance(self.wanted, int):
            if not 0 <= self.wanted < len(names) or self.wanted in others:
                raise NotReadError(f"column {self.wanted} of its {len(names)}, counted from 0, is no label; {way_out}")
            return self.wanted
        if self.wanted is not None:
            found = [place for place in free if names[place] == self.wanted]
            found = found or [place for place in free if plain(names[place]) == plain(self.wanted)]
            if len(found) != 1:
                near = did_you_mean(self.wanted, [names[place] for place in free])
                what = f"several fields '{self.wanted}'." if found else f"no field '{self.wanted}'{near}"
                raise NotReadError(f"it has {what} {has[0].upper()}{has[1:]}; {way_out}")
            return found[0]
        usual = [place for place in free if plain(names[place]) in USUAL]
        found = [place for place in usual if names[place] not in standard] or usual
        if len(found) == 1:
            return found[0]
        if found:
            several = " and ".join(names[place] for place in found[:4])
            raise NotReadError(f"its fields {several} may each be the label of the points; {way_out}")
        raise NotReadError(f"none of its fields has a usual name of labels; {has}; {way_out}")
