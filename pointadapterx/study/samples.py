"""What a run's files say of each test sample."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pointadapterx.run_folder import PREDICTIONS_FILE, SAMPLE_RECORDS_FILE, SAMPLE_SCORES_FILE
from pointadapterx.study.packing import pack_groups, unpack_groups
from pointadapterx.study.resampling import Records, record_intervals
from pointadapterx.study.statistics import Interval, count_units, score_interval
from pointadapterx.tasks import Task
from pointadapterx.tasks.presentation import too_few

OF_FILE = ("index", "group")
"""Columns of a CSV of records that are none."""


def read_samples(path: Path, column: str | None) -> tuple[np.ndarray, list[str]]:
    """Numbers of the samples in a CSV, in its order, float64, and the names of their groups, empty where independent.

    Args:
        path: of the file.
        column: to read, which gives (n,); None: all but :data:`OF_FILE`, (n, K).

    Raises:
        OSError, KeyError, TypeError, ValueError: if it cannot be read, or is something else.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    groups = [row.get("group") or "" for row in rows]
    if column is not None:
        return np.array([float(row[column]) for row in rows]), groups
    names = [name for name in reader.fieldnames or () if name not in OF_FILE]
    if not names or not rows:
        raise ValueError("it holds no records")
    return np.array([[float(row[name]) for name in names] for row in rows]), groups


class RunIntervals(NamedTuple):
    """Intervals of a run's test scores over its test samples.

    Attributes:
        of: each score, by name.
        missing: why there are none, where test samples are too few.
    """

    of: dict[str, Interval]
    missing: str = ""


def run_intervals(folder: Path, task: type[Task]) -> RunIntervals:
    """Intervals of a run's test scores by name; those that its files give.

    Args:
        folder: of the run.
        task: of the run.

    Raises:
        OSError, KeyError, TypeError, ValueError: for a file that is damaged.
    """
    if (folder / SAMPLE_RECORDS_FILE).is_file():
        rows, names = read_samples(folder / SAMPLE_RECORDS_FILE, None)
        groups = group_numbers(names)
        missing = too_few(count_units(len(rows), groups))
        found = {} if missing else record_intervals([Records(rows, task.scores_of)], groups=groups)
        return RunIntervals(found, missing)
    first, *_ = task.scores
    name, column = (PREDICTIONS_FILE, "correct") if task.predicts_classes else (SAMPLE_SCORES_FILE, "score")
    if not (folder / name).is_file():
        return RunIntervals({})
    values, names = read_samples(folder / name, column)
    groups, outcomes = group_numbers(names), values == 1 if task.predicts_classes else values
    missing = too_few(count_units(len(values), groups))
    return RunIntervals({} if missing else {first: score_interval([outcomes], groups=groups)}, missing)


def group_numbers(groups: list[str]) -> np.ndarray | None:
    """(n,) int64, equal for samples of one group; None if all are independent."""
    packed = pack_groups(groups)
    return None if packed is None else unpack_groups(packed, len(groups))
