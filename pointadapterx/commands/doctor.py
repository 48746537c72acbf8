"""Say what is wrong with a data set, before anything is trained on it."""

from __future__ import annotations

import argparse
import inspect
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pointadapterx.commands.options import UsageError, add_reading
from pointadapterx.config import read_document
from pointadapterx.datasets import DATASETS
from pointadapterx.datasets.base import AXES, check_choice
from pointadapterx.datasets.draws import doubts_of_draws
from pointadapterx.datasets.folder import STORED_POINTS
from pointadapterx.datasets.image_masks import MaskedFiles
from pointadapterx.datasets.object_images import ObjectImages
from pointadapterx.datasets.options import OF_LABELS
from pointadapterx.datasets.point_files import KINDS, Reading
from pointadapterx.datasets.scenes import WHOLE
from pointadapterx.doctor.checks import SHOWN, Finding, diagnose
from pointadapterx.doctor.examined import Entry, Examined
from pointadapterx.doctor.objects import examine_objects
from pointadapterx.doctor.overview import of_point_classes, overview
from pointadapterx.doctor.pictures import examine_pictures
from pointadapterx.doctor.reading import Draws, Options, examine_files, is_h5, plan_reading, read_set
from pointadapterx.engine.console import console
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.text import printable

EXAMPLES = """\
  %(prog)s scans/                                  a folder with a folder for each class
  %(prog)s clouds.h5
  %(prog)s shapes/ --name labelled_folder          files with a label for each point
  %(prog)s scans/ --name labelled_folder --block 1 scenes of which samples are blocks
  %(prog)s data/ModelNet40 --name modelnet40       a data set by its name
  %(prog)s pictures/ --name mask_folder            pictures and masks
  %(prog)s blood/ --name voc                       pictures and boxes
"""
UP = "y is taken as up; where z is, train with data.up=z"
OF_FILES = ("suffixes", "columns", "nan")
OF_DRAWS = ("block", "num_points")
OWN_FLAGS = re.compile(rf"\bdata\.({'|'.join(OF_LABELS)})\b")
GROUPS = 64  # of the shipped configs
OF_READING = ("cache_dir", "stored_points")
USUAL = {"stored_points": STORED_POINTS, "groups": GROUPS}
"""What options are where they are not given, unless it is None."""
SICK = 1  # exit status where something has to be mended


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    parser.add_argument("path", type=Path, nargs="?", help="folder, table of files, HDF5, or where --name lies")
    names = sorted(
        name
        for name, kind in DATASETS.items()
        if (kind.modality == "points" and name != "folder") or issubclass(kind, MaskedFiles | ObjectImages)
    )
    known = f"a data set by its name, whose reader checks it as well: {', '.join(names)}"
    parser.add_argument("--name", choices=names, metavar="NAME", help=known)
    parser.add_argument("--variant", help="of the data set")
    parser.add_argument("--unlabelled", action="store_true", help="as pre-training reads it, whatever its folders")
    parser.add_argument(
        "--all", action="store_true", help=f"list every file and cloud, instead of the first {SHOWN} of each kind"
    )
    files = parser.add_argument_group("reading files, as the keys data.* of a config say it to training")
    add_reading(files, nan="drop")
    files.add_argument(
        "--suffixes",
        type=lambda text: tuple(text.split(",")),
        metavar="KIND,KIND",
        help="kinds of files to read",
    )
    files.add_argument("--label-field", metavar="NAME", help="of labelled_folder: field with the labels of points")
    files.add_argument("--label-names", metavar="FILE", help="of labelled_folder: file with the names of labels")
    files.add_argument(
        "--ignored-labels",
        type=lambda text: [int(number) for number in text.split(",")],
        metavar="N,N",
        help="of labelled_folder: labels of points that have no class (default: -1)",
    )
    files.add_argument("--cache-dir", type=Path, metavar="DIR", help="folder for what training reads again")
    files.add_argument(
        "--stored-points", type=int, default=STORED_POINTS, metavar="N", help=f"of a file (default {STORED_POINTS})"
    )
    draws = parser.add_argument_group("drawing samples from clouds of any size, as the keys data.* of a config say it")
    draws.add_argument(
        "--block",
        type=_block,
        metavar="SIDE",
        help="side of blocks in units of the files, or whole (default: of --name)",
    )
    draws.add_argument(
        "--num-points", type=_points, metavar="N", help="of a sample (default: as the shipped config NAME has it)"
    )
    draws.add_argument("--up", choices=AXES, help="of labelled_folder: axis of the files that points up (default: y)")
    model = parser.add_argument_group("what the model wants")
    model.add_argument("--groups", type=int, default=GROUPS, help="its groups, or the points of one if these are more")


