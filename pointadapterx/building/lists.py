"""Which models a set has, in which order, with class, group and side of the split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "lists"


@dataclass(frozen=True)
class Model:
    """A row of a list.

    Attributes:
        part: the file that it goes to, such as ``train``.
        label: its class; empty for clouds without labels.
        group: the same for near-duplicates; empty where names say it.
        name: of the model in the package.
    """

    part: str
    label: str
    group: str
    name: str


@cache
def read_list(name: str) -> tuple[Model, ...]:
    """The list of a set: a table of tab-separated columns, with their names in the first line."""
    head, *lines = (FOLDER / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    columns = head.split("\t")
    rows = (dict(zip(columns, line.split("\t"), strict=True)) for line in lines)
    return tuple(Model(row["part"], row["class"], row.get("group", ""), row["model"]) for row in rows)


def parts_of(models: Sequence[Model]) -> dict[str, list[Model]]:
    """The models of each file."""
    found: dict[str, list[Model]] = {}
    for model in models:
        found.setdefault(model.part, []).append(model)
    return found
