"""Elements of a ply file: rows of numbers and lists, in text or bytes.

Lists of a row may be of any length each, so that where a row begins depends on all before it. In most files they are
of one length, though, and then rows are a table, which is read at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pointadapterx.datasets.formats.tables import number_of, table, text_lines, whole


class Property(NamedTuple):
    """A number, or a list of numbers that its length, of type ``count``, comes before."""

    name: str
    dtype: np.dtype
    count: np.dtype | None


@dataclass(frozen=True)
class Element:
    """``rows`` rows of the same properties."""

    name: str
    rows: int
    properties: list[Property]


class Lists(NamedTuple):
    """Lists one after another: lengths ``(rows,)`` int64 and all numbers."""

    counts: np.ndarray
    values: np.ndarray


Columns = dict[str, "np.ndarray | Lists"]
Wanted = Mapping[str, Sequence[int]]


def read_text(body: bytes, elements: Sequence[Element], wanted: Wanted) -> dict[str, Columns]:
    """Properties at the places ``wanted`` of each element, by name; a row is a line.

    Raises:
        ValueError: if lines are more or fewer than rows, or a line has other numbers than its row.
    """
    lines = [line for line in text_lines(body) if line and not line.isspace()]
    rows = sum(element.rows for element in elements)
    if len(lines) != rows:
        declared = " and ".join(f"{element.rows} of {element.name}" for element in elements)
        raise ValueError(f"its header declares {declared} rows, and {len(lines)} follow")
    columns, start = {}, 0
    for element in elements:
        part = lines[start : start + element.rows]
        columns[element.name] = _text_columns(part, element, wanted[element.name])
        start += element.rows
    return columns


def _text_columns(lines: Sequence[bytes], element: Element, wanted: Sequence[int]) -> Columns:
    if not wanted:
        return {}
    if not lines:
        return {element.properties[place].name: np.empty(0) for place in wanted}
    words = [len(line.split()) for line in (lines[0], lines[-1])]
    layout = _text_layout(lines[0], element, 1)
    if words == [layout[-1][1]] * 2:
        try:
            rows = table(lines, None, element.name)
            return _table_columns(rows, layout, element, wanted)
        except ValueError:  # lists of several lengths, or damaged: the rows one by one tell
            pass
    values = {place: list[float]() for place in wanted}
    counts = {place: list[int]() for place in wanted}
    for number, line in enumerate(lines, 1):
        row, where = line.split(), f"{element.name} {number} of {element.rows}"
        layout = _text_layout(line, element, number)
        if layout[-1][1] != len(row):
            raise ValueError(f"{where} has {len(row)} numbers, expected {layout[-1][1]}")
        for place in wanted:
            start, end = layout[place]
            values[place] += [number_of(word, where) for word in row[start:end]]
            counts[place].append(end - start)
    return {
        element.properties[place].name: _typed(element.properties[place], np.array(values[place]), counts[place])
        for place in wanted
    }


def _text_layout(line: bytes, element: Element, number: int) -> list[tuple[int, int]]:
    """Where in a row the numbers of each property begin and end."""
    words, place = line.split(), 0
    layout = []
    for one in element.properties:
        length = 1
        if one.count is not None:
            if place >= len(words) or not words[place].isdigit():
                raise ValueError(f"{element.name} {number} of {element.rows} is cut, or has a list without a length")
            length = int(words[place])
            place += 1
        layout.append((place, place + length))
        place += length
    return layout


def _table_columns(
    rows: np.ndarray, layout: Sequence[tuple[int, int]], element: Element, wanted: Sequence[int]
) -> Columns:
    columns: Columns = {}
    for one, (start, end) in zip(element.properties, layout, strict=True):
        if one.count is not None and (rows[:, start - 1] != end - start).any():
            raise ValueError(f"lists of {one.name} are of several lengths")
    for place in wanted:
        one, (start, end) = element.properties[place], layout[place]
        columns[one.name] = _typed(one, rows[:, start:end].ravel(), [end - start] * len(rows))
    return columns


def _typed(one: Property, values: np.ndarray, counts: Sequence[int]) -> np.ndarray | Lists:
    """Numbers of text as the header's type holds them."""
    if one.dtype.kind == "f":
        with np.errstate(over="ignore"):  # inf is found later, as a coordinate
            values = values.astype(one.dtype)
    else:
        values = whole(values, one.name)
    return values if one.count is None else Lists(np.array(counts, np.int64), values)


