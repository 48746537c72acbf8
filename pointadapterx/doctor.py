"""The command ``pointadapterx doctor``: what is wrong with a data set, before anything is trained on it."""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table

from pointadapterx.datasets import DATASETS, build_dataset
from pointadapterx.datasets.base import SPLITS, PointClouds
from pointadapterx.datasets.files import walk_files
from pointadapterx.datasets.folder import AXES, BLOCK, DISTINCT, STORED_POINTS
from pointadapterx.datasets.hashing import content_hash, derive_seed
from pointadapterx.datasets.listings import TABLE_SUFFIX, list_table
from pointadapterx.datasets.point_files import KINDS, MESH_SUFFIXES, read_cloud
from pointadapterx.datasets.workers import map_in_order
from pointadapterx.engine.console import console
from pointadapterx.errors import DataError, PointAdapterXError
from pointadapterx.text import printable

SICK = 1  # exit status where something has to be mended
SHOWN = 4  # files that a line lists
ENOUGH = 4  # clouds of a split or class before its means say anything
ODD = 30.0  # times the median radius of its split
SAME_SCALE = 3.0  # ratio of median radii that passes
ANOTHER_AXIS = 0.5  # of the deviation of extents, that a turn must leave
DEVIATION = 0.1  # of extents, that is worth a word
FLAT = 1e-3  # of the largest side, that the smallest must have
REPEATED = 0.5  # share of points that are copies of another
RARE = 5  # samples of a class in training, below which a validation part and a mean say little


@dataclass(frozen=True)
class Examined:
    """What there is to say of one cloud.

    Attributes:
        points: number of points, of a mesh those that were sampled.
        distinct: different points among them.
        radius: largest distance from the mean.
        extents: share of x, y and z in the bounding box's sum of sides.
        flat: whether the bounding box has no depth.
        digest: equal for clouds with the same points in any order, up to rounding.
        mesh: whether it was sampled from a surface.
    """

    points: int
    distinct: int
    radius: float
    extents: tuple[float, float, float]
    flat: bool
    digest: str
    mesh: bool


class Entry(NamedTuple):
    """A cloud of the set: where it is said to belong, and what it is, or why it cannot be read."""

    name: str
    split: str
    label: str | None
    found: Examined | str


class Finding(NamedTuple):
    """Something to mend (or, as a note, to know), and how."""

    text: str
    fix: str
    note: bool = False


def examine(points: np.ndarray, *, mesh: bool = False) -> Examined:
    """A cloud (n, 3), finite."""
    centred = points - points.mean(axis=0)
    radius = float(np.sqrt(np.square(centred).sum(axis=1)).max())
    sides = np.ptp(points, axis=0)
    total = float(sides.sum()) or 1.0
    rounded = np.unique((centred / (radius or 1.0)).round(4) + 0.0, axis=0)
    shares = (sides / total).tolist()
    return Examined(
        points=len(points),
        distinct=len(np.unique(points, axis=0)),
        radius=radius,
        extents=(shares[0], shares[1], shares[2]),
        flat=bool(sides.min() < FLAT * sides.max()) or radius == 0.0,
        digest=content_hash(rounded),
        mesh=mesh,
    )


@dataclass(frozen=True)
class _Reader:
    """Examines the file of a name; picklable, for other processes."""

    root: Path

    def __call__(self, name: str) -> Examined | str:
        path = self.root / name
        mesh = path.suffix.lower() in MESH_SUFFIXES
        try:  # one draw for all meshes, so that copies stay copies
            return examine(read_cloud(path, STORED_POINTS, derive_seed("surface", "")), mesh=mesh)
        except DataError as error:
            return str(error)


def read_entries(path: Path, workers: int | None = None) -> Iterator[Entry]:
    """Clouds of a folder (with folders of classes for each split, or without labels) or of a table of files.

    Raises:
        DataError: if there is nothing to examine.
    """
    listed = list(_list(path))
    if not listed:
        raise DataError(f"{path}: no file that is read in it ({' '.join(KINDS)})")
    root = path if path.is_dir() else path.parent
    names = [name for name, _, _ in listed]
    for (name, split, label), found in zip(listed, map_in_order(_Reader(root), names, BLOCK, workers), strict=True):
        yield Entry(name, split, label, found)


