"""Say what is wrong with a data set, before anything is trained on it."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pointadapterx.commands.options import UsageError, add_reading
from pointadapterx.datasets import DATASETS
from pointadapterx.datasets.base import check_choice
from pointadapterx.datasets.folder import STORED_POINTS
from pointadapterx.datasets.image_masks import MaskedFiles
from pointadapterx.datasets.object_images import ObjectImages
from pointadapterx.datasets.options import OF_LABELS
from pointadapterx.datasets.point_files import KINDS, Reading
from pointadapterx.doctor.checks import SHOWN, Finding, diagnose
from pointadapterx.doctor.examined import Entry, Examined
from pointadapterx.doctor.objects import examine_objects
from pointadapterx.doctor.overview import of_point_classes, overview
from pointadapterx.doctor.pictures import examine_pictures
from pointadapterx.doctor.reading import Options, examine_files, is_h5, plan_reading, read_set
from pointadapterx.engine.console import console
from pointadapterx.errors import ConfigError
from pointadapterx.text import printable

EXAMPLES = """\
  %(prog)s scans/                                  a folder with a folder for each class
  %(prog)s clouds.h5
  %(prog)s data/ModelNet40 --name modelnet40       a data set by its name
  %(prog)s pictures/ --name mask_folder            pictures and masks
  %(prog)s blood/ --name voc                       pictures and boxes
"""
UP = "y is taken as up; where z is, train with data.up=z"
OF_FILES = ("suffixes", "columns", "nan")
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
    model = parser.add_argument_group("what the model wants")
    model.add_argument("--groups", type=int, default=GROUPS, help="its groups, or the points of one if these are more")


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
        console.print(UP)
    for finding in findings:
        mark = "note" if finding.note else "TO MEND"
        line = "; ".join(filter(None, (f"{mark}: {finding.text}", finding.fix)))
        console.print(printable(line), highlight=False, soft_wrap=True)
    sick = sum(not finding.note for finding in findings)
    console.print("nothing to mend" if not sick else f"{sick} to mend", style="green" if not sick else "yellow")
    return SICK if sick else 0


def _examine(options: argparse.Namespace) -> tuple[list[Entry], list[Finding]]:
    said, refused, wanted = list[str](), "", options.stored_points
    if options.name is not None or is_h5(options.path):
        if options.name is None:
            said.append(f"{options.path}: read as data.name=h5")
        own = _own_options(options, options.name or "h5")
        entries = read_set(options.name or "h5", options.path, options.variant, labels=not options.unlabelled, **own)
        unlabelled = not any(entry.label is not None or entry.point_classes for entry in entries)
        if unlabelled and not options.unlabelled and options.name in (None, "h5"):
            said.append(f"{options.path}: has no entry label (n,), so it is for pre-training; add it to adapt to it")
        points = [entry.found.points for entry in entries if isinstance(entry.found, Examined)]
        drawn = DATASETS[options.name or "h5"].default_block is not None  # from clouds of any number of points
        wanted = options.groups if drawn else max(points, default=wanted)
    else:
        _refuse(options, OF_LABELS, "--name labelled_folder", "a folder of clouds")
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
        entries, said, refused = examine_files(plan, how), plan.said, plan.refused
    findings = diagnose(entries, wanted=wanted, groups=options.groups, shown=None if options.all else SHOWN)
    if refused and all(finding.note for finding in findings):
        findings.append(Finding(refused, "training would stop at it"))
    return entries, [*findings, *(Finding(text, "nothing to do, if it is meant so", note=True) for text in said)]


def _own_options(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Options of a data set by its name; refuses what does not apply, as training does, instead of ignoring it."""
    own = [key for key in OF_READING if key in inspect.signature(DATASETS[name]).parameters]
    _refuse(options, [key for key in OF_READING if key not in own], "a folder of clouds", f"data.name={name}")
    taken = {key: getattr(options, key) for key in own}
    if name == "labelled_folder":
        taken |= {key: getattr(options, key) for key in (*OF_FILES, *OF_LABELS, "workers")}
        field = taken["label_field"]
        return taken | {"label_field": int(field) if field is not None and field.isdecimal() else field}
    _refuse(options, OF_FILES, "files of one cloud each", f"data.name={name}")
    _refuse(options, OF_LABELS, "--name labelled_folder", name)
    return taken


def _refuse(options: argparse.Namespace, keys: Sequence[str], whose: str, what: str) -> None:
    """Refuses options that are given but would be ignored."""
    for key in keys:
        if getattr(options, key) != USUAL.get(key):
            raise ConfigError(f"--{key.replace('_', '-')}: belongs to {whose}, but this is {what}; remove it")
