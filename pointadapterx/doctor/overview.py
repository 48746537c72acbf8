"""The table of what a data set holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from pointadapterx.doctor.checks import PARTS
from pointadapterx.doctor.examined import Entry, Examined
from pointadapterx.text import printable


def of_point_classes(entries: Sequence[Entry]) -> Table | None:
    """In how many clouds of each part some points have a class; None where points have no labels."""
    known = list(dict.fromkeys(name for entry in entries for name in entry.point_classes))
    if not known:
        return None
    table = Table(title="clouds with points of a class", title_justify="left")
    table.add_column("class of points")
    parts = [part for part in PARTS if any(entry.part == part for entry in entries)]
    for part in parts:
        table.add_column(part, justify="right")
    good = [(entry.part, entry.found.point_classes) for entry in entries if isinstance(entry.found, Examined)]
    count = Counter((part, name) for part, names in good for name in names)
    for name in known:
        table.add_row(printable(name), *(str(count[part, name]) for part in parts))
    return table


def overview(entries: Sequence[Entry]) -> Table:
    """Clouds per class and part, and the range of their points."""
    table = Table(title="clouds", title_justify="left")
    table.add_column("class")
    parts = [part for part in PARTS if any(entry.part == part for entry in entries)]
    for part in parts:
        table.add_column(part, justify="right")
    table.add_column("points", justify="right")
    for label in sorted({entry.label or "" for entry in entries}):
        mine = [entry for entry in entries if (entry.label or "") == label]
        sizes = [entry.found.points for entry in mine if isinstance(entry.found, Examined)]
        span = (
            "" if not sizes else f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
        )
        counts = [str(sum(entry.part == part for entry in mine)) for part in parts]
        table.add_row(printable(label) or "no label", *counts, span)
    return table
