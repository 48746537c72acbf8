"""Cells and tables of a report in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pointadapterx.study.comparing import Difference
from pointadapterx.study.statistics import Interval, Spread

NONE = "–"


def table_lines(header: Iterable[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown."""
    cells = list(header)
    yield _line(cells)
    yield _line(["---"] * len(cells))
    for row in rows:
        yield _line(row)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def spread_cell(value: Spread | None) -> str:
    """``62.00 ± 2.83``."""
    if value is None:
        return NONE
    return f"{value.mean:.2f}" if value.std is None else f"{value.mean:.2f} ± {value.std:.2f}"


def interval_cell(value: Interval | None, sign: str = "") -> str:
    """`` [60.00, 64.00]``, to follow a value."""
    return "" if value is None else f" [{value.low:{sign}.2f}, {value.high:{sign}.2f}]"


def difference_cell(value: Difference | None) -> str:
    """``+1.00 [-0.50, +2.50]``, with p where it is known."""
    if value is None:
        return NONE
    p = "" if value.p is None else f", p = {value.p:.3f}" if value.p >= 0.001 else ", p < 0.001"
    return f"{value.mean:+.2f}{interval_cell(value.interval, '+')}{p}"


def number_cell(value: float | None, format_spec: str) -> str:
    """A number, or what stands for none."""
    return NONE if value is None else format(value, format_spec)