def _list(path: Path) -> Iterator[tuple[str, str, str | None]]:
    if path.is_file() and path.suffix.lower() == TABLE_SUFFIX:
        for split in SPLITS:
            listing = list_table(path, split)
            for name, label in zip(listing.names, listing.labels.tolist(), strict=True):
                yield name, split, listing.classes[label]
        return
    if not path.is_dir():
        raise DataError(
            f"{path}: is no folder and no table ({TABLE_SUFFIX}) of files; give one, or --name for a data set"
        )
    splits = all((path / split).is_dir() for split in SPLITS)
    for file in sorted(walk_files(path)):
        if file.suffix.lower()[1:] not in KINDS:
            continue
        name = file.relative_to(path).as_posix()
        parts = name.split("/")
        if not splits:
            yield name, "train", None
        elif parts[0] in SPLITS:
            yield name, parts[0], parts[1] if len(parts) > 2 else None


def entries_of(data: PointClouds) -> Iterator[Entry]:
    """Clouds of a data set that was read."""
    for number, (points, label) in enumerate(zip(data.points, data.labels.tolist(), strict=True)):
        name = data.names[number] if data.names is not None else f"{data.split} {number}"
        cloud = points.double().numpy()
        bad = not bool(np.isfinite(cloud).all())
        yield Entry(
            name, data.split, data.classes[label], "holds values that are not finite" if bad else examine(cloud)
        )


def diagnose(entries: Sequence[Entry], *, wanted: int, groups: int) -> list[Finding]:
    """What is wrong with a set.

    Args:
        entries: all of its clouds.
        wanted: points that are kept of a cloud, data.stored_points.
        groups: distinct points that its groups need at least.
    """
    good = [(entry, entry.found) for entry in entries if isinstance(entry.found, Examined)]
    findings: list[Finding] = []
    for check in (_unreadable, _labels, _points, _shapes, _duplicates, _splits):
        findings += check(entries, good, wanted, groups)
    return findings


Good = Sequence[tuple[Entry, Examined]]


def _names(entries: Sequence[Entry]) -> str:
    more = f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
    return ", ".join(entry.name for entry in entries[:SHOWN]) + more


def _unreadable(entries: Sequence[Entry], good: Good, wanted: int, groups: int) -> Iterator[Finding]:
    bad = [entry for entry in entries if isinstance(entry.found, str)]
    for entry in bad[:SHOWN]:
        yield Finding(str(entry.found), "replace or remove the file")
    if len(bad) > SHOWN:
        yield Finding(f"{len(bad) - SHOWN} more files cannot be read", "replace or remove them")


def _labels(entries: Sequence[Entry], good: Good, wanted: int, groups: int) -> Iterator[Finding]:
    if all(entry.label is None for entry in entries):
        return
    outside = [entry for entry in entries if entry.label is None]
    if outside:
        yield Finding(f"in no folder of a class: {_names(outside)}", "move the files into one, or remove them")
    count = {split: Counter(e.label for e, _ in good if e.split == split and e.label) for split in SPLITS}
    for split in SPLITS:
        if not count[split]:
            yield Finding(f"split {split} has no cloud that can be read", f"add some to {split}")
    if count["train"] and len(count["train"]) < 2:
        yield Finding("training has one class", "a classifier needs at least two")
    strange = sorted(set(count["test"]) - set(count["train"]))
    if strange and count["train"]:
        yield Finding(f"classes of the test alone: {', '.join(strange)}", "add training clouds, or remove them")
    untested = sorted(set(count["train"]) - set(count["test"]))
    if untested and count["test"]:
        yield Finding(f"classes without a test cloud: {', '.join(untested)}", "their accuracy stays unknown", note=True)
    rare = sorted(name for name, number in count["train"].items() if number < RARE)
    if rare:
        listed = ", ".join(f"{name} ({count['train'][name]})" for name in rare)
        yield Finding(f"classes with fewer than {RARE} training clouds: {listed}", "add some, or merge classes")
    alike = defaultdict(set)
    for name in (*count["train"], *count["test"]):
        alike["".join(character for character in name.lower() if character.isalnum())].add(name)
    for names in alike.values():
        if len(names) > 1:
            yield Finding(f"classes that may be one: {', '.join(sorted(names))}", "name them alike, if they are")


