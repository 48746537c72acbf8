"""What a run's files say of each test sample."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from pointadapterx.run_folder import PREDICTIONS_FILE, SAMPLE_RECORDS_FILE, SAMPLE_SCORES_FILE
from pointadapterx.study.packing import pack_groups, unpack_groups
from pointadapterx.study.resampling import Records, record_intervals
from pointadapterx.study.statistics import Interval, score_interval
from pointadapterx.tasks import Task

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


def run_intervals(folder: Path, task: type[Task]) -> dict[str, Interval]:
    """Intervals of a run's test scores by name, over its test samples; those that its files give.

    Args:
        folder: of the run.
        task: of the run.

    Raises:
        OSError, KeyError, TypeError, ValueError: for a file that is damaged.
    """
    if (folder / SAMPLE_RECORDS_FILE).is_file():
        rows, groups = read_samples(folder / SAMPLE_RECORDS_FILE, None)
        return record_intervals([Records(rows, task.scores_of)], groups=group_numbers(groups))
    first, *_ = task.scores
    name, column = (PREDICTIONS_FILE, "correct") if task.predicts_classes else (SAMPLE_SCORES_FILE, "score")
    if not (folder / name).is_file():
        return {}
    values, groups = read_samples(folder / name, column)
    outcomes = values == 1 if task.predicts_classes else values
    return {first: score_interval([outcomes], groups=group_numbers(groups))}


def group_numbers(groups: list[str]) -> np.ndarray | None:
    """(n,) int64, equal for samples of one group; None if all are independent."""
    packed = pack_groups(groups)
    return None if packed is None else unpack_groups(packed, len(groups))
