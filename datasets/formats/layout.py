"""How a text file of points is laid out, judged by its beginning: encoding, separator, names, where the rows begin."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pointadapterx.datasets.doubts import Doubt
from pointadapterx.datasets.formats.columns import (
    WAY_OUT,
    Columns,
    chosen,
    count_up,
    is_usual,
    knows,
    listed,
    named,
    without_units,
)
from pointadapterx.datasets.formats.tables import NotReadError, is_nan_of_windows
from pointadapterx.errors import DataError

HEAD = 2**18  # bytes in which the rows begin
SAMPLE = 20  # rows by which the separator is found
QUOTED = 60  # characters of a line in a message
MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "-", "--"))
SPACES = " \t\r\n"

_NUMBER = re.compile(r"[\s\"']*[+-]?[.,]?\d")
_UNITS = re.compile(r"(?:[\W_]|\b(?:m|mm|cm|km|ft|met(?:er|re)s?|deg|rad|s|ms|ns)\b)+", re.IGNORECASE)
_THOUSANDS = re.compile(  # 1,234.5 or 1.234,5 or 1'234 or 1,234,567 or 1.234.567
    r"(?<![\d.,'])\d{1,3}(?:(?:,\d{3})+\.\d|(?:\.\d{3})+,\d|(?:'\d{3})+|(?:,\d{3}){2,}|(?:\.\d{3}){2,})\d*"
)
_COMMENT = re.compile(r"\s*(?:#|//|%)+")
_DIALECTS = (
    (";", "."),
    (";", ","),
    ("\t", "."),
    ("\t", ","),
    ("|", "."),
    ("|", ","),
    (",", "."),
    (",", ","),
    (None, "."),
    (None, ","),
)


@dataclass(frozen=True)
class Layout:
    """Where the numbers are.

    Attributes:
        encoding: of the file.
        skip: lines before the first row.
        separator: between columns; None is any number of spaces and tabs.
        decimal: the character before fractions, a point or a comma.
        width: number of columns.
        columns: those of x, y and z.
        count: of the points, as a line before the rows declares it, and the number of that line.
        named: whether names or the user say which columns these are.
        doubts: what may be another way.
        names: of all columns, where they have some.
    """

    encoding: str
    skip: int
    separator: str | None
    decimal: str
    width: int
    columns: tuple[int, ...]
    count: tuple[int, int] | None
    named: bool
    doubts: tuple[Doubt, ...] = ()
    names: Sequence[str] | None = None

    def split(self, line: str) -> list[str]:
        """Cells of a row, without quotes."""
        return split(line, self.separator)


def find_layout(path: Path, columns: Sequence[str | int] | None) -> Layout | None:
    """Layout of a file; None if it holds no row, but a count or the names of columns.

    Args:
        path: the file.
        columns: of x, y and z, by name or number, if the user says so.

    Raises:
        DataError: if the names in it do not say which columns are x, y and z, or ``columns`` do not fit.
        ValueError: if it is no text, or there is no row of numbers in its beginning.
    """
    encoding, lines = _head(path)
    if lines and lines[0].lower().startswith("ncols"):
        raise NotReadError("it is an ESRI grid of heights, not a list of points; write it as rows of x, y, z")
    start, names_line, comments, count = _before_rows(lines)
    if start is None:
        return _without_rows(names_line, count)
    if names_line is not None and not any(character.isalpha() for character in names_line):
        raise _no_row(names_line, "; separators may be mixed")
    sample = list(islice(_rows(lines[start:]), SAMPLE))
    separator, decimal = _dialect(sample)
    cells = [split(line, separator) for line in sample]
    doubts = tuple[Doubt, ...]()
    if names_line is None and _numbers_columns(cells, separator):
        may_be_point = all(cell.isdecimal() for cell in cells[0]) and _is_whole(cells[1])
        if not may_be_point or columns is None or tuple(columns) != (0, 1, 2):
            names_line, start, cells = lines[start], start + 1, cells[1:]
            doubts = (_no_point(names_line),) if may_be_point else ()
    by_number = columns is not None and all(isinstance(column, int) for column in columns)
    try:
        names = _names(names_line, comments, separator, cells, lenient=by_number)
        which, are_named = _which(names, columns, len(cells[0]))
        if names is None and any(number(cells[0][column], decimal) is None for column in which):
            raise ValueError(f"it names no columns, and of {shown(sample[0])} the cells {which} are not all numbers")
    except ValueError as error:
        raise DataError(f"{path}: {error}; {WAY_OUT}") from None
    return Layout(encoding, start, separator, decimal, len(cells[0]), which, count, are_named, doubts, names)


def split(line: str, separator: str | None) -> list[str]:
    """Cells of a line, without quotes and the spaces around them."""
    line = line.rstrip("\r\n")
    if '"' in line or "'" in line:
        quoted = line.replace("'", '"').strip(" " if separator else SPACES)
        quoted = quoted if separator else quoted.replace("\t", " ")
        try:
            cells = next(csv.reader([quoted], delimiter=separator or " ", skipinitialspace=True), ())
        except csv.Error:  # a cell of more than 128 KiB, for one
            raise ValueError(f"{shown(line)} cannot be split into columns") from None
        return [cell.strip(SPACES) for cell in cells] or [""]
    return line.split() or [""] if separator is None else [cell.strip(SPACES) for cell in line.split(separator)]


def is_comment(line: str) -> bool:
    """Whether a line begins with ``#``, ``//`` or ``%``."""
    return _COMMENT.match(line) is not None