def _block(text: str) -> float | str:
    if text == WHOLE:
        return text
    with suppress(ValueError):
        if 0 < (side := float(text)) < math.inf:
            return side
    raise argparse.ArgumentTypeError(f"'{text}' is neither a length greater than 0 nor {WHOLE}")


def _points(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is no number of points")


def run(options: argparse.Namespace) -> int:
    """Prints what there is, and what to mend.

    Returns:
        0 if nothing has to be mended, else 1.
    """
    if options.path is None and options.name is None:
        raise UsageError("give a folder, a table of files or an HDF5 file, or --name for a data set")
    kind = None if options.name is None else DATASETS[options.name]
    if kind is not None and issubclass(kind, MaskedFiles | ObjectImages):
        _own_options(options, options.name)
        _refuse(options, ("groups", "workers"), "clouds", f"{options.name}, which holds pictures")
        if options.unlabelled:
            raise ConfigError(f"--unlabelled: pictures of data.name={options.name} have labels; remove it")
    if kind is not None and issubclass(kind, MaskedFiles):
        table, findings = examine_pictures(kind, options.path, options.variant, None if options.all else SHOWN)
        console.print(table)
    elif kind is not None and issubclass(kind, ObjectImages):
        if options.variant is not None:
            raise ConfigError(f"--variant {options.variant}: {options.name} has no variants; remove it")
        table, findings = examine_objects(kind, options.path, None if options.all else SHOWN)
        console.print(table)
    else:
        entries, findings = _examine(options)
        console.print(overview(entries))
        if (labels := of_point_classes(entries)) is not None:
            console.print(labels)
    if options.name in (None, "h5", "labelled_folder"):
        console.print(f"{options.up} is taken as up" if options.up is not None else UP)
    for finding in findings:
        mark = "note" if finding.note else "TO MEND"
        line = _with_own_flags("; ".join(filter(None, (f"{mark}: {finding.text}", finding.fix))))
        console.print(printable(line), highlight=False, soft_wrap=True)
    sick = sum(not finding.note for finding in findings)
    console.print("nothing to mend" if not sick else f"{sick} to mend", style="green" if not sick else "yellow")
    return SICK if sick else 0


def _with_own_flags(text: str) -> str:
    """A message of a data set that names keys of ``data``, with the options of this command in their place."""
    return OWN_FLAGS.sub(lambda found: _flag(found[1]), text)


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _examine(options: argparse.Namespace) -> tuple[list[Entry], list[Finding]]:
    if options.name is not None or is_h5(options.path):
        return _examine_set(options, options.name or "h5")
    _refuse(options, (*OF_LABELS, "up"), "--name labelled_folder", "a folder of clouds")
    _refuse(options, OF_DRAWS, "sets that samples are drawn from", "a folder of clouds")
    for suffix in options.suffixes or ():
        check_choice(suffix, KINDS, "--suffixes")
    how = Options(
        suffixes=options.suffixes,
        labels=not options.unlabelled,
        stored_points=options.stored_points,
        reading=Reading.of(options.columns, options.nan),
        cache_dir=options.cache_dir,
        workers=options.workers,
    )
    plan = plan_reading(options.path, how)
    entries = examine_files(plan, how)
    findings = _diagnosed(options, entries, options.stored_points)
    if plan.refused and all(finding.note for finding in findings):
        findings.append(Finding(plan.refused, "training would stop at it"))
    return entries, [*findings, *_notes(plan.said)]


def _examine_set(options: argparse.Namespace, name: str) -> tuple[list[Entry], list[Finding]]:
    said, kind = list[str](), DATASETS[name]
    if options.name is None:
        said.append(f"{options.path}: read as data.name=h5")
    own = _own_options(options, name)
    block = options.block or kind.default_block
    draws = None if block is None else Draws(None if isinstance(block, str) else block, options.up or AXES[1])
    try:
        entries = read_set(name, options.path, options.variant, labels=not options.unlabelled, draws=draws, **own)
    except DataError as error:
        raise DataError(_with_own_flags(str(error))) from None
    unlabelled = not any(entry.label is not None or entry.point_classes for entry in entries)
    if unlabelled and not options.unlabelled and name == "h5":
        said.append(f"{options.path}: has no entry label (n,), so it is for pre-training; add it to adapt to it")
    points = [entry.found.points for entry in entries if isinstance(entry.found, Examined)]
    wanted = max(points, default=options.stored_points) if draws is None else options.groups
    findings = _diagnosed(options, entries, wanted)
    train = [entry for entry in entries if entry.split == "train" and isinstance(entry.found, Examined)]
    measured = [entry.measured for entry in train if entry.measured is not None]
    if draws is not None and measured and len(measured) == len(train):
        num_points = _usual_points(name) if options.num_points is None else options.num_points
        doubts = doubts_of_draws(measured, num_points, draws.block)
        findings += [Finding(doubt.text, doubt.fix, doubt.note) for doubt in doubts]
    return entries, [*findings, *_notes(said)]


def _diagnosed(options: argparse.Namespace, entries: list[Entry], wanted: int) -> list[Finding]:
    return diagnose(entries, wanted=wanted, groups=options.groups, shown=None if options.all else SHOWN)


def _notes(said: Sequence[str]) -> list[Finding]:
    return [Finding(text, "nothing to do, if it is meant so", note=True) for text in said]


def _usual_points(name: str) -> int | None:
    """``data.num_points`` of the shipped config with a data set's name, if there is one."""
    try:
        section = read_document(name).content.get("data")
    except ConfigError:
        return None
    found = section.get("num_points") if isinstance(section, dict) else None
    return found if isinstance(found, int) else None


def _own_options(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Options of a data set by its name; refuses what does not apply, as training does, instead of ignoring it."""
    if DATASETS[name].default_block is None:
        _refuse(options, OF_DRAWS, "sets that samples are drawn from", f"data.name={name}")
    own = [key for key in OF_READING if key in inspect.signature(DATASETS[name]).parameters]
    _refuse(options, [key for key in OF_READING if key not in own], "a folder of clouds", f"data.name={name}")
    taken = {key: getattr(options, key) for key in own}
    if name == "labelled_folder":
        taken |= {key: getattr(options, key) for key in (*OF_FILES, *OF_LABELS, "workers")}
        field = taken["label_field"]
        return taken | {"label_field": int(field) if field is not None and field.isdecimal() else field}
    _refuse(options, OF_FILES, "files of one cloud each", f"data.name={name}")
    _refuse(options, (*OF_LABELS, "up"), "--name labelled_folder", name)
    return taken


def _refuse(options: argparse.Namespace, keys: Sequence[str], whose: str, what: str) -> None:
    """Refuses options that are given but would be ignored."""
    for key in keys:
        if getattr(options, key) != USUAL.get(key):
            raise ConfigError(f"{_flag(key)}: belongs to {whose}, but this is {what}; remove it")
