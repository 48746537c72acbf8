"""Text: asc, csv, pts, txt, xyz."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from pointadapterx.datasets.doubts import Cloud
from pointadapterx.datasets.formats import headless
from pointadapterx.datasets.formats.label_field import LabelField
from pointadapterx.datasets.formats.layout import Layout, find_layout, is_comment, is_count, number, shown, thousands

BLOCK = 2**20  # characters read at a time
LABEL = 3  # place of the label, behind x, y and z


def read(path: Path, columns: Sequence[str | int] | None = None) -> Cloud:
    """Points ``(n, 3)`` float64 of rows of numbers; missing values are NaN.

    Columns are separated by commas, semicolons, tabs, bars or spaces; fractions begin with a point, or with a comma
    where that separates no columns. Before the rows there may be comments, names of the columns and the number of
    points. In several scans after each other, each begins with its number of points.

    Args:
        path: the file.
        columns: of x, y and z, by name or by number from 0. None: those with usual names, see
            :func:`~pointadapterx.datasets.formats.columns.named`, and without names the first three, where
            :func:`~pointadapterx.datasets.formats.headless.check` has nothing against them.

    Raises:
        DataError: if the file does not say which columns are x, y and z, or has not those of ``columns``.
        ValueError: if it is damaged; the message names the line.
    """
    layout = find_layout(path, columns)
    if layout is None:
        return Cloud(np.empty((0, 3)))
    return _rows_of(path, layout)


def _rows_of(path: Path, layout: Layout, label: LabelField | None = None) -> Cloud:
    rows = _by_numpy(path, layout)
    if rows is None and label is not None and label.words:
        rows = _by_numpy(path, layout, {layout.columns[LABEL]: label.value})
    if rows is None:
        rows = np.array(array("d", _by_hand(path, layout, label))).reshape(-1, len(layout.columns))
    doubts = layout.doubts
    if not layout.named:
        doubts += headless.check(path, rows[:, :3], layout.width, lambda: _first_columns(path, layout))
    return Cloud(rows, doubts)


def read_with(path: Path, columns: Sequence[str | int] | None, label: LabelField) -> Cloud:
    """The same with one more column, ``(n, 4)``, by its name or number.

    Raises:
        NotReadError: also if a label is a word that is not known.
    """
    layout = find_layout(path, columns)
    if layout is None:
        return Cloud(np.empty((0, 4)))
    names = [str(place) for place in range(layout.width)] if layout.names is None else layout.names
    layout = replace(layout, columns=(*layout.columns, label.place(names, others=layout.columns)))
    return _rows_of(path, layout, label)


class _DamagedError(ValueError):
    """A line is wrong, whoever reads it."""


def _by_numpy(
    path: Path, layout: Layout, converters: Mapping[int, Callable[[str], float]] | None = None
) -> np.ndarray | None:
    """Fast; None for what only :func:`_by_hand` reads, or says what is wrong with."""
    if layout.decimal != ".":
        return None
    lines = chain.from_iterable(lines for _, lines in _Rows(path, layout).blocks())
    try:
        rows = np.loadtxt(
            lines,
            delimiter=layout.separator,
            usecols=layout.columns,
            ndmin=2,
            comments=None,
            quotechar='"',
            converters=converters,
        )
    except _DamagedError:
        raise
    except ValueError:
        return None
    return rows.reshape(-1, len(layout.columns))


def _by_hand(path: Path, layout: Layout, label: LabelField | None) -> Iterator[float]:
    """Parses coordinates and labels one by one, and names the first line that is wrong."""
    for numbers, lines in _Rows(path, layout).blocks():
        for line_number, line in zip(numbers, lines, strict=True):
            cells = layout.split(line)
            for place, column in enumerate(layout.columns):
                of_label = label if place == LABEL else None
                value = number(cells[column], layout.decimal)
                if value is None and of_label is not None:
                    value = of_label.labels.get(cells[column])
                if value is None:
                    if (error := thousands(cells[column])) is not None:
                        raise error
                    if of_label is not None and cells[column]:
                        raise of_label.unknown(cells[column], f"line {line_number}: ")
                    mixed = "; the fractions before it are written otherwise" if "," in cells[column] else ""
                    raise _DamagedError(f"line {line_number}: {shown(cells[column])} is no number{mixed}")
                yield value


def _first_columns(path: Path, layout: Layout) -> np.ndarray:
    """Up to six columns of the first rows, ``(m, 3 to 6)``; NaN for what is no number."""
    _, lines = next(_Rows(path, layout).blocks())
    rows = [layout.split(line)[:6] for line in lines[: headless.ROWS]]
    values = [[number(cell, layout.decimal) for cell in row] for row in rows]
    return np.array(values, dtype=np.float64)  # where None becomes NaN


class _Rows:
    """The lines of numbers of a file, which have to be as wide and as many as its beginning says."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self.declared, self.seen = layout.count, 0  # since that number of points

    def blocks(self) -> Iterator[tuple[Sequence[int], list[str]]]:
        """Many lines at a time, and their numbers in the file.

        Raises:
            ValueError: if a line has too many or too few columns, or there are not as many lines as was declared.
        """
        with self.path.open(encoding=self.layout.encoding, errors="replace") as file:
            start = 1 + sum(1 for _ in islice(file, self.layout.skip))
            while lines := file.readlines(BLOCK):
                numbers = range(start, start + len(lines))
                start += len(lines)
                if self._are_plain(lines):
                    self.seen += len(lines)
                    yield numbers, lines
                else:
                    rows = list(self._rows(numbers, lines))
                    yield [line_number for line_number, _ in rows], [row for _, row in rows]
        self._check_count("")

    def _are_plain(self, lines: Sequence[str]) -> bool:
        """Whether there is nothing but rows: far faster than to look at each line."""
        separator, width = self.layout.separator, self.layout.width
        if separator is None:
            widths = set(map(len, map(str.split, lines)))
        else:
            widths = {line.count(separator) + 1 for line in lines}
        return widths == {width} and "#" not in "".join(lines)

    def _rows(self, numbers: Sequence[int], lines: Sequence[str]) -> Iterator[tuple[int, str]]:
        for line_number, line in zip(numbers, lines, strict=True):
            if not line.strip() or is_comment(line):
                continue
            row = line.partition("#")[0]
            width = len(self.layout.split(row))
            if width == 1 and self.declared is not None and is_count(row):
                self._check_count(f" before line {line_number}, where the next scan begins")
                self.declared, self.seen = (int(row), line_number), 0
            elif width == self.layout.width:
                self.seen += 1
                yield line_number, row
            else:
                raise _DamagedError(f"line {line_number} has {width} columns, the lines before it {self.layout.width}")

    def _check_count(self, where: str) -> None:
        if self.declared is not None and self.declared[0] != self.seen:
            count, line_number = self.declared
            raise _DamagedError(f"line {line_number} declares {count} points, and there are {self.seen}{where}")