def is_count(line: str) -> bool:
    """Whether a line is a whole number."""
    text = line.strip(SPACES)
    return text.isascii() and text.isdecimal()


def number(cell: str, decimal: str) -> float | None:
    """Value of a cell, NaN for a missing one; None if it is no number."""
    if cell.lower() in MISSING or is_nan_of_windows(cell):
        return float("nan")
    if "_" in cell or (decimal == "," and ("." in cell or cell.endswith(","))):
        return None
    try:
        return float(cell.replace(",", ".") if decimal == "," else cell)
    except ValueError:
        return None


def shown(line: str) -> str:
    """A line for a message."""
    text = "".join(character if character.isprintable() else " " for character in line.strip(SPACES))
    return f"'{text if len(text) <= QUOTED else text[:QUOTED] + '…'}'"


def thousands(text: str) -> NotReadError | None:
    """An error for a number such as ``1,234.5``, ``1.234,5`` or ``1'234``, if one is in a text."""
    found = _THOUSANDS.search(text)
    if found is None:
        return None
    return NotReadError(f"it has thousands separators, as in {found[0]}; write the numbers without")


def _no_row(line: str, perhaps: str = "") -> ValueError:
    return thousands(line) or ValueError(f"{shown(line)} is no row of three numbers{perhaps}")


