"""The command ``pointadapterx doctor``: what is wrong with a data set, before anything is trained on it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from pointadapterx.datasets import DATASETS
from pointadapterx.datasets.base import check_choice
from pointadapterx.datasets.folder import STORED_POINTS
from pointadapterx.datasets.formats.columns import columns_of_text
from pointadapterx.datasets.point_files import KINDS, Reading
from pointadapterx.doctor.checks import PARTS, SHOWN, Finding, diagnose
from pointadapterx.doctor.examined import Entry, Examined
from pointadapterx.doctor.reading import Options, examine_files, is_h5, plan_reading, read_set
from pointadapterx.endings import ends_in_one_line
from pointadapterx.engine.console import console
from pointadapterx.errors import ConfigError, PointAdapterXError
from pointadapterx.text import printable

UP = "y is taken as up; where z is, train with data.up=z"
SICK = 1  # exit status where something has to be mended


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


@ends_in_one_line
def main(argv: Sequence[str], prog: str = "pointadapterx doctor") -> int:
    """Runs the command.

    Returns:
        0 if nothing has to be mended, 1 if something has, 2 for wrong input.
    """
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("path", type=Path, nargs="?", help="folder, table of files, HDF5, or where --name lies")
    names = sorted(name for name, kind in DATASETS.items() if kind.modality == "points" and name != "folder")
    parser.add_argument("--name", choices=names, help="a data set by its name, whose reader checks it as well")
    parser.add_argument("--variant", help="of the data set")
    parser.add_argument(
        "--stored-points",
        type=int,
        default=STORED_POINTS,
        help=f"data.stored_points (default {STORED_POINTS})",
    )
    parser.add_argument("--groups", type=int, default=64, help="its groups, or the points of one if these are more")
    parser.add_argument(
        "--columns",
        type=columns_of_text,
        metavar="X,Y,Z",
        help="data.columns: those of text files that are x, y and z, names or numbers from 0",
    )
    parser.add_argument(
        "--nan",
        choices=["drop", "error"],
        help="data.nan: what to do about NaN or infinite coordinates (default: drop)",
    )
    parser.add_argument(
        "--suffixes",
        type=lambda text: tuple(text.split(",")),
        metavar="KIND,KIND",
        help="data.suffixes: kinds of files to read",
    )
    parser.add_argument("--unlabelled", action="store_true", help="as pre-training reads it, whatever its folders")
    parser.add_argument(
        "--all", action="store_true", help=f"list every file and cloud, instead of the first {SHOWN} of each kind"
    )
    parser.add_argument("--cache-dir", type=Path, help="data.cache_dir, a folder for what training reads again")
    parser.add_argument("--workers", type=int, help="processes that read files (default: all cores)")
    options = parser.parse_args(argv)
    if options.path is None and options.name is None:
        parser.error("give a folder, a table of files or an HDF5 file, or --name for a data set")
    try:
        entries, findings = _examine(options)
    except PointAdapterXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.print(overview(entries))
    if options.name in (None, "h5"):
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
        _require_no_options_of_files(options, options.name or "h5")
        entries = read_set(options.name or "h5", options.path, options.variant, labels=not options.unlabelled)
        if not options.unlabelled and all(entry.label is None for entry in entries):
            said.append(f"{options.path}: has no entry label (n,), so it is for pre-training; add it to adapt to it")
        wanted = max((entry.found.points for entry in entries if isinstance(entry.found, Examined)), default=wanted)
    else:
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


def _require_no_options_of_files(options: argparse.Namespace, name: str) -> None:
    """As training refuses them, instead of leaving them out of account."""
    for key in ("suffixes", "columns", "nan"):
        if getattr(options, key) is not None:
            raise ConfigError(f"--{key}: belongs to files of one cloud each, but this is data.name={name}; remove it")