def read_binary(body: bytes, elements: Sequence[Element], wanted: Wanted) -> dict[str, Columns]:
    """As :func:`read_text`, of bytes.

    Raises:
        ValueError: if bytes are more or fewer than the rows need.
    """
    columns, start = {}, 0
    for element in elements:
        columns[element.name], start = _binary_columns(body, start, element, wanted[element.name])
    if start != len(body):
        raise ValueError(f"its header declares {start} bytes of data, and {len(body)} follow")
    return columns


def _binary_columns(body: bytes, start: int, element: Element, wanted: Sequence[int]) -> tuple[Columns, int]:
    smallest = sum((one.dtype if one.count is None else one.count).itemsize for one in element.properties)
    needed = element.rows * smallest
    if needed > len(body) - start:
        raise ValueError(
            f"its header declares {element.rows} rows of {element.name}, of {needed} bytes at least, and "
            f"{len(body) - start} follow"
        )
    if element.rows == 0 or smallest == 0:
        return {element.properties[place].name: np.empty(0) for place in wanted}, start
    kind = _row_dtype(body, start, element)
    if element.rows * kind.itemsize <= len(body) - start:
        rows = np.frombuffer(body, kind, element.rows, start)
        lists = [place for place, one in enumerate(element.properties) if one.count is not None]
        if all((rows[f"count{place}"] == rows[f"count{place}"][0]).all() for place in lists):
            columns = {element.properties[place].name: _table_column(rows, element, place) for place in wanted}
            return columns, start + element.rows * kind.itemsize
        del rows
    return _row_by_row(body, start, element, wanted)


def _row_dtype(body: bytes, start: int, element: Element) -> np.dtype:
    """Of a row whose lists are as long as those of the first."""
    fields: list[tuple] = []
    place = start
    for number, one in enumerate(element.properties):
        length = 1
        if one.count is not None:
            length = _length(body, place, one, f"{element.name} 1 of {element.rows}")
            fields.append((f"count{number}", one.count))
            place += one.count.itemsize
        fields.append((str(number), one.dtype, (length,)))
        place += length * one.dtype.itemsize
    if place > len(body):
        raise ValueError(
            f"{element.name} 1 of {element.rows} is cut: {place - start} bytes, {len(body) - start} follow"
        )
    return np.dtype(fields)


def _length(body: bytes, place: int, one: Property, where: str) -> int:
    assert one.count is not None
    if place + one.count.itemsize > len(body):
        raise ValueError(f"{where} is cut before its list {one.name}")
    length = int(np.frombuffer(body, one.count, 1, place)[0])
    if length < 0 or place + one.count.itemsize + length * one.dtype.itemsize > len(body):
        raise ValueError(f"{where} has a list {one.name} of {length} numbers, and {len(body) - place} bytes follow")
    return length


def _table_column(rows: np.ndarray, element: Element, place: int) -> np.ndarray | Lists:
    values = rows[str(place)]
    flat = values.reshape(-1).astype(values.dtype.newbyteorder("="))
    if element.properties[place].count is None:
        return flat
    return Lists(np.full(len(rows), values.shape[1], np.int64), flat)


def _row_by_row(body: bytes, start: int, element: Element, wanted: Sequence[int]) -> tuple[Columns, int]:
    """Finds where every number wanted is, then takes them all at once."""
    starts: dict[int, list[int]] = {place: [] for place in wanted}
    lengths: dict[int, list[int]] = {place: [] for place in wanted}
    place = start
    for number in range(1, element.rows + 1):
        for index, one in enumerate(element.properties):
            length = 1
            if one.count is not None:
                length = _length(body, place, one, f"{element.name} {number} of {element.rows}")
                place += one.count.itemsize
            if index in starts:
                starts[index].append(place)
                lengths[index].append(length)
            place += length * one.dtype.itemsize
        if place > len(body):
            raise ValueError(f"{element.name} {number} of {element.rows} is cut")
    columns: Columns = {}
    for index in wanted:
        one, counts = element.properties[index], np.array(lengths[index])
        firsts = np.repeat(np.array(starts[index]) - (np.cumsum(counts) - counts) * one.dtype.itemsize, counts)
        places = firsts + np.arange(counts.sum()) * one.dtype.itemsize
        taken = np.frombuffer(body, np.uint8)[places[:, None] + np.arange(one.dtype.itemsize)]
        values = taken.view(one.dtype).reshape(-1).astype(one.dtype.newbyteorder("="))
        columns[one.name] = values if one.count is None else Lists(counts, values)
    return columns, place
