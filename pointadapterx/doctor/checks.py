"""Checks of a data set, one function for each kind of problem."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import NamedTuple

import numpy as np

from pointadapterx.datasets.base import AXES, SPLITS
from pointadapterx.datasets.cloud_reader import DISTINCT
from pointadapterx.datasets.doubts import Doubt
from pointadapterx.doctor.examined import Entry, Examined

SHOWN = 4  # files that a line lists, and lines of one kind
ENOUGH = 4  # clouds of a split or class before its means say anything
ODD = 30.0  # times the median radius of its split
SAME_SCALE = 3.0  # ratio of median radii that passes
ANOTHER_AXIS = 0.5  # of the deviation of extents, that a turn must leave
DEVIATION = 0.1  # of extents, that is worth a word
PARTS = {"train": "training", "val": "validation", "test": "test"}
REPEATED = 0.5  # share of points that are copies of another
RARE = 5  # samples of a class in training, below which a validation part and a mean say little


class Finding(NamedTuple):
    """A problem (or, as a note, a fact), and how to fix it, unless the text already says so."""

    text: str
    fix: str = ""
    note: bool = False


class Subject(NamedTuple):
    """The examined data set, and the sizes against which it is checked.

    Attributes:
        entries: all clouds.
        good: those that could be read.
        wanted: points that are kept of a cloud.
        groups: different points that the model's groups need at least.
        shown: files that a line lists, and lines of one kind; None: all.
    """

    entries: Sequence[Entry]
    good: Sequence[tuple[Entry, Examined]]
    wanted: int
    groups: int
    shown: int | None

    def rest(self, items: Sized) -> int:
        """The number of items that the list omits."""
        return 0 if self.shown is None else max(0, len(items) - self.shown)

    def names(self, entries: Sequence[Entry]) -> str:
        """The first items as a list, and the number of the others."""
        return self.listed([entry.name for entry in entries])

    def listed(self, names: Sequence[str]) -> str:
        """The same of names."""
        return ", ".join(names[: self.shown]) + (f" and {self.rest(names)} more" if self.rest(names) else "")


def diagnose(entries: Sequence[Entry], *, wanted: int, groups: int, shown: int | None = SHOWN) -> list[Finding]:
    """Finds all problems of a data set.

    Args:
        entries: all of its clouds.
        wanted: points that are kept of a cloud, data.stored_points.
        groups: distinct points that its groups need at least.
        shown: files that a line lists, and lines of one kind; None: all.
    """
    good = [(entry, entry.found) for entry in entries if isinstance(entry.found, Examined)]
    subject = Subject(entries, good, wanted, groups, shown)
    checks = (_unreadable, _labels, _point_classes, _doubts, _points, _shapes, _duplicates, _splits)
    return [finding for check in checks for finding in check(subject)]


def _unreadable(of: Subject) -> Iterator[Finding]:
    bad = [(entry.name, entry.found) for entry in of.entries if isinstance(entry.found, str)]
    reasons = [Reason(reason, name, reason.partition(f"{name}: ")[2] or reason) for name, reason in bad]
    for finding in folded(reasons, of.shown, "files cannot be read"):
        yield finding if finding.fix or "; " in finding.text else finding._replace(fix="replace or remove the file")


class Reason(NamedTuple):
    """Why a file cannot be read.

    Attributes:
        text: all of it.
        name: of the file.
        cause: the text without the name; equal for files with which the same is wrong.
    """

    text: str
    name: str
    cause: str

    @classmethod
    def of(cls, text: str) -> Reason:
        """Of a message that begins with the file."""
        name, _, cause = text.partition(": ")
        return cls(text, name, cause or text)


def folded(reasons: Sequence[Reason], shown: int | None, what: str) -> Iterator[Finding]:
    """A finding for each cause, with the files that have it.

    Args:
        reasons: of all files.
        shown: causes that are listed, and files of one; None: each file has a finding.
        what: is wrong with the rest, ``"files cannot be read"``.
    """
    if shown is None:
        yield from (Finding(reason.text) for reason in reasons)
        return
    by_cause: dict[str, list[Reason]] = defaultdict(list)
    for reason in reasons:
        by_cause[reason.cause].append(reason)
    groups = list(by_cause.items())
    for cause, same in groups[:shown]:
        listed = ", ".join(reason.name for reason in same[:shown])
        more = f" and {len(same) - shown} more" if len(same) > shown else ""
        first = same[0]
        alone = first.text if first.name in first.text else f"{first.name}: {first.text}"
        yield Finding(alone if len(same) == 1 else f"{len(same)} files ({listed}{more}): {cause}")
    rest = sum(len(same) for _, same in groups[shown:])
    if rest:
        yield Finding(f"{rest} more {what}", "list them with --all")


def _labels(of: Subject) -> Iterator[Finding]:
    entries, good = of.entries, of.good
    if all(entry.label is None for entry in entries):
        return
    outside = [entry for entry in entries if entry.label is None]
    if outside:
        yield Finding(f"in no folder of a class: {of.names(outside)}", "move the files into one, or remove them")
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


def _point_classes(of: Subject) -> Iterator[Finding]:
    """Of data sets whose points have labels."""
    known = list(dict.fromkeys(name for entry in of.entries for name in entry.point_classes))
    if not known:
        return
    seen = {
        split: {name for e, found in of.good if e.split == split for name in found.point_classes} for split in SPLITS
    }
    strange = sorted(seen["test"] - seen["train"])
    if strange and seen["train"]:
        yield Finding(f"classes of points of the test alone: {', '.join(strange)}", "add training clouds with them")
    untested = [name for name in known if name in seen["train"] and name not in seen["test"]]
    if untested and seen["test"]:
        text = f"classes without a test point: {of.listed(untested)}"
        yield Finding(text, "their IoU stays unknown", note=True)
    for split in SPLITS:
        if not any(entry.split == split for entry, _ in of.good):
            yield Finding(f"split {split} has no cloud that can be read", f"add some to {split}")
    empty = [name for name in known if name not in seen["train"]]
    if empty and seen["train"]:
        text = f"classes without a training point: {of.listed(empty)}"
        yield Finding(text, "nothing, if it is rare; otherwise label some", note=True)
    odd = list(_of_other_labels(of))
    if odd:
        text = f"labels that no other training cloud has: {of.names(odd)}"
        yield Finding(text, "look whether they are numbered otherwise")
    if len(seen["train"]) == 1:
        yield Finding("training points have one class", "a model that labels points needs at least two")


def _of_other_labels(of: Subject) -> Iterator[Entry]:
    """Training clouds none of whose classes another cloud has that is of the same category, if it has one."""
    by_label: dict[str | None, list[tuple[Entry, Examined]]] = defaultdict(list)
    for entry, found in of.good:
        if entry.split == "train" and found.point_classes:
            by_label[entry.label].append((entry, found))
    for members in by_label.values():
        count = Counter(name for _, found in members for name in found.point_classes)
        if len(members) >= ENOUGH:
            yield from (entry for entry, found in members if all(count[name] == 1 for name in found.point_classes))


def _doubts(of: Subject) -> Iterator[Finding]:
    by_kind: dict[str, dict[Doubt, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry, found in of.good:
        for doubt in found.doubts:
            by_kind[doubt.kind][doubt].append(entry)
    for kind, same in by_kind.items():
        groups = list(same.items())
        if of.shown is None:
            groups = [(doubt, [entry]) for doubt, entries in groups for entry in entries]
        for doubt, entries in groups[: of.shown]:
            yield Finding(f"{of.names(entries)}: {doubt.text}", doubt.fix, doubt.note)
        if of.rest(groups):
            last, _ = groups[-1]
            rest = sum(len(entries) for _, entries in groups[of.shown :])
            yield Finding(f"{rest} more clouds with {kind}", f"{last.fix} (--all lists them)", last.note)


def _points(of: Subject) -> Iterator[Finding]:
    good, wanted, groups = of.good, of.wanted, of.groups
    few = [entry for entry, found in good if found.distinct < groups]
    if few:
        yield Finding(
            f"fewer than {groups} different points, too few for the model's groups: {of.names(few)}", "remove them"
        )
    sparse = [
        (entry, found.distinct)
        for entry, found in good
        if groups <= found.distinct and (found.points < wanted or found.distinct < DISTINCT * wanted)
    ]
    if sparse:
        least = min(distinct for _, distinct in sparse)
        yield Finding(
            f"fewer than {wanted} different points: {of.names([entry for entry, _ in sparse])}",
            f"scan more densely, or set data.stored_points={least} (and data.num_points to no more)",
        )
    repeated = [
        entry
        for entry, found in good
        if found.distinct >= DISTINCT * wanted and found.distinct < (1 - REPEATED) * found.points
    ]
    if repeated:
        text = f"most points are copies of others: {of.names(repeated)}"
        yield Finding(text, "remove the copies, if they are padding")


def _shapes(of: Subject) -> Iterator[Finding]:
    good = of.good
    flat = [entry for entry, found in good if found.flat]
    if flat:
        yield Finding(f"flat in one direction: {of.names(flat)}", "look whether a column is missing or constant")
    for split in SPLITS:
        sizes = [(entry, found.radius) for entry, found in good if entry.split == split and found.radius > 0]
        middle = float(np.median([radius for _, radius in sizes])) if len(sizes) >= ENOUGH else None
        far = [e for e, radius in sizes if middle is not None and not middle / ODD < radius < middle * ODD]
        if far:
            yield Finding(
                f"more than {ODD:g} times larger or smaller than the others: {of.names(far)}",
                "look for another unit, or points far away from the object",
            )


def _duplicates(of: Subject) -> Iterator[Finding]:
    same: dict[str, list[Entry]] = defaultdict(list)
    for entry, found in of.good:
        if not found.flat:
            same[found.digest].append(entry)
    copies = [group for group in same.values() if len(group) > 1]
    leaks = [(group, parts) for group in copies if len(parts := {entry.part for entry in group}) > 1]
    for group, parts in leaks[: of.shown]:
        where = " and ".join(name for part, name in PARTS.items() if part in parts)
        yield Finding(f"the same cloud in {where}: {of.names(group)}", "keep it in one of them")
    if of.rest(leaks):
        yield Finding(f"{of.rest(leaks)} more clouds are in several parts", "list them with --all")
    for group in copies:
        if len({entry.label for entry in group}) > 1:
            yield Finding(f"the same cloud in two classes: {of.names(group)}", "decide for one")
    within = [
        entry
        for group in copies
        if len({entry.part for entry in group}) == 1 and len({entry.label for entry in group}) == 1
        for entry in group[1:]
    ]
    if within:
        yield Finding(f"copies within a split: {of.names(within)}", "remove them, or give them one group in a table")


def _splits(of: Subject) -> Iterator[Finding]:
    good = of.good
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
            "turn the clouds of one split (y is taken as up; where z is, train with data.up=z)",
        )


def _extents(good: Sequence[tuple[Entry, Examined]], split: str) -> dict[str | None, np.ndarray]:
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
