"""Examines every picture of a data set and its mask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table

from pointadapterx.datasets.base import SPLITS
from pointadapterx.datasets.image_masks import MaskedFiles, Pair, count_problem
from pointadapterx.datasets.image_transforms import IGNORED
from pointadapterx.datasets.images import THREADS, decode, read_bytes
from pointadapterx.doctor.checks import PARTS, RARE, Finding, Reason, folded
from pointadapterx.errors import DataError
from pointadapterx.hashing import hash_bytes


@dataclass(frozen=True)
class Seen:
    """A picture that was read with its mask.

    Attributes:
        name: in what is printed.
        part: ``"train"``, ``"val"`` or ``"test"``.
        digest: of the picture's file.
        pixels: (C,) int64, of each class.
        unlabelled: pixels without a class.
    """

    name: str
    part: str
    digest: str
    pixels: np.ndarray
    unlabelled: int


def examine_pictures(
    kind: type[MaskedFiles], root: Path | None, variant: str | None, shown: int | None
) -> tuple[Table, list[Finding]]:
    """What there is, and what is wrong with it.

    Args:
        kind: of data set.
        root: its folder; None: where it is looked for.
        variant: of it.
        shown: files that a line lists, and lines of one kind; None: all.

    Raises:
        ConfigError, DataError: if nothing can be listed.
    """
    folder = kind.folder(root, variant)
    classes = list(kind.classes_of(folder, variant))
    seen, bad, findings = list[Seen](), list[str](), list[Finding]()
    if (problem := count_problem(classes, folder)) is not None:
        return _overview((), classes), [Finding(problem)]
    for split in SPLITS:
        pairs = list(kind.pairs(split, folder, variant))
        if not pairs:
            findings.append(Finding(f"split {split} has no picture", f"expected {kind.layout}"))
        with ThreadPoolExecutor(THREADS) as pool:
            for found in pool.map(partial(_look, split=split, count=len(classes)), pairs):
                (bad if isinstance(found, str) else seen).append(found)  # type: ignore[arg-type]
    findings += folded([Reason.of(text) for text in bad], shown, "pictures or masks cannot be used")
    findings += [finding for check in (_classes, _blank, _copies) for finding in check(seen, classes, shown)]
    return _overview(seen, classes), findings


def _look(pair: Pair, *, split: str, count: int) -> Seen | str:
    """A pair that is fine, or what is wrong with it."""
    problem = pair.problem()
    if problem is not None:
        return problem
    assert not isinstance(pair.mask, str)
    try:
        decode(pair.picture, None, None)
        pixels = np.bincount(pair.mask.read().ravel(), minlength=256)
        digest = hash_bytes(read_bytes(pair.picture))
    except DataError as error:
        return str(error)
    part = "val" if pair.validation else split
    return Seen(f"{split}/{pair.name}", part, digest, pixels[:count], int(pixels[IGNORED]))


def _names(names: Sequence[str], shown: int | None) -> str:
    more = f" and {len(names) - shown} more" if shown is not None and len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _classes(seen: Sequence[Seen], classes: Sequence[str], shown: int | None) -> Iterator[Finding]:
    pictures = {
        part: np.sum([one.pixels > 0 for one in seen if (one.part == "test") == (part == "test")], axis=0, dtype=int)
        for part in SPLITS
    }
    train, test = (np.broadcast_to(pictures[part], len(classes)) for part in SPLITS)
    if not seen:
        return
    strange = [name for name, a, b in zip(classes, train, test, strict=True) if b and not a]
    if strange:
        yield Finding(f"classes of the test alone: {_names(strange, shown)}", "add training pictures with them")
    untested = [name for name, a, b in zip(classes, train, test, strict=True) if a and not b]
    if untested and test.any():
        yield Finding(f"classes without a test pixel: {_names(untested, shown)}", "their IoU stays unknown", note=True)
    absent = [name for name, a, b in zip(classes, train, test, strict=True) if not a and not b]
    if absent:
        yield Finding(f"classes that no picture shows: {_names(absent, shown)}", "nothing to do", note=True)
    rare = [f"{name} ({a})" for name, a in zip(classes, train, strict=True) if 0 < a < RARE]
    if rare:
        yield Finding(f"classes in fewer than {RARE} training pictures: {_names(rare, shown)}", "add some")


def _blank(seen: Sequence[Seen], classes: Sequence[str], shown: int | None) -> Iterator[Finding]:
    blank = [one.name for one in seen if one.pixels.sum() == 0]
    if blank:
        yield Finding(f"no pixel has a class: {_names(blank, shown)}", "label them, or remove the pictures")


def _copies(seen: Sequence[Seen], classes: Sequence[str], shown: int | None) -> Iterator[Finding]:
    same: dict[str, list[Seen]] = defaultdict(list)
    for one in seen:
        same[one.digest].append(one)
    copies = [group for group in same.values() if len({one.part for one in group}) > 1]
    for group in copies[:shown]:
        where = " and ".join(name for part, name in PARTS.items() if any(one.part == part for one in group))
        names = _names([one.name for one in group], shown)
        yield Finding(f"the same picture in {where}: {names}", "keep it in one of them")
    if shown is not None and len(copies) > shown:
        yield Finding(f"{len(copies) - shown} more pictures are in several parts", "list them with --all")


def _overview(seen: Sequence[Seen], classes: Sequence[str]) -> Table:
    """Pictures of each part, and pixels of each class."""
    table = Table(title=f"{len(seen)} pictures with masks, {len(classes)} classes", title_justify="left")
    parts = [part for part in PARTS if any(one.part == part for one in seen)]
    table.add_column("class")
    for part in parts:
        table.add_column(f"{PARTS[part]}: pictures", justify="right")
        table.add_column("pixels", justify="right")
    totals = {part: np.sum([one.pixels for one in seen if one.part == part], axis=0) for part in parts}
    shows = {part: np.sum([one.pixels > 0 for one in seen if one.part == part], axis=0) for part in parts}
    every = {part: sum(one.unlabelled for one in seen if one.part == part) + totals[part].sum() for part in parts}
    for number, name in enumerate(classes):
        cells = [(f"{shows[part][number]}", f"{100 * totals[part][number] / every[part]:.1f} %") for part in parts]
        table.add_row(name, *(text for cell in cells for text in cell))
    of_parts = {part: [one for one in seen if one.part == part] for part in parts}
    unknown = [(f"{sum(one.unlabelled > 0 for one in of_parts[part])}", part) for part in parts]
    table.add_section()
    table.add_row(
        "unlabelled",
        *(text for count, part in unknown for text in (count, f"{100 * (1 - totals[part].sum() / every[part]):.1f} %")),
    )
    table.add_row("all", *(text for part in parts for text in (f"{len(of_parts[part])}", f"{every[part]:,}")))
    return table
