"""What is wrong with pictures with objects in them, before anything is trained on them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rich.table import Table

from pointadapterx.datasets.images import THREADS, decode, read_bytes
from pointadapterx.datasets.object_images import Annotated, Doubts, ObjectImages
from pointadapterx.datasets.outlines import EXTRA, Instance, drawn
from pointadapterx.doctor.checks import PARTS, RARE, Finding, Reason, folded
from pointadapterx.errors import DataError
from pointadapterx.hashing import hash_bytes
from pointadapterx.optional import missing
from pointadapterx.text import printable

Parts = Mapping[str, Sequence[Annotated]]


def examine_objects(kind: type[ObjectImages], root: Path | None, shown: int | None) -> tuple[Table, list[Finding]]:
    """A table of what there is, and what to mend.

    Args:
        kind: of the data set.
        root: of its files.
        shown: lines of one kind; None: all.

    Raises:
        ConfigError, DataError: if nothing can be read.
    """
    parts: dict[str, list[Annotated]] = {}
    findings: list[Finding] = []
    for name, pictures, doubts in kind.examined(root):
        parts[name] = pictures
        findings += _of_part(doubts, shown)
    with ThreadPoolExecutor(THREADS) as pool:
        files = [one for pictures in parts.values() for one in pictures]
        drawn_by = missing("pycocotools.mask", EXTRA)
        looked = list(pool.map(partial(_looked_at, polygons=drawn_by is None), files))
    if drawn_by is not None and any(not isinstance(shape, Instance | None) for one in files for shape in one.outlines):
        findings.append(Finding("outlines are not looked at", f"pycocotools {drawn_by}", note=True))
    findings += folded([Reason.of(problem) for problem, _ in looked if problem], shown, "files")
    digests = iter(digest for _, digest in looked)
    by_part = {name: [(one, next(digests)) for one in pictures] for name, pictures in parts.items()}
    findings += [*_copies(by_part, shown), *_classes(parts), *_pictures(parts)]
    return _table(parts), findings


def _of_part(doubts: Doubts, shown: int | None) -> Iterator[Finding]:
    yield from _first([Finding(text) for text in doubts.found], shown, "errors in annotations")
    yield from (Finding(text, "nothing to do, if that is right", note=True) for text in doubts.notes())


def _first(findings: list[Finding], shown: int | None, what: str) -> Iterator[Finding]:
    yield from findings[:shown]
    if shown is not None and len(findings) > shown:
        yield Finding(f"{len(findings) - shown} more {what}", "list them with --all")


def _looked_at(one: Annotated, *, polygons: bool) -> tuple[str, str]:
    """What is wrong with a picture or an outline in it, or empty, and a hash of its file.

    Args:
        one: the picture, which is decoded.
        polygons: whether to draw polygons and run lengths, too.
    """
    try:
        height, width = decode(one.path, None, None).shape[-2:]
        content = hash_bytes(read_bytes(one.path))
    except DataError as error:
        return str(error), ""
    if (width, height) != one.size:
        return (
            f"{one.path}: is {width} x {height} pixels, but its annotations are of {one.size[0]} x {one.size[1]}; "
            "correct them, or obtain the picture again"
        ), content
    for number, outline in enumerate(one.outlines, 1):
        if isinstance(outline, Instance) or (polygons and outline is not None):
            try:
                drawn([outline], width, height, f"{one.path}, object {number}")
            except DataError as error:
                return str(error), content
    return "", content


def _copies(parts: Mapping[str, Sequence[tuple[Annotated, str]]], shown: int | None) -> Iterator[Finding]:
    """Pictures that are in several parts, or twice in one."""
    same: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for part, pictures in parts.items():
        for one, digest in pictures:
            if digest:
                same[digest].append((part, one.name))
    leaks, within = [], []
    for copies in same.values():
        known = {part for part, _ in copies}
        names = ", ".join(name for _, name in copies)
        if len(known) > 1:
            where = " and ".join(words for part, words in PARTS.items() if part in known)
            leaks.append(Finding(f"the same picture in {where}: {names}", "keep it in one of them"))
        elif len(copies) > 1:
            within.append(Finding(f"the same picture twice: {names}", "remove one, with its objects"))
    yield from _first(leaks, shown, "pictures are in several parts")
    yield from _first(within, shown, "pictures are there twice")


def _classes(parts: Parts) -> Iterator[Finding]:
    counts = {part: Counter(name for one in pictures for name in one.labels) for part, pictures in parts.items()}
    train, test = counts["train"], counts["test"]
    rare = sorted(name for name, count in train.items() if count < RARE)
    if rare:
        listed = ", ".join(f"{name} ({train[name]})" for name in rare)
        yield Finding(f"classes with fewer than {RARE} training objects: {listed}", "add some, or merge classes")
    untested = sorted(set(train) - set(test))
    if untested:
        yield Finding(f"classes without a test object: {', '.join(untested)}", "their AP stays unknown", note=True)
    alike = defaultdict(set)
    for name in {*train, *test}:
        alike["".join(character for character in name.lower() if character.isalnum())].add(name)
    for names in alike.values():
        if len(names) > 1:
            yield Finding(f"classes that may be one: {', '.join(sorted(names))}", "name them alike, if they are")


def _pictures(parts: Parts) -> Iterator[Finding]:
    for part, pictures in parts.items():
        empty = [one.name for one in pictures if not one.labels]
        if pictures and len(empty) == len(pictures):
            yield Finding(f"no picture of the {PARTS[part]} part has an object", "add annotations")
        elif empty:
            text = f"{len(empty)} of {len(pictures)} {PARTS[part]} pictures have no object, first {empty[0]}"
            yield Finding(text, "nothing to do, if nothing is to be found in them", note=True)
    outlines = [outline is not None for pictures in parts.values() for one in pictures for outline in one.outlines]
    if any(outlines) and not all(outlines):
        text = f"{outlines.count(False)} of {len(outlines)} objects have no outline"
        yield Finding(text, "draw them, or train boxes alone (task.head=faster_rcnn or retinanet)", note=True)


def _table(parts: Parts) -> Table:
    """Objects per class and part."""
    table = Table(title="objects", title_justify="left")
    table.add_column("class")
    for part in parts:
        table.add_column(part, justify="right")
    for name in sorted({label for pictures in parts.values() for one in pictures for label in one.labels}):
        counts = (sum(one.labels.count(name) for one in pictures) for pictures in parts.values())
        table.add_row(printable(name), *map(str, counts))
    table.add_section()
    table.add_row("pictures", *(str(len(pictures)) for pictures in parts.values()))
    return table
