"""``predict --score``: answers beside the labels that the files carry."""

from __future__ import annotations

import argparse

from pointadapterx.commands.options import UsageError
from pointadapterx.engine.predictor import Predictor
from pointadapterx.predicting.answering import scores_by
from pointadapterx.tasks.exchange import Answer
from pointadapterx.tasks.point_scores import FileScores, Scored


def add_score(group: argparse._ArgumentGroup) -> None:
    """The options."""
    group.add_argument(
        "--score",
        action="store_true",
        help="also compare with labels of points in the files: mIoU and the share of right points, per file and in all",
    )
    group.add_argument(
        "--label-field", metavar="NAME", help="field with these labels; only with --score (default: the adapter's)"
    )


def scores_of(options: argparse.Namespace, predictor: Predictor[Answer]) -> dict[str, FileScores]:
    """What compares the answers of each adapter with labels in the files; empty where that is not wanted.

    Raises:
        UsageError: if the task has no such.
    """
    if not options.score:
        if options.label_field is not None:
            raise UsageError("--label-field belongs to --score")
        return {}
    scores = scores_by(predictor, label_field_of(options))
    if len(scores) < len(predictor.tasks):
        name = next(iter(predictor.tasks.values())).config.task.name
        raise UsageError(f"--score: compares labels of points, which the task {name} does not give; use test")
    return scores


def label_field_of(options: argparse.Namespace) -> str | int | None:
    """Name or number of the field with labels; None where none is given."""
    field: str | None = options.label_field
    return int(field) if field is not None and field.isdecimal() else field


def columns_of(predictor: Predictor[Answer], options: argparse.Namespace) -> list[str]:
    """Of a CSV file."""
    task = next(iter(predictor.tasks.values()))
    return [*task.columns(options.top), *(Scored.columns if options.score else ())]
