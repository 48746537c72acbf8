"""Options that say what a task has to know of files in addition to their points."""

from __future__ import annotations

import argparse
from pathlib import Path

from pointadapterx.commands.options import UsageError
from pointadapterx.engine.conditions import Said, folder_of

BY_FOLDER = "folder"


def add_condition(group: argparse._ArgumentGroup) -> None:
    """``--condition`` and ``--condition-from``, of files that are predicted."""
    condition = group.add_mutually_exclusive_group()
    condition.add_argument(
        "--condition", metavar="NAME", help="category of all files; only for tasks that have to know it"
    )
    condition.add_argument(
        "--condition-from",
        metavar=f"{BY_FOLDER}|FILE.csv",
        help=f"category of each file, for such tasks: {BY_FOLDER}, its folder's name; or a "
        "table with the columns file and category",
    )


def condition_of(options: argparse.Namespace) -> Said:
    """What :func:`add_condition`'s options say.

    Raises:
        UsageError: for a source that is neither.
    """
    source = options.condition_from
    if source is None:
        name: str | None = options.condition
        return name
    if source == BY_FOLDER:
        return folder_of
    if Path(source).suffix.lower() != ".csv":
        raise UsageError(f"--condition-from {source}: give {BY_FOLDER} or FILE.csv; --condition NAME is of all files")
    return Path(source)