def _points(entries: Sequence[Entry], good: Good, wanted: int, groups: int) -> Iterator[Finding]:
    few = [entry for entry, found in good if found.distinct < groups]
    if few:
        yield Finding(
            f"fewer than {groups} different points, too few for the model's groups: {_names(few)}", "remove them"
        )
    sparse = [
        (entry, found.distinct)
        for entry, found in good
        if groups <= found.distinct and (found.points < wanted or found.distinct < DISTINCT * wanted)
    ]
    if sparse:
        least = min(distinct for _, distinct in sparse)
        yield Finding(
            f"fewer than {wanted} different points: {_names([entry for entry, _ in sparse])}",
            f"scan more densely, or set data.stored_points={least} (and data.num_points to no more)",
        )
    repeated = [
        entry
        for entry, found in good
        if found.distinct >= DISTINCT * wanted and found.distinct < (1 - REPEATED) * found.points
    ]
    if repeated:
        yield Finding(f"most points are copies of others: {_names(repeated)}", "remove the copies, if they are padding")


def _shapes(entries: Sequence[Entry], good: Good, wanted: int, groups: int) -> Iterator[Finding]:
    flat = [entry for entry, found in good if found.flat]
    if flat:
        yield Finding(f"flat in one direction: {_names(flat)}", "look whether a column is missing or constant")
    for split in SPLITS:
        sizes = [(entry, found.radius) for entry, found in good if entry.split == split and found.radius > 0]
        middle = float(np.median([radius for _, radius in sizes])) if len(sizes) >= ENOUGH else None
        far = [e for e, radius in sizes if middle is not None and not middle / ODD < radius < middle * ODD]
        if far:
            yield Finding(
                f"more than {ODD:g} times larger or smaller than the others: {_names(far)}",
                "look for another unit, or points far away from the object",
            )


def _duplicates(entries: Sequence[Entry], good: Good, wanted: int, groups: int) -> Iterator[Finding]:
    same: dict[str, list[Entry]] = defaultdict(list)
    for entry, found in good:
        if not found.flat:
            same[found.digest].append(entry)
    copies = [group for group in same.values() if len(group) > 1]
    leaks = [group for group in copies if len({entry.split for entry in group}) > 1]
    for group in leaks[:SHOWN]:
        yield Finding(f"the same cloud in training and test: {_names(group)}", "remove it from one of them")
    if len(leaks) > SHOWN:
        yield Finding(f"{len(leaks) - SHOWN} more clouds are in training and test", "remove them from one of the two")
    for group in copies:
        if len({entry.label for entry in group}) > 1:
            yield Finding(f"the same cloud in two classes: {_names(group)}", "decide for one")
    within = [e for group in copies if group not in leaks and len({e.label for e in group}) == 1 for e in group[1:]]
    if within:
        yield Finding(f"copies within a split: {_names(within)}", "remove them, or give them one group in a table")


def _splits(entries: Sequence[Entry], good: Good, wanted: int, groups: int) -> Iterator[Finding]:
    parts = {split: [found for entry, found in good if entry.split == split] for split in SPLITS}
    if min(len(part) for part in parts.values()) < ENOUGH:
        return
    scale = {split: float(np.median([found.radius for found in part])) for split, part in parts.items()}
    ratio = scale["test"] / scale["train"] if scale["train"] else 1.0
    if not 1 / SAME_SCALE < ratio < SAME_SCALE:
        yield Finding(
            f"test clouds are {ratio:.3g} times as large as training clouds",
            "bring them into one unit (data.normalize brings each into the unit sphere)",
        )
    turn = other_axis(*(_extents(good, split) for split in ("test", "train")))
    if turn:
        yield Finding(
            f"test clouds are shaped as training clouds with {AXES[1 - turn]} in place of y up",
            "turn the clouds of one split",
        )