def _head(path: Path) -> tuple[str, list[str]]:
    """Encoding and first lines; a line that is cut off is left out."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        more = file.read(1) != b""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif head[1:400:2] and not any(head[1:400:2]):
        encoding = "utf-16-le"
    elif head[:400:2] and not any(head[:400:2]):
        encoding = "utf-16-be"
    elif b"\0" in head:
        raise ValueError("it is binary, not text")
    else:
        encoding = "utf-8-sig"
        try:
            codecs.getincrementaldecoder(encoding)().decode(head, final=not more)
        except UnicodeDecodeError:
            encoding = "latin-1"
    text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(head)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # as text is read; str.splitlines knows more
    if more and len(lines) == 1:
        raise ValueError("its first line has no end; it is no text of points")
    return encoding, lines[:-1] if more else lines


def _before_rows(lines: Sequence[str]) -> tuple[int | None, str | None, list[str], tuple[int, int] | None]:
    """Index of the first row, the line of names before it, the comments before it, and the count of points."""
    names, comments, count = None, list[str](), None
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        if is_comment(line):
            comments.append(line)
        elif is_count(line):
            count = (int(line), index + 1)
        elif _is_row(line):
            return index, names, comments, count
        elif not (names and _UNITS.fullmatch(line)):
            names = line
    return None, names, comments, count


def _is_row(line: str) -> bool:
    return any(_is_numeric(split(line, separator), decimal) for separator, decimal in _DIALECTS)


def _is_numeric(cells: Sequence[str], decimal: str) -> bool:
    """Whether there are three numbers, or nothing but numbers and missing values in three cells or more."""
    values = [number(cell, decimal) for cell in cells]
    known = sum(value is not None and cell.lower() not in MISSING for cell, value in zip(cells, values, strict=True))
    return known >= 3 or (len(cells) >= 3 and None not in values)


def _rows(lines: Sequence[str]) -> Iterator[str]:
    """Lines but empty ones, comments, and counts of points."""
    for line in lines:
        if line.strip() and not is_comment(line) and not is_count(line):
            yield line.partition("#")[0]


def _dialect(sample: Sequence[str]) -> tuple[str | None, str]:
    """Separator and decimal mark by which all rows, or at least the first, have equally many columns, most of numbers.

    Numbers as ``1,5 2,5 3,5`` and rows as ``1, 2, 3`` look alike in part: with the wrong mark a cell is no number.
    """
    for rows in (sample, sample[:1]):
        best, most = None, 0
        for separator, decimal in _DIALECTS:
            if separator is not None and separator not in rows[0]:
                continue  # it has one cell
            cells = [split(line, separator) for line in rows]
            if len({len(row) for row in cells}) == 1 and all(_is_numeric(row, decimal) for row in cells):
                numbers = sum(number(cell, decimal) is not None for row in cells for cell in row)
                if numbers > most:
                    best, most = (separator, decimal), numbers
        if best is not None:
            return best
    raise _no_row(sample[0])


def _numbers_columns(cells: Sequence[Sequence[str]], separator: str | None) -> bool:
    """Whether the first row only numbers the columns, as pandas writes it: ``0,1,2`` or ``,0,1,2``.

    A point of whole numbers can look like that. It is read as one where spaces separate the numbers and the next row
    is whole, too, as in lists of voxels.
    """
    first, following = cells[0], cells[1:2]
    offset = 0 if first[0].isdecimal() else 1
    counted = {index: cell for index, cell in enumerate(first) if cell.lower() not in MISSING and number(cell, ".")}
    if not following or any(cell != str(index - offset) for index, cell in counted.items()):
        return False
    return first[offset : offset + 3] == ["0", "1", "2"] and (separator is not None or not _is_whole(following[0]))


def _is_whole(cells: Sequence[str]) -> bool:
    return all(cell.lstrip("+-").isdecimal() for cell in cells if number(cell, ".") is not None)


def _no_point(line: str) -> Doubt:
    """Of a first row ``0,1,2`` before rows of whole numbers, which may be a point."""
    return Doubt(
        "a first row 0,1,2 that may be a point",
        f"its first row, {shown(line)}, is read as numbers of columns, as pandas writes them, and not as a point; to "
        "keep it, give data.columns=[0,1,2] or --columns 0,1,2",
        "nothing, if pandas wrote it",
        note=True,
    )


def _names(
    line: str | None, comments: Sequence[str], separator: str | None, cells: Sequence[Sequence[str]], *, lenient: bool
) -> list[str] | None:
    """Names of all columns: of the line before the rows, or of a comment with as many words; None if there are none.

    Args:
        line: before the rows, if there is one.
        comments: before the rows.
        separator: of the rows.
        cells: of the rows.
        lenient: names that do not fit the rows are as good as none.

    Raises:
        ValueError: if ``line`` has another number of columns than the rows.
    """
    width = len(cells[0])
    if line is not None:
        names = _split_names(line, separator, width)
        fitting = _fit(names, cells)
        if fitting is None and not lenient:
            raise ValueError(f"it names {len(names)} columns ({listed(names)}), but its rows have {width}")
        return fitting
    texts = [_COMMENT.sub("", text, count=1) for text in comments]
    known = [_fit(_split_names(text, separator, width), cells) for text in texts]
    for names in reversed([names for names in known if names is not None and knows(names)]):
        return names
    last = known[-1] if known else None
    are_names = last is not None and ((separator is not None and separator in texts[-1]) or any(map(is_usual, last)))
    return last if are_names else None  # else it is prose, such as "made by hand"


def _fit(names: list[str], cells: Sequence[Sequence[str]]) -> list[str] | None:
    """A name for each column, where rows may begin with one that numbers them or end in a separator; else None."""
    missing = len(cells[0]) - len(names)
    if missing == 1 and all(row[-1] == "" for row in cells):
        return [*names, ""]
    first = [row[0] for row in cells]
    if missing == 1 and len(cells) > 1 and first in ([str(i + start) for i in range(len(cells))] for start in (0, 1)):
        return ["", *names]  # as R writes them
    return names if missing == 0 else None


def _split_names(line: str, separator: str | None, width: int) -> list[str]:
    """Names in a line, which may be separated otherwise than the rows."""
    ways = [split(text, mark) for mark in (separator, ",", ";", "\t", None) for text in (line, without_units(line))]
    for missing in (0, 1):
        for names in ways:
            if len(names) == width - missing:
                return names
    return max(ways, key=len) if len(ways[0]) == 1 else ways[0]


def _which(names: Sequence[str] | None, columns: Sequence[str | int] | None, width: int) -> tuple[Columns, bool]:
    """Columns of x, y and z, and whether names or the user say so: else they are the first three."""
    if columns is not None:
        return chosen(columns, names, width), True
    if names is None:
        return (0, 1, 2), False
    index = int(names[0].lower() in ("", "unnamed: 0"))  # pandas' column of row numbers
    numbered = names[index : index + 3] == ["0", "1", "2"] or (len(names) - index >= 3 and count_up(names[index:]))
    if not knows(names) and numbered:
        return (index, index + 1, index + 2), index == 1
    return named(names), True


def _without_rows(names_line: str | None, count: tuple[int, int] | None) -> None:
    """Raises unless a file without rows says that it is one of points."""
    if names_line is not None and _NUMBER.match(names_line):
        raise _no_row(names_line, "; separators or decimal marks may be mixed")
    if names_line is not None and not any(knows(split(names_line, mark)) for mark in (",", ";", "\t", None)):
        raise ValueError("there is no row of three numbers in it")
    if names_line is None and count is None:
        raise ValueError("there is no row of three numbers in it")
    if count is not None and count[0] > 0:
        raise ValueError(f"line {count[1]} declares {count[0]} points, and there are 0")
