"""Which split and class files are of, by the names of their folders: one answer, for training and for the doctor."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path

import numpy as np

from pointadapterx.datasets.hashing import derive_seed
from pointadapterx.errors import DataError

logger = logging.getLogger(__name__)

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
HELD_OUT = 0.2  # of each class, where the files have no test split
HELD_OUT_SEED = 0  # that of every run, so that all of them are tested on the same samples


def part_of(name: str) -> str | None:
    """``"train"``, ``"val"`` or ``"test"``, whatever the case and ending of its name; None for another name."""
    return PARTS.get(name.lower())


def parts_of_split(split: str, found: Collection[str]) -> tuple[str, ...]:
    """The parts that make a split: a validation part belongs to training, or is the test where no other is.

    Args:
        split: ``"train"`` or ``"test"``.
        found: of ``"train"``, ``"val"`` and ``"test"``, what is there.

    Returns:
        Nothing where the test split has to be cut from that of training, by :func:`hold_out`.
    """
    if split == "train":
        return ("train", "val") if {"val", "test"} <= set(found) else ("train",)
    return next(((part,) for part in ("test", "val") if part in found), ())


def hold_out(labels: Sequence[Hashable], keys: Sequence[str], units: Sequence[Hashable] | None = None) -> np.ndarray:
    """A test part where the files have none: about 20 % of each class, the same in every run.

    Every draw depends on names alone, so most samples keep their side when others are added.

    Args:
        labels: n classes.
        keys: n names, all different.
        units: n objects; samples of one object are on one side. Each sample is of its own by default.

    Returns:
        ``(n,)`` bool, the samples held out: none of a class that has a single sample or object, else at least one.

    Raises:
        DataError: if no class has two.
    """
    units = list(keys) if units is None else units
    members: dict[Hashable, list[int]] = {}
    for index in sorted(range(len(keys)), key=lambda index: derive_seed(HELD_OUT_SEED, "held out", keys[index])):
        members.setdefault(units[index], []).append(index)
    total, held = _counts(labels, range(len(labels))), dict.fromkeys(labels, 0)
    chosen = np.zeros(len(labels), dtype=bool)

    def take(unit: list[int], most: dict[Hashable, int]) -> None:
        of_unit = _counts(labels, unit)
        if not chosen[unit[0]] and all(held[label] + count <= most[label] for label, count in of_unit.items()):
            chosen[unit] = True
            for label, count in of_unit.items():
                held[label] += count

    wanted = {label: max(1, round(HELD_OUT * count)) for label, count in total.items()}
    for unit in members.values():
        take(unit, {label: min(wanted[label], total[label] - 1) for label in total})
    for unit in sorted(members.values(), key=len):  # classes of few, large objects
        if any(held[labels[index]] == 0 for index in unit):
            take(unit, {label: total[label] - 1 for label in total})
    if not chosen.any():
        raise DataError("no test split, and none can be held out, as no class has two samples or objects; add some")
    return chosen


def _counts(labels: Sequence[Hashable], indices: Collection[int]) -> dict[Hashable, int]:
    counts: dict[Hashable, int] = {}
    for index in indices:
        counts[labels[index]] = counts.get(labels[index], 0) + 1
    return counts


def say_held_out(where: Path, held_out: np.ndarray) -> None:
    """A warning, as a result depends on it."""
    logger.warning(
        "%s: no test split: %.0f %% of each class, %d of %d clouds, are held out for the test, the same in every run",
        *(where, 100 * HELD_OUT, int(held_out.sum()), len(held_out)),
    )