def _extents(good: Good, split: str) -> dict[str | None, np.ndarray]:
    """Mean extents (3,) of a split by class."""
    by_class: dict[str | None, list[tuple[float, float, float]]] = defaultdict(list)
    for entry, found in good:
        if entry.split == split:
            by_class[entry.label].append(found.extents)
    return {label: np.mean(extents, axis=0) for label, extents in by_class.items() if len(extents) >= ENOUGH}


def other_axis(found: Mapping[str | None, np.ndarray], wanted: Mapping[str | None, np.ndarray]) -> int:
    """Number of cyclic steps of x, y, z by which classes' extents (3,) fit others clearly better, or 0."""
    labels = found.keys() & wanted.keys()
    if not labels:
        return 0
    deviation = [
        float(np.mean([np.linalg.norm(np.roll(found[label], step) - wanted[label]) for label in labels]))
        for step in range(3)
    ]
    best = int(np.argmin(deviation))
    clear = deviation[0] > DEVIATION and deviation[best] < ANOTHER_AXIS * deviation[0]
    return best if clear else 0


def overview(entries: Sequence[Entry]) -> Table:
    """Clouds per class and split, and the range of their points."""
    table = Table(title="clouds", title_justify="left")
    table.add_column("class")
    splits = [split for split in SPLITS if any(entry.split == split for entry in entries)]
    for split in splits:
        table.add_column(split, justify="right")
    table.add_column("points", justify="right")
    for label in sorted({entry.label or "" for entry in entries}):
        mine = [entry for entry in entries if (entry.label or "") == label]
        sizes = [entry.found.points for entry in mine if isinstance(entry.found, Examined)]
        span = (
            "" if not sizes else f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
        )
        counts = [str(sum(entry.split == split for entry in mine)) for split in splits]
        table.add_row(printable(label) or "no label", *counts, span)
    return table


def main(argv: Sequence[str], prog: str = "pointadapterx doctor") -> int:
    """Runs the command.

    Returns:
        0 if nothing has to be mended, 1 if something has, 2 for wrong input.
    """
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("path", type=Path, nargs="?", help="folder, table of files, or where the data set --name lies")
    names = sorted(name for name, kind in DATASETS.items() if kind.modality == "points" and name != "folder")
    parser.add_argument("--name", choices=names, help="a data set, checked as its reader does besides")
    parser.add_argument("--variant", help="of the data set")
    parser.add_argument(
        "--stored-points", type=int, default=STORED_POINTS, help=f"data.stored_points (default {STORED_POINTS})"
    )
    parser.add_argument("--groups", type=int, default=64, help="its groups, or the points of one if these are more")
    parser.add_argument("--workers", type=int, help="processes that read files (default: all cores)")
    options = parser.parse_args(argv)
    if options.path is None and options.name is None:
        parser.error("give a folder or a table of files, or --name for a data set")
    try:
        if options.name is None:
            entries = list(read_entries(options.path, options.workers))
        else:
            entries = []
            for split in SPLITS:
                data = build_dataset(options.name, split, root=options.path, variant=options.variant)
                assert isinstance(data, PointClouds)
                entries += entries_of(data)
    except PointAdapterXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print(overview(entries))
    findings = diagnose(entries, wanted=options.stored_points, groups=options.groups)
    for finding in findings:
        mark = "note" if finding.note else "TO MEND"
        console.print(printable(f"{mark}: {finding.text}; {finding.fix}"), highlight=False, soft_wrap=True)
    sick = sum(not finding.note for finding in findings)
    console.print("nothing to mend" if not sick else f"{sick} to mend", style="green" if not sick else "yellow")
    return SICK if sick else 0
